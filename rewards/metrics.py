"""The metrics of one step of GRPO: what is logged, printed as a column and drawn as a panel.

    rollout_means   of the sampled completions and their rewards
    summarize       these, and the sums of the updates, over all ranks
"""

from collections import Counter

from harness.metrics import Means
from rewards.groups import RewardedGroup

# Columns of the terminal's table, after the reward and its parts, and panels of curves.png.
COLUMNS = ["length", "trunc%", "zero_std%", "loss", "ratio", "clip%", "entropy", "grad_norm",
           "gen%", "step_s"]
PANELS = {"length, tokens": ["length"], "entropy, nats": ["entropy"],
          "groups of equal rewards, %": ["zero_std%"], "ratio, mean": ["ratio"],
          "tokens clipped, %": ["clip%"], "gradient norm": ["grad_norm"], "learning rate": ["lr"],
          "sampler against trainer, nats": ["gap", "gap_k3"],
          "accuracy, greedy, held out": ["eval_accuracy"]}


def rollout_means(rollout: list[RewardedGroup]) -> Means:
    """Metrics of a rollout that do not depend on the update, as sums and counts of this rank."""
    means = Means()
    for rewarded in rollout:
        known_totals = rewarded.known_totals()
        means.add("reward", sum(known_totals), len(known_totals))
        for name in rewarded.rewards[0]:
            known = rewarded.known(name)
            means.add(name, sum(known), len(known))

        lengths = [len(completion) for completion in rewarded.group.completions]
        means.add("length", sum(lengths), len(lengths))
        means.add("trunc%", 100 * sum(rewarded.truncated), len(lengths))
        all_equal = len(set(known_totals)) < 2
        means.add("zero_std%", 100.0 if all_equal else 0.0)
        means.add_number("unscored", len(lengths) - len(known_totals))

        entropies = rewarded.group.stats  # (L,) each
        means.add("entropy", sum(float(e.sum()) for e in entropies), sum(lengths))
    return means


def summarize(rollout: list[RewardedGroup], sums: Counter, counts: dict[str, int], accelerator,
              cfg) -> dict[str, float]:
    """Metrics of a step, over all ranks; `counts` are numbers of this rank, to be added up."""
    means = rollout_means(rollout)
    for name, count in counts.items():
        means.add_number(name, count)

    # The loss is a mean over M, the tokens of all groups, also of those without a gradient.
    means.add("loss", sums["loss"], sums["normalizer_share"])

    # The others are means over the tokens that were passed through the model.
    for name in ("ratio", "kl_ref", "gap", "gap_k3"):
        if name in sums:  # without a reference there is no kl_ref
            means.add(name, sums[name], sums["tokens_passed"])
    means.add("clip%", 100 * sums["clipped"], sums["tokens_passed"])
    means.add("gap_outside%", 100 * sums["gap_outside"], sums["tokens_passed"])

    # These two are equal on all ranks; a skipped update has no norm.
    steps_taken = max(1, cfg.updates_per_rollout - sums["skipped_updates"])
    return {**means.over_ranks(accelerator), "skipped_updates": sums["skipped_updates"],
            "grad_norm": sums["grad_norm"] / steps_taken}
