"""Means over completions, tokens or groups that may lie on several ranks."""

from collections import Counter

from harness.ranks import gather_objects


class Means:
    """Sums and counts by name, divided once, at the very end, over all ranks.

    A mean of means would give a token in a short completion more weight than one in a long one.
    """

    def __init__(self):
        self.sums = Counter()
        self.counts = Counter()

    def add(self, name: str, total: float, count: float = 1) -> None:
        """Add `count` things whose values add up to `total`."""
        self.sums[name] += total
        self.counts[name] += count

    def over_ranks(self, accelerator) -> dict[str, float]:
        """The mean of each name over all ranks; a rank need not have every name."""
        sums, counts = Counter(), Counter()
        for rank_sums, rank_counts in gather_objects((self.sums, self.counts), accelerator):
            sums.update(rank_sums)
            counts.update(rank_counts)
        return {name: total / max(1.0, counts[name]) for name, total in sums.items()}
