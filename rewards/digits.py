r"""How numbers are written: digits, fractions, powers of ten, and words.

    "1,234.5"         NUMBER matches it, parse_digits reads it     (1234.5, 1 place)
    "1 1/2"           a mixed fraction                             (1.5, no places)
    "2 \times 10^3"   a power of ten                               (2000.0, no places)
    "two million"     words_to_digits turns it into "2000000", which is then read like the first

The pattern NUMBER is built from small ones. Other files look for numbers with it.
"""

import math
import re
from dataclasses import dataclass

from rewards.typesetting import THIN

# --- What a number looks like --------------------------------------------------------------------


def any_of(*patterns: str) -> str:
    """A pattern that tries the given ones in order."""
    return "(?:" + "|".join(patterns) + ")"


# Digits without a sign.
WITH_COMMAS = r"\d{1,3}(?:,\d{3})+(?![\d,]*\d)"  # 1,234
WITH_BLANKS = rf"\d{{1,3}}(?:[ {THIN}]\d{{3}})+(?!\d)"  # 1 234
WHOLE = any_of(WITH_COMMAS, WITH_BLANKS, r"\d+")  # or 1234
PLACES = r"(?:\.\d+|\.(?!\d))"  # .5, or a point with nothing behind it
DIGITS = any_of(WHOLE + PLACES + "?", r"\.\d+")  # 1234.5, 1234., .5

# A power of ten behind them.
TIMES_TEN = r"\s*(?:\\times|x|\*|\\cdot)\s*10\s*\^\s*\{?\s*"  # " x 10^{"
E_NOTATION = r"[eE][-+]?\d+"  # e3
POWER = TIMES_TEN + r"[-+]?\d+\s*\}?"  # \times 10^{3}
DECIMAL = DIGITS + any_of(E_NOTATION, POWER) + "?"  # 1.2, 1.2e3, 1.2 \times 10^{3}

# Fractions. MIXED comes first, since "1 1/2" also begins with the number 1.
MIXED = r"(?:\d+\s+)?\d+\s*/\s*\d+(?!\.?\d)"  # 1 1/2, 1/2
TEX_FRACTION = rf"\\frac\s*\{{\s*{DIGITS}\s*\}}\s*\{{\s*{DIGITS}\s*\}}"  # \frac{1}{2}
MIXED_TEX = r"(?:\d+\s*)?" + TEX_FRACTION  # 1\frac{1}{2}
RATIO = DIGITS + r"\s*/\s*" + DIGITS  # 1.5/2

NUMBER = r"(?:[-+]\s*)?" + any_of(MIXED, MIXED_TEX, RATIO, DECIMAL)


# --- What number it is ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Parsed:
    value: float
    places: int | None  # digits after the point as written; None: a fraction or a power of ten


def parse_digits(text: str) -> Parsed | None:
    r"""The value of what `NUMBER` matched. None if it is no finite number.

    >>> parse_digits("-1,234.50"), parse_digits(r"1\frac{1}{2}")
    (Parsed(value=-1234.5, places=2), Parsed(value=1.5, places=None))
    >>> parse_digits(r"2 \times 10^{3}"), parse_digits("1/0"), parse_digits("1e400")
    (Parsed(value=2000.0, places=None), None, None)
    """
    text = text.strip()
    if "/" not in text:  # in "1 234/5" the blank divides a whole number from a fraction
        text = THOUSANDS_MARK.sub("", text)
    try:
        fraction = FRACTION_PARTS.fullmatch(text)
        if fraction:
            return Parsed(fraction_value(fraction), None)
        power = POWER_PARTS.fullmatch(text)
        if power:
            mantissa = power["mantissa"].replace(" ", "")
            return Parsed(float(f"{mantissa}e{power['exponent']}"), None)
        return parse_decimal(text.replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        return None


def parse_decimal(text: str) -> Parsed | None:
    """`12.50` -> 12.5 with two places. Raises ValueError if it is no number."""
    value = float(text)
    if not math.isfinite(value):
        return None
    if "e" in text.lower():
        return Parsed(value, None)
    _, _, after_the_point = text.partition(".")
    return Parsed(value, len(after_the_point))


def fraction_value(parts: re.Match) -> float:
    """The value of what `FRACTION_PARTS` matched."""
    top = (parts["top"] or parts["left"]).replace(",", "")
    bottom = (parts["bottom"] or parts["right"]).replace(",", "")
    value = float(parts["whole"] or 0) + float(top) / float(bottom)
    return -value if parts["sign"] == "-" else value


THOUSANDS_MARK = re.compile(rf"(?<=\d)[,{THIN} ](?=\d{{3}}(?!\d))")
POWER_PARTS = re.compile(rf"(?P<mantissa>.*?){TIMES_TEN}(?P<exponent>[-+]?\d+)\s*\}}?")
FRACTION_PARTS = re.compile(
    r"""(?P<sign>[-+]?)\s*
        (?:(?P<whole>\d+)\s*(?=\\frac|\s))?\s*                                         # 1 of 1 1/2
        (?: \\frac\s*\{\s*(?P<top>[\d.,]+)\s*\}\s*\{\s*(?P<bottom>[\d.,]+)\s*\}        # \frac{1}{2}
          | (?P<left>[\d.,]+)\s*/\s*(?P<right>[\d.,]+) )                               # 1/2
    """,
    re.VERBOSE,
)


# --- Number words --------------------------------------------------------------------------------

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SMALL = {
    **{word: value for value, word in enumerate(ONES)},
    **{word: 10 * tens for tens, word in enumerate(TENS, start=2)},
}
LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}

WORD = "|".join([*SMALL, *LARGE])
NUMBER_WORDS = re.compile(  # "one hundred and twenty-one"
    rf"\b(?:{WORD})(?:(?:[\s-]+(?:and\s+)?)(?:{WORD}))*\b", re.IGNORECASE
)
SCALED = re.compile(  # "4.5 million"
    rf"(?<![\w.,])(?P<digits>{DIGITS})\s+(?P<scale>(?:{'|'.join(LARGE)})s?)\b", re.IGNORECASE
)


def words_to_digits(text: str) -> str:
    """The same text with its number words in digits. Words that make no number are left alone.

    >>> words_to_digits("twenty-one cm"), words_to_digits("4.5 million"), words_to_digits("one two")
    ('21 cm', '4500000', 'one two')
    """
    text = SCALED.sub(scaled_to_digits, text)
    return NUMBER_WORDS.sub(spelled_to_digits, text)


def scaled_to_digits(match: re.Match) -> str:
    """`4.5 million` -> `4500000`; as it is where the number is too large to be one.

    Trap: hundreds of digits are no float, and their product may be infinite. A response in a loop
    writes them, and grading it must not end the run (test_endless_digits_are_no_number).
    """
    number = parse_digits(match["digits"])
    if number is None:
        return match[0]
    scale = match["scale"].lower().removesuffix("s")  # "millions"
    value = number.value * LARGE[scale]
    if not math.isfinite(value):
        return match[0]
    is_whole = value == int(value)
    return f"{value:.0f}" if is_whole else repr(value)


def spelled_to_digits(match: re.Match) -> str:
    """`twenty-one` -> `21`; as it is if the words spell no single number."""
    value = spelled_value(match[0])
    return match[0] if value is None else str(value)


def spelled_value(words: str) -> int | None:
    """The number that words spell, or None if they spell several.

    "two million three hundred and five" is read from left to right:

        two     million      three     hundred     five
        group 2 total 2e6    group 3   group 300   group 305     ->  2000305

    >>> spelled_value("two million three hundred and five")
    2000305
    >>> spelled_value("one two"), spelled_value("two million three million")
    (None, None)
    """
    total = 0  # what thousands, millions, ... have closed
    group = 0  # what stands before the next of them
    smallest_scale = math.inf
    last = None
    for word in re.findall("[a-z]+", words.lower()):
        if word == "and":
            continue
        if word in SMALL:
            is_after_tens = last in TENS and SMALL[word] < 10  # twenty-one
            if last in SMALL and not is_after_tens:
                return None  # "one two"
            group += SMALL[word]
        elif word == "hundred":
            group = 100 * max(1, group)
        else:
            scale = LARGE[word]
            if scale >= smallest_scale:
                return None  # "two million three million"
            smallest_scale = scale
            total += max(1, group) * scale
            group = 0
        last = word
    return total + group
