"""Decoding with a compiled step: the same as `decoding.py`, with shapes that never change.

A compiled step can be replayed on a GPU as a CUDA graph, which saves the time to launch kernels.
A graph only repeats itself: every step must have tensors of the same shape, and the cache, which is
written in place, must stay at its address. What is new in each step (ids, positions) is copied in.

                             plain                           compiled
    width of the cache       grows with completions          all of it at once, a multiple of 256
    write of a new token     into the slice of its slot      at an index that is a tensor
    attention                over the slots in use           over all slots, the free ones masked
    an ended sequence        is dropped some steps later     stays until all have ended

Off by default (--compile_decode). On a CPU it is slower than the plain step; how fast it is on a
GPU has not been measured.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from model.decoding import DecodeCache, PromptCache, extend
from model.qwen import Policy

WIDTH_MULTIPLE = 256  # slots; widths are rounded up to it, so that few shapes are ever compiled
MAX_SHAPES = 128  # compiled versions: one for each pair (number of sequences, width)
COMPILE = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}


class StaticDecodeCache(DecodeCache):
    """A `DecodeCache` whose tensors keep their shape and their address.

    slots             (width,) the index of each slot
    write_position    (1,) the slot of the next token: `length` as a tensor on the device
    """

    drops_sequences = False  # fewer sequences would be another shape

    def __init__(
        self, prompts: PromptCache, indices: Tensor, in_prompt: Tensor, max_new_tokens: int
    ):
        super().__init__(prompts, indices, in_prompt, max_new_tokens)
        self.slots = torch.arange(self.width, device=indices.device)
        self.write_position = torch.tensor([self.length], device=indices.device)

    def first_width(self) -> int:
        """All of the width, 300 -> 512: another width later would have to be compiled anew."""
        return math.ceil(self.max_width / WIDTH_MULTIPLE) * WIDTH_MULTIPLE

    def widen(self, x: Tensor, indices: Tensor) -> Tensor:
        """Keys or values of the prompts, in a tensor (B, heads, width, d) that stays in place."""
        wide = super().widen(x, indices)
        torch._dynamo.mark_static_address(wide)  # otherwise a CUDA graph copies it in and out
        return wide

    def update(self, k: Tensor, v: Tensor, layer: int, *_) -> tuple[Tensor, Tensor]:
        """Write k, v (B, heads, 1, d) of the new token; returns all slots, the free ones too."""
        self.keys[layer].index_copy_(2, self.write_position, k)
        self.values[layer].index_copy_(2, self.write_position, v)
        return self.keys[layer], self.values[layer]

    def mask(self) -> Tensor:
        """(B, width) bool: the slots that the next token attends to, its own included."""
        is_used = self.slots <= self.length
        return self.visible & is_used

    def advance(self) -> None:
        """The new token is in, in all layers."""
        super().advance()
        self.write_position += 1  # in place, since the graph reads this address


def compiled_extend(policy: Policy) -> Callable:
    """`extend` for one policy, compiled at its first call, and again for each new shape."""
    if not hasattr(policy, "compiled_extend"):
        torch._dynamo.config.recompile_limit = MAX_SHAPES  # of the whole process
        policy.compiled_extend = torch.compile(partial(extend, policy), **COMPILE)

    def step(*args):
        # The graph may now write over the output of its last step, which has been used.
        torch.compiler.cudagraph_mark_step_begin()
        return policy.compiled_extend(*args)

    return step
