"""Ctrl-C and SIGTERM: the run ends after the step that it is in, saved, and says how to go on.

    with listening():      run_stage, around a stage's main
        ...
        asked()            at the end of a step: the signal that came, or None

The first signal only leaves a note. The second one of its kind ends the process at once, as if
nobody listened: what a run writes is written under another name first, so its last checkpoint stays
whole (test_second_ctrl_c_stops_at_once).
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTE = (
    "\nasked to stop: this step is finished and saved first; the same again stops at once, and the "
    "last checkpoint stays whole\n"
)

received: list[int] = []  # what came while somebody listened


def asked() -> int | None:
    """The number of the signal that asked this process to stop, None if there was none."""
    return received[0] if received else None


@contextmanager
def listening() -> Iterator[None]:
    """Take note of the signals while the block runs, then leave them as they were before."""
    before = {number: signal.signal(number, take_note) for number in SIGNALS}
    received.clear()
    try:
        yield
    finally:
        received.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def take_note(number: int, frame) -> None:
    """The handler: remember the signal, and let the next one of its kind end the process.

    It says so by `os.write`: a signal may come in the middle of a `print`, which must not be
    entered twice.
    """
    received.append(number)
    signal.signal(number, signal.SIG_DFL)
    if os.environ.get("RANK", "0") == "0":  # one of the ranks says it
        os.write(2, NOTE.encode())
