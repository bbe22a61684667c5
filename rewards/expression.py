"""Equality of mathematical expressions: what is compared with what is decided here, by reading
alone.

math-verify, which is then asked, reads generously: of "x=1 or x=2" it may take 2, of "4 million"
4, and for the gold "7 = 11a+c" it takes "11a+c". So it is only asked about expressions of the same
kind:

    one value                 4\\pi, 1/2, x = 5 (a lone variable, or another name, equals its value)
    an equation               y = 2x+3, 7 = 11a+c: half of it is not the answer
    several values            1, 2  |  x=1 or x=2  |  \\boxed{1}, \\boxed{2}: as many as the gold
                              has
    words                     "no solution": the same words
"""

import re

from rewards.math_worker import MathVerifier
from rewards.number import read_gold_number, read_number, same_number, tidy
from rewards.units import is_measured_in, is_name_in, read_unit

LONGEST = 1000  # characters; no answer of a benchmark is longer, and algebra on more would not end
math_equal = MathVerifier()

UNICODE = [
    (re.compile(r"[√]\s*\{"), r"\\sqrt{"),
    (re.compile(r"√\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\bsqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile("π|(?<![A-Za-z\\\\])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile("∞"), r"\\infty "),
    (re.compile("≤"), r"\\le "),
    (re.compile("≥"), r"\\ge "),
    (re.compile("∪"), r"\\cup "),
    (re.compile("²"), "^2"),
    (re.compile("³"), "^3"),
    (re.compile("÷"), "/"),
    (re.compile("±"), r"\\pm "),
    (re.compile(r"\\(?:le|ge)q\b"), lambda match: match[0][:-1]),
]
BOX = re.compile(r"\\boxed\s*\{([^{}]*)\}")
FUNCTIONS = set(
    "sin cos tan cot sec csc arcsin arccos arctan log ln exp lim max min gcd lcm sqrt mod det".split()
)
AND_OR = re.compile(
    r"\s*(?:,|;|\\vee|\\wedge|\b(?:and|or)\b)(?:\s*(?:,|;|\b(?:and|or)\b))*\s*", re.IGNORECASE
)
RELATION = re.compile(r"\\(?:le|ge|neq?|in|subset|approx|equiv|to|sim)(?![A-Za-z])|[<>=≠∈:]")
EQUALS = re.compile(r"(?<![<>!])=")


def same_expression(answer: str, gold: str, question: str = "") -> tuple[bool | None, str]:
    """Are they equal, and how it was decided; None if math-verify gave no verdict in time."""
    if squeeze(answer) == squeeze(gold):
        return True, "same expression"
    if len(answer) > LONGEST or len(gold) > LONGEST:
        return False, "too long for an expression"

    wanted = read_gold_number(gold, question)
    number = read_number(answer, question, measured=wanted is not None and wanted.unit != "")
    if number is not None and wanted is not None:
        return same_number(number, wanted)

    answer, gold = spell_out(answer), spell_out(gold)
    letter = re.search(r"([A-Za-z])(?:\^.*)?$", gold)
    named = letter is None or not question or is_name_in(letter[1], question)
    gold, gold_unit = split_unit(gold, question, measured=not named)
    answer, unit = split_unit(answer, question, measured=bool(gold_unit))
    if unit and gold_unit and unit != gold_unit:
        return False, f"unit {unit!r}, not {gold_unit!r}"
    if squeeze(answer) == squeeze(gold):
        return True, "same expression"

    difference = other_kind(answer, gold)
    if difference is not None:
        return False, difference
    verdict = math_equal(
        *(", ".join(list_of(side)) if ";" in side else side for side in (gold, answer))
    )
    if verdict is None:
        return None, f"math-verify gave no verdict within {math_equal.timeout_s:.0f} s"
    return verdict, "equal by math-verify" if verdict else "not equal by math-verify"


def squeeze(text: str) -> str:
    """Without typesetting and spaces; x^{2} and x^2 are alike."""
    text = re.sub(r"\{(\w)\}", r"\1", tidy(text).rstrip(".。"))
    return re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", text)


def spell_out(text: str) -> str:
    """Unicode mathematics as LaTeX, all boxes as a list, no closing stop."""
    boxes = BOX.findall(text)
    if boxes:
        text = ", ".join(boxes)
    for pattern, replacement in UNICODE:
        text = pattern.sub(replacement, text)
    text = re.sub(r"[$\"“”]", "", tidy(re.sub(r"\\?\"", "", text)).replace(r"\$", ""))
    return re.sub(r"\s+", " ", text).strip().rstrip(".。").strip()


def split_unit(text: str, question: str, measured: bool = False) -> tuple[str, str]:
    """`4\\pi cm` -> ("4\\pi", "cm"); a text without a unit as it is. A single letter may be a
    variable: it is a unit only if the question measures in it, or the other side is `measured`."""
    match = re.search(
        r"(?<=[\d})\s°iπ])((?:°|[A-Za-z]{1,12}|[\u4e00-\u9fff]{1,4})(?:\s*(?:\^\s*\{?-?\d\}?|[/ ·*]+\s*[A-Za-z]{1,8}))*)$",
        text,
    )
    if match is None or text[: match.start()].rstrip().endswith("\\"):
        return text, ""
    words, body = match[1].strip(), text[: match.start()].rstrip()
    if not body or re.search(r"[-+*/^=,<>(]$|\\[A-Za-z]+$", body) and not body.endswith("\\pi"):
        return text, ""
    unit = read_unit(words, question)
    first = re.match(r"[A-Za-z]*", words)[0]
    if not unit or (len(first) == 1 and not measured and not is_measured_in(first, question)):
        return text, ""
    return body, unit


def other_kind(answer: str, gold: str) -> str | None:
    """Why the two cannot be the same thing, or None if they are of one kind."""
    words = words_of(answer)
    if words != words_of(gold) and words - words_of(gold):
        return "words that are no expression"

    if re.search(r"\d_", answer) and not re.search(r"\d_", gold):
        return "a number in another base"
    if not is_balanced(answer, half_open=True):
        return "brackets that do not match"
    if is_ratio(answer) != is_ratio(gold) and not EQUALS.search(gold):
        return "a ratio and no ratio"
    values, wanted = list(dict.fromkeys(list_of(answer))), list(dict.fromkeys(list_of(gold)))
    if len(values) != len(wanted):
        return f"{len(values)} values, not {len(wanted)}"
    for value, other in zip(values, wanted):
        if is_bare_equation(other) and not EQUALS.search(value):
            return "half of an equation"
        if is_bare_equation(value) and not EQUALS.search(other):
            return "an equation, not its value"
    return None


def words_of(text: str) -> set[str]:
    """Plain words that are neither LaTeX commands nor functions nor labels in capitals."""
    text = re.sub(r"\\(?:begin|end)\s*\{\w+\}(?:\{[clr|]+\})?|\\[A-Za-z]+", " ", text)
    words = {word.lower() for word in re.findall(r"[A-Za-z]{3,}", text) if not word.isupper()}
    return words - FUNCTIONS - {"and", "infty"}


def list_of(text: str) -> list[str]:
    """The values of a list, a set or "1 or 2"; brackets inside stay whole. A tuple or an interval
    is one value."""
    text = text.strip()
    inside = re.fullmatch(r"(?:[A-Za-z]\s*(?:=|\\in)\s*)?\\?\{(.*?)\\?\}", text, re.DOTALL)
    if inside and is_balanced(inside[1]):
        text = inside[1]
    if ";" in text and all(is_named(group) for group in text.split(";")):  # "p=5, q=2; p=7, q=2"
        return [
            f"({', '.join(EQUALS.split(value)[-1].strip() for value in group.split(','))})"
            for group in text.split(";")
        ]
    parts, depth, start = [], 0, 0
    text = AND_OR.sub(",", text)
    for i, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0 and not re.match(r"\d{3}(?!\d)", text[i + 1 : i + 5]):
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    parts = [
        re.sub(r"^\\pm\s*", sign, part) if sign is not None else part
        for part in parts
        if part
        for sign in (("", "-") if part.startswith("\\pm") else (None,))
    ]
    return parts


def is_named(group: str) -> bool:
    """Several values with their names: `p = 5, q = 2`."""
    values = group.split(",")
    return len(values) > 1 and all(
        re.fullmatch(r"\s*[A-Za-z]\w*\s*=[^=]+", value) for value in values
    )


def is_balanced(text: str, half_open: bool = False) -> bool:
    """Every bracket closes; `half_open`: intervals like [1, 2) count as closed."""
    if not half_open and any(text.count(a) != text.count(b) for a, b in ("()", "[]", "{}")):
        return False
    depth = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return False
    return depth == 0


def is_bare_equation(text: str) -> bool:
    """An equation of which no side is a mere name: `7 = 11a+c`, but not `x = 5`, `(p, q) = (3,
    2)`, `2+3 = 5`."""
    sides = [side.strip() for side in EQUALS.split(text)]
    if len(sides) < 2 or not all(sides) or any(is_name(side) for side in sides[:-1]):
        return False
    return any(has_letters(side) for side in sides[:-1])


def is_name(side: str) -> bool:
    """What an answer is called: a variable, f(x), \\angle ABC, \\frac{AB}{CD}; no operation and no
    number in it."""
    side = re.sub(
        r"_\s*(?:\{[^{}]*\}|\w)|\\(?:frac|left|right|angle|triangle|overline|widehat|mathrm)",
        "",
        side,
    )
    return has_letters(side) and not re.search(r"[-+*^<>\d√]|\\(?:sqrt|cdot|times)", side)


def has_letters(side: str) -> bool:
    return re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", side)) is not None


def is_ratio(text: str) -> bool:
    return re.search(r":|\\colon", text) is not None
