"""Agrees, disagrees, cannot tell here: the rule, fixed before any full run.

A claim of the paper says that one arm is above another. Both arms ran with the same seeds, and a
seed's pipeline is its own from stage 1 on, so the seeds are paired:

    d_s       = what the claim says is larger, minus what it says is smaller, of seed s
    interval  = mean(d) +- t * sd(d) / sqrt(n)     95 %, Student's t with n - 1 degrees of freedom

    agrees               the whole interval is above 0
    disagrees            the whole interval is below 0
    cannot tell here     0 lies inside of it, or there are fewer than two seeds

With few seeds and small differences "cannot tell here" is the usual outcome, and an honest one: it
does not say that the arms are equal. Many claims are tested at once: of 20 that are not true at
all, one comes out as agrees or disagrees by luck.
"""

import math
import statistics
from dataclasses import dataclass

AGREES, DISAGREES, CANNOT_TELL = "agrees", "disagrees", "cannot tell here"

# The 97.5 % point of Student's t, by degrees of freedom.
T_975 = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
    10: 2.228, 11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110,
    18: 2.101, 19: 2.093,
}  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int  # seeds


def mean_interval(values: list[float]) -> Interval:
    """Mean of one value a seed, and its 95 % interval; unbounded if there are fewer than two.

    >>> mean_interval([1.0, 2.0, 3.0]) == Interval(2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5, 3)
    True
    """
    count = len(values)
    if count < 2:
        mean = values[0] if values else math.nan
        return Interval(mean, -math.inf, math.inf, count)

    # Beyond the table the last entry is used, which is a little too wide.
    t = T_975[min(count - 1, max(T_975))]
    mean = statistics.mean(values)
    half = t * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def paired_differences(larger: dict[str, float], smaller: dict[str, float]) -> list[float]:
    """The difference of each seed that both arms have, in the order of the seeds.

    larger, smaller  seed -> value, of the arm that the claim says is larger or smaller

    Trap: to compare the means of the two arms, each with its own spread, throws the pairing away.
    What a seed's stage 1 gives to both of its arms would then count as noise
    (test_pairing_sees_what_two_separate_means_do_not).
    """
    return [larger[seed] - smaller[seed] for seed in larger if seed in smaller]


def verdict(differences: list[float]) -> str:
    """The rule of this file, on the paired differences in the direction of the claim.

    >>> verdict([0.02, 0.03, 0.025]), verdict([-0.02, -0.03, -0.025]), verdict([0.02, -0.03, 0.0])
    ('agrees', 'disagrees', 'cannot tell here')
    """
    interval = mean_interval(differences)
    if interval.count < 2:
        return CANNOT_TELL
    if interval.low > 0:
        return AGREES
    if interval.high < 0:
        return DISAGREES
    return CANNOT_TELL
