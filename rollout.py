"""Sampling: prefill each prompt once, expand it to its G rows, decode, drop rows as they finish.

The sampler is the scorer of `common.py` with the tokens not yet known. It draws from exactly the
distribution that `token_logps` scores (logits / temperature, picture and special ids masked out; no
top-p, no top-k), up to rounding, and returns the sampled ids themselves, which is what training uses.

    last, cache = prefill(N prompts)                 each prompt and its pictures once
    cache       = cache of B = N * G rows, with room for max_new_tokens
    repeat      token ~ softmax(logits(hidden) / temperature)
                hidden = extend(token) against the cache
    until every row has ended on one of the model's EOS ids, or max_new_tokens is reached

Greedy output equals `model.generate` token for token (test_greedy_equals_generate).

With `static` every step has the same shapes, so that the step can be compiled and, on a GPU, replayed as a
CUDA graph: attention then always spans the whole cache, and finished rows stay until all are done.

In mixed precision a bf16 copy of the policy samples (`sampling_copy`), refreshed before each rollout.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention import PromptCache, grid
from common import Group, Policy, next_positions
from prompts import Prompt

DROP_EVERY = 4  # tokens between two looks for finished rows: on a GPU each look waits for the device
STATIC_MULTIPLE = 256  # a static cache is as wide as the next multiple, so that few widths are ever compiled
COMPILE = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}


class DecodeCache:
    """Keys and values of B rows (B, heads, width, d), with room for the whole completion, written in place."""

    def __init__(self, prompts: PromptCache, index: Tensor, room: int, static: bool):
        """index (B, P): where in the list of the prompts' tokens each row finds its own."""
        self.length = index.shape[1]  # keys that every layer holds already, dots included
        self.width = self.length + room
        self.at = torch.tensor([self.length], device=index.device) if static else None  # (1,) where the next key goes
        if static:
            self.width = -(-self.width // STATIC_MULTIPLE) * STATIC_MULTIPLE

        def widen(x: Tensor) -> Tensor:  # (1, heads, tokens, d) -> (B, heads, width, d)
            wide = x.new_zeros(len(index), x.shape[1], self.width, x.shape[3])
            wide[:, :, : self.length] = x[0][:, index].transpose(0, 1)
            if static:
                torch._dynamo.mark_static_address(wide)  # else a CUDA graph would copy it in and out
            return wide

        self.keys, self.values = [widen(k) for k in prompts.keys], [widen(v) for v in prompts.values]

    def update(self, k: Tensor, v: Tensor, layer: int, *_) -> tuple[Tensor, Tensor]:
        if self.at is not None:
            return self.keys[layer].index_copy_(2, self.at, k), self.values[layer].index_copy_(2, self.at, v)
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def grow(self) -> None:
        """One more token is in."""
        self.length += 1
        if self.at is not None:
            self.at += 1

    def keep(self, rows: Tensor) -> None:
        self.keys = [k.index_select(0, rows) for k in self.keys]
        self.values = [v.index_select(0, rows) for v in self.values]


@torch.no_grad()
def sample_groups(policy: Policy, prompts: list[Prompt], group_size: int, *, max_new_tokens: int,
                  temperature: float, generator: torch.Generator | None = None, max_rows: int = 512,
                  observe: Callable[[Tensor], Tensor] | None = None,
                  static: bool = False) -> tuple[list[Group], list[list[float]]]:
    """Sample `group_size` completions of each prompt; temperature 0 takes the likeliest token.

    Returns the groups in the order of `prompts`, and per completion the values of `observe`, a function
    of the logits (rows, V) that gives one number a row and is called once a token (empty without it).
    At most `max_rows` rows are decoded at a time, with `static` by a compiled step. `policy` is the bare
    Policy, not a wrapped one: no collective runs while tokens are drawn, so ranks may sample unequally long.
    """
    groups, seen = [], []
    prompts_at_a_time = max(1, max_rows // group_size)
    for i in range(0, len(prompts), prompts_at_a_time):
        batch = prompts[i : i + prompts_at_a_time]
        completions, values = decode(policy, batch, group_size, max_new_tokens, temperature, generator, observe, static)
        # Rows n*G .. n*G+G-1 share prompt n. Trap: with `repeat` instead of `repeat_interleave` they would
        # be dealt out in turn, and rewards land on other prompts' rows (test_groups_are_contiguous).
        groups += [Group(p, completions[n * group_size : (n + 1) * group_size]) for n, p in enumerate(batch)]
        seen += values
    return groups, seen


def decode(policy: Policy, prompts: list[Prompt], group_size: int, room: int, temperature: float,
           generator: torch.Generator | None, observe, static: bool) -> tuple[list[Tensor], list[list[float]]]:
    """One batch of `sample_groups`: B completions (EOS included, if it came) and what was observed."""
    device = policy.device
    rows = torch.arange(len(prompts)).repeat_interleave(group_size)  # (B,) prompt of each row
    lengths = torch.tensor([len(p.ids) for p in prompts])  # (N,)
    last, prompt_cache = policy.prefill(prompts)
    index, real = grid(prompt_cache.starts, lengths)  # (N, P)
    hidden, cache = last[rows.to(device)], DecodeCache(prompt_cache, index[rows].to(device), room, static)  # (B, D)
    positions = next_positions(prompts, room)[rows].to(device)  # (B, room)
    keys = torch.arange(cache.width, device=device)
    visible = pad(real[rows], (0, cache.width - cache.length), value=True).to(device)  # (B, width): all but dots
    extend = compiled_extend(policy) if static else policy.extend
    eos = torch.tensor(policy.eos_ids, device=device)

    tokens = torch.zeros(len(rows), room, dtype=torch.long, device=device)  # (B, room)
    ends = torch.full((len(rows),), room, device=device)  # (B,) tokens of each completion
    observed = torch.zeros(len(rows), room, device=device)  # (B, room)
    live = torch.arange(len(rows), device=device)  # rows still decoded: hidden, cache, ... have these rows only
    done = torch.zeros_like(live, dtype=torch.bool)
    for t in range(room):
        logits = policy.logits(hidden, temperature or 1.0)  # (live, V)
        token = draw(logits, temperature, generator)  # (live,)
        tokens[live, t] = token
        if observe is not None:
            observed[live, t] = observe(logits).to(observed.dtype)
        ended = torch.isin(token, eos) & ~done
        ends[live] = torch.where(ended, t + 1, ends[live])  # no boolean index: that would wait for the device
        done = done | ended
        if t + 1 == room or (t % DROP_EVERY == 0 and done.all()):
            break
        if not static and t % DROP_EVERY == 0 and done.float().mean() > 0.25:  # worth a copy of the cache
            kept = (~done).nonzero()[:, 0]
            cache.keep(kept)
            live, done, token = live[kept], done[kept], token[kept]
            positions, visible = positions[kept], visible[kept]
        mask = visible & (keys <= cache.length) if static else visible[:, : cache.length + 1]  # (live, K)
        hidden = extend(token, positions[:, t], mask, cache)  # (live, D)
        cache.grow()
    tokens, observed, ends = tokens.cpu(), observed.cpu(), ends.tolist()
    return ([row[:end].clone() for row, end in zip(tokens, ends)],
            [row[:end].tolist() if observe else [] for row, end in zip(observed, ends)])


def compiled_extend(policy: Policy):
    """`policy.extend`, compiled once a policy (and again for another number of rows or width)."""
    if not hasattr(policy, "compiled_extend"):
        torch._dynamo.config.recompile_limit = 128  # one a width, and the last batch has fewer rows
        policy.compiled_extend = torch.compile(policy.extend, **COMPILE)

    def step(*args):
        torch.compiler.cudagraph_mark_step_begin()  # the last step's output has been used by now
        return policy.compiled_extend(*args)

    return step


def draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """(rows, V) -> (rows,) one token a row."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def is_truncated(completion: Tensor, eos_ids: list[int]) -> bool:
    """True if the completion ran into max_new_tokens instead of ending by itself."""
    return int(completion[-1]) not in eos_ids


def sampling_copy(policy: Policy) -> Policy:
    """A copy with bf16 weights, for sampling alone; `refresh` it before every rollout.

    Decoding reads every weight once a token, so half the bytes are half the time. Under autocast a compiled step would
    read fp32 weights and write bf16 ones for every token.
    Trap: weights only. `.bfloat16()` would round the rotary frequencies as well, and far positions would drift apart
    (test_bf16_copy_keeps_its_positions)."""
    sampler = copy.deepcopy(policy)
    for p in sampler.parameters():
        p.data = p.data.bfloat16()
    sampler.look = policy.look  # pictures are seen once, by the tower whose features are trained on,
    sampler.vlm.model.visual = None  # so the copy needs none
    sampler.__dict__.pop("compiled_extend", None)  # it would go on with the policy's weights
    return sampler


@torch.no_grad()
def refresh(sampler: Policy, policy: Policy) -> None:
    """Bring the copy up to date; nothing to do where the policy samples itself.

    Trap: forgotten, every rollout would come from the start model, and no error would say so
    (test_bf16_copy_is_refreshed)."""
    if sampler is not policy:
        weights = dict(policy.named_parameters())
        for name, p in sampler.named_parameters():
            p.copy_(weights[name])
