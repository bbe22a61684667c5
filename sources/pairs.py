"""The data set of preference pairs: its columns and its files.

    TABLE_PATH          one file per process: the pairs of its questions, images included
    README.md           what the columns are
    dataset_info.json   which columns LLaMA-Factory reads
"""

import json
from pathlib import Path

import datasets
from pyarrow import parquet

from model.images import load_image
from model.prompts import chat_messages, full_question

# We rely on the hub's file layout: `load_dataset` finds these files, and ignores all others. Naming
# the files in a README also works, but `datasets` then caches by folder name, and two folders of
# one name collide.
TABLE_PATH = "data/train-{:05d}-of-{:05d}.parquet"  # number of the process, number of processes

PAIRS_AT_A_TIME = 64  # whose images are open

MESSAGE = {"role": datasets.Value("string"), "content": datasets.Value("string")}
TEXTS = ("question", "instruction", "answer", "answer_type", "corruption")
FEATURES = datasets.Features({
    "id": datasets.Value("string"),
    "images": datasets.List(datasets.Image()),
    **{name: datasets.List(MESSAGE) for name in ("prompt", "chosen", "rejected", "conversations")},
    "chosen_message": MESSAGE,
    "rejected_message": MESSAGE,
    **{name: datasets.Value("string") for name in TEXTS},
})  # fmt: skip

README = """---
tags: [preference-pairs]
---
{count} preference pairs. `datasets.load_dataset` opens this folder.
TRL reads `prompt`, `chosen`, `rejected`, `images`;
LLaMA-Factory reads `conversations`, `chosen_message`, `rejected_message`, `images` (see
dataset_info.json);
`corruption` says what was done to the rejected response, funnel.json what was dropped on the way.
"""

LLAMA_FACTORY_INFO = {
    "specs_pairs": {
        "file_name": "data",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {
            "messages": "conversations",
            "chosen": "chosen_message",
            "rejected": "rejected_message",
            "images": "images",
        },
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    }
}


def pair_record(example: dict, chosen: str, rejected: str, corruption: str) -> dict:
    """One record of the data set, in TRL's and LLaMA-Factory's columns.

    example      the question, with its images
    chosen       text of the better response
    rejected     text of the worse one
    corruption   what was done to the rejected response, for example "no think tags"
    """
    # The question with `<image>` where an image belongs, as LLaMA-Factory reads it. TRL adds these
    # placeholders itself.
    messages = chat_messages(full_question(example), len(example["images"]), example["id"])
    parts = messages[0]["content"]
    texts = ["<image>" if part["type"] == "image" else part["text"] for part in parts]
    question = "".join(texts)
    bare_question = question.replace("<image>", "").strip()

    return {
        "id": example["id"],
        "images": example["images"],  # as the source gave them: `write_table` opens them
        # TRL
        "prompt": [{"role": "user", "content": bare_question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        # LLaMA-Factory
        "conversations": [{"role": "user", "content": question}],
        "chosen_message": {"role": "assistant", "content": chosen},
        "rejected_message": {"role": "assistant", "content": rejected},
        # ours
        "question": example["question"],
        "instruction": example["instruction"],
        "answer": example["answer"],
        "answer_type": example["answer_type"],
        "corruption": corruption,
    }


def write_table(pairs: list[dict], file: Path) -> None:
    """Write the pairs of this rank's questions as one parquet file.

    Each rank writes its own file, so that no images are sent from rank to rank. They are opened for
    a few pairs at a time: all those of nine thousand pairs, decoded, would take tens of gigabytes.

    Raises ExampleError if an image cannot be read.
    """
    file.parent.mkdir(exist_ok=True)
    with parquet.ParquetWriter(file, FEATURES.arrow_schema) as writer:
        for start in range(0, len(pairs), PAIRS_AT_A_TIME):
            records = [with_open_images(pair) for pair in pairs[start : start + PAIRS_AT_A_TIME]]
            part = datasets.Dataset.from_list(records, features=FEATURES)
            writer.write_table(part.with_format("arrow")[:].cast(FEATURES.arrow_schema))


def with_open_images(pair: dict) -> dict:
    return {**pair, "images": [load_image(image, pair["id"]) for image in pair["images"]]}


def write_readme(folder: Path, count: int) -> None:
    """Write README.md and dataset_info.json into the folder of the data set; `count` pairs."""
    (folder / "README.md").write_text(README.format(count=count))
    (folder / "dataset_info.json").write_text(json.dumps(LLAMA_FACTORY_INFO, indent=2) + "\n")
