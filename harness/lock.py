"""A lock on a folder: two runs never write into one.

The system frees the lock when its process ends, however it ends. No lock is left behind by a run
that was killed (test_a_killed_run_leaves_no_lock).
"""

import fcntl
import os
from pathlib import Path

NAME = ".lock"  # in the folder; what is in a run's folder besides it is the run

held = {}  # folder -> the open file of its lock, as long as this process lives


def take_lock(folder: Path) -> None:
    """Take the lock of a folder for this process. Raises ValueError if another one has it."""
    folder = folder.resolve()
    if folder in held:
        return

    file = open(folder / NAME, "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise ValueError(
            f"--run_dir {folder}: another run is writing there (process {owner}); wait for it, "
            "stop it, or take another folder"
        ) from error
    except OSError:  # a file system without locks: nothing keeps a second run out
        return

    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    held[folder] = file


def free_lock(folder: Path) -> None:
    """Give the lock back, if this process has it."""
    file = held.pop(folder.resolve(), None)
    if file is not None:
        file.close()


def is_used(folder: Path) -> bool:
    """True if there is anything in the folder but what a refused start leaves.

    That is a lock, its settings, and folders without a file.
    """
    return folder.is_dir() and any(
        file.is_file() for file in folder.rglob("*") if file.name not in (NAME, "config.json")
    )
