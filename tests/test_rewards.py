"""What earns a reward: the tables below are the documentation as well."""

import http.server
import json
import re
import threading

import pytest

import rewards.judge
from rewards import Grade, Judge, grade, is_in_format

FORMATS = [  # response, is it in the format?
    ("<think> a </think> <answer> 2 </answer>", True),
    ("<think>a</think><answer>2</answer>", True),
    ("\n <think>line one\nline two</think>\n\n<answer>\n2\n</answer> \n", True),
    ("<think> 1 < 2 and 3 > 2 </think> <answer> 2 </answer>", True),
    ("<think> </think> <answer> 2 </answer>", False),
    ("<think> a </think> <answer>  </answer>", False),
    ("Sure! <think> a </think> <answer> 2 </answer>", False),
    ("<think> a </think> <answer> 2 </answer> Done.", False),
    ("<think> a </think> so <answer> 2 </answer>", False),
    ("<think> a </think> <think> b </think> <answer> 2 </answer>", False),
    ("<think> a </think> <answer> 2 </answer> <answer> 3 </answer>", False),
    ("<answer> 2 </answer> <think> a </think>", False),
    ("<think> a <answer> 2 </answer> </think>", False),
    ("<think> a </think> <answer> 2", False),
    ("<THINK> a </THINK> <ANSWER> 2 </ANSWER>", False),
    ("the answer is 2", False),
    ("", False),
]

ANIMALS = ["cat", "dog", "a bird", "fish"]
TABLE = [  # answer type, gold, answer inside <answer>, score
    ("number", "2", "2", 1),
    ("number", "2", "2.0", 1),
    ("number", "2", "The answer is $\\boxed{2}$", 1),
    ("number", "2", "The answer is 2.", 1),
    ("number", "2", "two", 1),
    ("number", "2", "22", 0),
    ("number", "2", "", 0),
    ("number", "2", "1 2 3", 0),
    ("number", "5", "2 + 3 = 5", 1),
    ("number", "5", "x = 5", 1),
    ("number", "5", "3, 5", 0),
    ("number", "5", "4 or 5", 0),
    ("number", "1234", "1,234", 1),
    ("number", "1234", "12,34", 0),
    ("number", "12", "12 cm", 1),
    ("number", "12 cm", "12 cm", 1),
    ("number", "12 cm", "12 m", 0),
    ("number", "12", "\\$12", 1),
    ("number", "50", "50%", 1),
    ("number", "0.5", "50%", 1),
    ("number", "50%", "0.5", 1),
    ("number", "50%", "0.5%", 0),
    ("number", "3.14", "3.1416", 1),
    ("number", "3.1416", "3.14", 0),
    ("number", "3", "3.14", 0),
    ("number", "0.1", "0.14", 1),
    ("number", "0.5", "1/2", 1),
    ("number", "0.5", "\\frac{1}{2}", 1),
    ("number", "-0.5", "-\\frac{1}{2}", 1),
    ("number", "1200", "1.2e3", 1),
    ("number", "90", "90^\\circ", 1),
    ("number", "-3", "\u22123", 1),
    ("number", "3", "-3", 0),
    ("number", "<answer>7</answer>", "7", 1),
    ("number", "\\boxed{7}", "7", 1),
    ("choice", "B", "B", 1),
    ("choice", "B", "(B)", 1),
    ("choice", "B", "b.", 1),
    ("choice", "B", "B. dog", 1),
    ("choice", "B", "(B) dog", 1),
    ("choice", "B", "dog", 1),
    ("choice", "dog", "B", 1),
    ("choice", "dog", "Dog.", 1),
    ("choice", "B", "\\boxed{\\text{B}}", 1),
    ("choice", "B", "The answer is B", 1),
    ("choice", "B", "Option B", 1),
    ("choice", "B", "A", 0),
    ("choice", "B", "B. cat", 0),
    ("choice", "B", "A B C D", 0),
    ("choice", "B", "A and B", 0),
    ("choice", "B", "", 0),
    ("choice", "C", "a bird", 1),
    ("choice", "A", "a bird", 0),
    ("choice", "B", "maybe", 0),
    ("math", "\\frac{1}{2}", "0.5", 1),
    ("math", "x^2+1", "1 + x^2", 1),
    ("math", "\\sqrt{8}", "2\\sqrt{2}", 1),
    ("math", "x^2+1", "x^2-1", 0),
    ("math", "(1,2)", "(1, 2)", 1),
    ("math", "(1,2)", "(2, 1)", 0),
    ("math", "2\\pi", "6.28", 0),
    ("text", "yes", "Yes.", 1),
    ("text", "yes", "no", 0),
    ("text", "a red cube", "A  red cube", 1),
    ("text", "yes", "", 0),
    ("text", "yes", "yes and no", 0),
]


def example(answer_type, gold) -> dict:
    return {
        "answer": gold,
        "answer_type": answer_type,
        "choices": ANIMALS if answer_type == "choice" else [],
        "question": "q",
    }


def graded(answer_type, gold, answer, judge=None) -> Grade:
    """The grade of a response that gives this answer."""
    response = f"<think> so </think> <answer> {answer} </answer>"
    return grade(example(answer_type, gold), response, judge)


# --- Format --------------------------------------------------------------------------------------


@pytest.mark.parametrize("response, expected", FORMATS)
def test_format_table(response, expected):
    """One think block, one answer block, both with something in them, nothing around."""
    assert is_in_format(response) is expected


def test_mm_eureka_pattern_is_laxer():
    """MM-EUREKA's pattern is searched for, so it accepts text around; ours is a full match."""
    chatty = "Sure! <think> a </think> <answer> 2 </answer> Done."

    assert re.search(r"<think>(.+?)</think>\s*<answer>.+?</answer>", chatty, re.DOTALL)
    assert not is_in_format(chatty)


def test_wrong_format_still_earns_accuracy():
    """Format and accuracy are independent and summed."""
    assert grade(example("number", "2"), "the answer is 2 .").score == 1.0
    assert not is_in_format("the answer is 2 .")


# --- Accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer_type, gold, answer, score", TABLE)
def test_reward_table(answer_type, gold, answer, score):
    """Type, gold, answer: 1 or 0, with a reason. The format does not matter to the accuracy."""
    verdict = graded(answer_type, gold, answer)
    assert verdict.score == score
    assert verdict.reason


def test_reward_table_is_long_enough():
    """A short table would let an answer type go untested."""
    assert len(TABLE) >= 40


def test_options_that_are_letters():
    """Where options are letters themselves, in another order, gold and answer are read alike."""
    asked = {"answer": "A", "answer_type": "choice", "choices": ["C", "A", "B"], "question": "q"}
    scores = [grade(asked, f"<answer>{letter}</answer>").score for letter in "ABC"]
    assert scores == [1.0, 0.0, 0.0]


def test_gold_that_is_no_option_is_not_scorable():
    """The example is at fault: the completion is left out, not punished."""
    assert grade(example("choice", "whale"), "<answer> A </answer>").score is None


# --- The judge -----------------------------------------------------------------------------------


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

        message = {"role": "assistant", "content": reply}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """A Judge that asks the FakeModel, and does not sleep between retries."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeModel)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JUDGE_API_KEY", "secret-key")
    monkeypatch.setattr(rewards.judge.time, "sleep", lambda _: None)
    FakeModel.replies, FakeModel.asked = [], []

    yield Judge(f"http://127.0.0.1:{server.server_port}/v1", "m", tmp_path / "judge")

    server.shutdown()
    server.server_close()


def test_judge_answers_are_graded_and_cached(judge, tmp_path):
    """yes and no count; asked again, it costs nothing; the key is sent and written nowhere."""
    FakeModel.replies = ["Yes.", "No, it is not."]

    first = grade(example("text", "a feline"), "<answer> a cat </answer>", judge)
    assert first == Grade(1.0, "block: judge says yes", "a cat")
    assert graded("text", "a feline", "a dog", judge).score == 0.0
    assert graded("text", "a feline", "a cat", judge).score == 1.0
    assert len(FakeModel.asked) == 2

    _, authorization = FakeModel.asked[0]
    assert authorization == "Bearer secret-key"
    assert all("secret-key" not in file.read_text() for file in (tmp_path / "judge").iterdir())


def test_silent_judge_is_not_a_wrong_answer(judge):
    """Errors are retried; if it stays silent or vague, the completion is not scorable."""
    FakeModel.replies = [500, "yes"]
    assert graded("text", "x y", "z", judge).score == 1.0

    FakeModel.replies = [500, 500, 500]
    assert graded("text", "x y", "w", judge).score is None

    FakeModel.replies = ["perhaps", "hm", "well"]
    assert graded("text", "x y", "v", judge).score is None


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refused_judge_stops_the_run(judge, status):
    """A wrong key or URL never mends itself: the first call fails and says what to check.

    Counted as silence, a whole run would go by without an accuracy.
    """
    FakeModel.replies = [status, "yes", "yes"]
    with pytest.raises(ValueError, match=f"--judge_url http.*HTTP {status}.*JUDGE_API_KEY"):
        graded("text", "x y", "z", judge)
    assert len(FakeModel.asked) == 1


def test_judge_waits_between_tries_only(judge, monkeypatch):
    """Three tries, two pauses: after the last try there is nothing to wait for."""
    pauses = []
    monkeypatch.setattr(rewards.judge.time, "sleep", pauses.append)
    FakeModel.replies = [500, 500, 500]

    assert judge.yes("is it?") is None
    assert pauses == [0.5, 1.0]


def test_cache_never_holds_half_a_file(judge, tmp_path, monkeypatch):
    """Killed before the rename, the judge has cached nothing, and is asked again."""

    def kill(*args):
        raise KeyboardInterrupt

    FakeModel.replies = ["yes", "no"]
    with monkeypatch.context() as patch:
        patch.setattr(rewards.judge.os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            judge.yes("is it?")
    assert not list((tmp_path / "judge").glob("*.json"))

    assert judge.yes("is it?") is False
    assert judge.yes("is it?") is False, "from the cache"
    assert len(FakeModel.asked) == 2
