"""Examples of a table: a folder, a file or a hub data set, opened by the `datasets` library.

    open_table       a split as a `datasets.Dataset`, nothing decoded yet
      -> read_record   one of its records, images decoded
      -> to_example    the record as an example: optional columns filled in, unusable ones refused

A data set with other column names needs a script that writes these columns, or a function like
`to_example`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from model.prompts import THINK_INSTRUCTION
from model.records import ExampleError

ANSWER_TYPES = ("number", "choice", "math", "text")
MAX_CHOICES = 10  # options have the letters A to J; `rewards` reads no others
FILE_TYPES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


@dataclass(frozen=True)
class TableExamples(Sequence):
    """A table as a sequence of examples, each read when it is asked for.

    Trap: as a list, 47,000 examples would hold 47,000 decoded images in memory
    (test_examples_are_read_when_asked_for).
    """

    table: datasets.Dataset
    source: str
    instruction: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        record = read_record(self.table, index, f"--data {self.source}")
        return to_example(record, index, self.instruction, self.source)


def table_examples(
    source: str, split: str, count: int | None, instruction: str | None
) -> TableExamples:
    """The first `count` examples of a table (None: all). See `sources.load_examples`."""
    table = open_table(source, split)
    if count is not None:
        table = table.select(range(min(count, len(table))))
    if instruction is None:
        instruction = THINK_INSTRUCTION
    return TableExamples(table, source, instruction)


def open_table(source: str, split: str, flag: str = "--data") -> datasets.Dataset:
    """Open a split of a folder, a file or a hub data set. A file has no splits: `split` is ignored.

    Raises ValueError naming `flag` if it cannot be opened.
    """
    path = Path(source)
    try:
        if path.is_file():
            return open_file(path)
        cache = own_cache(path) if path.is_dir() else None
        return datasets.load_dataset(source, split=split, cache_dir=cache)
    except StopIteration as error:  # `datasets` raises this for a jsonl file without a line
        raise ValueError(f"{flag} {source}: holds no examples") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{flag} {source}: cannot be opened: {error}") from error


def open_file(path: Path) -> datasets.Dataset:
    """Open one file by the reader for its type. Raises ValueError for an unknown type."""
    if path.suffix not in FILE_TYPES:
        wanted = ", ".join(FILE_TYPES)
        raise ValueError(f"unknown file type {path.suffix!r}, wanted one of {wanted}")
    return datasets.load_dataset(FILE_TYPES[path.suffix], data_files=str(path), split="train")


def own_cache(folder: Path) -> str:
    """A cache folder for the files that are in this data folder now.

    Trap: where a README names the data files, the cache of `datasets` only knows the last name of
    the folder and its README. Another folder of that name, or the same folder with new files, would
    silently give the old examples (test_folders_of_one_name_are_not_confused).
    """
    files = [file for file in folder.resolve().rglob("*") if file.is_file()]
    versions = sorted((str(file), file.stat().st_mtime_ns) for file in files)
    digest = hashlib.sha256(repr(versions).encode()).hexdigest()
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "local" / digest[:16])


def read_record(table: datasets.Dataset, index: int, where: str) -> dict:
    """A record of a table, its embedded images decoded.

    where: the flag and the source, for the message. Raises ExampleError if an image is broken.
    """
    try:
        return table[index]
    except (OSError, SyntaxError) as error:
        message = f"{where}: example number {index}: image cannot be read: {error}"
        raise ExampleError(message) from error


def to_example(record: dict, index: int, instruction: str, source: str) -> dict:
    """Make a record an example: fill optional columns in, refuse what could not be graded.

    instruction: used where the record has none of its own.
    Raises ExampleError with the example's id.
    """
    example_id = str(record.get("id") or index)
    where = f"--data {source}: example {example_id}"

    answer = "" if record.get("answer") is None else str(record["answer"]).strip()
    if not answer:
        raise ExampleError(f"{where} has no answer")
    if not record.get("question"):
        raise ExampleError(f"{where} has no question")

    choices = record.get("choices") or []
    if len(choices) > MAX_CHOICES:
        raise ExampleError(f"{where} has more than {MAX_CHOICES} choices")

    answer_type = record.get("answer_type") or ("choice" if choices else "math")
    if answer_type not in ANSWER_TYPES:
        raise ExampleError(f"{where} has answer_type {answer_type!r}, wanted {ANSWER_TYPES}")

    images = record.get("images") or []
    if not images and record.get("image") is not None:
        images = [record["image"]]

    return {
        "id": example_id,
        "images": [resolve_path(image, source) for image in images],
        "question": record["question"],
        "instruction": record.get("instruction") or instruction,
        "format": record.get("format") or "think",
        "answer": answer,
        "answer_type": answer_type,
        "choices": choices,
        "kind": record.get("kind") or "",
    }


def resolve_path(image, source: str):
    """An image path relative to the data file (or folder) that names it; PIL images as they are."""
    if not isinstance(image, str) or Path(image).is_absolute():
        return image
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    return str(folder / image)
