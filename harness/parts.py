"""Resume for the stages that train nothing: what is finished is kept, part by part.

    RUN/parts/rank0.jsonl      one line per finished part of this rank: its records, and the state
                               of the random numbers behind it

With --resume the finished parts are read back, the rest is done, and the result is bit-equal to
that of an unbroken run (test_sampling_resumes_where_it_was_killed).
"""

import base64
import os
import sys
from collections.abc import Callable, Sequence

import torch

from harness import stopping
from harness.progress import progress
from harness.resume import command_to_resume
from harness.run import Run, append_jsonl, read_jsonl


class Parts:
    """The finished parts of this rank. Without --resume there are none at the start."""

    def __init__(self, run: Run):
        self.run = run
        self.file = run.folder / "parts" / f"rank{run.accelerator.process_index}.jsonl"
        self.file.parent.mkdir(exist_ok=True)

        finished = read_jsonl(self.file) if self.file.exists() else []
        self.finished = {part["part"]: part for part in finished}
        self.write_anew(finished)  # without a line that is cut off: the next would continue it

    def write_anew(self, finished: list[dict]) -> None:
        partial = self.file.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        append_jsonl(partial, finished)
        os.replace(partial, self.file)

    def each(
        self,
        name: str,
        items: Sequence,
        size: int,
        work: Callable[[Sequence], list[dict]],
        generator: torch.Generator,
    ) -> list[dict]:
        """The records of all items, `size` of them at a time.

        name        of this work, different from every other of the run
        work        items -> their records, which JSON can hold; it draws from `generator`
        generator   after a part that is read back, it stands where it stood when that part ended
        """
        records = []
        for start in progress(range(0, len(items), size), title=name, show=self.run.writes):
            key = f"{name}, {start} to {min(start + size, len(items))}"
            if key in self.finished:
                generator.set_state(from_text(self.finished[key]["generator"]))
            else:
                done = work(items[start : start + size])
                part = {"part": key, "records": done, "generator": to_text(generator.get_state())}
                append_jsonl(self.file, [part])
                self.finished[key] = part
                self.stop_if_asked()
            records += self.finished[key]["records"]
        return records

    def stop_if_asked(self) -> None:
        """End this process if Ctrl-C or SIGTERM came. What is finished is in the file.

        It does not wait for the other ranks, which may be in the middle of a long part.
        """
        number = stopping.asked()
        if number is None:
            return
        self.run.say(
            f"stopped as asked; to go on: {command_to_resume(self.run.folder, self.run.ranks)}"
        )
        if self.run.ranks > 1:
            sys.stderr.flush()
            os._exit(128 + number)
        sys.exit(128 + number)


def to_text(state: torch.Tensor) -> str:
    """The state of a generator, bytes, as text that JSON can hold."""
    return base64.b64encode(state.numpy().tobytes()).decode()


def from_text(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
