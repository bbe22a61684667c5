"""Consistency: what a reasoning concludes, and real responses that were labelled by reading."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from rewards import grade, is_in_format
from rewards.consistency import OPENING_RULES, check_consistency

# --- The rule ------------------------------------------------------------------------------------

HOW_MANY = "How many different things are there?"
WHAT_ANGLE = "What is angle B in degrees?"
CASES = [  # question, answer type, reasoning, answer, outcome
    # boxed; the answer is
    (HOW_MANY, "number", "I see 3. So \\boxed{4}.", "4", "agrees"),
    (HOW_MANY, "number", "I see 4. So \\boxed{3}.", "4", "disagrees"),
    (WHAT_ANGLE, "math", "The answer is 30°. This is acute.", "30", "agrees"),
    (WHAT_ANGLE, "math", "B = 30. Therefore, the answer is 60°.", "30", "disagrees"),
    # the last value of the last sentence
    (WHAT_ANGLE, "math", "Therefore, angle B = 90 - 60 = 30 degrees.", "30", "agrees"),
    (WHAT_ANGLE, "math", "Since A is 60°, angle B is also 60°.", "30", "disagrees"),
    (WHAT_ANGLE, "number", "That is 12 + 18 = 30 .", "30", "agrees"),
    ("", "math", "Hence AB = 2 * √2 = 2√2.", "2√{2}", "agrees"),
    ("", "math", "So it is $\\frac{1}{2}$.", "0.5", "agrees"),
    ("", "math", "So it is \\( 65\\pi \\).", "65\\pi", "agrees"),
    ("", "math", "Therefore it equals 0.333.", "0.33", "agrees"),
    ("", "math", "Therefore it equals 0.33.", "0.333", "agrees"),
    ("", "number", "So he needs forty-two.", "42", "agrees"),
    ("", "number", "So he needs 7. It was a long way.", "7", "agrees"),
    # a count
    (HOW_MANY, "number", "There are four things: a red car, two buses and a tram.", "4", "agrees"),
    (HOW_MANY, "number", "There are four things.\nThe red car is the largest.", "4", "agrees"),
    (HOW_MANY, "number", "So the image contains three things: a, b and c.", "4", "disagrees"),
    (HOW_MANY, "number", "There are 3 rows of 4 dots each.", "12", "unsure"),  # not a conclusion
    ("How many dots?", "number", "There are 3 rows of 4 dots.", "12", "unsure"),
    ("How many dots?", "number", "There are 3 rows of 4 dots.", "4", "agrees"),
    ("How many rows?", "number", "There are 3 rows.", "12", "unsure"),
    ("How many rows?", "number", "There are 3 rows.", "3", "agrees"),
    ("How many rows?", "number", "So there are 3 rows.", "12", "disagrees"),
    (HOW_MANY, "number", "There are about 3 things: a, b and more.", "3", "unsure"),
    (HOW_MANY, "number", "There is one car. There is one bus. So, there are two things.", "2",
     "agrees"),
    (HOW_MANY, "number", "There are 2 cars. There are 3 buses.", "5", "unsure"),
    # options of a list
    (HOW_MANY, "number", "A. 10\nB. 9\nB. 9", "9", "agrees"),
    (HOW_MANY, "number", "A. 10", "9", "disagrees"),
    (HOW_MANY, "number", "A. 10\nB. 9\nC. 8", "8", "unsure"),
    # it gives up
    (WHAT_ANGLE, "math", "B = 30? We cannot determine it from this.", "30", "disagrees"),
    # nothing that can be compared
    (WHAT_ANGLE, "math", "The angles are equal, as the lines are parallel.", "30", "unsure"),
    (WHAT_ANGLE, "math", "", "30", "unsure"),
    ("", "math", "So A = 12\\pi.", "37.68", "unsure"),
]


def outcome(question, answer_type, reasoning, answer, choices=()) -> str:
    example = {
        "question": question, "answer": answer, "answer_type": answer_type,
        "choices": list(choices),
    }  # fmt: skip
    response = f"<think>{reasoning}</think> <answer>{answer}</answer>"
    return check_consistency(example, response)


@pytest.mark.parametrize("question, answer_type, reasoning, answer, expected", CASES)
def test_the_four_outcomes(question, answer_type, reasoning, answer, expected):
    assert outcome(question, answer_type, reasoning, answer) == expected


PLANS = [  # a value at the end, and no conclusion
    "Since AB = 6, we can find AD.",
    "Then we can find AD with AB = 6.",
    "We multiply the length of one side by 6.",
    "The rest is not 6.",
    "Let us use that AB = 6",
    "So AD = 6. However, a length cannot be twice as long.",
    "So AD is 6 or 8.",
    "Look at side 6.",
]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("answer", ["6", "7"])
def test_values_that_are_no_conclusion(plan, answer):
    """Neither for nor against an answer. The classic rule grades the reasoning as a response."""
    assert outcome("How long is AD?", "number", plan, answer) == "unsure"


def test_the_classic_rule_is_wrong_on_both_sides():
    example = {"question": HOW_MANY, "answer": "6", "answer_type": "number", "choices": []}
    plan = "Since AB = 6, let us find AD. AD is what we look for with 6"
    assert grade(example, plan).score == 1.0, "it takes a given value for a conclusion"
    assert outcome(HOW_MANY, "number", plan, "6") == "unsure"


@pytest.mark.parametrize(
    "reasoning, answer, expected",
    [
        ("It barks. So it must be (B).", "B", "agrees"),
        ("It barks. So it must be (B).", "dog", "agrees"),
        ("It barks, so it is the dog.", "B", "agrees"),
        ("The answer is A.", "B", "disagrees"),
        ("A dog, since it barks. Or is it?", "B", "unsure"),  # what it begins with
        ("So it is either the dog or the cat.", "B", "unsure"),
        ("It is hard to see.", "B", "unsure"),
    ],
)
def test_options(reasoning, answer, expected):
    choices = ["cat", "dog", "bird"]
    assert outcome("Which animal is it?", "choice", reasoning, answer, choices) == expected


@pytest.mark.parametrize(
    "reasoning, expected",
    [
        ("So it is a red bus.", "agrees"),
        ("The answer is: A red bus", "agrees"),
        ("So it is not a red bus.", "unsure"),
        ("So it is a blue bus.", "unsure"),  # other words may mean the same
    ],
)
def test_words(reasoning, expected):
    assert outcome("What is it?", "text", reasoning, "a red bus") == expected


def test_rules_of_the_opening_are_known_by_name():
    """What a response begins with is its answer, what a reasoning begins with no conclusion."""
    assert {"first words", "denial", "option's text, first"} == OPENING_RULES


# --- Real responses ------------------------------------------------------------------------------

FILES = {
    "clevr": "r1v_superclevr_qwen2vl_2b_instruct",
    "geoqa": "r1v_geoqa_qwen2vl_7b_instruct",
}
# What the reasoning of a response concludes, against its answer: 100 labels by reading, before the
# rule was run on any. Among responses with right and wrong answers, those that disagree were looked
# for, since they are rare. The rule was made with the first half; the second half had no part.
FIRST_HALF = [  # file, label, ids
    ("clevr", "agrees",
     "3 4 12 16 48 51 88 102 130 138 152 168 186 195"),
    ("clevr", "unsure",
     "38 85"),
    ("geoqa", "agrees",
     "19 21 54 96 167 190 278 297 348 389 427 551 571 596 608 621 633 662 663 690"),
    ("geoqa", "disagrees",
     "13 147 373 376 398 505 570 667"),
    ("geoqa", "unsure",
     "337 361 461 541 556 652 682"),
]
SECOND_HALF = [
    ("clevr", "agrees",
     "14 28 30 68 74 81 107 113 126 132 153 185 197"),
    ("clevr", "disagrees",
     "177 199"),
    ("clevr", "unsure",
     "15 110"),
    ("geoqa", "agrees",
     "79 125 159 160 161 162 236 242 266 304 306 414 425 481 489 569 613 670 711 716"),
    ("geoqa", "disagrees",
     "110 134 329 456 590 632"),
    ("geoqa", "unsure",
     "33 424 435 439 484 578"),
]


def labels(half) -> dict[tuple[str, str], str]:
    return {(file, id): label for file, label, ids in half for id in ids.split()}


def precision(half, found: dict) -> dict[str, tuple[int, int]]:
    """By outcome: how often the label says the same, and how often it was found at all."""
    wanted = labels(half)
    counts = Counter((found[key], wanted[key]) for key in wanted)
    return {
        name: (counts[name, name], sum(n for (o, _), n in counts.items() if o == name))
        for name in ("agrees", "disagrees")
    }


def test_a_hundred_labels_none_twice():
    assert len(labels(FIRST_HALF)) == len(labels(SECOND_HALF)) + 2 == 51
    assert not labels(FIRST_HALF).keys() & labels(SECOND_HALF).keys()


@pytest.mark.skipif(not os.environ.get("SPECS_REAL_DATA"), reason="SPECS_REAL_DATA is not set")
def test_real_reasoning():
    """Precision on the labels, and a verdict on nine in ten of the right responses in format."""
    found, has_verdict = {}, {}
    for name, file in FILES.items():
        path = Path(os.environ["SPECS_REAL_DATA"]) / f"{file}.jsonl.gz"
        right = []
        for line in gzip.open(path, "rt", encoding="utf-8"):
            example = {**json.loads(line), "choices": []}
            if not is_in_format(example["response"]):
                continue
            found[name, example["id"]] = check_consistency(example, example["response"])
            if grade(example, example["response"]).score == 1.0:
                right.append(found[name, example["id"]] in ("agrees", "disagrees"))
        has_verdict[name] = sum(right) / len(right)

    assert has_verdict["clevr"] >= 0.90
    assert has_verdict["geoqa"] >= 0.90
    for half in (FIRST_HALF, SECOND_HALF, FIRST_HALF + SECOND_HALF):
        for name, least in (("agrees", 0.97), ("disagrees", 0.90)):
            same, all_found = precision(half, found)[name]
            assert all_found >= 5
            assert same / all_found >= least, (name, same, all_found)
