"""The report of an evaluation as lines of text.

A report is what `evaluate.summarize` makes of one model's records, a dictionary:

    "SET MODE"    one key per measurement, for example "id sampled"; the value is a dictionary:
                      "format"      rate of responses in the format, with its interval
                      "accuracy"    rate of right answers, with its interval
                      "length"      mean, tokens
                      "truncated"   share of responses that ran into the limit
    "pass@k"      dictionary: k -> probability, with its interval over questions
    "branching"   tokens in the nucleus, mean over sampled steps
    "guessing"    accuracy of the best blind guess
    "categories"  of a benchmark: heading -> category -> rate of right answers, with its interval

Every key may be missing: an evaluation need not measure everything.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One rate of a report, and the title above it."""

    title: str
    measurement: str  # key of the report, "SET MODE"
    metric: str  # "format" or "accuracy"

    def rate(self, report: dict) -> dict | None:
        """Mean and interval, as `evaluate.py` makes them; None if it was not measured."""
        if self.measurement not in report:
            return None
        return report[self.measurement][self.metric]


MAIN_COLUMNS = [
    Column("format", "id sampled", "format"),
    Column("accuracy", "id sampled", "accuracy"),
    Column("greedy acc.", "id greedy", "accuracy"),
    Column("shuffled acc.", "shuffled sampled", "accuracy"),
]
OOD_ACCURACY_COLUMNS = [  # questions and images that stages 1 to 3 never had
    Column("new wording", "wording sampled", "accuracy"),
    Column("new look", "look sampled", "accuracy"),
    Column("easy task", "easy sampled", "accuracy"),
    Column("unseen task", "task sampled", "accuracy"),
]
OOD_FORMAT_COLUMNS = [  # formats that stages 1 to 3 never asked for
    Column("tags", "tags sampled", "format"),
    Column("brackets", "brackets sampled", "format"),
    Column("last_line", "last_line sampled", "format"),
    Column("answer_first", "answer_first sampled", "format"),
]


def measured(columns: list[Column], reports: dict[str, dict]) -> list[Column]:
    """The columns that at least one report has a rate for."""
    found = []
    for column in columns:
        if any(column.rate(report) is not None for report in reports.values()):
            found.append(column)
    return found


def format_table(reports: dict[str, dict], curves: dict[str, list[dict]] | None = None) -> str:
    """The reports as text: one line per model, percentages with intervals.

    reports   name of a model -> its report
    curves    name of a run -> its checkpoints, see `evaluate.gf_curve`
    """
    lines = [
        *main_lines(reports),
        *ood_lines("accuracy, OOD", OOD_ACCURACY_COLUMNS, reports),
        *ood_lines("format obeyed, OOD", OOD_FORMAT_COLUMNS, reports),
        *pass_lines(reports),
        *guessing_lines(reports),
        *gf_lines(curves or {}),
        *category_lines(reports),
    ]
    return "\n".join(lines)


# --- The parts of the table ----------------------------------------------------------------------


def main_lines(reports: dict[str, dict]) -> list[str]:
    """Format and accuracy of every model, and the mean length of its responses."""
    columns = measured(MAIN_COLUMNS, reports)
    if not columns:
        return []

    lines = [header_line("", columns) + f"{'length':>8}"]
    for name, report in reports.items():
        line = model_line(name, report, columns)
        if "id sampled" in report:
            line += f"{report['id sampled']['length']:>8.1f}"
        lines.append(line)
    return lines


def ood_lines(title: str, columns: list[Column], reports: dict[str, dict]) -> list[str]:
    """A table of its own for what stages 1 to 3 never had: one line per model."""
    columns = measured(columns, reports)
    if not columns:
        return []
    lines = [model_line(name, report, columns) for name, report in reports.items()]
    return [header_line(title, columns), *lines]


def pass_lines(reports: dict[str, dict]) -> list[str]:
    """pass@k and branching of every model that was sampled for pass@k."""
    lines = []
    for name, report in reports.items():
        if "pass@k" not in report:
            continue
        rates = "  ".join(f"@{k} {cell(rate)}" for k, rate in report["pass@k"].items())
        line = f"  {name:<18}pass {rates}"
        if "branching" in report:
            line += f"    branching {report['branching']:.2f} tokens"
        lines.append(line)
    return lines


def guessing_lines(reports: dict[str, dict]) -> list[str]:
    """What guessing earns. All models get the same questions, so the first report is enough."""
    rates = [report["guessing"] for report in reports.values() if "guessing" in report]
    if not rates:
        return []
    explanation = "the most common answer to each kind of question"
    return [f"  best blind guess: {100 * rates[0]:.1f} % ({explanation})"]


def gf_lines(curves: dict[str, list[dict]]) -> list[str]:
    """One line per checkpoint of each run: format on each set and GF, in percent."""
    lines = []
    for name, curve in curves.items():
        for entry in curve:
            rates = [f"{key} {100 * value:5.1f}" for key, value in entry.items() if key != "step"]
            lines.append(f"  {name:<18}step {entry['step']:>4}  {'  '.join(rates)}")
    return lines


def category_lines(reports: dict[str, dict]) -> list[str]:
    """The accuracy in each category of a benchmark, a table for each model and heading."""
    lines = []
    for name, report in reports.items():
        for heading, rates in report.get("categories", {}).items():
            lines += ["", f"{name}, by {heading}"]
            lines += [rate_line(category, rate) for category, rate in rates.items()]
            lines.append(macro_line(rates))
    return lines


# --- One line, one cell --------------------------------------------------------------------------


def header_line(title: str, columns: list[Column]) -> str:
    return f"{title:<20}" + "".join(f"{column.title:>16}" for column in columns)


def model_line(name: str, report: dict, columns: list[Column]) -> str:
    return f"  {name:<18}" + "".join(f"{cell(column.rate(report)):>16}" for column in columns)


def rate_line(name: str, rate: dict) -> str:
    """A rate with its interval and its number of responses, on a line of its own."""
    if rate["count"] == 0:
        return f"  {name:<44}unscored, all {rate['unscored']}"
    unscored = f", {rate['unscored']} unscored" if rate["unscored"] else ""
    mean, low, high = (100 * rate[key] for key in ("mean", "low", "high"))
    return f"  {name:<44}{mean:6.2f} [{low:.1f},{high:.1f}] of {rate['count']}{unscored}"


def macro_line(rates: dict[str, dict]) -> str:
    """The mean over categories, each counted once: MEGA-Bench reports that of its tasks."""
    means = [rate["mean"] for rate in rates.values() if rate["count"]]
    return f"  {'(mean over these)':<44}{100 * sum(means) / max(1, len(means)):6.2f}"


def cell(rate: dict | None) -> str:
    """A rate in percent with its interval, for example `37.5 [33,42]`."""
    if rate is None:
        return "-"
    if rate.get("count") == 0:  # all of them unscored: no rate, and not one of 0
        return "unscored"
    mean, low, high = 100 * rate["mean"], 100 * rate["low"], 100 * rate["high"]
    return f"{mean:.1f} [{low:.0f},{high:.0f}]"
