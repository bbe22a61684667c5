r"""What a piece of a response is worth as an answer: steps, tried in order.

"The answer is 12 cm, as we saw." was found by the rule for statements, and a number is asked for.
The row "statement" of NUMBER below says what is tried:

    piece                    "12 cm, as we saw."
    1. negation              NEXT        it is no "not 12"
    2. a_number_in_front     "12 cm"     the answer; `refuse_words` is not reached

The steps are functions of `read_values.py` and `read_options.py`. What they return is explained in
`piece.py`: an answer, a refusal, or NEXT.

Where a piece may be found:

    box           in \boxed{...}
    block         all of an answer block
    whole         all of a short response
    statement     behind "The answer is", to the end of its line
    bold          between two ** of bold type
    expression    the last formula of the conclusion
    number        in the conclusion, from a number on
    must be       in the conclusion, behind "it must be"
    answer        in the conclusion, from the mark of an option on; or the first words
    sentence      all of the conclusion, or of the first line
    denial        in the first line, behind "is not"
"""

import re
from collections.abc import Sequence

from rewards.piece import NEXT, SAYS_NOTHING, Piece, Reading, negation
from rewards.read_options import (
    a_denial,
    a_value_in_a_conclusion,
    a_value_in_front,
    an_option,
    an_option_in_a_conclusion,
    an_option_in_words,
    refuse_all_else,
    refuse_another_value,
)
from rewards.read_values import (
    a_number,
    a_number_in_front,
    a_short_value,
    a_wordless_expression,
    an_expression,
    negation_that_is_no_sentence,
    refuse_words,
    the_whole_piece,
    the_whole_piece_without_stop,
    words_in_front,
)

# --- The tables: where the piece was found -> the steps that read it -----------------------------

NUMBER = {
    "box": [negation, the_whole_piece],
    "block": [negation_that_is_no_sentence, a_short_value],
    "whole": [negation, a_number],
    "bold": [negation, a_number],
    "statement": [negation, a_number_in_front, refuse_words],
    "number": [negation, a_number_in_front],
}
MATH = {
    "box": [negation, the_whole_piece],
    "block": [negation_that_is_no_sentence, a_short_value],
    "whole": [negation, a_number, a_wordless_expression],
    "statement": [negation, an_expression],
    "expression": [negation, an_expression],
    "number": [negation, a_number_in_front],
}
CHOICE = {
    "box": [an_option, negation, an_option_in_words, refuse_all_else],
    "block": [an_option, negation, an_option_in_words, a_value_in_front],
    "whole": [an_option, negation],
    "statement": [
        an_option, negation, an_option_in_words, a_value_in_front, refuse_another_value,
    ],
    "must be": [an_option, negation, an_option_in_words, a_value_in_front],
    "answer": [an_option, negation, a_value_in_front],
    "sentence": [an_option_in_a_conclusion],
    "number": [a_value_in_a_conclusion],
    "denial": [a_denial],
}
TEXT = {
    "box": [the_whole_piece_without_stop],
    "block": [the_whole_piece_without_stop],
    "whole": [the_whole_piece_without_stop],
    "statement": [words_in_front],
}
STEPS = {"number": NUMBER, "math": MATH, "choice": CHOICE, "text": TEXT}


# --- Reading -------------------------------------------------------------------------------------


def read(
    place: str, text: str, answer_type: str, choices: Sequence[str] = (), question: str = ""
) -> Reading:
    """Read a piece of a response as an answer of this type.

    place    where it was found: a row of the tables above

    >>> read("statement", "12 cm, as we saw.", "number").answer
    '12 cm'
    >>> read("statement", "not 12 cm", "number").refused
    'negation'
    >>> read("whole", "I see 12 cm", "number") == NEXT
    True
    """
    text = OPENING.sub("", text).strip()
    if not SAYS_SOMETHING.search(text):
        # An empty box, and a statement of mere dots, are answers that say nothing. A response that
        # is cut off behind "the answer is" has not answered yet.
        is_answer = place == "box" or (place == "statement" and text != "")
        return SAYS_NOTHING if is_answer else NEXT

    piece = Piece(text, choices, question)
    for step in STEPS[answer_type][place]:
        reading = step(piece)
        if reading != NEXT:
            return reading
    return NEXT


SAYS_SOMETHING = re.compile(r"[^\s.:*$,]")
OPENING = re.compile(  # what may stand in front of an answer, and is taken off
    r"""^[\s'\"]*(?:the\s+)?(?:(?:final|correct)\s+)?answer\s*
          (?:is\b|:|(?=[$\\]))\s*:?\s*                      # The final answer is:
      | ^(?:I\s+(?:think|believe|guess)\s+(?:that\s+)?)?
          (?:it|this|that)(?:\s+is|'s)\s+(?!not\b)         # I think it is
      | ^[A-Z][A-Za-z ]{1,40}:\s*(?=\$[^$]+\$\W*$)       # Area: $12$
    """,
    re.IGNORECASE | re.VERBOSE,
)
