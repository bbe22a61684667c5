r"""Steps that read which option is chosen. `reading.py` says which step comes when.

A step gets a piece of the response, and says what the piece is worth (see `piece.py`). With options
A "cat", B "dog", C "5 cm":

    an_option            "B. dog"                     B. dog    `grading.py` reads it again
    an_option_in_words   "the dog in the picture"     B         only its text is there
    a_value_in_front     "5 cm, as we saw"            5 cm      the value of C
    a_denial             "It is not the largest."     no        to "Is it the largest?"
"""

import re

from rewards.choice import named_in, read_option
from rewards.expression import is_value
from rewards.leading import leading_number
from rewards.options import EMPTY, NEGATED, NO_OPTION, SEVERAL, by_value
from rewards.piece import NEGATION, NEXT, NO_SUCH_VALUE, Piece, Reading
from rewards.typesetting import plain

# --- By letter or text ---------------------------------------------------------------------------


def an_option(piece: Piece) -> Reading:
    """The piece, or else its first sentence, names one option by letter, text or value.

    >>> animals = ["cat", "dog"]
    >>> an_option(Piece("B. dog", animals)).answer, an_option(Piece("B or A", animals)).refused
    ('B. dog', 'several options')
    >>> an_option(Piece("I see it.", animals)) == NEXT
    True
    """
    for part in (piece.text, piece.first_sentence):
        option = read_option(part, piece.choices)
        if option.letter is not None:
            return Reading(part)
        if option not in (NO_OPTION, EMPTY):
            return Reading(refused=option.how)
    return NEXT


def an_option_in_words(piece: Piece) -> Reading:
    """The first sentence holds the text of one option.

    >>> an_option_in_words(Piece("the dog there", ["cat", "dog"])).answer
    'B'
    >>> an_option_in_words(Piece("no dog there", ["cat", "dog"])).refused
    'negation'
    """
    option = named_in(piece.first_sentence, piece.choices)
    if option in (SEVERAL, NEGATED):
        return Reading(refused=option.how)
    return Reading(option.letter) if option.letter else NEXT


def an_option_in_a_conclusion(piece: Piece) -> Reading:
    """As above, but a negated sentence is passed over: nobody announced an answer in it."""
    reading = an_option_in_words(piece)
    return NEXT if reading == NEGATION else reading


# --- By value ------------------------------------------------------------------------------------


def a_value_in_front(piece: Piece) -> Reading:
    """The number that the piece begins with is the value of one option.

    >>> a_value_in_front(Piece("5 cm, as we saw", ["3 cm", "5 cm"])).answer
    '5 cm'
    >>> a_value_in_front(Piece("7 cm", ["3 cm", "5 cm"])) == NEXT
    True
    """
    number = leading_number(piece.text)
    if number.answer is None or by_value(number.answer, piece.choices).letter is None:
        return NEXT
    return number


def refuse_another_value(piece: Piece) -> Reading:
    """The piece states a value, but no option has this value: "The answer is 7 cm"."""
    number = leading_number(piece.text)
    is_stated = number.answer is not None or is_value(piece.first_sentence)
    return NO_SUCH_VALUE if is_stated else NEXT


def refuse_all_else(piece: Piece) -> Reading:
    """A box is meant as the answer, so that nothing else in the response may count."""
    return NO_SUCH_VALUE


def a_value_in_a_conclusion(piece: Piece) -> Reading:
    """An expression or a number that is exactly one option's value.

    >>> a_value_in_a_conclusion(Piece("x^2 + 1.", ["x^2", "x^{2}+1"])).answer
    'x^2 + 1'
    >>> a_value_in_a_conclusion(Piece("5 of them", ["3", "4"])).refused
    'no option has this value'
    """
    number = leading_number(piece.text)
    for value in (piece.first_sentence.rstrip("."), number.answer):
        if value is not None and by_value(value, piece.choices).letter is not None:
            return Reading(value)
    return NEXT if number.answer is None else NO_SUCH_VALUE


# --- By a denial ---------------------------------------------------------------------------------


def a_denial(piece: Piece) -> Reading:
    """The option "no", if a negated sentence denies what is asked, in the question's own words.

    >>> a_denial(Piece("the largest", ["yes", "no"], "Is it the largest?")).answer
    'no'
    >>> a_denial(Piece("enough information", ["yes", "no"], "Is it the largest?")) == NEXT
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
