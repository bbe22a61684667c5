"""Rewards: 0.5 for the format, 1 for the answer, and the reason for each.

    R = R_format + R_accuracy              SPECS section 3: the two are independent and summed
    R_format   = 0.5 if the whole response is one think block, then one answer block, both non-empty
    R_accuracy = 1 if the extracted answer equals the gold one, by the rules of its answer type

MM-EUREKA's laxer pattern accepts text around the blocks; ours does not, since that text is what the
cold start is to unlearn. A response without the format still earns accuracy if it says its answer.

An answer type decides how two answers are compared:

    number   value, after units, thousands marks and percent; 3.1416 is right for 3.14, not for 3
    choice   a letter: "B", "(B)", "B. cat", or the option's text
    math     LaTeX and expressions, by math-verify in a process of its own that may be killed
    text     a judge if there is one, else the same words

Grading never runs what a model wrote, and says why: `Grade(score, reason, extracted)`. A score of None
means "could not be scored" (a judge that does not answer): such a completion is left out of its group,
since calling it wrong would teach something.
"""

import hashlib
import json
import os
import re
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FORMAT_REWARD = 0.5
MATH_TIMEOUT_S = 10.0
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Grade:
    score: float | None  # 1 right, 0 wrong, None not scorable
    reason: str
    extracted: str | None = None


# --- 1. Format -----------------------------------------------------------------------------------


def format_reward(response: str) -> float:
    """0.5 if the response is `<think>...</think> <answer>...</answer>` and nothing else, else 0.

    Trap: without DOTALL a line break inside a block would cost the reward
    (test_reward_table). Each tag exactly once: a response that repeats the blocks is no format."""
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    if any(response.count(tag) != 1 for tag in tags):
        return 0.0
    match = re.fullmatch(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", response, re.DOTALL)
    return FORMAT_REWARD if match and match[1].strip() and match[2].strip() else 0.0


# --- 2. The answer in a response -----------------------------------------------------------------


def extract_answer(response: str, answer_type: str) -> str | None:
    """What the response gives as its answer, or None. First rule that applies wins:

    the last <answer> block (or what follows an unclosed one); the last \\boxed{}; what follows the last
    "answer is" or "answer :" up to the end of its sentence; for a number, the last one of the response.
    Inside any of these a \\boxed{} or "answer is" is unwrapped again."""
    blocks = re.findall(r"<answer>(.*?)(?:</answer>|$)", response, re.DOTALL)
    if blocks:
        return unwrap(blocks[-1]) or None
    boxed = last_boxed(response)
    if boxed is not None:
        return boxed.strip() or None
    said = re.findall(r"answer\s*(?:is|:)\s*:?\s*(.+?)(?=\.\s|\.?\s*$|\n)", response, re.IGNORECASE)
    if said:
        return said[-1].strip(" *") or None
    if answer_type == "number":
        numbers = re.findall(NUMBER, response)
        return numbers[-1] if numbers else None
    return None


def unwrap(answer: str) -> str:
    """Take `\\boxed{}` and "the answer is" off: MM-EUREKA's prompt asks for both inside the block."""
    boxed = last_boxed(answer)
    if boxed is not None:
        return boxed.strip()
    said = re.sub(r"^(?:the\s+)?(?:final\s+)?answer\s*(?:is|:)\s*:?", "", answer.strip(), flags=re.IGNORECASE)
    return said.strip().rstrip(".").strip()


def last_boxed(text: str) -> str | None:
    """Content of the last \\boxed{...}, braces balanced; None if there is none or it never closes."""
    start = text.rfind("\\boxed{")
    depth = 0
    for i in range(start + len("\\boxed"), len(text) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : i]
    return None


# --- 3. Answers by type --------------------------------------------------------------------------

NUMBER = r"[-+\u2212]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def parse_number(text: str) -> tuple[float, str, int] | None:
    """(value, unit, decimals given) of the one number in an answer, or None if it has none or several.

    "x = 1,234.5 cm" -> (1234.5, "cm", 1);  "50%" -> (50.0, "%", 0);  "1/2" -> (0.5, "", 9);  "3, 5" -> None
    """
    text = text.replace("\u2212", "-").replace("\\%", "%").replace("\\$", "$").strip().strip("$").strip()
    text = re.sub(r"\\(?:text|mathrm)\{([^}]*)\}", r" \1", text).replace("\\,", " ").replace("^\\circ", "°")
    text = text.rsplit("=", 1)[-1].strip()
    fraction = re.fullmatch(rf"({NUMBER})\s*/\s*({NUMBER})\s*(.*)", text) or \
        re.fullmatch(rf"(-?)\\d?frac\{{({NUMBER})\}}\{{({NUMBER})\}}\s*()", text)
    if fraction:
        *sign, top, bottom, unit = fraction.groups()
        top, bottom = to_float(top), to_float(bottom)
        if top is None or not bottom:
            return None
        return (-top if sign == ["-"] else top) / bottom, unit.strip().lower(), 9
    match = re.fullmatch(rf"[$€£]?\s*({NUMBER})\s*([^\d]*)", text)
    value = to_float(match[1]) if match else None
    if value is None:
        return None
    decimals = len(match[1].split(".")[1]) if re.fullmatch(r"[-+\d,]*\.\d+", match[1]) else 0
    return value, match[2].strip().rstrip(".").lower(), decimals


def to_float(digits: str) -> float | None:
    """A number as written. A comma is a thousands mark only where one belongs: "3,5" is no number."""
    if "," in digits and not re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?", digits):
        return None
    try:
        return float(digits.replace(",", ""))
    except ValueError:
        return None


def same_number(answer: str, gold: str) -> Grade | None:
    """Compare as numbers; None if the gold is none."""
    g, a = parse_number(gold), parse_number(answer)
    if g is None:
        return None
    if a is None:
        return Grade(0.0, "not one number", answer)
    (value, unit, _), (wanted, gold_unit, places) = a, g
    candidates = [(value, wanted)]
    if unit != gold_unit and "%" in (unit, gold_unit):  # "50%" is right for 50 and for 0.5
        candidates.append((value / 100, wanted) if unit == "%" else (value, wanted / 100))
    elif unit and gold_unit and unit != gold_unit:
        return Grade(0.0, f"unit {unit!r}, not {gold_unit!r}", answer)
    if any(abs(v - w) <= 1e-6 * max(1.0, abs(w)) for v, w in candidates):
        return Grade(1.0, "equal number", answer)
    # Given to more places than the gold: right if it rounds to it. Never the other way round.
    if 0 < places < 9 and round(value, places) == wanted:
        return Grade(1.0, f"equal to {places} places", answer)
    return Grade(0.0, "other number", answer)


def same_choice(answer: str, gold: str, choices: list[str]) -> Grade:
    """Compare as options. The gold is a letter or, as in MathVista, an option's text."""
    texts = [plain(c) for c in choices]
    gold_letter = gold.strip().strip("().").upper()
    if gold_letter not in LETTERS or len(gold_letter) != 1:
        if plain(gold) not in texts:
            return Grade(None, f"gold {gold!r} is neither a letter nor an option", answer)
        gold_letter = LETTERS[texts.index(plain(gold))]
    chosen = letter_of(answer, texts)
    if chosen is None:
        return Grade(0.0, "no single option", answer)
    return Grade(float(chosen == gold_letter), f"option {chosen}", answer)


def letter_of(answer: str, texts: list[str]) -> str | None:
    """The one option that an answer names: by letter, by "letter. text" or by text; None if not exactly one.

    Trap: searching the gold inside the answer would pass "A B C D", and an empty answer
    (test_reward_table)."""
    stripped = re.sub(r"\\(?:text|mathrm|textbf)\{([^}]*)\}", r"\1", answer).strip(" $*\n\t")
    if re.fullmatch(r"[A-J]", stripped, re.IGNORECASE):  # a bare letter is a letter, as it is in the gold
        return stripped.upper()
    if plain(stripped) in texts and texts.count(plain(stripped)) == 1:
        return LETTERS[texts.index(plain(stripped))]
    match = re.fullmatch(r"(?:option\s+)?\(?([A-J])\)?[.:]?(?:\s+(.*))?", stripped, re.DOTALL | re.IGNORECASE)
    if not match:
        return None
    letter, rest = match[1].upper(), plain(match[2] or "")
    if not rest:
        return letter
    marked = re.match(r"(?:option\s+)?(?:\([A-J]\)|[A-J][.:)])", stripped, re.IGNORECASE)
    index = LETTERS.index(letter)
    if index < len(texts):  # what follows the letter must be that option's own text
        return letter if rest == texts[index] else None
    return letter if marked and not re.search(r"\b[A-J]\b", match[2]) else None


def plain(text: str) -> str:
    """Case, spacing and closing punctuation do not matter between words."""
    return " ".join(str(text).lower().split()).strip(" .,;:!?\"'")


class MathVerifier:
    """math-verify in a process of its own, one JSON line in, one out.

    Trap: its timeouts use signal.alarm, which only works in a main thread, and without them a sympy
    expression can run for ever. So they are off, and a process that does not answer in time is killed
    (test_math_that_hangs_is_bounded). Its arguments are (gold, answer), in this order; it is not symmetric."""

    def __init__(self, timeout_s: float = MATH_TIMEOUT_S):
        self.timeout_s, self.process = timeout_s, None

    def __call__(self, gold: str, answer: str) -> bool | None:
        """True or False, or None if it gave no verdict in time."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen([sys.executable, __file__, "--math_worker"], text=True, bufsize=1,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.read(60.0)  # importing sympy takes a while, and is not the expression's fault
        self.process.stdin.write(json.dumps([gold, answer]) + "\n")
        verdict = self.read(self.timeout_s)
        if verdict is None:
            self.process.kill()
            self.process.wait()
            self.process = None
        return verdict

    def read(self, timeout_s: float):
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline() if ready else ""
        return json.loads(line) if line else None


def math_worker() -> None:
    """The other end of `MathVerifier`."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # it warns at each call that its timeouts are off

    def wrap(text: str) -> str:  # math-verify reads LaTeX only where it is marked as such
        return text if "$" in text or "\\boxed" in text else f"${text}$"

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        gold, answer = (parse(wrap(text), parsing_timeout=None) for text in json.loads(line))
        try:
            verdict = bool(gold) and bool(answer) and verify(gold, answer, timeout_seconds=None)
        except Exception:  # sympy raises what it likes on odd input; the answer is then not equal
            verdict = False
        print(json.dumps(bool(verdict)), flush=True)


math_equal = MathVerifier()


def same_math(answer: str, gold: str) -> Grade:
    """Compare as expressions; equal strings and numbers need no symbolic algebra."""
    if plain(answer.replace(" ", "")) == plain(gold.replace(" ", "")):
        return Grade(1.0, "same expression", answer)
    as_number = same_number(answer, gold)
    if as_number is not None and as_number.score == 1.0:
        return as_number
    verdict = math_equal(gold, answer)
    if verdict is None:
        return Grade(0.0, f"no verdict within {MATH_TIMEOUT_S:.0f} s", answer)
    return Grade(float(verdict), "equal by math-verify" if verdict else "not equal by math-verify", answer)


# --- 4. The judge --------------------------------------------------------------------------------


class Judge:
    """A language model behind an OpenAI-compatible endpoint that answers yes or no.

    The key comes from the environment variable JUDGE_API_KEY and is never written anywhere. Answers are
    cached on disk, so that a run repeated asks nothing twice; failures are retried, then None."""

    def __init__(self, url: str, model: str, cache: Path, retries: int = 3, timeout_s: float = 30.0):
        from huggingface_hub import InferenceClient, constants

        if constants.HF_HUB_OFFLINE:
            raise ValueError("--judge_url: HF_HUB_OFFLINE is set, which keeps the judge from being asked; unset it")
        self.client = InferenceClient(base_url=url, api_key=os.environ.get("JUDGE_API_KEY"), timeout=timeout_s)
        self.model, self.cache, self.retries = model, cache, retries
        cache.mkdir(parents=True, exist_ok=True)

    def yes(self, question: str) -> bool | None:
        """True or False, None if no clear answer could be had."""
        file = self.cache / (hashlib.sha256(f"{self.model}\n{question}".encode()).hexdigest() + ".json")
        if file.exists():
            return json.loads(file.read_text())["yes"]
        for attempt in range(self.retries):
            try:
                reply = self.client.chat_completion(messages=[{"role": "user", "content": question}],
                                                    model=self.model, max_tokens=8, temperature=0.0)
                words = re.findall(r"[a-z]+", (reply.choices[0].message.content or "").lower())
            except Exception:  # whatever the HTTP stack raises: the judge is not there
                time.sleep(0.5 * 2**attempt)
                continue
            if words and words[0] in ("yes", "no"):
                file.write_text(json.dumps({"question": question, "yes": words[0] == "yes"}))
                return words[0] == "yes"
        return None


JUDGE_QUESTION = ("Question: {question}\nReference answer: {gold}\nGiven answer: {answer}\n"
                  "Does the given answer mean the same as the reference answer? Reply yes or no.")


def same_text(answer: str, gold: str, question: str, judge: Judge | None) -> Grade:
    if plain(answer) == plain(gold):
        return Grade(1.0, "same words", answer)
    if judge is None:
        return Grade(0.0, "other words (no judge set)", answer)
    verdict = judge.yes(JUDGE_QUESTION.format(question=question, gold=gold, answer=answer))
    if verdict is None:
        return Grade(None, "judge gave no answer", answer)
    return Grade(float(verdict), "judge says yes" if verdict else "judge says no", answer)


# --- 5. The accuracy of a response ---------------------------------------------------------------


def grade(row: dict, response: str, judge: Judge | None = None) -> Grade:
    """Accuracy of a response to a row of `data.py`: 1, 0, or None where it could not be scored."""
    answer = extract_answer(response, row["answer_type"])
    if answer is None or not plain(answer):
        return Grade(0.0, "no answer found")
    gold = last_boxed(row["answer"])
    gold = re.sub(r"</?answer>", "", row["answer"]) if gold is None else gold  # some sources wrap their gold
    if row["answer_type"] == "choice":
        return same_choice(answer, gold, row["choices"])
    if row["answer_type"] == "number":
        return same_number(answer, gold) or same_math(answer, gold)
    if row["answer_type"] == "math":
        return same_math(answer, gold)
    return same_text(answer, gold, row["question"], judge)


if __name__ == "__main__" and sys.argv[1:] == ["--math_worker"]:
    math_worker()
