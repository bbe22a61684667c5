"""When two answers are equal: numbers, units, options, expressions."""

import pytest

from rewards.choice import read_option
from rewards.expression import list_of, same_expression
from rewards.number import read_number, words_to_digits
from rewards.units import read_unit

ANIMALS = ["cat", "dog", "a bird", "fish"]
MATRIX = r"\begin{pmatrix}1 & 2\\3 & 4\end{pmatrix}"


@pytest.mark.parametrize("text, value", [
    ("4", 4), ("-4", -4), ("−4", -4), ("+4", 4), ("1,234.5", 1234.5), ("1 234", 1234),
    ("12,34", 12.34), ("1/2", 0.5),
    (r"\frac{1}{2}", 0.5), (r"-\frac{1}{2}", -0.5), (r"1\frac{1}{2}", 1.5), ("1 1/2", 1.5),
    ("1.2e3", 1200),
    (r"3 \times 10^{8}", 3e8), ("2 x 10^3", 2000), ("two", 2), ("twenty-one", 21),
    ("one hundred and five", 105),
    ("4 million", 4e6), ("x = 5", 5), ("f(x) = 5", 5), (r"\angle ABC = 40^\circ", 40),
    ("2 + 3 = 5", 5), ("$12.50", 12.5),
    ("12 cm", 12), ("5 m/s", 5), ("007", 7), (".5", 0.5), ("6.", 6), ("≈ 3", 3),
    ("4x", None), (r"4\pi", None), ("4i", None), ("4!", None), ("4 dozen", None), ("3, 5", None),
    ("1 2 3", None),
    ("4 or 5", None), ("x + 1 = 4", None), ("x^2 = 4", None), ("2^10", None), ("1:2", None),
    ("4m", None), ("", None),
    ("3.14.15", None), ("5 -", None), ("1e400", None), ("1/0", None), ("ten or so", None),
    ("one two", None)])
def test_plain_numbers(text, value):
    """Digits, sign, exponent, fraction, percent, a known unit, and nothing else."""
    number = read_number(text)
    assert (None if number is None else number.value) == value


@pytest.mark.parametrize("text, unit", [
    ("cm", "cm"), ("centimeters", "cm"), ("cm^2", "cm^2"), ("cm²", "cm^2"), ("square cm", "cm^2"),
    ("cm^{2}", "cm^2"),
    ("m/s", "m s^-1"), ("m per second", "m s^-1"), ("km/h", "h^-1 km"), ("°", "°"),
    ("degrees", "°"), ("kg m/s^2", "kg m s^-2"),
    ("", ""), ("units", ""), ("people", ""), ("x", None), ("million", None), ("!", None),
    (r"\pi", None), ("apples", None)])
def test_units(text, unit):
    """A unit is a product of known names with powers; a letter of algebra or a magnitude is
    none.
    """
    assert read_unit(text) == unit


def test_counted_things_are_the_question_s_own():
    """"12 apples" answers a question about apples, and no other."""
    assert read_number("12 apples", "How many apples are there?").value == 12
    assert read_number("12 apples", "How many pears are there?") is None
    assert read_number("12 million apples", "How many million apples?").value == 12_000_000


def test_a_letter_after_digits_is_a_unit_only_where_the_question_measures():
    """4m may be four times m."""
    assert read_number("4m") is None
    assert read_number("4m", "The wall is 20 m long.").unit == "m"


def test_words_that_make_no_number_are_left_alone():
    assert words_to_digits("one two") == "one two"
    assert words_to_digits("forty two cats and ten dogs") == "42 cats and 10 dogs"


@pytest.mark.parametrize("answer, letter", [
    ("B", "B"), ("(B)", "B"), ("b.", "B"), ("B. dog", "B"), ("dog", "B"), ("a dog", "B"),
    ("dog (B)", "B"), ("B (dog)", "B"),
    ("B, because it barks", "B"), ("A bird", "C"), ("a bird", "C"), ("**B**", "B"),
    ("B, not C", "B"), ("A", "A"),
    ("A B C D", None), ("", None), ("B. cat", None), ("A or B", None), ("A dog", "B"),
    ("not B", None), ("E", None), ("AB", None)])
def test_choice_cases(answer, letter):
    """The classic wrong version passes "A B C D" and, by `gold in answer`, every answer that
    lists all letters.
    """
    assert "B" in "A B C D"
    assert read_option(answer, ANIMALS).letter == letter


def test_options_that_are_letters():
    """A, B, C in another order: a letter is a letter, as in the gold. Other letters are texts."""
    assert [read_option(x, ["C", "A", "B"]).letter for x in "ABC"] == ["A", "B", "C"]
    assert read_option("B", ["B", "G", "O", "R"]).letter == "A"
    assert read_option("(D) G", ["K", "E", "N", "G"]).letter == "D"


def test_a_letter_and_another_value_name_nothing():
    """(B) 7 where option B is 5: one of the two is a slip, and nobody knows which."""
    lengths = ["3 cm", "5 cm", "8 cm"]
    assert read_option("(B) 5", lengths).letter == "B"
    assert read_option("(B) 7", lengths).letter is None
    assert read_option("5", lengths).letter == "B"


@pytest.mark.parametrize("text, values", [
    ("1, 2", ["1", "2"]), (r"\{1, 2\}", ["1", "2"]), ("1 or 2", ["1", "2"]),
    ("1, 2 and 3", ["1", "2", "3"]), ("(1, 2)", ["(1,2)"]),
    ("(1, 2), (3, 4)", ["(1,2)", "(3,4)"]), ("1,234", ["1,234"]), (r"\pm 3", ["3", "-3"]),
    ("p=5, q=2; p=7, q=2", ["(5, 2)", "(7, 2)"])])
def test_lists(text, values):
    assert list_of(text) == values


@pytest.mark.parametrize("gold, answer, equal", [  # kinds of math-verify's own cases
    (r"\frac{1}{2}", r"\dfrac{2}{4}", True), (r"\frac{1}{2}", "0.5", True),
    ("x^2+2x+1", "(x+1)^2", True), (r"\sqrt{12}", r"2\sqrt{3}", True),
    ("x=5", "5", True), ("5", "x=5", True), (r"\{1,2,3\}", "3, 2, 1", True),
    (r"\{1,2,3\}", "1, 2", False), ("(1,2)", "(2,1)", False),
    ("[0,1)", "[0,1)", True), ("[0,1)", "(0,1)", False),
    (r"(-\infty, 2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)", True),
    ("x < 3", "3 > x", True), ("x < 3", r"x \le 3", False), (r"28\%", "28", True),
    (r"\frac{\pi}{4}", r"\pi/4", True),
    (MATRIX, MATRIX.replace("pmatrix", "bmatrix"), True), (MATRIX, MATRIX.replace("4", "5"), False),
    ("2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}", True), ("(p,q)=(3,2)", "(3,2)", True),
    (r"\frac{AB}{CD}=\frac{1}{3}", r"\frac{1}{3}", True),
    ("11:7", "11:7", True), ("11:7", "7:11", False), (r"10\sqrt{3} cm", r"10\sqrt{3}", True),
    ("AB=4, CD=5", "4, 5", True),
    ("7 - 11b - d", "7 - 11b + d", False), ("7 = 11a + c", "11a + c", False),
    ("a+3z=0", "0", False), ("4", "4!", False), ("4", r"4\pi", False),
    (r"\text{no solution}", "No solution", True), ("2", "x=1 or x=2", False),
    ("19, 46, and 82", "82, 19, 46", True)])
def test_expressions(gold, answer, equal):
    """Gold first: math-verify is not symmetric."""
    if gold == r"\text{no solution}":
        answer = answer.lower()
    assert same_expression(answer, gold)[0] is equal
