"""When two answers are equal: numbers, units, options, expressions."""

import re

import pytest

from rewards import grade, letters
from rewards.choice import gold_letter, read_option
from rewards.digits import words_to_digits
from rewards.expression import same_expression
from rewards.lists import list_of
from rewards.number import read_number, same_number
from rewards.options import Option
from rewards.typesetting import TO_LATEX, TYPESETTING, tidy
from rewards.units import read_unit

ANIMALS = ["cat", "dog", "a bird", "fish"]
MATRIX = r"\begin{pmatrix}1 & 2\\3 & 4\end{pmatrix}"


NUMBERS = {
    # digits, sign, thousands
    "4": 4, "-4": -4, "−4": -4, "+4": 4, "007": 7, ".5": 0.5, "6.": 6, "12,34": 12.34,
    "1,234.5": 1234.5, "1 234": 1234,
    # fractions and powers of ten
    "1/2": 0.5, "1 1/2": 1.5, r"\frac{1}{2}": 0.5, r"-\frac{1}{2}": -0.5, r"1\frac{1}{2}": 1.5,
    "1.2e3": 1200, "2 x 10^3": 2000, r"3 \times 10^{8}": 3e8,
    # words
    "two": 2, "twenty-one": 21, "one hundred and five": 105, "4 million": 4e6,
    # labels in front, units behind
    "x = 5": 5, "f(x) = 5": 5, "f(-2) = 5": 5, r"\angle ABC = 40^\circ": 40, "2 + 3 = 5": 5,
    "≈ 3": 3, "$12.50": 12.5, "12 cm": 12, "5 m/s": 5,
}
NO_NUMBERS = [
    "4x", r"4\pi", "4i", "4!", "4m", "4 dozen", "2^10", "1:2",  # more than a number
    "3, 5", "1 2 3", "4 or 5", "one two", "ten or so",  # several
    "x + 1 = 4", "x^2 = 4", "2x(2) = 4",  # half of an equation
    "", "3.14.15", "5 -", "1e400", "1/0",  # none
]


@pytest.mark.parametrize("text, value", NUMBERS.items())
def test_plain_numbers(text, value):
    """Digits, sign, exponent, fraction, words, a known unit."""
    assert read_number(text).value == value


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_no_plain_numbers(text):
    """The classic wrong version takes the first number in the text, and pays for 4x as for 4."""
    assert read_number(text) is None


UNITS = {
    "cm": "cm", "centimeters": "cm", "°": "°", "degrees": "°",
    # powers
    "cm^2": "cm^2", "cm^{2}": "cm^2", "cm²": "cm^2", "square cm": "cm^2",
    "Square Meters": "m^2", "Cubic cm": "cm^3", "Meters squared": "m^2", "Sq. Ft": "ft^2",
    # products
    "m/s": "m s^-1", "m per second": "m s^-1", "km/h": "h^-1 km", "kg m/s^2": "kg m s^-2",
    "m/m": "",
    # none, and things counted
    "": "", "units": "", "people": "", "Square Units": "",
    # no unit
    "x": None, r"\pi": None, "!": None, "million": None, "M": None, "apples": None,
}


@pytest.mark.parametrize("text, unit", UNITS.items())
def test_units(text, unit):
    """A product of known names with powers; no letter of algebra, no magnitude."""
    assert read_unit(text) == unit


def test_counted_things_are_the_question_s_own():
    """"12 apples" answers a question about apples, and no other."""
    assert read_number("12 apples", "How many apples are there?").value == 12
    assert read_number("12 apples", "How many pears are there?") is None
    assert read_number("12 million apples", "How many million apples?").value == 12_000_000


PLURALS = (
    "tree trees, glass glasses, dress dresses, class classes, bee bees, knee knees, pie pies, "
    "cherry cherries, cookie cookies, box boxes, bus buses, horse horses, cup cups, boy boys"
)


@pytest.mark.parametrize("singular, plural", [pair.split() for pair in PLURALS.split(", ")])
def test_one_of_the_things_that_are_counted(singular, plural):
    """"1 tree" answers "How many trees?". The classic wrong stem makes tr and tre of the two."""
    assert read_number(f"1 {singular}", f"How many {plural} are there?").value == 1
    assert read_number(f"1 {singular}", "How many lamps are there?") is None


def test_a_whole_gold_is_exact():
    """A tolerance relative to the value lets a million pass for a million and one."""
    for wrong in ("1000001", "1000000.5", "999999"):
        assert not same_number(read_number(wrong), read_number("1000000"))[0]
    assert same_number(read_number("0.3/0.1"), read_number("3"))[0]  # 2.9999999999999996


def test_a_letter_after_digits_is_a_unit_only_where_the_question_measures():
    """4m may be four times m."""
    assert read_number("4m") is None
    assert read_number("4m", "The wall is 20 m long.").unit == "m"


def test_words_that_make_no_number_are_left_alone():
    assert words_to_digits("one two") == "one two"
    assert words_to_digits("forty two cats and ten dogs") == "42 cats and 10 dogs"


CHOSEN = {  # of cat, dog, a bird, fish
    "A": "A", "B": "B", "(B)": "B", "b.": "B", "**B**": "B",
    "B. dog": "B", "B (dog)": "B", "dog (B)": "B", "B, because it barks": "B", "B, not C": "B",
    "dog": "B", "a dog": "B", "A dog": "B", "a bird": "C", "A bird": "C",
    # several, none, a contradiction, a negation
    "A B C D": None, "A or B": None, "": None, "E": None, "AB": None, "B. cat": None,
    "not B": None,
}


@pytest.mark.parametrize("answer, letter", CHOSEN.items())
def test_choice_cases(answer, letter):
    """The classic wrong version, `gold in answer`, pays for an answer that lists all letters."""
    assert read_option(answer, ANIMALS).letter == letter


HOW = {  # how each row of the table at the top of `letters.py` decides
    "1": "letter with its text", "2": "no option", "3": "no such letter",
    "4": "letter with its text", "5": "several options", "6": "several options", "7": "letter",
    "8": "several options", "9": "no option", "10a": "letter with its text",
    "10b": "letter and text of different options", "10c": "letter with its value",
    "10d": "letter with a remark", "10e": "negation", "10f": "several options",
    "10g": "letter with a remark", "10h": "no option",
}  # fmt: skip
ROW = re.compile(r'^ +(\d+[a-h]?)\. ((?:"[^"]+"(?:, )?)+) +(B|none) ', re.MULTILINE)
ROWS = {number: (answers, letter) for number, answers, letter in ROW.findall(letters.__doc__)}


@pytest.mark.parametrize("number", HOW)
def test_rows_of_letters(number):
    """The table is the documentation: each of its answers is decided as its row says."""
    assert ROWS.keys() == HOW.keys()
    answers, letter = ROWS[number]
    choices = ["3 cm", "5 cm"] if number == "10c" else ["cat", "dog", "a bird"]
    for answer in re.findall('"([^"]+)"', answers):
        option = letters.by_letter(answer, choices)
        assert option == Option(None if letter == "none" else letter, HOW[number]), answer


SMALL_LETTERS = {  # of cat, dog, a bird, fish: a letter written small, and what is no letter
    "b, c": None, "b,c": None, "B, c": None, "b. c.": None, "b, d": None, "b, b": "B",
    "B, a dog barks": "B", "B, I think": "B", "B, e.g. a dog": "B", "B, i.e. the dog": "B",
    "B, a C-shaped one": "B", "(B). If it barks": "B", "B, he barks": "B", "B, CD": None,
    "B, though option c fits": None, "B, the option I prefer": "B",
    "B, as a choice a vet would make": "B",
    # articles
    "C. bird": "C", "C, the bird": "C", "B. a dog": "B", "B. a cat": None, "B. bird": None,
    "B. the dog or the cat": None,
}


@pytest.mark.parametrize("answer, letter", SMALL_LETTERS.items())
def test_letters_written_small_and_articles(answer, letter):
    """The classic wrong version knows other letters by their capitals, and pays for "b, c"."""
    assert read_option(answer, ANIMALS).letter == letter


def test_articles_count_where_options_differ_in_them():
    """Of "a book" and "the book" each is named by its own words only."""
    books = ["book", "a book", "the book"]
    assert [read_option(f"B. {book}", books).letter for book in books] == [None, "B", None]


def test_gold_in_answer_is_the_classic_wrong_version():
    assert all(gold in "A B C D" for gold in "ABCD")
    assert read_option("A B C D", ANIMALS).letter is None


def test_options_that_are_letters():
    """A, B, C in another order: a letter is a letter, as in the gold. Other letters are texts."""
    assert [read_option(x, ["C", "A", "B"]).letter for x in "ABC"] == ["A", "B", "C"]
    assert read_option("B", ["B", "G", "O", "R"]).letter == "A"
    assert read_option("(D) G", ["K", "E", "N", "G"]).letter == "D"


@pytest.mark.parametrize("choices", [["K", "E", "N"], ["C", "A", "B"], ["cat", "dog"], []], ids=str)
def test_a_gold_letter_is_read_like_an_answer(choices):
    """Else no answer to the gold "E" of K, E, N could be right, not even E."""
    for letter in "ABCEKN":
        assert gold_letter(letter, choices) == read_option(letter, choices).letter


def test_a_gold_that_is_no_option_is_not_scored():
    """It would call every answer wrong."""
    example = {"question": "", "answer": "E", "answer_type": "choice", "choices": ["cat", "dog"]}
    assert grade(example, "<answer>A</answer>").score is None


def test_a_letter_and_another_value_name_nothing():
    """(B) 7 where option B is 5: one of the two is a slip, and nobody knows which."""
    lengths = ["3 cm", "5 cm", "8 cm"]
    assert read_option("(B) 5", lengths).letter == "B"
    assert read_option("(B) 7", lengths).letter is None
    assert read_option("5", lengths).letter == "B"


LISTS = {
    "1, 2": ["1", "2"], r"\{1, 2\}": ["1", "2"], "1 or 2": ["1", "2"],
    "1, 2 and 3": ["1", "2", "3"],
    r"\pm 3": ["3", "-3"], "1,234": ["1,234"],
    "(1, 2)": ["(1,2)"], "(1, 2), (3, 4)": ["(1,2)", "(3,4)"],
    "p=5, q=2; p=7, q=2": ["(5, 2)", "(7, 2)"],
}


@pytest.mark.parametrize("text, values", LISTS.items())
def test_lists(text, values):
    """A list, a set, a plus-minus; a tuple is one value."""
    assert list_of(text) == values


EXPRESSIONS = [  # gold, answer, are they equal? The kinds of math-verify's own cases
    # one value
    (r"\frac{1}{2}", r"\dfrac{2}{4}", True),
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{\pi}{4}", r"\pi/4", True),
    (r"\sqrt{12}", r"2\sqrt{3}", True),
    ("x^2+2x+1", "(x+1)^2", True),
    ("7 - 11b - d", "7 - 11b + d", False),
    ("4", "4!", False),
    ("4", r"4\pi", False),
    (r"28\%", "28", True),
    (r"10\sqrt{3} cm", r"10\sqrt{3}", True),
    # a value and its name
    ("x=5", "5", True),
    ("5", "x=5", True),
    ("(p,q)=(3,2)", "(3,2)", True),
    ("3", "f(x) = 3", True),
    ("3", "f(2) = 3", True),
    ("f(2) = 3", "3", True),
    ("f(2) = 3", "4", False),
    ("3", "2x(2) = 3", False),
    (r"\frac{AB}{CD}=\frac{1}{3}", r"\frac{1}{3}", True),
    ("AB=4, CD=5", "4, 5", True),
    # equations and inequalities
    ("2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}", True),
    ("7 = 11a + c", "11a + c", False),
    ("a+3z=0", "0", False),
    ("x < 3", "3 > x", True),
    ("x < 3", r"x \le 3", False),
    # several values
    (r"\{1,2,3\}", "3, 2, 1", True),
    (r"\{1,2,3\}", "1, 2", False),
    ("19, 46, and 82", "82, 19, 46", True),
    ("2", "x=1 or x=2", False),
    # tuples, intervals, ratios, matrices
    ("(1,2)", "(2,1)", False),
    ("[0,1)", "[0,1)", True),
    ("[0,1)", "(0,1)", False),
    (r"(-\infty, 2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)", True),
    ("11:7", "11:7", True),
    ("11:7", "7:11", False),
    (MATRIX, MATRIX.replace("pmatrix", "bmatrix"), True),
    (MATRIX, MATRIX.replace("4", "5"), False),
    # words
    (r"\text{no solution}", "no solution", True),
]


@pytest.mark.parametrize("gold, answer, equal", EXPRESSIONS)
def test_expressions(gold, answer, equal):
    """Only what is of the same kind is compared, and then by math-verify."""
    assert same_expression(answer, gold)[0] is equal


@pytest.mark.parametrize("words", ["million", "trillion"])
@pytest.mark.parametrize("length", [300, 310, 380, 5000])
def test_endless_digits_are_no_number(length, words):
    """A response in a loop is graded, as wrong, whatever it writes; it does not end the run."""
    example = {"question": "", "answer": "4", "answer_type": "number", "choices": []}
    endless = "9" * length
    for response in (f"{endless} {words}", f"the answer is {endless} {words} .", endless):
        assert grade(example, response).score == 0.0
        assert grade(example, f"<answer>{response}</answer>").score == 0.0


def test_two_numbers_in_words_are_not_one():
    """Two millions in a row are two numbers; a million and a thousand are one."""
    assert words_to_digits("two million three million") == "two million three million"
    assert words_to_digits("two million three thousand") == "2003000"


@pytest.mark.parametrize("row", TYPESETTING + TO_LATEX, ids=lambda row: row.before)
def test_examples_of_replacements(row):
    """The tables of typesetting are their own documentation: each row does what it says."""
    assert row.pattern.sub(row.replacement, row.before) == row.after


def test_marks_around_the_whole_are_one_pair():
    """Of "$1$ and $2$" the first mark and the last one are no pair; "\\$5" is money."""
    assert tidy("$1$ and $2$") == "$1$ and $2$"
    assert tidy(r"\(1\) and \(2\)") == r"\(1\) and \(2\)"
    assert tidy("$1$") == tidy("$$1$$") == tidy(r"\(1\)") == "1"
    assert tidy(r"$\$5$") == "$5" and tidy(r"$x = \$5$") == "x = $5"
