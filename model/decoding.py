"""Decoding against a cache: keys and values of the tokens so far, and the two passes that fill it.

    prefill   every prompt once      -> hidden state of its last token, keys and values
    extend    one token per sequence -> its hidden state; its keys and values join the cache

`sampling.py` drives them.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from model.attention import Layout
from model.qwen import Policy
from model.records import Prompt

GROWTH = 512  # slots by which a cache grows when it is full


class PromptCache:
    """Keys and values of a pass over prompts: (1, heads, tokens, d) for each layer."""

    def __init__(self, offsets: Tensor):
        self.offsets = offsets  # (N,) index of the first token of each prompt
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, k: Tensor, v: Tensor, *_) -> tuple[Tensor, Tensor]:
        """HF's layers call it, first to last; returns what the layer attends to.

        Under autocast RoPE returns keys in fp32, twice the bytes of values: they are cast back.
        """
        self.keys.append(k.to(v.dtype))
        self.values.append(v)
        return self.keys[-1], v


class DecodeCache:
    """Keys and values of B sequences, (B, heads, width, d) for each layer, written in place.

    The slots of one sequence, for a prompt of 3 tokens beside a longest prompt of 5:

        slot        0  1  2 | 3  4 | 5  6  7  ...
        holds       prompt  | pad  | completion
        position    0  1  2 |      | 3  4  5  ...

    So a slot is not a position: `extend` receives positions separately, and the mask hides padding.

    There is room for the first GROWTH tokens of each completion, then for GROWTH more, and so on:
    room for `max_new_tokens` from the start would mostly stay empty. Whatever replaces all tensors
    does so layer by layer, so that one layer at most exists twice.
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
        self.max_width = self.length + max_new_tokens
        self.width = self.first_width()
        free = self.width - self.length

        self.visible = pad(in_prompt, (0, free), value=True)  # (B, width) False only for padding
        self.keys, self.values = prompts.keys, prompts.values  # taken over, and widened one by one
        self.replace_layers(lambda x: self.widen(x, indices))

    def first_width(self) -> int:
        return min(self.length + GROWTH, self.max_width)

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
        """(B, K) bool: the slots that the next token attends to, its own included."""
        return self.visible[:, : self.length + 1]

    def advance(self) -> None:
        """The new token is in, in all layers; make room for the next one."""
        self.length += 1
        if self.length == self.width < self.max_width:
            more = min(GROWTH, self.max_width - self.width)
            self.width += more
            self.visible = pad(self.visible, (0, more), value=True)
            self.replace_layers(lambda x: pad(x, (0, 0, 0, more)))  # (B, heads, width, d)

    def select(self, kept: Tensor) -> None:
        """Keep these sequences, kept (active,), and drop the others."""
        self.visible = self.visible[kept]
        self.replace_layers(lambda x: x.index_select(0, kept))

    def replace_layers(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace the tensors one by one: each old one is freed before the next new one is made."""
        for tensors in (self.keys, self.values):
            for layer in range(len(tensors)):
                tensors[layer] = function(tensors[layer])


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
