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
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from model.attention import padded_indices
from model.compiled import StaticDecodeCache, compiled_extend
from model.decoding import DecodeCache, extend, prefill
from model.qwen import Policy, next_positions
from model.records import Group, Prompt

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
    """One completion (t,) of one prompt, without any cache: `sample_groups` is this, made fast.

    For every token, the whole prompt and the completion so far pass through the model again
    (test_sampling_equals_the_plain_version).
    """
    completion = torch.zeros(0, dtype=torch.long)
    while len(completion) < max_new_tokens:
        logits = policy.plain_logits(prompt, completion)[-1:]  # (1, V), about the next token
        logits = logits.masked_fill(policy.suppressed, float("-inf")) / (temperature or 1.0)
        token = sample_token(logits, temperature, generator)  # (1,)

        completion = torch.cat([completion, token.cpu()])
        if int(token) in policy.eos_ids:
            break
    return completion


def sample_token(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """(sequences, V) -> (sequences,) one token each; the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


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
    progress: str | None = None,
) -> tuple[list[Group], list[list[float]]]:
    """Sample `group_size` completions of each prompt.

    policy          the bare Policy, not a wrapped one: no collective runs while tokens are drawn,
                    so each rank may take as long as it needs
    temperature     0 takes the likeliest token
    sample_batch    at most so many sequences are decoded at a time: whole groups, or parts of one
                    that is larger, its prompt then encoded again for each part
    logits_stat     a function of the logits, (sequences, V) -> (sequences,), called for each token
    compile_decode  a static cache and a compiled step (`compiled.py`)
    progress        title of a progress bar, None for no bar

    Returns the groups, in the order of `prompts`, and for each completion the values of
    `logits_stat` at its tokens (empty lists without it).
    """
    groups: list[Group] = []
    stats: list[list[float]] = []
    at_a_time = max(1, sample_batch // group_size)  # groups
    parts = split_group(group_size, sample_batch)  # more than one only if `at_a_time` is 1

    starts = range(0, len(prompts), at_a_time)
    for start in tqdm(starts, desc=progress, leave=False, disable=progress is None):
        batch = prompts[start : start + at_a_time]
        completions: list[Tensor] = []
        for part in parts:
            # Completions n*G to n*G + G-1 share prompt n. Trap: with `repeat` instead of
            # `repeat_interleave` the prompts would alternate, and rewards would go to completions
            # of other prompts (test_groups_are_contiguous).
            prompt_of = torch.arange(len(batch)).repeat_interleave(part)  # (B,)
            decoded, decoded_stats = decode_batch(
                policy, batch, prompt_of, max_new_tokens, temperature, generator, logits_stat,
                compile_decode,
            )  # fmt: skip
            completions += decoded
            stats += decoded_stats

        for n, prompt in enumerate(batch):
            groups.append(Group(prompt, completions[n * group_size : (n + 1) * group_size]))
    return groups, stats


def split_group(group_size: int, limit: int) -> list[int]:
    """The sizes of the parts in which a group is decoded, each at most `limit`, and at least 1.

    >>> split_group(8, 512), split_group(128, 50)
    ([8], [50, 50, 28])
    """
    limit = max(1, limit)
    return [min(limit, group_size - start) for start in range(0, group_size, limit)]


def decode_batch(
    policy: Policy,
    prompts: list[Prompt],
    prompt_of: Tensor,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    logits_stat: Callable[[Tensor], Tensor] | None,
    compile_decode: bool,
) -> tuple[list[Tensor], list[list[float]]]:
    """Sample one completion for each entry of prompt_of (B,): each (t,), and its `logits_stat`."""
    device = policy.device
    hidden, cache, step = start_decoding(
        policy, prompts, prompt_of, max_new_tokens, compile_decode
    )  # hidden (B, D)
    positions = next_positions(prompts, max_new_tokens)[prompt_of].to(device)  # (B, max_new_tokens)
    eos = torch.tensor(policy.eos_ids, device=device)

    # What is drawn, one line for each of the B sequences.
    tokens = torch.zeros_like(positions)  # (B, max_new_tokens)
    stats = torch.zeros(positions.shape, device=device)  # (B, max_new_tokens)
    lengths = torch.full_like(prompt_of, max_new_tokens, device=device)  # (B,)

    # The lines that are still decoded. `hidden`, `positions` and the cache have these alone.
    active = torch.arange(len(prompt_of), device=device)  # (active,)
    ended = torch.zeros_like(active, dtype=torch.bool)  # (active,) ended, and not dropped yet

    for t in range(max_new_tokens):
        # 1. Draw a token for each active sequence.
        logits = policy.logits(hidden, temperature or 1.0)  # (active, V)
        token = sample_token(logits, temperature, generator)  # (active,)
        tokens[active, t] = token
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

    return cut_to_length(tokens, stats, lengths, with_stats=logits_stat is not None)


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


def cut_to_length(
    tokens: Tensor, stats: Tensor, lengths: Tensor, with_stats: bool
) -> tuple[list[Tensor], list[list[float]]]:
    """Cut each line of tokens and stats (B, max_new_tokens) after its EOS; lengths (B,)."""
    tokens, stats = tokens.cpu(), stats.cpu()
    completions, values = [], []
    for b, length in enumerate(lengths.tolist()):
        completions.append(tokens[b, :length].clone())
        values.append(stats[b, :length].tolist() if with_stats else [])
    return completions, values


# --- 3. A bf16 copy that samples ---------------------------------------------------------------


def sampling_copy(policy: Policy) -> Policy:
    """A copy with bf16 weights, only for sampling. `refresh` it before every rollout.

    Decoding reads every weight for every token, so half of the bytes take half of the time.

    Trap: only the weights become bf16. `.bfloat16()` would round the rotary frequencies too, and
    positions far apart would drift (test_bf16_copy_keeps_its_positions).
    """
    sampler = copy.deepcopy(policy)
    for weight in sampler.parameters():
        weight.data = weight.data.bfloat16()

    # The copy needs no vision tower of its own. It asks the policy's, whose features training uses
    # too, so an image is still encoded once.
    sampler.image_features = policy.image_features
    sampler.vlm.model.visual = None

    sampler.__dict__.pop("compiled_extend", None)  # a copied one would use the policy's weights
    return sampler


@torch.no_grad()
def refresh(sampler: Policy, policy: Policy) -> None:
    """Bring the copy up to date. Nothing to do where the policy is its own sampler.

    Trap: if it is forgotten, every rollout comes from the start model, and no error says so
    (test_bf16_copy_is_refreshed).
    """
    if sampler is policy:
        return
    weights = dict(policy.named_parameters())
    for name, weight in sampler.named_parameters():
        weight.copy_(weights[name])
