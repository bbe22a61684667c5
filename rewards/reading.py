"""Reading what an extraction rule has found: is it an answer of the type that is asked for?

A reading ends in one of three ways:

    Reading(answer)         the answer
    Reading(refused=why)    the response has no answer: several candidates, a negation
    NEXT                    nothing of this type here; the next rule may try
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.choice import (
    NEGATED,
    NEGATIVE,
    NO_OPTION,
    SEVERAL,
    by_value,
    named_in,
    read_option,
)
from rewards.digits import NUMBER, words_to_digits
from rewards.expression import is_value, words_of
from rewards.number import ABOUT, LABEL, read_number
from rewards.typesetting import plain, spell_out, tidy
from rewards.units import NO_UNITS, read_unit
from rewards.views import SENTENCE_END


@dataclass(frozen=True)
class Reading:
    answer: str | None = None
    refused: str | None = None


NEXT = Reading()
SAYS_NOTHING = Reading(refused="says nothing")
NEGATION = Reading(refused="negation")
NOT_ONE_NUMBER = Reading(refused="not one number")
NO_SUCH_VALUE = Reading(refused="no option has this value")

OPENING = re.compile(  # what may stand in front of an answer
    r"""^[\s'\"]*(?:the\s+)?(?:(?:final|correct)\s+)?answer\s*
          (?:is\b|:|(?=[$\\]))\s*:?\s*                      # The final answer is:
        | ^(?:I\s+(?:think|believe|guess)\s+(?:that\s+)?)?
          (?:it|this|that)(?:\s+is|'s)\s+(?!not\b)         # I think it is
        | ^[A-Z][A-Za-z ]{1,40}:\s*(?=\$[^$]+\$\W*$)       # Area: $12$
    """,
    re.IGNORECASE | re.VERBOSE,
)
NOT = re.compile(
    r"""^\W*(?:definitely\s+|clearly\s+)?(?:not|neither|never|isn't|no[ ]longer)\b | ^\W*不""",
    re.IGNORECASE | re.VERBOSE,
)
TITLED = re.compile(  # "Area: 12 cm"; "Cost : 2,74 $ a..", cut off in a word that is no magnitude
    r"(?P<title>[^\W\d_]{3,})\s*:\s*(?P<amount>[^:]+?)(?:(?<=[$€£])\s+(?![bhkmt])[a-z]\.{2,})?"
)
MATHEMATICS = re.compile(r"\\(?:begin|end)\{\w+\}|\\[A-Za-z]+|\$[^$]*\$")
MARKED = re.compile(  # $x$, $$x$$, \(x\), \[x\] at the beginning
    r"\$\$?(.+?)\$\$?(?=[\s.,;]|$)|\\\((.+?)\\\)|\\\[(.+?)\\\]"
)


def read(how: str, text: str, answer_type: str, choices: Sequence[str], question: str) -> Reading:
    """Read `text` as an answer of this type, the way that a rule says.

    how    the `read` of an `extract.Rule`: "box", "block", "whole", "statement", ...
    """
    text = OPENING.sub("", text).strip()
    if not re.search(r"[^\s.:*$,]", text):
        # A response that is cut off behind "the answer is" states nothing, not even nothing.
        is_stated = how == "box" or (how == "statement" and text)
        return SAYS_NOTHING if is_stated else NEXT

    if answer_type == "choice":
        return read_choice(how, text, choices, question)
    if answer_type == "text":
        return Reading(read_expression(text) if how == "statement" else text.rstrip(".").strip())
    if NOT.match(text) and not (how == "block" and is_sentence(text)):
        return NEGATION
    if how == "box":
        return Reading(text)
    if how in ("block", "whole", "bold"):
        return read_short(how, text, answer_type, question)
    if answer_type == "number" or how == "number":
        return read_stated_number(how, text, question)
    return read_stated_expression(text)


# --- Numbers and expressions ---------------------------------------------------------------------


def read_short(how: str, text: str, answer_type: str, question: str) -> Reading:
    """A text that is nothing but an answer: a plain number or an expression, no sentence."""
    if how == "block":
        text = without_title(text)
    text = text.rstrip(".").strip()
    if read_number(text, question) is not None:
        return Reading(text)
    if how == "block":
        return NEXT if is_sentence(text) else Reading(text)

    is_short = how == "whole" and answer_type == "math" and len(text) < 100
    return Reading(text) if is_short and not words_of(spell_out(text)) else NEXT


def without_title(text: str) -> str:
    """`Area: 12 cm` -> `12 cm`. "Not: 12" and "times: 12" are no titles."""
    titled = TITLED.fullmatch(text)
    if titled is None or NEGATIVE.search(titled["title"]) or titled["title"].lower() in NO_UNITS:
        return text
    return titled["amount"]


def is_sentence(text: str, least: int = 3) -> bool:
    """Has it at least so many plain words?"""
    return len(re.findall(r"[A-Za-z]{2,}", MATHEMATICS.sub(" ", text))) >= least


def read_stated_number(how: str, text: str, question: str) -> Reading:
    """The number that a statement begins with. "The answer is red" states that there is none."""
    number = leading_number(text, question)
    if number == NEXT and how == "statement" and not is_sentence(text.split("\n")[0], least=6):
        return NOT_ONE_NUMBER
    return number


def read_stated_expression(text: str) -> Reading:
    """The expression that a statement begins with; words are none."""
    expression = read_expression(text)
    is_all = len(text) <= len(expression) + 1
    if is_sentence(expression) or not (is_all or re.search(r"[\d\\=<>]", expression)):
        return NEXT
    return Reading(expression)


def read_expression(text: str) -> str:
    """An expression in marks of mathematics, or the text up to the end of its sentence."""
    text = re.sub(r"^\s*\\\\", "", text)
    marked = MARKED.match(text)
    if marked:
        return marked[marked.lastindex].strip()
    return re.split(r"\.\s|\.?$|\n", text, maxsplit=1)[0].strip(" *")


# --- The number at the beginning -----------------------------------------------------------------

LEADING = re.compile(  # "x = 12", "$12"
    rf"(?:(?=[^=:≈]*[=:≈]){LABEL.pattern}\s*[=:≈]\s*)?(?P<number>(?:-?\s*[$€£]\s*)?{NUMBER})"
)
PERCENT = re.compile(r"\s*(?:%|percent\b)")
CHANGED = re.compile(  # what follows is another number, or belongs to this one
    r"""\s*[,;/-]\s*[$(]?[\d\\]                            # 12, 13
        | :\d                                               # 12:13
        | \s*,?\s*(?:or|and|to|by|plus|minus|times|over)\s+
          (?:\w+\s+){0,2}[-$€£]?\d                         # 12 or 13
        | \s*,?\s*and\s+a\s                               # 12 and a half
        | \s*(?:more|less|fewer)\s+than\s+\d               # 12 more than 3
    """,
    re.VERBOSE,
)
ENDS = re.compile(  # what follows begins something new
    r"""\s*[,.;:?)\]}\"'，。；] | \s*$ | \s*[(\[|—]
        | \s*(?:because|since|as|which|for|in|on|at|after|when|if|that|who|with|from|between|of
             |left|per|so|than|is|are)\b""",
    re.VERBOSE,
)
UNIT = re.compile(
    r"""\s*(?P<word>[^\W\d_]+|[°€£¥$])
        (?:\s*\^\s*\{?\d\}?|[²³]|\d\b)?                    # cm^2
        (?:\s*(?:/|per\b)\s*[^\W\d_]+(?:\^?\d)?)?          # m/s""",
    re.VERBOSE,
)
JOINING = {"and", "to"}  # "12 and then": they change a number only before another one


def leading_number(text: str, question: str = "") -> Reading:
    """The number that a text begins with, with its unit; nothing that changes it may follow.

    >>> leading_number("12 cm, as we saw"), leading_number("12 balls of size 6")
    (Reading(answer='12 cm', refused=None), Reading(answer='12', refused=None))
    >>> leading_number("12 or 13").refused, leading_number("12x").refused
    ('not one number', 'not one number')
    """
    text = tidy(re.sub(r"\\[()\[\]]", " ", text))
    text = ABOUT.sub("", words_to_digits(text).strip(" $*"))
    match = LEADING.match(text)
    if match is None:
        return NEXT

    number, rest = match["number"].rstrip("."), text[match.end() :]
    if PERCENT.match(rest):
        return Reading(f"{number}%")
    if CHANGED.match(rest):
        return NOT_ONE_NUMBER
    if ENDS.match(rest):
        return Reading(number)

    unit = UNIT.match(rest)
    if unit is None or CHANGED.match(rest[unit.end() :]):
        return NOT_ONE_NUMBER
    word = unit["word"]
    is_changing = len(word) == 1 or word.lower() in NO_UNITS - JOINING
    if is_changing and read_unit(word) is None:
        return NOT_ONE_NUMBER
    return Reading(f"{number} {unit[0].strip()}" if read_unit(unit[0]) else number)


# --- Choices -------------------------------------------------------------------------------------


def read_choice(how: str, text: str, choices: Sequence[str], question: str) -> Reading:
    """The part of the text that names one option."""
    first = SENTENCE_END.split(text, maxsplit=1)[0]
    if how == "denial":
        return Reading(read_denial(text, choices, question))
    if how == "sentence":
        option = named_in(first, choices)
        return Reading(option.letter, option.how if option == SEVERAL else None)
    if how == "number":
        return read_value(first, text, choices)

    named = read_named(how, text, first, choices)
    if named != NEXT or how == "whole":
        return named
    if how == "box":
        return NO_SUCH_VALUE
    number = leading_number(text)
    if number.answer is not None and by_value(number.answer, choices).letter:
        return number
    if how == "statement" and (number.answer is not None or is_value(first)):
        return NO_SUCH_VALUE
    return NEXT


def read_named(how: str, text: str, first: str, choices: Sequence[str]) -> Reading:
    """An option by letter, text or value; in a statement also in the words of its sentence."""
    for part in (text, first):
        option = read_option(part, choices)
        if option.letter is not None:
            return Reading(part)
        if option != NO_OPTION and option.how != "empty":
            return Reading(refused=option.how)
    if NOT.match(text):
        return NEGATION

    if how in ("box", "statement", "block", "must be"):
        option = named_in(first, choices)
        if option.letter is not None:
            return Reading(option.letter)
        if option in (SEVERAL, NEGATED):
            return Reading(refused=option.how)
    return NEXT


def read_value(first: str, text: str, choices: Sequence[str]) -> Reading:
    """A sentence's number or expression that is exactly one option's value."""
    number = leading_number(text)
    for value in (first.rstrip("."), number.answer):
        if value is not None and by_value(value, choices).letter is not None:
            return Reading(value)
    return NEXT if number.answer is None else NO_SUCH_VALUE


def read_denial(text: str, choices: Sequence[str], question: str) -> str | None:
    """The option "no", if a negated sentence denies what is asked in the question's words.

    "It is not the largest" says no to "Is it the largest?". "The text does not provide enough
    information" denies nothing.
    """
    options = {plain(choice): choice for choice in choices}
    denied, asked = re.findall(r"\w+", text.lower()), re.findall(r"\w+", question.lower())
    if set(options) != {"yes", "no"} or not denied or not set(denied) <= set(asked):
        return None
    return options["no"]
