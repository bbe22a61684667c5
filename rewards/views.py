r"""The parts of a response in which the extraction rules search.

Of the response

    Let me **think**.
    There are 3 and 4. Therefore there are **12**. I hope this helps!

the rules see these views, each made when a rule asks for it:

    plain         all of the response, without tags and without the marks of bold type
    with_bold     the same with the marks of bold type, for a number in bold
    first_line    Let me think.
    conclusion    Therefore there are 12.
    whole         the same as plain, if it is so short that it may be nothing but an answer

`last_block` gives the content of the answer block, and `is_refusal` says whether the response ends
without an answer. Boxes have a file of their own, `boxes.py`.
"""

import re
from functools import cached_property

from rewards.digits import WORD
from rewards.typesetting import BOLD, replace_all

SEARCHED = 20_000  # only the last 20,000 characters are searched, so that the cost is bounded
SHORT = 400  # characters of a response that may be nothing but an answer


def last_block(response: str) -> str | None:
    """What the last <answer> block holds, closed or not; None without a block.

    >>> last_block("<answer> 1 </answer> wait <answer> 2"), last_block("2")
    ('2', None)
    """
    blocks = BLOCK.findall(response)
    return TAG.sub(" ", blocks[-1]).strip() if blocks else None


class Views:
    r"""The parts of a response.

    must_conclude    only a sentence with "therefore" or the like counts as the conclusion; the last
                     sentence alone does not

    >>> views = Views("There are 3 and 4. Therefore there are **12**. I hope it helps!", "number")
    >>> views.conclusion
    'Therefore there are 12.'
    """

    def __init__(self, response: str, answer_type: str, must_conclude: bool = False):
        self.raw = response
        self.answer_type = answer_type
        self.must_conclude = must_conclude

    @cached_property
    def with_bold(self) -> str:
        return TAG.sub("\n", self.raw[-SEARCHED:])

    @cached_property
    def plain(self) -> str:
        return plain_text(self.with_bold)

    @cached_property
    def whole(self) -> str:
        is_short = len(self.plain) < SHORT
        return self.plain.strip() if is_short else ""

    @cached_property
    def first_line(self) -> str:
        """The first line that is not empty."""
        beginning = TAG.sub("\n", self.raw[:SEARCHED])
        for line in plain_text(beginning).split("\n"):
            if line.strip():
                return line.strip()
        return ""

    @cached_property
    def conclusion(self) -> str:
        """The last sentence with "therefore" or the like, else the last one; "" for a refusal.

        For a number or an expression, only sentences with a number count.
        """
        sentences = sentences_of(self.plain)
        if self.answer_type in ("number", "math"):
            sentences = [sentence for sentence in sentences if HAS_NUMBER.search(sentence)]

        concluding = [sentence for sentence in sentences if CONCLUDES.search(sentence)]
        if not concluding and not self.must_conclude:
            concluding = sentences
        if not concluding or REFUSAL.search(concluding[-1]):
            return ""
        return concluding[-1]


def plain_text(text: str) -> str:
    r"""Without the marks of bold type and without wrappers of words.

    >>> plain_text(r"**12** \text{cm}").split(), plain_text("2**3")
    (['12', 'cm'], '2^{3}')
    """
    return WRAPPER.sub(r" \1 ", replace_all(text, BOLD).replace("__", ""))


def sentences_of(text: str) -> list[str]:
    """Sentences and lines; a line that ends in a colon goes on in the next.

    >>> sentences_of("So, e.g. (A. cat) is out. The answer:\\nB")
    ['So, e.g. (A. cat) is out.', 'The answer: B']
    """
    text = COLON_AND_BREAK.sub(r"\1 ", text)
    return [sentence for sentence in SENTENCE_END.split(text) if sentence.strip()]


def is_refusal(response: str) -> bool:
    """Does the response end by saying that it cannot answer? Then its guesses are no answer.

    >>> is_refusal("It may be 5. I cannot determine it."), is_refusal("The answer is 5.")
    (True, False)
    """
    end = plain_text(response[-2 * SHORT :])
    sentences = sentences_of(end)
    if not sentences or STATES_ANSWER.search(sentences[-1]):
        return False
    return REFUSAL.search(sentences[-1]) is not None


# --- Patterns ------------------------------------------------------------------------------------

BLOCK = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
TAG = re.compile(r"</?(?!answer)[A-Za-z]+>|</answer>")  # "<think>", and what an open block left
WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
COLON_AND_BREAK = re.compile(r"([:：])[ \t]*\n\s*")
SENTENCE_END = re.compile(
    r"""(?<=[.!?])
        (?<![\s(*][A-J]\.)              # not behind the letter of an option: "B. dog"
        (?<!\bi\.e\.)(?<!\be\.g\.)      # not behind "i.e." and "e.g."
        \s+
      | (?<=[。！？])
      | \n+
    """,
    re.VERBOSE,
)
HAS_NUMBER = re.compile(rf"\d|\b(?:{WORD})\b", re.IGNORECASE)
CONCLUDES = re.compile(
    r"""\b(?: therefore | thus | hence | conclu\w+ | finally | in[ ]summary | overall
            | as[ ]a[ ]result | this[ ]means | consequently
            | so(?! [ ]on\b | [ ]far\b | [ ]that\b | [ ]many\b | [ ]much\b ) )\b
      | answer | 所以 | 因此 | 综上 | 故
    """,
    re.IGNORECASE | re.VERBOSE,
)
REFUSAL = re.compile(  # "I cannot determine it", "the text does not provide", "please clarify"
    r"""\b(?: cannot | can't | could[ ]not | couldn't
            | unable[ ]to | not[ ]possible[ ]to | impossible[ ]to
            | (?:does[ ]not|doesn't)[ ]provide | not[ ]enough | insufficient
            | need[ ](?:more|additional) )\b
        [^.]{0,60}?
        \b(?: determin\w+ | answer | provide | information | specify | compute | calculate
            | find | identify | give | help )\b
      | \bplease[ ](?:provide|clarify|specify)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
STATES_ANSWER = re.compile(r"\banswer(?: is|:)|\\boxed", re.IGNORECASE)
