r"""Typesetting taken off, so that two texts can be compared for what they say.

The same quantity, written in three ways, is the same after `squeeze`:

    $12\,\text{cm}^{2}$        12 cm^2.        **12** cm ^{2}        ->        12cm^2

Four functions, each with what it makes of

    (A $3\,\text{cm}^{2}$  Cube).

    plain         (a $3\,\text{cm}^{2}$ cube)    case, double blanks, punctuation around: for words
    tidy          (A $3 cm ^{2}$ Cube).          wrappers, sizes and spaces of LaTeX, marks around
    squeeze       (A$3cm^2$Cube)                 the same, and blanks: for expressions
    comparable    a3cm^2cube                     the same, and case, quotes, brackets: for options

Each of the last three calls the one above it; `plain` stands alone, and leaves LaTeX as it is.
Two more build on `tidy`:

    as_latex      signs of Unicode become LaTeX, for math-verify
    strip_marks   Markdown, quotes, and a box around an answer, for `choice.py`

The tables of replacements come last, each row with an example that a test checks.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

# --- Expressions ---------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def tidy(text: str) -> str:
    r"""The same text without typesetting.

    >>> tidy(r"$12\,\text{cm}^{2}$")
    '12 cm ^{2}'
    >>> tidy(r"\left( \dfrac12, 90^\circ \right)")
    '( \\frac12, 90°)'
    """
    text = replace_all(text, TYPESETTING)
    text = re.sub(r"\s+", " ", text).strip()
    return without_delimiters(text)


def without_delimiters(text: str) -> str:
    r"""`$12$` -> `12`, if one pair of marks of mathematics stands around the whole text.

    >>> without_delimiters(r"\(12\)"), without_delimiters("$1$ and $2$")
    ('12', '$1$ and $2$')
    """
    for opening, closing in DELIMITERS:
        is_long_enough = len(text) >= len(opening) + len(closing)  # "$" alone is no pair
        if not (text.startswith(opening) and text.endswith(closing) and is_long_enough):
            continue
        inside = text[len(opening) : len(text) - len(closing)]
        if not closes_before_the_end(inside, opening, closing):
            text = inside.strip()
    return text


def closes_before_the_end(inside: str, opening: str, closing: str) -> bool:
    """Is the first mark closed by one inside, so that the last mark belongs to another pair?

    Of `$1$ and $2$` the first `$` is. A single `$` inside closes nothing: it is money.

    >>> closes_before_the_end("1$ and $2", "$", "$"), closes_before_the_end("x = $5", "$", "$")
    (True, False)
    """
    if opening != closing:
        return closing in inside
    count = inside.count(closing)
    return count > 0 and count % 2 == 0


def squeeze(text: str) -> str:
    """Without typesetting and blanks. A blank stays only between two letters.

    >>> squeeze("x^{2} + 1"), squeeze("x^2+1"), squeeze("no solution.")
    ('x^2+1', 'x^2+1', 'no solution')
    """
    text = tidy(text).rstrip(".。")
    # x^{2} is x^2. Of more than one character the braces mean something: x^12 is x^{1}2 in LaTeX.
    text = re.sub(r"\{(\w)\}", r"\1", text)
    return BLANK_BESIDE_A_SIGN.sub("", text)


def as_latex(text: str) -> str:
    r"""Mathematics as math-verify reads it: LaTeX without marks, all boxes as a list.

    >>> as_latex("√12 ≤ π")
    '\\sqrt{12} \\le \\pi'
    >>> as_latex(r"$\boxed{1}$ and $\boxed{2}$.")
    '1, 2'
    """
    # 1. Only the boxes, if there are any.
    boxes = BOX.findall(text)
    if boxes:
        text = ", ".join(boxes)
    # 2. LaTeX for signs and words: "√3", "x=1orx=2".
    text = replace_all(text, TO_LATEX)
    text = GLUED.sub(r" \1 ", text)
    # 3. Straight quotes, escaped or not. Before step 4, which would leave the backslash of \".
    text = re.sub(r"\\?\"", "", text)
    # 4. Typesetting, and the pair of marks around the whole.
    text = tidy(text)
    # 5. Marks inside, curved quotes, blanks, the full stop.
    text = re.sub(r"\\?\$|[“”]", "", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".。").strip()


# --- Words ---------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Words as they are compared: without case, double blanks and punctuation around.

    >>> plain(" A  red Cube. ")
    'a red cube'
    """
    return " ".join(str(text).lower().split()).strip(" .,;:!?\"'")


def strip_marks(text: str) -> str:
    r"""An answer without Markdown, LaTeX wrappers, quotes and closing punctuation.

    >>> strip_marks(r"$\boxed{B}$."), strip_marks("**(B)**"), strip_marks("“dog”.")
    ('B', '(B)', 'dog')
    >>> strip_marks("B!"), strip_marks("2*3")
    ('B', '2*3')

    The order is from the outside in, as each step may uncover what the next one removes. In
    `**{$B$}**.` the stars hide the braces, and the braces hide the signs of mathematics.
    """
    text = BOX.sub(r" \1 ", text)
    text = re.sub(r"\\[()\[\]]", " ", text)  # \( and \[
    text = tidy(MARKDOWN_OR_QUOTE.sub("", replace_all(text, BOLD)))
    braced = IN_BRACES.fullmatch(text)
    if braced:  # "{B}"
        text = braced["content"]
    text = tidy(text.strip(" \n\t$*:：'").strip())
    text = text.strip(" .。,;，$'")
    return text if FACTORIAL.search(text) else text.rstrip(" !！.")  # "B!", not "4!"


@lru_cache(maxsize=4096)
def comparable(text: str) -> str:
    """An option's text as it is compared: no blanks, no typesetting, no punctuation around.

    >>> comparable("(Red Cube)"), comparable('"red cube".')
    ('redcube', 'redcube')
    >>> comparable("*2*"), comparable("2*3"), comparable("2**3")
    ('2', '2*3', '2^3')
    """
    text = replace_all(str(text), BOLD)
    text = squeeze(re.sub(rf"{STAR}|[\"“”$]", "", text))
    return text.replace(" ", "").lower().strip(".,;:!?'()")


# --- Patterns ------------------------------------------------------------------------------------

BOX = re.compile(r"\\boxed\s*\{([^{}]*)\}")  # without braces inside; `boxes.py` has the others
DELIMITERS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")]
BLANK_BESIDE_A_SIGN = re.compile(
    r"""(?<![A-Za-z])[ ]    # no letter before it
      | [ ](?![A-Za-z])     # no letter behind it
    """,
    re.VERBOSE,
)
GLUED = re.compile(  # "x=1orx=2", "3and4"
    r"""(?<=\d) (and|or)
        (?= [-\d(] | [A-Za-z](?:\([a-z]\))?= )    # "4", "(4", "x=", "f(x)="
    """,
    re.VERBOSE,
)
STAR = r"(?<![A-Za-z0-9)}\]])\*+|\*+(?!\d)"  # of Markdown; not the sign in "2*3"
MARKDOWN_OR_QUOTE = re.compile(rf"{STAR}|__|~~|[\"“”‘’「」]")
FACTORIAL = re.compile(r"\d\)?!$")
IN_BRACES = re.compile(  # "{B}", "{\frac{1}{2}}"
    r"\s*\{(?P<content>[^{}]*(?:\{[^{}]*\}[^{}]*)*)\}\s*"
)


# --- Tables of replacements ----------------------------------------------------------------------


@dataclass(frozen=True)
class Replacement:
    pattern: re.Pattern
    replacement: str
    before: str  # an example
    after: str
    needs: str = ""  # a text without it need not be searched, which takes time in a megabyte


def row(pattern: str, replacement: str, before: str, after: str, needs: str = "") -> Replacement:
    return Replacement(re.compile(pattern), replacement, before, after, needs)


def replace_all(text: str, table: list[Replacement]) -> str:
    """Every row of a table, in order."""
    for entry in table:
        if entry.needs in text:
            text = entry.pattern.sub(entry.replacement, text)
    return text


THIN = "\u2009\u202f\u00a0\u2007"  # thin and unbreakable spaces
END = r"(?![A-Za-z])"  # the end of a LaTeX command
COMMANDS = "left|right|[dt]?frac|boxed|text|mathrm|sqrt|pi|leq?|geq?|cup|infty"
WRAPPERS = "text|textnormal|mathrm|mathbf|textbf|mathit|mbox|operatorname"
SIZES = "left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?"

OPERAND = r"[A-Za-z0-9)}\]]"
POWER_SIGN = (  # "2**3", "x ** 2"; not the marks in "is **8** cm"
    rf"(?:(?<={OPERAND})\*\*|(?<=[\d)}}\]])\s\*\*\s|(?<=\b[A-Za-z])\s\*\*\s)"
)
EXPONENT = r"(-?\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])|\([^()]*\))"
BOLD = [  # the marks of bold type, which are also the sign for a power in programs
    # Trap: if all ** were taken off, "2**3" would be 23 (test_attack_cases). A pair opens where
    # nothing can be raised to a power.
    row(rf"(?<!{OPERAND})\*\*(?=\S)([^*\n]{{1,200}})\*\*(?!\d)", r"\1", "**B**", "B", "**"),
    row(POWER_SIGN + EXPONENT, r"^{\1}", "2**10", "2^{10}", "**"),
    # half of a pair, where an extraction rule took the other half
    row(r"\*\*", "", "12 cm**", "12 cm"),
]

TYPESETTING = [  # pattern, replacement, an example before and after
    # letters that look like an ASCII one
    row(rf"[{THIN}]", " ", "1\u2009234", "1 234"),
    row("[\u2212\u2013\uff0d]", "-", "\u22124", "-4"),
    # LaTeX: escaped twice, wrappers of words, thousands marks, sizes
    row(rf"\\\\(?=(?:{COMMANDS}){END})", r"\\", r"\\frac", r"\frac"),
    row(rf"\\(?:{WRAPPERS})\s*\{{([^{{}}]*)\}}", r" \1 ", r"\text{cm}", " cm "),
    row(r"(?<=\d)\s*(?:,\\!|\{,\s*\})\s*(?=\d{3})", ",", "1{,}234", "1,234"),
    row(rf"\\(?:{SIZES}){END}\.?", "", r"\left(", "("),
    row(rf"\\[dtc]frac{END}", r"\\frac", r"\dfrac{1}{2}", r"\frac{1}{2}"),
    row(r"(?<!\\)\\[,;:!> ]|\\quad|\\qquad|~", " ", r"12\,cm", "12 cm"),
    # signs
    row(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\\circ\b|\u00ba", "°", r"90^\circ", "90°"),
    row(r"\\%|\uff05", "%", r"50\%", "50%"),
    row(r"\\\$", "$", r"\$5", "$5"),
    *BOLD,
    row("`", "", "`B`", "B"),
    row(rf"\\cdot{END}|\u00b7|\u22c5", r" \\cdot ", "2·3", r"2 \cdot 3"),
    row(rf"\\times{END}|\u00d7", r" \\times ", "2×3", r"2 \times 3"),
]

TO_LATEX = [  # the same: signs of Unicode, and words such as "sqrt" and "pi"
    row(r"√\s*\{", r"\\sqrt{", "√{3}", r"\sqrt{3}"),
    row(r"√\s*\(([^()]*)\)", r"\\sqrt{\1}", "√(3x)", r"\sqrt{3x}"),
    row(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}", "√3", r"\sqrt{3}"),
    row(r"\bsqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", "sqrt(3)", r"\sqrt{3}"),
    row(rf"π|(?<![A-Za-z\\])pi{END}", r"\\pi ", "2pi", r"2\pi "),
    row("∞", r"\\infty ", "∞", r"\infty "),
    row("≤", r"\\le ", "≤3", r"\le 3"),
    row("≥", r"\\ge ", "≥3", r"\ge 3"),
    row("∪", r"\\cup ", "∪", r"\cup "),
    row("²", "^2", "x²", "x^2"),
    row("³", "^3", "x³", "x^3"),
    row("÷", "/", "6÷2", "6/2"),
    row("±", r"\\pm ", "±3", r"\pm 3"),
    row(r"\\(le|ge)q\b", r"\\\1", r"\leq 3", r"\le 3"),
]
