"""Plots of a run and of an evaluation, drawn by matplotlib into image files."""

from pathlib import Path

from matplotlib.figure import Figure

from harness.tables import MAIN_COLUMNS, OOD_ACCURACY_COLUMNS, OOD_FORMAT_COLUMNS, measured

# --- 1. Curves of a training run -----------------------------------------------------------------


PANELS_A_ROW = 4


def plot_curves(
    records: list[dict],
    panels: dict[str, list[str]],
    file: Path,
    title: str,
    chance: float = 0.0,
) -> None:
    """Draw metrics over the step, one panel for each entry of `panels`.

    records   the metrics of each step, with its number as `step`
    panels    title of a panel -> names of its metrics; those that were never logged are left out
    file      the image to write
    title     of the whole figure
    chance    accuracy of the best blind guess: a dotted line where accuracy is drawn; 0 for none
    """
    logged = set()
    for record in records:
        logged |= set(record)

    drawn = {}  # `panels` without metrics that were never logged
    for panel_title, metrics in panels.items():
        metrics = [metric for metric in metrics if metric in logged]
        if metrics:
            drawn[panel_title] = metrics

    rows, columns = -(-len(drawn) // PANELS_A_ROW), min(PANELS_A_ROW, len(drawn))
    figure = Figure(figsize=(3.6 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    for axis, (panel_title, metrics) in zip(axes.flat, drawn.items()):
        draw_curves(axis, records, panel_title, metrics, chance)

    figure.suptitle(title)
    figure.savefig(file, dpi=110)


def draw_curves(axis, records: list[dict], title: str, metrics: list[str], chance: float) -> None:
    """One panel. A single metric is named by the title, and needs no legend."""
    for metric in metrics:
        with_value = [record for record in records if metric in record]
        steps = [record["step"] for record in with_value]
        values = [record[metric] for record in with_value]
        # One step is a dot: a line needs two.
        axis.plot(steps, values, label=metric, marker="o" if len(steps) == 1 else "")
    if chance and any("accuracy" in metric for metric in metrics):
        axis.axhline(chance, color="grey", ls=":", label="best blind guess at the training data")

    axis.set(title=title, xlabel="step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    if len(axis.lines) > 1:  # below the panel, where it covers no curve
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2,
                    frameon=False)  # fmt: skip


# --- 2. The report of an evaluation --------------------------------------------------------------


def plot_report(reports: dict[str, dict], curves: dict[str, list[dict]], file: Path) -> None:
    """Draw one panel of rates with intervals, one of pass@k, one of GF over the checkpoints.

    reports   name of a model -> its report, see `harness.tables`
    curves    name of a run -> its checkpoints, see `evaluate.gf_curve`; may be empty
    file      the image to write

    The panels of pass@k and GF are left out if they were not measured.
    """
    has_pass = any("pass@k" in report for report in reports.values())
    panel_count = 1
    if has_pass:
        panel_count += 1
    if curves:
        panel_count += 1

    figure = Figure(figsize=(9 + 3.4 * (panel_count - 1), 3.4), layout="constrained")
    axes = figure.subplots(
        1, panel_count, squeeze=False, width_ratios=[2.7] + [1.0] * (panel_count - 1)
    )
    axes = list(axes[0])
    draw_rates(axes[0], reports)
    if has_pass:
        draw_pass_at_k(axes[1], reports)
    if curves:
        draw_gf(axes[-1], curves)

    figure.savefig(file, dpi=120)


def draw_rates(axis, reports: dict[str, dict]) -> None:
    """A group of bars for each rate of the tables; in a group, one bar for each model."""
    main = measured(MAIN_COLUMNS, reports)
    ood = measured(OOD_ACCURACY_COLUMNS + OOD_FORMAT_COLUMNS, reports)
    columns = main + ood
    titles = [column.title for column in main]
    titles += [f"{column.title} ({column.metric})" for column in ood]
    width = 0.8 / max(1, len(reports))

    for i, (name, report) in enumerate(reports.items()):
        offset = (i - (len(reports) - 1) / 2) * width  # bars of one group are centred on its tick
        rates = {}  # x position of the bar -> rate
        for tick, column in enumerate(columns):
            rate = column.rate(report)
            if rate is not None and rate.get("count") != 0:  # 0: unscored, which is no rate of 0
                rates[tick + offset] = rate

        means = [100 * rate["mean"] for rate in rates.values()]
        below = [100 * (rate["mean"] - rate["low"]) for rate in rates.values()]
        above = [100 * (rate["high"] - rate["mean"]) for rate in rates.values()]
        axis.bar(list(rates), means, width, label=name, yerr=[below, above], error_kw={"lw": 0.7})

    axis.set(
        xticks=range(len(columns)),
        title="held-out questions, 95 % intervals",
        ylabel="%",
        ylim=(0, 120),
        yticks=range(0, 101, 20),
    )
    axis.set_xticklabels([title.replace(" ", "\n") for title in titles], fontsize=7)
    if reports:
        axis.legend(fontsize=8, loc="upper center", ncols=len(reports))  # above the bars


def draw_pass_at_k(axis, reports: dict[str, dict]) -> None:
    """pass@k over k, one line for each model."""
    for name, report in reports.items():
        rates = report.get("pass@k", {})
        ks = [int(k) for k in rates]
        percents = [100 * rate["mean"] for rate in rates.values()]
        lines = axis.plot(ks, percents, marker="o", ms=3, label=name)
        lows, highs = ([100 * rate[end] for rate in rates.values()] for end in ("low", "high"))
        axis.fill_between(ks, lows, highs, alpha=0.15, color=lines[0].get_color())

    axis.set(title="pass@k", xlabel="k", ylabel="%")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda k, _: f"{k:g}")  # colours as in the panel of rates


def draw_gf(axis, curves: dict[str, list[dict]]) -> None:
    """GF over the checkpoints of each run; in the same colour, dotted, its mean OOD format."""
    for name, curve in curves.items():
        steps = [entry["step"] for entry in curve]
        gf = [100 * entry["gf"] for entry in curve]
        ood = [100 * entry["ood"] for entry in curve]
        lines = axis.plot(steps, gf, marker="o", ms=3, label=f"{name}: GF")
        axis.plot(steps, ood, ls=":", color=lines[0].get_color(), label=f"{name}: OOD format")

    axis.set(title="generalisation factor", xlabel="step of the cold start", ylabel="%")
    axis.legend(fontsize=8)
