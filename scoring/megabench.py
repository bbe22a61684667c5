"""MEGA-Bench core: 440 tasks, 6,531 questions, 45 metrics. Source: arXiv 2410.10563, its code.

Columns: id, task_name, task_description, global_media, example_text, example_media, query_text,
query_media (lists written as text), answer (field -> gold, written as text), metric_info (field ->
metric, how fields are aggregated, how a response is parsed), eval_context.

    response -> last "Answer:" -> code block -> JSON -> fields      `parse`
    fields   -> a metric each, 0 to 1 -> their weighted mean or least one
    core     =  mean over tasks of the mean over a task's questions

Metrics that `megabench_metrics.py` does not have leave a question unscored, by their name. For the
whole benchmark the authors' tool scores the file that `write_results` writes, and `read_scores`
reads what it says:  python -m scoring megabench-results completions.jsonl results.json
                     python -m scoring megabench-scores data_with_scores.json all_task_meta.json

Assumptions, where nothing public says it: the parts of the prompt stand in the order task, example,
question, and `<image>` in them stands for the media; a question with a video is refused by name.
"""

import json
import re
from collections import defaultdict
from pathlib import Path

from model.records import ExampleError
from scoring.benchmark import Benchmark, answer_part, make_example, read_list
from scoring.megabench_metrics import METRICS, read_literal

HINT = 'Write the final part of your response as "Answer: <YOUR ANSWER>".'
VIDEOS = (".mp4", ".mov", ".avi", ".webm", ".mkv")


def read(row: dict) -> dict:
    """A row of TIGER-Lab/MEGA-Bench, config core."""
    media = [str(path) for column in ("global_media", "example_media", "query_media")
             for path in read_list(row.get(column) or [])]
    videos = [path for path in media if path.lower().endswith(VIDEOS)]
    if videos:
        raise ExampleError(f"example {row['id']}: {videos[0]} is a video")

    parts = [row.get(column) or "" for column in ("task_description", "example_text", "query_text")]
    question = "\n\n".join(part for part in parts if part)
    if question.count("<image>") != len(media):
        question = question.replace("<image>", "[image]")
    golds = read_fields(row.get("answer"), f"example {row['id']}: answer")
    return make_example(
        "megabench", row["id"], question, row.get("answer"), hint=HINT, images=media,
        answer_type="text", categories={"task": [row["task_name"]]},
        rule={
            "golds": golds,
            "metrics": read_fields(row.get("metric_info"), f"example {row['id']}: metric_info"),
            "row": {key: row.get(key) for key in ROW_KEYS},
        },
    )


ROW_KEYS = ("task_name", "task_description", "global_media", "example_text", "example_media",
            "query_text", "query_media")


def read_fields(value, where: str) -> dict:
    """A dictionary that is written as text."""
    found = read_literal(value)
    if not isinstance(found, dict):
        raise ExampleError(f"{where} is no dictionary: {str(value)[:80]!r}")
    return found


# --- Extraction and rule -------------------------------------------------------------------------


def extract(example: dict, response: str) -> str | None:
    """What stands behind the last "Answer:", out of its code block; without one, everything."""
    text = answer_part(response)
    if "Answer:" in text:
        text = text.rpartition("Answer:")[2].strip("* \n")
    block = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    return (block[-1] if block else text).strip()


def compare(example: dict, extraction: str, judge=None) -> tuple[float | None, str]:
    """The metric of each field, and their aggregate."""
    golds, info = example["rule"]["golds"], example["rule"]["metrics"]
    names = info["field_score_function"]
    unknown = {str(names.get(field)) for field in golds} | set(
        (info.get("global_aux_metrics") or {}).values())
    unknown -= set(METRICS)
    if unknown:
        return None, f"unscored, {' '.join(sorted(unknown))}"

    answers = parse(extraction, list(golds))
    scores = {field: METRICS[names[field]](answers.get(field, ""), gold)
              for field, gold in golds.items()}
    return aggregate(scores, info.get("aggregation") or {}), "rule, " + " ".join(
        sorted({names[field] for field in golds}))


def parse(extraction: str, fields: list[str]) -> dict:
    """Field -> answer: of one field the text, of several the last JSON object in it.

    Without a JSON object the whole text stands for each field, as the authors have it.
    """
    if len(fields) == 1:
        found = read_literal(extraction)
        if isinstance(found, dict) and fields[0] in found:
            return {fields[0]: found[fields[0]]}
        return {fields[0]: found if isinstance(found, (dict, list)) else extraction.strip("\"'")}
    for text in [extraction, *re.findall(r"\{.*\}", extraction, re.DOTALL)]:
        found = read_literal(text)
        if isinstance(found, dict):
            return found
    return {field: extraction for field in fields}


def aggregate(scores: dict[str, float], how: dict) -> float:
    """`min`, or the mean with the weights that are given."""
    if how.get("function") == "min":
        return min(scores.values())
    weights = {field: (how.get("field_weights") or {}).get(field, 1) for field in scores}
    total = sum(weights.values())
    return sum(scores[field] * weights[field] for field in scores) / total if total else 0.0


BENCHMARK = Benchmark(
    "megabench", "TIGER-Lab/MEGA-Bench", "core", "test", read, extract, compare,
)


# --- The authors' tool ---------------------------------------------------------------------------


def write_results(records: list[dict], file: Path) -> None:
    """The responses in the layout that the authors' tool scores, from records of evaluate.py."""
    tasks: dict[str, dict] = {}
    for record in records:
        row = record["rule"]["row"]
        task = tasks.setdefault(row["task_name"], {
            "task_name": row["task_name"],
            "global_description": row["task_description"] or "",
            "global_images": read_list(row["global_media"] or []),
            "example_info": {"image_paths": read_list(row["example_media"] or []),
                             "example_text": row["example_text"] or ""},
            "query_response": [],
        })
        task["query_response"].append({
            "response": record["response"],
            "correct_answer": record["rule"]["golds"],
            "global_idx": record["id"],
            "task_idx": len(task["query_response"]),
            "query_idx": len(task["query_response"]),  # of the question in its task
            "images": read_list(row["query_media"] or []),
            "query_text": row["query_text"] or "",
        })
    file.write_text(json.dumps(list(tasks.values()), indent=2, ensure_ascii=False) + "\n")


def read_scores(scored: dict, meta: dict | None = None) -> dict[str, dict[str, float]]:
    """Heading -> category -> macro mean over tasks, from the tool's data_with_scores.json.

    meta   its all_task_meta.json: the application (`app`) and skills of each task; None without
    """
    members: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for task in scored["data"]:
        score = task.get("mean_task_score", -1)
        if score < 0:  # the tool's word for "not scored"
            continue
        members["all"]["core" if task.get("eval_type") != "llm" else "open"].append(score)
        about = (meta or {}).get(task["task_name"], {})
        if about.get("app"):
            members["application"][about["app"]].append(score)
        for skill in about.get("skills") or []:
            members["skill"][skill].append(score)
    return {
        heading: {name: sum(scores) / len(scores) for name, scores in sorted(categories.items())}
        for heading, categories in members.items()
    }
