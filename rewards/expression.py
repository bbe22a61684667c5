r"""Equality of expressions: what is of one kind is decided here, what is equal by math-verify.

math-verify reads generously. Of "x=1 or x=2" it may take 2, of "4 million" 4, and for the gold
"7 = 11a+c" it takes "11a+c". So it is only asked about two expressions of the same kind:

    one value         4\pi, 1/2, x = 5: a lone variable, or another name, equals its value
    an equation       y = 2x+3, 7 = 11a+c: half of it is not the answer
    several values    "1, 2", "x=1 or x=2", "\boxed{1}, \boxed{2}": as many as the gold has
    words             "no solution": the same words
"""

import re

from rewards.math_worker import MathVerifier
from rewards.number import read_gold_number, read_number, same_number
from rewards.typesetting import spell_out, squeeze
from rewards.units import is_measured_in, is_name_in, read_unit

LONGEST = 1000  # characters; no answer of a benchmark is longer, and algebra on more would not end
math_equal = MathVerifier()

FUNCTIONS = set(
    "sin cos tan cot sec csc arcsin arccos arctan log ln exp lim max min gcd lcm sqrt mod det"
    .split()
)
NO_WORDS = FUNCTIONS | {"and", "infty"}
EQUALS = re.compile(r"(?<![<>!])=")
AND_OR = re.compile(  # between two values: ",", " or ", ", and "
    r"\s*(?:,|;|\\vee|\\wedge|\b(?:and|or)\b)(?:\s*(?:,|;|\b(?:and|or)\b))*\s*", re.IGNORECASE
)
SET = re.compile(  # "{1, 2}", "\{1, 2\}", "x \in \{1, 2\}"
    r"(?:[A-Za-z]\s*(?:=|\\in)\s*)?\\?\{(.*?)\\?\}", re.DOTALL
)
NAMED_VALUE = re.compile(  # "p = 5", "f(n) = 5"
    r"\s*[A-Za-z]\w*(?:\(\w\))?\s*(?<![<>!])=[^=]+"
)
LAST_WORDS = re.compile(  # what may be a unit, behind a digit, a bracket or \pi
    r"""(?<=[\d})\s°iπ])
        ((?:° | [A-Za-z]{1,12} | [\u4e00-\u9fff]{1,4})         # cm
         (?:\s*(?:\^\s*\{?-?\d\}?                              # cm^2
                 |[/ ·*]+\s*[A-Za-z]{1,8}))*)$                 # m/s""",
    re.VERBOSE,
)
NO_OPERAND = re.compile(r"[-+*/^=,<>(]$|\\[A-Za-z]+$")  # "3 +" in front of "m": no unit, a term
LATEX_NAME = re.compile(  # what a name may hold beside letters
    r"_\s*(?:\{[^{}]*\}|\w)|\\(?:frac|left|right|angle|triangle|overline|widehat|mathrm)"
)


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

    answer, unit, gold, gold_unit = without_units(spell_out(answer), spell_out(gold), question)
    if unit and gold_unit and unit != gold_unit:
        return False, f"unit {unit!r}, not {gold_unit!r}"
    if squeeze(answer) == squeeze(gold):
        return True, "same expression"

    difference = other_kind(answer, gold)
    if difference is not None:
        return False, difference
    verdict = math_equal(as_list(gold), as_list(answer))
    if verdict is None:
        return None, f"math-verify gave no verdict within {math_equal.timeout_s:.0f} s"
    return verdict, "equal by math-verify" if verdict else "not equal by math-verify"


def as_list(text: str) -> str:
    """The values as math-verify reads them.

    "p=5, q=2; p=7, q=2" is (5, 2), (7, 2). "x=1 or x=2" is 1, 2: as for one value, the name that
    they share does not matter.
    """
    values = list_of(text)
    if ";" in text:
        return ", ".join(values)
    if len(values) > 1 and all(NAMED_VALUE.fullmatch(value) for value in values):
        sides = [[side.strip() for side in EQUALS.split(value)] for value in values]
        if len({name for name, _ in sides}) == 1:
            return ", ".join(value for _, value in sides)
    return text


# --- Units ---------------------------------------------------------------------------------------


def without_units(answer: str, gold: str, question: str) -> tuple[str, str, str, str]:
    """Both expressions and their units: answer, its unit, gold, its unit; "" for none."""
    last_letter = re.search(r"([A-Za-z])(?:\^.*)?$", gold)
    may_be_name = last_letter is None or not question or is_name_in(last_letter[1], question)
    gold, gold_unit = split_unit(gold, question, measured=not may_be_name)
    answer, unit = split_unit(answer, question, measured=bool(gold_unit))
    return answer, unit, gold, gold_unit


def split_unit(text: str, question: str, measured: bool = False) -> tuple[str, str]:
    r"""`4\pi cm` -> ("4\pi", "cm"); a text without a unit as it is.

    A single letter may be a variable. It is a unit only if the question measures in it, or the
    other side is `measured`.
    """
    match = LAST_WORDS.search(text)
    if match is None or text[: match.start()].rstrip().endswith("\\"):
        return text, ""
    words, body = match[1].strip(), text[: match.start()].rstrip()
    if not body or (NO_OPERAND.search(body) and not body.endswith("\\pi")):
        return text, ""

    unit = read_unit(words, question)
    first = re.match(r"[A-Za-z]*", words)[0]
    if not unit or (len(first) == 1 and not measured and not is_measured_in(first, question)):
        return text, ""
    return body, unit


# --- Kinds ---------------------------------------------------------------------------------------


def other_kind(answer: str, gold: str) -> str | None:
    """Why the two cannot be the same thing, or None if they are of one kind."""
    if words_of(answer) - words_of(gold):
        return "words that are no expression"
    if re.search(r"\d_", answer) and not re.search(r"\d_", gold):
        return "a number in another base"
    if not is_balanced(answer):
        return "brackets that do not match"
    if is_ratio(answer) != is_ratio(gold) and not EQUALS.search(gold):
        return "a ratio and no ratio"

    values = list(dict.fromkeys(list_of(answer)))  # without repetitions
    wanted = list(dict.fromkeys(list_of(gold)))
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
    return words - NO_WORDS


def is_value(text: str) -> bool:
    """A number or an expression, not words."""
    if re.search(r"\d|\\[a-z]", text) is None:
        return False
    return read_number(text) is not None or not words_of(split_unit(spell_out(text), "")[0])


def has_letters(side: str) -> bool:
    return re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", side)) is not None


def is_ratio(text: str) -> bool:
    return re.search(r":|\\colon", text) is not None


def is_balanced(text: str) -> bool:
    """Does every bracket close? An interval closes with either bracket: [1, 2)."""
    depth = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return False
    return depth == 0


def is_bare_equation(text: str) -> bool:
    """An equation without a mere name on the left.

    `7 = 11a+c` is one, but not `x = 5`, `(p, q) = (3, 2)` or `2+3 = 5`.
    """
    sides = [side.strip() for side in EQUALS.split(text)]
    if len(sides) < 2 or not all(sides) or any(is_name(side) for side in sides[:-1]):
        return False
    return any(has_letters(side) for side in sides[:-1])


def is_name(side: str) -> bool:
    r"""What an answer is called: a variable, f(x), \angle ABC, \frac{AB}{CD}.

    There is no operation and no number in it.
    """
    side = LATEX_NAME.sub("", side)
    return has_letters(side) and not re.search(r"[-+*^<>\d√]|\\(?:sqrt|cdot|times)", side)


# --- Lists ---------------------------------------------------------------------------------------


def list_of(text: str) -> list[str]:
    r"""The values of a list, a set or "1 or 2". A tuple or an interval is one value.

    >>> list_of("x=1 or x=2"), list_of(r"\{1, (2, 3)\}"), list_of(r"\pm 3")
    (['x=1', 'x=2'], ['1', '(2,3)'], ['3', '-3'])
    """
    text = text.strip()
    inside = SET.fullmatch(text)
    if inside and all_close(inside[1]):
        text = inside[1]

    groups = text.split(";")
    if len(groups) > 1 and all(is_named(group) for group in groups):  # "p=5, q=2; p=7, q=2"
        return [values_of(group) for group in groups]

    values = []
    for part in split_at_commas(AND_OR.sub(",", text)):
        if part.startswith("\\pm"):
            values += [re.sub(r"^\\pm\s*", sign, part) for sign in ("", "-")]
        elif part:
            values.append(part)
    return values


def all_close(text: str) -> bool:
    """Does every bracket close with its own kind? Stricter than `is_balanced`."""
    same = all(text.count(opening) == text.count(close) for opening, close in ("()", "[]", "{}"))
    return same and is_balanced(text)


def split_at_commas(text: str) -> list[str]:
    """The parts between commas outside of brackets; "1,234" stays whole."""
    parts, depth, start = [], 0, 0
    for i, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        is_thousands_mark = re.match(r"\d{3}(?!\d)", text[i + 1 : i + 5])
        if sign == "," and depth == 0 and not is_thousands_mark:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def is_named(group: str) -> bool:
    """Several values with their names: `p = 5, q = 2`."""
    values = group.split(",")
    return len(values) > 1 and all(NAMED_VALUE.fullmatch(value) for value in values)


def values_of(group: str) -> str:
    """`p = 5, q = 2` -> `(5, 2)`."""
    values = [EQUALS.split(value)[-1].strip() for value in group.split(",")]
    return f"({', '.join(values)})"
