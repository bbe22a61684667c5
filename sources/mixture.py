"""Several sources as one: `--data a.jsonl,b.parquet`, with shares `--data a.jsonl:3,b.parquet:1`.

Without shares all examples of all sources are used. With shares no example comes twice in an epoch,
so the source that is short for its share decides how many the others give: of 1,000 and 100
examples with the shares 3 and 1, 300 and 100 are used.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Subset


@dataclass(frozen=True)
class Source:
    """One part of --data."""

    name: str
    share: float | None  # None: as many as there are


def parse_sources(text: str) -> list[Source]:
    """The value of --data as its parts. Raises ValueError naming --data."""
    sources = []
    for part in text.split(","):
        match = re.fullmatch(r"(.+):(\d+(?:\.\d+)?)", part.strip())
        path, colon, share = part.strip().rpartition(":")
        if match:
            sources.append(Source(match[1], float(match[2])))
        elif colon and Path(path).is_file() and not Path(part.strip()).exists():
            raise ValueError(f"--data {text}: the share {share!r} is not a positive number")
        else:
            sources.append(Source(part.strip(), None))

    with_share = [source for source in sources if source.share is not None]
    if with_share and len(with_share) < len(sources):
        raise ValueError(f"--data {text}: give every part a share (a.jsonl:3,b.jsonl:1), or none")
    if any(not source.name for source in sources):
        raise ValueError(f"--data {text}: a part has no name")
    if any(source.share == 0 for source in sources):
        raise ValueError(f"--data {text}: a share of 0 uses nothing of that part; leave it out")
    return sources


class Mixture(Sequence):
    """Examples of several sources, source after source; each id starts with its source's name.

    sources   the parts of --data
    parts     their examples
    count     how many in all, None for as many as the shares allow
    """

    def __init__(self, sources: list[Source], parts: list[Sequence[dict]], count: int | None):
        self.sources = sources
        self.parts = parts
        self.counts = share_out(sources, [len(part) for part in parts], count)
        self.places = [
            (part, i) for part, number in enumerate(self.counts) for i in range(number)
        ]  # of every example: which part, and where in it

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict:
        part, i = self.places[index]
        example = self.parts[part][i]
        return {**example, "id": f"{Path(self.sources[part].name).name}/{example['id']}"}

    def understood(self) -> list[str]:
        """What is to be said about the sources, and how many of each are used."""
        lines = []
        for source, part, count in zip(self.sources, self.parts, self.counts):
            lines += part.understood() if hasattr(part, "understood") else []
            share = 100 * count / max(1, len(self))
            lines.append(f"  {source.name}: {count} of {len(part)} are used, {share:.0f} % of all")
        return lines

    def labels(self, count: int) -> list[tuple[str, str]]:
        """(kind, answer) of the first `count` examples of every source."""
        return [label for part in self.parts for label in labels_of(part, count)]


def labels_of(examples: Sequence[dict], count: int) -> list[tuple[str, str]]:
    """(kind, answer) of the first `count` examples, without reading any image."""
    if isinstance(examples, Subset):  # what a run trains on, where others are held out
        examples = examples.dataset
    if hasattr(examples, "labels"):
        return examples.labels(count)
    return [(example["kind"], example["answer"]) for example in examples[:count]]


def digest_of_answers(examples: Sequence[dict], count: int = 2000) -> str:
    """A hash of the kinds and answers of the first examples of a table; "" for other sources."""
    whole = examples.dataset if isinstance(examples, Subset) else examples
    if not hasattr(whole, "labels"):
        return ""
    return hashlib.sha256(repr(whole.labels(count)).encode()).hexdigest()[:16]


def share_out(sources: list[Source], sizes: list[int], count: int | None) -> list[int]:
    """How many examples each source gives.

    >>> share_out([Source("a", 3.0), Source("b", 1.0)], [1000, 100], count=None)
    [300, 100]
    >>> share_out([Source("a", None), Source("b", None)], [1000, 100], count=110)
    [100, 10]
    """
    shares = [float(size) if s.share is None else s.share for s, size in zip(sources, sizes)]
    whole = max(1e-9, sum(shares))
    total = min(size * whole / share for size, share in zip(sizes, shares) if share > 0)
    if count is not None:
        total = min(total, count)
    return [min(size, round(total * share / whole)) for share, size in zip(shares, sizes)]
