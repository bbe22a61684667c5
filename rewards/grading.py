"""The accuracy of a response: the answer in it is found, then compared with the gold answer.

    1   the extracted answer equals the gold one, by the rules of its answer type
    0   it does not, or no answer is found

Accuracy is independent of the format: a response without the format that says its answer earns it.

An answer type decides how two answers are compared:

    number   value, after units, thousands marks and percent; 3.1416 is right for 3.14, not for 3
    choice   a letter: "B", "(B)", "B. cat", or the option's text
    math     LaTeX and expressions, by math-verify in a process of its own that may be killed
    text     a judge if there is one, else the same words

Grading never runs what a model wrote, and says why: `Grade(score, reason, extracted)`. A score of
None means "could not be scored" (a judge that does not answer).
"""

import re
from dataclasses import dataclass

from rewards.judge import Judge
from rewards.math_worker import MATH_TIMEOUT_S, math_equal

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Grade:
    score: float | None  # 1 right, 0 wrong, None not scorable
    reason: str
    extracted: str | None = None


# --- 1. The answer in a response -----------------------------------------------------------------


def extract_answer(response: str, answer_type: str) -> str | None:
    """What the response gives as its answer, or None. First rule that applies wins:

    the last <answer> block (or what follows an unclosed one); the last \\boxed{}; what follows the
    last "answer is" or "answer :" up to the end of its sentence; for a number, the last one of the
    response.
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
    """Take `\\boxed{}` and "the answer is" off: MM-EUREKA's prompt asks for both in the block."""
    boxed = last_boxed(answer)
    if boxed is not None:
        return boxed.strip()
    prefix = r"^(?:the\s+)?(?:final\s+)?answer\s*(?:is|:)\s*:?"
    said = re.sub(prefix, "", answer.strip(), flags=re.IGNORECASE)
    return said.strip().rstrip(".").strip()


def last_boxed(text: str) -> str | None:
    """Content of the last \\boxed{...}, braces balanced; None if there is no whole one."""
    start = text.rfind("\\boxed{")
    depth = 0
    for i in range(start + len("\\boxed"), len(text) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : i]
    return None


# --- 2. Answers by type --------------------------------------------------------------------------

NUMBER = r"[-+\u2212]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def parse_number(text: str) -> tuple[float, str, int] | None:
    """(value, unit, decimals given) of the one number in an answer; None if it has not one.

    "x = 1,234.5 cm" -> (1234.5, "cm", 1);  "50%" -> (50.0, "%", 0);  "1/2" -> (0.5, "", 9);
    "3, 5" -> None
    """
    text = text.replace("\u2212", "-").replace("\\%", "%").replace("\\$", "$")
    text = text.strip().strip("$").strip()
    text = re.sub(r"\\(?:text|mathrm)\{([^}]*)\}", r" \1", text)
    text = text.replace("\\,", " ").replace("^\\circ", "°")
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
    """A number as written. A comma stands only where thousands begin: "3,5" is no number."""
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
    """The one option that an answer names: by letter, "letter. text" or text; None if not one.

    Trap: searching the gold inside the answer would pass "A B C D", and an empty answer
    (test_reward_table)."""
    stripped = re.sub(r"\\(?:text|mathrm|textbf)\{([^}]*)\}", r"\1", answer).strip(" $*\n\t")
    if re.fullmatch(r"[A-J]", stripped, re.IGNORECASE):  # a bare letter is a letter
        return stripped.upper()
    if plain(stripped) in texts and texts.count(plain(stripped)) == 1:
        return LETTERS[texts.index(plain(stripped))]
    pattern = r"(?:option\s+)?\(?([A-J])\)?[.:]?(?:\s+(.*))?"
    match = re.fullmatch(pattern, stripped, re.DOTALL | re.IGNORECASE)
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
    reason = "equal by math-verify" if verdict else "not equal by math-verify"
    return Grade(float(verdict), reason, answer)


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


# --- 3. The accuracy of a response ---------------------------------------------------------------


def grade(example: dict, response: str, judge: Judge | None = None) -> Grade:
    """Accuracy of a response to an example: 1, 0, or None where it could not be scored."""
    answer = extract_answer(response, example["answer_type"])
    if answer is None or not plain(answer):
        return Grade(0.0, "no answer found")
    gold = last_boxed(example["answer"])
    if gold is None:
        gold = re.sub(r"</?answer>", "", example["answer"])  # some sources wrap their gold
    if example["answer_type"] == "choice":
        return same_choice(answer, gold, example["choices"])
    if example["answer_type"] == "number":
        return same_number(answer, gold) or same_math(answer, gold)
    if example["answer_type"] == "math":
        return same_math(answer, gold)
    return same_text(answer, gold, example["question"], judge)
