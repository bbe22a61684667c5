r"""Several values in one answer: where one ends and the next begins.

One list through the file:

    x \in \{1, (2, 3), \pm 4\}           an answer
    1, (2, 3), \pm 4                     what its set holds
    ["1", "(2,3)", "4", "-4"]            its values: a comma inside of brackets divides nothing

A tuple, an interval and a number like 1,234 are one value.
"""

import re

# --- Values --------------------------------------------------------------------------------------


def list_of(text: str) -> list[str]:
    r"""The values of a list, of a set, or of "1 or 2".

    >>> list_of("1, 2 and 3"), list_of("x=1 or x=2"), list_of("1,234")
    (['1', '2', '3'], ['x=1', 'x=2'], ['1,234'])
    >>> list_of(r"\{1, (2, 3)\}"), list_of(r"\pm 3")
    (['1', '(2,3)'], ['3', '-3'])
    >>> list_of("p=5, q=2; p=7, q=2")
    ['(5, 2)', '(7, 2)']
    """
    text = text.strip()
    inside = SET.fullmatch(text)
    if inside and all_close(inside[1]):
        text = inside[1]

    solutions = text.split(";")
    if len(solutions) > 1 and all(is_solution(solution) for solution in solutions):
        return [as_tuple(solution) for solution in solutions]

    values = []
    for part in split_at_commas(AND_OR.sub(",", text)):
        if part.startswith("\\pm"):
            without_sign = re.sub(r"^\\pm\s*", "", part)
            values += [without_sign, "-" + without_sign]
        elif part:
            values.append(part)
    return values


def split_at_commas(text: str) -> list[str]:
    """The parts between commas outside of brackets; "1,234" stays whole.

    >>> split_at_commas("1, (2, 3), 1,234")
    ['1', '(2, 3)', '1,234']
    """
    parts = []
    start = depth = 0
    for i, sign in enumerate(text):
        depth += bracket_step(sign)
        is_thousands_mark = re.match(r"\d{3}(?!\d)", text[i + 1 : i + 5])
        if sign == "," and depth == 0 and not is_thousands_mark:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def is_solution(text: str) -> bool:
    """Several values with their names: `p = 5, q = 2`."""
    values = text.split(",")
    return len(values) > 1 and all(NAMED_VALUE.fullmatch(value) for value in values)


def as_tuple(solution: str) -> str:
    """`p = 5, q = 2` -> `(5, 2)`."""
    values = [EQUALS.split(value)[-1].strip() for value in solution.split(",")]
    return f"({', '.join(values)})"


def without_names(text: str) -> str:
    """The same list without the names of its values. As for one value, they do not matter.

    >>> without_names("x=1 or x=2"), without_names("p=5, q=2; p=7, q=2")
    ('1, 2', '(5, 2), (7, 2)')

    Different names are kept, since they say which value is which:

    >>> without_names("x=1, y=2")
    'x=1, y=2'
    """
    values = list_of(text)
    if ";" in text:
        return ", ".join(values)
    if len(values) < 2 or not all(NAMED_VALUE.fullmatch(value) for value in values):
        return text

    names_and_values = [[side.strip() for side in EQUALS.split(value)] for value in values]
    names = {name for name, _ in names_and_values}
    if len(names) > 1:
        return text
    return ", ".join(value for _, value in names_and_values)


# --- Brackets ------------------------------------------------------------------------------------


def bracket_step(sign: str) -> int:
    """1 for a bracket that opens, -1 for one that closes, 0 for any other sign."""
    if sign in "([{":
        return 1
    return -1 if sign in ")]}" else 0


def is_balanced(text: str) -> bool:
    """Does every bracket close? With whichever kind: the interval [1, 2) closes too.

    >>> is_balanced("[1, 2)"), is_balanced("(1"), is_balanced(")(")
    (True, False, False)
    """
    depth = 0
    for sign in text:
        depth += bracket_step(sign)
        if depth < 0:
            return False
    return depth == 0


def all_close(text: str) -> bool:
    """Does every bracket close with its own kind? Stricter than `is_balanced`."""
    own_kind = all(text.count(opening) == text.count(close) for opening, close in BRACKETS)
    return own_kind and is_balanced(text)


BRACKETS = ["()", "[]", "{}"]


# --- Patterns ------------------------------------------------------------------------------------

EQUALS = re.compile(r"(?<![<>!])=")  # not the sign of "x <= 3"
NAMED_VALUE = re.compile(r"\s*[A-Za-z]\w*(?:\(\w\))?\s*(?<![<>!])=[^=]+")  # "p = 5", "f(n) = 5"
SET = re.compile(  # "{1, 2}", "\{1, 2\}", "x \in \{1, 2\}"
    r"(?:[A-Za-z]\s*(?:=|\\in)\s*)?\\?\{(.*?)\\?\}", re.DOTALL
)
AND_OR = re.compile(  # between two values: ",", " or ", ", and "
    r"""\s* (?: , | ; | \\vee | \\wedge | \b(?:and|or)\b )
        (?: \s* (?: , | ; | \b(?:and|or)\b ) )* \s*
    """,
    re.IGNORECASE | re.VERBOSE,
)
