"""MM-EUREKA's JSONL: `--data mm_eureka:FILE.jsonl`, lines of

    {"id": "0", "message": "[{\\"role\\": \\"user\\", \\"content\\": [...]}]", "answer": "$12$"}

The chat is JSON in a text; its content is text, or a list of {"type": "image", "image":
"file://PATH"} and {"type": "text", "text": "..."}. A path without a leading slash is looked for
beside the file.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import datasets

from model.prompts import THINK_INSTRUCTION
from model.records import ExampleError
from rewards.grading import read_gold
from sources.columns import resolve_path
from sources.orsta import without_instruction
from sources.rows import RowExamples, make_example


def mm_eureka_examples(file: str, count: int | None, instruction: str | None) -> Sequence[dict]:
    """The lines of the file. ValueError naming --data without one."""
    if not Path(file).is_file():
        raise ValueError(f"--data mm_eureka:{file}: no such file")
    table = datasets.load_dataset("json", data_files=file, split="train")
    if count is not None:
        table = table.select(range(min(count, len(table))))

    def read_line(row: dict, index: int) -> dict:
        return read(row, index, file)

    return RowExamples(table, read_line, THINK_INSTRUCTION if instruction is None else instruction)


def read(row: dict, index: int, file: str) -> dict:
    """A line as an example. ExampleError for a chat that is none, or without an answer."""
    name = f"mm_eureka {row.get('id') or index}"
    answer = read_gold(str(row["answer"]), "math") if row.get("answer") is not None else ""
    if not answer.strip():
        raise ExampleError(f"example {name} has no answer")
    try:
        turns = json.loads(row["message"])
        content = [turn["content"] for turn in turns if turn["role"] == "user"][-1]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        images = [part["image"] for part in parts if part["type"] == "image"]
        text = "".join("<image>" if part["type"] == "image" else part["text"] for part in parts)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ExampleError(f"example {name}: message is no chat: {error!r}") from error

    paths = [resolve_path(str(image).removeprefix("file://"), file) for image in images]
    question = without_instruction(text, len(images))
    if not question.replace("<image>", "").strip():
        raise ExampleError(f"example {name} has no question")
    return make_example(name, question, answer, paths, "", "mm_eureka")
