"""Sampling: encode each prompt once, give it G sequences, decode token by token.

    hidden, keys and values = prefill(N prompts)          each prompt and its images once
    cache                   = the same for B = N * G sequences, with room for their completions
    repeat
        token  ~ softmax(logits(hidden) / temperature)
        hidden = extend(token), which attends to the cache and adds itself to it
    until every sequence has drawn one of the model's EOS ids, or max_new_tokens is reached

Tokens are drawn from the distribution that `token_logps` scores: logits / temperature, suppressed
ids left out, no top-p and no top-k. The two agree up to rounding. Training uses the sampled ids
themselves; greedy ones equal `model.generate`, token for token (test_greedy_equals_generate).

There is no continuous batching: when a sequence ends, no new one starts in its place, so a batch
takes as long as its longest completion. A server such as vLLM does better there.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from model.attention import padded_indices
from model.compiled import StaticDecodeCache, compiled_extend
from model.decoding import DecodeCache, extend, prefill
from model.lora import merge_copy, merged_weights
from model.qwen import Policy, next_positions
from model.records import Prompt, SampledGroup
from model.sharding import whole

CHECK_EVERY = 4  # tokens between checks for ended sequences: each check makes a GPU wait
DROP_SHARE = 0.25  # drop ended sequences if more than this share has ended: it copies the cache


# --- 1. The plain version ----------------------------------------------------------------------


@torch.no_grad()
def plain_sample(
    policy: Policy,
    prompt: Prompt,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One completion (L,) of one prompt, without any cache: `sample_groups` is this, made fast.

    For every token, the whole prompt and the completion so far pass through the model again
    (test_sampling_equals_the_plain_version).
    """
    completion = torch.zeros(0, dtype=torch.long)
    while len(completion) < max_new_tokens:
        logits = policy.plain_logits(prompt, completion)[-1:]  # (1, V), about the next token
        logits = logits.masked_fill(policy.suppressed, float("-inf")) / (temperature or 1.0)
        token, _ = draw(logits, temperature, generator)  # (1,)

        completion = torch.cat([completion, token.cpu()])
        if int(token) in policy.eos_ids:
            break
    return completion


def draw(
    logits: Tensor, temperature: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """(sequences, V) -> one token each, and its log-probability in nats: (sequences,) both.

    At temperature 0 the token is the likeliest one.
    """
    logps = logits.log_softmax(-1)  # (sequences, V)
    if temperature == 0:
        token = logps.argmax(-1)
    else:
        token = torch.multinomial(logps.exp(), 1, generator=generator)[:, 0]
    return token, logps.gather(-1, token[:, None])[:, 0]


def token_entropy(logits: Tensor) -> Tensor:
    """(sequences, V) -> (sequences,) entropy of the distribution of the next token, nats."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


# --- 2. Sampling -------------------------------------------------------------------------------


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
) -> list[SampledGroup]:
    """Sample `group_size` completions of each prompt; the groups are in the order of `prompts`.

    policy          the bare Policy, not a wrapped one: no collective runs while tokens are drawn,
                    so each rank may take as long as it needs
    temperature     0 takes the likeliest token
    sample_batch    at most so many sequences are decoded at a time: whole groups, or parts of one
                    that is larger, its prompt then encoded again for each part
    logits_stat     a function of the logits, (sequences, V) -> (sequences,), called for each token;
                    its values are `SampledGroup.stats`
    compile_decode  a static cache and a compiled step (`compiled.py`)
    """
    groups: list[SampledGroup] = []
    at_a_time = max(1, sample_batch // group_size)  # groups
    parts = split_group(group_size, sample_batch)  # more than one only if `at_a_time` is 1

    starts = range(0, len(prompts), at_a_time)
    for start in starts:
        batch = prompts[start : start + at_a_time]
        drawn = Drawn([], [], [])
        for part in parts:
            # Completions n*G to n*G + G-1 share prompt n. Trap: with `repeat` instead of
            # `repeat_interleave` the prompts would alternate, and rewards would go to completions
            # of other prompts (test_groups_are_contiguous).
            prompt_of = torch.arange(len(batch)).repeat_interleave(part)  # (B,)
            drawn += decode_batch(
                policy, batch, prompt_of, max_new_tokens, temperature, generator, logits_stat,
                compile_decode,
            )  # fmt: skip

        for n, prompt in enumerate(batch):
            mine = slice(n * group_size, (n + 1) * group_size)
            groups.append(
                SampledGroup(prompt, drawn.tokens[mine], drawn.logps[mine], drawn.stats[mine])
            )
    return groups


def split_group(group_size: int, limit: int) -> list[int]:
    """The sizes of the parts in which a group is decoded, each at most `limit`, and at least 1.

    >>> split_group(8, 512), split_group(128, 50)
    ([8], [50, 50, 28])
    """
    limit = max(1, limit)
    return [min(limit, group_size - start) for start in range(0, group_size, limit)]


@dataclass
class Drawn:
    """What was drawn for B sequences: tokens, their log-probabilities, their stats, (L,) each."""

    tokens: list[Tensor]
    logps: list[Tensor]
    stats: list[Tensor]

    def __add__(self, other: "Drawn") -> "Drawn":
        return Drawn(
            self.tokens + other.tokens, self.logps + other.logps, self.stats + other.stats
        )


def decode_batch(
    policy: Policy,
    prompts: list[Prompt],
    prompt_of: Tensor,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    logits_stat: Callable[[Tensor], Tensor] | None,
    compile_decode: bool,
) -> Drawn:
    """Sample one completion for each entry of prompt_of (B,)."""
    device = policy.device
    hidden, cache, step = start_decoding(
        policy, prompts, prompt_of, max_new_tokens, compile_decode
    )  # hidden (B, D)
    positions = next_positions(prompts, max_new_tokens)[prompt_of].to(device)  # (B, max_new_tokens)
    eos = torch.tensor(policy.eos_ids, device=device)

    # What is drawn, one line for each of the B sequences.
    tokens = torch.zeros_like(positions)  # (B, max_new_tokens)
    logps = torch.zeros(positions.shape, device=device)  # (B, max_new_tokens)
    stats = torch.zeros(positions.shape, device=device)  # (B, max_new_tokens)
    lengths = torch.full_like(prompt_of, max_new_tokens, device=device)  # (B,)

    # The lines that are still decoded. `hidden`, `positions` and the cache have these alone.
    active = torch.arange(len(prompt_of), device=device)  # (active,)
    ended = torch.zeros_like(active, dtype=torch.bool)  # (active,) ended, and not dropped yet

    for t in range(max_new_tokens):
        # 1. Draw a token for each active sequence.
        logits = policy.logits(hidden, temperature or 1.0)  # (active, V)
        token, logp = draw(logits, temperature, generator)  # (active,) each
        tokens[active, t] = token
        logps[active, t] = logp.to(logps.dtype)
        if logits_stat is not None:
            stats[active, t] = logits_stat(logits).to(stats.dtype)

        # 2. Note which sequences end here (`where`: a boolean index would make a GPU wait).
        ends_here = torch.isin(token, eos) & ~ended
        lengths[active] = torch.where(ends_here, t + 1, lengths[active])
        ended = ended | ends_here
        if t + 1 == max_new_tokens:
            break

        # 3. Now and then, stop if all have ended, or drop those that have.
        if t % CHECK_EVERY == 0:
            if ended.all():
                break
            if cache.drops_sequences and ended.float().mean() > DROP_SHARE:
                kept = (~ended).nonzero()[:, 0]
                cache.select(kept)
                active, ended = active[kept], ended[kept]
                token, positions = token[kept], positions[kept]

        # 4. Pass the tokens through the model.
        hidden = step(token, positions[:, t], cache.mask(), cache)  # (active, D)
        cache.advance()

    return Drawn(*[cut_to_length(lines, lengths) for lines in (tokens, logps, stats)])


def start_decoding(
    policy: Policy,
    prompts: list[Prompt],
    prompt_of: Tensor,
    max_new_tokens: int,
    compile_decode: bool,
) -> tuple[Tensor, DecodeCache, Callable]:
    """Prefill the prompts. Returns hidden (B, D), the cache of B sequences, and the step."""
    device = policy.device
    last_hidden, prompt_cache = prefill(policy, prompts)  # (N, D)

    prompt_lengths = torch.tensor([len(p.ids) for p in prompts])  # (N,)
    indices, in_prompt = padded_indices(prompt_cache.offsets, prompt_lengths)  # (N, S)
    for_sequences = indices[prompt_of].to(device), in_prompt[prompt_of].to(device)  # (B, S)

    cache_class, step = DecodeCache, partial(extend, policy)
    if compile_decode:
        cache_class, step = StaticDecodeCache, compiled_extend(policy)
    cache = cache_class(prompt_cache, *for_sequences, max_new_tokens)
    return last_hidden[prompt_of.to(device)], cache, step


def cut_to_length(lines: Tensor, lengths: Tensor) -> list[Tensor]:
    """lines (B, max_new_tokens), lengths (B,) -> B tensors (L,), each cut after its EOS."""
    lines = lines.cpu()
    return [lines[b, :length].clone() for b, length in enumerate(lengths.tolist())]


# --- 3. A bf16 copy that samples ---------------------------------------------------------------


def sampling_dtype(accelerator) -> torch.dtype:
    """The dtype of weights that only answer: bf16 where the run computes in it, else fp32."""
    return torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32


def sampling_copy(
    policy: Policy, dtype: torch.dtype = torch.bfloat16, will_shard: bool = False
) -> Policy:
    """A copy with bf16 weights, only for sampling. `refresh` it before every rollout.

    Adapters are merged into it (`lora.py`). Of weights that have no adapter and are in `dtype`
    already no copy is made: they are frozen, so both models may share them.

    Decoding reads every weight for every token, so half of the bytes take half of the time.

    dtype       fp32 where a policy is copied only because it will be sharded
    will_shard  share nothing with the policy, and copy a tower that is trained as well: a sharded
                one can only be asked by all ranks together

    Trap: only the weights become bf16. `.bfloat16()` would round the rotary frequencies too, and
    positions far apart would drift (test_bf16_copy_keeps_its_positions).
    """
    # `deepcopy` takes what it finds in its memo as already copied: each weight's bf16 version, so
    # that no fp32 copy ever exists, and nothing for the vision tower. The sampler asks the policy's
    # tower, whose features training uses too, so an image is still encoded once.
    memo = {}
    for weight in policy.parameters():
        copied = weight.detach().to(dtype, copy=will_shard)
        memo[id(weight)] = nn.Parameter(copied, requires_grad=False)
    own_tower = will_shard and not policy.vision_is_frozen()
    if not own_tower:
        memo[id(policy.vlm.model.visual)] = nn.Module()

    sampler = copy.deepcopy(policy, memo)
    if not own_tower:
        sampler.image_features = policy.image_features
        sampler.vlm.model.visual = None
    sampler.__dict__.pop("compiled_extend", None)  # a copied one would use the policy's weights
    merge_copy(sampler)
    return sampler


@torch.no_grad()
def refresh(sampler: Policy, policy: Policy) -> None:
    """Bring the copy up to date. Nothing to do where the policy is its own sampler.

    Trap: if it is forgotten, every rollout comes from the start model, and no error says so
    (test_bf16_copy_is_refreshed).
    """
    if sampler is policy:
        return
    copies = dict(sampler.named_parameters())
    for name, weight in merged_weights(policy):
        if name in copies:  # a tower that is asked through the policy is not
            copies[name].copy_(whole(weight))  # of a sharded policy one at a time is gathered
    sampler.feature_cache.clear()  # features of a tower of its own that has changed now
