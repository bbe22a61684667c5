"""Public responses of real models: our verdicts against the official ones, as a table.

    export SPECS_REAL_DATA=FOLDER
    python benchmarks/official_answers.py                  the table
    python benchmarks/official_answers.py --out FOLDER     and JSONL files for `python -m rewards`

The folder holds gzipped JSON lines of public benchmark repositories (MathVista, MathVision,
MMMU-Pro, MMMU, R1-V): questions with their gold, and what models answered, with the verdict of the
benchmark's code. They are neither copied nor shipped. Each record becomes one example in the
project's keys, and

    response    what the model wrote, graded as it is ("raw")
    extracted   what the benchmark took for its answer, graded inside answer tags ("extracted")
    verdict     the official verdict; None where there is none

Some official verdicts are mistaken. `disputed.jsonl` lists them with the truth: they are kept out
of the agreement, and counted against that truth beside it.
"""

import argparse
import ast
import gzip
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rewards.digits import words_to_digits
from rewards.expression import MATH_VERIFY
from rewards.grading import grade

LETTERS = "ABCDEFGHIJ"
FORMS = {"raw": "response", "extracted": "extracted"}  # form -> the key that holds it


def read(folder: Path, name: str) -> list[dict]:
    """The records of one file, gzipped or not."""
    path = folder / name
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def record(
    name: str,
    answer: str,
    answer_type: str,
    *,
    question: str = "",
    choices: Sequence[str] = (),
    response: str,
    extracted: str | None,
    verdict: bool | None,
) -> dict:
    """One example with what was answered to it."""
    return {
        "id": name,
        "images": [],
        "question": question,
        "answer": str(answer),
        "answer_type": answer_type,
        "choices": [str(choice) for choice in choices],
        "kind": "",
        "response": response,
        "extracted": extracted,
        "verdict": verdict,
    }


# --- One function a benchmark --------------------------------------------------------------------


def mathvista(folder: Path, file: str) -> Iterator[dict]:
    """The gold of a choice is the option's text.

    `literal` marks what the agreement counts: the official extraction names an option or is a
    number, and stands in the response letter by letter.
    """
    questions = {q["pid"]: q for q in read(folder, "mathvista_testmini.jsonl.gz")}
    for answered in read(folder, f"{file}.jsonl.gz"):
        asked = questions[answered["pid"]]
        choices = asked["choices"] or []
        kinds = {"integer": "number", "float": "number", "list": "math", "text": "text"}
        kind = "choice" if choices else kinds[asked["answer_type"]]
        extraction = str(answered["extraction"]).strip()
        example = record(
            answered["pid"],
            asked["answer"],
            kind,
            question=asked["question"],
            choices=choices,
            response=answered["response"],
            extracted=extraction,
            verdict=answered["true_false"],
        )
        yield {**example, "literal": is_literal(extraction, answered["response"], choices)}


def is_literal(extraction: str, response: str, choices: list[str]) -> bool:
    """Does the extraction (an option's letter, its text, or a number) stand in the response?"""
    letter = extraction.strip("(). ")
    if len(letter) == 1 and letter in LETTERS[: len(choices)]:
        stands = re.search(rf"(?<!\w){letter}(?!\w)", response) is not None
        return stands or choices[LETTERS.index(letter)].lower() in response.lower()
    if extraction.lower() in [choice.lower() for choice in choices]:
        return extraction.lower() in response.lower()
    try:
        float(extraction)
    except ValueError:
        return False
    return extraction in response or extraction in words_to_digits(response)


def mathvision(folder: Path, file: str) -> Iterator[dict]:
    """Options are letters or values; questions without options have an expression for an answer."""
    questions = {q["id"]: q for q in read(folder, "mathvision_test.jsonl.gz")}
    for answered in read(folder, f"{file}.jsonl.gz"):
        asked = questions[answered["id"]]
        yield record(
            answered["id"],
            asked["answer"],
            "choice" if asked["options"] else "math",
            question=asked["question"],
            choices=asked["options"],
            response=answered["response"],
            extracted=answered["model_answer"],
            verdict=answered["correct"],
        )


def mmmu_pro(folder: Path, file: str) -> Iterator[dict]:
    """Up to ten options. Where no letter was found, the official prediction is a random draw."""
    for answered in read(folder, f"{file}.jsonl.gz"):
        yield record(
            answered["id"],
            answered["answer"],
            "choice",
            question=answered["question"],
            choices=ast.literal_eval(answered["options"]),
            response=answered["response"],
            extracted=str(answered["pred_indexs"]),
            verdict=answered["if_right"],
        )


def mmmu_val(folder: Path, file: str) -> Iterator[dict]:
    """Only the multiple-choice questions: the others have lists of golds."""
    for answered in read(folder, f"{file}.jsonl.gz"):
        if answered["question_type"] == "multiple-choice":
            yield record(
                answered["id"],
                answered["answer"],
                "choice",
                choices=list(answered["index2ans"].values()),
                response=answered["response"],
                extracted=answered["official_prediction"],
                verdict=answered["official_prediction"] == answered["answer"],
            )


def r1v(folder: Path, file: str) -> Iterator[dict]:
    """Responses in think and answer blocks; the verdict is math-verify's."""
    for answered in read(folder, f"{file}.jsonl.gz"):
        yield record(
            answered["id"],
            answered["answer"],
            answered["answer_type"],
            question=answered["question"],
            response=answered["response"],
            extracted=None,
            verdict=answered["is_correct"],
        )


READERS = {
    "mathvista_responses": mathvista,
    "mathvision_responses": mathvision,
    "mmmu_pro_responses": mmmu_pro,
    "mmmu_val_responses": mmmu_val,
    "r1v": r1v,
}


def official_records(folder: Path) -> dict[str, list[dict]]:
    """All files of responses: name -> records, with `truth` where a verdict is disputed."""
    disputed = {(d["file"], d["id"]): d for d in read(folder, "disputed.jsonl")}
    files = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        readers = [reader for prefix, reader in READERS.items() if name.startswith(prefix)]
        if not readers:
            continue
        files[name] = list(readers[0](folder, name))
        for example in files[name]:
            if (name, example["id"]) in disputed:
                example["disputed"] = True
                example["truth"] = disputed[name, example["id"]]["truth"]
    return files


# --- The table -----------------------------------------------------------------------------------


def agreement(records: list[dict], form: str) -> Counter:
    """How often our verdict is the official one. `form`: "raw" or "extracted".

    Of raw MathVista only the `literal` records are compared; a false positive counts everywhere.
    """
    count = Counter()
    for example in records:
        if example[FORMS[form]] is None:
            continue
        right = grade(example, response_in(example, form)).score == 1.0

        if example.get("disputed"):
            count["disputed"] += 1
            count["disputed, as the truth"] += right == bool(example["truth"])
            continue
        if example["verdict"] is None:
            continue

        false_positive = right and not example["verdict"]
        if form == "raw" and not example.get("literal", True):
            count["false positive, not compared"] += false_positive
            continue
        count["compared"] += 1
        count["agree"] += right == example["verdict"]
        count["false positive"] += false_positive
    return count


def response_in(example: dict, form: str) -> str:
    """What is graded: the response, or the official extraction in answer tags."""
    if form == "raw":
        return example["response"]
    return f"<answer>{example['extracted']}</answer>"


def table(files: dict[str, list[dict]]) -> str:
    """Markdown, a row a file and form."""
    columns = ["file", "form", "compared", "agree", "false positive (in records not compared)",
               "disputed, as the truth"]
    rows = [columns, ["---"] * len(columns)]
    for name, records in files.items():
        for form in FORMS:
            count = agreement(records, form)
            if count["compared"]:
                rows.append(table_row(name, form, count))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def table_row(name: str, form: str, count: Counter) -> list[str]:
    agree = 100 * count["agree"] / count["compared"]
    return [
        name,
        form,
        f"{count['compared']:,}",
        f"{agree:.2f} %",
        f"{count['false positive']} ({count['false positive, not compared']})",
        f"{count['disputed, as the truth']} of {count['disputed']}",
    ]


def write_jsonl(files: dict[str, list[dict]], folder: Path) -> None:
    """The raw responses in the form that `python -m rewards` reads, a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        lines = [json.dumps(example, ensure_ascii=False) for example in records]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--out", type=Path, default=None, help="folder for the JSONL files; None: only the table"
    )
    args = parser.parse_args()
    if not os.environ.get("SPECS_REAL_DATA"):
        print("SPECS_REAL_DATA is not set: nothing to grade")
        return

    MATH_VERIFY.start()
    files = official_records(Path(os.environ["SPECS_REAL_DATA"]))
    if args.out is not None:
        write_jsonl(files, args.out)
    print(table(files))


if __name__ == "__main__":
    main()
