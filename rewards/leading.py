r"""The number that a text begins with, if nothing behind it makes it another number.

`LEADING` finds the number, behind a label if there is one: "12" in "x = 12 cm, as we saw". A
percent sign belongs to it: "12%", "12 percent". The rest is then asked, in this order:

    step                                example                       result
    1. what changes it                  "12 or 13", "12% or 13%"      not one number
    2. a percent sign                   "12%", "12 percent of it"     12%
    3. something new begins             "12, as we saw"               12
    4. no word                          "12!"                         not one number
    5. a word, then a second quantity   "5 feet 3 inches"             not one number
       or 1. again, behind the word     "12 cm or 13"                 not one number
    6. a unit                           "12 cm, as we saw"            12 cm
    7. a letter or no counted thing     "12x", "12 k", "12 dozen"     not one number
    8. what is counted                  "12 balls"                    12

Words such as "million" are gone before: `words_to_digits` has made 12000000 of "12 million".
"""

import re

from rewards.digits import NUMBER, words_to_digits
from rewards.number import ABOUT, LABEL
from rewards.piece import NEXT, NOT_ONE_NUMBER, Reading
from rewards.typesetting import tidy
from rewards.unit_names import NO_UNITS
from rewards.units import read_unit


def leading_number(text: str, question: str = "") -> Reading:
    """The number that a text begins with, with its unit. NEXT if it does not begin with a number.

    question    "3 quarters" is 3 where it counts quarters, else three times 1/4

    >>> leading_number("x = 12 cm, as we saw").answer, leading_number("twelve balls").answer
    ('12 cm', '12')
    >>> leading_number("12 or 13").refused, leading_number("12x").refused
    ('not one number', 'not one number')
    >>> leading_number("12 per cent, as we saw").answer, leading_number("12% or 13%").refused
    ('12%', 'not one number')
    >>> leading_number("red") == NEXT
    True
    """
    text = tidy(re.sub(r"\\[()\[\]]", " ", text))
    text = ABOUT.sub("", words_to_digits(text).strip(" $*"))
    match = LEADING.match(text)
    if match is None:
        return NEXT

    number, rest = match["number"].rstrip("."), text[match.end() :]
    percent = PERCENT.match(rest)
    if percent:
        rest = rest[percent.end() :]

    # 1. "12 or 13", and "12% or 13%"
    if CHANGES_IT.match(rest):
        return NOT_ONE_NUMBER
    # 2. "12%"
    if percent:
        return Reading(f"{number}%")
    # 3. "12, as we saw"
    if BEGINS_ANEW.match(rest):
        return Reading(number)
    # 4. to 8.
    return with_unit(number, rest, question)


# "and" and "to" change a number only if another number follows ("12 and 13"), which CHANGES_IT has
# already refused. What is left, "12 and then", is 12.
JOINING = {"and", "to"}
# Groups and parts: "12 tens" are 120, and one tenth is not 1. A question may count them.
GROUPS_AND_PARTS = set(
    "tens dozens halves thirds quarters fourth fourths fifth fifths sixth sixths seventh sevenths "
    "eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths".split()
)
NOT_COUNTED = NO_UNITS - JOINING | GROUPS_AND_PARTS  # "12 dozen", "12 is", "12 plus"


def with_unit(number: str, rest: str, question: str = "") -> Reading:
    """`12` and ` cm, as we saw` -> `12 cm`. A noun that is counted is left out: `12` and ` balls`.

    >>> with_unit("12", " m/s"), with_unit("12", " balls")
    (Reading(answer='12 m/s', refused=None), Reading(answer='12', refused=None))
    >>> with_unit("5", " feet 3 inches").refused, with_unit("12", " in by 3 in").refused
    ('not one number', 'not one number')
    >>> with_unit("12", " k").refused, with_unit("12", "y").refused
    ('not one number', 'not one number')
    >>> asked = "How many quarters?"
    >>> with_unit("3", " quarters").refused, with_unit("3", " quarters", asked).answer
    ('not one number', '3')
    """
    # 4. "12!"
    unit = UNIT.match(rest)
    if unit is None:
        return NOT_ONE_NUMBER

    # 5. "5 feet 3 inches"
    behind = rest[unit.end() :]
    if SECOND_QUANTITY.match(behind):
        return NOT_ONE_NUMBER
    # 5., or 1. again, behind the word: "12 cm or 13"
    if CHANGES_IT.match(behind):
        return NOT_ONE_NUMBER

    # 6. "12 cm"
    if read_unit(unit[0]):
        return Reading(f"{number} {unit[0].strip()}")

    # 7. "12y" and "12 dozen"
    word = unit["word"]
    may_change_it = len(word) == 1 or word.lower() in NOT_COUNTED
    if may_change_it and read_unit(word, question) is None:
        return NOT_ONE_NUMBER

    # 8. "12 balls"
    return Reading(number)


# --- Patterns ------------------------------------------------------------------------------------

LABEL_IN_FRONT = (  # "x =", "Area:"; the lookahead gives up at once where no such sign follows
    rf"(?=[^=:≈]*[=:≈]){LABEL.pattern}\s*[=:≈]\s*"
)
LEADING = re.compile(  # "12", "$12", "x = 12"
    rf"(?:{LABEL_IN_FRONT})?(?P<number>(?:-?\s*[$€£]\s*)?{NUMBER})"
)
PERCENT = re.compile(r"\s*(?:%|per[ ]?cent\b)", re.IGNORECASE)
ORDINAL = r"(?:third|(?:four|fif|six|seven|eigh|nin|ten|n)th)"
CHANGES_IT = re.compile(
    rf"""\s*[,;/-]\s*[$(]?[\d\\]                             # 12, 13
      | :\d                                                  # 12:30
      | \s*,?\s*(?:or|and|to|by|plus|minus|times|over)\s+
        (?:\w+\s+){{0,2}}[-$€£]?\d                          # 12 or 13, 12 and then 13
      | \s*,?\s*and\s+a\s                                    # 12 and a half
      | \s*(?:more|less|fewer)\s+than\s+(?:an?\s+)?
        (?: \d | [b-z]\b | (?:dozen|half|twice)\b )          # 12 more than 3, less than a dozen
      | \s*to\s+the\s+
        (?: [a-z]\b(?![\s-]axis) | (?:[\w-]+\s+)?power\b     # 2 to the n, not to the x-axis
          | {ORDINAL}\s*(?:[.,;)]|$) )                       # 2 to the third, not to the third line
      | \s*per\s+\d                                          # 12 per 3
      | \s*\(?\s*\\?[bp]?mod(?:ulo)?\b                       # 12 (mod 5), 12 \pmod 5
    """,
    re.VERBOSE,
)
BEHIND_INCHES = (  # "12 in long", "12 in by 3 in": before another word "in" is a preposition
    "long|wide|tall|deep|high|thick|by|x|and|or|to|of|plus|minus|times|because|since|as"
)
BEGINS_ANEW = re.compile(
    rf"""\s*[,.;:?)\]}}\"'，。；] | \s*$                       # 12, ...   12.
      | \s*[(\[|—]                                           # 12 (see the picture)
      | \s*(?:because|since|as|which|for|on|at|after|when|if|that|who|with|from|between|of
             |left|per|so|than|is|are)\b                     # 12 because ...
      | \s*in\s+(?!(?:{BEHIND_INCHES})\b)[\w($\\"']           # 12 in all
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
SECOND_QUANTITY = re.compile(
    r"""\s*\d                                                  # 5 feet 3 inches
      | \.\s*\d+\s*(?:in|inch|inches|mins?|minutes?|secs?|seconds?|oz|ounces?)\b  # 5 ft. 3 in.
      | \s*(?:(?:long|wide|tall|deep|high|thick)\s*,?\s*by|x|\\times|\\cdot)\s*\d  # 5 cm x 3 cm
    """,
    re.VERBOSE,
)
