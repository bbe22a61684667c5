r"""How numbers are written: digits, fractions, powers of ten, and words.

The patterns build on each other, from DIGITS to NUMBER, and are used wherever a number is looked
for. `parse_digits` gives the value of what they match.
"""

import math
import re

from rewards.typesetting import THIN

# --- Digits --------------------------------------------------------------------------------------

DIGITS = (
    rf"(?:\d{{1,3}}(?:,\d{{3}})+(?![\d,]*\d)"  # 1,234
    rf"|\d{{1,3}}(?:[ {THIN}]\d{{3}})+(?!\d)"  # 1 234
    r"|\d+)(?:\.\d+|\.(?!\d))?"  # 1234, 1234.5, 1234.
    r"|\.\d+"  # .5
)
TIMES_TEN = r"\s*(?:\\times|x|\*|\\cdot)\s*10\s*\^\s*\{?\s*"
DECIMAL = (
    rf"(?:{DIGITS})"
    rf"(?:[eE][-+]?\d+"  # 1.2e3
    rf"|{TIMES_TEN}[-+]?\d+\s*\}}?)?"  # 1.2 \times 10^{3}
)
TEX_FRACTION = rf"\\frac\s*\{{\s*(?:{DIGITS})\s*\}}\s*\{{\s*(?:{DIGITS})\s*\}}"
NUMBER = (
    r"(?:[-+]\s*)?"
    r"(?:(?:\d+\s+)?\d+\s*/\s*\d+(?!\.?\d)"  # 1/2, 1 1/2
    rf"|(?:\d+\s*)?{TEX_FRACTION}"  # \frac{1}{2}, 1\frac{1}{2}
    rf"|(?:{DIGITS})\s*/\s*(?:{DIGITS})"  # 1.5/2
    rf"|{DECIMAL})"
)

THOUSANDS_MARK = re.compile(rf"(?<=\d)[,{THIN} ](?=\d{{3}}(?!\d))")
POWER_OF_TEN = re.compile(rf"(.*?){TIMES_TEN}([-+]?\d+)\s*\}}?")
MIXED = re.compile(  # a fraction, perhaps with a whole number in front
    r"""(?P<sign>[-+]?)\s*
        (?:(?P<whole>\d+)\s*(?=\\frac|\s))?\s*
        (?:\\frac\s*\{\s*(?P<top>[\d.,]+)\s*\}\s*\{\s*(?P<bottom>[\d.,]+)\s*\}
          |(?P<left>[\d.,]+)\s*/\s*(?P<right>[\d.,]+))""",
    re.VERBOSE,
)


def parse_digits(text: str) -> tuple[float, int | None] | None:
    """What `NUMBER` matched: its value, and its digits after the point as written.

    The digits are None for a fraction or a power of ten. Returns None if it is no finite number:
    1/0, 1e400.
    """
    text = text.strip()
    if "/" not in text:
        text = THOUSANDS_MARK.sub("", text)
    try:
        fraction, power = MIXED.fullmatch(text), POWER_OF_TEN.fullmatch(text)
        if fraction:
            return parse_fraction(fraction), None
        if power:
            return float(f"{power[1].replace(' ', '')}e{power[2]}"), None
        text = text.replace(" ", "")
        value = float(text)
    except (ValueError, ZeroDivisionError):
        return None

    if not math.isfinite(value):
        return None
    return value, None if "e" in text.lower() else len(text.partition(".")[2])


def parse_fraction(match: re.Match) -> float:
    top = (match["top"] or match["left"]).replace(",", "")
    bottom = (match["bottom"] or match["right"]).replace(",", "")
    value = float(match["whole"] or 0) + float(top) / float(bottom)
    return -value if match["sign"] == "-" else value


# --- Number words --------------------------------------------------------------------------------

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SMALL = {word: i for i, word in enumerate(ONES)} | {word: 10 * i for i, word in enumerate(TENS, 2)}
LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}

WORD = "|".join([*SMALL, *LARGE])
NUMBER_WORDS = re.compile(rf"\b(?:{WORD})(?:(?:[\s-]+(?:and\s+)?)(?:{WORD}))*\b", re.IGNORECASE)
SCALED = re.compile(rf"(?<![\w.,])({DIGITS})\s+((?:{'|'.join(LARGE)})s?)\b", re.IGNORECASE)


def words_to_digits(text: str) -> str:
    """The same text with its number words in digits. Words that make no number are left alone.

    >>> words_to_digits("twenty-one cm"), words_to_digits("4.5 million"), words_to_digits("one two")
    ('21 cm', '4500000', 'one two')
    """
    text = SCALED.sub(scale, text)
    return NUMBER_WORDS.sub(lambda match: str(value_of(match[0])), text)


def scale(match: re.Match) -> str:
    """`4.5 million` -> `4500000`; as it is where the number is too large to be one.

    Trap: hundreds of digits are no float, and their product may be infinite. A response in a loop
    writes them, and grading it must not end the run (test_endless_digits_are_no_number).
    """
    digits = parse_digits(match[1])
    if digits is None:
        return match[0]
    value = digits[0] * LARGE[match[2].lower().removesuffix("s")]
    if not math.isfinite(value):
        return match[0]
    return f"{value:.0f}" if value == int(value) else repr(value)


def value_of(words: str) -> int | str:
    """The number that words spell, or the words if they spell several: "one two"."""
    total, group, last = 0, 0, None
    smallest = math.inf  # "two million three million" are two numbers, "two million three" is one
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
            if LARGE[word] >= smallest:
                return words
            smallest = LARGE[word]
            total, group = total + max(1, group) * LARGE[word], 0
        last = word
    return total + group
