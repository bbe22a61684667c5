r"""ViRL39K (TIGER-Lab/ViRL39K), 38,870 questions: `--data virl39k`.

A parquet file (its name is not relied on) and images.zip. Columns: question (with `<image>`),
answer ("\boxed{...}", some with unbalanced braces), PassRate_32BTrained, PassRate_7BBase, category,
source, qid, image (a list of paths in the zip; empty for text-only questions).

`--data virl39k:FOLDER@0.1-0.9` keeps the questions with a PassRate_32BTrained in that band.

An image is read out of the zip when it is asked for, by its name in there: nothing is unpacked, so
that a path cannot lead out of it.
"""

import stat
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from model.records import ExampleError
from rewards.grading import read_gold
from sources.rows import RowExamples, local_folder, make_example, row_examples

HUB = "TIGER-Lab/ViRL39K"
LARGEST = 200_000_000  # bytes of an image file, as the zip states it


def virl39k_examples(folder: str, count: int | None, instruction: str | None) -> Sequence[dict]:
    """The questions of a local copy, "" for the hub; FOLDER@LOW-HIGH for a band of pass rates."""
    folder, _, band = folder.partition("@")
    place = local_folder(HUB, folder)
    files = sorted(place.rglob("*.parquet"))[:1]
    if not files:
        raise ValueError(f"--data virl39k:{place}: no parquet file")

    def read_row(row: dict, index: int) -> dict:
        return read(row, index, place)

    examples = row_examples(files, read_row, None if band else count, instruction)
    return in_band(examples, band, count) if band else examples


def in_band(examples: RowExamples, band: str, count: int | None) -> RowExamples:
    """The first `count` questions whose pass rate is in the band LOW-HIGH, both included."""
    try:
        low, high = (float(end) for end in band.split("-"))
    except ValueError as error:
        raise ValueError(f"--data virl39k: @{band}, wanted @LOW-HIGH, as in @0.1-0.9") from error
    rates = examples.table["PassRate_32BTrained"]
    kept = [i for i, rate in enumerate(rates) if rate is not None and low <= rate <= high]
    return RowExamples(examples.table.select(kept[:count]), examples.read, examples.instruction)


def read(row: dict, index: int, folder: Path) -> dict:
    """A row as an example. ExampleError without question or answer, or for an image."""
    name = f"virl39k {row.get('qid') or index}"
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise ExampleError(f"example {name} has no question")
    gold = read_gold(answer, "math").strip() if isinstance(answer, str) else ""
    if not gold:
        raise ExampleError(f"example {name} has no answer")
    images = [read_image(path, folder, name) for path in row.get("image") or []]
    return make_example(name, question, gold, images, row.get("category") or "",
                        row.get("source") or "")


@cache
def open_zip(file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


def read_image(path: str, folder: Path, name: str) -> dict:
    """The bytes of an image, from images.zip or from its unpacked folder. ExampleError if not."""
    where = f"example {name}: image {path!r}"
    parts = PurePosixPath(str(path))
    if not path or parts.is_absolute() or ".." in parts.parts:
        raise ExampleError(f"{where}: leads out of the data set")
    archive = folder / "images.zip"
    if not archive.is_file():
        file = folder / path
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ExampleError(f"{where}: leads out of the data set")
        return {"bytes": None, "path": str(file)}

    try:
        member = open_zip(archive).getinfo(str(path))
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ExampleError(f"{where}: is a link")
        if member.file_size > LARGEST:
            raise ExampleError(f"{where}: {member.file_size} bytes, the limit is {LARGEST}")
        with open_zip(archive).open(member) as file:
            return {"bytes": file.read(LARGEST), "path": str(path)}
    except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        what = "is not in images.zip" if isinstance(error, KeyError) else error
        raise ExampleError(f"{where}: {what}") from error
