"""The embedded world in the form of a benchmark: to try a run, and the shortest example of a file.

Its rule: the text of the <answer> block, else the last word, equals the gold.
"""

from rewards.views import last_block
from scoring.benchmark import Benchmark, make_example
from sources import EVALUATED
from sources.toy import toy_examples


def read(row: dict) -> dict:
    """An example of `sources/toy.py`."""
    return make_example(
        "toy", row["id"], row["question"], row.get("answer"), images=row.get("images") or [],
        answer_type="text", categories={"kind": [row.get("kind")]}, rule={},
    )


def open_world(count: int | None, seed: int) -> list[dict]:
    """Held-out examples, each with the instruction of the world."""
    rows = toy_examples(count or EVALUATED, seed, held_out=True)
    return [{**read(row), "instruction": row["instruction"], "format": row["format"]}
            for row in rows]


def extract(example: dict, response: str) -> str | None:
    block = last_block(response)
    words = response.rstrip(" .").split()
    return block if block is not None else (words[-1] if words else None)


def compare(example: dict, extraction: str, judge=None) -> tuple[float, str]:
    return float(extraction.strip(" .") == example["answer"]), "rule, equal text"


BENCHMARK = Benchmark("toy", "", None, "test", read, extract, compare)
