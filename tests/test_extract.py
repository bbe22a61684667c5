"""Where a response's answer is found: every rule's own example, and what must not be found."""

import time

import pytest

from rewards.extract import IN_PROSE, IN_TAGS, extract_answer, find_answer
from rewards.views import boxes, last_boxed

ANIMALS = ["cat", "dog", "a bird", "fish"]


@pytest.mark.parametrize("rule", IN_PROSE, ids=lambda rule: rule.name)
def test_examples_of_prose_rules(rule):
    """The table is the documentation: each example is found by its own rule."""
    choices = ["yes", "no"] if rule.read == "denial" else ANIMALS
    question = "Is it the largest?" if rule.read == "denial" else ""
    types = [t for t in rule.types.split() if t != "text"]
    if "choice" in types and rule.name not in ("boxed", "is N", "number that concludes"):
        answer_type = "choice"
    else:
        answer_type = types[0]
    found = find_answer(rule.example, answer_type, choices, question)
    assert (found.answer.rstrip("."), found.rule) == (rule.answer.rstrip("."), rule.name)


@pytest.mark.parametrize("rule", IN_TAGS, ids=lambda rule: rule.name)
def test_examples_of_block_rules(rule):
    found = find_answer(f"<think> a </think> <answer> {rule.example} </answer>", "number")
    assert (found.answer, found.rule) == (rule.answer, rule.name)


def test_the_tables_are_short():
    """What a reader cannot take in at once is no documentation."""
    assert len(IN_TAGS) + len(IN_PROSE) <= 25
    assert len({rule.name for rule in IN_TAGS + IN_PROSE}) == len(IN_TAGS) + len(IN_PROSE)


@pytest.mark.parametrize("response, answer_type, answer", [
    ("<answer> 1 </answer> wait <answer> 2 </answer>", "number", "2"),
    ("<think> a </think> <answer> 2", "number", "2"),
    ("The answer is 2.5.", "number", "2.5"), ("the answer is 2 .", "number", "2"),
    ("Answer: B", "choice", "B"),
    ("nothing here", "number", None), ("I like B", "choice", None),
    ("<answer></answer> 5", "number", None),
    ("line\nanswer : 3", "number", "3"), ("\\boxed{unclosed", "math", None),
    ("so \\boxed{3} or \\boxed{\\frac{1}{2}}", "math", "3, \\frac{1}{2}"),
    ("\\boxed{1}. Then \\boxed{2}.", "math", "2"),
    ("The answer is 3. Sorry, the answer is 4.", "number", "4"),
    ("\\boxed{200} of it. Final answer: 455", "number", "455")])
def test_extraction(response, answer_type, answer):
    """Blocks, boxes, plain words; the last statement counts; an empty block says nothing."""
    choices = ANIMALS if answer_type == "choice" else []
    assert extract_answer(response, answer_type, choices) == answer


@pytest.mark.parametrize("text, lists, last", [
    (r"\boxed{a}", ["a"], "a"), (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"], r"\frac{1}{2}"),
    (r"\boxed{1} and \boxed{2}", ["1, 2"], "2"), (r"\boxed{1}, \boxed{2}", ["1, 2"], "2"),
    (r"x = \boxed{1}, so y = \boxed{2}", ["1", "2"], "2"),
    (r"\boxed{1}. And \boxed{2}", ["1", "2"], "2"),
    (r"\boxed{p = \boxed{3}}", ["3"], "3"), (r"\boxed{\{1\}}", [r"\{1\}"], r"\{1\}"),
    (r"\boxed{", [], None),
    ("none", [], None), (r"\boxed{\boxed{", [], None), (r"} \boxed{5}", ["5"], "5")])
def test_boxes(text, lists, last):
    """Braces are balanced, several boxes in one statement are a list, of nested boxes the inner
    one counts.
    """
    assert (boxes(text), last_boxed(text)) == (lists, last)


@pytest.mark.parametrize("piece", [
    r"\boxed{", r"\boxed{1} and ", "{", r"\text{", "answer ", "the answer is ", "1", "1,", "a", "A ",
    " ", "\n", "**", "so ", "two ", "(A) ", "$ ", "= 1 ", r"\frac{1}{", "is ", ":\n", "option A ", "- ",
    "5 m ", "cannot ", "<answer>", "</answer>", "答案", "hundred and "])
def test_time_is_linear(piece):
    """A megabyte of anything is graded in a moment: no pattern may backtrack over the whole
    response.
    """
    for answer_type in ("number", "choice", "math", "text"):
        choices = ANIMALS if answer_type == "choice" else []
        for wrap in ("{}", "<answer>{}</answer>"):
            response = wrap.replace("{}", piece * (1_000_000 // len(piece)))
            began = time.process_time()
            find_answer(response, answer_type, choices, "how many?")
            assert time.process_time() - began < 2.0, (answer_type, wrap)


def test_a_page_takes_two_milliseconds():
    """2,000 characters, answer at the end, no expression that math-verify would be asked about."""
    page = "The line has a length of 3 cm, and 4 + 5 = 9 (see A). So far so good.\n" * 27
    endings = [("number", [], "Therefore there are 12."), ("choice", ANIMALS, "So we choose (B)."),
               ("math", [], r"The answer is $\frac{1}{2}$.")]
    for answer_type, choices, ending in endings:
        find_answer(page + ending, answer_type, choices)
        began = time.process_time()
        for i in range(50):
            find_answer(page + " " * i + ending, answer_type, choices)
        # Twice the aim of 2 ms: tests run on busy machines.
        assert (time.process_time() - began) / 50 < 0.004
