"""Examples of a table: a folder, a file or a hub data set, opened by the `datasets` library.

The arrows show the order of the calls:

    open_table       a split as a `datasets.Dataset`, no image decoded yet
      -> find_columns  which of its columns is which part of an example (`columns.py`)
      -> read_record   one of its records, images still encoded
      -> to_example    the record as an example: optional columns filled in, unusable ones refused
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow

from model.prompts import THINK_INSTRUCTION
from sources.columns import IMAGE_FILE, Columns, find_columns, to_example

datasets.disable_progress_bars()  # a file is read in a moment, and a log is no terminal

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
    columns: Columns

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        record = self.columns.part_of(read_record(self.table, index))
        return to_example(record, index, self.instruction, self.source)

    def understood(self) -> list[str]:
        """What is to be said about the table as a whole."""
        lines = [f"--data {self.source}: {len(self)} examples; {self.columns.in_words()}"]
        if "id" in self.columns.used:
            ids = self.column("id", len(self))
            repeated = len(ids) - len(set(ids))
            if repeated:
                lines.append(f"  {repeated} examples have the id of another one")
        return lines

    def labels(self, count: int) -> list[tuple[str, str]]:
        """(kind, answer) of the first `count` examples, without reading any image."""
        answers = [str(answer) for answer in self.column("answer", count)]
        kinds = self.column("kind", count) if "kind" in self.columns.used else [""] * len(answers)
        return list(zip(kinds, answers))

    def column(self, part: str, count: int) -> list:
        return self.table[self.columns.used[part]][:count]


def table_examples(
    source: str,
    split: str,
    count: int | None,
    instruction: str | None,
    columns: str = "",
    revision: str = "",
    of_a_mixture: bool = False,
) -> TableExamples:
    """The first `count` examples of a table (None: all). See `sources.load_examples`."""
    table = open_table(source, split, revision=revision)
    used = find_columns(table, columns, f"--data {source}", of_a_mixture)
    if count is not None:
        table = table.select(range(min(count, len(table))))
    if instruction is None:
        instruction = THINK_INSTRUCTION
    return TableExamples(table, source, instruction, used)


def open_table(
    source: str, split: str, flag: str = "--data", revision: str = ""
) -> datasets.Dataset:
    """Open a split of a folder, a file or a hub data set.

    source     folder, file, or name on the hub
    split      ignored for a file, which has no splits
    flag       the flag that named the source, for the message
    revision   of a hub data set: a branch, a tag or a commit; "" is its newest

    Raises ValueError naming `flag` if it cannot be opened.
    """
    path = Path(source)
    if not path.exists() and looks_like_path(source):
        raise ValueError(f"{flag} {source}: no such file or folder")
    try:
        if path.is_file():
            table = open_file(path)
        elif path.is_dir():
            table = open_folder(path, split)
        else:
            table = datasets.load_dataset(source, split=split, revision=revision or None)
    except StopIteration as error:  # `datasets` raises this for a jsonl file without a line
        raise ValueError(f"{flag} {source}: holds no examples") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error  # `datasets` wraps what the file's reader said
        if "corresponds to no data" in str(reason):  # a header alone
            reason = "it holds no examples"
        raise ValueError(f"{flag} {source}: cannot be opened: {reason}") from error

    # Reading a parquet leaves buffers behind, 90 MB for 4,000 images
    # (test_memory_does_not_grow_with_the_examples).
    pyarrow.default_memory_pool().release_unused()
    return table


def looks_like_path(source: str) -> bool:
    """True if a name is a file's or a folder's, and not OWNER/NAME on the hub.

    The hub is not asked about these: without a network that would take minutes, and end in an error
    about the network.
    """
    parts = Path(source).parts
    named_like_one = Path(source).suffix in (*FILE_TYPES, ".txt", ".tsv", ".xlsx", ".zip")
    in_a_folder_here = len(parts) > 1 and Path(parts[0]).is_dir()
    not_two_parts = len(parts) > 2 or source.startswith((".", "/", "~"))
    return named_like_one or in_a_folder_here or not_two_parts


def open_file(path: Path) -> datasets.Dataset:
    """Open one file by the reader for its type. Raises ValueError for an unknown type."""
    if path.suffix not in FILE_TYPES:
        wanted = ", ".join(FILE_TYPES)
        raise ValueError(f"unknown file type {path.suffix!r}, wanted one of {wanted}")
    return datasets.load_dataset(FILE_TYPES[path.suffix], data_files=str(path), split="train")


def open_folder(folder: Path, split: str) -> datasets.Dataset:
    """Open a split of a folder, in one of the layouts of `datasets`.

    Raises ValueError for a file of examples that would be overlooked: `datasets` takes a folder
    with pictures in it for one of pictures alone.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        saved = datasets.load_from_disk(folder)  # what `Dataset.save_to_disk` writes
        if isinstance(saved, datasets.Dataset):
            return saved
        if split not in saved:
            raise ValueError(f"it has no split {split!r}, only {', '.join(map(repr, saved))}")
        return saved[split]

    config = folder / "config.json"
    stage = json.loads(config.read_text()).get("stage") if config.is_file() else None
    if stage not in (None, "build_prefs"):  # that one writes a data set into its folder
        raise ValueError(f"that is the folder of a run of {stage}, and no data set")

    files = [file for file in folder.iterdir() if file.is_file()]
    ours = ("metadata", "config", "dataset_info", "funnel")  # no tables of examples
    examples = sorted(f for f in files if f.suffix in FILE_TYPES and f.stem not in ours)
    if examples and any(IMAGE_FILE.search(file.name) for file in files):
        raise ValueError(
            f"it holds pictures beside {', '.join(file.name for file in examples)}: name the file, "
            f"{examples[0]}"
        )
    return datasets.load_dataset(str(folder), split=split, cache_dir=cache_for(folder))


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
