"""Plain numbers: how one is read, strictly, and when two are equal.

A plain number is digits with a sign, thousands marks, an exponent, a fraction or number words,
then a percent sign or a *known* unit, and nothing else. Everything else is mathematics, or no
answer.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from rewards.units import is_measured_in, is_name_in, read_unit

THIN = "\u2009\u202f\u00a0\u2007"  # thin and unbreakable spaces
TYPESETTING = [  # wrappers and spaces that do not change what is said
    (re.compile(rf"[{THIN}]"), " "),
    (re.compile("[\u2212\u2013\uff0d]"), "-"),
    (
        re.compile(
            r"\\\\(?=(?:left|right|[dt]?frac|boxed|text|mathrm|sqrt|pi|leq?|geq?|cup|infty)(?![A-Za-z]))"
        ),
        r"\\",
    ),  # escaped twice
    (
        re.compile(
            r"\\(?:text|textnormal|mathrm|mathbf|textbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}"
        ),
        r" \1 ",
    ),
    (re.compile(r"(?<=\d)\s*(?:,\\!|\{,\s*\})\s*(?=\d{3})"), ","),
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?)(?![A-Za-z])\.?"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"(?<!\\)\\[,;:!> ]|\\quad|\\qquad|~"), " "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\\circ\b|\u00ba"), "°"),
    (re.compile(r"\\%|\uff05"), "%"),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"\*\*|`"), ""),
    (re.compile(r"\\cdot(?![A-Za-z])|\u00b7|\u22c5"), r" \\cdot "),
    (re.compile(r"\\times(?![A-Za-z])|\u00d7"), r" \\times "),
]
DIGITS = rf"(?:\d{{1,3}}(?:,\d{{3}})+(?![\d,]*\d)|\d{{1,3}}(?:[ {THIN}]\d{{3}})+(?!\d)|\d+)(?:\.\d+|\.(?!\d))?|\.\d+"
DECIMAL = (
    rf"(?:{DIGITS})(?:[eE][-+]?\d+|\s*(?:\\times|x|\*|\\cdot)\s*10\s*\^\s*\{{?\s*[-+]?\d+\s*\}}?)?"
)
FRACTION = (
    rf"\\frac\s*\{{\s*(?:{DIGITS})\s*\}}\s*\{{\s*(?:{DIGITS})\s*\}}|(?:{DIGITS})\s*/\s*(?:{DIGITS})"
)
NUMBER = (
    rf"(?:[-+]\s*)?(?:(?:\d+\s+)?\d+\s*/\s*\d+(?!\.?\d)|(?:\d+\s*)?\\frac\s*\{{\s*(?:{DIGITS})\s*\}}\s*"
    rf"\{{\s*(?:{DIGITS})\s*\}}|{FRACTION}|{DECIMAL})"
)
PLAIN = re.compile(rf"(?P<currency>-?\s*[$€£¥]\s*)?(?P<number>{NUMBER})(?P<rest>.*)", re.DOTALL)
DECIMAL_COMMA = re.compile(
    r"^(-?\d+),(\d{2}|\d{4,}|(?<=^0,)\d+|(?<=^-0,)\d+)(?![\d.,])"
)  # "2,74", but neither "1,234" nor "3,5"
ABOUT = re.compile(
    r"^(?:approximately|about|around|roughly|approx\.?|nearly|\\approx|≈|=)\s*", re.IGNORECASE
)
LABEL = re.compile(  # "x", "x_1", "AB", "f(x)", "\angle ABC", "m∠A": the name of what is asked for
    r"(?:\\(?:angle|triangle|widehat|overline|overrightarrow|vec|alpha|beta|theta|gamma|phi|lambda|mu|omega|"
    r"sin|cos|tan|Delta)(?![A-Za-z])|(?:angle|triangle|length|area|perimeter|volume|radius|total)\b|"
    r"[A-Za-z]{1,3}(?![A-Za-z])|[A-Z]+(?![a-z])|[∠△°αβγθφλμω(){}'′,\s]|_\{?\d*\}?|\\[{}])++"
)
ARITHMETIC = re.compile(r"[-+*/().\d\s%°]*\d[-+*/().\d\s%°^√]*")


@dataclass(frozen=True)
class Number:
    value: float
    unit: str = ""  # canonical, "" for none
    percent: bool = False
    places: int | None = (
        None  # digits after the point as written, None for a fraction or a power of ten
    )


@lru_cache(maxsize=4096)
def tidy(text: str) -> str:
    """The same text without typesetting: `$12\\,\\text{cm}^{2}$` -> `12  cm ^{2}`."""
    for pattern, replacement in TYPESETTING:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+", " ", text).strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if (
            text.startswith(opening)
            and text.endswith(closing)
            and len(text) >= len(opening) + len(closing)
        ):
            text = text[len(opening) : len(text) - len(closing)].strip()
    return text


def read_number(text: str, question: str = "", measured: bool = False) -> Number | None:
    """The one plain number that an answer is, or None. `measured`: a letter right after the digits
    is a unit.

    >>> read_number("x = 1,234.5 cm")
    Number(value=1234.5, unit='cm', percent=False, places=1)
    >>> read_number("50%"), read_number("4x"), read_number("3, 5"), read_number("two million").value
    (Number(value=50.0, unit='', percent=True, places=0), None, None, 2000000.0)
    """
    if len(text) > 300:
        return None
    text = drop_label(tidy(text).rstrip(".。").strip())
    if text is None:
        return None

    text = ABOUT.sub("", text.strip())
    if text.count("$") > 1:  # "$28$ percent": marks of mathematics, not of money
        text = text.replace("$", "")
    text = DECIMAL_COMMA.sub(r"\1.\2", text)
    match = PLAIN.fullmatch(words_to_digits(text))
    if match is None:
        return None
    number = parse_digits(match["number"])
    if number is None:
        return None

    value, places = number
    rest = match["rest"].strip()
    if (match["currency"] or "").strip().startswith("-"):
        value = -value
    percent = (
        re.fullmatch(r"(?:%|percent|per cent|percentage|pct)(?:\s*points?)?", rest, re.IGNORECASE)
        is not None
    )
    unit = "" if percent else read_unit(rest, question)
    if unit is None or (
        is_one_letter(match["rest"])
        and not measured
        and not is_measured_in(match["rest"][0], question)
    ):
        return None  # "4m" may be 4 times m
    if match["currency"]:
        unit = match["currency"].strip(" -") if not unit else unit
    return Number(value, unit, percent, places)


def is_one_letter(rest: str) -> bool:
    """One letter with nothing between it and the digits: "4m", "4x"."""
    return rest[:1].isascii() and rest[:1].isalpha() and not (rest[1:2] or " ").isalpha()


def read_gold_number(gold: str, question: str) -> Number | None:
    """A gold is measured in a letter that the question does not use as a name: "3m" is 3 meters
    there."""
    letter = re.search(r"\d([A-Za-z])(?![A-Za-z])", tidy(gold))
    measured = bool(question) and letter is not None and not is_name_in(letter[1], question)
    return read_number(gold, question, measured)


def drop_label(text: str) -> str | None:
    """What follows the last "=" of "x = 5" or "2 + 3 = 5"; None if it is half of another
    equation."""
    if "=" not in text:
        return text
    *left, right = text.split("=")
    for side in left:
        side = side.strip()
        if side and not LABEL.fullmatch(side) and not ARITHMETIC.fullmatch(side):
            return None
    return right.strip()


def parse_digits(text: str) -> tuple[float, int | None] | None:
    """(value, digits after the point) of a matched number. A comma is a thousands mark only where
    one belongs."""
    text = (
        re.sub(rf"(?<=\d)[,{THIN} ](?=\d{{3}}(?!\d))", "", text.strip())
        if "/" not in text
        else text
    )
    mixed = re.fullmatch(
        r"([-+]?)\s*(?:(\d+)\s*(?=\\frac|\s))?\s*(?:\\frac\s*\{\s*([\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}|"
        r"([\d.,]+)\s*/\s*([\d.,]+))",
        text,
    )
    try:
        if mixed:
            sign, whole, top, bottom = (
                mixed[1],
                mixed[2],
                mixed[3] or mixed[5],
                mixed[4] or mixed[6],
            )
            value = float(whole or 0) + float(top.replace(",", "")) / float(bottom.replace(",", ""))
            return (-value if sign == "-" else value), None
        power = re.fullmatch(
            r"(.*?)\s*(?:\\times|x|\*|\\cdot)\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?", text
        )
        if power:
            return float(f"{power[1].replace(' ', '')}e{power[2]}"), None
        text = text.replace(" ", "")
        value = float(text)
    except (ValueError, ZeroDivisionError):
        return None
    if not math.isfinite(value):
        return None
    return value, None if "e" in text.lower() else len(text.partition(".")[2])


# --- Number words --------------------------------------------------------------------------------

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SMALL = {word: i for i, word in enumerate(ONES)} | {word: 10 * i for i, word in enumerate(TENS, 2)}
LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
WORD = "|".join([*SMALL, *LARGE])
NUMBER_WORDS = re.compile(rf"\b(?:{WORD})(?:(?:[\s-]+(?:and\s+)?)(?:{WORD}))*\b", re.IGNORECASE)
SCALED = re.compile(rf"(?<![\w.,])({DIGITS})\s+((?:{'|'.join(LARGE)})s?)\b", re.IGNORECASE)


def words_to_digits(text: str) -> str:
    """`twenty-one cm` -> `21 cm`, `4.5 million` -> `4500000`. Words that make no number are left
    alone."""
    text = SCALED.sub(scale, text)
    return NUMBER_WORDS.sub(lambda match: str(value_of(match[0])), text)


def scale(match: re.Match) -> str:
    number = parse_digits(match[1])
    value = number[0] * LARGE[match[2].lower().removesuffix("s")]
    return f"{value:.0f}" if value == int(value) else repr(value)


def value_of(words: str) -> int | str:
    """The number that words spell, or the words if they spell several: "one two"."""
    total, group, last = 0, 0, None
    for word in re.findall("[a-z]+", words.lower()):
        if word == "and":
            continue
        if word in SMALL:
            tens_then_ones = last in TENS and SMALL[word] < 10
            if last in SMALL and not tens_then_ones:
                return words
            group += SMALL[word]
        elif word == "hundred":
            group = 100 * max(1, group)
        else:
            total, group = total + max(1, group) * LARGE[word], 0
        last = word
    return total + group


# --- Equality ------------------------------------------------------------------------------------


def same_number(answer: Number, gold: Number) -> tuple[bool, str]:
    """Are they equal, and how it was decided.

    "50%" is right for 50 and for 0.5, as golds are written either way. Given to more places than
    the gold, a number is right if it rounds to it, never the other way round: 3.1416 is right for
    3.14, not for 3."""
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
