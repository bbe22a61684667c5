"""Decoding with a compiled step: the same as `decoding.py`, with shapes that never change.

On a GPU a compiled step can be replayed as a CUDA graph, which saves the time to launch kernels.
The price: attention always spans the whole width of the cache, and ended sequences stay until all
have ended. It is off by default (--compile_decode). On a CPU it is slower than the plain step; how
fast it is on a GPU has not been measured.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from model.decoding import DecodeCache, PromptCache, extend
from model.qwen import Policy

WIDTH_MULTIPLE = 256  # the width of a cache is rounded up, so that few widths are ever compiled
COMPILE = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}


class StaticDecodeCache(DecodeCache):
    """A `DecodeCache` whose tensors keep their shape and their address."""

    drops_sequences = False

    def __init__(
        self, prompts: PromptCache, indices: Tensor, in_prompt: Tensor, max_new_tokens: int
    ):
        super().__init__(prompts, indices, in_prompt, max_new_tokens)
        self.slots = torch.arange(self.width, device=indices.device)
        self.write_position = torch.tensor([self.length], device=indices.device)

    def first_width(self) -> int:
        """All of it: another width would have to be compiled anew."""
        multiples = -(-self.max_width // WIDTH_MULTIPLE)  # rounded up
        return multiples * WIDTH_MULTIPLE

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


def compiled_extend(policy: Policy) -> Callable:
    """`extend` for one policy, compiled at its first call, and again for each new shape."""
    if not hasattr(policy, "compiled_extend"):
        torch._dynamo.config.recompile_limit = 128  # shapes: numbers of sequences, and widths
        policy.compiled_extend = torch.compile(partial(extend, policy), **COMPILE)

    def step(*args):
        torch.compiler.cudagraph_mark_step_begin()  # the output of the last step is used up by now
        return policy.compiled_extend(*args)

    return step
