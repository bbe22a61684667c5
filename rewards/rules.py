r"""The rules by which the answer of a response is found: two tables, and the patterns in them.

One rule, as it stands in the table below:

    name        answer is
    types       number choice math text      the answer types that it serves
    where       response                     the view that is searched (an attribute of `Views`)
    place       statement                    how the match is read (a row of `reading.py`)
    pattern     ANSWER_IS                    its last group is what is read
    example     The answer to the question is (B).
    answer      (B)                          what the rule finds in the example; a test runs it

Rules are tried in the order of the table. Within a rule the last match counts, since a conclusion
comes last.
"""

from dataclasses import dataclass

from rewards.digits import NUMBER, WORD

LONGEST_MATCH = 400  # characters of a match that are read


@dataclass(frozen=True)
class Rule:
    name: str
    types: str
    where: str
    place: str
    pattern: str
    example: str  # for choices a response about cat, dog, a bird, fish
    answer: str


# --- Patterns ------------------------------------------------------------------------------------

ALL = r"(?s)^(.*)$"
BOX = r"\\boxed\s*(\{)"  # only where a box begins; `boxes.py` finds where it ends

# The rest of the line is looked at but not used up: a later statement on it is found as well.
REST = rf"(?=(.{{0,{LONGEST_MATCH}}}))"

# --- Patterns that announce an answer
NO_WORD_BETWEEN = r"is\b|are\b|choices\b|options\b|not\b|cannot\b|never\b|\w+n't\b"
ANSWER_IS = (  # "answer to the question is ...", "Answer: ..."
    r"\banswers?\b"
    rf"(?:[ \t]+(?!{NO_WORD_BETWEEN})[\w\"'-]+){{0,12}}?"  # "to the question"
    rf"\s*(?:\b(?:is|are|was|be|becomes)\b|[:：=])[ \t]*:?\s*{REST}"  # "is ..."
)
ANSWER_IS_IN_CHINESE = (  # "答案是A。"
    r"(?:答案|选项)(?:应该|应当|选项)?\s*"
    r"(?:是|为|选|[:：]|(?=[（(]?[A-J][)）]?(?:是|。|$)))\s*[:：]?\s*([^。\n]*)"
)
OPTION_IS = (  # "the correct option is ...", "best choice: ..."
    r"\b(?:correct|right|best|closest|appropriate|suitable|likely)\s+"
    r"(?:option|choice|letter|statement|one|match)\b"
    r"(?:[ \t]+(?!is\b)[\w'-]+){0,8}?"  # "for the picture"
    rf"\s*(?:\bis\b|\bwould be\b|:)[ \t]*:?\s*{REST}"  # "is ..."
)

# --- Patterns of options
MUST_BE = r"\b(?:choose|select|pick|must be|should be|would be|corresponds? to|matches)\b\s*(.*)"
OPTION_E = r"\b((?:option|choice)\s+\(?[A-J]\)?(?![\w']).*)"
IN_BRACKETS = r"([(\[（][A-J][)\]）].*)"
FIRST_WORDS = r"^([^,.;:\n]{2,60})[,.;:](?=\s|$)"

NO_STOP = r"(?:[^.!?]|\.(?=\d))"  # a character of the same sentence
DENIAL = (  # "It is not ...", "it doesn't ...", up to the end of the sentence
    rf"^{NO_STOP}*?\b(?:(?:is|are|was|were|does|do|did|has|have|can|will) not"
    r"|(?:is|are|was|were|does|do|did)n't)\b"
    rf"((?:(?!\bnot\b|n't\b|\bbut\b|\bor\b){NO_STOP})*)(?:[.!?]|$)"
)

# --- Patterns of values
BOLD = r"\*\*([^*\n]{1,40})\*\*"
LAST_FORMULA = r"(?:\$\$?([^$\n]+)\$\$?|\\[(\[](.+?)\\[)\]])(?!.*\d)"  # and no number behind it
IS_NUMBER = (  # "is 3", "= about $3", "there are three"
    r"(?:\b(?:is|are|was|were|be|equals?|equal to|approximately|about)\b|'s\b|(?<![<>!=])[=≈])"
    r"(?=[ \t]*((?:approximately|about|only|[$€£]|[ \t])*"
    rf"(?:{WORD}|{NUMBER}|√|\\sqrt).{{0,200}}))"
)
A_NUMBER = (  # any number, but for these
    r"(?<![\w.,])"  # the end of a longer one
    r"(?<!, )(?<!\d and )(?<!\d or )(?<!\d to )(?<!\d-)"  # the second of "3, 4", "3 or 4", "3-4"
    r"(?<!not )(?<!\w\()"  # "not 3", the 0 of "f(0)"
    rf"(?=((?:[$€£]\s*)?{NUMBER}.{{0,40}}))"
)


# --- The tables ----------------------------------------------------------------------------------

ANY = "number choice math text"
VALUE = "number choice math"

IN_TAGS = [  # for what stands in an <answer> block
    #    name, types, where, place, pattern
    #    example, answer
    Rule("boxed in the block", ANY, "response", "box", BOX,
         r"The answer is $\boxed{12}$", "12"),
    Rule("block", ANY, "response", "block", ALL,
         "12 cm", "12 cm"),
]

IN_PROSE = [  # for a response without a block
    # an answer that is announced
    Rule("boxed", ANY, "response", "box", BOX,
         r"so \boxed{3}, as \boxed{3}", "3"),
    Rule("answer is", ANY, "response", "statement", ANSWER_IS,
         "The answer to the question is (B).", "(B)"),
    Rule("答案", ANY, "response", "statement", ANSWER_IS_IN_CHINESE,
         "所以答案是A。", "A"),
    Rule("whole response", ANY, "whole", "whole", ALL,
         "B. dog", "B. dog"),

    # an option, the plainest words first
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

    # a value that a sentence ends with
    Rule("bold number", "number", "marked", "bold", BOLD,
         "It was **2019**, with 25 %.", "2019"),
    Rule("expression that concludes", "math", "conclusion", "expression", LAST_FORMULA,
         "Therefore $x > 5$ holds.", "x > 5"),
    Rule("is N", VALUE, "conclusion", "number", IS_NUMBER,
         "So there are 3 balls of size 6.", "3"),
    Rule("number that concludes", VALUE, "conclusion", "number", A_NUMBER,
         "So he needs 7. I hope this helps!", "7"),
]

# For a block that holds a sentence. Its boxes and its whole were read by IN_TAGS.
IN_SENTENCES = [rule for rule in IN_PROSE if rule.name not in ("boxed", "whole response")]
