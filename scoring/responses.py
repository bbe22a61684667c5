"""The files of an evaluation: its responses, and the report on them.

    response_record   a graded response, with all that its grade depends on
    ask_judge_about   what the grades of many responses need of a judge
    append_records    such records of all ranks into completions.jsonl, one per line
    read_records      the file, by model
    rescore           the table of such a file, graded again by today's rules
    save_images       the images of the first questions, to look at beside their responses
    write_report      report.json, report.png and the table
    say_judge_counts  what the judge was asked
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from harness.plots import plot_report
from harness.ranks import gather_objects
from harness.run import Run, append_jsonl, read_jsonl
from harness.tables import format_table
from model.images import load_image
from model.records import SampledGroup
from rewards import Grade, Judge
from rewards.judge import take_counts
from scoring import ask_judge, grade_example
from sources.toy import is_in_asked_format

OF_A_BENCHMARK = ("benchmark", "hint", "categories", "rule")  # see `scoring/benchmark.py`
NUM_WITH_IMAGES = 24  # questions
SILENT_JUDGE = SimpleNamespace(yes=lambda question: None)  # is there, and never answers


def response_record(example: dict, response: str, verdict: Grade) -> dict:
    """A response with its grade, and all that the grade depends on."""
    return {
        "question_id": example["id"],
        "kind": example["kind"],
        "question": example["question"],
        "instruction": example["instruction"],
        "format": example["format"],
        "gold": example["answer"],
        "answer_type": example["answer_type"],
        "choices": example["choices"],
        "response": response,
        **asdict(verdict),
        "in_format": is_in_asked_format(example, response),
        **{key: example[key] for key in OF_A_BENCHMARK if key in example},
    }


def ask_judge_about(groups: list[SampledGroup], responses: list[list[str]],
                    judge: Judge | None) -> None:
    """Ask the judge, at once, about all responses to some questions; without a judge: nothing."""
    questions = []  # (example, response)
    for group, texts in zip(groups, responses):
        questions += [(group.prompt.example, text) for text in texts]
    ask_judge(questions, judge)


def append_records(file: Path, records: list[dict], run: Run) -> None:
    """Append the records of every rank, in the order of the ranks, from the main process."""
    for records_of_rank in gather_objects(records, run.accelerator):
        if run.writes:
            append_jsonl(file, records_of_rank)


def read_records(file: str | Path) -> dict[str, list[dict]]:
    """The records of a completions.jsonl by model. ValueError naming --rescore if there is none."""
    if Path(file).is_dir():
        file = Path(file) / "completions.jsonl"
    if not Path(file).is_file():
        raise ValueError(f"--rescore {file}: no such file")
    by_model = defaultdict(list)

    def say_cut(left: int) -> None:
        print(f"{file}: the last line is cut off; {left} responses are left")

    for record in read_jsonl(Path(file), when_cut=say_cut):
        if "model" not in record:
            raise ValueError(f"--rescore {file}: wanted the completions.jsonl of an evaluation")
        record.setdefault("question_id", record.get("id"))  # files of earlier versions
        by_model[record["model"]].append(record)
    return by_model


def save_images(examples: list[dict], run: Run) -> None:
    """Write images/ID_NUMBER.png, of the first NUM_WITH_IMAGES questions."""
    if not run.writes:
        return
    folder = run.folder / "images"
    folder.mkdir(exist_ok=True)
    for example in examples[:NUM_WITH_IMAGES]:
        name = example["id"].replace("/", "_")
        for i, image in enumerate(example["images"]):
            load_image(image, example["id"]).save(folder / f"{name}_{i}.png")


def rescore(file: str, judge: Judge | None, summarize: Callable[[list[dict]], dict]) -> str:
    """The table of a completions.jsonl, every response graded again from its record only.

    summarize   records of a model -> its report

    Nothing is written but what a judge answers, to --judge_cache.
    """
    by_model = read_records(file)
    kept = sum(regrade(records, judge) for records in by_model.values())
    if kept:
        print(f"{kept} answers need a judge (--judge_url) and keep the score that is stored")
    return format_table({name: summarize(records) for name, records in by_model.items()})


def regrade(records: list[dict], judge: Judge | None) -> int:
    """Grade every record again, in place, from what it holds.

    An answer keeps its stored score where it needs a judge and none answers: a `text` answer, and
    of a benchmark one that a judge has decided. Returns how many do.
    """
    examples = [{**record, "id": record["question_id"], "answer": record["gold"]}
                for record in records]
    ask_judge([(example, example["response"]) for example in examples], judge)

    kept = 0
    for record, example in zip(records, examples):
        by_judge = "judge" in record["reason"] if record.get("benchmark") else True
        silent = SILENT_JUDGE if by_judge else None
        verdict = grade_example(example, record["response"], judge or silent)
        needs_judge = record["answer_type"] == "text" or record.get("benchmark")
        if verdict.score is None and needs_judge:
            kept += 1
            verdict = Grade(record["score"], record["reason"], record["extracted"])
        record.update(response_record(example, record["response"], verdict))
    return kept


def write_report(reports: dict[str, dict], curves: dict[str, list[dict]], run: Run) -> None:
    """Write report.json and report.png, and print the table. See `tables.format_table`."""
    report = json.dumps({"models": reports, "gf": curves}, indent=2)
    (run.folder / "report.json").write_text(report + "\n")
    plot_report(reports, curves, run.folder / "report.png")

    print(format_table(reports, curves))
    print(f"wrote {run.folder}/report.json, completions.jsonl, report.png")


def say_judge_counts(judge: Judge | None, run: Run) -> None:
    """How often the judge was asked, over all ranks."""
    if judge is None:
        return
    counts = Counter()
    for counts_of_rank in gather_objects(take_counts(judge), run.accelerator):
        counts.update(counts_of_rank)
    run.say(f"the judge, calls of all ranks: {dict(counts)}")
