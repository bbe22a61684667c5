"""Memory of the host over many steps and over many examples."""

import io
import json
from pathlib import Path

import datasets
import pytest
import torch

import grpo
from conftest import small_grpo
from harness.run import Run
from toy import world

STATUS = Path("/proc/self/status")
FLAT = 1.05


def memory() -> int:
    """kB of main memory that this process holds; pages of files that are mapped do not count.

    A table is such a file: the kernel reads its pages when needed, and drops them again.
    """
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1])


def run_and_measure(rank: int, start: str, folder: str, settings: dict) -> None:
    """A run of GRPO in a new process; the memory after each step goes into a file."""
    torch.set_num_threads(1)
    seen = []
    log = Run.log

    def log_and_measure(*args):
        log(*args)
        seen.append(memory())

    Run.log = log_and_measure
    grpo.main(small_grpo(start, folder, save_every=10**6, sample_every=10**6, **settings))
    (Path(folder) / "memory.json").write_text(json.dumps(seen))


def memory_of(start: str, folder: Path, **settings) -> list[float]:
    torch.multiprocessing.spawn(run_and_measure, args=(start, str(folder), settings), nprocs=1)
    return json.loads((folder / "memory.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="reads the memory of a process from /proc")
def test_memory_is_flat_over_steps(start, tmp_path):
    """After 50 steps that warm caches up, 150 more take at most 5 % more memory."""
    seen = memory_of(start, tmp_path / "run", steps=200, max_examples=64)
    assert len(seen) == 200
    assert max(seen[50:]) < FLAT * seen[50]


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="reads the memory of a process from /proc")
def test_memory_does_not_grow_with_the_examples(start, tmp_path):
    """1,000 and 4,000 questions with pictures in a parquet: at most 5 % apart."""
    peaks = []
    for count in (1000, 4000):
        file = tmp_path / f"{count}.parquet"
        table = datasets.Dataset.from_list(list(questions(count)))
        table.cast_column("images", datasets.List(datasets.Image())).to_parquet(file)
        settings = dict(data=str(file), instruction="", max_examples=None, steps=40)
        peaks.append(max(memory_of(start, tmp_path / f"run{count}", **settings)))
    assert peaks[1] < FLAT * peaks[0]


def questions(count: int):
    """Records with a picture of 280 x 280 each."""
    drawn = world.examples(50, seed=3)
    for i in range(count):
        example = drawn[i % len(drawn)]
        png = io.BytesIO()
        example["images"][0].resize((280, 280)).save(png, "PNG")
        image = {"bytes": png.getvalue(), "path": None}
        yield {"id": str(i), "question": example["question"], "answer": "2", "images": [image]}
