"""Plain numbers: how one is read, strictly, and when two are equal.

A plain number is digits with a sign, thousands marks, an exponent, a fraction or number words,
then a percent sign or a *known* unit, and nothing else. Everything else is mathematics, or no
answer: 4x, 4\\pi, 4!, "4 or 5" are not 4.
"""

import re
from dataclasses import dataclass

from rewards.digits import NUMBER, parse_digits, words_to_digits
from rewards.typesetting import tidy
from rewards.units import is_measured_in, is_name_in, read_unit

LONGEST = 300  # characters
PLAIN = re.compile(rf"(?P<currency>-?\s*[$€£¥]\s*)?(?P<number>{NUMBER})(?P<rest>.*)", re.DOTALL)
PERCENT = re.compile(r"(?:%|percent|per cent|percentage|pct)(?:\s*points?)?", re.IGNORECASE)
DECIMAL_COMMA = re.compile(  # "2,74" and "0,5", but neither "1,234" nor "3,5"
    r"^(-?\d+),(\d{2}|\d{4,}|(?<=^0,)\d+|(?<=^-0,)\d+)(?![\d.,])"
)
ABOUT = re.compile(
    r"^(?:approximately|about|around|roughly|approx\.?|nearly|\\approx|≈|=)\s*", re.IGNORECASE
)
LABEL = re.compile(  # the name of what is asked for: "x", "x_1", "AB", "f(x)", "\angle ABC"
    r"(?:\\(?:angle|triangle|widehat|overline|overrightarrow|vec"
    r"|alpha|beta|theta|gamma|phi|lambda|mu|omega|sin|cos|tan|Delta)(?![A-Za-z])"
    r"|(?:angle|triangle|length|area|perimeter|volume|radius|total)\b"
    r"|[A-Za-z]{1,3}(?![A-Za-z])|[A-Z]+(?![a-z])"
    r"|[∠△°αβγθφλμω(){}'′,\s]|_\{?\d*\}?|\\[{}])++"
)
ARITHMETIC = re.compile(r"[-+*/().\d\s%°]*\d[-+*/().\d\s%°^√]*")  # "2 + 3", left of "= 5"


@dataclass(frozen=True)
class Number:
    value: float
    unit: str = ""  # canonical, "" for none
    percent: bool = False
    places: int | None = None  # digits after the point; None for a fraction or a power of ten


def read_number(text: str, question: str = "", measured: bool = False) -> Number | None:
    """The one plain number that an answer is, or None.

    question    a word that it counts is a unit: "12 apples"
    measured    a letter right after the digits is a unit: "4m", which else may be 4 times m

    >>> read_number("x = 1,234.5 cm")
    Number(value=1234.5, unit='cm', percent=False, places=1)
    >>> read_number("50%"), read_number("two million").value
    (Number(value=50.0, unit='', percent=True, places=0), 2000000.0)
    >>> read_number("4x"), read_number("3, 5")
    (None, None)
    """
    match = match_number(text)
    number = parse_digits(match["number"]) if match else None
    if number is None:
        return None

    value, places = number
    currency, rest = (match["currency"] or "").strip(), match["rest"]
    if currency.startswith("-"):
        value = -value
    if PERCENT.fullmatch(rest.strip()):
        return Number(value, currency.strip(" -"), True, places)

    unit = read_unit(rest.strip(), question)
    if unit is None:
        return None
    if is_one_letter(rest) and not measured and not is_measured_in(rest[0], question):
        return None
    return Number(value, unit or currency.strip(" -"), False, places)


def match_number(text: str) -> re.Match | None:
    """The match of `PLAIN` with a text, without a label in front of it: "x = ", "about"."""
    if len(text) > LONGEST:
        return None
    text = drop_label(tidy(text).rstrip(".。").strip())
    if text is None:
        return None

    text = ABOUT.sub("", text)
    if text.count("$") > 1:  # "$28$ percent": marks of mathematics, not of money
        text = text.replace("$", "")
    text = DECIMAL_COMMA.sub(r"\1.\2", text)
    return PLAIN.fullmatch(words_to_digits(text))


def drop_label(text: str) -> str | None:
    """What follows the last "=" of "x = 5" or "2 + 3 = 5".

    None if it is half of another equation: "2x = 5".
    """
    *left, right = text.split("=")
    for side in left:
        side = side.strip()
        if side and not LABEL.fullmatch(side) and not ARITHMETIC.fullmatch(side):
            return None
    return right.strip()


def is_one_letter(rest: str) -> bool:
    """Is it one letter with nothing between it and the digits: "4m", "4x"?"""
    return rest[:1].isascii() and rest[:1].isalpha() and not (rest[1:2] or " ").isalpha()


def read_gold_number(gold: str, question: str) -> Number | None:
    """The number that a gold is, or None.

    A gold is measured in a letter that the question does not use as a name: "3m" is 3 meters.
    """
    letter = re.search(r"\d([A-Za-z])(?![A-Za-z])", tidy(gold))
    measured = bool(question) and letter is not None and not is_name_in(letter[1], question)
    return read_number(gold, question, measured)


def same_number(answer: Number, gold: Number) -> tuple[bool, str]:
    """Are they equal, and how it was decided.

    "50%" is right for 50 and for 0.5, as golds are written either way. Given to more places than
    the gold, a number is right if it rounds to it, never the other way round: 3.1416 is right for
    3.14, not for 3.
    """
    if answer.unit and gold.unit and answer.unit != gold.unit:
        return False, f"unit {answer.unit!r}, not {gold.unit!r}"

    values = [(answer.value, gold.value)]
    if answer.percent and not gold.percent:
        values.append((answer.value / 100, gold.value))
    if gold.percent and not answer.percent:
        values.append((answer.value, gold.value / 100))
    if any(abs(value - wanted) <= 1e-6 * max(1e-3, abs(wanted)) for value, wanted in values):
        return True, "equal number"

    if gold.places and answer.places is not None and answer.places > gold.places:
        half = 0.5 * 10.0**-gold.places
        if abs(answer.value - gold.value) <= half * (1 + 1e-9):
            return True, f"equal to {gold.places} places"
    return False, "other number"
