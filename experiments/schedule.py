"""Run many stages, several at a time, and go on where it stopped.

    Task       one command, the folder that it fills, and the tasks that must have ended before
    run_all    starts every task as soon as it may, in the order of the list

A folder whose task ended holds a file `ended`, with a hash of the command and of the tasks before
it. So a list can be given again: what ended is kept, what was cut off starts over, and what would
now be run otherwise, or on something else, is run again.
"""

import hashlib
import os
import subprocess
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOG_TAIL = 1500  # characters of a failed task's log that are shown


@dataclass(frozen=True, eq=False)
class Task:
    """One command of a grid."""

    folder: Path  # what it fills
    command: tuple[str, ...]
    needs: tuple["Task", ...] = ()
    alone: bool = False  # it measures time: nothing else may run beside it

    def key(self) -> str:
        """A hash of all that its result depends on: its command, and the keys of what it needs."""
        parts = [*self.command, *[task.key() for task in self.needs]]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def marker(self) -> Path:
        return self.folder / "ended"

    def has_ended(self) -> bool:
        """True if exactly this task has filled the folder."""
        return self.marker().is_file() and self.marker().read_text() == self.key()

    def run(self) -> None:
        """Run the command; its output goes to FOLDER.log. Raises RuntimeError if it fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.marker().unlink(missing_ok=True)
        log = self.folder.with_name(self.folder.name + ".log")
        environment = {"OMP_NUM_THREADS": "1", **os.environ}  # the models are tiny
        environment["PYTHONPATH"] = str(ROOT)  # for patched copies of a stage, in other folders
        with open(log, "w") as output:
            result = subprocess.run(
                self.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        if result.returncode != 0:
            tail = log.read_text()[-LOG_TAIL:]
            raise RuntimeError(f"{' '.join(self.command)}\nfailed, {log} ends with\n{tail}")
        self.marker().write_text(self.key())


def run_all(tasks: list[Task], jobs: int, minutes: float = 0.0, say=print) -> bool:
    """Run every task that has not ended, at most `jobs` at a time, and each after its needs.

    minutes   start nothing new after so many; 0: no limit
    returns   True if all tasks have ended, False if the time was up before

    Raises RuntimeError of the first task that fails, when those beside it have ended.
    """
    began = time.monotonic()
    tasks = list({task.folder: task for task in tasks}.values())  # what is listed twice runs once
    waiting = [task for task in tasks if not task.has_ended()]
    total, ended = len(tasks), len(tasks) - len(waiting)
    running: dict[Future, Task] = {}
    time_is_up = False
    say(f"{ended} of {total} tasks had ended before")

    with ThreadPoolExecutor(jobs) as pool:
        while running or (waiting and not time_is_up):
            time_is_up = minutes > 0 and time.monotonic() - began > 60 * minutes
            while not time_is_up:
                task = next_task(waiting, list(running.values()), jobs)
                if task is None:
                    break
                waiting.remove(task)
                running[pool.submit(task.run)] = task
            if not running:
                break

            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                task = running.pop(future)
                future.result()  # raises what the task raised
                ended += 1
                elapsed = (time.monotonic() - began) / 60
                say(f"{ended:>4} of {total}  {elapsed:5.1f} min  {task.folder}")
    return not waiting


def next_task(waiting: list[Task], running: list[Task], jobs: int) -> Task | None:
    """The first waiting task that may start now, None if none may.

    Trap: a task that must be alone waits until nothing runs, and nothing may overtake it: if later
    tasks were started meanwhile, it might wait for ever (test_a_task_alone_is_not_overtaken).
    """
    if len(running) >= jobs or any(task.alone for task in running):
        return None
    for task in waiting:
        if not all(need.has_ended() for need in task.needs):
            continue
        if task.alone and running:
            return None
        return task
    return None
