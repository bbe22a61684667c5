"""What earns a reward: the tables below are the documentation as well."""

import http.server
import json
import threading
import time

import pytest

import rewards
from rewards import Grade, Judge, MathVerifier, extract_answer, format_reward, grade

FORMATS = [  # response, reward
    ("<think> a </think> <answer> 2 </answer>", 0.5),
    ("<think>a</think><answer>2</answer>", 0.5),
    ("\n <think>line one\nline two</think>\n\n<answer>\n2\n</answer> \n", 0.5),
    ("<think> 1 < 2 and 3 > 2 </think> <answer> 2 </answer>", 0.5),
    ("<think> </think> <answer> 2 </answer>", 0.0),
    ("<think> a </think> <answer>  </answer>", 0.0),
    ("Sure! <think> a </think> <answer> 2 </answer>", 0.0),
    ("<think> a </think> <answer> 2 </answer> Done.", 0.0),
    ("<think> a </think> so <answer> 2 </answer>", 0.0),
    ("<think> a </think> <think> b </think> <answer> 2 </answer>", 0.0),
    ("<think> a </think> <answer> 2 </answer> <answer> 3 </answer>", 0.0),
    ("<answer> 2 </answer> <think> a </think>", 0.0),
    ("<think> a <answer> 2 </answer> </think>", 0.0),
    ("<think> a </think> <answer> 2", 0.0),
    ("<THINK> a </THINK> <ANSWER> 2 </ANSWER>", 0.0),
    ("the answer is 2", 0.0),
    ("", 0.0),
]

ANIMALS = ["cat", "dog", "a bird", "fish"]
TABLE = [  # type, gold, answer inside <answer>, score
    ("number", "2", "2", 1), ("number", "2", "2.0", 1), ("number", "2", "The answer is $\\boxed{2}$", 1),
    ("number", "2", "The answer is 2.", 1), ("number", "2", "two", 0), ("number", "2", "22", 0), ("number", "2", "", 0),
    ("number", "2", "1 2 3", 0), ("number", "5", "2 + 3 = 5", 1), ("number", "5", "x = 5", 1), ("number", "5", "3, 5", 0),
    ("number", "5", "4 or 5", 0), ("number", "1234", "1,234", 1), ("number", "1234", "12,34", 0),
    ("number", "12", "12 cm", 1), ("number", "12 cm", "12 cm", 1), ("number", "12 cm", "12 m", 0), ("number", "12", "\\$12", 1),
    ("number", "50", "50%", 1), ("number", "0.5", "50%", 1), ("number", "50%", "0.5", 1), ("number", "50%", "0.5%", 0),
    ("number", "3.14", "3.1416", 1), ("number", "3.1416", "3.14", 0), ("number", "3", "3.14", 0), ("number", "0.1", "0.14", 1),
    ("number", "0.5", "1/2", 1), ("number", "0.5", "\\frac{1}{2}", 1), ("number", "-0.5", "-\\frac{1}{2}", 1),
    ("number", "1200", "1.2e3", 1), ("number", "90", "90^\\circ", 1), ("number", "-3", "\u22123", 1), ("number", "3", "-3", 0),
    ("number", "<answer>7</answer>", "7", 1), ("number", "\\boxed{7}", "7", 1),
    ("choice", "B", "B", 1), ("choice", "B", "(B)", 1), ("choice", "B", "b.", 1), ("choice", "B", "B. dog", 1),
    ("choice", "B", "(B) dog", 1), ("choice", "B", "dog", 1), ("choice", "dog", "B", 1), ("choice", "dog", "Dog.", 1),
    ("choice", "B", "\\boxed{\\text{B}}", 1), ("choice", "B", "The answer is B", 1), ("choice", "B", "Option B", 1),
    ("choice", "B", "A", 0), ("choice", "B", "B. cat", 0), ("choice", "B", "A B C D", 0), ("choice", "B", "A and B", 0),
    ("choice", "B", "", 0), ("choice", "C", "a bird", 1), ("choice", "A", "a bird", 0), ("choice", "B", "maybe", 0),
    ("math", "\\frac{1}{2}", "0.5", 1), ("math", "x^2+1", "1 + x^2", 1), ("math", "\\sqrt{8}", "2\\sqrt{2}", 1),
    ("math", "x^2+1", "x^2-1", 0), ("math", "(1,2)", "(1, 2)", 1), ("math", "(1,2)", "(2, 1)", 0), ("math", "2\\pi", "6.28", 0),
    ("text", "yes", "Yes.", 1), ("text", "yes", "no", 0), ("text", "a red cube", "A  red cube", 1), ("text", "yes", "", 0),
    ("text", "yes", "yes and no", 0),
]


def row(kind, gold):
    return {"answer": gold, "answer_type": kind, "choices": ANIMALS if kind == "choice" else [], "question": "q"}


@pytest.mark.parametrize("response, reward", FORMATS)
def test_format_table(response, reward):
    """One think block, one answer block, both with something in them, nothing around."""
    assert format_reward(response) == reward


def test_mm_eureka_pattern_is_laxer():
    """The pattern that MM-EUREKA searches would accept text around the blocks; ours is a full match."""
    import re

    chatty = "Sure! <think> a </think> <answer> 2 </answer> Done."
    assert re.search(r"<think>(.+?)</think>\s*<answer>.+?</answer>", chatty, re.DOTALL) and not format_reward(chatty)


@pytest.mark.parametrize("kind, gold, answer, score", TABLE)
def test_reward_table(kind, gold, answer, score):
    """Type, gold, answer: 1 or 0, with a reason. The format does not matter to the accuracy."""
    verdict = grade(row(kind, gold), f"<think> so </think> <answer> {answer} </answer>")
    assert verdict.score == score and verdict.reason


def test_reward_table_is_long_enough():
    assert len(TABLE) >= 40


@pytest.mark.parametrize("response, kind, answer", [
    ("<answer> 1 </answer> wait <answer> 2 </answer>", "number", "2"), ("<think> a </think> <answer> 2", "number", "2"),
    ("so \\boxed{3} or \\boxed{\\frac{1}{2}}", "math", "\\frac{1}{2}"), ("The answer is 2.5.", "number", "2.5"),
    ("the answer is 2 .", "number", "2"), ("Answer: B", "choice", "B"), ("first 4, then 7 apples", "number", "7"),
    ("nothing here", "number", None), ("I like B", "choice", None), ("<answer></answer> 5", "number", None),
    ("line\nanswer : 3", "number", "3"), ("\\boxed{unclosed", "math", None)])
def test_extraction(response, kind, answer):
    """Blocks, boxes, plain words, last number; an empty block is an answer that says nothing."""
    assert extract_answer(response, kind) == answer


def test_options_that_are_letters():
    """Where options are letters themselves, in another order, gold and answer are read alike."""
    asked = {"answer": "A", "answer_type": "choice", "choices": ["C", "A", "B"], "question": "q"}
    assert [grade(asked, f"<answer>{x}</answer>").score for x in "ABC"] == [1.0, 0.0, 0.0]


def test_wrong_format_still_earns_accuracy():
    """Format and accuracy are independent and summed."""
    assert grade(row("number", "2"), "the answer is 2 .").score == 1.0 and format_reward("the answer is 2 .") == 0.0


def test_gold_that_is_no_option_is_not_scorable():
    """The row's fault: the completion is left out, not punished."""
    assert grade(row("choice", "whale"), "<answer> A </answer>").score is None


def test_math_that_hangs_is_bounded():
    """A tower of powers keeps sympy busy for ever: the worker is killed, the next question gets a new one."""
    verifier = MathVerifier(timeout_s=1.0)
    assert verifier("x+1", "1+x") is True
    began = time.monotonic()
    assert verifier("10^{10^{10^{10}}}", "9^{9^{9^{9^{9}}}} + x") is None
    assert time.monotonic() - began < 20
    assert verifier("x+1", "x+2") is False


def test_math_works_outside_the_main_thread(monkeypatch):
    """math-verify's own timeouts need a signal, which threads do not get; there all scores became 0."""
    found = []
    thread = threading.Thread(target=lambda: found.append(grade(row("math", "x+1"), "<answer> 1+x </answer>").score))
    thread.start()
    thread.join(60)
    assert found == [1.0]


def test_gold_goes_first():
    """math-verify is not symmetric: x = 5 is right for gold 5; a bare 5 need not be right for an interval."""
    verifier = MathVerifier()
    assert verifier("5", "x=5") is True
    assert verifier("1 < x < 2", "(1,2)") != verifier("(1,2)", "1 < x < 2") or verifier("1 < x < 2", "(1,2)") is not None


class FakeModel(http.server.BaseHTTPRequestHandler):
    """An endpoint on the loopback that answers as `replies` says; an int is an HTTP error."""

    replies, asked = [], []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        FakeModel.asked.append((body, self.headers.get("Authorization")))
        reply = FakeModel.replies.pop(0) if FakeModel.replies else 500
        if isinstance(reply, int):
            self.send_error(reply)
            return
        data = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def judge(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeModel)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JUDGE_API_KEY", "secret-key")
    monkeypatch.setattr(rewards.time, "sleep", lambda _: None)
    FakeModel.replies, FakeModel.asked = [], []
    yield Judge(f"http://127.0.0.1:{server.server_port}/v1", "m", tmp_path / "judge")
    server.shutdown()


def test_judge_answers_are_graded_and_cached(judge, tmp_path):
    """yes and no count; a second asking costs nothing; the key is sent and written nowhere."""
    FakeModel.replies = ["Yes.", "No, it is not."]
    text = row("text", "a feline")
    assert grade(text, "<answer> a cat </answer>", judge) == Grade(1.0, "judge says yes", "a cat")
    assert grade(text, "<answer> a dog </answer>", judge).score == 0.0
    assert grade(text, "<answer> a cat </answer>", judge).score == 1.0 and len(FakeModel.asked) == 2
    assert FakeModel.asked[0][1] == "Bearer secret-key"
    assert all("secret-key" not in f.read_text() for f in (tmp_path / "judge").iterdir())


def test_silent_judge_is_not_a_wrong_answer(judge):
    """Errors are retried; if it stays silent or vague the completion is not scorable."""
    FakeModel.replies = [500, "yes"]
    assert grade(row("text", "x y"), "<answer> z </answer>", judge).score == 1.0
    FakeModel.replies = [500, 500, 500]
    assert grade(row("text", "x y"), "<answer> w </answer>", judge).score is None
    FakeModel.replies = ["perhaps", "hm", "well"]
    assert grade(row("text", "x y"), "<answer> v </answer>", judge).score is None
