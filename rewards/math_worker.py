r"""math-verify in processes of its own, so that an endless expression can be stopped.

    verify = MathVerifier(workers=2)
    verify.start()
    verify(r"\frac{1}{2}", "0.5")    ->  True
    verify("x", a tower of powers)   ->  None after timeout_s, and that process is killed

One JSON line in, one out. Several threads may ask at once: each takes a free process, or waits for
one.
"""

import json
import logging
import os
import queue
import select
import subprocess
import sys
from dataclasses import replace

TIMEOUT_S = 10.0  # for one question
READY_S = 120.0  # for importing sympy, most of all when all ranks of a machine start together
MOST_WORKERS = 4  # each holds 60 MB


class MathWorker:
    """One process that answers one question at a time.

    Trap: math-verify's own timeouts use signal.alarm, which works in a main thread only, and
    without them a sympy expression can run for ever. So they are off, and a process that does not
    answer in time is killed (test_math_that_hangs_is_bounded).
    """

    def __init__(self, script: str = __file__) -> None:
        self.script = script
        self.process: subprocess.Popen | None = None
        self.ready = False

    def start(self) -> None:
        """Start the process, without waiting until it can answer."""
        if self.process is not None and self.process.poll() is None:
            return
        self.ready = False
        # -P keeps this folder off its import path, so that no package imports our number.py.
        command = [sys.executable, "-P", self.script]
        # A session of its own. Trap: Ctrl-C goes to all processes of a terminal. A worker that died
        # of it would leave answers unscored in the very step that the run finishes and saves
        # (test_ctrl_c_does_not_reach_a_worker).
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

    def ask(self, gold: str, answer: str, timeout_s: float, ready_s: float) -> bool | None:
        """True or False, or None if there is no verdict in time.

        Trap: "ready" has a limit of its own, and a process that misses it is killed. Were it left
        alone, the late "ready" would be read as the verdict on the next question
        (test_late_ready_is_no_verdict).
        """
        self.start()
        if not self.ready:
            self.ready = self.read(ready_s) == "ready"
        if not self.ready:
            self.stop()
            return None

        try:
            self.process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it died between two questions
            self.stop()
            return None

        verdict = self.read(timeout_s)
        if not isinstance(verdict, bool):
            self.stop()
            return None
        return verdict

    def read(self, timeout_s: float) -> str | bool | None:
        """The next line of the process, None if it does not come in time or the process is gone."""
        readable, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline() if readable else b""
        return json.loads(line) if line else None

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.process = None


class MathVerifier:
    """A pool of workers, asked with (gold, answer) in this order: math-verify is not symmetric.

    script   what each process runs: this file, or another one with the same lines in and out
    """

    def __init__(
        self,
        timeout_s: float = TIMEOUT_S,
        ready_s: float = READY_S,
        workers: int | None = None,
        script: str = __file__,
    ):
        self.timeout_s, self.ready_s = timeout_s, ready_s
        count = workers or min(MOST_WORKERS, count_cores())
        self.workers = [MathWorker(script) for _ in range(count)]
        # The last one used is asked first: it is running, while others may never have started.
        self.free: queue.LifoQueue[MathWorker] = queue.LifoQueue()
        for worker in reversed(self.workers):
            self.free.put(worker)

    def start(self) -> None:
        """Start every process now, so that the first question does not wait for the imports."""
        for worker in self.workers:
            worker.start()

    def __call__(self, gold: str, answer: str) -> bool | None:
        """True or False, or None if it gave no verdict in time."""
        worker = self.free.get()
        try:
            return worker.ask(gold, answer, self.timeout_s, self.ready_s)
        finally:
            self.free.put(worker)


def count_cores() -> int:
    """The cores that this process may use, which a container or taskset can limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- The process itself --------------------------------------------------------------------------


def main() -> None:
    """Read [gold, answer] lines, write true or false."""
    logging.disable(logging.WARNING)  # math-verify warns at each call that its timeouts are off
    is_equal("x+1", "1+x")  # imports what it needs
    print(json.dumps("ready"), flush=True)

    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            verdict = is_equal(gold, answer)
        except Exception:  # sympy raises what it likes on odd input; the answer is then not equal
            verdict = False
        print(json.dumps(verdict), flush=True)


def is_equal(gold: str, answer: str) -> bool:
    """math-verify's verdict on two expressions.

    Trap: math-verify's defaults strip what they take for a unit, "7 - 11b - d" becomes 7 - 11, and
    where LaTeX fails they pick a number out of the text. Units are read before (`units.py`), so
    both are off (test_letters_are_not_stripped).
    """
    from math_verify import LatexExtractionConfig, parse, verify  # here: only this process needs it

    latex = LatexExtractionConfig()
    latex = replace(latex, normalization_config=replace(latex.normalization_config, units=False))
    parsed = [parse(marked(text), [latex], parsing_timeout=None) for text in (gold, answer)]
    return all(parsed) and bool(verify(*parsed, timeout_seconds=None))


def marked(text: str) -> str:
    """math-verify reads LaTeX only where it is marked as such."""
    return text if "$" in text or "\\boxed" in text else f"${text}$"


if __name__ == "__main__":
    main()
