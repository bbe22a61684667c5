"""The metrics of one step of DPO + SFT: what is logged, printed as columns and drawn as panels."""

from harness.metrics import Means

# Columns of the terminal's table, and panels of curves.png.
COLUMNS = ["loss", "dpo", "sft", "chosen_reward", "rejected_reward", "margin",
           "reward_accuracy", "chosen_logp", "grad_norm", "step_s"]
PANELS = {"loss": ["loss", "dpo", "sft"],
          "reward: beta (logp - logp_ref)": ["chosen_reward", "rejected_reward", "margin"],
          "chosen logp, nats per response": ["chosen_logp"],
          "share of pairs with margin > 0": ["reward_accuracy"],
          "gradient norm": ["grad_norm"], "learning rate": ["lr"]}


def summarize(sums: dict[str, float], pairs_of_rank: int, accelerator) -> dict[str, float]:
    """Metrics of a step: means over the pairs of all ranks; `sums` are over this rank's."""
    equal_on_ranks = {name: sums[name] for name in ("grad_norm", "skipped_updates")}
    means = Means()
    for name, total in sums.items():
        if name not in equal_on_ranks:
            means.add(name, total, pairs_of_rank)
    return {**means.over_ranks(accelerator), **equal_on_ranks}
