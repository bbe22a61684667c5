"""Encoded examples that are made when they are needed, and kept only while there is room.

An encoded image takes 12 MB at 640 tokens: those of 12,000 questions would be 150 GB. So a set of
examples is encoded a batch at a time, the next one in the background while one is in use. What fits
into KEEP_BYTES is kept, so that small sets are encoded once.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from model.records import Group, Prompt

Value = TypeVar("Value")

KEEP_BYTES = 2 * 2**30


def size_of(value: Prompt | Group) -> int:
    """Bytes of the pixels, beside which nothing else counts."""
    prompt = value.prompt if isinstance(value, Group) else value
    return 0 if prompt.pixel_values is None else prompt.pixel_values.nbytes


class Lazily(Generic[Value]):
    """`encode(i)` for any i, computed when asked for, in a thread of its own."""

    def __init__(self, encode: Callable[[int], Value], keep_bytes: int = KEEP_BYTES):
        self.encode = encode
        self.room = keep_bytes
        self.kept: dict[int, Value] = {}
        self.started: dict[int, Future] = {}
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    def start(self, indices: Sequence[int]) -> None:
        """Begin to encode these in the background."""
        for i in indices:
            if i not in self.kept and i not in self.started:
                self.started[i] = self.thread.submit(self.encode, i)

    def get(self, indices: Sequence[int]) -> list[Value]:
        """The values of these indices, in order. What `encode` raises is raised here."""
        self.start(indices)
        return [self.take(i) for i in indices]

    def take(self, i: int) -> Value:
        if i in self.kept:
            return self.kept[i]
        value = self.started.pop(i).result()
        if size_of(value) <= self.room:
            self.room -= size_of(value)
            self.kept[i] = value
        return value

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[Value]]:
        """The values of each batch of indices, the next batch on its way while one is in use."""
        for batch, following in zip(batches, [*batches[1:], []]):
            self.start(batch)
            self.start(following)
            yield self.get(batch)
