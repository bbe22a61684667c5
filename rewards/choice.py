r"""Which option an answer names: by letter, by its text, or by its value.

The answers to a question with the options A "cat", B "dog", C "$\frac{3}{4}$", in the order in
which `read_option` tries them:

    1. "B"                              one letter and nothing else    `label_in`
    2. "dog", "a dog"                   a text and nothing else        `options.by_whole_text`
    3. "(B)", "B. dog", "B, since ..."  a letter in front              `letters.by_letter`
    4. "dog (B)"                        a letter behind its text       `by_text_and_letter`
    5. "0.75"                           the value of one option        `options.by_value`

NO_OPTION lets the next one try; every other `Option` ends the search. An answer that names two
options, or takes an option back, names none: its `Option` says why. A whole sentence is
searched for the text of an option by `named_in`, where an extraction rule asks for it.
"""

import re

from rewards.expression import is_value
from rewards.letters import BRACKETED, by_letter
from rewards.options import (
    ANOTHER_TEXT,
    ANOTHER_VALUE,
    BY_LETTER,
    BY_LETTER_BEHIND,
    BY_TEXT,
    EMPTY,
    LETTER,
    LETTERS,
    NEGATED,
    NO_OPTION,
    SEVERAL,
    Option,
    are_other_letters,
    by_value,
    by_whole_text,
    letters_of,
)
from rewards.typesetting import plain, strip_marks

LONGEST_WITH_LETTER = 300  # characters of an answer that ends in its letter
SHORTEST_TEXT = 3  # characters of an option that a sentence may name


# --- The answer and the gold ---------------------------------------------------------------------


def read_option(text: str, choices: list[str]) -> Option:
    """The one option that an answer names.

    Trap: searching the gold inside the answer would pass "A B C D", and an empty answer
    (test_choice_cases).

    >>> [read_option(text, ["cat", "dog"]).letter for text in ("B", "(b)", "a dog", "dog (B)")]
    ['B', 'B', 'B', 'B']
    >>> [read_option(text, ["cat", "dog"]).letter for text in ("A or B", "dog (A)", "not B")]
    [None, None, None]
    """
    text = strip_marks(text)
    if not text:
        return EMPTY

    label = label_in(text, choices)
    if label is not None:
        return Option(label, BY_LETTER)

    for named_by in (by_whole_text, by_letter, by_text_and_letter, by_value):
        option = named_by(text, choices)
        if option != NO_OPTION:
            return option
    return NO_OPTION


def gold_letter(gold: str, choices: list[str]) -> str | None:
    """The gold is a letter or, as in MathVista, an option's text; None if it is neither.

    A letter is read as `read_option` reads it, so that the same letter is right as an answer.

    >>> gold_letter("(B)", ["cat", "dog"]), gold_letter("dog", ["cat", "dog"])
    ('B', 'B')
    >>> gold_letter("E", ["K", "E", "N"]), gold_letter("E", ["cat", "dog"])
    ('B', None)
    """
    if len(gold.strip()) > 1 and gold in choices:
        return LETTERS[choices.index(gold)]
    label = label_in(gold.strip().strip("()."), choices)
    return label or by_whole_text(gold.strip(), choices).letter


def label_in(text: str, choices: list[str]) -> str | None:
    """The option that a single letter labels; None if the text is no letter of an option.

        options       "B" is
        cat, dog      the label of dog
        C, A, B       the label of A: options that are A, B, C in another order are not read
        B, G, O, R    None, the text of the first: its options are other letters
        K, E, N       the label of E; "E" itself is None, a text

    >>> label_in("b", ["cat", "dog"]), label_in("E", ["cat", "dog"])
    ('B', None)
    >>> label_in("B", ["C", "A", "B"]), label_in("B", ["B", "G", "O", "R"])
    ('B', None)
    """
    letter = text.upper()
    if len(letter) != 1 or letter not in letters_of(choices):
        return None
    is_text = by_whole_text(text, choices).letter is not None
    if is_text and are_other_letters(choices):
        return None
    return letter


# --- Text with the letter behind -----------------------------------------------------------------


def by_text_and_letter(text: str, choices: list[str]) -> Option:
    """A letter in brackets at the end. The words before it must not speak of another option.

    >>> by_text_and_letter("dog (B)", ["cat", "dog"]).letter
    'B'
    >>> by_text_and_letter("cat (B)", ["cat", "dog"]).how
    'letter and text of different options'
    >>> by_text_and_letter("it is not (B)", ["cat", "dog"]).how
    'negation'
    >>> by_text_and_letter("what I want (B)", ["cat", "dog"]).letter
    'B'
    """
    match = LETTER_BEHIND.fullmatch(text)
    if match is None or len(text) > LONGEST_WITH_LETTER:
        return NO_OPTION
    words, letter = match["words"], match["letter"].upper()
    if letter not in letters_of(choices):
        return NO_OPTION

    by_text = by_whole_text(words, choices)
    if by_text.letter not in (None, letter):  # "cat (B)"
        return ANOTHER_TEXT
    if BRACKETED.search(words):  # "(A) or (B)"
        return SEVERAL
    if by_text.letter == letter:  # "dog (B)"
        return Option(letter, BY_LETTER_BEHIND)

    if DENIES.search(words):  # "it is not (B)"
        return NEGATED
    if NEGATIVE.search(words):  # "no cat, but (B)": who knows what is denied? Other rules may try.
        return NO_OPTION
    if is_value(words) and by_value(words, choices).letter != letter:  # "7 cm (B)" where B is 5 cm
        return ANOTHER_VALUE
    return Option(letter, BY_LETTER_BEHIND)  # "the animal that barks (B)"


# --- Text in a sentence --------------------------------------------------------------------------


def named_in(sentence: str, choices: list[str]) -> Option:
    """The one option whose text stands in a sentence.

    Several texts, or a "not" in the sentence, name no option.

    >>> colours = ["red", "dark red", "blue"]
    >>> named_in("We see a dark red ball.", colours).letter
    'B'
    >>> named_in("It is red or blue.", colours).how, named_in("It is not red.", colours).how
    ('several options', 'negation')
    """
    remaining = f" {plain(without_marks(sentence))} "  # the sentence without the texts found so far
    found = []
    longest_first = sorted(range(len(choices)), key=lambda i: -len(str(choices[i])))
    for i in longest_first:  # "dark red" is taken out before "red" is looked for
        words = plain(without_marks(choices[i]))
        if not is_searchable(words):
            continue
        pattern = re.compile(rf"(?<![\w-]){re.escape(words)}(?![\w-])")
        if pattern.search(remaining):
            found.append(i)
            remaining = pattern.sub(" ", remaining)

    if len(found) > 1:  # the short ones count here: "up and down" names two
        return SEVERAL
    if not found or is_too_short(choices[found[0]]):
        return NO_OPTION
    return NEGATED if NEGATIVE.search(remaining) else Option(LETTERS[found[0]], BY_TEXT)


def without_marks(text: str) -> str:
    """Without the `*` of bold type and the `$` of mathematics."""
    return re.sub(r"[*$]", "", text)


def is_searchable(words: str) -> bool:
    """Are these words distinctive enough to look for in a sentence?

    A letter, a number or LaTeX is not.
    """
    num_letters = len(re.findall(r"[a-z\u4e00-\u9fff]", words))
    return num_letters >= 2 and "\\" not in words


def is_too_short(choice: str) -> bool:
    """Is it a text like "no" or "up", which a sentence may hold without naming the option?"""
    return len(plain(choice)) < SHORTEST_TEXT


# --- Patterns ------------------------------------------------------------------------------------

NEGATIVE = re.compile(  # a word that may turn a sentence into its opposite
    r"""\b(?: no | not | never | neither | nor | none | cannot | without | except
            | wrong | incorrect | false | unlikely )\b
      | n't\b | 不 | 非 | 没
    """,
    re.IGNORECASE | re.VERBOSE,
)
DENIES = re.compile(  # right before the letter: "it is not (B)", "it isn’t the option (B)"
    r"(?:\b(?:not|never|neither|nor|cannot be|(?:is|was|does|did|ca)n'?t(?: be)?)|不是)"
    r"(?:\s+(?:the|an?|option|answer|choice))*\s*$",
    re.IGNORECASE,
)
LETTER_BEHIND = re.compile(  # "dog (B)"
    rf"(?P<words>.+?)\s*[(\[（](?:option\s*)?(?P<letter>{LETTER})[)\]）]", re.IGNORECASE | re.DOTALL
)
