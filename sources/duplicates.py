"""The same question twice: between two training sets, or in training and in an evaluation.

Two examples are the same if their questions are the same in letters and digits, in any case, and
their images look alike (a difference hash: 128 signs of steps in brightness, at most
`NEAR` of them different, which survives another size, format and quality).

In an evaluation a question stands among hints and options, so there it is enough if the training
question stands in it.
"""

import re
from dataclasses import dataclass

import dhash

from model.images import load_image

NEAR = 6  # of 128 bits
SHORTEST = 20  # letters and digits of a question that is looked for inside another one


@dataclass(frozen=True)
class Fingerprint:
    """What two examples that are the same have in common."""

    id: str
    question: str  # letters and digits
    hashes: tuple[int, ...]  # of its images

    def looks_like(self, other: "Fingerprint") -> bool:
        """Equally many images, each like the one in its place."""
        if len(self.hashes) != len(other.hashes):
            return False
        return all((a ^ b).bit_count() <= NEAR for a, b in zip(self.hashes, other.hashes))


def fingerprint(example: dict) -> Fingerprint:
    """Raises ExampleError if an image cannot be read."""
    images = [load_image(image, example["id"]) for image in example["images"]]
    hashes = tuple(dhash.dhash_int(image) for image in images)
    return Fingerprint(example["id"], letters_of(example["question"]), hashes)


def letters_of(question: str) -> str:
    """Letters and digits in lower case, without `<image>` marks.

    >>> letters_of("<image> How large is x?"), letters_of("How LARGE is x")
    ('howlargeisx', 'howlargeisx')
    """
    text = re.sub(r"<image>", "", question).lower()
    return re.sub(r"[\W_]+", "", text)


class Seen:
    """The examples so far; finds an earlier one that is the same."""

    def __init__(self):
        self.by_question: dict[str, list[Fingerprint]] = {}

    def find(self, found: Fingerprint) -> Fingerprint | None:
        """The first one that is the same."""
        for other in self.by_question.get(found.question, []):
            if found.looks_like(other):
                return other
        return None

    def add(self, found: Fingerprint) -> None:
        self.by_question.setdefault(found.question, []).append(found)


def leaked(found: Fingerprint, evaluation: list[Fingerprint]) -> Fingerprint | None:
    """The evaluation item that a training example is, None if it is none."""
    for item in evaluation:
        if not found.looks_like(item):
            continue
        long_enough = len(found.question) >= SHORTEST
        if found.question == item.question or (long_enough and found.question in item.question):
            return item
    return None
