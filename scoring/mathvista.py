"""MathVista, testmini: 1,000 questions. Source: arXiv 2310.02255, its evaluation code.

The gold of a multiple-choice question is the *text* of its option. The authors let a language model
extract the answer; then, by rule, choices become the option of that letter or the nearest one by
edit distance, integers int(float(x)), floats are rounded to the question's precision, and the
result must equal the gold as text.
"""

import re

from rewards.choice import read_option
from rewards.extract import find_answer
from rewards.number import read_number
from scoring.benchmark import LETTERS, Benchmark, make_example, read_list

HINTS = {
    ("text", None): "and provide the correct option letter, e.g., A, B, C, D, at the end.",
    ("integer", None): "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at "
    "the end.",
    ("float", 1): "requiring a floating-point number with one decimal place and provide the final "
    "value, e.g., 1.2, 1.3, 1.4, at the end.",
    ("float", 2): "requiring a floating-point number with two decimal places and provide the final "
    "value, e.g., 1.23, 1.34, 1.45, at the end.",
    ("list", None): "requiring a Python list as an answer and provide the final list, e.g., "
    "[1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}


def read(row: dict) -> dict:
    """A row of AI4Math/MathVista."""
    choices = read_list(row.get("choices"))
    precision = None if row.get("precision") is None else int(row["precision"])
    metadata = row.get("metadata") or {}
    headings = ("source", "category", "task", "context", "grade", "language")
    categories = {heading: [metadata.get(heading)] for heading in headings}
    image = row.get("decoded_image") or row.get("image")
    return make_example(
        "mathvista", row["pid"], row.get("query") or query(row, choices, precision),
        row.get("answer"), images=[image] if image else [], choices=choices,
        answer_type=answer_type(row),
        categories={
            "task": [metadata.get("task")],
            "skill": metadata.get("skills") or [],
            "question type": [row["question_type"]],
            "answer type": [row["answer_type"]],
            **categories,
        },
        rule={"answer_type": row["answer_type"], "precision": precision},
    )


def answer_type(row: dict) -> str:
    """What the extraction looks for."""
    if row["question_type"] == "multi_choice":
        return "choice"
    return "math" if row["answer_type"] == "list" else "number"


def query(row: dict, choices: list[str], precision: int | None) -> str:
    """The column `query` as the data set has it, for files without: hint, question, choices."""
    kind = row["answer_type"]
    hint = HINTS.get((kind, precision if kind == "float" else None), "")
    unit = f" (Unit: {row['unit']})" if row.get("unit") else ""
    lines = [f"Hint: Please answer the question {hint}", f"Question: {row['question']}{unit}"]
    if choices:
        lines += ["Choices:", *[f"({a}) {text}" for a, text in zip(LETTERS, choices)]]
    return "\n".join(lines)


def extract(example: dict, response: str) -> str | None:
    """Ours, where the authors ask a language model: a letter, a number, or the answer's text."""
    kind, choices = example["answer_type"], example["choices"]
    answer = find_answer(response, kind, choices, example["question"]).answer
    if answer is None:
        return None
    if kind == "choice":
        return read_option(answer, choices).letter or answer
    number = read_number(answer, example["question"]) if kind == "number" else None
    return answer if number is None else repr(number.value)


def compare(example: dict, extraction: str, judge=None) -> tuple[float, str]:
    """The authors' rule: normalise by the type of the answer, then equal as text."""
    normalised = normalise(example, extraction)
    if normalised is None:
        return 0.0, "extraction is no answer of its type"
    return float(normalised == example["answer"]), f"rule, {normalised!r}"


def normalise(example: dict, extraction: str) -> str | None:
    """The extraction in the form of the gold, None if it has none.

    Trap: the gold of a choice is its text, so a right letter never equals it
    (test_mathvista_golds_are_texts).
    """
    if example["answer_type"] == "choice":
        return nearest_option(extraction, example["choices"])
    try:
        if example["rule"]["answer_type"] == "integer":
            return str(int(float(extraction)))
        if example["rule"]["answer_type"] == "float":
            return str(round(float(extraction), example["rule"]["precision"]))
    except (ValueError, OverflowError):
        return None
    return extraction


def nearest_option(extraction: str, choices: list[str]) -> str | None:
    """The option of a letter, in brackets or alone; else the first of the nearest texts."""
    text = extraction.strip()
    bracketed = re.findall(r"\(([a-zA-Z])\)", text)
    letter = bracketed[0].upper() if bracketed else text
    if len(letter) == 1 and letter in LETTERS[: len(choices)]:
        return choices[LETTERS.index(letter)]
    return min(choices, key=lambda choice: edit_distance(letter, choice)) if choices else None


def edit_distance(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements (Levenshtein).

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(b) + 1))  # row[j]: from the part of `a` so far to b[:j]
    for i, x in enumerate(a, 1):
        above_left, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            replaced = above_left + (x != y)
            above_left = row[j]
            row[j] = min(row[j] + 1, row[j - 1] + 1, replaced)
    return row[-1]


BENCHMARK = Benchmark(
    "mathvista", "AI4Math/MathVista", None, "testmini", read, extract, compare,
    id_key="pid", verdict=lambda record: record.get("true_false"),
)
