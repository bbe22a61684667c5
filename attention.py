"""Attention for one prompt with many continuations: one flat list of tokens, no padding.

A pass over prompt p with continuations a and b, and prompt q with continuation c, is one list, prompts first:

    p1 p2 p3 q1 q2 a1 a2 b1 b2 b3 c1

Every layer works on it token by token, as it is. Attention alone must know who belongs together, and gathers that:

    a prompt looks back at itself         a row looks at its whole prompt, then back at itself
        p1 p2 p3                              a:  p1 p2 p3 | a1 a2 .
        q1 q2 .                               b:  p1 p2 p3 | b1 b2 b3
                                              c:  q1 q2 .  | c1 .  .

So keys and values of a prompt are computed once, however many rows continue it, and backward adds up what the rows
send to them. The dots are what padding is left: gathered, never looked at, and only while attention runs.

Dimension key: N prompts, P the longest; B rows, Q the longest; `tokens` of the list; d width of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


@dataclass(frozen=True)
class Layout:
    """Where prompts and rows stand in the list, and who may look at whom. Dots point at token 0."""

    prompts: Tensor  # (N, P) into the list
    last: Tensor  # (N,) the last token of each prompt
    rows: Tensor  # (B, Q) into the list
    keys: Tensor  # (B, P + Q) what row b looks at: its prompt, then itself
    mask: Tensor  # (B, 1, Q, P + Q) bool: its prompt without dots, its own earlier tokens
    back: Tensor  # (tokens,) where each token of the list stands in `prompts` and `rows`, laid end to end

    @classmethod
    def of(cls, prompt_lengths: list[int], row_lengths: list[int], prompt_of: Tensor) -> "Layout":
        """prompt_of (B,) is the prompt that each row continues; its device is the layout's. No rows: prompts alone."""
        device, n = prompt_of.device, len(prompt_lengths)
        lengths = torch.tensor([*prompt_lengths, *row_lengths])
        starts = lengths.cumsum(0) - lengths

        def grid(part: slice) -> tuple[Tensor, Tensor]:  # (n, longest) into the list, and whether it is no dot
            step = torch.arange(max(lengths[part].tolist(), default=0))
            real = step < lengths[part, None]
            return torch.where(real, starts[part, None] + step, 0).to(device), real.to(device)

        (prompts, in_prompt), (rows, in_row) = grid(slice(n)), grid(slice(n, None))
        back = torch.cat([in_prompt.flatten(), in_row.flatten()]).nonzero()[:, 0]
        earlier = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool, device=device).tril()  # (Q, Q)
        before = in_prompt[prompt_of, None].expand(-1, len(earlier), -1)  # (B, Q, P)
        mask = torch.cat([before, earlier.expand(len(rows), -1, -1)], 2)[:, None]
        last = (starts + lengths - 1)[:n].to(device)
        return cls(prompts, last, rows, torch.cat([prompts[prompt_of], rows], 1), mask, back)


def attend(module, q: Tensor, k: Tensor, v: Tensor, layout: Layout | Tensor | None, **kwargs) -> tuple[Tensor, None]:
    """q (1, heads, tokens, d), k and v likewise -> (1, tokens, heads, d). HF's layers call it, see `register` below.

    Given a mask, or none, instead of a layout it is HF's own attention: for HF's forward, and for the sampler, where
    each row asks with one token (test_shared_prefix_has_the_gradients_of_separate_rows)."""
    if not isinstance(layout, Layout):
        return sdpa_attention_forward(module, q, k, v, layout, **kwargs)

    def at(x: Tensor, index: Tensor) -> Tensor:  # (1, heads, tokens, d), (n, longest) -> (n, heads, longest, d)
        return x[0].transpose(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)

    asked = [(at(q, layout.prompts), at(k, layout.prompts), at(v, layout.prompts), None)]  # without a mask: causal
    if layout.rows.numel():
        # Trap: with more keys than queries, SDPA's `is_causal` starts at the upper left: a row's first token would
        # see one token of its prompt instead of all. So rows bring a mask (test_attend_equals_a_loop).
        asked.append((at(q, layout.rows), at(k, layout.keys), at(v, layout.keys), layout.mask))
    # each found (n * longest, heads, d)
    found = [sdpa_attention_forward(module, *each, **kwargs)[0].flatten(0, 1) for each in asked]
    return torch.cat(found).index_select(0, layout.back)[None], None


AttentionInterface.register("one_prompt_many_rows", attend)
AttentionMaskInterface.register("one_prompt_many_rows", sdpa_mask)  # what HF's own forward then hands to `attend`


class PromptCache:
    """Keys and values of a pass over prompts, for the sampler: (1, heads, tokens, d) a layer."""

    def __init__(self, layout: Layout):
        self.layout, self.keys, self.values = layout, [], []

    def update(self, k: Tensor, v: Tensor, *_) -> tuple[Tensor, Tensor]:
        """Called by HF's layers, first to last."""
        self.keys.append(k)
        self.values.append(v)
        return k, v
