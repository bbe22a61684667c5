"""Rates and means over questions, each with its 95 % interval.

    wilson               of a rate: so many of so many
    bootstrap            of a mean of numbers, one per question
    rate_with_interval   of a field of the records of an evaluation
    accuracy             of their scores
    guessing_rate        what the best guess that never looks would earn on them
"""

import math
from collections import Counter, defaultdict

import torch


def wilson(successes: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval (low, high) of a rate: `successes` of `count`.

    Unlike mean +- 2 sd it stays inside [0, 1], and is not empty at 0 or 1.

    >>> [round(x, 3) for x in wilson(10, 10)]
    [0.722, 1.0]
    """
    if count == 0:
        return 0.0, 1.0
    p = successes / count
    denominator = 1 + z * z / count
    centre = (p + z * z / (2 * count)) / denominator
    half = z / denominator * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    # At 0 and at 1 an end is the rate itself, but for rounding, which may put it on the wrong side.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def bootstrap(values: list[float], draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval (low, high) of the mean of `values`, one per question.

    The questions are drawn again with replacement, by a fixed seed: a report computed again is the
    same. Trap: over all samples of all questions it would be too narrow
    (test_pass_at_k_has_an_interval_over_questions).
    """
    sample = torch.tensor(values, dtype=torch.float64)
    indices = torch.randint(len(values), (draws, len(values)),
                            generator=torch.Generator().manual_seed(seed))
    means = sample[indices].mean(1)  # (draws,)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def rate_with_interval(records: list[dict], key: str) -> dict:
    """Mean and interval of a 0/1 field; records that could not be scored (None) are left out."""
    values = [float(record[key]) for record in records if record[key] is not None]
    low, high = wilson(sum(values), len(values))
    mean = sum(values) / max(1, len(values))
    unscored = len(records) - len(values)
    return {"mean": mean, "low": low, "high": high, "count": len(values), "unscored": unscored}


def accuracy(records: list[dict]) -> dict:
    """The share of right answers, with its interval."""
    return rate_with_interval(records, "score")


def guessing_rate(records: list[dict]) -> float:
    """Accuracy of the best blind guess: for each kind of question its most common answer.

    An oracle among constant guesses: it knows the gold answers of these very questions.
    """
    answers: dict[str, Counter] = defaultdict(Counter)  # kind -> how often each gold answer occurs
    for record in records:
        answers[record["kind"]][record["gold"]] += 1
    right = sum(max(counts.values()) for counts in answers.values())
    return right / max(1, len(records))
