r"""Steps that read a number, an expression, or a text. `reading.py` says which step comes when.

A step gets a piece of the response, and says what the piece is worth (see `piece.py`):

    a_short_value           "Area: 12 cm"                       12 cm
    a_number                "12 cm"                             12 cm
    a_wordless_expression   "2x + 1"                            2x + 1
    a_number_in_front       "12 cm, as we saw"                  12 cm
    an_expression           "$x > 5$ for all of them"           x > 5
    the_whole_piece         "x > 5."                            x > 5.
"""

import re

from rewards.choice import NEGATIVE
from rewards.expression import words_of
from rewards.leading import leading_number
from rewards.number import read_number
from rewards.piece import NEXT, NOT_ONE_NUMBER, Piece, Reading, is_sentence, negation
from rewards.typesetting import as_latex
from rewards.unit_names import NO_UNITS

LONGEST_WORDLESS = 100  # characters

# --- The piece is nothing but an answer ----------------------------------------------------------


def the_whole_piece(piece: Piece) -> Reading:
    return Reading(piece.text)


def the_whole_piece_without_stop(piece: Piece) -> Reading:
    return Reading(without_stop(piece.text))


def a_number(piece: Piece) -> Reading:
    """The piece is one plain number.

    >>> a_number(Piece("12 cm.")).answer, a_number(Piece("12x")) == NEXT
    ('12 cm', True)
    """
    text = without_stop(piece.text)
    return Reading(text) if read_number(text, piece.question) is not None else NEXT


def a_wordless_expression(piece: Piece) -> Reading:
    """The piece is short and has no words.

    >>> a_wordless_expression(Piece("2x + 1.")).answer, a_wordless_expression(Piece("I see"))
    ('2x + 1', Reading(answer=None, refused=None))
    """
    text = without_stop(piece.text)
    is_short = len(text) < LONGEST_WORDLESS
    return Reading(text) if is_short and not words_of(as_latex(text)) else NEXT


def a_short_value(piece: Piece) -> Reading:
    """All of an answer block, unless it is a sentence.

    >>> a_short_value(Piece("Area: 12 cm")).answer, a_short_value(Piece("2x + 1")).answer
    ('12 cm', '2x + 1')
    >>> a_short_value(Piece("The area of it is 12 cm")) == NEXT
    True
    """
    text = without_stop(without_title(piece.text))
    if is_sentence(text) and read_number(text, piece.question) is None:
        return NEXT
    return Reading(text)


def without_stop(text: str) -> str:
    return text.rstrip(".").strip()


def without_title(text: str) -> str:
    """`Area: 12 cm` -> `12 cm`. In "Not: 12" and "times: 12" the word is not a title."""
    titled = TITLED.fullmatch(text)
    if titled is None:
        return text
    title = titled["title"]
    if NEGATIVE.search(title) or title.lower() in NO_UNITS:
        return text
    return titled["amount"]


def negation_that_is_no_sentence(piece: Piece) -> Reading:
    """As `negation`, but passes over a sentence: "Not 12 but 13" may give an answer further on."""
    return NEXT if is_sentence(piece.text) else negation(piece)


# --- The piece begins with an answer -------------------------------------------------------------


def a_number_in_front(piece: Piece) -> Reading:
    return leading_number(piece.text)


def refuse_words(piece: Piece) -> Reading:
    """A short statement without a number, such as "red", gives no answer.

    A long line is passed over: a number may follow in it, and a later rule may find it.
    """
    first_line = piece.text.split("\n")[0]
    return NEXT if is_sentence(first_line, least=6) else NOT_ONE_NUMBER


def an_expression(piece: Piece) -> Reading:
    """The expression that the piece begins with. Words are not an expression.

    >>> an_expression(Piece("$x > 5$ for all of them")).answer, an_expression(Piece("x")).answer
    ('x > 5', 'x')
    >>> an_expression(Piece("found in the table")) == NEXT
    True
    """
    expression = expression_in_front(piece.text)
    is_whole_piece = len(piece.text) <= len(expression) + 1  # 1 for a full stop
    looks_like_an_expression = is_whole_piece or re.search(r"[\d\\=<>]", expression)
    if is_sentence(expression) or not looks_like_an_expression:
        return NEXT
    return Reading(expression)


def words_in_front(piece: Piece) -> Reading:
    """The formula that the piece begins with, without its marks; else the first sentence."""
    return Reading(expression_in_front(piece.text))


def expression_in_front(text: str) -> str:
    """An expression in marks of mathematics, else the text up to the end of its sentence.

    >>> expression_in_front("$x > 5$ holds. So"), expression_in_front("2.5 and more. So")
    ('x > 5', '2.5 and more')
    """
    text = re.sub(r"^\s*\\\\", "", text)  # a line break of LaTeX
    marked = MARKED.match(text)
    if marked:
        return marked[marked.lastindex].strip()
    return SENTENCE_STOP.split(text, maxsplit=1)[0].strip(" *")


# --- Patterns ------------------------------------------------------------------------------------

TITLED = re.compile(  # "Area: 12 cm", and "Cost : 2,74 $ a..", as one public data set writes prices
    r"(?P<title>[^\W\d_]{3,})\s*:\s*(?P<amount>[^:]+?)"
    r"(?:(?<=[$€£])\s+(?![bhkmt])[a-z]\.{2,})?"  # " a..", a word cut off; "m.." may be million
)
MARKED = re.compile(  # $x$, $$x$$, \(x\), \[x\] at the beginning
    r"\$\$?(.+?)\$\$?(?=[\s.,;]|$)|\\\((.+?)\\\)|\\\[(.+?)\\\]"
)
SENTENCE_STOP = re.compile(r"\.\s|\.?$|\n")
