"""How far a long loop is: a bar on a terminal, one line at its end anywhere else."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm


def progress(items: Iterable, title: str, show: bool, total: int | None = None) -> Iterator:
    """The items, one by one.

    title   beside the bar
    show    False on ranks that print nothing
    total   how many items there are, where `items` does not know it

    In a file or a pipe a bar would be a thousand lines, so one line says that the loop has ended.
    """
    on_terminal = show and sys.stderr.isatty()
    began = time.perf_counter()
    yield from tqdm(items, title, total, leave=False, disable=not on_terminal)
    if show and not on_terminal:
        print(f"{title}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
