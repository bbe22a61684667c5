"""The accuracy of a response: find its answer, then compare it by the type of the answer."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rewards.bounding_boxes import box_reward
from rewards.boxes import boxes
from rewards.choice import gold_letter, named_in, read_option
from rewards.expression import same_expression
from rewards.extract import find_answer
from rewards.judge import Judge, ask_ahead
from rewards.judge_prompts import equivalence_question
from rewards.number import read_answer_number, read_gold_number, same_number
from rewards.piece import is_sentence
from rewards.typesetting import plain

OPEN_BOX = re.compile(r"\\+boxed\s*\{")
OPERATION = re.compile(r"[-+*/^\\√π]")


@dataclass(frozen=True)
class Grade:
    """`reason` names the extraction rule that won and how the equality was decided."""

    score: float | None  # 1 right, 0 wrong, None not scorable
    reason: str
    extracted: str | None = None


def grade(example: dict, response: str, judge: Judge | None = None) -> Grade:
    """Accuracy of a response to an example (see `sources`): 1, 0, or None if not scorable.

    None means that a judge or math-verify gave no verdict, or that the gold is no option. Such a
    completion is left out of its group: to call it wrong would teach something.
    """
    answer_type, question = example["answer_type"], example.get("question", "")
    if answer_type == "boxes":
        return Grade(box_reward(example["answer"], response), "overlap of boxes")
    found = find_answer(response, answer_type, example["choices"], question)
    if found.answer is None or not plain(found.answer):
        return Grade(0.0, f"no answer found ({found.rule})")

    gold = read_gold(example["answer"], answer_type)
    equal, how = compare(found.answer, gold, example, judge)
    return Grade(None if equal is None else float(equal), f"{found.rule}: {how}", found.answer)


def ask_judge(responses: Iterable[tuple[dict, str]], judge: Judge | None) -> None:
    """Ask the judge all questions in one batch, before grading.

    responses    (example, response)
    """
    texts = [(e, response) for e, response in responses if e["answer_type"] == "text"]
    ask_ahead(judge, lambda recorder: [grade(e, response, recorder) for e, response in texts])


def read_gold(text: str, answer_type: str) -> str:
    """Some sources wrap their gold in tags or a box, or give a whole solution as the gold."""
    gold = re.sub(r"</?answer>", "", text).strip()
    if "\\boxed" in gold and not boxes(gold):  # a box that never closes
        gold = OPEN_BOX.sub("", gold)
    if "\\boxed" in gold or (answer_type == "math" and is_sentence(gold)):
        return find_answer(f"<answer>{gold}</answer>", answer_type).answer or gold
    return gold


# --- Comparing -----------------------------------------------------------------------------------

Verdict = tuple[bool | None, str]  # equal or not (None: no verdict), and how it was decided


def compare(answer: str, gold: str, example: dict, judge: Judge | None) -> Verdict:
    """Equality by the type of the answer."""
    answer_type, question = example["answer_type"], example.get("question", "")
    if answer_type == "choice":
        return same_choice(answer, gold, example["choices"])
    if answer_type == "number":
        return same_value(answer, gold, question)
    if answer_type == "math":
        return same_expression(answer, gold, question)
    return same_text(answer, gold, question, judge)


def same_choice(answer: str, gold: str, choices: list[str]) -> Verdict:
    """Compare as options. The gold is a letter or an option's text."""
    wanted = gold_letter(gold, choices)
    if wanted is None:
        return None, f"gold {gold!r} is neither a letter nor an option"

    option = read_option(answer, choices)
    if option.letter is None:
        option = named_in(answer, choices)
    if option.letter is None:
        return False, option.how
    return option.letter == wanted, f"option {option.letter} by {option.how}"


def same_value(answer: str, gold: str, question: str) -> Verdict:
    """Compare as numbers where both are plain numbers, else as expressions."""
    wanted = read_gold_number(gold, question)
    number = read_answer_number(answer, wanted, question)
    if wanted is not None and number is not None:
        return same_number(number, wanted)
    if wanted is not None and not OPERATION.search(answer):  # then it is no expression either
        return False, "not one number"
    return same_expression(answer, gold, question)


def same_text(answer: str, gold: str, question: str, judge: Judge | None) -> Verdict:
    """The same words, else what the judge says."""
    if plain(answer) == plain(gold):
        return True, "same words"
    if judge is None:
        return False, "other words (no judge set)"

    verdict = judge.yes(equivalence_question(question, gold, answer))
    if verdict is None:
        return None, "judge gave no answer"
    return verdict, "judge says yes" if verdict else "judge says no"
