"""What a benchmark is, and how one is opened.

    row of the public data set   ->  example    `Benchmark.read`
    example, response            ->  extraction `Benchmark.extract`
    example, extraction          ->  verdict    `Benchmark.compare`

An example has the keys of `sources/__init__.py`, and

    benchmark       str    its benchmark
    hint            str    how its authors ask for the answer, used with `--instruction official`
    categories      dict   heading -> the example's categories under it, for the tables
    rule            dict   what else `compare` needs: precision, question type, ...
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets

from model.prompts import THINK_INSTRUCTION
from model.records import ExampleError
from rewards import Grade, Judge
from rewards.boxes import boxes
from rewards.views import last_block
from sources.columns import resolve_path
from sources.tables import FILE_TYPES, open_table, read_record

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OFFICIAL = "official"  # the value of --instruction that stands for the authors' own words

Compared = tuple[float | None, str]  # 1 right, 0 wrong, None no verdict; and how it was decided


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, as a record of functions.

    hub, config, split    where its data set is on the hub
    read                  a row of it -> an example; images may be missing (a file of golds)
    extract               what a response gives as its answer, None for nothing
    compare               the authors' rule on such an answer
    id_key                the column that names a question
    extraction_key        in the authors' files of responses: what they took for the answer, ...
    verdict               ... and what they decided, from a record of such a file (None: nothing)
    asks_judge            whether `compare` may ask one
    """

    name: str
    hub: str
    config: str | None
    split: str
    read: Callable[[dict], dict]
    extract: Callable[[dict, str], str | None]
    compare: Callable[[dict, str, Judge | None], Compared]
    id_key: str = "id"
    extraction_key: str = "extraction"
    verdict: Callable[[dict], bool | None] = lambda record: None
    asks_judge: bool = False


# --- Grading -------------------------------------------------------------------------------------


def grade_response(benchmark: Benchmark, example: dict, response: str, judge: Judge | None = None
                   ) -> Grade:
    """Extract, then compare. A response without an answer is wrong."""
    extraction = benchmark.extract(example, response)
    if extraction is None or not extraction.strip():
        return Grade(0.0, f"{benchmark.name}: no answer found")
    return grade_extraction(benchmark, example, extraction, judge)


def grade_extraction(benchmark: Benchmark, example: dict, extraction: str,
                     judge: Judge | None = None) -> Grade:
    """Compare an answer that is already extracted."""
    score, how = benchmark.compare(example, extraction, judge)
    return Grade(score, f"{benchmark.name}: {how}", extraction)


def answer_part(response: str) -> str:
    r"""The last <answer> block, out of its \boxed if it has one; without a block the response.

    For rules that know no such tags: `<answer> \boxed{B} </answer>` would name no letter.
    """
    block = last_block(response)
    if block is None:
        return response
    boxed = boxes(block)
    return boxed[-1] if boxed else block


# --- Reading rows --------------------------------------------------------------------------------


def make_example(benchmark: str, name, question: str, answer, *, answer_type: str,
                 categories: dict[str, list], rule: dict, hint: str = "", images=(), choices=()
                 ) -> dict:
    """An example of a benchmark. Raises ExampleError without an answer."""
    if answer is None or str(answer) == "":
        raise ExampleError(f"--benchmark {benchmark}: example {name} has no answer")
    headings = {heading: [str(c) for c in found if c] for heading, found in categories.items()}
    first = next(iter(headings.values()), [])
    return {
        "id": str(name),
        "images": list(images),
        "question": question,
        "instruction": "",
        "format": "think",
        "answer": str(answer),
        "answer_type": answer_type,
        "choices": [str(choice) for choice in choices],
        "kind": first[0] if first else "",
        "benchmark": benchmark,
        "hint": hint,
        "categories": headings,
        "rule": rule,
    }


def read_list(value) -> list:
    """A list that a data set may hold as text: "['6', '7']". Raises ExampleError for other text."""
    if value is None:
        return []
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)  # literals only, it runs nothing
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise ExampleError(f"a list is written as {value[:80]!r}") from error
    if not isinstance(value, (list, tuple)):
        raise ExampleError(f"wanted a list, found {value!r}")
    return list(value)


def lettered(options: list[str], form: str = "({letter}) {option}") -> str:
    """The options, a line each."""
    lines = [form.format(letter=letter, option=option) for letter, option in zip(LETTERS, options)]
    return "\n".join(lines)


# --- Opening -------------------------------------------------------------------------------------


def open_benchmark(benchmark: Benchmark, folder: str, count: int | None, instruction: str | None,
                   warn) -> list[dict]:
    """The first `count` examples of a benchmark, None for all; `warn` gets those it cannot read.

    folder        a local copy of its data set, or one of its files; "" for the hub
    instruction   after each question; None for the think format, "official" for the authors' hint
    """
    table = open_local(benchmark, folder) if folder else open_hub(benchmark)
    examples = []
    for index in range(len(table) if count is None else min(count, len(table))):
        try:
            example = benchmark.read(read_record(table, index))
        except ExampleError as error:
            warn(f"skipped: --benchmark {benchmark.name}: row {index}: {error}")
            continue
        if instruction == OFFICIAL:
            example["instruction"] = example["hint"]
        else:
            example["instruction"] = THINK_INSTRUCTION if instruction is None else instruction
        example["images"] = [resolve_path(image, folder) for image in example["images"]]
        examples.append(example)
    if not examples:
        raise ValueError(f"--benchmark {benchmark.name}: no example can be used")
    return examples


def open_hub(benchmark: Benchmark) -> datasets.Dataset:
    """The data set on the hub. Raises ValueError naming the flags."""
    try:
        return datasets.load_dataset(benchmark.hub, benchmark.config, split=benchmark.split)
    except Exception as error:  # no network, a new layout, a gated data set: the library has many
        raise ValueError(
            f"--benchmark {benchmark.name}: {benchmark.hub} cannot be opened ({error}); "
            "--benchmark_dir takes a local copy"
        ) from error


def open_local(benchmark: Benchmark, folder: str) -> datasets.Dataset:
    """A file, or the files of a folder whose path names the config and the split.

    The folder is a copy of the one on the hub: a file of it is found by its name, without a card.
    """
    if Path(folder).is_file():
        return open_table(folder, benchmark.split, "--benchmark_dir")
    files = [file for file in sorted(Path(folder).rglob("*")) if file.suffix in FILE_TYPES]
    for word in (benchmark.config, benchmark.split):
        named = [file for file in files if word and word in str(file.relative_to(folder))]
        files = named or files
    if not files:
        wanted = ", ".join(FILE_TYPES)
        raise ValueError(f"--benchmark_dir {folder}: no files ({wanted}) in it")
    files = [str(file) for file in files if file.suffix == files[0].suffix]
    reader = FILE_TYPES[Path(files[0]).suffix]
    return datasets.load_dataset(reader, data_files=files, split="train")
