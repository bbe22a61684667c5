"""Responses made elsewhere, scored by a benchmark's rule: `evaluate.py --score FILE`.

FILE is JSON lines, gzipped or not, of `id` and `response`; or JSON, a list of such records or a
dictionary from ids to them. The authors' own files are read as they are: their name of the id,
their extraction (--extraction official scores it), and their verdict, with which ours is compared.

The questions with their golds come from --gold, a file of rows of the benchmark's data set; else
from FILE where its records have an `answer`; else from --benchmark_dir or the hub. A response that
has no question is an error that names it. Several responses may have one id.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from harness.run import append_jsonl
from harness.tables import macro_line, rate_line
from model.records import ExampleError
from rewards import Judge
from rewards.judge import QUESTIONS_AT_A_TIME, ask_ahead
from scoring import category_rates, find_benchmark
from scoring.benchmark import Benchmark, grade_extraction, grade_response, open_benchmark

SHOWN = 40  # disagreements that are printed


def score_responses(cfg, judge: Judge | None, accuracy: Callable[[list[dict]], dict]) -> None:
    """Score the responses of --score FILE by --benchmark, write the records, print the table.

    accuracy   records -> the share of right ones, with its interval
    """
    records = score_file(find_benchmark(cfg.benchmark), cfg, judge)
    report = {"overall": {"all": accuracy(records)}, **category_rates(records, accuracy)}
    write_scores(records, report, cfg)


def score_file(benchmark: Benchmark, cfg, judge: Judge | None) -> list[dict]:
    """One record per response: what was asked, the gold, the extraction, the rule, the score.

    cfg   the settings of evaluate.py: score, gold, extraction, benchmark_dir
    """
    responses = read_rows(cfg.score, "--score")
    examples = read_examples(benchmark, cfg, responses)
    asked = []  # the example of each response
    for number, row in enumerate(responses, 1):
        name = id_of(row, benchmark, f"--score {cfg.score}: record {number}")
        if name not in examples:
            raise ValueError(f"--score {cfg.score}: record {number}: no question has the id {name}")
        asked.append(examples[name])

    def score_all(judge) -> list[dict]:
        return [score_row(benchmark, e, row, cfg, judge) for e, row in zip(asked, responses)]

    if benchmark.asks_judge:
        ask_ahead(judge, score_all, at_a_time=QUESTIONS_AT_A_TIME)
    return score_all(judge)


def score_row(benchmark: Benchmark, example: dict, row: dict, cfg, judge: Judge | None) -> dict:
    """The record of one response."""
    response = row.get("response")
    response = response if isinstance(response, str) else ""  # an engine that failed left none
    if cfg.extraction == "official":
        if benchmark.extraction_key not in row:
            raise ValueError(
                f"--extraction official: {example['id']} has no {benchmark.extraction_key!r}"
            )
        given = row[benchmark.extraction_key]
        grade = grade_extraction(benchmark, example, "" if given is None else str(given), judge)
    else:
        grade = grade_response(benchmark, example, response, judge)
    return {
        "id": example["id"],
        "prompt": example["question"],
        "response": response,
        "extracted": grade.extracted,
        "gold": example["answer"],
        "rule": grade.reason,
        "score": grade.score,
        "verdict": benchmark.verdict(row),
        "categories": example["categories"],
    }


# --- Reading -------------------------------------------------------------------------------------


def read_rows(file: str, flag: str) -> list[dict]:
    """The records of a file. Raises ValueError naming the flag, and the line."""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{flag} {file}: no such file")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as stream:
        text = stream.read()

    if path.name.removesuffix(".gz").endswith(".json"):
        found = json.loads(text)
        rows = [{"id": name, **row} for name, row in found.items()] if isinstance(
            found, dict) else found
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                rows.append(read_line(line, f"{flag} {file}: line {number}"))
    if not rows:
        raise ValueError(f"{flag} {file}: holds no records")
    return rows


def read_line(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: {type(row).__name__}, wanted an object")
    return row


def id_of(row: dict, benchmark: Benchmark, where: str) -> str:
    """By the benchmark's name of it, or `id`."""
    for key in (benchmark.id_key, "id"):
        if row.get(key) is not None:
            return str(row[key])
    raise ValueError(f"{where}: no {benchmark.id_key!r} and no 'id'")


def read_examples(benchmark: Benchmark, cfg, responses: list[dict]) -> dict[str, dict]:
    """Id -> example, from the first place that has golds (see the top of this file)."""
    if cfg.gold:
        rows, source = read_rows(cfg.gold, "--gold"), f"--gold {cfg.gold}"
    elif "answer" in responses[0]:
        rows, source = responses, f"--score {cfg.score}"
    else:
        found = open_benchmark(benchmark, cfg.benchmark_dir, None, "", print)
        return {example["id"]: example for example in found}

    examples = {}
    for number, row in enumerate(rows, 1):
        where = f"{source}: record {number}"
        try:
            examples[id_of(row, benchmark, where)] = benchmark.read(
                {**row, benchmark.id_key: id_of(row, benchmark, where)})
        except (ExampleError, KeyError, TypeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: no row of {benchmark.name}: {what}") from error
    return examples


# --- Against the official verdicts ---------------------------------------------------------------


def agreement_lines(records: list[dict]) -> list[str]:
    """How often our verdict is the official one; the others by id."""
    compared = [r for r in records if r["verdict"] is not None and r["score"] is not None]
    if not compared:
        return []
    others = [r for r in compared if bool(r["verdict"]) != (r["score"] == 1.0)]
    share = 100 * (1 - len(others) / len(compared))
    lines = [f"agree with the official verdict: {share:.2f} % of {len(compared)}"]
    kinds = Counter("ours right" if r["score"] == 1.0 else "ours wrong" for r in others)
    if others:
        lines.append("  disagree: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    for r in others[:SHOWN]:
        lines.append(f"  {r['id']}: extracted {r['extracted']!r}, gold {r['gold']!r}, {r['rule']}")
    if len(others) > SHOWN:
        rest = " ".join(r["id"] for r in others[SHOWN:])
        lines.append(f"  and {rest}")
    return lines


# --- The report ----------------------------------------------------------------------------------


def write_scores(records: list[dict], report: dict[str, dict[str, dict]], cfg) -> None:
    """Print the rates by category and the agreement; with --run_dir also write them there.

    report   heading -> category -> rate
    """
    print(f"{cfg.benchmark}: {len(records)} responses of {cfg.score}")
    for heading, rates in report.items():
        print(f"\nby {heading}" if heading != "overall" else "")
        print("\n".join(rate_line(category, rate) for category, rate in rates.items()))
        if len(rates) > 1:
            print(macro_line(rates))
    print("\n".join(["", *how_lines(records), *agreement_lines(records)]))

    if cfg.run_dir:
        folder = Path(cfg.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scored.jsonl").unlink(missing_ok=True)
        append_jsonl(folder / "scored.jsonl", records)
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        print(f"wrote {folder}/scored.jsonl, report.json")


def how_lines(records: list[dict]) -> list[str]:
    """Which rule decided how many responses: "rule, letter", "judge", "no answer found"."""
    rules = Counter(re.split(r"[ ,]*['\"]", r["rule"].split(": ", 1)[1])[0] for r in records)
    return ["decided by: " + ", ".join(f"{rule} {count}" for rule, count in rules.most_common(8))]
