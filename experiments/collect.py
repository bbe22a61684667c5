"""From the run folders of a grid to one small file: metrics.json.

    {"scale": ..., "rates": {...},
     "cost": [seconds a pair of DPO+SFT over those of SFT, one a round],
     "seeds": {"0": {
         "models": {MODEL: {SET: {"format": 0.9, "accuracy": 0.5}}},      base, zero, cold_*, rl_*
         "cold":   {ARM: [{"step": 0, "sets": {SET: {...}}}, ...]},       checkpoints of stage 2b
         "rl":     {ARM: [{"step": 0, "sets": {SET: {...}}}, ...]},       checkpoints of stage 3
         "losses": {ARM: {METRIC: [one a step]}},                         metrics.jsonl of stage 2b
         "curves": {ARM: {METRIC: [one a step]}},                         metrics.jsonl of stage 3
         "more":   {MODEL: {SET: {...}}},                                 with --more, as the rest
         "inconsistent": {MODEL: {SET: {...}}},
         "explore": {QUESTIONS: {MODEL: {SET: {...}}}}}}}

What has not ended is left out, so that a grid can be looked at while it runs.
"""

import json
from pathlib import Path

from experiments.grid import COST_SIDE
from harness.run import read_jsonl

LOSSES = ("chosen_reward", "rejected_reward", "margin", "reward_accuracy")
CURVES = ("format", "accuracy", "loss", "entropy", "zero_std%")
DIGITS = 4  # behind the point: a file of 8 seeds stays at some hundred KB


def collect(out: Path) -> dict:
    """All that the claims and the figures need, from the folder of a grid."""
    seeds = {}
    for folder in sorted(out.glob("seed*"), key=lambda f: int(f.name.removeprefix("seed"))):
        results = collect_seed(folder)
        if results["models"] or results["losses"]:
            seeds[folder.name.removeprefix("seed")] = results
    return {"cost": collect_cost(out / "cost"), "seeds": seeds}


def collect_seed(folder: Path) -> dict:
    """What the stages of one seed measured."""
    number = folder.name.removeprefix("seed")
    return {
        "models": read_models(folder / "eval_models"),
        "cold": read_checkpoints(folder / "eval_cold", "cold_"),
        "rl": read_checkpoints(folder / "eval_rl", "rl_"),
        "losses": read_curves(folder, "cold_", LOSSES),
        "curves": read_curves(folder, "rl_", CURVES),
        "more": read_models(folder / "eval_more"),
        "inconsistent": read_models(folder.with_name(f"inconsistent{number}") / "eval_models"),
        "explore": {
            f.name.removeprefix("explore_"): read_models(f)
            for f in sorted(folder.glob("explore_*/"))
        },
    }


def has_ended(folder: Path) -> bool:
    return (folder / "ended").is_file()


def read_models(folder: Path) -> dict[str, dict]:
    """Model -> set -> rates, from the report of an evaluation; {} if it has not ended."""
    if not has_ended(folder):
        return {}
    report = json.loads((folder / "report.json").read_text())
    return {name: rates_by_set(model) for name, model in report["models"].items()}


def rates_by_set(report: dict) -> dict[str, dict]:
    """Set -> {"format", "accuracy"}; the greedy answers to `id` as a set `greedy`."""
    sets = {}
    for key, rates in report.items():
        set_name, _, mode = key.partition(" ")
        if mode not in ("sampled", "greedy"):
            continue  # pass@k, branching, guessing
        name = "greedy" if mode == "greedy" else set_name
        sets[name] = {m: round(rates[m]["mean"], DIGITS) for m in ("format", "accuracy")}
    for key in ("branching", "guessing"):
        if key in report:
            sets[key] = round(report[key], DIGITS)
    chances = report.get("pass@k", {})
    sets["pass@k"] = {k: round(chance["mean"], DIGITS) for k, chance in chances.items()}
    return sets


def read_checkpoints(folder: Path, prefix: str) -> dict[str, list[dict]]:
    """Arm -> its checkpoints, from an evaluation of models called ARM@STEP."""
    curves: dict[str, list[dict]] = {}
    for name, sets in read_models(folder).items():
        arm, step = name.removeprefix(prefix).split("@")
        curves.setdefault(arm, []).append({"step": int(step), "sets": sets})
    return curves


def read_curves(folder: Path, prefix: str, metrics: tuple[str, ...]) -> dict[str, dict]:
    """Arm -> metric -> one value a step, from the logs of the training runs that have ended."""
    curves = {}
    for run in sorted(folder.glob(f"{prefix}*/")):
        if not has_ended(run):
            continue
        steps = read_jsonl(run / "metrics.jsonl")
        curves[run.name.removeprefix(prefix)] = {
            name: [round(step[name], DIGITS) for step in steps if name in step]
            for name in metrics
            if name in steps[-1]
        }
    return curves


def collect_cost(folder: Path) -> list[float]:
    """Seconds a pair of DPO+SFT over those of SFT, one a round."""
    ratios = []
    for file in sorted(folder.glob("*/hybrid.json")):
        if has_ended(file.parent):
            ratios.append(round(json.loads(file.read_text())[COST_SIDE]["per_pair"], DIGITS))
    return ratios


def write_metrics(metrics: dict, file: Path) -> None:
    """Write metrics.json, a line for each seed, arm and checkpoint at most."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(metrics, separators=(",", ":")).replace('},"', '},\n"') + "\n")
