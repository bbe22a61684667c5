"""What the public training sets share: rows as examples, read when they are asked for."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
from huggingface_hub import snapshot_download
from torch.utils.data import ConcatDataset

from model.prompts import THINK_INSTRUCTION
from rewards.number import read_number
from sources.tables import read_record

EXPRESSION = re.compile(r"[\d\\^_=+*/√π]")


@dataclass(frozen=True)
class RowExamples(Sequence):
    """A table as a sequence of examples.

    read    a row and its number -> an example; raises ExampleError for one that cannot be used
    """

    table: datasets.Dataset
    read: Callable[[dict, int], dict]
    instruction: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        example = self.read(read_record(self.table, index), index)
        return {**example, "instruction": self.instruction}


def row_examples(files: list[Path], read, count: int | None, instruction: str | None
                 ) -> Sequence[dict]:
    """The first `count` rows of some parquet files, which need not have the same column types."""
    if instruction is None:
        instruction = THINK_INSTRUCTION
    parts = []
    for file in files:
        table = datasets.load_dataset("parquet", data_files=str(file), split="train")
        if count is not None:
            table = table.select(range(min(count, len(table))))
            count -= len(table)
        if len(table):
            parts.append(RowExamples(table, read, instruction))
    return parts[0] if len(parts) == 1 else ConcatDataset(parts) if parts else []


def local_folder(hub: str, folder: str) -> Path:
    """A local copy: the folder, or the whole data set from the hub. ValueError naming --data."""
    if folder:
        if not Path(folder).is_dir():
            raise ValueError(f"--data: no folder {folder}")
        return Path(folder)
    try:
        return Path(snapshot_download(hub, repo_type="dataset"))
    except Exception as error:  # no network, a gated data set: the library has many errors
        raise ValueError(
            f"--data: {hub} cannot be downloaded ({error}); NAME:FOLDER takes a local copy"
        ) from error


def make_example(name: str, question: str, answer: str, images: list, kind: str, source: str,
                 answer_type: str | None = None) -> dict:
    """An example of a public set; `source` is the data set that it came from."""
    return {
        "id": name,
        "images": images,
        "question": question,
        "format": "think",
        "answer": answer,
        "answer_type": answer_type or answer_type_of(answer),
        "choices": [],
        "kind": kind,
        "source": source,
    }


def answer_type_of(gold: str) -> str:
    r"""How a gold without a type is compared: ours, since neither data set says it.

    >>> [answer_type_of(gold) for gold in ("B", "12 cm", "x+1", "a red car")]
    ['choice', 'number', 'math', 'text']
    """
    if re.fullmatch(r"\(?[A-J]\)?", gold):
        return "choice"
    if read_number(gold) is not None:
        return "number"
    return "math" if EXPRESSION.search(gold) else "text"
