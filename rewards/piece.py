"""A piece of a response, and what it is read as.

An extraction rule finds a piece: behind "The answer is" stands "12 cm, as we saw.". Steps of
reading (`reading.py`) then say what it is worth, each in one of three ways:

    Reading("12 cm")                     this is the answer
    Reading(refused="not one number")    the response gives no answer: several candidates, ...
    NEXT                                 nothing of this type here; the next step or rule may try
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.views import SENTENCE_END


@dataclass(frozen=True)
class Piece:
    text: str
    choices: Sequence[str] = ()
    question: str = ""

    @property
    def first_sentence(self) -> str:
        return SENTENCE_END.split(self.text, maxsplit=1)[0]


@dataclass(frozen=True)
class Reading:
    answer: str | None = None
    refused: str | None = None


NEXT = Reading()
SAYS_NOTHING = Reading(refused="says nothing")
REFUSED_BY_NEGATION = Reading(refused="negation")
NOT_ONE_NUMBER = Reading(refused="not one number")
NO_OPTION_NAMED = Reading(refused="a box that names no option")
NO_SUCH_VALUE = Reading(refused="no option has this value")


# --- Two questions that several steps ask --------------------------------------------------------


def is_sentence(text: str, least: int = 3) -> bool:
    r"""Has it at least so many plain words, outside of mathematics?

    >>> is_sentence("The area is 12."), is_sentence("12 square cm"), is_sentence(r"\frac{a}{bc}")
    (True, False, False)
    """
    return len(re.findall(r"[A-Za-z]{2,}", MATHEMATICS.sub(" ", text))) >= least


def refuse_negation(piece: Piece) -> Reading:
    """A step: "not 12" gives no answer.

    >>> refuse_negation(Piece("clearly not 12")).refused, refuse_negation(Piece("12")) == NEXT
    ('negation', True)
    """
    return REFUSED_BY_NEGATION if NOT.match(piece.text) else NEXT


MATHEMATICS = re.compile(r"\\(?:begin|end)\{\w+\}|\\[A-Za-z]+|\$[^$]*\$")
NOT = re.compile(  # "not 12", "definitely not", "isn't"
    r"""^\W*(?:definitely\s+|clearly\s+)?(?:not|neither|never|isn't|no[ ]longer)\b
      | ^\W*不
    """,
    re.IGNORECASE | re.VERBOSE,
)
