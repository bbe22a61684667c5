"""Grade responses from anywhere: `python -m rewards FILE`.

FILE has one JSON object a line, an example in the project's keys with a response to it:

    {"id": "7", "question": "...", "answer": "B", "answer_type": "choice", "choices": ["cat", "dog"],
     "response": "The answer is B.", "verdict": true}

Only `answer` and `response` are needed. With a `verdict` (someone else's, true or false) the
agreement is printed, and the false rights and false wrongs by answer type and rule, each with an
example. An error names the line.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from rewards.expression import math_equal
from rewards.grading import Grade, grade

ANSWER_TYPES = ("number", "choice", "math", "text")
SHOWN = 90  # characters of an example's end


@dataclass(frozen=True)
class Graded:
    """A response, our grade, and the verdict of someone else (None if there is none)."""

    id: str
    answer_type: str
    gold: str
    response: str
    grade: Grade
    verdict: bool | None

    @property
    def rule(self) -> str:
        """The extraction rule of the reason, "no answer" where none was found."""
        return self.grade.reason.split(":")[0] if self.grade.extracted is not None else "no answer"

    @property
    def outcome(self) -> str:
        right = self.grade.score == 1.0
        if self.verdict is None or self.grade.score is None:
            return "not compared"
        if right == self.verdict:
            return "agree"
        return "false right" if right else "false wrong"


def read_line(line: str, where: str) -> dict:
    """One example, its optional keys filled in. Raises ValueError that names the line."""
    try:
        example = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no JSON: {error}") from error
    if not isinstance(example, dict):
        raise ValueError(f"{where}: {type(example).__name__}, wanted an object")

    for key in ("answer", "response"):
        if not isinstance(example.get(key), str):
            raise ValueError(f"{where}: {key!r} is missing or no text")
    choices = example.get("choices") or []
    answer_type = example.get("answer_type") or ("choice" if choices else "math")
    if answer_type not in ANSWER_TYPES:
        raise ValueError(
            f"{where}: answer_type {answer_type!r}, wanted one of {', '.join(ANSWER_TYPES)}"
        )
    if not isinstance(choices, list):
        raise ValueError(f"{where}: choices are no list")
    if example.get("verdict") not in (None, True, False):
        raise ValueError(f"{where}: verdict {example['verdict']!r}, wanted true, false or null")
    return {
        **example,
        "answer_type": answer_type,
        "choices": [str(choice) for choice in choices],
        "question": example.get("question") or "",
    }


def grade_file(path: Path) -> list[Graded]:
    """Every line of a JSONL file, graded."""
    graded = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            example = read_line(line, where)
            try:
                verdict = grade(example, example["response"])
            except Exception as error:
                raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
            graded.append(as_graded(example, verdict, str(number)))
    return graded


def as_graded(example: dict, verdict: Grade, name: str = "") -> Graded:
    return Graded(
        str(example.get("id") or name),
        example["answer_type"],
        example["answer"],
        example["response"],
        verdict,
        example.get("verdict"),
    )


def summarise(graded: list[Graded]) -> str:
    """The table of agreement by answer type, then the disagreements by type and rule with an
    example each."""
    lines = [
        f"{'type':8s} {'responses':>9s} {'right':>7s} {'no answer':>9s} {'unscored':>8s} {'compared':>8s} "
        f"{'agree':>8s} {'false right':>11s} {'false wrong':>11s}"
    ]
    for answer_type in (*ANSWER_TYPES, "all"):
        chosen = [g for g in graded if answer_type in (g.answer_type, "all")]
        if chosen:
            lines.append(table_row(answer_type, chosen))

    lines += [
        "",
        "answers by rule: "
        + ", ".join(
            f"{rule} {count}" for rule, count in Counter(g.rule for g in graded).most_common()
        ),
    ]
    for outcome in ("false right", "false wrong"):
        lines += disagreements(outcome, [g for g in graded if g.outcome == outcome])
    return "\n".join(lines)


def table_row(title: str, graded: list[Graded]) -> str:
    count = Counter(g.outcome for g in graded)
    compared = len(graded) - count["not compared"]
    agree = f"{100 * count['agree'] / compared:.2f} %" if compared else "-"
    right = sum(g.grade.score == 1.0 for g in graded)
    unscored = sum(g.grade.score is None for g in graded)
    nothing = sum(g.rule == "no answer" for g in graded)
    return (
        f"{title:8s} {len(graded):9d} {right:7d} {nothing:9d} {unscored:8d} {compared:8d} {agree:>8s} "
        f"{count['false right']:11d} {count['false wrong']:11d}"
    )


def disagreements(outcome: str, graded: list[Graded]) -> list[str]:
    """By answer type and rule: how many, and the last words of one response."""
    groups = defaultdict(list)
    for g in graded:
        groups[g.answer_type, g.rule].append(g)
    lines = ["", f"{outcome}: {len(graded)}"] if graded else []
    for (answer_type, rule), members in sorted(groups.items(), key=lambda item: -len(item[1])):
        g = members[0]
        lines.append(
            f"  {len(members):4d}  {answer_type}, {rule}. For example {g.id}: gold {g.gold!r}, "
            f"{g.grade.reason}; ...{g.response[-SHOWN:]!r}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rewards", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "file",
        type=Path,
        help="JSON lines: answer, response, and optionally answer_type, "
        "choices, question, id, verdict",
    )
    file = parser.parse_args().file

    math_equal.start()
    try:
        graded = grade_file(file)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(summarise(graded))


if __name__ == "__main__":
    main()
