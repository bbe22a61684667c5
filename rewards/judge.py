"""A language model that answers yes or no, where rules cannot decide.

A rollout has all its questions asked at once, before it is graded; grading then only looks up:

    judge.ask_all(questions)     at most --judge_rollout_s, whatever the endpoint does
    judge.yes(question)          True, False, or None: no verdict, and the response is left out

`ask_all` retries failures; `yes` never does, or a dead judge would cost its time limit for every
repeated question.

The questions are in `judge_prompts.py`; how they are sent, and for how long, in
`harness/endpoint.py`.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from harness.endpoint import Endpoint, Reply
from rewards.judge_prompts import read_verdict

QUESTIONS_AT_A_TIME = 128  # that share one --judge_rollout_s where there is no rollout


class Judge:
    """A model behind an endpoint.

    endpoint     where the model is asked, and the cache of its replies
    max_tokens   of a reply: a model that reasons needs thousands of them before its verdict
    """

    def __init__(self, endpoint: Endpoint, max_tokens: int = 4096):
        self.endpoint = endpoint
        self.max_tokens = max_tokens
        self.verdicts: dict[bytes, bool | None] = {}  # by a checksum of the question

    def ask_all(self, questions: Iterable[str]) -> None:
        """Ask every question without a verdict, once; a question that failed before is retried.

        Raises ValueError if the endpoint refuses the key, or does not know the URL or the model.
        """
        questions = list(dict.fromkeys(q for q in questions if self.verdict_of(q) is None))
        replies = self.endpoint.ask_all([self.body(q) for q in questions], has_verdict)
        for question, reply in zip(questions, replies):
            verdict = None if reply is None else read_verdict(reply.text)
            self.verdicts[checksum(question)] = verdict

    def yes(self, question: str) -> bool | None:
        """The verdict; None if the judge gave none.

        A question that was never asked is asked now, alone. A question that was asked without
        success is not asked again.
        """
        if checksum(question) not in self.verdicts:
            self.ask_all([question])
        return self.verdict_of(question)

    def verdict_of(self, question: str) -> bool | None:
        """The verdict that is known by now, without asking."""
        return self.verdicts.get(checksum(question))

    def body(self, question: str) -> dict:
        """The request: greedy, so that equal questions get equal verdicts."""
        messages = [{"role": "user", "content": question}]
        return {"messages": messages, "max_tokens": self.max_tokens, "temperature": 0.0}


def has_verdict(reply: Reply) -> bool:
    """Did the reply end by itself, with a yes or no? Only such a reply is kept."""
    return not reply.cut and read_verdict(reply.text) is not None


def checksum(question: str) -> bytes:
    return hashlib.sha256(question.encode(errors="surrogatepass")).digest()


class AskLater:
    """A recording stand-in for a judge: has the same `yes`, which notes a question without asking.

    pending    questions that are noted and not asked yet, in order, each once
    settled    checksums of the questions that were asked, with or without success
    """

    def __init__(self, judge: Judge):
        self.judge = judge
        self.pending: dict[str, None] = {}  # a set that keeps its order
        self.settled: set[bytes] = set()

    def yes(self, question: str) -> bool | None:
        """The verdict that the judge has given by now; None, and noted, if the judge gave none."""
        verdict = self.judge.verdict_of(question)
        if verdict is None and checksum(question) not in self.settled:
            self.pending[question] = None
        return verdict

    def ask_pending(self, size: int | None = None) -> None:
        """Ask the pending questions. A question without a verdict after that is not noted again.

        size    questions at a time, which share the time limit of a rollout; None: all questions
        """
        questions = list(self.pending)
        size = size or max(1, len(questions))
        for start in range(0, len(questions), size):
            self.judge.ask_all(questions[start : start + size])
        self.settled |= {checksum(question) for question in questions}
        self.pending.clear()


def ask_ahead(judge: Judge | None, dry_run: Callable[[AskLater], object], rounds: int = 1,
              at_a_time: int | None = None) -> None:
    """Ask a judge, many questions at the same time, what `dry_run` would ask one by one.

    dry_run     does the work with a recorder in the judge's place; its results are thrown away
    rounds      how often: 2 where one question depends on the verdict on another
    at_a_time   questions that share one --judge_rollout_s; None: all of a round
    """
    if judge is None:
        return
    recorder = AskLater(judge)
    for _ in range(rounds):
        dry_run(recorder)
        recorder.ask_pending(at_a_time)


def take_counts(judge: Judge | None) -> dict[str, int]:
    """`judge_calls`, `judge_hits` and `judge_tokens` since the last time; {} without a judge."""
    if judge is None:
        return {}
    return {f"judge_{name}": count for name, count in judge.endpoint.take_counts().items()}


def make_judge(cfg, warn: Callable[[str], None] = print) -> Judge | None:
    """The judge of a stage's settings; None without --judge_url."""
    if not cfg.judge_url:
        return None
    endpoint = Endpoint(
        cfg.judge_url,
        cfg.judge_model,
        flag="--judge_url",
        key_name="JUDGE_API_KEY",
        cache=Path(cfg.judge_cache),
        in_flight=cfg.judge_in_flight,
        call_s=cfg.judge_call_s,
        limit_s=cfg.judge_rollout_s,
        warn=warn,
    )
    return Judge(endpoint, cfg.judge_max_tokens)
