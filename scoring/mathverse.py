"""MathVerse, testmini: 788 problems in five versions, 3,940 questions.

Source: arXiv 2403.14624, its evaluation code. In the version "Vision Only" the question is in the
image, and the column `question` is "". The authors let a language model extract the answer and
another one decide whether it means the gold, after a check for equal text. Here the finder of
`rewards/extract.py` extracts; letters are compared by rule, and free-form answers by the judge if
there is one (--judge_url), else as texts and as expressions by math-verify.
"""

from rewards.choice import read_option
from rewards.expression import MATH_VERIFY
from rewards.extract import find_answer
from rewards.judge_prompts import equivalence_question
from scoring.benchmark import Benchmark, make_example


def read(row: dict) -> dict:
    """A row of AI4Math/MathVerse, config testmini."""
    metadata = row.get("metadata") or {}
    is_choice = row["question_type"] == "multi-choice"
    image = row.get("image")
    return make_example(
        "mathverse", row["sample_index"], row.get("query_cot") or row["question"],
        row.get("answer"), images=[image] if image else [],
        answer_type="choice" if is_choice else "math",
        categories={
            "version": [row.get("problem_version")],
            "subject": [metadata.get("subject")],
            "subfield": [metadata.get("subfield")],
            "question type": [row["question_type"]],
        },
        rule={"question": row.get("question_for_eval") or row["question"]},
    )


def extract(example: dict, response: str) -> str | None:
    """Ours, where the authors ask a language model."""
    kind = example["answer_type"]
    answer = find_answer(response, kind, (), example["rule"]["question"]).answer
    if answer is None or kind != "choice":
        return answer
    return read_option(answer, []).letter or answer


def compare(example: dict, extraction: str, judge=None) -> tuple[float | None, str]:
    """Equal text first, as the authors do; then by the type of the question."""
    gold, answer = example["answer"].strip(), extraction.strip()
    if answer == gold:
        return 1.0, "rule, equal text"
    if example["answer_type"] == "choice":
        letter = answer.strip("(). ").upper()
        return float(letter == gold.strip("(). ").upper()), f"rule, letter {letter[:10]!r}"
    if judge is not None:
        question = example["rule"]["question"]
        verdict = judge.yes(equivalence_question(question, gold, answer))
        return (None, "judge gave no answer") if verdict is None else (float(verdict), "judge")
    return float(MATH_VERIFY(gold=gold, answer=answer) is True), "rule, math-verify (no judge set)"


BENCHMARK = Benchmark(
    "mathverse", "AI4Math/MathVerse", "testmini", "testmini", read, extract, compare,
    id_key="sample_index", asks_judge=True,
    verdict=lambda record: bool(record["judgement"]) if "judgement" in record else None,
)
