r"""The rules by which the answer of a response is found: two tables, and the patterns in them.

One rule, as it stands in the table below:

    name        answer is
    types       FOR_ANY                      the answer types that the rule serves
    view        plain                        the view that is searched (an attribute of `Views`)
    read_as     statement                    how the match is read (a row of `reading.py`)
    pattern     ANSWER_IS                    its group that closed last (match.lastindex) is read
    example     The answer to the question is (B).
    answer      (B)                          what the rule finds in the example; a test checks it
    states_conclusion   yes                  the match says that it is the conclusion
    in_sentences        yes                  also tried in an answer block that holds a sentence

Patterns ignore case: `extract.py` searches with re.IGNORECASE. Rules are tried in the order of the
table. Within a rule the last match counts, since a conclusion comes last.

A match of the rules "must be" and "option X" uses up the rest of its sentence: in "It must be B, as
A would be a cat" there is one match. "letter in brackets" uses up its line, so that the first one
counts, and a second letter in brackets is one of several options.

The views of a response, by `views.py`:

    plain         all of it, without tags and marks
    with_bold     the same with the marks of bold type
    whole         the same as plain, if it is short; else empty
    first_line    its first line
    conclusion    its last sentence with "therefore" or the like, else its last sentence
"""

from dataclasses import dataclass

from rewards.digits import NUMBER, WORD
from rewards.options import LETTER

LONGEST_MATCH = 400  # characters of a match that are read


@dataclass(frozen=True)
class Rule:
    name: str
    types: tuple[str, ...]
    view: str
    read_as: str
    pattern: str | None  # None: `boxes.py` searches, as no pattern can balance braces
    example: str  # for choices a response about cat, dog, a bird, fish
    answer: str
    states_conclusion: bool = False
    in_sentences: bool = True


# --- Patterns of a whole text and of a line ------------------------------------------------------

EVERYTHING = r"(?s)^(.*)$"

# The rest of the line is looked at but not used up: a later statement on it is found as well.
REST = rf"(?=(.{{0,{LONGEST_MATCH}}}))"
UP_TO_STOP = r"[^.\n]*"  # used up: what a statement says later in its sentence is part of it


# --- Patterns that announce an answer ------------------------------------------------------------

# Behind these words another sentence begins: "The answers are not ...", "the answer choices are".
NOT_BETWEEN = r"is\b|are\b|choices\b|options\b|not\b|cannot\b|never\b|\w+n't\b"
ANSWER_IS = (  # "answer to the question is ...", "Answer: ..."
    r"\banswers?\b"
    rf"(?:[ \t]+(?!{NOT_BETWEEN})[\w\"'-]+){{0,12}}?"  # "to the question"
    rf"\s*(?:\b(?:is|are|was|be|becomes)\b|[:：=])[ \t]*:?\s*{REST}"  # "is ..."
)
ANSWER_IS_IN_CHINESE = (  # "答案是A。"
    r"(?:答案|选项)(?:应该|应当|选项)?\s*"
    rf"(?:是|为|选|[:：]|(?=[（(]?{LETTER}[)）]?(?:是|。|$)))\s*[:：]?\s*([^。\n]*)"
)
OPTION_IS = (  # "the correct option is ...", "best choice: ..."
    r"\b(?:correct|right|best|closest|appropriate|suitable|likely)\s+"
    r"(?:option|choice|letter|statement|one|match)\b"
    r"(?:[ \t]+(?!is\b)[\w'-]+){0,8}?"  # "for the picture"
    rf"\s*(?:\bis\b|\bwould be\b|:)[ \t]*:?\s*{REST}"  # "is ..."
)


# --- Patterns of options -------------------------------------------------------------------------

# "must be A.", "corresponds to (B)"
MUST_BE = r"\b(?:choose|select|pick|must be|should be|would be|corresponds? to|matches)\b"
MUST_BE += rf"\s*{REST}{UP_TO_STOP}"
# "option D fits.", "choice (B)"; not "option a's"
OPTION_X = (
    rf"\b(?=((?:option|choice)\s+\(?{LETTER}\)?(?![\w']).{{0,{LONGEST_MATCH}}})){UP_TO_STOP}"
)
# "(C) holds."
IN_BRACKETS = rf"([(\[（]{LETTER}[)\]）].*)"
# "A dog" of "A dog, since it barks."
FIRST_WORDS = r"^([^,.;:\n]{2,60})[,.;:](?=\s|$)"

NO_STOP = r"(?:[^.!?]|\.(?=\d))"  # a character of the same sentence
# "the largest" of "It is not the largest.": the first sentence holds one "is not", "isn't" or the
# like, and what is denied ends with the sentence. A second "not", a "but" or an "or" behind it
# would make unclear what is denied.
DENIAL = (
    rf"^{NO_STOP}*?"
    r"\b(?:(?:is|are|was|were|does|do|did|has|have|can|will) not"
    r"|(?:is|are|was|were|does|do|did)n't)\b"
    rf"((?:(?!\bnot\b|n't\b|\bbut\b|\bor\b){NO_STOP})*)"
    r"(?:[.!?]|$)"
)


# --- Patterns of values --------------------------------------------------------------------------

BOLD = r"(?<![0-9)])\*\*([^*\n]{1,40})\*\*"  # "**12**", not the "**3**" of "2**3**"
LAST_FORMULA = r"(?:\$\$?([^$\n]+)\$\$?|\\[(\[](.+?)\\[)\]])(?!.*\d)"  # and no number behind it
IS_NUMBER = (  # "is 3", "= about $3", "there are three"
    r"(?:\b(?:is|are|was|were|be|equals?|equal to|approximately|about)\b|'s\b|(?<![<>!=])[=≈])"
    r"(?=[ \t]*((?:approximately|about|only|[$€£]|[ \t])*"
    rf"(?:{WORD}|{NUMBER}|√|\\sqrt).{{0,200}}))"
)
A_NUMBER = (  # any number but these:
    r"(?<![\w.,])"  # "34" of "1234" is the end of a longer number.
    r"(?<!\^)(?<!\^\{)(?<!\^\()"  # "3" of "2^3" and "2^{3}" is an exponent.
    # "4" of "3, 4", "3 or 4", "3%-4%" is the second of several.
    r"(?<!, )(?<![\d%] and )(?<![\d%] or )(?<![\d%] to )(?<![\d%]-)(?<![\d%] - )"
    # "3" of "12 more than 3" is what 12 is compared with.
    r"(?<!\bmore than )(?<!\bless than )(?<!\bfewer than )"
    # "3" of "5 feet 3 inches" is the rest of one length.
    r"(?<!\bfeet )(?<!\bfoot )(?<!\bft )(?<!\bhours )(?<!\bhour )"
    r"(?<!not )"  # "3" of "not 3" is denied.
    r"(?<!\w\()"  # "0" of "f(0)" is an argument.
    rf"(?=((?:[$€£]\s*)?{NUMBER}.{{0,40}}))"
)


# --- The tables ----------------------------------------------------------------------------------

# The answer types that a rule serves.
FOR_ANY = ("number", "choice", "math", "text")
FOR_VALUES_AND_CHOICE = ("number", "choice", "math")
FOR_CHOICE = ("choice",)
FOR_NUMBERS = ("number",)
FOR_MATH = ("math",)

IN_TAGS = [  # for what stands in an <answer> block
    Rule("boxed in the block", FOR_ANY,
         view="plain", read_as="box", pattern=None,
         example=r"The answer is $\boxed{12}$", answer="12"),
    Rule("block", FOR_ANY,
         view="plain", read_as="block", pattern=EVERYTHING,
         example="12 cm", answer="12 cm"),
]

IN_PROSE = [  # for a response without a block
    # an answer that is announced
    Rule("boxed", FOR_ANY,
         view="plain", read_as="box", pattern=None,
         example=r"so \boxed{3}, as \boxed{3}", answer="3",
         in_sentences=False),
    Rule("answer is", FOR_ANY,
         view="plain", read_as="statement", pattern=ANSWER_IS,
         example="The answer to the question is (B).", answer="(B)",
         states_conclusion=True),
    Rule("答案", FOR_ANY,
         view="plain", read_as="statement", pattern=ANSWER_IS_IN_CHINESE,
         example="所以答案是A。", answer="A",
         states_conclusion=True),
    Rule("whole response", FOR_ANY,
         view="whole", read_as="whole", pattern=EVERYTHING,
         example="B. dog", answer="B. dog",
         in_sentences=False),

    # an option, the plainest words first
    Rule("correct option", FOR_CHOICE,
         view="plain", read_as="statement", pattern=OPTION_IS,
         example="The correct option is D.", answer="D"),
    Rule("must be", FOR_CHOICE,
         view="conclusion", read_as="must be", pattern=MUST_BE,
         example="So it must be A.", answer="A"),
    Rule("option X", FOR_CHOICE,
         view="conclusion", read_as="answer", pattern=OPTION_X,
         example="Thus option D fits.", answer="option D fits."),
    Rule("letter in brackets", FOR_CHOICE,
         view="conclusion", read_as="answer", pattern=IN_BRACKETS,
         example="Hence (C) holds.", answer="(C) holds."),
    Rule("first words", FOR_CHOICE,
         view="first_line", read_as="answer", pattern=FIRST_WORDS,
         example="A dog, since it barks.", answer="A dog"),
    Rule("denial", FOR_CHOICE,
         view="first_line", read_as="denial", pattern=DENIAL,
         example="It is not the largest.", answer="no"),
    Rule("option's text", FOR_CHOICE,
         view="conclusion", read_as="sentence", pattern=EVERYTHING,
         example="So we see the dog here.", answer="B"),
    Rule("option's text, first", FOR_CHOICE,
         view="first_line", read_as="sentence", pattern=EVERYTHING,
         example="We see the dog.\nIt barks.", answer="B"),

    # a value in the sentence that concludes, the plainest first; in bold, it may stand anywhere
    Rule("bold number", FOR_NUMBERS,
         view="with_bold", read_as="bold", pattern=BOLD,
         example="It was **2019**, with 25 %.", answer="2019"),
    Rule("expression that concludes", FOR_MATH,
         view="conclusion", read_as="expression", pattern=LAST_FORMULA,
         example="Therefore $x > 5$ holds.", answer="x > 5"),
    Rule("is N", FOR_VALUES_AND_CHOICE,
         view="conclusion", read_as="number", pattern=IS_NUMBER,
         example="So there are 3 balls of size 6.", answer="3"),
    Rule("number that concludes", FOR_VALUES_AND_CHOICE,
         view="conclusion", read_as="number", pattern=A_NUMBER,
         example="So he needs 7. I hope this helps!", answer="7"),
]

# For an answer block that holds a sentence. Its boxes and its whole were read by IN_TAGS.
IN_SENTENCES = [rule for rule in IN_PROSE if rule.in_sentences]
