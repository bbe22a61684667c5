"""Encoded examples that are made when they are needed, and kept only while there is room.

An encoded image takes 12 MB at 640 tokens: those of 12,000 questions would be 150 GB. So a set of
examples is encoded a batch at a time, the next batch in the background while one is in use. What
fits into the room that is given is kept, so that a small set is encoded once.

    Lazily     `encode(i)` for any i, when it is asked for
    usable     every one of them once: which can be used at all?
    Prompts    the usable prompts of a set, as a sequence
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from model.prompts import PromptEncoder
from model.records import ExampleError, Group, Prompt

Value = TypeVar("Value")

AT_A_TIME = 64  # values that are on their way together while all are checked


@dataclass
class Room:
    """Bytes that may still be kept. Several sets may share one room."""

    left: int = 2 * 2**30


def size_of(value: Prompt | Group) -> int:
    """Bytes of the pixels, beside which nothing else counts."""
    prompt = value.prompt if isinstance(value, Group) else value
    return 0 if prompt.pixel_values is None else prompt.pixel_values.nbytes


class Lazily(Generic[Value]):
    """`encode(i)` for any i, computed when it is asked for, in a thread of its own."""

    def __init__(self, encode: Callable[[int], Value], room: Room | None = None):
        self.encode = encode
        self.room = room or Room()
        self.kept: dict[int, Value] = {}
        self.started: dict[int, Future] = {}
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    def start(self, indices: Iterable[int]) -> None:
        """Begin to encode these in the background."""
        for i in indices:
            if i not in self.kept and i not in self.started:
                self.started[i] = self.thread.submit(self.encode, i)

    def get(self, indices: Sequence[int]) -> list[Value]:
        """The values of these indices, in order. What `encode` raises is raised here."""
        self.start(indices)
        return [self.take(i) for i in indices]

    def take(self, i: int) -> Value:
        """The value of an index that was started."""
        if i in self.kept:
            return self.kept[i]
        value = self.started.pop(i).result()
        if size_of(value) <= self.room.left:
            self.room.left -= size_of(value)
            self.kept[i] = value
        return value

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[Value]]:
        """The values of each batch of indices, the next batch on its way while one is in use."""
        for batch, following in zip(batches, [*batches[1:], []]):
            self.start(batch)
            self.start(following)
            yield self.get(batch)


def usable(
    lazily: Lazily[Value], indices: Sequence[int], warn: Callable[[str], None]
) -> Iterator[tuple[int, Value]]:
    """Encode everything once: each index with its value; `warn` names what cannot be used."""
    for start in range(0, len(indices), AT_A_TIME):
        lazily.start(indices[start : start + 2 * AT_A_TIME])
        yield from without_refused(lazily.take, indices[start : start + AT_A_TIME], warn)


def without_refused(
    read: Callable[[int], Any], indices: Iterable[int], warn: Callable[[str], None]
) -> Iterator[tuple[int, Any]]:
    """Each index with `read(i)`, in order; `warn` names the examples that cannot be used."""
    for i in indices:
        try:
            value = read(i)
        except ExampleError as error:
            warn(f"skipped: {error}")
        else:
            yield i, value


class Prompts(Sequence):
    """The prompts of examples that can be used, in order.

    A slice is encoded when it is asked for, and the slice behind it begins in the background.
    """

    def __init__(
        self,
        examples: Sequence[dict],
        encoder: PromptEncoder,
        max_prompt_tokens: int | None,
        warn: Callable[[str], None],
        indices: Sequence[int],
        room: Room | None = None,
    ):
        """indices: of the examples to use, for example those of a rank."""
        self.lazily = Lazily(lambda i: encoder.encode(examples[i], max_prompt_tokens), room)
        self.indices: list[int] = []
        self.examples: list[dict] = []  # of the prompts, in their order
        for i, prompt in usable(self.lazily, indices, warn):
            self.indices.append(i)
            self.examples.append(prompt.example)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, at: int | slice) -> Prompt | list[Prompt]:
        if not isinstance(at, slice):
            return self.lazily.get([self.indices[at]])[0]
        wanted = self.indices[at]
        end = (at.start or 0) + len(wanted)
        self.lazily.start(wanted)
        self.lazily.start(self.indices[end : end + len(wanted)])
        return self.lazily.get(wanted)

    def among_first(self, count: int) -> "Prompts":
        """The prompts of those of the first `count` examples that can be used, not encoded yet."""
        some = copy.copy(self)
        usable = sum(index < count for index in self.indices)  # indices are in order
        some.indices, some.examples = self.indices[:usable], self.examples[:usable]
        return some
