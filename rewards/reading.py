r"""What a piece of a response is worth as an answer: steps, tried in order.

"The answer is 12 cm, as we saw." was found by the rule for statements, and a number is asked for.
The row "statement" of NUMBER below says what is tried:

    piece                    "12 cm, as we saw."
    1. refuse_negation       NEXT        it is no "not 12"
    2. try_leading_number    "12 cm"     the answer; `refuse_words` is not reached

The steps are functions of `read_values.py` and `read_options.py`. What they return is explained in
`piece.py`: an answer, a refusal, or NEXT.

A piece is read as one of these, by where it stood:

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

from rewards.piece import NEXT, SAYS_NOTHING, Piece, Reading, refuse_negation
from rewards.read_options import (
    refuse_all_else,
    refuse_another_value,
    try_denial,
    try_leading_value,
    try_option,
    try_option_in_conclusion,
    try_option_in_words,
    try_value_in_conclusion,
)
from rewards.read_values import (
    refuse_negation_unless_sentence,
    refuse_words,
    take_formula_or_first_sentence,
    take_whole_piece,
    take_whole_piece_without_stop,
    try_leading_expression,
    try_leading_number,
    try_number,
    try_short_value,
    try_wordless_expression,
)

# --- The tables: what a piece is read as -> the steps that read it -------------------------------

NUMBER = {
    "box": [refuse_negation, take_whole_piece],
    "block": [refuse_negation_unless_sentence, try_short_value],
    "whole": [refuse_negation, try_number],
    "bold": [refuse_negation, try_number],
    "statement": [refuse_negation, try_leading_number, refuse_words],
    "number": [refuse_negation, try_leading_number],
}
MATH = {
    "box": [refuse_negation, take_whole_piece],
    "block": [refuse_negation_unless_sentence, try_short_value],
    "whole": [refuse_negation, try_number, try_wordless_expression],
    "statement": [refuse_negation, try_leading_expression],
    "expression": [refuse_negation, try_leading_expression],
    "number": [refuse_negation, try_leading_number],
}
CHOICE = {
    "box": [try_option, refuse_negation, try_option_in_words, refuse_all_else],
    "block": [try_option, refuse_negation, try_option_in_words, try_leading_value],
    "whole": [try_option, refuse_negation],
    "statement": [
        try_option, refuse_negation, try_option_in_words, try_leading_value, refuse_another_value,
    ],
    "must be": [try_option, refuse_negation, try_option_in_words, try_leading_value],
    "answer": [try_option, refuse_negation, try_leading_value],
    "sentence": [try_option_in_conclusion],
    "number": [try_value_in_conclusion],
    "denial": [try_denial],
}
TEXT = {
    "box": [take_whole_piece_without_stop],
    "block": [take_whole_piece_without_stop],
    "whole": [take_whole_piece_without_stop],
    "statement": [take_formula_or_first_sentence],
}
STEPS = {"number": NUMBER, "math": MATH, "choice": CHOICE, "text": TEXT}


# --- Reading -------------------------------------------------------------------------------------


def read(
    read_as: str, text: str, answer_type: str, choices: Sequence[str] = (), question: str = ""
) -> Reading:
    """Read a piece of a response as an answer of this type.

    read_as    a row of the tables above, such as "statement"

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
        is_answer = read_as == "box" or (read_as == "statement" and text != "")
        return SAYS_NOTHING if is_answer else NEXT

    piece = Piece(text, choices, question)
    for step in STEPS[answer_type][read_as]:
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
