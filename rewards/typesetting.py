r"""Typesetting off, so that two texts can be compared for what they say.

    tidy         $12\,\text{cm}^{2}$   ->  12 cm ^{2}           spaces and wrappers
    squeeze      x^{2} + 1             ->  x^2+1                for "the same expression"
    spell_out    √12 ≤ π               ->  \sqrt{12} \le \pi    for math-verify, which reads LaTeX
    plain        "A  red cube."        ->  a red cube           for words
    comparable   "(Red Cube)"          ->  redcube              for the text of an option
"""

import re
from functools import lru_cache

THIN = "\u2009\u202f\u00a0\u2007"  # thin and unbreakable spaces
END = r"(?![A-Za-z])"  # the end of a LaTeX command
COMMANDS = "left|right|[dt]?frac|boxed|text|mathrm|sqrt|pi|leq?|geq?|cup|infty"
WRAPPERS = "text|textnormal|mathrm|mathbf|textbf|mathit|mbox|operatorname"
SIZES = "left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?"

TYPESETTING = [  # pattern, replacement, example
    (rf"[{THIN}]", " ", "1 234"),
    ("[\u2212\u2013\uff0d]", "-", "\u22124"),
    (rf"\\\\(?=(?:{COMMANDS}){END})", r"\\", r"\\frac: escaped twice"),
    (rf"\\(?:{WRAPPERS})\s*\{{([^{{}}]*)\}}", r" \1 ", r"\text{cm}"),
    (r"(?<=\d)\s*(?:,\\!|\{,\s*\})\s*(?=\d{3})", ",", "1{,}234"),
    (rf"\\(?:{SIZES}){END}\.?", "", r"\left("),
    (rf"\\[dtc]frac{END}", r"\\frac", r"\dfrac"),
    (r"(?<!\\)\\[,;:!> ]|\\quad|\\qquad|~", " ", r"12\,cm"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\\circ\b|\u00ba", "°", r"90^\circ"),
    (r"\\%|\uff05", "%", r"50\%"),
    (r"\\\$", "$", r"\$5"),
    (r"\*\*|`", "", "**B**"),
    (rf"\\cdot{END}|\u00b7|\u22c5", r" \\cdot ", "2·3"),
    (rf"\\times{END}|\u00d7", r" \\times ", "2×3"),
]
UNICODE = [  # pattern, LaTeX
    (r"√\s*\{", r"\\sqrt{"),
    (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}"),
    (r"\bsqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (rf"π|(?<![A-Za-z\\])pi{END}", r"\\pi "),
    ("∞", r"\\infty "),
    ("≤", r"\\le "),
    ("≥", r"\\ge "),
    ("∪", r"\\cup "),
    ("²", "^2"),
    ("³", "^3"),
    ("÷", "/"),
    ("±", r"\\pm "),
    (r"\\(le|ge)q\b", r"\\\1"),
]
DELIMITERS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")]
GLUED = re.compile(r"(?<=\d)(and|or)(?=[-\d(]|[A-Za-z](?:\([a-z]\))?=)")  # "x=1orx=2"
BOX = re.compile(r"\\boxed\s*\{([^{}]*)\}")


def compiled(table: list[tuple]) -> list[tuple[re.Pattern, str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement, *_ in table]


TYPESETTING_PATTERNS = compiled(TYPESETTING)
UNICODE_PATTERNS = compiled(UNICODE)


@lru_cache(maxsize=4096)
def tidy(text: str) -> str:
    r"""The same text without typesetting.

    >>> tidy(r"$12\,\text{cm}^{2}$")
    '12 cm ^{2}'
    """
    for pattern, replacement in TYPESETTING_PATTERNS:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+", " ", text).strip()

    for opening, closing in DELIMITERS:
        is_long_enough = len(text) >= len(opening) + len(closing)
        if text.startswith(opening) and text.endswith(closing) and is_long_enough:
            text = text[len(opening) : len(text) - len(closing)].strip()
    return text


def squeeze(text: str) -> str:
    """Without typesetting and spaces; x^{2} and x^2 are alike."""
    text = re.sub(r"\{(\w)\}", r"\1", tidy(text).rstrip(".。"))
    return re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", text)


def spell_out(text: str) -> str:
    """Mathematics in Unicode as LaTeX, all boxes as a list, no quotes and no closing stop."""
    boxes = BOX.findall(text)
    if boxes:
        text = ", ".join(boxes)
    for pattern, replacement in UNICODE_PATTERNS:
        text = pattern.sub(replacement, text)

    text = GLUED.sub(r" \1 ", text)
    text = tidy(re.sub(r"\\?\"", "", text)).replace(r"\$", "")
    text = re.sub(r"[$\"“”]", "", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".。").strip()


def plain(text: str) -> str:
    """Words as they are compared: without case, double spaces and closing punctuation."""
    return " ".join(str(text).lower().split()).strip(" .,;:!?\"'")


@lru_cache(maxsize=4096)
def comparable(text: str) -> str:
    """An option's text as it is compared: no spaces, no typesetting, no punctuation around."""
    text = squeeze(re.sub(r"[*\"“”$]", "", str(text)))
    return text.replace(" ", "").lower().strip(".,;:!?'()")


def strip_marks(text: str) -> str:
    """An answer without Markdown, LaTeX wrappers and closing punctuation."""
    text = BOX.sub(r" \1 ", text)
    text = re.sub(r"\\[()\[\]]", " ", text)
    text = tidy(re.sub(r"\*+|__|[\"“”‘’「」]|~~", "", text))
    if re.fullmatch(r"\s*\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}\s*", text):  # "{B}"
        text = text.strip()[1:-1]
    return tidy(text.strip(" \n\t$*:：'").strip()).strip(" .。,;，$'")
