r"""What a response holds in \boxed{...}.

    \boxed{1}. Then \boxed{2} and \boxed{3}.     ->     ["1", "2, 3"]

Boxes of one statement are one list of values. Braces are balanced, so that \boxed{\frac{1}{2}} is
whole; of nested boxes the inner one counts.
"""

import re
from dataclasses import dataclass

LONGEST_JOINT = 60  # characters between two boxes of one statement


@dataclass(frozen=True)
class Box:
    start: int  # of "\boxed{"
    content_start: int
    end: int  # its closing brace


def boxes(text: str) -> list[str]:
    r"""The contents of all boxes, those of one statement joined to a list "1, 2".

    A "final answer" that is stated after the last box takes the place of all boxes: then [].

    >>> boxes(r"\boxed{1}. Then \boxed{2} and \boxed{3}.")
    ['1', '2, 3']
    >>> boxes(r"\boxed{200} of them. Final answer: 455")
    []
    """
    finals = [match.start() for match in FINAL.finditer(text)]
    if finals and text.rfind("\\boxed") < finals[-1]:
        return []

    lists: list[list[str]] = []
    previous = None
    for box in find_boxes(text):
        if previous is None or not is_joint(text[previous.end + 1 : box.start]):
            lists.append([])
        lists[-1].append(content_of(box, text))
        previous = box
    return [", ".join(contents) for contents in lists]


def content_of(box: Box, text: str) -> str:
    return text[box.content_start : box.end].strip()


def is_joint(between: str) -> bool:
    """Do these characters between two boxes make them one list?

    >>> is_joint(" and "), is_joint(", or else "), is_joint(". Then "), is_joint(", so y = ")
    (True, True, False, False)
    """
    return len(between) < LONGEST_JOINT and JOINT.fullmatch(between) is not None


def find_boxes(text: str) -> list[Box]:
    r"""All boxes that close, in order of their closing braces; of nested boxes the inner one.

    One pass over the braces keeps a stack of those that are open. In \boxed{\frac{1}{2}}

        "\boxed{"      is put on the stack
        "{" and "}"    put on and taken off, twice
        "}"            takes "\boxed{" off: here ends a box

    Trap: a search for the closing brace from each box anew is quadratic where none closes
    (test_time_is_linear).
    """
    open_braces: list[re.Match] = []
    found: list[Box] = []
    for brace in BRACE.finditer(text):
        if brace[0] in ("\\{", "\\}"):  # braces that are printed
            continue
        if brace[0] != "}":
            open_braces.append(brace)
            continue
        if not open_braces:  # "} \boxed{5}": this brace closes nothing
            continue

        opening = open_braces.pop()
        is_box = opening[0] != "{"
        # In "\boxed{p = \boxed{3}}" the inner box was found before the outer one closes.
        holds_a_box = bool(found) and found[-1].start > opening.start()
        if is_box and not holds_a_box:
            found.append(Box(opening.start(), opening.end(), brace.start()))
    return found


# --- Patterns ------------------------------------------------------------------------------------

BRACE = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
FINAL = re.compile(r"\bfinal answer(?: is|:)\s*\S", re.IGNORECASE)
# Words of one sentence that do not begin a conclusion: the "for x" of "{1} for x and {2}", but not
# the "so y" of "{1}, so y = {2}".
NO_CONCLUSION = r"(?:(?!\bso\b|\bthus\b|\btherefore\b|\bthen\b)[^.\n])*"
JOINT = re.compile(  # what may stand between two boxes of one list
    r"(?:[\s$,;+|&\\{}()\[\]]|quad|text|\band\b|\bor\b)*"  # signs and "and"
    rf"|{NO_CONCLUSION}\b(?:and|or)\b{NO_CONCLUSION}"  # " for x and"
)
