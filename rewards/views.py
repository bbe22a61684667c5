"""The parts of a response in which the extraction rules search: its boxes, its block, its
conclusion.

Only the end of a very long response is searched: its answer stands there, and a megabyte costs no
more than twenty thousand characters.
"""

import re
from functools import cached_property

from rewards.number import WORD

SEARCHED = 20_000  # characters at the end of a response
SHORT = 400  # characters of a response that may be nothing but an answer

BLOCK = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
TAG = re.compile(r"</?(?!answer)[A-Za-z]+>|</answer>")
WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
COLON_AND_BREAK = re.compile(r"([:：])[ \t]*\n\s*")
SENTENCE_END = re.compile(  # not behind the letter of an option: "B. dog" is no sentence "B"
    r"(?<=[.!?])(?<![\s(*][A-J]\.)(?<!\bi\.e\.)(?<!\be\.g\.)\s+|(?<=[。！？])|\n+"
)
HAS_NUMBER = re.compile(rf"\d|\b(?:{WORD})\b", re.IGNORECASE)
CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|so(?! on\b| far\b| that\b| many\b| much\b)|conclu\w+|finally|in summary|"
    r"overall|as a result|this means|consequently)\b|answer|所以|因此|综上|故",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"\b(?:cannot|can't|could not|couldn't|unable to|not possible to|impossible to|(?:does not|doesn't) provide|"
    r"not enough|insufficient|need (?:more|additional))\b[^.]{0,60}?\b(?:determin\w+|answer|provide|information|"
    r"specify|compute|calculate|find|identify|give|help)\b|\bplease (?:provide|clarify|specify)\b",
    re.IGNORECASE,
)
STATES_ANSWER = re.compile(r"\banswer(?: is|:)|\\boxed", re.IGNORECASE)


def last_block(response: str) -> str | None:
    """What the last <answer> block holds, closed or not; None if there is none."""
    blocks = BLOCK.findall(response)
    return TAG.sub(" ", blocks[-1]).strip() if blocks else None


class Views:
    """The parts of a response, without tags, Markdown and \\text{}; each is made when a rule asks
    for it.

    `must_conclude`: a conclusion must say so ("therefore"), the last sentence alone is none."""

    def __init__(self, response: str, answer_type: str, must_conclude: bool = False):
        self.raw, self.answer_type, self.must_conclude = response, answer_type, must_conclude

    @cached_property
    def marked(self) -> str:
        """The response with its Markdown."""
        return TAG.sub("\n", self.raw[-SEARCHED:])

    @cached_property
    def response(self) -> str:
        return plain_text(self.marked)

    @cached_property
    def whole(self) -> str:
        """A response so short that it may be nothing but an answer, else ""."""
        return self.response.strip() if len(self.response) < SHORT else ""

    @cached_property
    def first_line(self) -> str:
        lines = plain_text(TAG.sub("\n", self.raw[:SEARCHED])).split("\n")
        return next((line.strip() for line in lines if line.strip()), "")

    @cached_property
    def conclusion(self) -> str:
        """The last sentence that concludes, else the last one (for a number: with a number); ""
        for a refusal."""
        sentences = sentences_of(self.response)
        if self.answer_type in ("number", "math"):
            sentences = [sentence for sentence in sentences if HAS_NUMBER.search(sentence)]
        concluding = [sentence for sentence in sentences if CONCLUDES.search(sentence)]
        if not concluding and not self.must_conclude:
            concluding = sentences
        if not concluding or REFUSAL.search(concluding[-1]):
            return ""
        return concluding[-1]


def plain_text(text: str) -> str:
    """Without the marks of bold type and without wrappers of words."""
    return WRAPPER.sub(r" \1 ", text.replace("**", "").replace("__", ""))


def sentences_of(text: str) -> list[str]:
    """Sentences and lines; a line that ends in a colon goes on in the next."""
    text = COLON_AND_BREAK.sub(r"\1 ", text)
    return [sentence for sentence in SENTENCE_END.split(text) if sentence.strip()]


def is_refusal(response: str) -> bool:
    """Does the response end by saying that it cannot answer? What it guessed before is then no
    answer."""
    sentences = sentences_of(plain_text(response[-2 * SHORT :]))
    if not sentences or STATES_ANSWER.search(sentences[-1]):
        return False
    return REFUSAL.search(sentences[-1]) is not None


# --- Boxes ---------------------------------------------------------------------------------------

BRACE = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
NO_CONCLUSION = r"(?:(?!\bso\b|\bthus\b|\btherefore\b|\bthen\b)[^.\n])*"
JOINT = re.compile(  # what may stand between two boxes of one list: signs, or a few words with an "and"
    rf"(?:[\s$,;+|&\\{{}}()\[\]]|quad|text|\band\b|\bor\b)*|{NO_CONCLUSION}\b(?:and|or)\b{NO_CONCLUSION}"
)
FINAL = re.compile(r"\bfinal answer(?: is|:)\s*\S", re.IGNORECASE)


def boxes(text: str) -> list[str]:
    """The contents of all \\boxed{...}; boxes that only "and", "or" or a comma parts are one list,
    "1, 2".

    A "final answer" that is stated after the last box supersedes it: then there are none."""
    finals = [match.start() for match in FINAL.finditer(text)]
    if finals and text.rfind("\\boxed") < finals[-1]:
        return []

    lists: list[list[str]] = []
    end_of_last = None
    for start, inside, end in box_spans(text):
        between = text[end_of_last + 1 : start] if end_of_last is not None else None
        if between is not None and len(between) < 60 and JOINT.fullmatch(between):
            lists[-1].append(text[inside:end].strip())
        else:
            lists.append([text[inside:end].strip()])
        end_of_last = end
    return [", ".join(contents) for contents in lists]


def box_spans(text: str) -> list[tuple[int, int, int]]:
    """(start of \\boxed, start of its content, closing brace) of each box, braces balanced; of a
    box in a box the inner one.

    Trap: a search for the closing brace from each box anew is quadratic where none closes
    (test_time_is_linear). Here one pass keeps a stack."""
    open_braces, spans = [], []
    for token in BRACE.finditer(text):
        if token[0] in ("\\{", "\\}"):
            continue
        if token[0] != "}":
            open_braces.append((token.start(), token.end(), token[0] != "{"))
            continue
        if not open_braces:
            continue
        start, inside, is_box = open_braces.pop()
        if not is_box:
            continue
        while spans and spans[-1][0] > start:
            start, inside, end = spans.pop()
            spans.append((start, inside, end))
            break
        else:
            spans.append((start, inside, token.start()))
    return spans


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...}, braces balanced; None if there is none or it never
    closes."""
    spans = box_spans(text)
    return text[spans[-1][1] : spans[-1][2]].strip() if spans else None
