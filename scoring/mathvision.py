r"""MathVision (MATH-V), testmini 304 questions, test 3,040. Source: arXiv 2402.14804, its code.

By rule: an answer is the content of the last \boxed, or what follows "the answer is", or a number;
it is right if it equals the gold letter or the text of the gold option as text, or as a LaTeX value
rounded to 2 decimals. A value in degrees is none (`latex_value.py`).
"""

import re
from pathlib import Path

from rewards.math_worker import MathVerifier
from rewards.views import last_block
from scoring.benchmark import LETTERS, Benchmark, lettered, make_example, read_list

HINT = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a '
    'multiple choice question, only one letter is allowed in the "\\boxed{}".'
)
STATED = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
DROPPED = (  # in this order, before two answers are compared
    " ", "\\,", "\n", "\\text", "\\mbox", "\\left", "\\right", "^{\\circ}", "^\\circ", "{m}^3",
    "m^3", "{units}", "units", "{km}", "km", "\\!", "\\$", "$", "\\%",
)
PLAIN = re.compile(r"-?\d+(\.\d+)?")
HAS_VALUE = re.compile(r"\d|\\|\be\b")

same_value = MathVerifier(
    timeout_s=5.0, script=str(Path(__file__).with_name("latex_value.py"))
)


def read(row: dict) -> dict:
    """A row of MathLLMs/MathVision. One image holds all that the question calls image 1, 2, ..."""
    options = [str(option) for option in read_list(row.get("options"))]
    question = re.sub(r"<image(\d*)>", r"[image \1]", str(row["question"]))
    if options and options != list(LETTERS[: len(options)]):  # letters alone are in the picture
        question += "\n" + lettered(options)
    image = row.get("decoded_image") or row.get("image")
    return make_example(
        "mathvision", row["id"], question, row.get("answer"), hint=HINT,
        images=[image] if image else [], choices=options,
        answer_type="choice" if options else "math",
        categories={"subject": [row.get("subject")], "level": [f"level {row.get('level')}"]},
        rule={},
    )


# --- The authors' extraction ---------------------------------------------------------------------


def extract(example: dict, response: str) -> str | None:
    """The authors' rule, on the <answer> block if there is one."""
    block = last_block(response)
    text = (response if block is None else block).strip()
    for letter in "ABCDE":
        if text.endswith((f" {letter}.", f" ({letter}).")) or text.startswith(
            (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        ):
            text = letter

    end = text.split("is ")[-1].rstrip(".")
    if is_number(end):
        text = end
    if "oxed{" not in text:
        text = after_statement(text)
    elif text.count("oxed{") > 1:
        text = "\\boxed{" + text.split("oxed{")[-1]

    answer = normalise(text)
    for letter in "abcde":
        answer = answer.replace(f"({letter})", letter)
    for letter in "abcde":
        answer = answer.replace(f"{{{letter}}}", letter)
    return answer.rstrip(".").lstrip(":").strip()


def after_statement(text: str) -> str:
    """What follows "the answer is", to the end of its sentence."""
    for words in STATED:
        for start in (words, words.replace("the", "The")):
            if start in text:
                text = text.split(start)[-1].strip().split("\n")[0].split(". ")[0]
    return text


def normalise(text: str) -> str:
    """Lower case, out of its box, without spaces, units and LaTeX's spacing."""
    text = text.lower().replace("{}", "")
    boxed = re.findall(r"oxed{(.*)}", text, re.DOTALL)
    text = boxed[-1] if boxed else text
    closed, opened = text.find("}"), text.find("{")
    if closed != -1 and (opened == -1 or closed < opened):
        text = text[:closed]
    text = text.split("=")[-1].split("\\approx")[-1]

    text = text.replace("\\\\", "\\").replace("∞", "\\infty").replace("+\\infty", "\\infty")
    for mark in DROPPED:
        text = text.replace(mark, "")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    if text.startswith("."):
        text = "0" + text
    if text == "0.5":
        text = "\\frac{1}{2}"
    return re.sub(r"^(\d+)/(\d+)$", r"\\frac{\1}{\2}", text)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- The authors' rule ---------------------------------------------------------------------------


def compare(example: dict, extraction: str, judge=None) -> tuple[float, str]:
    """Equal to the gold letter, or to the text of its option, as text or as a value."""
    gold = example["answer"]
    golds = [gold]
    if example["choices"] and gold in LETTERS[: len(example["choices"])]:
        golds.append(example["choices"][LETTERS.index(gold)])
    for wanted in golds:
        if is_same(extraction, wanted):
            return 1.0, f"rule, equal to {wanted!r}"
    return 0.0, "rule, other answer"


def is_same(answer: str, gold: str) -> bool:
    """As text in lower case, else as values rounded to 2 decimals."""
    answer, gold = answer.lower().strip(), gold.lower().strip()
    if not answer or not gold:
        return False
    if answer == gold:
        return True
    if PLAIN.fullmatch(answer) and PLAIN.fullmatch(gold):
        return round(float(answer), 2) == round(float(gold), 2)
    if re.fullmatch("[a-df-z]", gold) or not HAS_VALUE.search(answer):
        return False  # letters have no value, but for e
    return same_value(gold, answer) is True


BENCHMARK = Benchmark(
    "mathvision", "MathLLMs/MathVision", None, "testmini", read, extract, compare,
    extraction_key="model_answer", verdict=lambda record: record.get("correct"),
)
