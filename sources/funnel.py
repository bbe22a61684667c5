"""The funnel of stage 2a: what became of each sampled response.

    Response     a response as it was sampled
    Candidate    its text as a side of a pair, or the reason why it was dropped
    counts       every candidate of both sides, kept or dropped, adds to one of them; beside them
                 what the run itself counts: sources, skipped questions, calls of a judge

On each side, sampled = kept + dropped, and
kept = pairs + without a partner + beyond --pairs_per_question.
"reasoning ..." counts the four outcomes of the consistency check, of what was right and in format.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, replace

from harness.run import Run

# A count is named "TOPIC: HAPPENING ...", and printed in this order.
TOPICS = ("questions", "chosen", "rejected", "pairs")
HAPPENINGS = ("", "skipped", "sampled", "from", "reasoning", "dropped", "kept", "without")


@dataclass(frozen=True)
class Response:
    text: str | None  # None: an endpoint gave no reply
    truncated: bool  # it ran into the limit of tokens


AS_SAMPLED = "as sampled"  # the change of a text that was only stripped of white space
NOT_CHECKED = ""  # the consistency of a response whose reasoning was not looked at


@dataclass(frozen=True)
class Candidate:
    text: str | None  # None: dropped
    change: str = ""  # kept: what was done to the text: AS_SAMPLED, supplemented, or a corruption
    reason: str = ""  # dropped: why, as "wrong answer"
    consistency: str = NOT_CHECKED  # how the reasoning agrees with the answer

    @classmethod
    def dropped(cls, reason: str, consistency: str = NOT_CHECKED) -> "Candidate":
        """A response that cannot be a side of a pair."""
        return cls(None, reason=reason, consistency=consistency)


def mark_repeats(candidates: list[Candidate]) -> list[Candidate]:
    """All candidates in order; one that says the same as an earlier one is marked as dropped."""
    seen = set()
    result = []
    for candidate in candidates:
        if candidate.text in seen:
            candidate = replace(candidate, text=None, change="", reason="same words as another")
        if candidate.text is not None:
            seen.add(candidate.text)
        result.append(candidate)
    return result


def kept(candidates: list[Candidate]) -> list[Candidate]:
    """Those that were not dropped, in order."""
    return [candidate for candidate in candidates if candidate.text is not None]


def count_question(chosen: list[Candidate], rejected: list[Candidate], limit: int) -> Counter:
    """The counts of one question, from all its candidates; `limit` is --pairs_per_question."""
    counts = Counter({"questions": 1})
    for side, candidates in (("chosen", chosen), ("rejected", rejected)):
        for candidate in candidates:
            counts[f"{side}: sampled"] += 1
            if candidate.consistency:
                counts[f"{side}: reasoning {candidate.consistency}"] += 1
            if candidate.text is None:
                counts[f"{side}: dropped, {candidate.reason}"] += 1
            else:
                counts[f"{side}: kept"] += 1
                counts[f"{side}: kept, {candidate.change}"] += 1

    num_chosen, num_rejected = len(kept(chosen)), len(kept(rejected))
    if num_chosen == 0:
        counts["questions: without chosen"] = 1
    elif num_rejected == 0:
        counts["questions: without rejected"] = 1

    matched = min(num_chosen, num_rejected)
    counts["chosen: without a partner"] = num_chosen - matched
    counts["rejected: without a partner"] = num_rejected - matched
    counts["pairs"] = min(matched, limit)
    counts["pairs: beyond --pairs_per_question"] = matched - counts["pairs"]
    return counts


def count_sources(cfg, num_skipped: int, chosen_side: list[list[Response]],
                  rejected_side: list[list[Response]], judge_counts: dict[str, int]) -> Counter:
    """The counts of a whole run, on this rank; `num_skipped` questions could not be used.

    What is 0 is left out when a Counter is added to a funnel, which lists what has happened.
    """
    return Counter({
        "questions: skipped, see the warnings": num_skipped,
        f"chosen: from {cfg.source}": sum(map(len, chosen_side)),
        f"rejected: from {cfg.rejected_source}": sum(map(len, rejected_side)),
        **judge_counts,
    })  # fmt: skip


def in_order(name: str) -> tuple:
    """Where a count stands in the printed funnel: in the order in which responses are handled."""
    topic, _, rest = name.partition(": ")
    happening = re.match(r"\w*", rest)[0]
    return (place_in(TOPICS, topic), place_in(HAPPENINGS, happening), name)


def place_in(words: tuple[str, ...], word: str) -> int:
    """The index of a word, behind all others if it is none of them."""
    return words.index(word) if word in words else len(words)


def write_funnel(funnel: Counter, pair: dict, run: Run) -> None:
    """Write funnel.json; print the funnel and one pair."""
    (run.folder / "funnel.json").write_text(json.dumps(funnel, indent=2) + "\n")

    print(f"\none pair ({pair['corruption']}), question: {pair['question']}")
    print(f"  chosen    {pair['chosen'][0]['content']}")
    print(f"  rejected  {pair['rejected'][0]['content']}\n")
    for name in sorted(funnel, key=in_order):
        print(f"  {funnel[name]:>6}  {name}")
    print(f"wrote {funnel['pairs']} pairs to {run.folder}/data")
