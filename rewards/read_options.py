r"""Steps that read which option is chosen. `reading.py` says which step comes when.

A step gets a piece of the response, and says what the piece is worth (see `piece.py`). In the
order of the file, with options A "cat", B "dog", C "5 cm":

    try_option                 "B. dog"                   B. dog, which `grading.py` reads again
    try_option_in_words        "the dog in the picture"   B: only its text is there
    try_option_in_conclusion   "We see no cat there."     NEXT: nobody announced an answer in it
    try_leading_value          "5 cm, as we saw"          5 cm, the value of C
    refuse_another_value       "7 cm"                     refused: no option has this value
    refuse_all_else            "whatever a box holds"     refused: a box that names no option
    try_value_in_conclusion    "5 cm of it"               5 cm
    try_denial                 "the largest"              no, to "Is it the largest?", where the
                                                          options are "yes" and "no"
"""

import re

from rewards.choice import named_in, read_option
from rewards.expression import is_value
from rewards.leading import leading_number
from rewards.options import EMPTY, NEGATED, NO_OPTION, SEVERAL, by_value
from rewards.piece import (
    NEXT,
    NO_OPTION_NAMED,
    NO_SUCH_VALUE,
    REFUSED_BY_NEGATION,
    Piece,
    Reading,
)
from rewards.typesetting import plain

# --- By letter or text ---------------------------------------------------------------------------


def try_option(piece: Piece) -> Reading:
    """The piece, or else its first sentence, names one option by letter, text or value.

    >>> animals = ["cat", "dog"]
    >>> try_option(Piece("B. dog", animals)).answer, try_option(Piece("B or A", animals)).refused
    ('B. dog', 'several options')
    >>> try_option(Piece("I see it.", animals)) == NEXT
    True
    """
    for part in (piece.text, piece.first_sentence):
        option = read_option(part, piece.choices)
        if option.letter is not None:
            return Reading(part)
        if option not in (NO_OPTION, EMPTY):
            return Reading(refused=option.how)
    return NEXT


def try_option_in_words(piece: Piece) -> Reading:
    """The first sentence holds the text of one option.

    >>> try_option_in_words(Piece("the dog there", ["cat", "dog"])).answer
    'B'
    >>> try_option_in_words(Piece("no dog there", ["cat", "dog"])).refused
    'negation'
    """
    option = named_in(piece.first_sentence, piece.choices)
    if option in (SEVERAL, NEGATED):
        return Reading(refused=option.how)
    return Reading(option.letter) if option.letter else NEXT


def try_option_in_conclusion(piece: Piece) -> Reading:
    """As `try_option_in_words`, but a negated sentence is passed over: it announced no answer."""
    reading = try_option_in_words(piece)
    return NEXT if reading == REFUSED_BY_NEGATION else reading


# --- By value ------------------------------------------------------------------------------------


def try_leading_value(piece: Piece) -> Reading:
    """The number that the piece begins with is the value of one option.

    >>> try_leading_value(Piece("5 cm, as we saw", ["3 cm", "5 cm"])).answer
    '5 cm'
    >>> try_leading_value(Piece("7 cm", ["3 cm", "5 cm"])) == NEXT
    True
    """
    leading = leading_number(piece.text)
    if leading.answer is None or by_value(leading.answer, piece.choices).letter is None:
        return NEXT
    return leading


def refuse_another_value(piece: Piece) -> Reading:
    """The piece states a value, but no option has this value: "The answer is 7 cm".

    Comes behind `try_leading_value`, which has looked for an option with this value.

    >>> refuse_another_value(Piece("7 cm", ["3 cm", "5 cm"])).refused
    'no option has this value'
    >>> refuse_another_value(Piece("a horse", ["3 cm", "5 cm"])) == NEXT
    True
    """
    leading = leading_number(piece.text)
    is_stated = leading.answer is not None or is_value(piece.first_sentence)
    return NO_SUCH_VALUE if is_stated else NEXT


def refuse_all_else(piece: Piece) -> Reading:
    """Last step of a box: whatever it holds was meant as the answer, so no later rule may try."""
    return NO_OPTION_NAMED


def try_value_in_conclusion(piece: Piece) -> Reading:
    """An expression or a number that is exactly one option's value.

    >>> try_value_in_conclusion(Piece("x^2 + 1.", ["x^2", "x^{2}+1"])).answer
    'x^2 + 1'
    >>> try_value_in_conclusion(Piece("5 of them", ["3", "4"])).refused
    'no option has this value'
    """
    leading = leading_number(piece.text)
    for value in (piece.first_sentence.rstrip("."), leading.answer):
        if value is not None and by_value(value, piece.choices).letter is not None:
            return Reading(value)
    return NEXT if leading.answer is None else NO_SUCH_VALUE


# --- By a denial ---------------------------------------------------------------------------------


def try_denial(piece: Piece) -> Reading:
    """The option "no", if what a sentence denies is asked, in the question's own words.

    piece    what stands behind the "not", such as "the largest" of "It is not the largest"

    >>> try_denial(Piece("the largest", ["yes", "no"], "Is it the largest?")).answer
    'no'
    >>> try_denial(Piece("enough information", ["yes", "no"], "Is it the largest?")) == NEXT
    True
    """
    options = {plain(choice): choice for choice in piece.choices}
    if set(options) != {"yes", "no"}:
        return NEXT
    denied = re.findall(r"\w+", piece.text.lower())
    asked = re.findall(r"\w+", piece.question.lower())
    if not denied or not set(denied) <= set(asked):
        return NEXT
    return Reading(options["no"])
