r"""Plain numbers: how one is read, strictly, and when two are equal.

One answer through the file:

    "x = 1,234.5 cm"                                 the answer
    "1,234.5 cm"                                     without its label
    Number(value=1234.5, unit="cm", places=1)        read

    equal to 1234.5, to "1234.50 cm" and to "1234 1/2"; not to "1234.5 m"

A plain number is digits, a fraction or number words, with a percent sign or a known unit behind
them, and nothing else. Everything else is mathematics or no answer: 4x, 4\pi, 4! and "4 or 5" are
not 4. An answer that is paid for too easily is soon the only one that a policy writes.
"""

import re
from dataclasses import dataclass

from rewards.digits import NUMBER, parse_digits, words_to_digits
from rewards.typesetting import tidy
from rewards.units import is_measured_in, is_name_in, read_unit

LONGEST = 300  # characters


@dataclass(frozen=True)
class Number:
    value: float
    unit: str = ""  # as `units.read_unit` writes it, "" for none
    percent: bool = False
    places: int | None = None  # digits after the point; None for a fraction or a power of ten


# --- Reading -------------------------------------------------------------------------------------


def read_number(text: str, question: str = "", letter_is_unit: bool = False) -> Number | None:
    """The plain number that a text is; None if the text is anything else.

    question          a word that it counts is a unit: "12 apples"
    letter_is_unit    the letter right behind the digits is a unit: "4m", else perhaps 4 times m

    >>> read_number("x = 1,234.5 cm")
    Number(value=1234.5, unit='cm', percent=False, places=1)
    >>> read_number("50%"), read_number("two million").value
    (Number(value=50.0, unit='', percent=True, places=0), 2000000.0)
    >>> read_number("4x"), read_number("3, 5"), read_number("4m")
    (None, None, None)
    """
    match = match_number(text)
    digits = parse_digits(match["number"]) if match else None
    if digits is None:
        return None

    currency = (match["currency"] or "").strip()
    value = -digits.value if currency.startswith("-") else digits.value  # "-$5"
    currency = currency.strip(" -")

    rest = match["rest"]
    if PERCENT.fullmatch(rest.strip()):
        return Number(value, currency, percent=True, places=digits.places)

    unit = read_unit(rest.strip(), question)
    if unit is None:
        return None
    may_be_a_factor = begins_with_one_letter(rest) and not is_measured_in(rest[0], question)
    if may_be_a_factor and not letter_is_unit:  # "4m"
        return None
    return Number(value, unit or currency, percent=False, places=digits.places)


def read_gold_number(gold: str, question: str) -> Number | None:
    """The number that a gold is; None if the gold is anything else.

    The letter in "3m" is a unit, unless the question uses it as a name.

    >>> read_gold_number("3m", "How long is the wall?").unit
    'm'
    >>> read_gold_number("3m", "Simplify m + m + m.") is None
    True
    """
    letter = re.search(r"\d([A-Za-z])(?![A-Za-z])", tidy(gold))
    if letter is None or not question:
        return read_number(gold, question)
    return read_number(gold, question, letter_is_unit=not is_name_in(letter[1], question))


def read_answer_number(answer: str, gold: Number | None, question: str) -> Number | None:
    """The number that an answer is, or None. If the gold has a unit, the "m" of "4m" is a unit."""
    return read_number(answer, question, letter_is_unit=gold is not None and gold.unit != "")


def match_number(text: str) -> re.Match | None:
    """The match of `NUMBER_ALONE`, after everything in front of the number is removed.

    >>> match_number("It costs 5"), match_number("x = about 2,74 $")["number"]
    (None, '2.74')
    """
    if len(text) > LONGEST:
        return None
    text = tidy(text).rstrip(".。").strip()
    text = without_label(text)
    if text is None:
        return None

    text = ABOUT.sub("", text)
    if text.count("$") > 1:  # "$28$ percent": marks of mathematics, not of money
        text = text.replace("$", "")
    text = DECIMAL_COMMA.sub(r"\1.\2", text)
    return NUMBER_ALONE.fullmatch(words_to_digits(text))


def without_label(text: str) -> str | None:
    """What follows the last "=", or None if what stands before it is more than a label.

    >>> without_label("x = 5"), without_label("2 + 3 = 5"), without_label("2x = 6")
    ('5', '5', None)
    """
    *left_sides, right = text.split("=")
    for side in left_sides:
        side = side.strip()
        is_label = not side or LABEL.fullmatch(side) or ARITHMETIC.fullmatch(side)
        if not is_label:
            return None
    return right.strip()


def begins_with_one_letter(rest: str) -> bool:
    """Does one letter stand right behind the digits: the m of "4m", the x of "4x"?"""
    first, second = rest[:1], rest[1:2]
    return first.isascii() and first.isalpha() and not second.isalpha()


# --- Equality ------------------------------------------------------------------------------------


def same_number(answer: Number, gold: Number) -> tuple[bool, str]:
    """Are the two equal, and how it was decided. A missing unit is accepted.

    Percents    "50%" is right for 50 and for 0.5, as golds are written either way.
    Rounding    An answer with more places than the gold is right if it rounds to the gold: 3.1416
                for 3.14. An answer with fewer places is wrong: 3 for 3.14. A whole gold is exact.

    >>> same_number(read_number("50%"), read_number("0.5"))
    (True, 'equal number')
    >>> same_number(read_number("3.1416"), read_number("3.14"))
    (True, 'equal to 2 places')
    >>> same_number(read_number("3.14"), read_number("3.1416"))
    (False, 'other number')
    >>> same_number(read_number("3.2"), read_number("3"))
    (False, 'other number')
    >>> same_number(read_number("5 cm"), read_number("5 m"))
    (False, "unit 'cm', not 'm'")
    """
    if answer.unit and gold.unit and answer.unit != gold.unit:
        return False, f"unit {answer.unit!r}, not {gold.unit!r}"

    if is_close(answer.value, gold.value):
        return True, "equal number"
    if answer.percent and not gold.percent and is_close(answer.value / 100, gold.value):
        return True, "equal number"
    if gold.percent and not answer.percent and is_close(answer.value, gold.value / 100):
        return True, "equal number"

    has_places = gold.places is not None and gold.places > 0  # a whole gold is exact: 3.2 is not 3
    if has_places and answer.places is not None and answer.places > gold.places:
        half_a_place = 0.5 * 10.0**-gold.places
        if abs(answer.value - gold.value) <= half_a_place * (1 + 1e-9):
            return True, f"equal to {gold.places} places"
    return False, "other number"


def is_close(value: float, wanted: float) -> bool:
    """Equal up to the error of a float. Next to a whole number there is less of it.

    >>> is_close(0.1 + 0.2, 0.3), is_close(0.3 / 0.1, 3), is_close(1_000_001, 1_000_000)
    (True, True, False)
    """
    relative = 1e-12 if float(wanted).is_integer() else 1e-9
    return abs(value - wanted) <= relative * max(1e-3, abs(wanted))


# --- Patterns ------------------------------------------------------------------------------------

NUMBER_ALONE = re.compile(  # "12", "-$12.50", "12 cm": what the rest is, is decided later
    rf"(?P<currency>-?\s*[$€£¥]\s*)?(?P<number>{NUMBER})(?P<rest>.*)", re.DOTALL
)
PERCENT = re.compile(  # "%", "percent", "percentage points"
    r"(?:%|percent|per cent|percentage|pct)(?:\s*points?)?", re.IGNORECASE
)
DECIMAL_COMMA = re.compile(  # a comma that is a decimal point
    r"""^(-?\d+),
        ( \d{2}                         # "2,74", while "3,5" are two numbers
        | \d{4,}                        # "2,7182", while "1,234" is a thousand
        | (?<=^0,)\d+ | (?<=^-0,)\d+    # "0,5", "-0,5"
        )(?![\d.,])
    """,
    re.VERBOSE,
)
ABOUT = re.compile(  # what may stand in front of a number
    r"^(?:approximately|about|around|roughly|approx\.?|nearly|\\approx|≈|=)\s*", re.IGNORECASE
)
# The possessive ++ gives no part back. With a plain + the parts of a long name could be divided in
# very many ways, and each would be tried where no "=" follows.
LABEL = re.compile(  # the name of what is asked for; its parts may repeat: "\angle ABC", "f(x)"
    r"(?:"
    r"\\(?:angle|triangle|widehat|overline|overrightarrow|vec)(?![A-Za-z])"  # \angle
    r"|\\(?:alpha|beta|theta|gamma|phi|lambda|mu|omega|sin|cos|tan|Delta)(?![A-Za-z])"  # \alpha
    r"|(?:angle|triangle|length|area|perimeter|volume|radius|total)\b"  # area
    r"|[A-Za-z]{1,3}(?![A-Za-z])"  # x, AB
    r"|[A-Z]+(?![a-z])"  # ABCD
    r"|(?<=[A-Za-z'′])\(-?\d[\d., ]*\)"  # the argument of "f(2)"
    r"|[∠△°αβγθφλμω(){}'′,\s]"  # ∠, f(x), x'
    r"|_\{?\d*\}?"  # x_1
    r"|\\[{}]"
    r")++"
)
ARITHMETIC = re.compile(r"[-+*/().\d\s%°]*\d[-+*/().\d\s%°^√]*")  # the "2 + 3" of "2 + 3 = 5"
