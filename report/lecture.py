"""One update explained: a real group, from its rewards to the clipped loss, number by number."""

from pathlib import Path

import torch

import grpo
from grpo import group_advantages, policy_loss
from report.gallery import padded
from report.runs import LoadedRun

TOKENS_SHOWN = 6  # of a completion: those whose log-probability moved most


def explain_update(runs: list[LoadedRun]) -> dict | None:
    """The numbers of the group that shows most; None if no run has recorded one with them."""
    candidates = []
    for run in runs:
        if is_variant(run):
            continue  # the numbers of grpo.py's own loss would not be those of the run
        for sample in run.samples:
            if run.stage == "GRPO" and "logp_sampler" in sample and None not in sample["totals"]:
                candidates.append((run, sample))
    candidates = [(run, sample) for run, sample in candidates if len(set(sample["totals"])) > 1]
    if not candidates:
        return None
    run, sample = max(candidates, key=lambda candidate: how_telling(*candidate))
    return explain(run, sample)


def is_variant(run: LoadedRun) -> bool:
    """True if a patched copy of grpo.py made the run, or perhaps a part of it."""
    if any("code" in entry["changed"] for entry in run.config.get("history", [])):
        return True
    file = Path(run.config.get("file", ""))
    return file.name == "grpo.py" and file.resolve().parent != Path(grpo.__file__).parent


def how_telling(run: LoadedRun, sample: dict) -> tuple:
    """Short completions, several different totals, and tokens that the clip stops."""
    terms, _ = loss_terms(run, sample)
    is_short = max(len(line) for line in sample["logp"]) < 200
    return is_short, len(set(sample["totals"])), float(terms["clipped"].sum())


def loss_terms(run: LoadedRun, sample: dict) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What grpo.py's own functions say about a record: terms (G, T), advantages (G,)."""
    totals = torch.tensor(sample["totals"])  # (G,)
    advantages = group_advantages(totals[None], run.divides_by_std())[0]  # (G,)
    # The sampler's log-probabilities stand for logp_old: both are of the policy before the update.
    logp, logp_sampler = padded(sample["logp"]), padded(sample["logp_sampler"])  # (G, T)
    mask = padded([[1.0] * len(line) for line in sample["logp"]])  # (G, T)
    terms = policy_loss(logp, logp_sampler, advantages, mask, run.config["clip_low"],
                        run.config["clip_high"])  # fmt: skip
    terms = {name: values * mask for name, values in terms.items()}
    return terms | {"mask": mask}, advantages


def explain(run: LoadedRun, sample: dict) -> dict:
    """All numbers of one update of one group, as page.html prints them."""
    terms, advantages = loss_terms(run, sample)
    totals = torch.tensor(sample["totals"])
    best, worst = int(advantages.argmax()), int(advantages.argmin())
    tokens = float(terms["mask"].sum())
    return {
        "run": run.name,
        "step": sample["step"],
        "question": sample.get("question") or sample["prompt"],
        "gold": sample["gold"],
        "names": list(sample["rewards"][0]),
        "completions": [
            {
                "text": text,
                "rewards": list(sample["rewards"][i].values()),
                "total": float(totals[i]),
                "centred": float(totals[i] - totals.mean()),
                "advantage": float(advantages[i]),
                "tokens": len(sample["tokens"][i]),
            }
            for i, text in enumerate(sample["completions"])
        ],
        "weights": run.config["reward_weights"],
        "mean": float(totals.mean()),
        "std": float(totals.std()),
        "divides": run.divides_by_std(),
        "low": 1 - run.config["clip_low"],
        "high": 1 + run.config["clip_high"],
        "shown": [token_rows(sample, i, terms, float(advantages[i])) for i in (best, worst)],
        "num_tokens": int(tokens),
        "loss_sum": float(terms["loss"].sum()),
        "loss": float(terms["loss"].sum()) / tokens,
        "num_clipped": int(terms["clipped"].sum()),
    }


def token_rows(sample: dict, i: int, terms: dict[str, torch.Tensor], advantage: float) -> dict:
    """The tokens of completion i that moved most, in their order."""
    moved = [abs(new - old) for new, old in zip(sample["logp"][i], sample["logp_sampler"][i])]
    largest = sorted(range(len(moved)), key=lambda t: -moved[t])[:TOKENS_SHOWN]
    rows = []
    for t in sorted(largest):
        rows.append(
            {
                "token": sample["tokens"][i][t],
                "logp_sampler": sample["logp_sampler"][i][t],
                "logp": sample["logp"][i][t],
                "ratio": float(terms["ratio"][i, t]),
                "loss": float(terms["loss"][i, t]),
                "clipped": bool(terms["clipped"][i, t]),
            }
        )
    return {"number": i + 1, "advantage": advantage, "rows": rows}
