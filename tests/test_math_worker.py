"""math-verify behind a pipe: bounded, from any thread, and never out of step."""

import os
import threading
import time

import pytest

from rewards import grade, math_worker
from rewards.math_worker import MathVerifier, MathWorker

POWERS = "10^{10^{10^{10}}}"  # two expressions that keep sympy busy for ever
TOWER = "9^{9^{9^{9^{9}}}} + x"


def example(gold):
    return {"answer": gold, "answer_type": "math", "choices": [], "question": "q"}


@pytest.fixture(scope="module")
def verify():
    return MathVerifier(workers=1)


def test_math_that_hangs_is_bounded():
    """The worker is killed, and the next question gets a new one."""
    verify = MathVerifier(timeout_s=3.0, workers=1)
    assert verify("x+1", "1+x") is True

    began = time.monotonic()
    assert verify(POWERS, TOWER) is None
    assert time.monotonic() - began < 60
    assert verify("x+1", "x+2") is False


def test_no_verdict_is_not_a_wrong_answer(monkeypatch):
    """Out of time is `None`, could not be scored: the completion is left out of its group."""
    monkeypatch.setattr("rewards.expression.MATH_VERIFY", MathVerifier(timeout_s=0.5, workers=1))

    verdict = grade(example(POWERS), f"<answer> {TOWER} </answer>")
    assert verdict.score is None
    assert "no verdict" in verdict.reason


SLOW_WORKER = """
import json, sys, time
time.sleep(1)
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    print("true", flush=True)
"""


def test_late_ready_is_no_verdict(tmp_path, monkeypatch):
    """A process whose imports take longer than the limit is killed.

    The classic version goes on. It reads "ready" as the verdict on its question, and from then on
    every verdict one question late.
    """
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_WORKER)
    monkeypatch.setattr(math_worker, "__file__", str(slow))

    worker = MathWorker()
    assert worker.ask("1", "1", timeout_s=5, ready_s=0.2) is None
    assert worker.process is None, "it is gone, and its late line with it"
    assert worker.ask("1", "1", timeout_s=5, ready_s=20) is True
    worker.stop()


def test_several_workers_answer_at_once():
    """Two questions that take all their time take it together, not one after the other."""
    verify = MathVerifier(timeout_s=2.0, workers=2)
    verify.start()
    assert verify("1", "2") is False
    assert verify("x", "x") is True

    verdicts = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(verify(POWERS, TOWER))) for _ in range(2)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert verdicts == [None, None]
    # Generous: the second worker may still be importing.
    assert time.monotonic() - began < 2.0 * 2 + 30


def test_math_works_outside_the_main_thread():
    """math-verify's own timeouts need a signal, which threads do not get: all scores were 0."""
    found = []

    def ask():
        found.append(grade(example("x+1"), "<answer> 1+x </answer>").score)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(60)
    assert found == [1.0]


@pytest.mark.parametrize(
    "gold, answer, equal",
    [
        ("7 - 11b - d", "7 - 11b + d", False),
        ("7 = 11a - c", "7 = 11a + c", False),
        ("11a + c = 7", "7 = 11a + c", True),
    ],
)
def test_letters_are_not_stripped(verify, gold, answer, equal):
    """math-verify's defaults take "b - d" for a unit and compare 7 - 11 with 7 - 11."""
    assert verify(gold, answer) is equal


def test_gold_goes_first(verify):
    """math-verify is not symmetric: the set answers the relation, the relation not the set."""
    assert verify("5", "x=5") is True
    assert verify(r"-2 \le x \le 7", r"x \in [-2,7]") is True
    assert verify(r"x \in [-2,7]", r"-2 \le x \le 7") is False


def test_ctrl_c_does_not_reach_a_worker(verify):
    """A terminal sends SIGINT to the whole process group; the run finishes its step with workers.

    In the group of the run they died, and answers of the step that was saved stayed unscored.
    """
    assert verify("x+1", "1+x") is True
    worker = verify.workers[0].process
    assert os.getpgid(worker.pid) != os.getpgid(0)
