"""The experiments as a page shows them: our numbers beside the paper's, interval, verdict."""

from collections import Counter

from experiments.claims import Outcome, outcomes
from experiments.more_claims import more_outcomes
from experiments.verdict import AGREES, CANNOT_TELL, DISAGREES, Interval
from report.charts import experiment_charts


def experiment_sections(metrics: dict) -> list[dict]:
    """Title, charts and rows of every experiment of which something was measured."""
    sections = []
    for number, (title, judged) in enumerate(outcomes(metrics) + more_outcomes(metrics), start=1):
        if all(outcome.difference.count == 0 for outcome in judged):
            continue
        sections.append(
            {
                "title": title,
                "sentence": summary(judged),
                "charts": experiment_charts(number, metrics),
                "rows": [row(outcome) for outcome in judged],
            }
        )
    return sections


def summary(judged: list[Outcome]) -> str:
    """How many of the claims agree, disagree, and cannot be told here, in one sentence."""
    count = Counter(outcome.verdict for outcome in judged)
    seeds = max(outcome.difference.count for outcome in judged)
    return (
        f"With up to {seeds} seeds, {count[AGREES]} of {len(judged)} claims agree with the paper, "
        f"{count[DISAGREES]} disagree, and {count[CANNOT_TELL]} cannot be told here."
    )


def row(outcome: Outcome) -> dict:
    """One claim as texts."""
    claim = outcome.claim
    return {
        "claim": claim.text,
        "paper": paper_numbers(outcome),
        "known": claim.known,
        "larger": f"{claim.larger.name}: {interval(outcome.larger)}",
        "smaller": f"{claim.smaller.name}: {interval(outcome.smaller)}",
        "difference": interval(outcome.difference, signed=True),
        "seeds": outcome.difference.count,
        "verdict": outcome.verdict,
    }


def paper_numbers(outcome: Outcome) -> str:
    quantities = (outcome.claim.larger, outcome.claim.smaller)
    numbers = [f"{q.name} {q.paper:g}" for q in quantities if q.paper is not None]
    return " · ".join(numbers) or "no number"


def interval(values: Interval, signed: bool = False) -> str:
    """`12.3 [10.1, 14.5]`; without an interval if there is one seed only."""
    if values.count == 0:
        return "-"
    mean = f"{values.mean:+.3g}" if signed else f"{values.mean:.3g}"
    if values.count == 1:
        return mean
    return f"{mean} [{values.low:.3g}, {values.high:.3g}]"
