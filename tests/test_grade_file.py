"""`python -m rewards FILE` and the public responses."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from rewards.__main__ import grade_file, summarize

ROOT = Path(__file__).parent.parent


def write(path, lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def test_agreement_is_counted_by_type_and_rule(tmp_path):
    """A false positive and a false negative are named with their rule and an example."""
    twelve = {"answer": "12", "answer_type": "number", "response": "The answer is 12."}
    file = write(tmp_path / "a.jsonl", [
        {**twelve, "verdict": True},
        {**twelve, "id": "seven", "verdict": False},
        {"answer": "B", "choices": ["cat", "dog"], "response": "I like dogs", "verdict": True},
        "",
        {"id": 0, "answer": "yes", "answer_type": "text", "response": "yes"},
    ])

    graded = grade_file(file)
    outcomes = ["agree", "false positive", "false negative", "not compared"]
    assert [g.outcome for g in graded] == outcomes

    assert [g.id for g in graded] == ["1", "seven", "3", "0"], "an id, else the line"

    text = summarize(graded)
    assert "false positive: 1" in text
    assert "number, answer is. For example seven" in text
    assert "false negative: 1" in text
    assert "choice, no answer" in text
    assert "33.33 %" in text


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: list"),
        ({"answer": "1"}, "line 2: 'response' is missing"),
        ({"answer": 1, "response": "1"}, "line 2: 'answer' is missing or is not a string"),
        (
            {"answer": "1", "response": "1", "answer_type": "integer"},
            "line 2: answer_type 'integer'",
        ),
        ({"answer": "[]", "response": "[]", "answer_type": "boxes"}, "line 2: answer_type 'boxes'"),
        ({"answer": "1", "response": "1", "verdict": "yes"}, "line 2: verdict 'yes'"),
    ],
)
def test_an_error_names_the_line(tmp_path, line, words):
    file = write(tmp_path / "a.jsonl", [{"answer": "1", "response": "1"}, line])
    with pytest.raises(ValueError, match=words):
        grade_file(file)


def official():
    """The converter in benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(
        "official_answers", ROOT / "benchmarks" / "official_answers.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_literal_extractions_are_told_apart():
    """MathVista's extraction is compared only where it stands in the response."""
    is_literal = official().is_literal
    assert is_literal("5", "it is 5", [])
    assert is_literal("5", "there are five", [])
    assert not is_literal("5", "six", [])
    assert is_literal("B", "it is (B)", ["cat", "dog"])
    assert is_literal("B", "a dog", ["cat", "dog"])
    assert not is_literal("B", "Based on it", ["cat", "bird"])
    assert not is_literal("N/A", "N/A", ["cat"])


@pytest.mark.skipif(not os.environ.get("SPECS_REAL_DATA"), reason="SPECS_REAL_DATA is not set")
def test_public_choice_responses():
    """A chat model's chains of thought: our verdict is the official one."""
    module = official()
    folder = Path(os.environ["SPECS_REAL_DATA"])
    records = list(module.mmmu_pro(folder, "mmmu_pro_responses_gpt4o_standard_cot"))[:400]

    count = module.agreement(records, "raw")
    assert count["agree"] / count["compared"] >= 0.99
    assert count["false positive"] <= 2
