r"""Are two expressions equal?

This file rules out answers of another kind; math-verify decides equality of the rest. math-verify
reads generously: it takes "2x = 6" for 6, "1:2" for 1/2, and "101_2", a number in base two, for
101. So it is asked last, and only about two expressions of the same kind.

One answer through the steps of `same_expression`, with the gold `10\sqrt{3}`:

    \sqrt{300} cm          1. the same text as the gold?         no
                           2. too long to be an expression?      no
                           3. both plain numbers?                no
                           4. another unit than the gold's?      no, the gold has none
    \sqrt{300}             5. without its unit, the same text?   no
                           6. of another kind?                   no, both are one value
                           7. equal by math-verify?              yes

The kinds:

    one value         4\pi, 1/2; "x = 5" too, since a name in front of a value does not matter
    an equation       2x + 4y = 3; one side alone, 2x + 4y, is another kind
    several values    "1, 2", "x=1 or x=2"; as many as the gold has
    a ratio           1:2; the number 1/2 is another kind
    words             "no solution"; no others than the gold's
    other base        101_2; a number in base two, where the gold has no base
    open brackets     "(1, 2"; no kind, since nobody knows what it was to be
"""

import re

from rewards.lists import EQUALS, is_balanced, list_of, without_names
from rewards.math_worker import MathVerifier
from rewards.number import read_answer_number, read_gold_number, read_number, same_number
from rewards.typesetting import as_latex, squeeze
from rewards.units import is_name_in, split_unit

LONGEST = 1000  # characters; no answer of a benchmark is longer, and algebra on more would not end
MATH_VERIFY = MathVerifier()  # a pool of processes; none starts before `start` or a question

# --- Equality ------------------------------------------------------------------------------------


def same_expression(answer: str, gold: str, question: str = "") -> tuple[bool | None, str]:
    r"""Are they equal, and how it was decided; None if math-verify gave no verdict in time.

    >>> same_expression("x^{2}", "x^2"), same_expression("2.50", "5/2")
    ((True, 'same expression'), (True, 'equal number'))
    >>> same_expression("2x+4y", "2x+4y = 3"), same_expression("1, 2", "2")
    ((False, 'half of an equation'), (False, '2 values, not 1'))
    """
    # 1. The same text.
    if squeeze(answer) == squeeze(gold):
        return True, "same expression"

    # 2. Too long.
    if len(answer) > LONGEST or len(gold) > LONGEST:
        return False, "too long for an expression"

    # 3. Plain numbers.
    gold_number = read_gold_number(gold, question)
    answer_number = read_answer_number(answer, gold_number, question)
    if answer_number is not None and gold_number is not None:
        return same_number(answer_number, gold_number)

    # 4. Another unit. A missing one is accepted.
    gold = as_latex(gold)
    wanted = split_unit(gold, question, letter_is_unit=may_end_in_a_unit(gold, question))
    given = split_unit(as_latex(answer), question, letter_is_unit=wanted.unit != "")
    if given.unit and wanted.unit and given.unit != wanted.unit:
        return False, f"unit {given.unit!r}, not {wanted.unit!r}"

    # 5. Without the unit, the same text.
    if squeeze(given.body) == squeeze(wanted.body):
        return True, "same expression"

    # 6. Another kind.
    mismatch = mismatch_of_kind(answer=given.body, gold=wanted.body)
    if mismatch is not None:
        return False, mismatch

    # 7. math-verify.
    return ask_math_verify(answer=given.body, gold=wanted.body)


def may_end_in_a_unit(gold: str, question: str) -> bool:
    r"""May the last letter of a gold be a unit?

    Yes, if there is a question and it does not use the letter as a name.

    A permission only: "2x" gets it too, and `split_unit` finds that x is no unit.

    >>> may_end_in_a_unit(r"4\pi m", "How long is it?"), may_end_in_a_unit(r"4\pi m", "m is odd.")
    (True, False)
    >>> may_end_in_a_unit("2x", "How long is it?"), split_unit("2x", "How long is it?", True).unit
    (True, '')
    """
    last_letter = re.search(r"([A-Za-z])(?:\^.*)?$", gold)
    if last_letter is None or not question:
        return False
    return not is_name_in(last_letter[1], question)


def ask_math_verify(answer: str, gold: str) -> tuple[bool | None, str]:
    """The verdict of math-verify on two expressions of one kind."""
    verdict = MATH_VERIFY(gold=without_names(gold), answer=without_names(answer))
    if verdict is None:
        return None, f"math-verify gave no verdict within {MATH_VERIFY.timeout_s:.0f} s"
    return verdict, "equal by math-verify" if verdict else "not equal by math-verify"


# --- Kinds ---------------------------------------------------------------------------------------


def mismatch_of_kind(answer: str, gold: str) -> str | None:
    """How their kinds differ, so that the two cannot be equal; None if they are of one kind.

    >>> mismatch_of_kind("2x+4y", "2x+4y = 3"), mismatch_of_kind("2x+4y", "4x")
    ('half of an equation', None)
    """
    extra_words = words_of(answer) - words_of(gold)
    if extra_words:  # "4 million" for 4
        return "words that are no expression"
    if re.search(r"\d_", answer) and not re.search(r"\d_", gold):  # "101_2" for 101
        return "a number in another base"
    if not is_balanced(answer):  # "(1, 2" for (1, 2)
        return "brackets that do not match"
    # "1:2" for 1/2. In a gold that is an equation, a colon may belong to a name: "f: y = 2x".
    if is_ratio(answer) != is_ratio(gold) and not EQUALS.search(gold):
        return "only one of them is a ratio"
    # "\infty 3" for 2. Trap: math-verify calls the two equal now and then, after some ten thousand
    # questions (test_infinity_is_no_finite_value).
    if is_infinite(answer) != is_infinite(gold) and is_constant(answer) and is_constant(gold):
        return "only one of them is infinite"

    answer_values = without_repetitions(list_of(answer))
    gold_values = without_repetitions(list_of(gold))
    if len(answer_values) != len(gold_values):  # "1, 2" for 2
        return f"{len(answer_values)} values, not {len(gold_values)}"

    # In order, so that an equation and a value in another order ("3, x + y = 1") are refused.
    for answer_value, gold_value in zip(answer_values, gold_values):
        if is_bare_equation(gold_value) and not EQUALS.search(answer_value):  # 2x+4y for 2x+4y = 3
            return "half of an equation"
        if is_bare_equation(answer_value) and not EQUALS.search(gold_value):  # "2x = 6" for 6
            return "an equation, not its value"
    return None


def without_repetitions(values: list[str]) -> list[str]:
    """In the same order: a dictionary keeps the first of equal keys."""
    return list(dict.fromkeys(values))


def is_ratio(text: str) -> bool:
    """Is the text a ratio, "1:2"?"""
    return re.search(r":|\\colon", text) is not None


def is_infinite(text: str) -> bool:
    """Does the text hold an infinity? An interval does as well."""
    return re.search(r"\\infty|∞", text) is not None


def is_constant(text: str) -> bool:
    r"""Is it a value without unknowns and relations?

    >>> is_constant(r"2\sqrt{2}"), is_constant("2x"), is_constant(r"\pi > 3")
    (True, False, False)
    """
    return not has_letters(text) and re.search(r"[<>=≤≥≠]|\\[lg]eq?\b", text) is None


def is_bare_equation(text: str) -> bool:
    """An equation with letters on the left, which are no mere name: 2x + 4y = 3, but not x = 5.

    >>> is_bare_equation("2x + 4y = 3"), is_bare_equation("x = 5"), is_bare_equation("2 + 3 = 5")
    (True, False, False)
    """
    sides = [side.strip() for side in EQUALS.split(text)]
    left_sides = sides[:-1]
    if not left_sides or not all(sides):
        return False
    has_name = any(is_name(side) for side in left_sides)
    return not has_name and any(has_letters(side) for side in left_sides)


def is_name(side: str) -> bool:
    r"""What an answer is called: letters, with no operation and no number except an argument.

    A quotient of names is a name too, as it is often asked for: "AB/CD = 3" states the value 3.

    >>> is_name("x"), is_name("f(x)"), is_name(r"\angle ABC"), is_name(r"\frac{AB}{CD}")
    (True, True, True, True)
    >>> is_name("AB/CD"), is_name("y/x"), is_bare_equation("y/x = 3")
    (True, True, False)
    >>> is_name("f(2)"), is_name("2(3)")
    (True, False)
    >>> is_name("2x"), is_name("x+y"), is_name("7")
    (False, False, False)
    """
    side = NO_PART_OF_A_NAME.sub("", side)
    return has_letters(side) and OPERATION_OR_NUMBER.search(side) is None


# --- Words and letters ---------------------------------------------------------------------------


def is_value(text: str) -> bool:
    r"""Is the text a number, or an expression with a digit or a LaTeX command, and without words?

    Letters alone give False, though "x+y" is an expression: "a/b" may as well be two options.

    >>> is_value("12 cm"), is_value(r"\frac{x}{2}"), is_value("2 red balls")
    (True, True, False)
    >>> is_value("2x"), is_value("x+y"), is_value("a/b")
    (True, False, False)
    """
    if re.search(r"\d|\\[a-z]", text) is None:
        return False
    return read_number(text) is not None or not words_of(split_unit(as_latex(text)).body)


def words_of(text: str) -> set[str]:
    r"""The words of three letters or more, but for LaTeX commands, functions, labels in capitals.

    >>> sorted(words_of(r"\frac{1}{2} of the \sin ABC")), words_of("sin x and cos y")
    (['the'], set())
    """
    text = LATEX_COMMAND.sub(" ", text)
    words = {word.lower() for word in re.findall(r"[A-Za-z]{3,}", text) if not word.isupper()}
    return words - MATH_WORDS


def has_letters(text: str) -> bool:
    """Does the text have a letter outside of LaTeX commands?"""
    return re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)) is not None


MATH_WORDS = set(  # words of an expression: functions, and the "and" of "x = 1 and y = 2"
    "sin cos tan cot sec csc arcsin arccos arctan log ln exp lim max min gcd lcm sqrt mod det "
    "and infty".split()
)
LATEX_COMMAND = re.compile(  # "\frac", "\begin{array}{cc}"
    r"\\(?:begin|end)\s*\{\w+\}(?:\{[clr|]+\})?|\\[A-Za-z]+"
)
NO_PART_OF_A_NAME = re.compile(  # what is taken out before letters and numbers are looked for
    r"_\s*(?:\{[^{}]*\}|\w)"  # the index of "x_1" or "x_{12}"
    r"|(?<=[A-Za-z'])\(-?\d[\d., ]*\)"  # the argument of "f(2)"
    r"|\\(?:frac|left|right|angle|triangle|overline|widehat|mathrm)"  # "\angle ABC"
)
OPERATION_OR_NUMBER = re.compile(r"[-+*^<>\d√]|\\(?:sqrt|cdot|times)")
