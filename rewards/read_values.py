r"""Steps that read a number, an expression, or a text. `reading.py` says which step comes when.

A step gets a piece of the response, and says what the piece is worth (see `piece.py`). In the
order of the file:

    take_whole_piece                  "x > 5."                      x > 5.
    take_whole_piece_without_stop     "a red bus."                  a red bus
    try_number                        "12 cm."                      12 cm
    try_wordless_expression           "2x + 1."                     2x + 1
    try_short_value                   "Area: 12 cm"                 12 cm
    refuse_negation_unless_sentence   "not 12"                      refused: negation
    try_leading_number                "12 cm, as we saw"            12 cm
    refuse_words                      "red"                         refused: not one number
    try_leading_expression            "$x > 5$ for all of them"     x > 5
    take_formula_or_first_sentence    "a red bus. It is late."      a red bus

A step that cannot read its piece returns NEXT, as `try_number` does for "red".
"""

import re

from rewards.choice import NEGATIVE
from rewards.expression import words_of
from rewards.leading import leading_number
from rewards.number import read_number
from rewards.piece import NEXT, NOT_ONE_NUMBER, Piece, Reading, is_sentence, refuse_negation
from rewards.typesetting import as_latex
from rewards.unit_names import NO_UNITS

LONGEST_WORDLESS = 100  # characters
LONG_LINE = 6  # words; a line with so many is not a short statement

# --- The piece is nothing but an answer ----------------------------------------------------------


def take_whole_piece(piece: Piece) -> Reading:
    """Whatever it is: `grading.py` compares it."""
    return Reading(piece.text)


def take_whole_piece_without_stop(piece: Piece) -> Reading:
    """The same, without the full stop of its sentence."""
    return Reading(without_stop(piece.text))


def try_number(piece: Piece) -> Reading:
    """The piece is one plain number.

    >>> try_number(Piece("12 cm.")).answer, try_number(Piece("12x")) == NEXT
    ('12 cm', True)
    """
    text = without_stop(piece.text)
    return Reading(text) if read_number(text, piece.question) is not None else NEXT


def try_wordless_expression(piece: Piece) -> Reading:
    """The piece is short and has no words.

    >>> try_wordless_expression(Piece("2x + 1.")).answer
    '2x + 1'
    >>> try_wordless_expression(Piece("I see")) == NEXT
    True
    """
    text = without_stop(piece.text)
    is_short = len(text) < LONGEST_WORDLESS
    return Reading(text) if is_short and not words_of(as_latex(text)) else NEXT


def try_short_value(piece: Piece) -> Reading:
    """All of an answer block, unless it is a sentence.

    >>> try_short_value(Piece("Area: 12 cm")).answer, try_short_value(Piece("2x + 1")).answer
    ('12 cm', '2x + 1')
    >>> try_short_value(Piece("The area of it is 12 cm")) == NEXT
    True
    """
    text = without_stop(without_title(piece.text))
    if is_sentence(text) and read_number(text, piece.question) is None:
        return NEXT
    return Reading(text)


def without_stop(text: str) -> str:
    """`12 cm.` -> `12 cm`."""
    return text.rstrip(".").strip()


def without_title(text: str) -> str:
    """Without the title in front of an amount, and then without a word that is cut off behind it.

    In "Not: 12" and "times: 12" the word is not a title.

    >>> without_title("Area: 12 cm"), without_title("Price: 2,74 $ a.."), without_title("Not: 12")
    ('12 cm', '2,74 $', 'Not: 12')
    """
    titled = TITLED.fullmatch(text)
    if titled is None:
        return text
    title = titled["title"]
    if NEGATIVE.search(title) or title.lower() in NO_UNITS:
        return text
    return CUT_OFF_WORD.sub("", titled["amount"])


def refuse_negation_unless_sentence(piece: Piece) -> Reading:
    """As `refuse_negation`, but not for a sentence: of "Not 12, it is 13" a later rule finds 13.

    >>> refuse_negation_unless_sentence(Piece("not 12")).refused
    'negation'
    >>> refuse_negation_unless_sentence(Piece("Not 12, it is 13")) == NEXT
    True
    """
    return NEXT if is_sentence(piece.text) else refuse_negation(piece)


# --- The piece begins with an answer -------------------------------------------------------------


def try_leading_number(piece: Piece) -> Reading:
    """The number that the piece begins with; refused if it is not one number (`leading.py`)."""
    return leading_number(piece.text, piece.question)


def refuse_words(piece: Piece) -> Reading:
    """A short statement without a number, such as "red", gives no answer.

    A long line is passed over: a number may follow in it, and a later rule may find it.

    >>> refuse_words(Piece("red")).refused
    'not one number'
    >>> refuse_words(Piece("found as follows: we add all the sides")) == NEXT
    True
    """
    first_line = piece.text.split("\n")[0]
    return NEXT if is_sentence(first_line, least=LONG_LINE) else NOT_ONE_NUMBER


def try_leading_expression(piece: Piece) -> Reading:
    """The expression that the piece begins with. Words are not an expression.

    >>> try_leading_expression(Piece("$x > 5$ for all of them")).answer
    'x > 5'
    >>> try_leading_expression(Piece("x")).answer
    'x'
    >>> try_leading_expression(Piece("found in the table")) == NEXT
    True
    """
    expression = formula_or_first_sentence(piece.text)
    is_whole_piece = without_stop(piece.text) == expression
    looks_like_an_expression = is_whole_piece or re.search(r"[\d\\=<>]", expression)
    if is_sentence(expression) or not looks_like_an_expression:
        return NEXT
    return Reading(expression)


def take_formula_or_first_sentence(piece: Piece) -> Reading:
    """The formula that the piece begins with, without its marks; else the first sentence."""
    return Reading(formula_or_first_sentence(piece.text))


def formula_or_first_sentence(text: str) -> str:
    """An expression in marks of mathematics, else the text up to the end of its sentence.

    >>> formula_or_first_sentence("$x > 5$ holds. So")
    'x > 5'
    >>> formula_or_first_sentence("2.5 and more. So")
    '2.5 and more'
    """
    text = re.sub(r"^\s*\\\\", "", text)  # a line break of LaTeX
    marked = MARKED.match(text)
    if marked:
        return marked[marked.lastindex].strip()  # the one of the three groups that matched
    return SENTENCE_STOP.split(text, maxsplit=1)[0].strip(" *")


# --- Patterns ------------------------------------------------------------------------------------

TITLED = re.compile(r"(?P<title>[^\W\d_]{3,})\s*:\s*(?P<amount>[^:]+)")  # "Area: 12 cm"
# One public data set cuts words off behind a price: "2,74 $ a.." -> "2,74 $". A word that may be
# hundred, k, million, billion or trillion stays, since it changes the number: "2,74 $ m..".
CUT_OFF_WORD = re.compile(r"(?<=[$€£])\s+(?![bhkmt])[a-z]\.{2,}$")
MARKED = re.compile(  # $x$, $$x$$, \(x\), \[x\] at the beginning
    r"\$\$?(.+?)\$\$?(?=[\s.,;]|$)|\\\((.+?)\\\)|\\\[(.+?)\\\]"
)
SENTENCE_STOP = re.compile(r"\.\s|\.?$|\n")  # a point before a blank or the end; a line break
