r"""Orsta-47k (One-RL-to-See-Them-All/Orsta-Data-47k), arXiv 2505.18129: `--data orsta`.

Parquet files train/{split}_{task}_{source}_{num}.parquet with the columns

    data_source str, images list of embedded images, prompt list of {content, role}, ability str,
    reward_model {answer, ground_truth, accuracy_ratio, format_ratio, verifier, verifier_parm},
    extra_info {id, image_path}

The verifier decides how a row is rewarded: `mathverify` by the type of its answer (`rows.py`),
`detection` by the overlap of boxes (rewards/bounding_boxes.py). The prompt carries an instruction
of its own, to think step by step, to box the answer, or to use think and answer tags. The sentences
that say so are dropped, since ours is appended. The pool of these instructions is not published
with the data set: any sentence with one of the words in `OWN_INSTRUCTION` is one.

Its folder test/ holds questions of MEGA-Bench. It is never read.
"""

import json
import re
from collections.abc import Sequence

from model.records import ExampleError
from sources.rows import local_folder, make_example, row_examples

HUB = "One-RL-to-See-Them-All/Orsta-Data-47k"
OWN_INSTRUCTION = re.compile(r"</?(?:think|answer)>|\\boxed|step[- ]by[- ]step", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def orsta_examples(folder: str, count: int | None, instruction: str | None) -> Sequence[dict]:
    """The training rows of a local copy, "" for the hub. ValueError naming --data without any."""
    place = local_folder(HUB, folder)
    files = [file for file in sorted(place.rglob("*.parquet"))
             if file.parent.name != "test" and not file.name.startswith("test")]
    if not files:
        raise ValueError(f"--data orsta:{place}: no parquet files in train/")
    return row_examples(files, read, count, instruction)


def read(row: dict, index: int) -> dict:
    """A row as an example. ExampleError if it has no question, or no answer that can be graded."""
    extra, rewarded = row.get("extra_info") or {}, row.get("reward_model") or {}
    source = row.get("data_source") or ""
    name = f"orsta {source} {extra.get('id') or index}"
    images = row.get("images") or []

    question = without_instruction(user_text(row.get("prompt"), name), len(images))
    answer = answer_of(rewarded)
    if not answer:
        raise ExampleError(f"example {name} has no answer")
    verifier = rewarded.get("verifier") or "mathverify"
    if verifier not in ("mathverify", "detection"):
        raise ExampleError(f"example {name} has an unknown verifier, {verifier!r}")
    return make_example(name, question, answer, images, row.get("ability") or "", source,
                        "boxes" if verifier == "detection" else None)


def user_text(prompt, name: str) -> str:
    """What the user says. Raises ExampleError if nobody does."""
    turns = prompt if isinstance(prompt, list) else []
    texts = [turn.get("content") for turn in turns if turn.get("role") == "user"]
    if not texts or not isinstance(texts[-1], str) or not texts[-1].strip():
        raise ExampleError(f"example {name} has no question")
    return texts[-1]


def answer_of(rewarded: dict) -> str:
    """The answer as text; boxes may come as a list of their own."""
    answer = rewarded.get("answer")
    if isinstance(answer, list):
        return json.dumps(answer)
    return "" if answer is None else str(answer).strip()


def without_instruction(text: str, num_images: int) -> str:
    """The question alone. Placeholders in a sentence that is dropped move to the front."""
    kept = [part for part in SENTENCE.split(text) if not OWN_INSTRUCTION.search(part)]
    question = " ".join(part.strip() for part in kept if part.strip())
    missing = num_images - question.count("<image>")
    if 0 < missing < num_images or (missing and "<image>" in text):
        question = "<image>" * max(0, missing) + question
    return question
