"""math-verify in a process of its own: one JSON line in, one out.

    math_equal(gold, answer)  ->  True, False, or None if there is no verdict in time

Its own time limits use signal.alarm, which works in a main thread only, and without them a sympy
expression can run for ever. So they are off, and a process that does not answer in time is killed.
"""

import json
import logging
import select
import subprocess
import sys

MATH_TIMEOUT_S = 10.0
START_TIMEOUT_S = 60.0  # importing sympy takes a while, and is not the expression's fault


class MathVerifier:
    """The end that asks.

    Trap: an answer such as 9^9^9^9 keeps sympy busy for ever, and a run with it
    (test_math_that_hangs_is_bounded). math-verify's arguments are (gold, answer), in this order; it
    is not symmetric.
    """

    def __init__(self, timeout_s: float = MATH_TIMEOUT_S):
        self.timeout_s = timeout_s
        self.process: subprocess.Popen | None = None

    def __call__(self, gold: str, answer: str) -> bool | None:
        """True or False, or None if it gave no verdict in time."""
        if self.process is None or self.process.poll() is not None:
            self.start()

        self.process.stdin.write(json.dumps([gold, answer]) + "\n")
        verdict = self.read(self.timeout_s)
        if verdict is None:
            self.process.kill()
            self.process.wait()
            self.process = None
        return verdict

    def start(self) -> None:
        """Start the process and wait until it says that it is ready."""
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.read(START_TIMEOUT_S)

    def read(self, timeout_s: float):
        """The next line of the process, None after `timeout_s` seconds without one."""
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline() if ready else ""
        return json.loads(line) if line else None


math_equal = MathVerifier()


# --- The process -------------------------------------------------------------------------------


def serve() -> None:
    """The end that answers."""
    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # it warns at each call that its time limits are off
    print(json.dumps("ready"), flush=True)

    for line in sys.stdin:
        gold, answer = (parse(as_latex(text), parsing_timeout=None) for text in json.loads(line))
        try:
            verdict = bool(gold) and bool(answer) and verify(gold, answer, timeout_seconds=None)
        except Exception:  # sympy raises what it likes on odd input; the answer is then not equal
            verdict = False
        print(json.dumps(bool(verdict)), flush=True)


def as_latex(text: str) -> str:
    """math-verify reads LaTeX only where it is marked as such."""
    return text if "$" in text or "\\boxed" in text else f"${text}$"


if __name__ == "__main__":
    serve()
