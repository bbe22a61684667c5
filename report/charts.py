"""Curves as inline SVG: one chart for each metric, one line for each arm, seeds as a band."""

import io
import re
from collections.abc import Callable

import matplotlib
from matplotlib.figure import Figure

import dpo_sft
from experiments.figures import FIGURES, band
from report.runs import LoadedRun

SIZE = (4.2, 2.7)  # inches: wide enough for a phone
MOST_NAMED = 12  # lines with a legend: one of more would leave no room for the lines
SHARES = {"format", "accuracy", "eval_accuracy", "reward_accuracy"}  # between 0 and 1
ACCURACIES = {"accuracy", "eval_accuracy"}  # that a blind guess can be compared with
GRPO_METRICS = {  # metric -> title
    "reward": "reward, the weighted sum",
    "format": "share in format",
    "accuracy": "share right",
    "eval_accuracy": "share right, greedy, held out",
    "length": "length, tokens",
    "entropy": "entropy, nats per token",
    "ratio": "mean ratio",
    "clip%": "tokens clipped, %",
    "zero_std%": "groups of equal rewards, %",
    "grad_norm": "gradient norm",
    "kl_ref": "KL to the start, nats per token",
}


def as_svg(draw: Callable) -> str:
    """What `draw(axis)` draws, as an <svg> element without anything that a page does not need."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page", "font.size": 9}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.subplots()
        draw(axis)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return unique_ids(svg)


def unique_ids(svg: str) -> str:
    """Give every chart ids of its own: two charts of a page may not share the id of a clip path."""
    unique_ids.count += 1
    prefix = f"c{unique_ids.count}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return svg.replace('xlink:href="#', f'href="#{prefix}').replace("url(#", f"url(#{prefix}")


unique_ids.count = 0


# --- Curves of training runs ---------------------------------------------------------------------


def training_charts(runs: list[LoadedRun], guessing: float | None) -> dict[str, list[str]]:
    """Stage -> its charts. `guessing`: accuracy of the best blind guess, a line where it belongs.
    """
    charts = {}
    for stage in ("GRPO", "cold start"):
        of_stage = [run for run in runs if run.stage == stage and run.metrics]
        if not of_stage:
            continue
        charts[stage] = []
        for metric, title in metrics_of(stage, of_stage).items():
            lines = lines_of(of_stage, metric)
            chance = guessing if stage == "GRPO" and metric in ACCURACIES else None
            charts[stage].append(as_svg(curve_drawer(lines, metric, title, chance)))
    return charts


def metrics_of(stage: str, runs: list[LoadedRun]) -> dict[str, str]:
    """Metric -> title, of what these runs have logged."""
    titles = dict(GRPO_METRICS)
    if stage == "cold start":
        titles = {}
        for title, metrics in dpo_sft.PANELS.items():
            titles |= {m: m if len(metrics) > 1 else title for m in metrics}
    logged = {name for run in runs for line in run.metrics for name in line}
    return {metric: title for metric, title in titles.items() if metric in logged}


def lines_of(runs: list[LoadedRun], metric: str) -> dict[str, list[LoadedRun]]:
    """Arm -> its runs that logged the metric."""
    arms: dict[str, list[LoadedRun]] = {}
    for run in runs:
        if any(metric in line for line in run.metrics):
            arms.setdefault(run.arm, []).append(run)
    return arms


def curve_drawer(arms: dict[str, list[LoadedRun]], metric: str, title: str,
                 chance: float | None) -> Callable:
    """A function that draws one metric of some arms into an axis."""

    def draw(axis) -> None:
        for i, (arm, runs) in enumerate(arms.items()):
            curves = [
                {line["step"]: line[metric] for line in run.metrics if metric in line}
                for run in runs
            ]
            steps = sorted(set.intersection(*[set(curve) for curve in curves]))
            name = arm if len(runs) == 1 else f"{arm}, {len(runs)} seeds"
            band(axis, steps, [[c[step] for step in steps] for c in curves], name, f"C{i % 10}")
        if chance is not None:
            label = "best blind guess at the evaluation"
            axis.axhline(chance, color="grey", ls="--", lw=1, label=label)
        if metric in SHARES:
            axis.set_ylim(0, 1.02)
        elif metric.endswith("%"):
            axis.set_ylim(0, None)
        axis.set(title=title, xlabel="step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if len(arms) <= MOST_NAMED:
            axis.legend(fontsize=7)
        else:
            axis.set_title(f"{title} ({len(arms)} runs, not named)")

    return draw


# --- Evaluations, experiments --------------------------------------------------------------------


def gf_charts(curves: dict[str, list[dict]]) -> list[str]:
    """GF over the checkpoints of each run, and the format on each set."""
    if not curves:
        return []
    names = {"gf": "generalisation factor", "ood": "mean of the OOD formats"}
    charts = []
    for key in next(iter(curves.values()))[0]:
        if key != "step":
            charts.append(as_svg(gf_drawer(curves, key, names.get(key, f"format: {key}"))))
    return charts


def gf_drawer(curves: dict[str, list[dict]], key: str, title: str) -> Callable:
    """A function that draws one rate of all checkpoints of some runs into an axis."""

    def draw(axis) -> None:
        for name, curve in curves.items():
            steps = [entry["step"] for entry in curve]
            rates = [100 * entry[key] for entry in curve]
            axis.plot(steps, rates, marker="o", ms=3, label=name)
        axis.set(title=title, xlabel="step", ylabel="%", ylim=(0, 102))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)

    return draw


def experiment_charts(number: int, metrics: dict) -> list[str]:
    """The panels of one experiment."""
    return [as_svg(lambda axis, panel=panel: panel(axis, metrics))
            for panel in FIGURES.get(number, [])]  # fmt: skip
