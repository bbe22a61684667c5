r"""The number that a text begins with, if nothing behind it makes it another number.

One text through the file:

    "x = 12 cm, as we saw"
    number "12", rest " cm, as we saw"         `LEADING`: a label may stand in front
                                               the rest is then asked, in this order:
    "%"                     12%                1. a percent sign?
    " or 13", ":30"         not one number     2. does it change the number?
    ", as we saw"           12                 3. does something new begin?
    " cm, as we saw"        12 cm              4. a unit, or what is counted?
    "x", "!"                not one number     5. anything else changes the number
"""

import re

from rewards.digits import NUMBER, words_to_digits
from rewards.number import ABOUT, LABEL
from rewards.piece import NEXT, NOT_ONE_NUMBER, Reading
from rewards.typesetting import tidy
from rewards.unit_names import NO_UNITS
from rewards.units import read_unit


def leading_number(text: str) -> Reading:
    """The number that a text begins with, with its unit. NEXT if it begins with none.

    >>> leading_number("x = 12 cm, as we saw").answer, leading_number("twelve balls").answer
    ('12 cm', '12')
    >>> leading_number("12 or 13").refused, leading_number("12x").refused
    ('not one number', 'not one number')
    >>> leading_number("red") == NEXT
    True
    """
    text = tidy(re.sub(r"\\[()\[\]]", " ", text))
    text = ABOUT.sub("", words_to_digits(text).strip(" $*"))
    match = LEADING.match(text)
    if match is None:
        return NEXT

    number, rest = match["number"].rstrip("."), text[match.end() :]
    if PERCENT.match(rest):
        return Reading(f"{number}%")
    if CHANGES_IT.match(rest):
        return NOT_ONE_NUMBER
    if BEGINS_ANEW.match(rest):
        return Reading(number)
    return with_unit(number, rest)


def with_unit(number: str, rest: str) -> Reading:
    """`12` and ` cm, as we saw` -> `12 cm`. A noun that is counted is left out: `12` and ` balls`.

    >>> with_unit("12", " m/s"), with_unit("12", " balls")
    (Reading(answer='12 m/s', refused=None), Reading(answer='12', refused=None))
    >>> with_unit("12", " million").refused, with_unit("12", "y").refused
    ('not one number', 'not one number')
    """
    unit = UNIT.match(rest)
    if unit is None or CHANGES_IT.match(rest[unit.end() :]):  # "12!", "12 cm or 13"
        return NOT_ONE_NUMBER

    word = unit["word"]
    is_no_unit = len(word) == 1 or word.lower() in NO_UNITS - JOINING
    if is_no_unit and read_unit(word) is None:  # "12y", "12 million"
        return NOT_ONE_NUMBER
    return Reading(f"{number} {unit[0].strip()}" if read_unit(unit[0]) else number)


LEADING = re.compile(  # "12", "$12", "x = 12": a label only if a sign of equality follows it
    rf"(?:(?=[^=:≈]*[=:≈]){LABEL.pattern}\s*[=:≈]\s*)?(?P<number>(?:-?\s*[$€£]\s*)?{NUMBER})"
)
PERCENT = re.compile(r"\s*(?:%|percent\b)")
CHANGES_IT = re.compile(
    r"""\s*[,;/-]\s*[$(]?[\d\\]                             # 12, 13
      | :\d                                                  # 12:13
      | \s*,?\s*(?:or|and|to|by|plus|minus|times|over)\s+
        (?:\w+\s+){0,2}[-$€£]?\d                            # 12 or 13, 12 and then 13
      | \s*,?\s*and\s+a\s                                    # 12 and a half
      | \s*(?:more|less|fewer)\s+than\s+\d                   # 12 more than 3
    """,
    re.VERBOSE,
)
BEGINS_ANEW = re.compile(
    r"""\s*[,.;:?)\]}\"'，。；] | \s*$                        # 12, ...   12.
      | \s*[(\[|—]                                           # 12 (see the picture)
      | \s*(?:because|since|as|which|for|in|on|at|after|when|if|that|who|with|from|between|of
             |left|per|so|than|is|are)\b                     # 12 because ...
    """,
    re.VERBOSE,
)
UNIT = re.compile(
    r"""\s*(?P<word>[^\W\d_]+|[°€£¥$])                       # cm
        (?:\s*\^\s*\{?\d\}?|[²³]|\d\b)?                     # cm^2
        (?:\s*(?:/|per\b)\s*[^\W\d_]+(?:\^?\d)?)?           # m/s
    """,
    re.VERBOSE,
)
JOINING = {"and", "to"}  # "12 and then": they change a number only before another one
