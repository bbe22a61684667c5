"""Images of a run and of an evaluation, drawn by matplotlib into files."""

from pathlib import Path

from harness.tables import Column

BARS = [
    Column("format", "id sampled", "format"),
    Column("accuracy", "id sampled", "accuracy"),
    Column("accuracy,\nshuffled images", "shuffled sampled", "accuracy"),
    Column("other tags\n(format)", "tags sampled", "format"),
    Column("brackets\n(format)", "brackets sampled", "format"),
    Column("last line\n(format)", "last_line sampled", "format"),
    Column("other task\n(accuracy)", "task sampled", "accuracy"),
]


def import_pyplot():
    """matplotlib without a display. Imported only to draw: it would slow every start down."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


# --- 1. Curves of a training run -----------------------------------------------------------------


def plot_curves(records: list[dict], panels: dict[str, list[str]], file: Path, title: str) -> None:
    """Draw metrics over the step, one panel for each entry of `panels`.

    records: the metrics of each step, with its number as `step`.
    panels: title of a panel -> names of the metrics in it. Metrics without a value are left out.
    """
    plt = import_pyplot()
    logged = {name for record in records for name in record}
    drawn = {}
    for panel_title, metrics in panels.items():
        metrics = [metric for metric in metrics if metric in logged]
        if metrics:
            drawn[panel_title] = metrics

    figure, axes = plt.subplots(
        1, len(drawn), figsize=(3.6 * len(drawn), 3.0), layout="constrained", squeeze=False
    )
    for axis, (panel_title, metrics) in zip(axes[0], drawn.items()):
        for metric in metrics:
            known = [record for record in records if record.get(metric) is not None]
            steps = [record["step"] for record in known]
            axis.plot(steps, [record[metric] for record in known], label=metric)
        axis.set(title=panel_title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)

    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    plt.close(figure)


# --- 2. The report of an evaluation --------------------------------------------------------------


def plot_report(reports: dict[str, dict], curves: dict[str, list[dict]], file: Path) -> None:
    """Draw what each stage did: rates with intervals, pass@k, and GF over the checkpoints.

    reports: name of a model -> its report, see `harness.tables`.
    curves: name of a run -> its checkpoints, see `evaluate.measure_gf`; may be empty.
    """
    plt = import_pyplot()
    has_pass = any("pass@k" in report for report in reports.values())
    panel_count = 1 + int(has_pass) + int(bool(curves))

    figure, axes = plt.subplots(
        1,
        panel_count,
        figsize=(6 + 3.4 * (panel_count - 1), 3.4),
        layout="constrained",
        squeeze=False,
        width_ratios=[2.0] + [1.0] * (panel_count - 1),
    )
    axes = list(axes[0])
    draw_rates(axes[0], reports)
    if has_pass:
        draw_pass_at_k(axes[1], reports)
    if curves:
        draw_gf(axes[-1], curves)

    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_rates(axis, reports: dict[str, dict]) -> None:
    """A group of bars for each rate, in it one bar for each model."""
    bars = [bar for bar in BARS if bar.is_in_any(reports)]
    width = 0.8 / max(1, len(reports))

    for i, (name, report) in enumerate(reports.items()):
        offset = (i - (len(reports) - 1) / 2) * width  # of this model's bar from the group's middle
        x, means, below, above = [], [], [], []
        for place, bar in enumerate(bars):
            rate = bar.rate(report)
            if rate is None:
                continue
            x.append(place + offset)
            means.append(100 * rate["mean"])
            below.append(100 * (rate["mean"] - rate["low"]))
            above.append(100 * (rate["high"] - rate["mean"]))
        axis.bar(x, means, width, label=name, yerr=[below, above], error_kw={"lw": 0.7})

    axis.set(
        xticks=range(len(bars)),
        title="held-out questions, sampled, 95 % intervals",
        ylabel="%",
        ylim=(0, 105),
    )
    axis.set_xticklabels([bar.title for bar in bars], fontsize=7)
    axis.legend(fontsize=8)


def draw_pass_at_k(axis, reports: dict[str, dict]) -> None:
    """pass@k over k, one line for each model."""
    for name, report in reports.items():
        rates = report.get("pass@k", {})
        ks = [int(k) for k in rates]
        percents = [100 * rate for rate in rates.values()]
        axis.plot(ks, percents, marker="o", ms=3, label=name)

    axis.set(title="pass@k", xlabel="k", ylabel="%")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda k, _: f"{k:g}")
    axis.legend(fontsize=8)


def draw_gf(axis, curves: dict[str, list[dict]]) -> None:
    """GF over the checkpoints of each run, and dotted in its colour the mean format on OOD."""
    for name, curve in curves.items():
        steps = [entry["step"] for entry in curve]
        gf = [100 * entry["gf"] for entry in curve]
        ood = [100 * entry["ood"] for entry in curve]
        lines = axis.plot(steps, gf, marker="o", ms=3, label=f"{name}: GF")
        axis.plot(steps, ood, ls=":", color=lines[0].get_color(), label="OOD format")

    axis.set(title="generalisation factor", xlabel="step of the cold start", ylabel="%")
    axis.legend(fontsize=8)
