"""Examples of a table: a folder, a file or a hub data set, opened by the `datasets` library.

The arrows show the order of the calls:

    open_table       a split as a `datasets.Dataset`, no image decoded yet
      -> read_record   one of its records, images still encoded
      -> to_example    the record as an example: optional columns filled in, unusable ones refused

A data set with other column names needs a script that writes the columns of `sources/__init__.py`,
or another function in the place of `to_example`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from model.prompts import THINK_INSTRUCTION
from model.records import ExampleError

ANSWER_TYPES = ("number", "choice", "math", "text", "boxes")
MAX_CHOICES = 10  # choices have the letters A to J; `rewards` reads no others
FILE_TYPES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


@dataclass(frozen=True)
class TableExamples(Sequence):
    """A table as a sequence of examples. An example is read from the file when it is asked for.

    Trap: a list of 47,000 examples would hold 47,000 images in memory
    (test_examples_are_read_when_asked_for).
    """

    table: datasets.Dataset
    source: str
    instruction: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        record = read_record(self.table, index)
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
    """Open a split of a folder, a file or a hub data set.

    source   folder, file, or name on the hub
    split    ignored for a file, which has no splits
    flag     the flag that named the source, for the message

    Raises ValueError naming `flag` if it cannot be opened.
    """
    path = Path(source)
    try:
        if path.is_file():
            return open_file(path)
        cache = cache_for(path) if path.is_dir() else None
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


def cache_for(folder: Path) -> str:
    """A cache folder for exactly the files that are in this data folder now.

    Trap: if a README lists the data files, `datasets` keys its cache by the folder's base name and
    the README, not by content: another folder with this name, or the same folder with new files,
    would silently give the old examples (test_folders_of_one_name_are_not_confused).
    """
    files = [file for file in folder.resolve().rglob("*") if file.is_file()]
    versions = sorted((str(file), file.stat().st_mtime_ns) for file in files)
    digest = hashlib.sha256(repr(versions).encode()).hexdigest()
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "local" / digest[:16])


def read_record(table: datasets.Dataset, index: int) -> dict:
    """A record of a table, its embedded images as encoded files (see `model/images.py`).

    Trap: by default `datasets` decodes them, whatever their size, and a broken or gigantic one ends
    the run (test_broken_image_inside_a_table_is_skipped).
    """
    record = table.with_format("arrow")[index].to_pylist()[0]  # nothing decoded
    return encoded_images(table.features).decode_example(record)


def encoded_images(feature):
    """The same features, images left as encoded files."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(encoded_images(feature.feature))
    if isinstance(feature, dict):
        inner = {name: encoded_images(part) for name, part in feature.items()}
        return datasets.Features(inner) if isinstance(feature, datasets.Features) else inner
    return feature


def to_example(record: dict, index: int, instruction: str, source: str) -> dict:
    """Turn a record into an example, with its optional columns filled in.

    record        see `sources/__init__.py` for its columns
    index         number of the record, its id if it has none
    instruction   used if the record has no instruction
    source        the value of --data, for messages and relative image paths

    Raises ExampleError with the example's id if the record could not be graded.
    """
    example_id = str(record.get("id") or index)
    where = f"--data {source}: example {example_id}"

    answer = "" if record.get("answer") is None else str(record["answer"]).strip()
    if not answer:
        raise ExampleError(f"{where} has no answer")
    if not record.get("question"):
        raise ExampleError(f"{where} has no question")
    wanted = {"question": str, "instruction": str, "format": str, "kind": str, "choices": list,
              "images": list}
    for column, kind in wanted.items():
        if not isinstance(record.get(column), (kind, type(None))):
            found = type(record[column]).__name__
            raise ExampleError(f"{where} has {found} as {column}, wanted {kind.__name__}")

    choices = [str(choice) for choice in record.get("choices") or []]
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
    """Make a relative image path relative to the folder of the data; other images stay as they are.

    The folder is `source`, or the folder that holds the file `source`.
    """
    if isinstance(image, dict) and image.get("bytes") is None:
        image = image.get("path")
    if not isinstance(image, str) or Path(image).is_absolute():
        return image
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    return str(folder / image)
