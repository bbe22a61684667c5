r"""Units of measurement: which words after a number are a unit, and when two of them are the same.

One unit through the file:

    "meters per second^{2}"              what follows the number
    {"m": 1, "s": -2}                    its factors, by their names in `unit_names.py`
    "m s^-2"                             the same string for every spelling of it

A unit is a product of known names with powers. Counted things are accepted and ignored: in
"12 apples" the unit is "", if the question speaks of apples.

For anything else `read_unit` returns None, and the caller refuses the number: 4x, 4\pi, 4! and
4 million are not 4.
"""

import re
from dataclasses import dataclass

from rewards.unit_names import COUNTED, MONEY, NAMES, NO_UNITS

LONGEST = 60  # characters


# --- Reading a unit ------------------------------------------------------------------------------


def read_unit(text: str, question: str = "") -> str | None:
    """The unit as one string for all its spellings, "" for none, None if the text is no unit.

        "cm", "centimeters"    "cm"     a unit
        ""                     ""       nothing stands behind the number
        "people", "apples"     ""       what is counted; "apples" only if the question counts them
        "x", "million"         None     something that makes the number another one

    >>> read_unit("cm^2"), read_unit("square centimeters"), read_unit("km/h")
    ('cm^2', 'cm^2', 'h^-1 km')
    >>> read_unit("x"), read_unit("million")
    (None, None)
    >>> read_unit("apples"), read_unit("apples", "How many apples are left?")
    (None, '')
    """
    text = text.strip(" .,;*·()").replace("\u00b5", "\u03bc")  # the micro sign -> the Greek letter
    if not text:
        return ""
    if len(text) > LONGEST:
        return None
    if is_counted(text, question):
        return ""

    for pattern, replacement in WRITTEN_POWERS:
        text = pattern.sub(replacement, text)
    powers = read_factors(text)
    if powers is None or multiplies_money(powers):
        return None

    multiplied = [
        name if power == 1 else f"{name}^{power}"
        for name, power in sorted(powers.items())
        if name not in COUNTED and power != 0  # "m/m" has no unit
    ]
    return " ".join(multiplied)


def read_factors(text: str) -> dict[str, int] | None:
    """The power of each unit in a product; None if anything in it is not a known unit.

    Everything behind a slash divides: "m/s kg" is m/(s kg).

    >>> read_factors("kg m/s^{2}"), read_factors("m per x")
    ({'kg': 1, 'm': 1, 's': -2}, None)
    """
    powers: dict[str, int] = {}
    sign = 1
    for part in re.split(r"(/|\bper\b)", text):
        part = part.strip()
        if part in ("/", "per"):
            sign = -1
            continue
        factors = split_factors(part)
        if factors is None:
            return None
        for name, power in factors:
            powers[name] = powers.get(name, 0) + sign * power
    return powers


def split_factors(text: str) -> list[tuple[str, int]] | None:
    """The units of a product without a slash, each with its power; None if one is not known.

    >>> split_factors("kg m^2"), split_factors("nautical miles"), split_factors("kg x")
    ([('kg', 1), ('m', 2)], [('nmi', 1)], None)
    """
    if name_of(text):  # a name, perhaps of several words
        return [(name_of(text), 1)]

    factors = []
    position = 0
    while position < len(text):
        factor = FACTOR.match(text, position)
        if factor is None:
            return None
        name = name_of(factor["name"].replace(" ", ""))
        if name is None:
            return None
        power = factor["power"] or factor["digit"] or 1
        factors.append((name, int(power)))
        position = factor.end()
    return factors


def multiplies_money(powers: dict[str, int]) -> bool:
    """Is it money times another unit? Then it is no unit: 12 $ m means 12 million. 12 $/h is one.

    >>> multiplies_money({"$": 1, "m": 1}), multiplies_money({"$": 1, "h": -1})
    (True, False)
    """
    has_money = any(name in MONEY for name in powers)
    return has_money and any(power > 0 for name, power in powers.items() if name not in MONEY)


WRITTEN_POWERS = [  # other ways to write a power: "square cm" is "cm^2"
    (re.compile("²"), "^2"),
    (re.compile("³"), "^3"),
    (re.compile(r"平方(千米|厘米|米)"), r"\1^2"),
    (re.compile(r"\b(?:square|sq\.?) (?!units?\b)([a-z]+)", re.IGNORECASE), r"\1^2"),
    (re.compile(r"\b(?:cubic|cu\.?) ([a-z]+)", re.IGNORECASE), r"\1^3"),
    (re.compile(r"\b([a-z]+) squared", re.IGNORECASE), r"\1^2"),
    (re.compile(r"\b([a-z]+) cubed", re.IGNORECASE), r"\1^3"),
]
FACTOR = re.compile(
    r"""(?P<name>[^\W\d_]+ | °(?:[ ]?[CFcf]\b)? | [$¢€£¥])      # cm, °C, $
        (?: \s*\^\s*\{?\s*(?P<power>-?\d)\s*\}?                 # cm^2, cm^{2}
          | (?P<digit>\d)\b )?                                  # cm2
        [ *·.{}]*                                               # up to the next factor
    """,
    re.VERBOSE,
)


# --- Names of units ------------------------------------------------------------------------------


def all_spellings() -> dict[str, str]:
    """Every spelling of a unit -> its name: "centimeters" -> "cm"."""
    name_by_spelling = {}
    for name, others in {**NAMES, **COUNTED}.items():
        for spelling in [name, *others.split()]:
            words = spelling.replace("-", " ")
            name_by_spelling[words] = name
            if len(words) > 2:
                name_by_spelling[words + "s"] = name
    return name_by_spelling


SPELLINGS = all_spellings()


def name_of(word: str) -> str | None:
    """The name of a unit in `unit_names.py`. Case matters in a single letter.

    >>> name_of("Meters"), name_of("N"), name_of("n")
    ('m', 'N', None)
    """
    if word in SPELLINGS:
        return SPELLINGS[word]
    return SPELLINGS.get(word.lower()) if len(word) > 1 else None


# --- What the question says about a word ---------------------------------------------------------


def is_counted(text: str, question: str) -> bool:
    """Does the text name what the question counts? One to four words, all in the question.

    >>> is_counted("red apple", "How many red apples are left?"), is_counted("pears", "How many?")
    (True, False)
    """
    words = re.findall(r"[a-z]+", text.lower())
    if not 1 <= len(words) <= 4 or set(words) & NO_UNITS:
        return False
    if not re.fullmatch(r"[A-Za-z' -]+", text) or len(text.strip(" '-")) < 3:
        return False
    asked = {stem(word) for word in re.findall(r"[a-z]+", question.lower())}
    return all(stem(word) in asked for word in words)


def stem(word: str) -> str:
    """A crude stem, enough to match a plural with its singular.

    >>> stem("boxes") == stem("box"), stem("trees") == stem("tree"), stem("cups") == stem("cup")
    (True, True, True)
    >>> stem("glasses") == stem("glass"), stem("cherries") == stem("cherry")
    (True, True)
    """
    if word.endswith("ss"):  # a glass
        return word
    # (ending, length from which a word loses it): boxes -> box, cups -> cup, bee -> be; "bus" is
    # too short.
    for ending, shortest in (("es", 4), ("s", 4), ("e", 3)):
        if word.endswith(ending) and len(word) >= shortest:
            word = word.removesuffix(ending)
            break
    return re.sub("y$", "i", word)  # a cherry


def is_measured_in(letter: str, question: str) -> bool:
    """Does the question measure in this unit of one letter?

    >>> is_measured_in("m", "The wall is 20 m long."), is_measured_in("m", "How many meters?")
    (True, True)
    >>> is_measured_in("m", "What is m?"), is_measured_in("g", "Is the grammar right?")
    (False, False)
    >>> is_measured_in("s", "How many seconds?"), is_measured_in("s", "What is the second term?")
    (True, False)
    """
    behind_digits = rf"\d\s*\\?(?:text|mathrm)?[{{~ ]*{re.escape(letter)}\b"
    if re.search(behind_digits, question):
        return True
    if letter == "s":
        return SECONDS.search(question) is not None
    long_names = [name for name in NAMES.get(letter, "").split() if len(name) > 2]
    # the endings of "meters" and "voltage", so that "grammar" measures nothing in grams
    return any(re.search(rf"\b{name}(?:s|age)?\b", question) for name in long_names)


SECONDS = re.compile(  # "the second term" measures nothing; "sec x" is a secant
    r"""\b(?:milli)?seconds\b
      | (?:\bper|/|\d|\b(?:in|one|half|of)\ (?:a|one)|\b(?:in|half)\ a)[ -]?second\b
      | \bsecs\b | (?:\bin|\bper|\d)\ sec\b | 秒
    """,
    re.VERBOSE,
)


def is_name_in(letter: str, question: str) -> bool:
    """Does the question use this letter as a name, as in "What is m?" or "a slope m"?"""
    return re.search(rf"(?<![A-Za-z\\]){re.escape(letter)}(?![A-Za-z])", question) is not None


# --- A unit behind an expression -----------------------------------------------------------------


@dataclass(frozen=True)
class Quantity:
    body: str  # the expression without its unit
    unit: str  # "" for none


def split_unit(text: str, question: str = "", letter_is_unit: bool = False) -> Quantity:
    r"""An expression and the unit behind it.

    A single letter may be a variable. It is a unit only if the question measures in it, or if the
    caller knows that it is one (`letter_is_unit`).

    Beside each early return stands an example that it refuses.

    >>> split_unit(r"4\pi cm")
    Quantity(body='4\\pi', unit='cm')
    >>> split_unit("3 + 4m"), split_unit("3 + 4m", letter_is_unit=True)
    (Quantity(body='3 + 4m', unit=''), Quantity(body='3 + 4', unit='m'))
    """
    no_unit = Quantity(text, "")
    words = LAST_WORDS.search(text)
    if words is None:  # "x + 1": it ends in no word
        return no_unit
    body = text[: words.start()].rstrip()
    if not body or body.endswith("\\"):  # " cm", without an expression; r"3 \\ m", a line break
        return no_unit
    if ENDS_IN_OPERATOR.search(body) and not body.endswith("\\pi"):  # "3 + m", r"\sin m"
        return no_unit

    unit = read_unit(words[1].strip(), question)
    if unit is None:  # "3 x"
        return no_unit
    if unit == "":  # "3 apples", which are counted, not measured
        return no_unit
    first_word = re.match(r"[A-Za-z]*", words[1].strip())[0]
    is_letter = len(first_word) == 1
    if is_letter and not letter_is_unit and not is_measured_in(first_word, question):  # "3 + 4m"
        return no_unit
    return Quantity(body, unit)


# What may be a unit, behind a digit, a bracket that closes, a blank, °, π or the i of \pi.
LAST_WORDS = re.compile(
    r"""(?<=[\d})\s°iπ])
        ( (?: ° | [A-Za-z]{1,12} | [\u4e00-\u9fff]{1,4} )       # cm
          (?: \s* (?: \^\s*\{?-?\d\}?                           # cm^2
                    | [/ ·*]+\s*[A-Za-z]{1,8} ) )*              # m/s
        )$
    """,
    re.VERBOSE,
)
ENDS_IN_OPERATOR = re.compile(r"[-+*/^=,<>(]$|\\[A-Za-z]+$")  # "3 +", "\sin": then m is a term
