r"""What a response gives as its answer.

Two responses through the file:

    <think> ... </think> <answer> The area is 12 cm. </answer>
        an answer block: the rules IN_TAGS are tried, and pass, since it holds a sentence
        the rules IN_SENTENCES are tried, and "is N" finds 12 cm

    I think of 3 and 4. So there are 12.
        no block: the rules IN_PROSE are tried, and "is N" finds 12

The rules are tables in `rules.py`. A rule that matches may also find that there is no answer
(several candidates, a negation): then no later rule is tried. Of a response that begins by listing
the options ("A. cat, B. dog") only what follows the list is read.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.boxes import boxes
from rewards.options import after_list
from rewards.piece import NEXT, is_sentence
from rewards.reading import read
from rewards.rules import IN_PROSE, IN_SENTENCES, IN_TAGS, LONGEST_MATCH, Rule
from rewards.views import Views, is_refusal, last_block

MATCHES = 20  # matches of a rule that are read, from the last one back


@dataclass(frozen=True)
class Found:
    answer: str | None
    rule: str  # the rule that won, or why there is no answer


NO_RULE = Found(None, "no rule")
ONLY_A_LIST = Found(None, "several options")


def extract_answer(
    response: str, answer_type: str, choices: Sequence[str] = (), question: str = ""
) -> str | None:
    """What the response gives as its answer, or None. The arguments are those of `find_answer`.

    >>> extract_answer("<think> a </think> <answer> 12 cm </answer>", "number")
    '12 cm'
    """
    return find_answer(response, answer_type, choices, question).answer


def find_answer(
    response: str, answer_type: str, choices: Sequence[str] = (), question: str = ""
) -> Found:
    """The answer of a response, and the rule that found it.

    answer_type    "number", "choice", "math" or "text"
    choices        the texts of the options, if there are any
    question       a "no" may be found by its words

    >>> find_answer("I think of 3 and 4. So there are 12.", "number")
    Found(answer='12', rule='is N')
    >>> find_answer("It is 3 or 4.", "number"), find_answer("<answer></answer> 12", "number")
    (Found(answer=None, rule='is N: not one number'), Found(answer=None, rule='empty block'))
    """
    block = last_block(response)
    if block is None:
        return answer_in_prose(response, answer_type, choices, question)
    if not block:  # an answer that says nothing, whatever else the response holds
        return Found(None, "empty block")
    return answer_in_block(block, answer_type, choices, question)


def answer_in_block(
    block: str, answer_type: str, choices: Sequence[str] = (), question: str = ""
) -> Found:
    """The answer in an answer block. The rest of the response is not looked at."""
    block = without_list(block, choices)
    if not block:
        return ONLY_A_LIST
    found = first_rule(IN_TAGS, Views(block, answer_type), answer_type, choices, question)
    if found != NO_RULE:
        return found

    if is_sentence(block, least=2 if answer_type == "choice" else 3):
        found = first_rule(IN_SENTENCES, Views(block, answer_type), answer_type, choices, question)
    return Found(block, "block") if found == NO_RULE else found


def answer_in_prose(
    response: str, answer_type: str, choices: Sequence[str] = (), question: str = ""
) -> Found:
    """The answer of a response without an answer block."""
    if answer_type != "text" and is_refusal(response):
        return Found(None, "refusal")
    response = without_list(response, choices)
    if not response:
        return ONLY_A_LIST
    views = Views(response, answer_type, must_conclude=answer_type == "math")
    return first_rule(IN_PROSE, views, answer_type, choices, question)


def without_list(text: str, choices: Sequence[str]) -> str:
    """The text without the options that it begins by listing: to repeat them is no answer.

    >>> without_list("A. cat\\nB. dog\\nIt barks, so B.", ["cat", "dog"])
    'It barks, so B.'
    """
    rest = after_list(text, list(choices))
    return text if rest is None else rest


# --- Rules ---------------------------------------------------------------------------------------


def first_rule(
    rules: list[Rule], views: Views, answer_type: str, choices: Sequence[str], question: str
) -> Found:
    """Try the rules in order, and the matches of each from the last one back.

    A match is the answer, or says that there is none, or is passed over.
    """
    for rule in rules:
        if answer_type not in rule.types:
            continue
        text = getattr(views, rule.view)
        for match in reversed(matches(rule, text)):
            reading = read(rule.read_as, match[:LONGEST_MATCH], answer_type, choices, question)
            if reading.answer is not None:
                return Found(reading.answer, rule.name)
            if reading != NEXT:
                return Found(None, f"{rule.name}: {reading.refused}")
    return NO_RULE


def matches(rule: Rule, text: str) -> list[str]:
    """What the pattern of a rule finds, in order; for a box its balanced content."""
    if rule.read_as == "box":
        return boxes(text)[-MATCHES:]
    found = [match[match.lastindex] for match in re.finditer(rule.pattern, text, re.IGNORECASE)]
    return found[-MATCHES:]
