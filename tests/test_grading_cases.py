"""Attack cases: what a policy may write, and whether it is paid for it.

`grading_cases.jsonl` has one case a line. Its `kind` says where the answer stands: inside answer
tags, or in prose without them. Cases with `"right": false` matter more: whatever is paid for is
learned.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from rewards import grade

FILE = Path(__file__).parent / "grading_cases.jsonl"
CASES = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
IN_TAGS = "<think> so </think> <answer> {} </answer>"


def name_of(case: dict) -> str:
    verdict = "right" if case["right"] else "wrong"
    return f"{case['kind']}, {case['type']} {case['gold']}, {verdict}: {case['response']}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_attack_cases(case):
    """Paid for if right, not if wrong, and the reason says how it was decided."""
    example = {
        "answer": case["gold"],
        "answer_type": case["type"],
        "choices": case.get("choices", []),
        "question": case.get("question", ""),
    }
    response = case["response"]
    if case["kind"] == "in tags":
        response = IN_TAGS.replace("{}", response)

    verdict = grade(example, response)
    assert verdict.score == float(case["right"]), verdict
    assert verdict.reason


def test_there_are_more_attacks_than_courtesies():
    """At least 300 cases; every answer type is attacked, in tags and in prose."""
    attacks = Counter((case["kind"], case["type"]) for case in CASES if not case["right"])
    assert len(CASES) >= 300
    assert sum(attacks.values()) >= len(CASES) / 2
    for answer_type in ("number", "choice", "math"):
        assert attacks["in tags", answer_type] >= 20
        assert attacks["in prose", answer_type] >= 5
