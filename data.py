"""One row format, and what turns each source into it.

A row is a dictionary:

    id            str    names the row in errors and files
    images        list   PIL images or paths, in the order of the `<image>` marks (no mark: all in front)
    question      str    without any format instruction
    instruction   str    the format that is asked for ("" for none), appended to the question
    format        str    name of that format, for reports
    answer        str    gold, never empty
    answer_type   str    "number", "choice", "math" or "text": how `rewards.grade` compares
    choices       list   option texts of a "choice" row, [] otherwise
    kind          str    a label to report by (question type, category)

Sources: `toy` (the embedded world), or anything `datasets.load_dataset` opens: a folder or a file
(parquet, jsonl, json, csv) with at least `question` and `answer`, or a hub name.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from prompts import Codec, Prompt, RowError
from rewards import LETTERS
from toy import world

ANSWER_TYPES = ("number", "choice", "math", "text")

# MM-EUREKA's 7B prompt, reworded: it asks for the same two blocks and the boxed answer.
THINK_INSTRUCTION = (
    "First think step by step inside <think> </think>, then give the final answer inside <answer> </answer>, "
    "with the answer itself in \\boxed{}. Write nothing outside of these two blocks.")


def load_rows(source: str, *, split: str = "train", count: int | None = None, seed: int = 0,
              instruction: str | None = None) -> Sequence[dict]:
    """Rows of a source. `count` cuts (for `toy` it says how many are drawn; 2048 if None).

    Raises ValueError naming --data when nothing is there. Rows of a table are read, and their pictures
    decoded, when they are asked for: a row that cannot be used raises RowError then."""
    if source == "toy":
        rows = world.rows(count or 2048, seed, held_out=split != "train")
        return rows if instruction is None else [{**row, "instruction": instruction} for row in rows]
    table = open_table(source, split)
    if count is not None:
        table = table.select(range(min(count, len(table))))
    if not len(table):
        raise ValueError(f"--data {source}: split {split!r} has no rows")
    return TableRows(table, source, THINK_INSTRUCTION if instruction is None else instruction)


@dataclass(frozen=True)
class TableRows(Sequence):
    """A data set as a sequence of rows. Trap: turned into a list, 47,000 rows would hold 47,000 decoded
    pictures in memory (test_rows_are_read_when_asked_for)."""

    table: datasets.Dataset
    source: str
    instruction: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> dict:
        return to_row(read_record(self.table, i, f"--data {self.source}"), i, self.instruction, self.source)


def read_record(table: datasets.Dataset, i: int, where: str) -> dict:
    """Row i of a table; RowError if a picture in it cannot be read, since `datasets` opens embedded ones here."""
    try:
        return table[i]
    except (OSError, SyntaxError) as error:
        raise RowError(f"{where}: row number {i}: picture cannot be read: {error}") from error


def open_table(source: str, split: str, flag: str = "--data") -> datasets.Dataset:
    """A split of a folder, a file or a hub data set, by the `datasets` library. Raises ValueError naming `flag`."""
    path = Path(source)
    builders = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
    try:
        if path.is_file():
            if path.suffix not in builders:
                raise ValueError(f"unknown file type {path.suffix!r}, wanted one of {', '.join(builders)}")
            return datasets.load_dataset(builders[path.suffix], data_files=str(path), split="train")
        return datasets.load_dataset(source, split=split, cache_dir=own_cache(path) if path.is_dir() else None)
    except StopIteration as error:  # what `datasets` makes of a jsonl file without a line
        raise ValueError(f"{flag} {source}: holds no rows") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{flag} {source}: cannot be opened: {error}") from error


def own_cache(folder: Path) -> str:
    """A cache folder for this data folder as it is now.

    Trap: where a card names the data files, `datasets` keys its cache by the folder's last name and the
    card; another folder of that name, or this one written anew, would silently give the old rows
    (test_folders_of_one_name_are_not_confused)."""
    files = sorted((str(f), f.stat().st_mtime_ns) for f in folder.resolve().rglob("*") if f.is_file())
    digest = hashlib.sha256(repr(files).encode()).hexdigest()
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "local" / digest[:16])


def to_row(record: dict, index: int, instruction: str, source: str) -> dict:
    """Fill the optional columns in, and refuse what could not be graded."""
    row_id = str(record.get("id") or index)
    answer = str(record.get("answer") if record.get("answer") is not None else "").strip()
    if not answer:
        raise RowError(f"--data {source}: row {row_id} has no answer")
    if not record.get("question"):
        raise RowError(f"--data {source}: row {row_id} has no question")
    kind = record.get("answer_type") or ("choice" if record.get("choices") else "math")
    if len(record.get("choices") or []) > len(LETTERS):
        raise RowError(f"--data {source}: row {row_id} has more than {len(LETTERS)} choices")
    if kind not in ANSWER_TYPES:
        raise RowError(f"--data {source}: row {row_id} has answer_type {kind!r}, wanted {ANSWER_TYPES}")
    images = record.get("images") or ([record["image"]] if record.get("image") is not None else [])
    return {"id": row_id, "images": [beside(picture, source) for picture in images], "question": record["question"],
            "instruction": record.get("instruction") or instruction, "format": record.get("format") or "think",
            "answer": answer, "answer_type": kind, "choices": record.get("choices") or [],
            "kind": record.get("kind") or ""}


def beside(picture, source: str):
    """A relative picture path is relative to the data file (or folder) that names it."""
    if not isinstance(picture, str) or Path(picture).is_absolute():
        return picture
    return str((Path(source) if Path(source).is_dir() else Path(source).parent) / picture)


class PromptStream:
    """Endless encoded prompts of this rank's share of the rows, reshuffled every epoch.

    Rows that cannot be used (too long, broken picture) are skipped, counted in `skipped` and named to
    `warn`. `position` counts rows read; setting it resumes the stream exactly.
    """

    def __init__(self, rows: list[dict], codec: Codec, *, seed: int, max_prompt_tokens: int | None = None,
                 rank: int = 0, world_size: int = 1, warn: Callable[[str], None] = print):
        if len(rows) < world_size:
            raise ValueError(f"--data: {len(rows)} rows for {world_size} processes, each needs one")
        self.rows, self.codec, self.seed, self.limit = rows, codec, seed, max_prompt_tokens
        self.rank, self.world_size, self.warn = rank, world_size, warn
        self.position, self.skipped = 0, 0
        self.shuffled: tuple[int, list[int]] = (-1, [])  # (epoch, this rank's rows in it)

    def order(self, epoch: int) -> list[int]:
        """This rank's rows in this epoch: one shuffle that all ranks agree on, dealt out in turn."""
        if self.shuffled[0] != epoch:
            indices = list(range(len(self.rows)))
            random.Random(f"{self.seed} {epoch}").shuffle(indices)
            self.shuffled = (epoch, indices[self.rank :: self.world_size])
        return self.shuffled[1]

    def __iter__(self) -> Iterator[Prompt]:
        share = len(range(self.rank, len(self.rows), self.world_size))  # rows of this rank
        misses = 0
        while True:
            epoch, place = divmod(self.position, share)
            self.position += 1
            try:
                prompt = self.codec.encode(self.rows[self.order(epoch)[place]], self.limit)
            except RowError as error:
                self.skipped, misses = self.skipped + 1, misses + 1
                self.warn(f"skipped: {error}")
                if misses >= share:
                    raise ValueError(f"--data: none of {share} rows can be used, the last: {error}") from error
                continue
            misses = 0
            yield prompt

    def take(self, count: int) -> list[Prompt]:
        stream = iter(self)
        return [next(stream) for _ in range(count)]


def read_all(rows: Sequence[dict], warn: Callable[[str], None]) -> list[dict]:
    """Every row that can be read, in order; the others are named to `warn`."""
    read = []
    for i in range(len(rows)):
        try:
            read.append(rows[i])
        except RowError as error:
            warn(f"skipped: {error}")
    return read


def encode_all(rows: Sequence[dict], codec: Codec, max_prompt_tokens: int | None = None,
               warn: Callable[[str], None] = print, rank: int = 0, world_size: int = 1) -> list[Prompt]:
    """Every row of this rank's share that can be used, in order; the others are named to `warn`. Raises if none can."""
    prompts = []
    for i in range(rank, len(rows), world_size):
        try:
            prompts.append(codec.encode(rows[i], max_prompt_tokens))
        except RowError as error:
            warn(f"skipped: {error}")
    if not prompts:
        raise ValueError(f"--data: none of {len(rows)} rows can be used")
    return prompts
