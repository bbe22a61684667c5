"""Sampling: encode each prompt once, give it G sequences, decode token by token.

    hidden, keys and values = prefill(N prompts)         each prompt and its images once
    cache                   = the same for B = N * G sequences, with room for their completions
    repeat
        token  ~ softmax(logits(hidden) / temperature)
        hidden = extend(token), which looks at the cache and adds itself to it
    until every sequence has drawn one of the model's EOS ids, or max_new_tokens is reached

The distribution is exactly the one that `token_logps` scores, up to rounding: logits / temperature,
image and special ids suppressed, no top-p and no top-k. The sampled ids themselves are returned,
and training uses those. Greedy output equals `model.generate` token for token
(test_greedy_equals_generate).

No sequence takes the place of one that has ended, so a batch runs as long as its longest
completion. A server such as vLLM refills, which is faster for very unequal lengths.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from model.attention import Layout, padded_indices
from model.qwen import Policy, next_positions
from model.records import Group, Prompt

LOOK_EVERY = 4  # tokens between looks for ended sequences: on a GPU a look waits for the device
DROP_SHARE = 0.25  # ended sequences are dropped from this share on: dropping copies the whole cache
STATIC_MULTIPLE = 256  # widths of a static cache, so that few of them are ever compiled
COMPILE = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}


# --- 1. Keys and values ------------------------------------------------------------------------


class PromptCache:
    """Keys and values of a pass over prompts: a list with (1, heads, tokens, d) for each layer."""

    def __init__(self, offsets: Tensor):
        self.offsets = offsets  # (N,) index of the first token of each prompt
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, k: Tensor, v: Tensor, *_) -> tuple[Tensor, Tensor]:
        """HF's layers call it, first to last; returns what the layer attends to."""
        self.keys.append(k)
        self.values.append(v)
        return k, v


class DecodeCache:
    """Keys and values of B sequences, (B, heads, width, d) for each layer, written in place.

    The slots of one sequence, for a prompt of 3 tokens beside a longest prompt of 5:

        slot        0  1  2 | 3  4 | 5  6  7  ...
        holds       prompt  | pad  | completion
        position    0  1  2 |      | 3  4  5  ...

    So a slot is not a position. Positions are given to `extend` apart, and the padding is masked.
    """

    drops_sequences = True

    def __init__(
        self, prompts: PromptCache, indices: Tensor, in_prompt: Tensor, max_new_tokens: int
    ):
        """
        indices    (B, S) where each sequence finds its prompt among the tokens of `prompts`
        in_prompt  (B, S) bool, False where that is padding
        """
        self.length = indices.shape[1]  # slots in use, the same for all sequences
        self.width = self.full_width(self.length + max_new_tokens)
        free = self.width - self.length

        self.visible = pad(in_prompt, (0, free), value=True)  # (B, width) False for padding alone
        self.keys = [self.widen(k, indices) for k in prompts.keys]
        self.values = [self.widen(v, indices) for v in prompts.values]

    def full_width(self, needed: int) -> int:
        return needed

    def widen(self, x: Tensor, indices: Tensor) -> Tensor:
        """(1, heads, tokens, d) of the prompts -> (B, heads, width, d), free slots 0."""
        wide = x.new_zeros(len(indices), x.shape[1], self.width, x.shape[3])
        wide[:, :, : self.length] = x[0][:, indices].transpose(0, 1)
        return wide

    def update(self, k: Tensor, v: Tensor, layer: int, *_) -> tuple[Tensor, Tensor]:
        """Write k, v (B, heads, 1, d) of the new token; returns all keys and values up to it."""
        end = self.length + 1
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def mask(self) -> Tensor:
        """(B, K) bool: the slots that the next token looks at, its own included."""
        return self.visible[:, : self.length + 1]

    def advance(self) -> None:
        """The new token is in, in all layers."""
        self.length += 1

    def select(self, kept: Tensor) -> None:
        """Keep these sequences, kept (active,), and drop the others."""
        self.visible = self.visible[kept]
        self.keys = [k.index_select(0, kept) for k in self.keys]
        self.values = [v.index_select(0, kept) for v in self.values]


class StaticDecodeCache(DecodeCache):
    """The same with shapes that never change, for a compiled step (on a GPU, a CUDA graph).

    Attention always spans the whole width, and ended sequences stay until all have ended.
    """

    drops_sequences = False

    def __init__(
        self, prompts: PromptCache, indices: Tensor, in_prompt: Tensor, max_new_tokens: int
    ):
        super().__init__(prompts, indices, in_prompt, max_new_tokens)
        self.slots = torch.arange(self.width, device=indices.device)
        self.write_position = torch.tensor([self.length], device=indices.device)

    def full_width(self, needed: int) -> int:
        multiples = -(-needed // STATIC_MULTIPLE)  # rounded up
        return multiples * STATIC_MULTIPLE

    def widen(self, x: Tensor, indices: Tensor) -> Tensor:
        wide = super().widen(x, indices)
        torch._dynamo.mark_static_address(wide)  # otherwise a CUDA graph copies it in and out
        return wide

    def update(self, k: Tensor, v: Tensor, layer: int, *_) -> tuple[Tensor, Tensor]:
        self.keys[layer].index_copy_(2, self.write_position, k)
        self.values[layer].index_copy_(2, self.write_position, v)
        return self.keys[layer], self.values[layer]

    def mask(self) -> Tensor:
        return self.visible & (self.slots <= self.length)

    def advance(self) -> None:
        super().advance()
        self.write_position += 1


# --- 2. Two passes -----------------------------------------------------------------------------


def prefill(policy: Policy, prompts: list[Prompt]) -> tuple[Tensor, PromptCache]:
    """Each prompt once: (N, D) the hidden state of its last token, and all keys and values."""
    layout = Layout.of([len(p.ids) for p in prompts], [], [], policy.device)
    positions = torch.cat([p.positions for p in prompts], dim=1)  # (3, tokens)
    cache = PromptCache(layout.offsets)

    embeds = policy.embed_prompts(prompts)  # (tokens, D)
    hidden = policy.run_layers(embeds[None], positions[:, None], layout, cache)[0]  # (tokens, D)
    return hidden[layout.last_of_prompt.to(policy.device)], cache


def extend(
    policy: Policy, ids: Tensor, positions: Tensor, mask: Tensor, cache: DecodeCache
) -> Tensor:
    """One more token of each sequence: ids (B,), positions (B,), mask (B, K) -> hidden (B, D)."""
    positions = positions.expand(3, -1)[..., None]  # (3, B, 1): after the prompt all is text
    hidden = policy.embed(ids)[:, None]  # (B, 1, D)
    return policy.run_layers(hidden, positions, mask[:, None, None], cache)[:, 0]


def compiled_extend(policy: Policy) -> Callable:
    """`extend`, compiled once a policy, and again for another number of sequences or width."""
    if not hasattr(policy, "compiled_extend"):
        torch._dynamo.config.recompile_limit = 128
        policy.compiled_extend = torch.compile(partial(extend, policy), **COMPILE)

    def step(*args):
        torch.compiler.cudagraph_mark_step_begin()  # the output of the last step is used up by now
        return policy.compiled_extend(*args)

    return step


# --- 3. Sampling -------------------------------------------------------------------------------


@torch.no_grad()
def sample_groups(
    policy: Policy,
    prompts: list[Prompt],
    group_size: int,
    *,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None = None,
    sample_batch: int = 512,
    logits_stat: Callable[[Tensor], Tensor] | None = None,
    compile_decode: bool = False,
    progress: str | None = None,
) -> tuple[list[Group], list[list[float]]]:
    """Sample `group_size` completions of each prompt.

    policy          the bare Policy, not a wrapped one: no collective runs while tokens are drawn,
                    so ranks may sample for unequally long
    temperature     0 takes the likeliest token
    sample_batch    sequences decoded at a time, whole groups, at least one
    logits_stat     a function of the logits, (sequences, V) -> (sequences,), called for each token
    compile_decode  a static cache and a compiled step
    progress        title of a progress bar, None for no bar

    Returns the groups, in the order of `prompts`, and for each completion the values of
    `logits_stat` at its tokens (empty lists without it).
    """
    groups: list[Group] = []
    stats: list[list[float]] = []
    at_a_time = max(1, sample_batch // group_size)

    starts = range(0, len(prompts), at_a_time)
    for start in tqdm(starts, desc=progress, leave=False, disable=progress is None):
        batch = prompts[start : start + at_a_time]
        completions, batch_stats = decode_batch(
            policy, batch, group_size, max_new_tokens, temperature, generator, logits_stat,
            StaticDecodeCache if compile_decode else DecodeCache,
        )  # fmt: skip

        # Completions n*G to n*G + G-1 share prompt n. Trap: with `repeat` instead of the
        # `repeat_interleave` below they would be dealt out in turn, and rewards would go to
        # completions of other prompts (test_groups_are_contiguous).
        for n, prompt in enumerate(batch):
            groups.append(Group(prompt, completions[n * group_size : (n + 1) * group_size]))
        stats += batch_stats
    return groups, stats


def decode_batch(
    policy: Policy,
    prompts: list[Prompt],
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    logits_stat: Callable[[Tensor], Tensor] | None,
    cache_class: type[DecodeCache],
) -> tuple[list[Tensor], list[list[float]]]:
    """One batch of `sample_groups`: its B completions, each (t,), and what `logits_stat` gave."""
    device = policy.device
    prompt_of = torch.arange(len(prompts)).repeat_interleave(group_size)  # (B,)

    # 1. Prefill: every prompt once, then its keys and values for each of its sequences.
    last_hidden, prompt_cache = prefill(policy, prompts)  # (N, D)
    prompt_lengths = torch.tensor([len(p.ids) for p in prompts])  # (N,)
    indices, in_prompt = padded_indices(prompt_cache.offsets, prompt_lengths)  # (N, S)
    cache = cache_class(
        prompt_cache, indices[prompt_of].to(device), in_prompt[prompt_of].to(device), max_new_tokens
    )
    hidden = last_hidden[prompt_of.to(device)]  # (B, D)
    positions = next_positions(prompts, max_new_tokens)[prompt_of].to(device)  # (B, max_new_tokens)
    step = partial(extend, policy) if cache.drops_sequences else compiled_extend(policy)

    # 2. Decode. `active` are the sequences still decoded; hidden, positions, cache hold these
    # alone.
    eos = torch.tensor(policy.eos_ids, device=device)
    tokens = torch.zeros_like(positions)  # (B, max_new_tokens)
    stats = torch.zeros(positions.shape, device=device)  # (B, max_new_tokens)
    lengths = torch.full_like(prompt_of, max_new_tokens, device=device)  # (B,)
    active = torch.arange(len(prompt_of), device=device)  # (B,), shorter later
    ended = torch.zeros_like(active, dtype=torch.bool)

    for t in range(max_new_tokens):
        logits = policy.logits(hidden, temperature or 1.0)  # (active, V)
        token = sample_token(logits, temperature, generator)  # (active,)
        tokens[active, t] = token
        if logits_stat is not None:
            stats[active, t] = logits_stat(logits).to(stats.dtype)

        # `where` rather than a boolean index, which would wait for the device.
        ends_here = torch.isin(token, eos) & ~ended
        lengths[active] = torch.where(ends_here, t + 1, lengths[active])
        ended = ended | ends_here

        if t + 1 == max_new_tokens:
            break
        if t % LOOK_EVERY == 0:
            if ended.all():
                break
            if cache.drops_sequences and ended.float().mean() > DROP_SHARE:
                kept = (~ended).nonzero()[:, 0]
                cache.select(kept)
                active, ended = active[kept], ended[kept]
                token, positions = token[kept], positions[kept]

        hidden = step(token, positions[:, t], cache.mask(), cache)  # (active, D)
        cache.advance()

    # 3. Cut each sequence after its EOS.
    tokens, stats, lengths = tokens.cpu(), stats.cpu(), lengths.tolist()
    completions = [ids[:length].clone() for ids, length in zip(tokens, lengths)]
    if logits_stat is None:
        return completions, [[] for _ in completions]
    return completions, [values[:length].tolist() for values, length in zip(stats, lengths)]


def sample_token(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """(sequences, V) -> (sequences,) one token each; the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


# --- 4. A bf16 copy that samples ---------------------------------------------------------------


def sampling_copy(policy: Policy) -> Policy:
    """A copy with bf16 weights, for sampling alone. `refresh` it before every rollout.

    Decoding reads every weight for every token, so half of the bytes take half of the time.
    Autocast on fp32 weights would cast every weight again for every token.

    Trap: only weights become bf16. `.bfloat16()` would round the rotary frequencies too, and
    positions far apart would drift (test_bf16_copy_keeps_its_positions).
    """
    sampler = copy.deepcopy(policy)
    for weight in sampler.parameters():
        weight.data = weight.data.bfloat16()

    # The copy needs no vision tower of its own. It asks the policy's, whose features training uses
    # too, so an image is still encoded once.
    sampler.image_features = policy.image_features
    sampler.vlm.model.visual = None

    sampler.__dict__.pop("compiled_extend", None)  # it would go on with the weights of the policy
    return sampler


@torch.no_grad()
def refresh(sampler: Policy, policy: Policy) -> None:
    """Bring the copy up to date. Nothing to do where the policy is its own sampler.

    Trap: forgotten, every rollout would come from the start model, and no error would say so
    (test_bf16_copy_is_refreshed).
    """
    if sampler is policy:
        return
    weights = dict(policy.named_parameters())
    for name, weight in sampler.named_parameters():
        weight.copy_(weights[name])
