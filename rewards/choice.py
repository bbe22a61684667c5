r"""Which option an answer names: by letter, by its text, or by its value.

    "B", "(B)", "B. dog", "option B", "**B**, since it barks"     by letter
    "dog", "a dog", "dog (B)"                                     by text
    "0.75" where option C is "$\frac{3}{4}$"                      by value, if one option has it

Several different options, a negation, or a letter beside the text of another option name nothing:
a lucky pick among them would be paid for.
"""

import re
from dataclasses import dataclass

from rewards.expression import has_letters, is_value, same_expression
from rewards.number import read_number, same_number
from rewards.typesetting import comparable, plain, strip_marks

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Option:
    letter: str | None
    how: str  # how it was named, or why it is none


NO_OPTION = Option(None, "no option")
SEVERAL = Option(None, "several options")
NEGATED = Option(None, "negation")
ANOTHER_TEXT = Option(None, "letter and text of different options")
ANOTHER_VALUE = Option(None, "letter and another value")

NEGATIVE = re.compile(
    r"""\b(?:no|not|never|neither|nor|none|cannot|without|except
            |wrong|incorrect|false|unlikely)\b
        | n't\b | 不 | 非 | 没""",
    re.IGNORECASE | re.VERBOSE,
)
START = re.compile(  # a letter that stands first, with its marks
    r"""(?P<open>
            (?:(?:the\s+)?(?:option|choice|letter|answer|选项)\s*:?\s*)?    # "option B"
            [(\[（<]?\s*)                                                   # "(B"
        (?P<letter>[A-Ja-j])
        (?P<close>\s*[)\]）>])?                                             # "B)"
        (?P<stop>[.:、．：](?!\d)                                            # "B.", not "B.5"
            | (?<=[)\]）])
            | (?![\w'’/^=+*<>\\-]))                                         # not "Bob", "B/2"
        \s*""",
    re.IGNORECASE | re.VERBOSE,
)
REMARK = re.compile(  # what may follow a letter without a mark: "B because it barks"
    r"""because | since | as\b | with\b | which | that\b | due | for\b | is\b | was\b | in\b
        | [,;(\[=$“\"—–，。；（-]""",
    re.IGNORECASE | re.VERBOSE,
)
ANOTHER = re.compile(  # one more letter: "and C", ", (C)", "/C"
    r"""(?:\s*(?:[,;&/、和或]|\band\b|\bor\b|\bnor\b|\bboth\b))*\s*
        (?:option\s*)?[(\[]?(?P<letter>[A-J])[)\]]?
        (?=\s*(?:$|[.,;&/)]|and\b|or\b|both\b|[(\[]?[A-J](?![\w'])))""",
    re.VERBOSE,
)
AND_ANOTHER = re.compile(r"\b(?:or|and|nor)\s+(?:option\s*)?[(\[]?[A-J][)\]]?\s*(?:$|[.,])")
NOT_ANOTHER = re.compile(r"(?:and\s+)?not\s+(?:option\s*)?[(\[]?([A-J])\b")  # "B, not C"
TAKEN_BACK = re.compile(  # "B is wrong"
    r"(?:is|was)?\s*(?:not\b|wrong|incorrect|false)|isn't|不", re.IGNORECASE
)
BRACKETED = re.compile(r"[(\[（]\s*([A-J])\s*[)\]）]", re.IGNORECASE)  # "(B)"
LETTER_BEHIND = re.compile(  # "dog (B)"
    r"(.+?)\s*[(\[（](?:option\s*)?([A-J])[)\]）]", re.IGNORECASE | re.DOTALL
)


# --- Options -------------------------------------------------------------------------------------


def is_text_of(text: str, index: int, choices: list[str]) -> bool:
    """Is it the text of this option?"""
    if not 0 <= index < len(choices) or not comparable(choices[index]):
        return False
    return comparable(text) == comparable(choices[index])


def letters_of(choices: list[str]) -> str:
    return LETTERS[: len(choices)] if choices else LETTERS


def are_other_letters(choices: list[str]) -> bool:
    """Options that are letters themselves, but not A, B, C ... in some order: "K", "E", "N"."""
    texts = {strip_marks(str(choice)) for choice in choices}
    return all(len(text) == 1 for text in texts) and not texts <= set(letters_of(choices))


# --- The gold and the answer ---------------------------------------------------------------------


def gold_letter(gold: str, choices: list[str]) -> str | None:
    """The gold is a letter or, as in MathVista, an option's text; None if it is neither."""
    if len(gold.strip()) > 1 and gold in choices:
        return LETTERS[choices.index(gold)]

    letter = gold.strip().strip("().").upper()
    if len(letter) == 1 and letter in LETTERS:
        return letter

    texts = [plain(choice) for choice in choices]
    return LETTERS[texts.index(plain(gold))] if plain(gold) in texts else None


def read_option(text: str, choices: list[str]) -> Option:
    """The one option that an answer names.

    Trap: searching the gold inside the answer would pass "A B C D", and an empty answer
    (test_choice_cases).
    """
    text = strip_marks(text)
    if not text:
        return Option(None, "empty")

    found = by_whole_text(text, choices)
    is_letter = len(text) == 1 and text.upper() in letters_of(choices)
    if is_letter and not (found.letter and are_other_letters(choices)):
        return Option(text.upper(), "letter")  # a bare letter is one, as it is in the gold
    if found.letter is not None:
        return found

    found = by_letter(text, choices)
    if found == NO_OPTION:
        found = by_text_and_letter(text, choices)
    if found == NO_OPTION:
        found = by_value(text, choices)
    return found


# --- By text -------------------------------------------------------------------------------------


def by_whole_text(text: str, choices: list[str]) -> Option:
    """The answer is an option's text and nothing else; an article in front does not matter."""
    without_article = re.sub(r"^(?:the|an?)\s+", "", text, flags=re.IGNORECASE)
    for variant in (text, without_article):
        same = [i for i in range(len(choices)) if is_text_of(variant, i, choices)]
        if re.fullmatch(r"\W*[A-J]\W*", variant):  # "(E)" is a letter, though an option is "(e)"
            same = [i for i in same if re.search(r"[A-Z]", str(choices[i]))]
        if same:  # two options may read alike: the first, as in `gold_letter`
            return Option(LETTERS[same[0]], "option's text")
    return NO_OPTION


def by_text_and_letter(text: str, choices: list[str]) -> Option:
    """An option's text with its letter behind: "dog (B)"."""
    match = LETTER_BEHIND.fullmatch(text)
    if match is None or match[2].upper() not in letters_of(choices) or len(text) > 300:
        return NO_OPTION

    words, letter = match[1], match[2].upper()
    said = by_whole_text(words, choices)
    if said.letter not in (None, letter):
        return ANOTHER_TEXT
    if BRACKETED.search(words):
        return SEVERAL
    if said.letter is None and NEGATIVE.search(words):
        return NO_OPTION
    if said.letter is None and is_value(words) and by_value(words, choices).letter != letter:
        return ANOTHER_VALUE
    return Option(letter, "letter in brackets")


def named_in(sentence: str, choices: list[str]) -> Option:
    """The one option whose text stands in a sentence; none if several do, or after a "not"."""
    text = f" {plain(re.sub(r'[*$]', '', sentence))} "
    found = []
    longest_first = sorted(enumerate(choices), key=lambda pair: -len(str(pair[1])))
    for i, choice in longest_first:  # "dark red" before "red"
        words = plain(re.sub(r"[*$]", "", choice))
        if len(re.findall(r"[a-z\u4e00-\u9fff]", words)) < 2 or "\\" in words:
            continue
        pattern = re.compile(rf"(?<![\w-]){re.escape(words)}(?![\w-])")
        if pattern.search(text):
            found.append(i)
            text = pattern.sub(" ", text)

    if len(found) > 1:
        return SEVERAL
    if not found or len(plain(choices[found[0]])) < 3:  # "no", "up": too short to be meant
        return NO_OPTION
    return NEGATED if NEGATIVE.search(text) else Option(LETTERS[found[0]], "option's text")


# --- By letter -----------------------------------------------------------------------------------


def by_letter(text: str, choices: list[str]) -> Option:
    """The answer begins with a letter; what follows is nothing, its own text, or a remark."""
    if is_text_of(text[1:], LETTERS.find(text[0]), choices):
        return Option(text[0], "letter with its text")  # "E2", "B dog"
    start = START.match(text)
    if start is None:
        return NO_OPTION

    letter, rest = start["letter"].upper(), text[start.end() :].strip()
    marked = bool(start["open"].strip() or start["close"] or start["stop"])
    if letter not in letters_of(choices):
        return Option(None, "no such letter") if marked or not rest else NO_OPTION
    if is_text_of(rest, LETTERS.index(letter), choices):
        return Option(letter, "letter with its text")

    other = ANOTHER.match(rest)
    while other is not None and other["letter"] == letter:  # "B, (B)"
        rest = rest[other.end() :]
        other = ANOTHER.match(rest)
    if other is not None:
        return SEVERAL
    if not rest:
        return Option(letter, "letter")
    if re.match(r"(?:or|and|nor)\b", rest):
        return SEVERAL
    if start["letter"].islower() and not marked:  # "a dog"
        return NO_OPTION
    return letter_and_words(letter, rest, marked, choices)


def letter_and_words(letter: str, rest: str, marked: bool, choices: list[str]) -> Option:
    """A letter and words: they must not be another option's text or value."""
    index = LETTERS.index(letter)
    clause = re.split(r"(?<=[^\d\s])[.;。]\s|\n", rest, maxsplit=1)[0]
    core = re.sub(r"^[\s:,;.()\[\]-]+", "", clause)
    if any(is_text_of(words, index, choices) for words in (clause, core, rest)):
        return Option(letter, "letter with its text")

    for other in range(len(choices)):
        if is_text_of(core, other, choices) or is_text_of(rest, other, choices):
            return ANOTHER_TEXT

    value = re.split(r"[,;](?=\s)|\b(?:which|because|since|where|as)\b", core, maxsplit=1)[0]
    if index < len(choices) and is_value(value.strip()) and is_value(str(choices[index])):
        if by_value(value.strip(), choices).letter == letter:
            return Option(letter, "letter with its value")
        return ANOTHER_VALUE
    own_text = plain(choices[index]) if index < len(choices) else ""
    return letter_and_remark(letter, clause, core, marked or bool(REMARK.match(rest)), own_text)


def letter_and_remark(letter: str, clause: str, core: str, allowed: bool, own_text: str) -> Option:
    """A letter and a remark, which must neither take it back nor name another letter.

    core       the clause without its opening punctuation
    allowed    the letter has a mark, or the remark begins like one
    """
    with_remark = Option(letter, "letter with a remark")
    excluded = NOT_ANOTHER.match(core)
    if excluded is not None and excluded[1] != letter:  # "B, not C"
        return with_remark
    if TAKEN_BACK.match(core) and not own_text.startswith("not"):
        return NEGATED

    others = {other.upper() for other in BRACKETED.findall(clause)} - {letter}
    if others or AND_ANOTHER.search(clause):
        return SEVERAL
    return with_remark if allowed else NO_OPTION


# --- By value ------------------------------------------------------------------------------------


def by_value(text: str, choices: list[str]) -> Option:
    """The answer equals exactly one option, as a number or as an expression."""
    if len(text) > 100 or not is_value(text):
        return NO_OPTION
    same = same_numbers(text, choices) or same_expressions(text, choices)
    if not same:
        return NO_OPTION
    if len({comparable(choices[i]) for i in same}) > 1:
        return SEVERAL
    return Option(LETTERS[same[0]], "option's value")


def same_numbers(text: str, choices: list[str]) -> list[int]:
    """Indices of the options that are this number; exactly equal ones before rounded ones."""
    number = read_number(text)
    if number is None:
        return []
    numbers = [None if "=" in choice else read_number(choice) for choice in choices]
    same = [i for i, other in enumerate(numbers) if other and same_number(number, other)[0]]
    exact = [i for i in same if numbers[i].value == number.value]
    return exact or same


def same_expressions(text: str, choices: list[str]) -> list[int]:
    """Indices of the options that are this expression. A number is no algebra: 4 is not 4x."""
    is_number = read_number(text) is not None
    same = []
    for i, choice in enumerate(choices):
        if not is_value(choice) or read_number(choice) is not None:
            continue
        if ("=" in text) != ("=" in choice) or (is_number and has_letters(choice)):
            continue
        if same_expression(text, choice)[0] is True:
            same.append(i)
    return same
