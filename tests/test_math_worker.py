"""math-verify behind a pipe: bounded, from any thread, and never out of step."""

import threading
import time

import pytest

from rewards import grade, math_worker
from rewards.math_worker import MathVerifier, MathWorker

TOWER = "9^{9^{9^{9^{9}}}} + x"


def example(gold):
    return {"answer": gold, "answer_type": "math", "choices": [], "question": "q"}


def test_math_that_hangs_is_bounded(monkeypatch):
    """A tower of powers keeps sympy busy for ever: the worker is killed, the next question gets a new one."""
    verify = MathVerifier(timeout_s=3.0, workers=1)
    assert verify("x+1", "1+x") is True
    began = time.monotonic()
    assert verify("10^{10^{10^{10}}}", TOWER) is None
    assert time.monotonic() - began < 60
    assert verify("x+1", "x+2") is False


def test_no_verdict_is_not_a_wrong_answer(monkeypatch):
    """Out of time is `None`, could not be scored: such a completion is left out of its group."""
    monkeypatch.setattr("rewards.expression.math_equal", MathVerifier(timeout_s=0.5, workers=1))
    verdict = grade(example("10^{10^{10^{10}}}"), f"<answer> {TOWER} </answer>")
    assert verdict.score is None and "no verdict" in verdict.reason


def test_late_ready_is_no_verdict(tmp_path, monkeypatch):
    """A process whose imports take longer than the limit is killed. The classic version goes on, and reads
    "ready" as the verdict on its question, and every verdict one question late from then on."""
    slow = tmp_path / "slow.py"
    slow.write_text("import json, sys, time\ntime.sleep(1)\nprint(json.dumps('ready'), flush=True)\n"
                    "for line in sys.stdin:\n    print('true', flush=True)\n")
    monkeypatch.setattr(math_worker, "__file__", str(slow))

    worker = MathWorker()
    assert worker.ask("1", "1", timeout_s=5, ready_s=0.2) is None
    assert worker.process is None, "it is gone, and its late line with it"
    assert worker.ask("1", "1", timeout_s=5, ready_s=20) is True
    worker.stop()


def test_several_workers_answer_at_once():
    """Two questions that take their whole time take it together, not one after the other."""
    verify = MathVerifier(timeout_s=2.0, workers=2)
    verify.start()
    assert verify("1", "2") is False
    assert verify("x", "x") is True
    began, verdicts = time.monotonic(), []
    threads = [threading.Thread(target=lambda: verdicts.append(verify("10^{10^{10^{10}}}", TOWER))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert verdicts == [None, None]
    assert time.monotonic() - began < 2.0 * 2 + 30  # generous: the second worker may still be importing


def test_math_works_outside_the_main_thread():
    """math-verify's own timeouts need a signal, which threads do not get; there all scores became 0."""
    found = []
    thread = threading.Thread(target=lambda: found.append(grade(example("x+1"), "<answer> 1+x </answer>").score))
    thread.start()
    thread.join(60)
    assert found == [1.0]


@pytest.mark.parametrize("gold, answer, equal", [
    ("7 - 11b - d", "7 - 11b + d", False), ("7 = 11a - c", "7 = 11a + c", False), ("11a + c = 7", "7 = 11a + c", True)])
def test_letters_are_not_stripped(gold, answer, equal):
    """math-verify's defaults take "b - d" for a unit and compare 7 - 11 with 7 - 11."""
    assert MathVerifier(workers=1)(gold, answer) is equal
