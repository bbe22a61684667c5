"""The data set of preference pairs: its columns and its files.

    TABLE               one a process: the pairs of its questions, images included
    README.md           what the columns are
    dataset_info.json   which of them LLaMA-Factory reads
"""

import json
from pathlib import Path

import datasets

from model.prompts import chat_messages, full_question, load_image

# The layout of data sets on the hub: `load_dataset` takes these files alone, whatever else is in
# the folder. A README that names them would do as well, but then two folders of one name would
# share an entry of the `datasets` cache.
TABLE = "data/train-{:05d}-of-{:05d}.parquet"  # number of the process, number of processes

README = """{count} preference pairs. `datasets.load_dataset` opens this folder.
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
    """One line of the data set, in TRL's and LLaMA-Factory's columns."""
    messages = chat_messages(full_question(example), len(example["images"]), example["id"])
    parts = messages[0]["content"]
    texts = ["<image>" if part["type"] == "image" else part["text"] for part in parts]
    question = "".join(texts)  # with a placeholder for each image, as LLaMA-Factory wants it
    bare_question = question.replace("<image>", "").strip()  # TRL adds the placeholders itself

    return {
        "id": example["id"],
        "images": [load_image(image, example["id"]) for image in example["images"]],
        "prompt": [{"role": "user", "content": bare_question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "conversations": [{"role": "user", "content": question}],
        "chosen_message": {"role": "assistant", "content": chosen},
        "rejected_message": {"role": "assistant", "content": rejected},
        "question": example["question"],
        "instruction": example["instruction"],
        "answer": example["answer"],
        "answer_type": example["answer_type"],
        "corruption": corruption,
    }


def write_table(pairs: list[dict], file: Path) -> None:
    """Write the pairs of this rank's questions: images are never sent from rank to rank."""
    file.parent.mkdir(exist_ok=True)
    table = datasets.Dataset.from_list(pairs)
    table.cast_column("images", datasets.List(datasets.Image())).to_parquet(file)


def write_readme(folder: Path, count: int) -> None:
    """Write README.md and dataset_info.json beside the data."""
    (folder / "README.md").write_text(README.format(count=count))
    (folder / "dataset_info.json").write_text(json.dumps(LLAMA_FACTORY_INFO, indent=2) + "\n")
