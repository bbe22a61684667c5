"""Which column of a table is which part of an example, and a record of the table as an example.

    find_columns     the table's columns, named by --columns or as in NAMES -> Columns
    Columns.part_of  a record of the table -> a record with our names
    to_example       such a record -> an example, what is missing filled in, or refused by name

What --columns does not name is found by its own name. Nothing is guessed: a column that only looks
right is named in the message, and not used.
"""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
from PIL import Image

from model.records import ExampleError
from rewards.choice import gold_letter
from rewards.number import read_number

ANSWER_TYPES = ("number", "choice", "math", "text", "boxes")
MAX_CHOICES = 10  # choices have the letters A to J; `rewards` reads no others
IMAGE_NAMES = ("images", "image", "pictures", "picture")  # one column of these, path or list
NAMES = ("question", "answer", *IMAGE_NAMES, "id", "instruction", "format", "answer_type",
         "choices", "kind")  # fmt: skip
SIMILAR = {  # what other data sets call these columns
    "question": ("problem", "prompt", "query", "input"),
    "answer": ("solution", "gold", "label", "target", "response", "output"),
    "choices": ("options",),
    "images": ("img", "imgs", "photo", "figure", "decoded_image", "image_path", "file_name"),
}
IMAGE_FILE = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|ppm)$", re.IGNORECASE)


# --- Columns of a table --------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used, and those that are not."""

    used: dict[str, str]  # part of an example -> column
    ignored: list[str]

    def part_of(self, record: dict) -> dict:
        """A record of the table with our names."""
        return {part: record[column] for part, column in self.used.items()}

    def in_words(self) -> str:
        """What is used and what is not, with the part that an ignored name resembles."""
        used = [part if part == name else f"{part} = {name}" for part, name in self.used.items()]
        ignored = []
        for name in self.ignored:
            part = similar_part(name)
            hint = f" (--columns {part}={name} uses it)" if part and part not in self.used else ""
            ignored.append(name + hint)
        return f"columns used: {', '.join(used)}; ignored: {', '.join(ignored) or 'none'}"


def find_columns(
    table: datasets.Dataset, named: str, where: str, of_a_mixture: bool = False
) -> Columns:
    """The columns of a table.

    named          --columns, OURS=THEIRS,OURS=THEIRS; "image=" says that there are no images
    where          the flag and the source, for messages
    of_a_mixture   a column that is named and not there is one of another table

    Raises ValueError if a column is missing, named wrongly or named by two, or if the images seem
    to be in a column that is not used: a run without images would train blind.
    """
    there = table.column_names
    used = parse_columns(named, there, where, of_a_mixture)
    blind_on_purpose = used.get("images") == ""

    images = [name for name in IMAGE_NAMES if name in there]
    if "images" not in used and len(images) > 1:
        raise ValueError(
            f"{where}: {' and '.join(images)} are both columns for images; say which, for example "
            f"--columns image={images[0]}"
        )
    if "images" not in used and images:
        used["images"] = images[0]
    for name in NAMES:
        if name in there and name not in IMAGE_NAMES:
            used.setdefault(name, name)

    used = {part: column for part, column in used.items() if column}
    ignored = [name for name in there if name not in used.values()]
    for part in ("question", "answer"):
        if part not in used:
            raise ValueError(missing_column(part, there, where))
    if "images" not in used and not blind_on_purpose:
        refuse_unused_images(table, ignored, where)
    return Columns(used, ignored)


def parse_columns(
    named: str, there: list[str], where: str, of_a_mixture: bool = False
) -> dict[str, str]:
    """The text of --columns as part -> column. Raises ValueError naming --columns.

    In a mixture a part may be named several times, once for each table that calls it otherwise:
    --columns answer=solution,answer=gold.
    """
    used = {}
    for part, column in split_pairs(named):
        if column and column not in there:
            if of_a_mixture:
                continue
            close = difflib.get_close_matches(column, there, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"--columns {part}={column}: {where} has no column {column}{hint}; it has "
                f"{', '.join(there)}"
            )
        used["images" if part in IMAGE_NAMES else part] = column
    return used


def split_pairs(named: str) -> list[tuple[str, str]]:
    """The text of --columns as (part, column). Raises ValueError for a part that does not exist."""
    pairs = []
    for pair in filter(None, named.split(",")):
        part, equals, column = (text.strip() for text in pair.partition("="))
        if not equals or part not in NAMES:
            close = difflib.get_close_matches(part, NAMES, n=1)
            hint = f"; did you mean {close[0]}?" if close and equals else ""
            raise ValueError(
                f"--columns {pair}: wanted OURS=THEIRS, where OURS is one of {', '.join(NAMES)}"
                + hint
            )
        pairs.append((part, column))
    return pairs


def refuse_columns_of_none(named: str, parts: list, source: str) -> None:
    """Raise ValueError if --columns names a column that no table of a mixture has.

    parts   the examples of each source; only tables have columns
    """
    tables = [part for part in parts if hasattr(part, "columns")]
    there = {name for part in tables for name in part.table.column_names}
    for part, column in split_pairs(named):
        if column and column not in there:
            raise ValueError(
                f"--columns {part}={column}: no part of --data {source} has a column {column}; "
                f"there are {', '.join(sorted(there))}"
            )


def similar_part(name: str) -> str | None:
    """The part of an example that a column's name resembles."""
    word = name.lower()
    for part, others in SIMILAR.items():
        if word in others:
            return part
    close = difflib.get_close_matches(word, NAMES, n=1, cutoff=0.7)
    if not close:
        return None
    return "images" if close[0] in IMAGE_NAMES else close[0]


def missing_column(part: str, there: list[str], where: str) -> str:
    """One sentence: what is missing, what is there, how to name it."""
    if len(there) == 1 and ";" in there[0]:
        return f"{where} has one column, {there[0]}: separate them by commas, not by semicolons"
    similar = [name for name in there if similar_part(name) == part]
    name = similar[0] if similar else "NAME"
    return (
        f"{where} has no column {part}; it has {', '.join(there)}. "
        f"--columns {part}={name} names the right one"
    )


def refuse_unused_images(table: datasets.Dataset, ignored: list[str], where: str) -> None:
    """Raise ValueError if one of the ignored columns seems to hold images."""
    for name in ignored:
        if similar_part(name) == "images" or holds_images(table, name):
            raise ValueError(
                f"{where}: no column for images is used, and {name} seems to hold some: "
                f"--columns image={name} uses it, --columns image= goes on without images"
            )


def holds_images(table: datasets.Dataset, name: str) -> bool:
    """True if a column holds images, by its type or by its first value."""
    feature = table.features[name]
    if isinstance(feature, datasets.List):
        feature = feature.feature
    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}

    value = table.select_columns([name])[0][name] if len(table) else None
    if isinstance(value, list):
        value = value[0] if value else None
    return isinstance(value, str) and IMAGE_FILE.search(value) is not None


# --- A record as an example ----------------------------------------------------------------------


def to_example(record: dict, index: int, instruction: str, source: str) -> dict:
    """Turn a record into an example, with its optional columns filled in.

    record        see `sources/__init__.py` for its columns
    index         number of the record, its id if it has none
    instruction   used if the record has no instruction
    source        the value of --data, for messages and relative image paths

    Raises ExampleError with the example's id if the record could not be graded.
    """
    example_id = str(index if record.get("id") in (None, "") else record["id"])
    where = f"--data {source}: example {example_id}"

    if isinstance(record.get("answer"), (list, dict, bool)):
        found = type(record["answer"]).__name__
        raise ExampleError(f"{where} has {found} as answer, wanted text or a number")
    answer = "" if record.get("answer") is None else str(record["answer"]).strip()
    if not answer:
        raise ExampleError(f"{where} has no answer")
    if not record.get("question"):
        raise ExampleError(f"{where} has no question")
    choices = choices_of(record, where)
    check_types(record, where)

    answer_type = record.get("answer_type") or ("choice" if choices else "math")
    if answer_type not in ANSWER_TYPES:
        raise ExampleError(f"{where} has answer_type {answer_type!r}, wanted {ANSWER_TYPES}")
    if answer_type == "number" and read_number(answer) is None:
        raise ExampleError(f"{where}: answer {answer!r} is no number, and could never be given; "
                           "answer_type `math` or `text` takes others")
    if answer_type == "choice" and gold_letter(answer, choices) is None:
        raise ExampleError(f"{where}: answer {answer!r} is neither letter nor text of one of its "
                           f"choices, {choices}")

    return {
        "id": example_id,
        "images": [resolve_path(image, source, where) for image in images_of(record)],
        "question": with_choices(record["question"], choices),
        "instruction": record.get("instruction") or instruction,
        "format": record.get("format") or "think",
        "answer": answer,
        "answer_type": answer_type,
        "choices": choices,
        "kind": record.get("kind") or "",
    }


def check_types(record: dict, where: str) -> None:
    """Raise ExampleError if what should be text is something else."""
    for column in ("question", "instruction", "format", "kind"):
        if not isinstance(record.get(column), (str, type(None))):
            found = type(record[column]).__name__
            raise ExampleError(f"{where} has {found} as {column}, wanted str")


def choices_of(record: dict, where: str) -> list[str]:
    """The option texts; a list that a csv file holds as text is read. Raises ExampleError."""
    choices = record.get("choices") or []
    if isinstance(choices, str) and choices.startswith("["):
        try:
            choices = json.loads(choices)
        except json.JSONDecodeError as error:
            raise ExampleError(f"{where}: choices are not a JSON list: {error}") from error
    if not isinstance(choices, list):
        raise ExampleError(f"{where} has {type(choices).__name__} as choices, wanted list")
    if len(choices) > MAX_CHOICES:
        raise ExampleError(f"{where} has more than {MAX_CHOICES} choices")
    return [str(choice) for choice in choices]


def with_choices(question: str, choices: list[str]) -> str:
    """The question with its options below it, one a line, unless it holds them already.

    It holds them if each stands behind its letter, or if the options are the letters themselves,
    as where they are written in the image.

    >>> print(with_choices("which is red ?", ["the circle", "the square"]))
    which is red ?
    (A) the circle
    (B) the square
    >>> with_choices("which is red ? A. circle B. square", ["circle", "square"])
    'which is red ? A. circle B. square'
    """
    lines, held = [], 0
    for letter, choice in zip("ABCDEFGHIJ", choices):
        lines.append(f"({letter}) {choice}")
        labelled = rf"\b{letter}\b\W{{0,4}}{re.escape(choice)}"
        held += choice == letter or re.search(labelled, question) is not None
    if held == len(choices):
        return question
    return "\n".join([question, *lines])


def images_of(record: dict) -> list:
    """The images of a record as a list, whatever their column is called; one alone is a list of
    one."""
    for name in IMAGE_NAMES:
        value = record.get(name)
        if isinstance(value, list) and value:
            return value
        if value is not None and not isinstance(value, list) and value != "":
            return [value]
    return []


def resolve_path(image, source: str, where: str = "an example"):
    """Make a relative image path relative to the folder of the data; other images stay as they are.

    The folder is `source`, or the folder that holds the file `source`.
    Raises ExampleError for a text that is no path.
    """
    if isinstance(image, (bytes, bytearray)):
        return {"bytes": bytes(image), "path": None}
    if isinstance(image, dict) and image.get("bytes") is None and image.get("path"):
        image = image["path"]
    if isinstance(image, Image.Image) or not isinstance(image, str):
        return image  # what it cannot be is refused where it is opened
    if re.match(r"https?://", image):
        raise ExampleError(f"{where}: image {image[:60]} is on the web: save it as a file")
    if image.startswith("["):
        raise ExampleError(f"{where}: image {image[:40]} is a list as text: csv has no lists, "
                           "take jsonl or parquet")
    if image.startswith("data:") or len(image) > 1000:
        raise ExampleError(f"{where}: image {image[:20]}... is an image as text: save it as a file")
    if Path(image).is_absolute():
        return image
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    return str(folder / image)
