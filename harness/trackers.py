"""Trackers: TensorBoard, Weights & Biases, Trackio, whatever `--log_with` names.

Metrics go through `Accelerator.log`. Here is what accelerate leaves open: where TensorBoard writes,
what it may be told of the settings, and the completions and images beside the curves.
"""

import dataclasses
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image

IMAGES_OF = ("tensorboard", "wandb")  # trackers that accelerate can give images to


def start_trackers(accelerator: Accelerator, config, folder: Path, step: int) -> None:
    """Start what --log_with names, if it names something.

    folder   of the run: TensorBoard writes into its `tensorboard/`
    step     that the run goes on from; what TensorBoard has of later steps is dropped
    """
    if not config.log_with:
        return
    accelerator.project_configuration.logging_dir = str(folder)
    settings = {name: as_setting(value) for name, value in dataclasses.asdict(config).items()}
    more = {"tensorboard": {"purge_step": step + 1}} if config.log_with == "tensorboard" else {}
    accelerator.init_trackers(
        "tensorboard" if config.log_with == "tensorboard" else "specs", settings, more
    )


def as_setting(value):
    """A setting as a tracker takes it: TensorBoard knows no None."""
    return str(value) if value is None else value


def log_sample(accelerator: Accelerator, record: dict, images: list[Image.Image]) -> None:
    """Send a record of samples.jsonl: its prompt and completions as a table, and its images.

    record   with `step`, `prompt`, `gold`, `completions` and `totals`
    images   RGB
    """
    step = record["step"]
    accelerator.log({"completions": as_table(record)}, step=step)
    for tracker in accelerator.trackers:
        if tracker.name not in IMAGES_OF:
            continue
        for i, image in enumerate(images):  # one by one: their sizes may differ
            name = "image" if i == 0 else f"image {i + 1}"
            if tracker.name == "tensorboard":
                pixels = np.asarray(image)[None]  # (1, height, width, 3)
                tracker.log_images({name: pixels}, step=step, dataformats="NHWC")
            else:
                tracker.log_images({name: [image]}, step=step)


def as_table(record: dict) -> str:
    """A sample in Markdown, which TensorBoard shows as a table: one line per completion."""
    lines = [f"gold: {record['gold']}", "", record["prompt"], "", "| reward | completion |"]
    lines.append("|---|---|")
    for total, text in zip(record["totals"], record["completions"]):
        cell = text.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {total:.2f} | {cell} |")
    return "\n".join(lines)
