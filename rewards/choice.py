"""Which option an answer names: by letter, by its text, or by its value.

    "B", "(B)", "B. dog", "**B**, since", "option B"     by letter; a text that follows must not be
    another option's "dog", "a dog", "dog (B)"                            by text
    "0.75" where option C is "$\\frac{3}{4}$"            by value, if exactly one option has it

Several different options, a negation, or a letter beside the text of another option name nothing.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from rewards.expression import (
    has_letters,
    same_expression,
    spell_out,
    split_unit,
    squeeze,
    words_of,
)
from rewards.number import read_number, same_number, tidy

LETTERS = "ABCDEFGHIJ"
SEVERAL = "several options"
NEGATION = re.compile(
    r"\b(?:no|not|never|neither|nor|none|cannot|without|except|wrong|incorrect|false|unlikely)\b|n't\b|"
    r"不|非|没",
    re.IGNORECASE,
)
START = re.compile(  # a letter that stands first, with its marks
    r"(?P<open>(?:(?:the\s+)?(?:option|choice|letter|answer|选项)\s*:?\s*)?[(\[（<]?\s*)(?P<letter>[A-Ja-j])"
    r"(?P<close>\s*[)\]）>])?(?P<stop>[.:、．：](?!\d)|(?<=[)\]）])|(?![\w'’/^=+*<>\\-]))\s*",
    re.IGNORECASE,
)
REMARK = re.compile(
    r"because|since|as\b|with\b|which|that\b|due|for\b|is\b|was\b|in\b|[,;(\[=$“\"—–，。；（-]",
    re.IGNORECASE,
)
ANOTHER = re.compile(
    r"(?:\s*(?:,|;|&|/|、|和|或|\band\b|\bor\b|\bnor\b|\bboth\b))*\s*(?:option\s*)?[(\[]?(?P<letter>[A-J])[)\]]?"
    r"(?=$|\s*(?:$|[.,;&/)]|and\b|or\b|both\b|[(\[]?[A-J](?![\w'])))"
)
BRACKETED = re.compile(r"[(\[（]\s*([A-J])\s*[)\]）]", re.IGNORECASE)


@dataclass(frozen=True)
class Option:
    letter: str | None
    how: str  # how it was named, or why it is none


def plain(text: str) -> str:
    """Case, spacing and closing punctuation do not matter between words."""
    return " ".join(str(text).lower().split()).strip(" .,;:!?\"'")


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
    (test_choice_cases)."""
    text = strip_marks(text)
    if not text:
        return Option(None, "empty")
    found = by_whole_text(text, choices)
    if (
        len(text) == 1
        and text.upper() in letters_of(choices)
        and not (found.letter and are_other_letters(choices))
    ):
        return Option(text.upper(), "letter")  # a bare letter is one, as it is in the gold
    if found.letter is None:
        found = by_letter(text, choices)
    if found.letter is None and found.how == "no option":
        found = by_text_and_letter(text, choices)
    if found.letter is None and found.how == "no option":
        found = by_value(text, choices)
    return found


def letters_of(choices: list[str]) -> str:
    return LETTERS[: len(choices)] if choices else LETTERS


def are_other_letters(choices: list[str]) -> bool:
    """Options that are letters themselves, but not A, B, C ... in some order: "K", "E", "N", "G",
    "U"."""
    texts = {strip_marks(str(choice)) for choice in choices}
    return all(len(text) == 1 for text in texts) and not texts <= set(letters_of(choices))


def strip_marks(text: str) -> str:
    """Without Markdown, LaTeX wrappers and closing punctuation."""
    text = re.sub(r"\\boxed\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\[()\[\]]", " ", text)
    text = tidy(re.sub(r"\*+|__|[\"“”‘’「」]|~~", "", text))
    if re.fullmatch(r"\s*\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}\s*", text):
        text = text.strip()[1:-1]
    return tidy(text.strip(" \n\t$*:：'").strip()).strip(" .。,;，$'")


@lru_cache(maxsize=4096)
def comparable(text: str) -> str:
    """A text as it is compared with another: no spaces, no typesetting, no closing punctuation."""
    return (
        squeeze(re.sub(r"[*\"“”$]", "", str(text)).replace("\\", "\\"))
        .replace(" ", "")
        .lower()
        .strip(".,;:!?'()")
    )


def by_whole_text(text: str, choices: list[str]) -> Option:
    """The answer is an option's text and nothing else; an article in front does not matter."""
    for variant in (text, re.sub(r"^(?:the|an?)\s+", "", text, flags=re.IGNORECASE)):
        same = [i for i, choice in enumerate(choices) if comparable(choice) == comparable(variant)]
        if re.fullmatch(
            r"\W*[A-J]\W*", variant
        ):  # "(E)" is a letter, also where an option is "(e)"
            same = [i for i in same if re.search(r"[A-Z]", str(choices[i]))]
        if same and comparable(
            variant
        ):  # two options may read alike: the first, as in `gold_letter`
            return Option(LETTERS[same[0]], "option's text")
    return Option(None, "no option")


def by_letter(text: str, choices: list[str]) -> Option:
    """The answer begins with a letter; what follows is nothing, its own text, or a remark."""
    index = LETTERS.find(text[0])
    if 0 <= index < len(choices) and comparable(text[1:]) == comparable(choices[index]) != "":
        return Option(text[0], "letter with its text")  # "E2", "B dog"
    start = START.match(text)
    if start is None:
        return Option(None, "no option")
    letter = start["letter"].upper()
    rest = text[start.end() :].strip()
    marked = bool(start["open"].strip() or start["close"] or start["stop"])
    if letter not in letters_of(choices):
        return Option(None, "no such letter" if marked or not rest else "no option")

    index = LETTERS.index(letter)
    if (
        index < len(choices)
        and comparable(choices[index])
        and comparable(rest) == comparable(choices[index])
    ):
        return Option(letter, "letter with its text")
    other = ANOTHER.match(rest)
    while other is not None and other["letter"].upper() == letter:
        rest = rest[other.end() :]
        other = ANOTHER.match(rest)
    if other is not None:
        return Option(None, SEVERAL)
    if not rest:
        return Option(letter, "letter")
    if re.match(r"(?:or|and|nor)\b", rest):
        return Option(None, SEVERAL)
    if start["letter"].islower() and not marked:
        return Option(None, "no option")
    return letter_and_rest(letter, rest, marked, choices)


def letter_and_rest(letter: str, rest: str, marked: bool, choices: list[str]) -> Option:
    """A letter and words: they must not be another option's, and not take the letter back."""
    index = LETTERS.index(letter)
    clause = re.split(r"(?<=[^\d\s])[.;。]\s|\n", rest, maxsplit=1)[0]
    core = re.sub(r"^[\s:,;.()\[\]-]+", "", clause)
    if index < len(choices) and comparable(choices[index]) in (
        comparable(clause),
        comparable(core),
        comparable(rest),
    ):
        return Option(letter, "letter with its text")

    others = {
        LETTERS[i]
        for i, choice in enumerate(choices)
        if i != index
        and comparable(choice)
        and comparable(choice) in (comparable(core), comparable(rest))
    }
    if others:
        return Option(None, "letter and text of different options")
    value = re.split(r"[,;](?=\s)|\b(?:which|because|since|where|as)\b", core, maxsplit=1)[
        0
    ].strip()
    if index < len(choices) and is_value(value) and is_value(str(choices[index])):
        same = by_value(value, choices).letter == letter
        return (
            Option(letter, "letter with its value")
            if same
            else Option(None, "letter and another value")
        )
    other = re.match(r"(?:and\s+)?not\s+(?:option\s*)?[(\[]?([A-J])\b", core)
    if other and other[1] != letter:  # "B, not C"
        return Option(letter, "letter with a remark")
    own = plain(choices[index]) if index < len(choices) else ""
    if re.match(
        r"(?:is|was)?\s*(?:not\b|wrong|incorrect|false)|isn't|不", core, re.IGNORECASE
    ) and not own.startswith("not"):
        return Option(None, "negation")
    named = {other.upper() for other in BRACKETED.findall(clause)} - {letter}
    if named or re.search(
        r"\b(?:or|and|nor)\s+(?:option\s*)?[(\[]?[A-J][)\]]?\s*(?:$|[.,])", clause
    ):
        return Option(None, SEVERAL)
    if marked or REMARK.match(rest):
        return Option(letter, "letter with a remark")
    return Option(None, "no option")


def by_text_and_letter(text: str, choices: list[str]) -> Option:
    """ "dog (B)": an option's text with its letter behind."""
    match = re.fullmatch(
        r"(.+?)\s*[(\[（](?:option\s*)?([A-J])[)\]）]", text, re.IGNORECASE | re.DOTALL
    )
    if match is None or match[2].upper() not in letters_of(choices) or len(text) > 300:
        return Option(None, "no option")
    said = by_whole_text(match[1], choices)
    if said.letter not in (None, match[2].upper()):
        return Option(None, "letter and text of different options")
    if BRACKETED.search(match[1]):
        return Option(None, SEVERAL)
    if said.letter is None and NEGATION.search(match[1]):
        return Option(None, "no option")
    if (
        said.letter is None
        and is_value(match[1])
        and by_value(match[1], choices).letter != match[2].upper()
    ):
        return Option(None, "letter and another value")
    return Option(match[2].upper(), "letter in brackets")


def is_value(text: str) -> bool:
    """A number or an expression, not words."""
    return (
        re.search(r"\d|\\[a-z]", text) is not None
        and read_number(text) is not None
        or (
            re.search(r"\d|\\[a-z]", text) is not None
            and not words_of(split_unit(spell_out(text), "")[0])
        )
    )


def by_value(text: str, choices: list[str]) -> Option:
    """The answer equals exactly one option, as a number or as an expression."""
    if len(text) > 100 or not is_value(text):
        return Option(None, "no option")

    number = read_number(text)
    if number is not None:
        numbers = [read_number(choice) if "=" not in choice else None for choice in choices]
        same = [
            i
            for i, other in enumerate(numbers)
            if other is not None and same_number(number, other)[0]
        ]
        same = [i for i in same if numbers[i].value == number.value] or same
    if number is None or not same:
        same = [
            i
            for i, choice in enumerate(choices)
            if is_value(choice)
            and ("=" in text) == ("=" in choice)
            and read_number(choice) is None
            and (number is None or not has_letters(choice))
            and same_expression(text, choice)[0] is True
        ]
    if len(same) > 1 and len({comparable(choices[i]) for i in same}) > 1:
        return Option(None, SEVERAL)
    return Option(LETTERS[same[0]], "option's value") if same else Option(None, "no option")


def named_in(sentence: str, choices: list[str]) -> Option:
    """The one option whose text stands in a sentence, longer texts first; none if several do, or
    after a "not"."""
    text = f" {plain(re.sub(r'[*$]', '', sentence))} "
    found = []
    for i, choice in sorted(enumerate(choices), key=lambda pair: -len(str(pair[1]))):
        words = plain(re.sub(r"[*$]", "", choice))
        if len(re.findall(r"[a-z\u4e00-\u9fff]", words)) < 2 or "\\" in words:
            continue
        pattern = re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")
        if pattern.search(text):
            found.append(LETTERS[i])
            text = pattern.sub(" ", text)
    if len(found) > 1:
        return Option(None, SEVERAL)
    if (
        found and len(plain(choices[LETTERS.index(found[0])])) < 3
    ):  # "no", "up": too short to be said on purpose
        return Option(None, "no option")
    if not found or NEGATION.search(text):
        return Option(None, "no option" if not found else "negation")
    return Option(found[0], "option's text")
