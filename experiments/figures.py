"""metrics.json -> figures. A panel is a function of an axis and the metrics; the page has them too.

    FIGURES         number of an experiment -> its panels
    draw_figures    the two that tell the story, as files: gf.png and rl.png

A line is the mean over seeds, its band the 95 % interval of that mean (none for a single seed).
"""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from experiments.claims import (
    ALMOST_NOTHING,
    LOSS_ARMS,
    NAMES,
    Quantity,
    accuracy,
    gf_curve,
    values,
)
from experiments.grid import COLD, SOURCES
from experiments.verdict import mean_interval

STARTS = ("sft", "dpo", "hybrid", "zero", "base")
COLOURS = {"sft": "C1", "dpo": "C2", "hybrid": "C0", "zero": "C4", "base": "C7"}

Panel = Callable[[object, dict], None]


def band(axis, steps: list[int], curves: list[list[float]], label: str, colour: str) -> None:
    """The mean of some curves over the seeds, and its interval. A shorter curve ends earlier."""
    means, lows, highs = [], [], []
    for i in range(len(steps)):
        interval = mean_interval([curve[i] for curve in curves if i < len(curve)])
        means.append(interval.mean)
        lows.append(interval.low)
        highs.append(interval.high)
    axis.plot(steps, means, label=label, color=colour)
    if len(curves) > 1:
        axis.fill_between(steps, lows, highs, color=colour, alpha=0.15, lw=0)


def finish(axis, title: str, x: str, y: str, **limits) -> None:
    axis.set(title=title, xlabel=x, ylabel=y, **limits)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)


# --- 1. Generalisation ---------------------------------------------------------------------------


def gf_panel(key: str, title: str, limits: tuple[float, float]) -> Panel:
    """ID, OOD or GF over the steps of the cold starts."""

    def panel(axis, metrics: dict) -> None:
        for arm in COLD:
            curves = [gf_curve(seed["cold"][arm]) for seed in metrics["seeds"].values()
                      if arm in seed["cold"]]  # fmt: skip
            if not curves:
                continue
            # Seeds have unequally many pairs: what all of them have is shown.
            shortest = min(curves, key=len)
            steps = [entry["step"] for entry in shortest]
            lines = [[entry[key] for entry in curve[: len(steps)]] for curve in curves]
            band(axis, steps, lines, NAMES[arm], COLOURS[arm])
        finish(axis, title, "step of the cold start", "%", ylim=limits)

    return panel


# --- 2. and 3. Stage 3 ---------------------------------------------------------------------------


def final_against_gf(axis, metrics: dict) -> None:
    """One point for each seed and cold start."""
    for arm in COLD:
        points = [
            (gf_curve(seed["cold"][arm])[-1]["gf"], accuracy(f"rl_{arm}")(seed))
            for seed in metrics["seeds"].values()
            if arm in seed["cold"] and f"rl_{arm}" in seed["models"]
        ]
        if points:
            axis.scatter(*zip(*points), label=NAMES[arm], color=COLOURS[arm], s=18)
    finish(axis, "final accuracy against GF", "GF of the cold start, %", "accuracy, %")


def rl_panel(metric: str, title: str, unit: str, scale: float, arms: tuple[str, ...]) -> Panel:
    """A metric of stage 3 over its steps."""

    def panel(axis, metrics: dict) -> None:
        for arm in arms:
            curves = []
            for seed in metrics["seeds"].values():
                if metric in seed["curves"].get(arm, {}):
                    curves.append([scale * value for value in seed["curves"][arm][metric]])
            if curves:
                steps = list(range(1, 1 + min(map(len, curves))))
                band(axis, steps, curves, NAMES[arm], COLOURS[arm])
        finish(axis, title, "step of GRPO", unit)

    return panel


def checkpoint_panel(set_name: str, title: str) -> Panel:
    """Accuracy on held-out questions at the checkpoints of stage 3."""

    def panel(axis, metrics: dict) -> None:
        for arm in STARTS:
            curves = [seed["rl"][arm] for seed in metrics["seeds"].values() if arm in seed["rl"]]
            if not curves:
                continue
            steps = [entry["step"] for entry in min(curves, key=len)]
            lines = [[100 * e["sets"][set_name]["accuracy"] for e in c] for c in curves]
            band(axis, steps, lines, NAMES[arm], COLOURS[arm])
        finish(axis, title, "step of GRPO", "%")

    return panel


def bars_panel(title: str, arms: dict[str, str]) -> Panel:
    """Accuracy of some models: mean, interval, and a dot for each seed. `arms`: model -> name."""

    def panel(axis, metrics: dict) -> None:
        names = []
        for model, name in arms.items():
            points = list(values(Quantity(name, accuracy(model)), metrics).values())
            if not points:
                continue
            place = len(names)
            names.append(name)
            interval = mean_interval(points)
            axis.bar(place, interval.mean, 0.6, color="C0", alpha=0.4)
            if len(points) > 1:
                half = interval.high - interval.mean
                axis.errorbar(place, interval.mean, half, color="black", capsize=3, lw=1)
            axis.scatter([place] * len(points), points, color="C0", s=9, zorder=3)
        axis.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=7)
        finish(axis, title, "", "%")

    return panel


# --- 4. to 6. ------------------------------------------------------------------------------------


def loss_panel(metric: str, title: str) -> Panel:
    """A metric of stage 2b over its steps, for each lambda."""

    def panel(axis, metrics: dict) -> None:
        for i, (arm, name) in enumerate(LOSS_ARMS.items()):
            curves = [seed["losses"][arm][metric] for seed in metrics["seeds"].values()
                      if metric in seed["losses"].get(arm, {})]  # fmt: skip
            if curves:
                steps = list(range(1, 1 + min(map(len, curves))))
                band(axis, steps, curves, name, f"C{i}")
        axis.axhline(0, color="grey", lw=0.8, ls="--")
        finish(axis, title, "step of the cold start", "beta (logp - logp_ref)")

    return panel


def cost_panel(axis, metrics: dict) -> None:
    rounds = range(1, 1 + len(metrics["cost"]))
    axis.plot(rounds, metrics["cost"], "o", label="here")
    axis.axhline(1.057, color="C3", lw=1, label="paper")
    axis.axhline(ALMOST_NOTHING, color="grey", lw=1, ls="--", label="our bound")
    finish(axis, "seconds a pair, DPO+SFT : SFT", "round", "ratio", ylim=(0, None))


FIGURES: dict[int, list[Panel]] = {
    1: [gf_panel("id", "ID format", (0, 105)), gf_panel("ood", "OOD formats, mean", (0, 105)),
        gf_panel("gf", "generalisation factor", (0, None))],
    2: [final_against_gf],
    3: [rl_panel("format", "format reward", "%", 100, ("sft", "hybrid")),
        rl_panel("loss", "policy loss", "", 1, ("sft", "hybrid")),
        checkpoint_panel("id", "held-out accuracy"),
        bars_panel("after stage 3", {f"rl_{a}": f"from {NAMES[a]}" for a in STARTS})],
    4: [loss_panel("chosen_reward", "reward of chosen"),
        loss_panel("rejected_reward", "reward of rejected"), loss_panel("margin", "margin")],
    5: [bars_panel("after the cold start",
                   {"cold_hybrid": "zero", **{f"cold_{a}": a.split("_")[1] for a in SOURCES}}),
        bars_panel("after stage 3",
                   {"rl_hybrid": "zero", **{f"rl_{a}": a.split("_")[1] for a in SOURCES}})],
    6: [cost_panel],
}  # fmt: skip
STORY = {"gf.png": FIGURES[1], "rl.png": [FIGURES[3][0], FIGURES[3][2], FIGURES[3][3]]}


def draw_figures(metrics: dict, folder: Path) -> list[Path]:
    """Draw the two figures of the story into a folder; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, panels in STORY.items():
        figure = Figure(figsize=(3.8 * len(panels), 3.0), layout="constrained")
        axes = figure.subplots(1, len(panels))
        for axis, panel in zip(axes, panels):
            panel(axis, metrics)
        figure.savefig(folder / name, dpi=110)
        files.append(folder / name)
    return files
