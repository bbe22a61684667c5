r"""An answer that begins with the letter of an option, and what may follow the letter.

One answer through the file, where B is "dog":

    "**(B)** because it barks"       an answer; `choice.py` takes the marks off
    letter B, marked, rest           `read_start`: brackets, a point or "option" mark a letter
    "because it barks"               what follows: B's own text? another letter? a remark?
    Option("B", "letter with a remark")

The rest decides whether the letter is meant:

    nothing                          B
    "dog"                            B         its own text
    "because it barks"               B         a remark
    "or C", "and C", ", (C)"         none      several options
    "cat"                            none      the text of another option
    "is wrong"                       none      the letter is taken back
    "big dog", behind a bare "a"     none      the letter was an article
"""

import re
from dataclasses import dataclass, replace

from rewards.expression import is_value
from rewards.options import (
    ANOTHER_TEXT,
    ANOTHER_VALUE,
    LETTERS,
    NEGATED,
    NO_OPTION,
    SEVERAL,
    Option,
    by_value,
    is_text_of,
    letters_of,
)
from rewards.typesetting import plain


@dataclass(frozen=True)
class Start:
    """How an answer begins: `(b) dog` is letter B, in lower case, marked, and the rest "dog"."""

    letter: str
    is_lower: bool
    is_marked: bool
    rest: str


def by_letter(text: str, choices: list[str]) -> Option:
    """The option whose letter an answer begins with.

    text    not empty, without marks of Markdown and LaTeX

    >>> animals = ["cat", "dog", "a bird"]
    >>> by_letter("(B) dog", animals).letter, by_letter("B because it barks", animals).letter
    ('B', 'B')
    >>> by_letter("B or C", animals).how, by_letter("B. cat", animals).how
    ('several options', 'letter and text of different options')
    >>> by_letter("E", animals).how, by_letter("a big dog", animals).how
    ('no such letter', 'no option')
    """
    if is_text_of(text[1:], LETTERS.find(text[0]), choices):  # "B dog", and "E2" where E is "2"
        return Option(text[0], "letter with its text")

    start = read_start(text)
    if start is None:
        return NO_OPTION
    if start.letter not in letters_of(choices):
        is_meant = start.is_marked or not start.rest  # "(E)", but not the first word of "I see"
        return Option(None, "no such letter") if is_meant else NO_OPTION
    if is_text_of(start.rest, LETTERS.index(start.letter), choices):  # "B. dog"
        return Option(start.letter, "letter with its text")

    rest = without_repetition(start.letter, start.rest)
    if ANOTHER.match(rest):  # "B, C"
        return SEVERAL
    if not rest:
        return Option(start.letter, "letter")
    if re.match(r"(?:or|and|nor)\b", rest):  # "B or the dog"
        return SEVERAL
    if start.is_lower and not start.is_marked:  # "a big dog"
        return NO_OPTION
    return by_words(replace(start, rest=rest), choices)


def read_start(text: str) -> Start | None:
    """The letter that an answer begins with; None if it begins with something else.

    >>> read_start("option B: it barks")
    Start(letter='B', is_lower=False, is_marked=True, rest='it barks')
    >>> read_start("Bob"), read_start("B/2")
    (None, None)
    """
    match = START.match(text)
    if match is None:
        return None
    return Start(
        letter=match["letter"].upper(),
        is_lower=match["letter"].islower(),
        is_marked=bool(match["open"].strip() or match["close"] or match["stop"]),
        rest=text[match.end() :].strip(),
    )


def without_repetition(letter: str, rest: str) -> str:
    """What follows the same letter: nothing in `B, (B)`."""
    again = ANOTHER.match(rest)
    while again is not None and again["letter"] == letter:
        rest = rest[again.end() :]
        again = ANOTHER.match(rest)
    return rest


# --- Words behind the letter ---------------------------------------------------------------------


def by_words(start: Start, choices: list[str]) -> Option:
    """A letter and words. They must not be the text or the value of another option.

    Only the first clause is read: "B. dog. A cat would meow" names B.
    """
    index = LETTERS.index(start.letter)
    clause = CLAUSE_END.split(start.rest, maxsplit=1)[0]
    words = re.sub(r"^[\s:,;.()\[\]-]+", "", clause)  # without its opening punctuation

    if any(is_text_of(part, index, choices) for part in (clause, words, start.rest)):
        return Option(start.letter, "letter with its text")
    for other in range(len(choices)):
        if is_text_of(words, other, choices) or is_text_of(start.rest, other, choices):
            return ANOTHER_TEXT

    named = by_its_value(start.letter, words, choices)
    if named != NO_OPTION:
        return named
    return by_remark(start, clause, words, choices)


def by_its_value(letter: str, words: str, choices: list[str]) -> Option:
    """A letter and a value, where the option is a value too.

    >>> by_its_value("B", "5, as x = 5", ["3 cm", "5 cm"]).letter
    'B'
    >>> by_its_value("B", "7", ["3 cm", "5 cm"]).how, by_its_value("B", "7", ["cat", "dog"]).how
    ('letter and another value', 'no option')
    """
    index = LETTERS.index(letter)
    value = VALUE_END.split(words, maxsplit=1)[0].strip()
    if index >= len(choices) or not is_value(value) or not is_value(str(choices[index])):
        return NO_OPTION
    if by_value(value, choices).letter == letter:
        return Option(letter, "letter with its value")
    return ANOTHER_VALUE


def by_remark(start: Start, clause: str, words: str, choices: list[str]) -> Option:
    """A letter and a remark, which must neither take it back nor name another letter.

    clause, words    the first clause of the remark, with and without its opening punctuation
    """
    with_remark = Option(start.letter, "letter with a remark")
    excluded = NOT_ANOTHER.match(words)
    if excluded is not None and excluded["letter"] != start.letter:  # "B, not C"
        return with_remark

    index = LETTERS.index(start.letter)
    own_text = plain(choices[index]) if index < len(choices) else ""
    if TAKEN_BACK.match(words) and not own_text.startswith("not"):  # "B is wrong"
        return NEGATED

    others = {letter.upper() for letter in BRACKETED.findall(clause)} - {start.letter}
    if others or AND_ANOTHER.search(clause):  # "B, though (C) fits"
        return SEVERAL

    is_remark = start.is_marked or REMARK.match(start.rest)
    return with_remark if is_remark else NO_OPTION  # "B flat" is a note


# --- Patterns ------------------------------------------------------------------------------------

START = re.compile(  # a letter that stands first, with its marks
    r"""(?P<open>
            (?: (?:the\s+)? (?:option|choice|letter|answer|选项) \s*:?\s* )?    # "option B"
            [(\[（<]? \s* )                                                     # "(B"
        (?P<letter> [A-Ja-j] )
        (?P<close> \s*[)\]）>] )?                                               # "B)"
        (?P<stop> [.:、．：](?!\d)                                               # "B.", not "B.5"
          | (?<=[)\]）])
          | (?![\w'’/^=+*<>\\-]) )                                              # not "Bob", "B/2"
        \s*
    """,
    re.IGNORECASE | re.VERBOSE,
)
ANOTHER = re.compile(  # one more letter: "and C", ", (C)", "/C"
    r"""(?: \s* (?: [,;&/、和或] | \band\b | \bor\b | \bnor\b | \bboth\b ) )* \s*
        (?:option\s*)? [(\[]? (?P<letter>[A-J]) [)\]]?
        (?= \s* (?: $ | [.,;&/)] | and\b | or\b | both\b                        # and it ends here,
              | [(\[]?[A-J](?![\w']) ) )                                        # or a third follows
    """,
    re.VERBOSE,
)
CLAUSE_END = re.compile(r"(?<=[^\d\s])[.;。]\s|\n")
VALUE_END = re.compile(r"[,;](?=\s)|\b(?:which|because|since|where|as)\b")  # "5, as", "5 because"
REMARK = re.compile(  # what may follow a letter without a mark: "B because it barks"
    r"""because | since | as\b | with\b | which | that\b | due | for\b | is\b | was\b | in\b
      | [,;(\[=$“\"—–，。；（-]
    """,
    re.IGNORECASE | re.VERBOSE,
)
NOT_ANOTHER = re.compile(r"(?:and\s+)?not\s+(?:option\s*)?[(\[]?(?P<letter>[A-J])\b")  # "not C"
AND_ANOTHER = re.compile(r"\b(?:or|and|nor)\s+(?:option\s*)?[(\[]?[A-J][)\]]?\s*(?:$|[.,])")
TAKEN_BACK = re.compile(  # "is wrong"
    r"(?:is|was)?\s*(?:not\b|wrong|incorrect|false)|isn't|不", re.IGNORECASE
)
BRACKETED = re.compile(r"[(\[（]\s*([A-J])\s*[)\]）]", re.IGNORECASE)  # "(B)"
