r"""The parts of a response in which the extraction rules search.

    response      "**Thus** it is $12$."  ->  "Thus it is $12$."      all of it, without Markdown
    marked        the same with its Markdown, for bold numbers
    whole         a response so short that it may be nothing but an answer
    first_line    its first line
    conclusion    its last sentence that concludes: "Therefore there are 12."

and the contents of its <answer> block and of its boxes. Only the end of a very long response is
searched: its answer stands there, and a megabyte costs no more than twenty thousand characters.
"""

import re
from functools import cached_property

from rewards.digits import WORD

SEARCHED = 20_000  # characters at the end of a response
SHORT = 400  # characters of a response that may be nothing but an answer

BLOCK = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
TAG = re.compile(r"</?(?!answer)[A-Za-z]+>|</answer>")
WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
COLON_AND_BREAK = re.compile(r"([:：])[ \t]*\n\s*")
SENTENCE_END = re.compile(
    r"""(?<=[.!?])
        (?<![\s(*][A-J]\.)        # not behind the letter of an option: "B. dog"
        (?<!\bi\.e\.)(?<!\be\.g\.)
        \s+
        | (?<=[。！？]) | \n+""",
    re.VERBOSE,
)
HAS_NUMBER = re.compile(rf"\d|\b(?:{WORD})\b", re.IGNORECASE)
CONCLUDES = re.compile(
    r"""\b(?:therefore|thus|hence|conclu\w+|finally|in[ ]summary|overall
            |as[ ]a[ ]result|this[ ]means|consequently
            |so(?![ ]on\b|[ ]far\b|[ ]that\b|[ ]many\b|[ ]much\b))\b
        | answer | 所以 | 因此 | 综上 | 故""",
    re.IGNORECASE | re.VERBOSE,
)
REFUSAL = re.compile(  # "I cannot determine it", "the text does not provide", "please clarify"
    r"""\b(?:cannot|can't|could[ ]not|couldn't|unable[ ]to|not[ ]possible[ ]to|impossible[ ]to
            |(?:does[ ]not|doesn't)[ ]provide|not[ ]enough|insufficient
            |need[ ](?:more|additional))\b
        [^.]{0,60}?
        \b(?:determin\w+|answer|provide|information|specify|compute|calculate|find|identify
            |give|help)\b
        | \bplease[ ](?:provide|clarify|specify)\b""",
    re.IGNORECASE | re.VERBOSE,
)
STATES_ANSWER = re.compile(r"\banswer(?: is|:)|\\boxed", re.IGNORECASE)


def last_block(response: str) -> str | None:
    """What the last <answer> block holds, closed or not; None if there is none."""
    blocks = BLOCK.findall(response)
    return TAG.sub(" ", blocks[-1]).strip() if blocks else None


class Views:
    r"""The parts of a response, without tags and \text{}; each is made when a rule asks for it.

    must_conclude    a conclusion must say so ("therefore"): the last sentence alone is none
    """

    def __init__(self, response: str, answer_type: str, must_conclude: bool = False):
        self.raw = response
        self.answer_type = answer_type
        self.must_conclude = must_conclude

    @cached_property
    def marked(self) -> str:
        return TAG.sub("\n", self.raw[-SEARCHED:])

    @cached_property
    def response(self) -> str:
        return plain_text(self.marked)

    @cached_property
    def whole(self) -> str:
        return self.response.strip() if len(self.response) < SHORT else ""

    @cached_property
    def first_line(self) -> str:
        lines = plain_text(TAG.sub("\n", self.raw[:SEARCHED])).split("\n")
        return next((line.strip() for line in lines if line.strip()), "")

    @cached_property
    def conclusion(self) -> str:
        """The last sentence that concludes, else the last one; "" for a refusal.

        For a number or an expression, only sentences with a number count.
        """
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
    """Does the response end by saying that it cannot answer? Then its guesses are no answer."""
    sentences = sentences_of(plain_text(response[-2 * SHORT :]))
    if not sentences or STATES_ANSWER.search(sentences[-1]):
        return False
    return REFUSAL.search(sentences[-1]) is not None


# --- Boxes ---------------------------------------------------------------------------------------

BRACE = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
NO_CONCLUSION = r"(?:(?!\bso\b|\bthus\b|\btherefore\b|\bthen\b)[^.\n])*"
JOINT = re.compile(  # what may stand between two boxes of one list
    r"(?:[\s$,;+|&\\{}()\[\]]|quad|text|\band\b|\bor\b)*"  # signs and "and"
    rf"|{NO_CONCLUSION}\b(?:and|or)\b{NO_CONCLUSION}"  # a few words with an "and"
)
LONGEST_JOINT = 60  # characters
FINAL = re.compile(r"\bfinal answer(?: is|:)\s*\S", re.IGNORECASE)


def boxes(text: str) -> list[str]:
    r"""The contents of all \boxed{...}. Boxes of one statement are one list, "1, 2".

    A "final answer" that is stated after the last box supersedes it: then there are none.
    """
    finals = [match.start() for match in FINAL.finditer(text)]
    if finals and text.rfind("\\boxed") < finals[-1]:
        return []

    lists: list[list[str]] = []
    last_end = None
    for start, inside, end in box_spans(text):
        between = None if last_end is None else text[last_end + 1 : start]
        if not lists or len(between) >= LONGEST_JOINT or not JOINT.fullmatch(between):
            lists.append([])
        lists[-1].append(text[inside:end].strip())
        last_end = end
    return [", ".join(contents) for contents in lists]


def box_spans(text: str) -> list[tuple[int, int, int]]:
    r"""(start of \boxed, start of its content, closing brace) of each box; of nested boxes the
    inner one.

    Trap: a search for the closing brace from each box anew is quadratic where none closes
    (test_time_is_linear). Here one pass keeps a stack.
    """
    open_braces, spans = [], []
    for token in BRACE.finditer(text):
        if token[0] in ("\\{", "\\}"):  # braces that are printed
            continue
        if token[0] != "}":
            open_braces.append((token.start(), token.end(), token[0] != "{"))
            continue
        if not open_braces:
            continue
        start, inside, is_box = open_braces.pop()
        holds_a_box = bool(spans) and spans[-1][0] > start
        if is_box and not holds_a_box:
            spans.append((start, inside, token.start()))
    return spans


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}, braces balanced; None if there is none that closes."""
    spans = box_spans(text)
    if not spans:
        return None
    _, inside, end = spans[-1]
    return text[inside:end].strip()
