"""Where a response's answer is found: every rule's own example, and what must not be found."""

import time

import pytest

from rewards.boxes import boxes, content_of, find_boxes
from rewards.extract import IN_PROSE, IN_TAGS, extract_answer, find_answer

ANIMALS = ["cat", "dog", "a bird", "fish"]
CHOICE_ANSWERS = [rule.answer for rule in IN_PROSE if not any(c.isdigit() for c in rule.answer)]


@pytest.mark.parametrize("rule", IN_PROSE, ids=lambda rule: rule.name)
def test_examples_of_prose_rules(rule):
    """The table is the documentation: each example is found by its own rule."""
    is_denial = rule.read_as == "denial"
    choices = ["yes", "no"] if is_denial else ANIMALS
    question = "Is it the largest?" if is_denial else ""
    answer_type = "choice" if rule.answer in CHOICE_ANSWERS else rule.types[0]

    found = find_answer(rule.example, answer_type, choices, question)
    assert found.rule == rule.name
    assert found.answer.rstrip(".") == rule.answer.rstrip(".")


@pytest.mark.parametrize("rule", IN_TAGS, ids=lambda rule: rule.name)
def test_examples_of_block_rules(rule):
    found = find_answer(f"<think> a </think> <answer> {rule.example} </answer>", "number")
    assert (found.answer, found.rule) == (rule.answer, rule.name)


def test_the_tables_are_short():
    """What a reader cannot take in at once is no documentation."""
    assert len(IN_TAGS) + len(IN_PROSE) <= 25
    assert len({rule.name for rule in IN_TAGS + IN_PROSE}) == len(IN_TAGS) + len(IN_PROSE)


RESPONSES = [  # response, answer type, the answer found in it
    # blocks: the last one counts, closed or not; an empty one says nothing
    ("<answer> 1 </answer> wait <answer> 2 </answer>", "number", "2"),
    ("<think> a </think> <answer> 2", "number", "2"),
    ("<answer></answer> 5", "number", None),
    # boxes: the last statement counts, and a later "final answer" more
    ("so \\boxed{3} or \\boxed{\\frac{1}{2}}", "math", "3, \\frac{1}{2}"),
    ("\\boxed{1}. Then \\boxed{2}.", "math", "2"),
    ("\\boxed{200} of it. Final answer: 455", "number", "455"),
    ("\\boxed{unclosed", "math", None),
    # words
    ("The answer is 2.5.", "number", "2.5"),
    ("the answer is 2 .", "number", "2"),
    ("The answer is 3. Sorry, the answer is 4.", "number", "4"),
    ("line\nanswer : 3", "number", "3"),
    ("Answer: B", "choice", "B"),
    # nothing
    ("nothing here", "number", None),
    ("I like B", "choice", None),
]


@pytest.mark.parametrize("response, answer_type, answer", RESPONSES)
def test_extraction(response, answer_type, answer):
    """Blocks, boxes, words; the last statement counts."""
    choices = ANIMALS if answer_type == "choice" else []
    assert extract_answer(response, answer_type, choices) == answer


BOXES = [  # text, contents of its boxes, the last content
    (r"\boxed{a}", ["a"], "a"),
    (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"], r"\frac{1}{2}"),
    (r"\boxed{\{1\}}", [r"\{1\}"], r"\{1\}"),
    (r"\boxed{1} and \boxed{2}", ["1, 2"], "2"),
    (r"\boxed{1}, \boxed{2}", ["1, 2"], "2"),
    (r"\boxed{1}. And \boxed{2}", ["1", "2"], "2"),
    (r"x = \boxed{1}, so y = \boxed{2}", ["1", "2"], "2"),
    (r"\boxed{p = \boxed{3}}", ["3"], "3"),
    (r"} \boxed{5}", ["5"], "5"),
    (r"\boxed{", [], None),
    (r"\boxed{\boxed{", [], None),
    ("none", [], None),
]


@pytest.mark.parametrize("text, contents, last", BOXES)
def test_boxes(text, contents, last):
    """Braces are balanced; boxes of one statement are a list; of nested boxes the inner counts."""
    assert boxes(text) == contents
    found = find_boxes(text)
    assert (content_of(found[-1], text) if found else None) == last


PIECES = [
    r"\boxed{", r"\boxed{1} and ", "{", r"\text{", "answer ", "the answer is ", "1", "1,", "a",
    "A ", " ", "\n", "**", "so ", "two ", "(A) ", "$ ", "= 1 ", r"\frac{1}{", "is ", ":\n",
    "option A ",
    "- ", "5 m ", "cannot ", "<answer>", "</answer>", "答案", "hundred and ",
]


@pytest.mark.parametrize("piece", PIECES)
def test_time_is_linear(piece):
    """A megabyte is graded in a moment: no pattern may backtrack over all of a response."""
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
