r"""The options of a question, and what it means for a text to be one of them.

An option has a letter, a text, and sometimes a value:

    A   "cat"              its text: "Cat", "(cat)", "a cat"
    B   "$\frac{3}{4}$"    its value: "0.75", "3/4"

A text names an `Option`, or it names none for a reason: several at once, a negation, a letter
beside the text of another option. A lucky pick among them would be paid for, so none is picked.

To list the options, "A. cat, B. dog", is no answer; `after_list` finds what follows such a list.
"""

import re
from dataclasses import dataclass
from itertools import islice

from rewards.expression import has_letters, is_value, same_expression
from rewards.number import read_number, same_number
from rewards.typesetting import comparable, strip_marks

LETTERS = "ABCDEFGHIJ"
LETTER = "(?a:[A-J])"  # one of them, in a pattern; no İ, which IGNORECASE would take for an i
LONGEST_ENTRY = 400  # characters of an option, or of some texts, where options are listed
MOST_ENDS = 20  # places where it may end that are looked at


@dataclass(frozen=True)
class Option:
    letter: str | None
    how: str  # how the option was named, or why no option was


# How an option was named.
BY_LETTER = "letter"
BY_LETTER_BEHIND = "letter in brackets"
BY_LETTER_AND_TEXT = "letter with its text"
BY_LETTER_AND_VALUE = "letter with its value"
BY_LETTER_AND_REMARK = "letter with a remark"
BY_TEXT = "option's text"
BY_VALUE = "option's value"

# Why no option was.
NO_OPTION = Option(None, "no option")
EMPTY = Option(None, "empty")
NO_SUCH_LETTER = Option(None, "no such letter")
SEVERAL = Option(None, "several options")
NEGATED = Option(None, "negation")
ANOTHER_TEXT = Option(None, "letter and text of different options")
ANOTHER_VALUE = Option(None, "letter and another value")


# --- Letters -------------------------------------------------------------------------------------


def letters_of(choices: list[str]) -> str:
    """The letters that may be named; all of them if the options are not known."""
    return LETTERS[: len(choices)] if choices else LETTERS


def are_other_letters(choices: list[str]) -> bool:
    """Are the options letters themselves, but not A, B, C ... in some order?

    >>> are_other_letters(["K", "E", "N"]), are_other_letters(["C", "A", "B"])
    (True, False)
    """
    texts = {strip_marks(str(choice)) for choice in choices}
    return all(len(text) == 1 for text in texts) and not texts <= set(letters_of(choices))


# --- Texts ---------------------------------------------------------------------------------------


def is_text_of(text: str, index: int, choices: list[str]) -> bool:
    """Is it the text of this option? An index without an option has no text."""
    if not 0 <= index < len(choices) or not comparable(choices[index]):
        return False
    return comparable(text) == comparable(choices[index])


def is_text_but_for_articles(text: str, index: int, choices: list[str]) -> bool:
    """As `is_text_of`, but "the", "a" and "an" in front do not matter on either side.

    >>> is_text_but_for_articles("The bird", 1, ["cat", "a bird"])
    True
    """
    without_articles = [without_article(str(choice)) for choice in choices]
    return is_text_of(without_article(text), index, without_articles)


def without_article(text: str) -> str:
    """`, the dog` -> `dog`."""
    return ARTICLE.sub("", text)


def by_whole_text(text: str, choices: list[str]) -> Option:
    """The answer is an option's text and nothing else; an article in front does not matter.

    Two options may read alike: then the first counts, as it does in the gold.

    >>> by_whole_text("a dog", ["cat", "dog"]).letter, by_whole_text("dogs", ["cat", "dog"]).letter
    ('B', None)
    """
    for words in (text, without_article(text)):
        same = [i for i in range(len(choices)) if is_text_of(words, i, choices)]
        if re.fullmatch(rf"\W*{LETTER}\W*", words):  # "(E)" is a letter, though an option is "(e)"
            same = [i for i in same if re.search(r"[A-Z]", str(choices[i]))]
        if same:
            return Option(LETTERS[same[0]], BY_TEXT)
    return NO_OPTION


ARTICLE = re.compile(r"^[\s:,;.(]*(?:the|an?)\s+(?=\w)", re.IGNORECASE)  # not "a + b"


# --- Lists of options ----------------------------------------------------------------------------


def after_list(text: str, choices: list[str]) -> str | None:
    """What follows the options that a text begins by listing; None if it does not list any.

    A list repeats options with their letters and their own texts, two at least. A letter that it
    has had already begins what follows: that option is picked.

    >>> animals = ["cat", "dog", "a bird"]
    >>> after_list("A) cat B) dog", animals), after_list("A. cat\\nB. dog\\nSo it is B.", animals)
    ('', 'So it is B.')
    >>> after_list("A. cat\\nB. dog\\nB. dog", animals)
    'B. dog'
    >>> after_list("A. cat, since B. dog barks", animals) is None
    True
    """
    listed = ""
    while True:
        entry = ENTRY.match(text)
        if entry is None or entry["letter"].upper() in listed:
            break
        letter = entry["letter"].upper()
        end = end_of_own_text(text[entry.end() :], LETTERS.index(letter), choices)
        if end is None:
            break
        listed += letter
        text = text[entry.end() + end :]
    return text.lstrip(" \n\t.,;*") if len(listed) > 1 else None


def end_of_own_text(text: str, index: int, choices: list[str]) -> int | None:
    """Where the text of this option ends, if the given text begins with it.

    >>> end_of_own_text("cat B) dog", 0, ["cat", "dog"])
    3
    """
    for end in islice(ENTRY_END.finditer(text[:LONGEST_ENTRY]), MOST_ENDS):
        if is_text_of(text[: end.start()], index, choices):
            return end.start()
    return None


def are_texts(text: str, choices: list[str]) -> bool:
    """Are these the texts of several options, and nothing else: "cat or the dog"?

    >>> are_texts("cat or dog", ["cat", "dog"]), are_texts("cat or bird", ["cat", "dog"])
    (True, False)
    """
    if len(text) > LONGEST_ENTRY:
        return False
    parts = {comparable(without_article(part)) for part in BETWEEN_TEXTS.split(text)}
    texts = {comparable(without_article(str(choice))) for choice in choices}
    return len(parts) > 1 and parts <= texts


ENTRY = re.compile(  # "A. ", "(B) ", ", and C: ", "option D - "
    rf"""[\s*_,;./-]* (?:(?:and|or|vs\.?)\s+)? (?:(?:option|choice)\s+)?
        [(\[（]? (?P<letter>{LETTER}) (?: \s*[)\]）][.:]? | [.:、．：] | \s+[-–—](?=\s) ) [\s*]*
    """,
    re.IGNORECASE | re.VERBOSE,
)
ENTRY_END = re.compile(  # where the text of an entry may end
    rf"""[\n.;,。] | \s*/                                       # a stop or a slash
      | \s+(?:and|or|vs|option|choice)\b                      # a word before the next entry
      | [\s(*]+(?=[(\[（]?{LETTER}[)\]）.:、．：]) | $          # its letter, or the end
    """,
    re.IGNORECASE | re.VERBOSE,
)
BETWEEN_TEXTS = re.compile(r"\s*(?:[,;/&]|\b(?:and|or)\b)\s*")


# --- Values --------------------------------------------------------------------------------------


def by_value(text: str, choices: list[str]) -> Option:
    r"""The answer equals exactly one option, as a number or as an expression.

    >>> by_value("0.75", ["2", r"\frac{3}{4}"]), by_value("2", ["2", "2.0"]).how
    (Option(letter='B', how="option's value"), 'several options')
    """
    if len(text) > 100 or not is_value(text):
        return NO_OPTION
    same = same_numbers(text, choices) or same_expressions(text, choices)
    if not same:
        return NO_OPTION
    texts = {comparable(choices[i]) for i in same}
    if len(texts) > 1:
        return SEVERAL
    return Option(LETTERS[same[0]], BY_VALUE)


def same_numbers(text: str, choices: list[str]) -> list[int]:
    """Indices of the options that are this number; exactly equal ones before rounded ones.

    >>> same_numbers("3.14", ["3.14", "3.1"]), same_numbers("3.14", ["3.2", "3.1"])
    ([0], [1])
    """
    number = read_number(text)
    if number is None:
        return []
    numbers = [None if "=" in choice else read_number(choice) for choice in choices]
    same = [i for i, other in enumerate(numbers) if other and same_number(number, other)[0]]
    exact = [i for i in same if numbers[i].value == number.value]
    return exact or same


def same_expressions(text: str, choices: list[str]) -> list[int]:
    """Indices of the options that are this expression."""
    is_number = read_number(text) is not None
    same = []
    for i, choice in enumerate(choices):
        if not is_value(choice) or read_number(choice) is not None:
            continue
        if ("=" in text) != ("=" in choice):  # 5 is not "x = 5" of another option
            continue
        if is_number and has_letters(choice):  # 4 is not 4x
            continue
        if same_expression(text, choice)[0] is True:
            same.append(i)
    return same
