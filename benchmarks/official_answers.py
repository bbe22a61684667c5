"""Responses of real models with official verdicts, in this project's form, and the table of figures.

    SPECS_REAL_DATA=FOLDER python benchmarks/official_answers.py                     the table
    SPECS_REAL_DATA=FOLDER python benchmarks/official_answers.py --out FOLDER        and the JSONL files

The folder holds gzipped JSON lines of public benchmark repositories (MathVista, MathVision, MMMU-Pro,
MMMU, R1-V): questions with their gold, and what models answered, with the verdict of the benchmark's own
code. They are neither copied nor shipped. Each record becomes one example in the project's keys, and

    response    what the model wrote ("raw"), or the benchmark's extraction in answer tags ("extracted")
    verdict     the official verdict; None where there is none

Some official verdicts are mistaken. `disputed.jsonl` lists them with the truth: they are kept out of the
agreement, and counted against that truth beside it.
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
from rewards.expression import math_equal  # noqa: E402
from rewards.grading import grade  # noqa: E402
from rewards.number import words_to_digits  # noqa: E402

LETTERS = "ABCDEFGHIJ"


def read(folder: Path, name: str) -> list[dict]:
    """The records of one file, gzipped or not."""
    path = folder / name
    text = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
    with text:
        return [json.loads(line) for line in text]


def record(name: str, answer: str, answer_type: str, *, question: str = "", choices: Sequence[str] = (),
           response: str, extracted: str | None, verdict: bool | None) -> dict:
    """One example with what was answered to it."""
    return {"id": name, "images": [], "question": question, "answer": str(answer), "answer_type": answer_type,
            "choices": [str(choice) for choice in choices], "kind": "", "response": response,
            "extracted": extracted, "verdict": verdict}


# --- One function a benchmark ----------------------------------------------------------------------


def mathvista(folder: Path, file: str) -> Iterator[dict]:
    """The gold of a choice is the option's text. `literal` marks what the agreement counts: the official
    extraction names an option or is a number, and stands in the response letter by letter."""
    questions = {q["pid"]: q for q in read(folder, "mathvista_testmini.jsonl.gz")}
    for answered in read(folder, f"{file}.jsonl.gz"):
        asked = questions[answered["pid"]]
        choices = asked["choices"] or []
        kinds = {"integer": "number", "float": "number", "list": "math", "text": "text"}
        kind = "choice" if choices else kinds[asked["answer_type"]]
        extraction = str(answered["extraction"]).strip()
        example = record(answered["pid"], asked["answer"], kind, question=asked["question"], choices=choices,
                         response=answered["response"], extracted=extraction, verdict=answered["true_false"])
        yield {**example, "literal": is_literal(extraction, answered["response"], choices)}


def is_literal(extraction: str, response: str, choices: list[str]) -> bool:
    """Does the extraction, an option's letter or text or a number, stand in the response, in words or digits?"""
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
        yield record(answered["id"], asked["answer"], "choice" if asked["options"] else "math",
                     question=asked["question"], choices=asked["options"], response=answered["response"],
                     extracted=answered["model_answer"], verdict=answered["correct"])


def mmmu_pro(folder: Path, file: str) -> Iterator[dict]:
    """Up to ten options. Where no letter was found, the official prediction is a random draw."""
    for answered in read(folder, f"{file}.jsonl.gz"):
        yield record(answered["id"], answered["answer"], "choice", question=answered["question"],
                     choices=ast.literal_eval(answered["options"]), response=answered["response"],
                     extracted=str(answered["pred_indexs"]), verdict=answered["if_right"])


def mmmu_val(folder: Path, file: str) -> Iterator[dict]:
    """Only the multiple-choice questions: the others have lists of golds."""
    for answered in read(folder, f"{file}.jsonl.gz"):
        if answered["question_type"] == "multiple-choice":
            yield record(answered["id"], answered["answer"], "choice",
                         choices=list(answered["index2ans"].values()), response=answered["response"],
                         extracted=answered["official_prediction"],
                         verdict=answered["official_prediction"] == answered["answer"])


def r1v(folder: Path, file: str) -> Iterator[dict]:
    """Responses in think and answer blocks; the verdict is math-verify's."""
    for answered in read(folder, f"{file}.jsonl.gz"):
        yield record(answered["id"], answered["answer"], answered["answer_type"], question=answered["question"],
                     response=answered["response"], extracted=None, verdict=answered["is_correct"])


READERS = {"mathvista_responses": mathvista, "mathvision_responses": mathvision, "mmmu_pro_responses": mmmu_pro,
           "mmmu_val_responses": mmmu_val, "r1v": r1v}


def official_records(folder: Path) -> dict[str, list[dict]]:
    """All files of the folder that hold responses: name -> records, with `truth` where a verdict is disputed."""
    disputed = {(d["file"], d["id"]): d for d in read(folder, "disputed.jsonl")}
    files = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        reader = next((reader for prefix, reader in READERS.items() if name.startswith(prefix)), None)
        if reader is None:
            continue
        files[name] = list(reader(folder, name))
        for example in files[name]:
            if (name, example["id"]) in disputed:
                example["disputed"] = True
                example["truth"] = disputed[name, example["id"]]["truth"]
    return files


# --- The table -------------------------------------------------------------------------------------


def agreement(records: list[dict], form: str) -> Counter:
    """How often our verdict is the official one. `form`: "raw" or "extracted" (in answer tags).

    Of raw MathVista only the `literal` records are compared; a false right counts wherever it is."""
    count = Counter()
    for example in records:
        response = example["response"] if form == "raw" else f"<answer>{example['extracted']}</answer>"
        if form == "extracted" and example["extracted"] is None:
            continue
        right = grade(example, response).score == 1.0
        if example.get("disputed"):
            count["disputed"] += 1
            count["disputed, as the truth"] += right == bool(example["truth"])
        elif example["verdict"] is not None and (form == "extracted" or example.get("literal", True)):
            count["compared"] += 1
            count["agree"] += right == example["verdict"]
            count["false right"] += right and not example["verdict"]
        elif example["verdict"] is not None:
            count["false right, not literal"] += right and not example["verdict"]
    return count


def table(files: dict[str, list[dict]]) -> str:
    """Markdown, a row a file and form."""
    lines = ["| file | form | compared | agree | false right (in records not compared) | disputed, as the truth |",
             "|---|---|---|---|---|---|"]
    for name, records in files.items():
        for form in ("raw", "extracted"):
            count = agreement(records, form)
            if not count["compared"]:
                continue
            lines.append(
                f"| {name} | {form} | {count['compared']:,} | {100 * count['agree'] / count['compared']:.2f} % "
                f"| {count['false right']} ({count['false right, not literal']}) "
                f"| {count['disputed, as the truth']} of {count['disputed']} |")
    return "\n".join(lines)


def write_jsonl(files: dict[str, list[dict]], folder: Path) -> None:
    """The raw responses in the form that `python -m rewards` reads, a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        lines = [json.dumps(example, ensure_ascii=False) for example in records]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=None, help="folder for the JSONL files; None: only the table")
    args = parser.parse_args()
    if not os.environ.get("SPECS_REAL_DATA"):
        print("SPECS_REAL_DATA is not set: nothing to grade")
        return

    math_equal.start()
    files = official_records(Path(os.environ["SPECS_REAL_DATA"]))
    if args.out is not None:
        write_jsonl(files, args.out)
    print(table(files))


if __name__ == "__main__":
    main()
