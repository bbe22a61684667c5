"""Attention for one prompt with many continuations: one flat list of tokens, no padding.

A *row* is one completion without its last token, from which nothing is predicted. A pass over prompt p with rows a
and b, and prompt q with row c, is one list, prompts first:

    p1 p2 p3 q1 q2 a1 a2 b1 b2 b3 c1 c2

Every layer works on it token by token, as it is. Attention alone must know who belongs together, and gathers that:

    a prompt looks back at itself         a row looks at its whole prompt, then back at itself
        p1 p2 p3                              a:  p1 p2 p3 | a1 a2 .
        q1 q2 .                               b:  p1 p2 p3 | b1 b2 b3
                                              c:  q1 q2 .  | c1 c2 .

So keys and values of a prompt are computed once, however many rows continue it, and backward adds up what the rows
send to them. The dots are what padding is left, in attention alone and never looked at. Long and short ones go to
different *blocks*, one call of attention each, so that none is padded to twice its length. (One mask over the whole
list would be ten lines less, and would compute a score for every pair of strangers.)

Dimension key: N prompts; B rows; a block has n members, Q: its longest, K: its longest prompt + Q for rows, Q for
prompts; `tokens` of the list; d width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


@dataclass(frozen=True)
class Block:
    """Prompts or rows of about the same length, for one call of attention."""

    queries: Tensor  # (n, Q) places in the list
    keys: Tensor  # (n, K) places in the list: what they look at, a row's prompt first
    mask: Tensor | None  # (n, 1, Q, K) bool: all of a row's prompt, its own earlier tokens. None: causal, for prompts


@dataclass(frozen=True)
class Layout:
    """Where prompts and rows stand in the list, and who may look at whom."""

    starts: Tensor  # (N + B,) place of the first token of each prompt, then of each row; on the CPU
    last: Tensor  # (N,) place of the last token of each prompt; on the CPU
    blocks: list[Block]
    back: Tensor  # (tokens,) where each token of the list stands among the queries of all blocks, laid end to end

    @classmethod
    def of(cls, prompt_lengths: list[int], row_lengths: list[int], prompt_of: list[int], device) -> "Layout":
        """prompt_of (B,): the prompt that each row continues. Without rows, a pass over prompts alone."""
        lengths = torch.tensor([*prompt_lengths, *row_lengths])
        starts, n = lengths.cumsum(0) - lengths, len(prompt_lengths)
        blocks, grids = [], []
        for prompts in alike(range(n), lengths):
            queries, real = grid(starts[prompts], lengths[prompts])
            blocks.append(Block(queries.to(device), queries.to(device), None))
            grids.append((queries, real))
            # rows of these prompts alone: a long prompt would stretch the keys of all
            for rows in alike([n + b for b, prompt in enumerate(prompt_of) if prompt in prompts], lengths):
                theirs = [prompt_of[row - n] for row in rows]
                before, in_prompt = grid(starts[theirs], lengths[theirs])  # (n, P)
                queries, real = grid(starts[rows], lengths[rows])  # (n, Q)
                earlier = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=device).tril()  # (Q, Q)
                in_prompt = in_prompt.to(device)[:, None].expand(-1, len(earlier), -1)  # (n, Q, P)
                mask = torch.cat([in_prompt, earlier.expand(len(rows), -1, -1)], 2)[:, None]
                blocks.append(Block(queries.to(device), torch.cat([before, queries], 1).to(device), mask))
                grids.append((queries, real))
        # place[i] is whose query slot i holds; sorted by it, the slots stand in the order of the list
        place, real = (torch.cat([pair[i].flatten() for pair in grids]) for i in (0, 1))
        back = real.nonzero()[:, 0][place[real].argsort()]
        return cls(starts, (starts + lengths - 1)[:n], blocks, back.to(device))


def grid(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(n, longest) places in the list, and where they are real; a dot repeats the member's own last token."""
    step = torch.arange(int(lengths.max()))
    return starts[:, None] + torch.minimum(step, lengths[:, None] - 1), step < lengths[:, None]


def alike(members: Sequence[int], lengths: Tensor) -> list[list[int]]:
    """Members by falling length, in parts whose longest is not twice as long as their shortest. An empty one, of a
    completion that is EOS alone, is in none: it has no token in the list."""
    size, parts = lengths.tolist(), []
    for i in sorted((i for i in members if size[i]), key=lambda i: -size[i]):
        if parts and 2 * size[i] > size[parts[-1][0]]:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def attend(module, q: Tensor, k: Tensor, v: Tensor, layout: Layout | Tensor | None, **kwargs) -> tuple[Tensor, None]:
    """q (1, heads, tokens, d), k and v likewise -> (1, tokens, heads, d). HF's layers call it, see `register` below.

    Given a mask, or none, instead of a layout it is HF's own attention: for HF's forward, and for decoding, where each
    row asks with one token (test_greedy_equals_generate).

    Trap: with more keys than queries, SDPA's `is_causal` starts at the upper left: a row's first token would see one
    token of its prompt instead of all. So rows bring a mask (test_attend_equals_a_loop)."""
    if not isinstance(layout, Layout):
        return sdpa_attention_forward(module, q, k, v, layout, **kwargs)

    def at(x: Tensor, index: Tensor) -> Tensor:  # (1, heads, tokens, d), (n, Q) -> (n, heads, Q, d)
        return x[0].transpose(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)

    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast RoPE made them fp32; half of the bytes to gather
    found = [sdpa_attention_forward(module, at(q, b.queries), at(k, b.keys), at(v, b.keys), b.mask, **kwargs)[0]
             for b in layout.blocks]  # each (n, Q, heads, d)
    return torch.cat([x.flatten(0, 1) for x in found]).index_select(0, layout.back)[None], None


AttentionInterface.register("one_prompt_many_rows", attend)
AttentionMaskInterface.register("one_prompt_many_rows", sdpa_mask)  # what HF's own forward then hands to `attend`


class PromptCache:
    """Keys and values of a pass over prompts, for the sampler: (1, heads, tokens, d) a layer."""

    def __init__(self, starts: Tensor):
        self.starts = starts  # (N,) place of each prompt's first token
        self.keys, self.values = [], []

    def update(self, k: Tensor, v: Tensor, *_) -> tuple[Tensor, Tensor]:
        """Called by HF's layers, first to last."""
        self.keys.append(k)
        self.values.append(v)
        return k, v
