"""What earns a reward: the tables below are the documentation as well."""

import re

import pytest

from rewards import Grade, grade, is_in_format

FORMATS = [  # response, is it in the format?
    ("<think> a </think> <answer> 2 </answer>", True),
    ("<think>a</think><answer>2</answer>", True),
    ("\n <think>line one\nline two</think>\n\n<answer>\n2\n</answer> \n", True),
    ("<think> 1 < 2 and 3 > 2 </think> <answer> 2 </answer>", True),
    ("<think> </think> <answer> 2 </answer>", False),
    ("<think> a </think> <answer>  </answer>", False),
    ("Sure! <think> a </think> <answer> 2 </answer>", False),
    ("<think> a </think> <answer> 2 </answer> Done.", False),
    ("<think> a </think> so <answer> 2 </answer>", False),
    ("<think> a </think> <think> b </think> <answer> 2 </answer>", False),
    ("<think> a </think> <answer> 2 </answer> <answer> 3 </answer>", False),
    ("<answer> 2 </answer> <think> a </think>", False),
    ("<think> a <answer> 2 </answer> </think>", False),
    ("<think> a </think> <answer> 2", False),
    ("<THINK> a </THINK> <ANSWER> 2 </ANSWER>", False),
    ("the answer is 2", False),
    ("", False),
]

ANIMALS = ["cat", "dog", "a bird", "fish"]
TABLE = [  # answer type, gold, answer inside <answer>, score
    ("number", "2", "2", 1),
    ("number", "2", "2.0", 1),
    ("number", "2", "The answer is $\\boxed{2}$", 1),
    ("number", "2", "The answer is 2.", 1),
    ("number", "2", "two", 1),
    ("number", "2", "22", 0),
    ("number", "2", "", 0),
    ("number", "2", "1 2 3", 0),
    ("number", "5", "2 + 3 = 5", 1),
    ("number", "5", "x = 5", 1),
    ("number", "5", "3, 5", 0),
    ("number", "5", "4 or 5", 0),
    ("number", "1234", "1,234", 1),
    ("number", "1234", "12,34", 0),
    ("number", "12", "12 cm", 1),
    ("number", "12 cm", "12 cm", 1),
    ("number", "12 cm", "12 m", 0),
    ("number", "12", "\\$12", 1),
    ("number", "50", "50%", 1),
    ("number", "0.5", "50%", 1),
    ("number", "50%", "0.5", 1),
    ("number", "50%", "0.5%", 0),
    ("number", "3.14", "3.1416", 1),
    ("number", "3.1416", "3.14", 0),
    ("number", "3", "3.14", 0),
    ("number", "0.1", "0.14", 1),
    ("number", "0.5", "1/2", 1),
    ("number", "0.5", "\\frac{1}{2}", 1),
    ("number", "-0.5", "-\\frac{1}{2}", 1),
    ("number", "1200", "1.2e3", 1),
    ("number", "90", "90^\\circ", 1),
    ("number", "-3", "\u22123", 1),
    ("number", "3", "-3", 0),
    ("number", "<answer>7</answer>", "7", 1),
    ("number", "\\boxed{7}", "7", 1),
    ("choice", "B", "B", 1),
    ("choice", "B", "(B)", 1),
    ("choice", "B", "b.", 1),
    ("choice", "B", "B. dog", 1),
    ("choice", "B", "(B) dog", 1),
    ("choice", "B", "dog", 1),
    ("choice", "dog", "B", 1),
    ("choice", "dog", "Dog.", 1),
    ("choice", "B", "\\boxed{\\text{B}}", 1),
    ("choice", "B", "The answer is B", 1),
    ("choice", "B", "Option B", 1),
    ("choice", "B", "A", 0),
    ("choice", "B", "B. cat", 0),
    ("choice", "B", "A B C D", 0),
    ("choice", "B", "A and B", 0),
    ("choice", "B", "", 0),
    ("choice", "C", "a bird", 1),
    ("choice", "A", "a bird", 0),
    ("choice", "B", "maybe", 0),
    ("math", "\\frac{1}{2}", "0.5", 1),
    ("math", "x^2+1", "1 + x^2", 1),
    ("math", "\\sqrt{8}", "2\\sqrt{2}", 1),
    ("math", "x^2+1", "x^2-1", 0),
    ("math", "(1,2)", "(1, 2)", 1),
    ("math", "(1,2)", "(2, 1)", 0),
    ("math", "2\\pi", "6.28", 0),
    ("text", "yes", "Yes.", 1),
    ("text", "yes", "no", 0),
    ("text", "a red cube", "A  red cube", 1),
    ("text", "yes", "", 0),
    ("text", "yes", "yes and no", 0),
]


def example(answer_type, gold) -> dict:
    return {
        "answer": gold,
        "answer_type": answer_type,
        "choices": ANIMALS if answer_type == "choice" else [],
        "question": "q",
    }


def graded(answer_type, gold, answer, judge=None) -> Grade:
    """The grade of a response that gives this answer."""
    response = f"<think> so </think> <answer> {answer} </answer>"
    return grade(example(answer_type, gold), response, judge)


# --- Format --------------------------------------------------------------------------------------


@pytest.mark.parametrize("response, expected", FORMATS)
def test_format_table(response, expected):
    """One think block, one answer block, both with something in them, nothing around."""
    assert is_in_format(response) is expected


def test_mm_eureka_pattern_is_laxer():
    """MM-EUREKA's pattern is searched for, so it accepts text around; ours is a full match."""
    chatty = "Sure! <think> a </think> <answer> 2 </answer> Done."

    assert re.search(r"<think>(.+?)</think>\s*<answer>.+?</answer>", chatty, re.DOTALL)
    assert not is_in_format(chatty)


def test_wrong_format_still_earns_accuracy():
    """Format and accuracy are independent and summed."""
    assert grade(example("number", "2"), "the answer is 2 .").score == 1.0
    assert not is_in_format("the answer is 2 .")


# --- Accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer_type, gold, answer, score", TABLE)
def test_reward_table(answer_type, gold, answer, score):
    """Type, gold, answer: 1 or 0, with a reason. The format does not matter to the accuracy."""
    verdict = graded(answer_type, gold, answer)
    assert verdict.score == score
    assert verdict.reason


def test_reward_table_is_long_enough():
    """A short table would let an answer type go untested."""
    assert len(TABLE) >= 40


def test_options_that_are_letters():
    """Where options are letters themselves, in another order, gold and answer are read alike."""
    asked = {"answer": "A", "answer_type": "choice", "choices": ["C", "A", "B"], "question": "q"}
    scores = [grade(asked, f"<answer>{letter}</answer>").score for letter in "ABC"]
    assert scores == [1.0, 0.0, 0.0]


def test_gold_that_is_no_option_is_not_scorable():
    """The example is at fault: the completion is left out, not punished."""
    assert grade(example("choice", "whale"), "<answer> A </answer>").score is None
