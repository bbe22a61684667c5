"""Metrics of one step, whose completions, tokens and groups may lie on several ranks."""

import time
from collections import Counter

import torch
from torch import Tensor

from harness.ranks import gather_objects


class Stopwatch:
    """Adds up the seconds that are spent in `with stopwatch:`."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self.began = time.perf_counter()

    def __exit__(self, *error):
        self.seconds += time.perf_counter() - self.began


class Means:
    """Means and plain sums by name, over all ranks.

    Each rank keeps sums and counts, and the division is done once, at the very end. A mean of the
    ranks' means would give a token on a rank with few tokens more weight than the others.

        means.add("length", total=12 + 7, count=2)   two completions, of 12 and of 7 tokens
        means.add_number("unscored", 1)              a number that is added up, not averaged
        means.over_ranks(accelerator)                {"length": 9.5, "unscored": 1} on one rank
    """

    def __init__(self):
        self.totals = Counter()
        self.counts = Counter()
        self.numbers = Counter()

    def add(self, name: str, total: float, count: float = 1) -> None:
        """Add `count` values that sum to `total`; the result is their mean."""
        self.totals[name] += total
        self.counts[name] += count

    def add_number(self, name: str, value: float) -> None:
        """Add a number; the result is the sum of all of them."""
        self.numbers[name] += value

    def over_ranks(self, accelerator) -> dict[str, float]:
        """The mean or the sum of each name over all ranks; a rank need not have every name.

        A name without any value is left out. Its mean would not be 0: if the judge is down, no
        accuracy is known, which differs from an accuracy of 0 (test_no_value_is_not_zero).
        """
        totals, counts, numbers = Counter(), Counter(), Counter()
        mine = (self.totals, self.counts, self.numbers)
        for rank_totals, rank_counts, rank_numbers in gather_objects(mine, accelerator):
            totals.update(rank_totals)
            counts.update(rank_counts)
            numbers.update(rank_numbers)

        means = {name: totals[name] / counts[name] for name in totals if counts[name] > 0}
        return {**means, **numbers}


def kl_k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """(B, T) estimate of KL(policy || reference), never below 0: e^d - d - 1, d = logp_ref - logp.

    Trap: only its value estimates that KL. Its gradient as a term of the loss is (1 - e^d) grad
    logp, which on average is the gradient of KL(reference || policy)
    (test_k3_pulls_like_the_other_kl). Both hold for tokens drawn from the policy itself, so exactly
    in the first update of a rollout only; GRPO's paper does the same.

    `expm1` keeps it accurate near 0. In fp32 the plain form gives 0 at d = 1e-4, and is negative at
    1e-6 (test_k3_nonnegative_for_small_d). Source: Schulman, "Approximating KL divergence" (k3).
    """
    d = logp_ref - logp
    return torch.expm1(d) - d


def sampler_gap(
    logp_trainer: Tensor, logp_sampler: Tensor, clip_low: float, clip_high: float
) -> dict[str, Tensor]:
    """How far the policy that trains is from the one that sampled, at equal weights: (B, T) each.

    logp_trainer, logp_sampler  (B, T) log-probability of the sampled tokens, nats
    returns  `gap`          the distance of the two
             `gap_k3`       estimate of KL(sampler || trainer)
             `gap_outside`  1 where their ratio is outside of the clip band

    All are 0 in exact arithmetic. Other kernels and a bf16 copy make a difference, to which GRPO's
    ratio is blind: it compares the trainer with itself.
    """
    difference = logp_trainer - logp_sampler  # (B, T)
    ratio = difference.exp()
    outside = (ratio < 1 - clip_low) | (ratio > 1 + clip_high)
    return {
        "gap": difference.abs(),
        "gap_k3": kl_k3(logp_sampler, logp_trainer),
        "gap_outside": outside.float(),
    }
