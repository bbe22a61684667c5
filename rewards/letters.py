r"""An answer that begins with the letter of an option, and what may follow the letter.

One answer through the file, where B is "dog":

    "**(B)** because it barks"             an answer; `choice.py` takes the marks off
    letter B, marked                       `read_start`: brackets, a point or "option" mark a letter
    rest "because it barks"                a remark, which does not take B back
    Option("B", "letter with a remark")

What follows the letter decides whether it is meant. These rows are tried in order, with options A
"cat", B "dog", C "a bird" (a test reads the table):

    by_letter
         1. "B dog", "B. dog"                  B       its own text, right behind the letter
         2. "Bob"                              none    this is not a letter
         3. "E"                                none    no option has this letter
         4. "(B) dog", "b. dog"                B       its own text, behind a letter with marks
         5. "A. cat B. dog", "B. dog, cat"     none    several options
    by_rest
         6. "B, C", "b, c"                     none    several options
         7. "B", "B, (B)", "b, b"              B       nothing else
         8. "B or the dog"                     none    several options
         9. "a big dog"                        none    a word, not option A
    by_words
        10a. "B. The dog. It barks."           B       its own text, and more
        10b. "B. The cat"                      none    the text of another option
        10c. "B, 5.0 cm"                       B       its own value, where B is "5 cm"
    by_remark
        10d. "B, not C"                        B       another letter is excluded; what follows is
                                                       not read
        10e. "B is wrong"                      none    the letter is taken back
        10f. "B, though (C) fits"              none    several options
        10g. "B because it barks"              B       a remark
        10h. "B flat"                          none    a name that begins with the letter
"""

import re
from dataclasses import dataclass, replace

from rewards.expression import is_value
from rewards.options import (
    ANOTHER_TEXT,
    ANOTHER_VALUE,
    BY_LETTER,
    BY_LETTER_AND_REMARK,
    BY_LETTER_AND_TEXT,
    BY_LETTER_AND_VALUE,
    LETTER,
    LETTERS,
    NEGATED,
    NO_OPTION,
    NO_SUCH_LETTER,
    SEVERAL,
    Option,
    after_list,
    are_texts,
    by_value,
    is_text_but_for_articles,
    is_text_of,
    letters_of,
)
from rewards.typesetting import plain


@dataclass(frozen=True)
class Start:
    """How an answer begins, and what follows. Of `b, the dog. It barks.`:

    letter       B
    is_lower     True: it was written "b"
    is_marked    False; True for "(b)", "b." and "option b"
    rest         ", the dog. It barks."
    clause       ", the dog"               the rest up to the end of its first sentence
    words        "the dog"                 the clause without its opening punctuation
    """

    letter: str
    is_lower: bool
    is_marked: bool
    rest: str

    @property
    def clause(self) -> str:
        return CLAUSE_END.split(self.rest, maxsplit=1)[0]

    @property
    def words(self) -> str:
        # The sign of "-5" and the point of ".5" belong to the value.
        return re.sub(r"^(?:[\s:,;()\[\]]|[.-](?!\.?\d))+", "", self.clause)


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
    >>> by_letter("A) -5 m, as it falls", ["-5 m", "5 m"]).letter
    'A'
    """
    # 1. "B dog", and "E2" where E is "2".
    letter = text[0]
    if letter in LETTERS and is_text_of(text[1:], LETTERS.index(letter), choices):
        return Option(letter, BY_LETTER_AND_TEXT)

    # 2. "Bob" does not begin with a letter of its own.
    start = read_start(text)
    if start is None:
        return NO_OPTION

    # 3. "(E)" is meant as a letter; the "I" of "I see" is not.
    if start.letter not in letters_of(choices):
        is_meant = start.is_marked or not start.rest
        return NO_SUCH_LETTER if is_meant else NO_OPTION

    # 4. "(B) dog"
    if is_text_of(start.rest, LETTERS.index(start.letter), choices):
        return Option(start.letter, BY_LETTER_AND_TEXT)

    # 5. "A. cat B. dog", "B. dog, cat"
    if after_list(text, choices) is not None or are_texts(start.clause, choices):
        return SEVERAL

    # 6. to 10.
    return by_rest(start, choices)


def by_rest(start: Start, choices: list[str]) -> Option:
    """A letter of an option, and what follows that is not the option's own text."""
    # 6. "B, C"
    rest = without_repetition(start.letter, start.rest)
    if ANOTHER.match(rest):
        return SEVERAL

    # 7. "B", and "B, (B)"
    if not rest:
        return Option(start.letter, BY_LETTER)

    # 8. "B or the dog"; "B and not C" is left to 10d.
    if re.match(r"(?:or|and(?!\s+not\b)|nor)\b", rest):
        return SEVERAL

    # 9. In "a big dog" the letter is a word, as in "i see it" where there is an option I. In "b
    # since it barks" it is a letter.
    if start.is_lower and start.letter in "AI" and not start.is_marked:
        return NO_OPTION

    # 10a. to 10h.
    return by_words(replace(start, rest=rest), choices)


def read_start(text: str) -> Start | None:
    """The letter that an answer begins with; None if the answer begins with something else.

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
    """What follows the same letter: nothing in `B, (B)` and in `b, b`."""
    again = ANOTHER.match(rest)
    while again is not None and again["letter"].upper() == letter:
        rest = rest[again.end() :]
        again = ANOTHER.match(rest)
    return rest


# --- Words behind the letter ---------------------------------------------------------------------


def by_words(start: Start, choices: list[str]) -> Option:
    """A letter and words. The words must not be the text or the value of another option.

    The option's text is looked for in the first clause, and in everything that follows, as an
    option may have several sentences. Values and remarks are read in the first clause only:
    "B. dog. A cat would meow" names B.
    """
    # First with articles, since "a book" and "the book" may be two options; then without them.
    for is_text in (is_text_of, is_text_but_for_articles):
        # 10a. "B. The dog. It barks."
        index = LETTERS.index(start.letter)
        parts = (start.clause, start.words, start.rest)
        if any(is_text(part, index, choices) for part in parts):
            return Option(start.letter, BY_LETTER_AND_TEXT)

        # 10b. "B. The cat"
        for other in range(len(choices)):
            if is_text(start.words, other, choices) or is_text(start.rest, other, choices):
                return ANOTHER_TEXT

    # 10c. "B, 5.0 cm"
    by_its_value = by_letter_and_value(start.letter, start.words, choices)
    if by_its_value != NO_OPTION:
        return by_its_value

    # 10d. to 10h.
    return by_remark(start, choices)


def by_letter_and_value(letter: str, words: str, choices: list[str]) -> Option:
    """A letter and a value, where the option is a value too.

    >>> by_letter_and_value("B", "5, as x = 5", ["3 cm", "5 cm"]).letter
    'B'
    >>> by_letter_and_value("B", "7", ["3 cm", "5 cm"]).how
    'letter and another value'
    >>> by_letter_and_value("B", "7", ["cat", "dog"]).how
    'no option'
    """
    index = LETTERS.index(letter)
    value = VALUE_END.split(words, maxsplit=1)[0].strip()
    # Without known options every letter may be named, and none has a value.
    if index >= len(choices) or not is_value(value) or not is_value(str(choices[index])):
        return NO_OPTION
    if by_value(value, choices).letter == letter:
        return Option(letter, BY_LETTER_AND_VALUE)
    return ANOTHER_VALUE


def by_remark(start: Start, choices: list[str]) -> Option:
    """A letter and a remark, which must neither take the letter back nor name another letter.

    >>> animals = ["cat", "dog", "a bird"]
    >>> [by_letter(text, animals).how for text in ("(B) cannot be right", "B. That is wrong")]
    ['negation', 'negation']
    >>> [by_letter(text, animals).letter for text in ("B. It is no cat", "<B>dog", "B>2")]
    ['B', 'B', None]
    >>> by_letter("B. Cannot be known from it", ["1", "cannot be known"]).letter
    'B'
    """
    # 10d. "B, not C"
    with_remark = Option(start.letter, BY_LETTER_AND_REMARK)
    excluded = NOT_ANOTHER.match(start.words)
    if excluded is not None and excluded["letter"] != start.letter:
        return with_remark

    # 10e. "B is wrong", unless the option itself reads "not ..." or "cannot be determined".
    index = LETTERS.index(start.letter)
    own_text = plain(choices[index]) if index < len(choices) else ""
    if TAKEN_BACK.match(start.words) and not TAKEN_BACK.match(own_text):
        return NEGATED

    # 10f. "B, though (C) fits"
    named = BRACKETED.findall(start.clause) + WITH_WORD.findall(start.clause)
    others = {letter.upper() for letter in named} - {start.letter}
    if others or AND_ANOTHER.search(start.clause):
        return SEVERAL

    # 10g. "B because it barks"
    # 10h. Behind a letter without a mark, other words may make it a name: "B flat" is a note.
    is_remark = start.is_marked or REMARK.match(start.rest)
    return with_remark if is_remark else NO_OPTION


# --- Patterns ------------------------------------------------------------------------------------

START = re.compile(  # a letter that stands first, with its marks
    rf"""(?P<open>
            (?: (?:the\s+)? (?:option|choice|letter|answer|选项) \s*:?\s* )?    # "option B"
            [(\[（<]? \s* )                                                     # "(B"
        (?P<letter> {LETTER} )
        (?P<close> \s*[)\]）] | (?<=<{LETTER})> )?                               # "B)", "<B>"
        (?P<stop> [.:、．：](?!\d)                                               # "B.", not "B.5"
          | (?<=[)\]）>])
          | (?![\w'’/^=+*<>\\-]) )                                              # not "Bob", "B/2"
        \s*
    """,
    re.IGNORECASE | re.VERBOSE,
)
JOINED = r"(?: \s* (?: [,;&/、和或] | \band\b | \bor\b | \bnor\b | \bboth\b ) )* \s*"  # ", and"
A_THIRD = (  # " c", "(c)", "C" of "BC"; not the "f" of "if"
    rf"(?: (?: (?<=\s) | [(\[] ) {LETTER} | (?-i:{LETTER}) ) (?![\w'’-])"
)
NOTHING_OR_A_THIRD = rf"\s* (?: $ | [.,;&/)] | and\b | or\b | both\b | {A_THIRD} )"
ANOTHER = re.compile(  # one more letter: "and C", ", (c)", "/C"; not of "and Carl", ", e.g."
    rf"""{JOINED} (?:option\s*)? (?!e\.g\b|i\.e\b)
        [(\[]? (?P<letter>{LETTER}) [)\]]? (?={NOTHING_OR_A_THIRD})""",
    re.IGNORECASE | re.VERBOSE,
)
# The end of a sentence or of a line; not behind a digit, as in "5. is".
CLAUSE_END = re.compile(r"(?<=[^\d\s])[.;。]\s|\n")
VALUE_END = re.compile(r"[,;](?=\s)|\b(?:which|because|since|where|as)\b")  # "5, as", "5 because"
REMARK = re.compile(  # what may follow a letter without a mark: "B because it barks"
    r"""because | since | as\b | with\b | which | that\b | due | for\b | is\b | was\b | in\b
      | [,;(\[=$“\"—–，。；（-]
    """,
    re.IGNORECASE | re.VERBOSE,
)
NOT_ANOTHER = re.compile(  # "not C"; capitals only, for the sake of "not a cat"
    rf"(?:and\s+)?not\s+(?:option\s*)?[(\[]?(?P<letter>{LETTER})\b"
)
AND_ANOTHER = re.compile(  # "and C"
    rf"\b(?:or|and|nor)\s+(?:option\s*)?[(\[]?{LETTER}[)\]]?\s*(?:$|[.,])"
)
# Not "It is not a cat", which may say why the dog is meant. `n'?t`: "doesn’t" arrives as "doesnt",
# since its curved mark was taken off as a quote.
TAKEN_BACK = re.compile(
    r"""(?:is\s+|was\s+)? (?:not\b | wrong\b | incorrect\b | false\b)      # is wrong, not
      | (?:cannot | can'?t | won'?t | (?:does|did|could|would|will|is|was|has)(?:\s+not|n'?t)) \b
      | (?:that|this|it) (?:\s+is|\s+was|'s)
        (?: \s+(?:wrong|incorrect|false) | (?:\s+not|n'?t)\s+(?:right|correct|true) )\b
      | 不
    """,
    re.IGNORECASE | re.VERBOSE,
)
BRACKETED = re.compile(rf"[(\[（]\s*({LETTER})\s*[)\]）]", re.IGNORECASE)  # "(B)"
WITH_WORD = re.compile(  # "option B", "choice c"; not "the option I prefer", "a choice a vet makes"
    r"\b(?i:option|choice)\s+(?![aiI]\b)([A-Ja-j])\b"
)
