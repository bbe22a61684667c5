"""Grade responses from anywhere: `python -m rewards FILE`.

FILE has one JSON object a line, an example in the project's keys with a response to it:

    {"id": "7", "question": "...", "answer": "B", "answer_type": "choice",
     "choices": ["cat", "dog"], "response": "The answer is B.", "verdict": true}

Only `answer` and `response` are needed. `verdict` is someone else's. With it, this prints how often
we agree, and the false positives and false negatives by answer type and rule, each with an example:

    false positive    right here, wrong by the verdict
    false negative    wrong here, right by the verdict

An error names the line. The type "boxes" is refused: an overlap is neither right nor wrong.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from rewards.expression import MATH_VERIFY
from rewards.grading import Grade, grade

ANSWER_TYPES = ("number", "choice", "math", "text")  # graded as right or wrong
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
        """The extraction rule that won."""
        if self.grade.extracted is None:
            return "no answer"
        return self.grade.reason.split(":")[0]  # of "answer is: equal number"

    @property
    def outcome(self) -> str:
        """Our verdict against the given one."""
        if self.verdict is None or self.grade.score is None:
            return "not compared"
        right = self.grade.score == 1.0
        if right == self.verdict:
            return "agree"
        return "false positive" if right else "false negative"


# --- Reading and grading -------------------------------------------------------------------------


def grade_file(path: Path) -> list[Graded]:
    """Every line of a JSONL file, graded. Raises ValueError that names the line."""
    graded = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                graded.append(grade_line(line, str(number)))
            except Exception as error:
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                raise ValueError(f"{path}, line {number}: {kind}{error}") from error
    return graded


def grade_line(line: str, number: str) -> Graded:
    """One line of the file, graded. Raises ValueError. `number` names a line without an id."""
    example = read_line(line)
    return Graded(
        id=str(number if example.get("id") in (None, "") else example["id"]),
        answer_type=example["answer_type"],
        gold=example["answer"],
        response=example["response"],
        grade=grade(example, example["response"]),
        verdict=example.get("verdict"),
    )


def read_line(line: str) -> dict:
    """One example, its optional keys filled in. Raises ValueError."""
    try:
        example = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(example, dict):
        raise ValueError(f"{type(example).__name__}, wanted an object")

    for key in ("answer", "response"):
        if not isinstance(example.get(key), str):
            raise ValueError(f"{key!r} is missing or is not a string")
    choices = example.get("choices") or []
    if not isinstance(choices, list):
        raise ValueError("choices must be a list")
    answer_type = example.get("answer_type") or ("choice" if choices else "math")
    if answer_type not in ANSWER_TYPES:
        raise ValueError(f"answer_type {answer_type!r}, wanted one of {', '.join(ANSWER_TYPES)}")
    if example.get("verdict") not in (None, True, False):
        raise ValueError(f"verdict {example['verdict']!r}, wanted true, false or null")

    return {
        **example,
        "answer_type": answer_type,
        "choices": [str(choice) for choice in choices],
        "question": example.get("question") or "",
    }


# --- The report ----------------------------------------------------------------------------------

COLUMNS = {  # heading -> width, behind the column of the answer type
    "responses": 9, "right": 7, "no answer": 9, "unscored": 8, "compared": 8,
    "agree": 8, "false positive": 14, "false negative": 14,
}


def summarize(graded: list[Graded]) -> str:
    """The table of agreement, then the disagreements by type and rule with an example each."""
    lines = [table_row("type", list(COLUMNS))]
    for answer_type in (*ANSWER_TYPES, "all"):
        of_type = [g for g in graded if answer_type == "all" or g.answer_type == answer_type]
        if of_type:
            lines.append(table_row(answer_type, counts(of_type)))

    by_rule = Counter(g.rule for g in graded).most_common()
    rules = ", ".join(f"{rule} {count}" for rule, count in by_rule)
    lines += ["", f"answers by rule: {rules}"]
    for outcome in ("false positive", "false negative"):
        lines += disagreements(outcome, [g for g in graded if g.outcome == outcome])
    return "\n".join(lines)


def table_row(title: str, cells: list) -> str:
    """The title to the left of its column, the cells to the right of theirs."""
    columns = [f"{title:<8}"]
    for cell, width in zip(cells, COLUMNS.values()):
        columns.append(f"{cell:>{width}}")
    return " ".join(columns)


def counts(graded: list[Graded]) -> list:
    """The cells of a row, in the order of COLUMNS."""
    outcomes = Counter(g.outcome for g in graded)
    compared = len(graded) - outcomes["not compared"]
    return [
        len(graded),
        sum(g.grade.score == 1.0 for g in graded),
        sum(g.rule == "no answer" for g in graded),
        sum(g.grade.score is None for g in graded),
        compared,
        f"{100 * outcomes['agree'] / compared:.2f} %" if compared else "-",
        outcomes["false positive"],
        outcomes["false negative"],
    ]


def disagreements(outcome: str, graded: list[Graded]) -> list[str]:
    """By answer type and rule, the largest group first: how many, and the end of one response."""
    if not graded:
        return []
    groups = defaultdict(list)
    for g in graded:
        groups[g.answer_type, g.rule].append(g)

    lines = ["", f"{outcome}: {len(graded)}"]
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
    keys = "answer, response, and optionally answer_type, choices, question, id, verdict"
    parser.add_argument("file", type=Path, help=f"JSON lines: {keys}")
    file = parser.parse_args().file

    MATH_VERIFY.start()
    try:
        graded = grade_file(file)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(summarize(graded))


if __name__ == "__main__":
    main()
