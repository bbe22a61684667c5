r"""What a response gives as its answer: two tables of rules, IN_TAGS and IN_PROSE.

A response with an <answer> block has said where its answer is. The last block is read by `IN_TAGS`,
and only if it is a sentence ("The area is 12 cm.") by the rules for prose. Any other response is
read by `IN_PROSE`. Rules are tried in order, and within a rule the last match counts, since a
conclusion comes last.

What a match is worth is decided in `reading.py`: it may be the answer, or refuse one (several
candidates, a negation), or leave it to the next rule. Below each rule stands a response with the
answer that the rule finds in it; a test runs them all.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.digits import NUMBER, WORD
from rewards.reading import NEXT, is_sentence, read
from rewards.views import Views, boxes, is_refusal, last_block

MATCHES = 20  # matches of a rule that are read, from the last one back
SEEN = 400  # characters of a match


@dataclass(frozen=True)
class Rule:
    r"""One way to give an answer.

    types     answer types that it serves
    where     the view of the response that is searched (an attribute of `views.Views`)
    read      how its match is read (`reading.read`)
    pattern   its last group is what is read; of a \boxed the balanced content
    example   a response (for choices: of cat, dog, a bird, fish), and the answer found in it
    """

    name: str
    types: str
    where: str
    read: str
    pattern: str
    example: str
    answer: str


@dataclass(frozen=True)
class Found:
    answer: str | None
    rule: str  # the rule that won, or why there is no answer


# --- Patterns ------------------------------------------------------------------------------------

ALL = r"(?s)^(.*)$"
BOX = r"\\boxed\s*(\{)"
REST = rf"(?=(.{{0,{SEEN}}}))"  # looked ahead at: a later statement on the same line is found too
ANSWER_IS = (
    r"\banswers?\b"
    r"(?:[ \t]+(?!is\b|are\b|choices\b|options\b|not\b|cannot\b|never\b|\w+n't\b)[\w\"'-]+){0,12}?"
    rf"\s*(?:\b(?:is|are|was|be|becomes)\b|[:：=])[ \t]*:?\s*{REST}"
)
ANSWER_IS_IN_CHINESE = (
    r"(?:答案|选项)(?:应该|应当|选项)?\s*"
    r"(?:是|为|选|[:：]|(?=[（(]?[A-J][)）]?(?:是|。|$)))\s*[:：]?\s*([^。\n]*)"
)
OPTION_IS = (
    r"\b(?:correct|right|best|closest|appropriate|suitable|likely)\s+"
    r"(?:option|choice|letter|statement|one|match)\b"
    rf"(?:[ \t]+(?!is\b)[\w'-]+){{0,8}}?\s*(?:\bis\b|\bwould be\b|:)[ \t]*:?\s*{REST}"
)
MUST_BE = r"\b(?:choose|select|pick|must be|should be|would be|corresponds? to|matches)\b\s*(.*)"
OPTION_E = r"\b((?:option|choice)\s+\(?[A-J]\)?(?![\w']).*)"
IN_BRACKETS = r"([(\[（][A-J][)\]）].*)"
FIRST_WORDS = r"^([^,.;:\n]{2,60})[,.;:](?=\s|$)"
NO_STOP = r"(?:[^.!?]|\.(?=\d))"  # a letter of the same sentence
DENIAL = (
    rf"^{NO_STOP}*?\b(?:(?:is|are|was|were|does|do|did|has|have|can|will) not"
    r"|(?:is|are|was|were|does|do|did)n't)\b"
    rf"((?:(?!\bnot\b|n't\b|\bbut\b|\bor\b){NO_STOP})*)(?:[.!?]|$)"
)
BOLD = r"\*\*([^*\n]{1,40})\*\*"
LAST_FORMULA = r"(?:\$\$?([^$\n]+)\$\$?|\\[(\[](.+?)\\[)\]])(?!.*\d)"
IS_NUMBER = (
    r"(?:\b(?:is|are|was|were|be|equals?|equal to|approximately|about)\b|'s\b|(?<![<>!=])[=≈])"
    r"(?=[ \t]*((?:approximately|about|only|[$€£]|[ \t])*"
    rf"(?:{WORD}|{NUMBER}|√|\\sqrt).{{0,200}}))"
)
A_NUMBER = (  # not of f(0), of "3 or 4", of a longer number
    r"(?<![\w.,])(?<!, )(?<!not )(?<!\w\()(?<!\d and )(?<!\d or )(?<!\d to )(?<!\d-)"
    rf"(?=((?:[$€£]\s*)?{NUMBER}.{{0,40}}))"
)

# --- The tables ----------------------------------------------------------------------------------

ANY = "number choice math text"
VALUE = "number choice math"

IN_TAGS = [  # name, answer types, where, read, pattern; an example and its answer
    Rule("boxed in the block", ANY, "response", "box", BOX,
         r"The answer is $\boxed{12}$", "12"),
    Rule("block", ANY, "response", "block", ALL,
         "12 cm", "12 cm"),
]
IN_PROSE = [
    Rule("boxed", ANY, "response", "box", BOX,
         r"so \boxed{3}, as \boxed{3}", "3"),
    Rule("answer is", ANY, "response", "statement", ANSWER_IS,
         "The answer to the question is (B).", "(B)"),
    Rule("答案", ANY, "response", "statement", ANSWER_IS_IN_CHINESE,
         "所以答案是A。", "A"),
    Rule("whole response", ANY, "whole", "whole", ALL,
         "B. dog", "B. dog"),

    Rule("correct option", "choice", "response", "statement", OPTION_IS,
         "The correct option is D.", "D"),
    Rule("must be", "choice", "conclusion", "must be", MUST_BE,
         "So it must be A.", "A"),
    Rule("option E", "choice", "conclusion", "answer", OPTION_E,
         "Thus option D fits.", "option D fits."),
    Rule("letter in brackets", "choice", "conclusion", "answer", IN_BRACKETS,
         "Hence (C) holds.", "(C) holds."),
    Rule("first words", "choice", "first_line", "answer", FIRST_WORDS,
         "A dog, since it barks.", "A dog"),
    Rule("denial", "choice", "first_line", "denial", DENIAL,
         "It is not the largest.", "no"),
    Rule("option's text", "choice", "conclusion", "sentence", ALL,
         "So we see the dog here.", "B"),
    Rule("option's text, first", "choice", "first_line", "sentence", ALL,
         "We see the dog.\nIt barks.", "B"),

    Rule("bold number", "number", "marked", "bold", BOLD,
         "It was **2019**, with 25 %.", "2019"),
    Rule("expression that concludes", "math", "conclusion", "expression", LAST_FORMULA,
         "Therefore $x > 5$ holds.", "x > 5"),
    Rule("is N", VALUE, "conclusion", "number", IS_NUMBER,
         "So there are 3 balls of size 6.", "3"),
    Rule("number that concludes", VALUE, "conclusion", "number", A_NUMBER,
         "So he needs 7. I hope this helps!", "7"),
]
IN_SENTENCES = [rule for rule in IN_PROSE if rule.name not in ("boxed", "whole response")]


# --- Finding -------------------------------------------------------------------------------------


def extract_answer(
    response: str, answer_type: str, choices: Sequence[str] = (), question: str = ""
) -> str | None:
    """What the response gives as its answer, or None."""
    return find_answer(response, answer_type, choices, question).answer


def find_answer(
    response: str, answer_type: str, choices: Sequence[str] = (), question: str = ""
) -> Found:
    """The answer of a response, and the rule that found it.

    An empty block is an answer that says nothing, whatever else the response holds.
    """
    block = last_block(response)
    if block is None:
        return answer_in_prose(response, answer_type, choices, question)
    if not block:
        return Found(None, "empty block")
    return answer_in_tags(block, answer_type, choices, question)


def answer_in_tags(
    block: str, answer_type: str, choices: Sequence[str] = (), question: str = ""
) -> Found:
    """The answer in an answer block. The rest of the response is not looked at."""
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
    views = Views(response, answer_type, must_conclude=answer_type == "math")
    return first_rule(IN_PROSE, views, answer_type, choices, question)


NO_RULE = Found(None, "no rule")


def first_rule(
    rules: list[Rule], views: Views, answer_type: str, choices: Sequence[str], question: str
) -> Found:
    """Try the rules in order, and the matches of each from the last one back."""
    for rule in rules:
        if answer_type not in rule.types.split():
            continue
        for match in reversed(matches(rule, getattr(views, rule.where))):
            reading = read(rule.read, match[:SEEN], answer_type, choices, question)
            if reading.answer is not None:
                return Found(reading.answer, rule.name)
            if reading != NEXT:
                return Found(None, f"{rule.name}: {reading.refused}")
    return NO_RULE


def matches(rule: Rule, text: str) -> list[str]:
    """What the pattern finds, in order; for a box its balanced content."""
    if rule.read == "box":
        return boxes(text)[-MATCHES:]
    found = [match[match.lastindex] for match in re.finditer(rule.pattern, text, re.IGNORECASE)]
    return found[-MATCHES:]
