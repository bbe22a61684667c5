"""The report of an evaluation as lines of text, and the intervals of its rates.

A report is what `evaluate.summarize` makes of one model's records:

    "SET MODE"   for example "id sampled": format and accuracy with intervals, length, truncated
    "pass@k"     k -> probability;  "branching", "guessing": numbers
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One number of a report, and the title above it."""

    title: str
    measurement: str  # key of the report, "SET MODE"
    metric: str  # "format" or "accuracy"

    def rate(self, report: dict) -> dict | None:
        """Mean and interval (see `evaluate.rate_with_interval`), None if it was not measured."""
        return report[self.measurement][self.metric] if self.measurement in report else None

    def is_in_any(self, reports: dict[str, dict]) -> bool:
        return any(self.measurement in report for report in reports.values())


MAIN_COLUMNS = [
    Column("format", "id sampled", "format"),
    Column("accuracy", "id sampled", "accuracy"),
    Column("greedy acc.", "id greedy", "accuracy"),
    Column("shuffled acc.", "shuffled sampled", "accuracy"),
    Column("other words", "wording sampled", "accuracy"),
    Column("other task", "task sampled", "accuracy"),
]
OOD_COLUMNS = [
    Column("tags", "tags sampled", "format"),
    Column("brackets", "brackets sampled", "format"),
    Column("last_line", "last_line sampled", "format"),
]


def wilson(successes: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval (low, high) of a rate: `successes` of `count`.

    Unlike mean +- 2 sd it stays inside [0, 1], and is not empty at 0 or 1.

    >>> [round(x, 3) for x in wilson(10, 10)]
    [0.722, 1.0]
    """
    if count == 0:
        return 0.0, 1.0
    p = successes / count
    denominator = 1 + z * z / count
    centre = (p + z * z / (2 * count)) / denominator
    half = z / denominator * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def format_table(reports: dict[str, dict], curves: dict[str, list[dict]] | None = None) -> str:
    """The reports as text: one model a line, percentages with intervals.

    reports: name of a model -> its report.
    curves: name of a run -> its checkpoints, see `evaluate.measure_gf`.
    """
    lines = [
        *main_lines(reports),
        *ood_lines(reports),
        *pass_lines(reports),
        *guessing_lines(reports),
        *gf_lines(curves or {}),
    ]
    return "\n".join(lines)


def main_lines(reports: dict[str, dict]) -> list[str]:
    """Format and accuracy of every model, and the mean length of its responses."""
    columns = [column for column in MAIN_COLUMNS if column.is_in_any(reports)]
    if not columns:
        return []

    lines = [header_line("", columns) + f"{'length':>8}"]
    for name, report in reports.items():
        line = model_line(name, report, columns)
        if "id sampled" in report:
            line += f"{report['id sampled']['length']:>8.1f}"
        lines.append(line)
    return lines


def ood_lines(reports: dict[str, dict]) -> list[str]:
    """How often every model obeys the formats that training never asked for."""
    columns = [column for column in OOD_COLUMNS if column.is_in_any(reports)]
    if not columns:
        return []
    lines = [model_line(name, report, columns) for name, report in reports.items()]
    return [header_line("format obeyed, OOD", columns), *lines]


def pass_lines(reports: dict[str, dict]) -> list[str]:
    """pass@k and branching of every model."""
    lines = []
    for name, report in reports.items():
        if "pass@k" in report:
            rates = "  ".join(f"@{k} {100 * rate:.1f}" for k, rate in report["pass@k"].items())
            branching = f"branching {report['branching']:.2f} tokens"
            lines.append(f"  {name:<18}pass {rates}    {branching}")
    return lines


def guessing_lines(reports: dict[str, dict]) -> list[str]:
    """What guessing earns: the questions are the same for all models, so the first one says it."""
    rates = [report["guessing"] for report in reports.values() if "guessing" in report]
    if not rates:
        return []
    explanation = "the most common answer to each kind of question"
    return [f"  best blind guess: {100 * rates[0]:.1f} % ({explanation})"]


def gf_lines(curves: dict[str, list[dict]]) -> list[str]:
    """The checkpoints of each run, one a line: format on each set and GF, in percent."""
    lines = []
    for name, curve in curves.items():
        for entry in curve:
            rates = [f"{key} {100 * value:5.1f}" for key, value in entry.items() if key != "step"]
            lines.append(f"  {name:<18}step {entry['step']:>4}  {'  '.join(rates)}")
    return lines


def header_line(title: str, columns: list[Column]) -> str:
    return f"{title:<20}" + "".join(f"{column.title:>15}" for column in columns)


def model_line(name: str, report: dict, columns: list[Column]) -> str:
    return f"  {name:<18}" + "".join(f"{cell(column.rate(report)):>15}" for column in columns)


def cell(rate: dict | None) -> str:
    """A rate in percent with its interval, for example `37.5 [33,42]`."""
    if rate is None:
        return "-"
    mean, low, high = 100 * rate["mean"], 100 * rate["low"], 100 * rate["high"]
    return f"{mean:.1f} [{low:.0f},{high:.0f}]"
