"""MMMU, validation: 900 questions of 30 subjects, 847 multiple-choice and 53 open.

Source: arXiv 2311.16502, its evaluation code. `options` is a list written as text; `<image 1>` to
`<image 7>` in question and options are the columns image_1 to image_7. An open gold may be a list
of golds, written as text.

    choice   the letter that the response names (`letters.py`)
    open     the ends of its sentences behind "is", "so", "answer", ..., and the numbers in them:
             a number must equal the gold after rounding to 2 decimals, a text must contain it
"""

import re

from model.records import ExampleError
from scoring.benchmark import Benchmark, answer_part, lettered, make_example, read_list
from scoring.letters import named_option

CHOICE_HINT = "Answer with the option's letter from the given choices directly."
OPEN_HINT = "Answer the question using a single word or phrase."
IMAGE = re.compile(r"<image (\d+)>")
BEFORE_ANSWERS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,234
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1.2e3
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_"
    "Medicine Pharmacy Public_Health",
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics "
    "Energy_and_Power Materials Mechanical_Engineering",
}
DOMAIN_OF = {subject: domain for domain, names in DOMAINS.items() for subject in names.split()}


def read(row: dict) -> dict:
    """A row of MMMU/MMMU, or of its merged copy; also of the authors' files of responses."""
    options = read_options(row)
    is_choice = row["question_type"] == "multiple-choice"
    question = str(row.get("question") or "")
    if is_choice:
        question += "\n" + lettered(options)
    question, images = place_images(question, row)
    subject = subject_of(row["id"])
    return make_example(
        "mmmu", row["id"], question, gold_of(row), images=images, choices=options,
        hint=CHOICE_HINT if is_choice else OPEN_HINT,
        answer_type="choice" if is_choice else "text",
        categories={"domain": [DOMAIN_OF.get(subject)], "subject": [subject],
                    "question type": [row["question_type"]]},
        rule={"golds": read_golds(row.get("answer"))},
    )


def read_options(row: dict) -> list[str]:
    """From `options`, or from the letters and texts of a file of responses."""
    if row.get("options") is not None:
        return [str(option) for option in read_list(row["options"])]
    return [str(text) for text in (row.get("index2ans") or {}).values()]


def gold_of(row: dict) -> str | None:
    answer = row.get("answer")
    return answer if answer is None or isinstance(answer, str) else str(answer)


def read_golds(answer) -> list[str]:
    """All golds of a question: one, or a list that may be written as text."""
    if isinstance(answer, str) and answer.startswith("[") and answer.endswith("]"):
        try:
            answer = read_list(answer)
        except ExampleError:
            return [answer]  # brackets that are no list: "[0, 1)"
    return [str(gold) for gold in answer] if isinstance(answer, list) else [str(answer)]


def place_images(text: str, row: dict) -> tuple[str, list]:
    """The images in the order of their first marks, `<image>` in the place of each such mark.

    A mark that comes again is put in words. Images without a mark come first, by the convention of
    `model/prompts.py`, which also wants no mark at all then.
    """
    columns = {n: row.get(f"image_{n}") for n in range(1, 8)}
    present = {n: image for n, image in columns.items() if image is not None}
    order: list[int] = []

    def place(match: re.Match) -> str:
        number = int(match[1])
        if number in present and number not in order:
            order.append(number)
            return "<image>"
        return f"[image {number}]"

    text = IMAGE.sub(place, text)
    unmarked = [n for n in present if n not in order]
    return "<image>" * len(unmarked) + text, [present[n] for n in unmarked + order]


def subject_of(name: str) -> str:
    """validation_Art_Theory_7 -> Art_Theory."""
    return "_".join(str(name).split("_")[1:-1])


# --- Choices -------------------------------------------------------------------------------------


def extract(example: dict, response: str) -> str | None:
    """A letter; of an open question the whole answer, which `compare` takes apart."""
    text = answer_part(response)
    if example["answer_type"] == "choice":
        return named_option(text, example["choices"], ["({})", " {} "])
    return text


def compare(example: dict, extraction: str, judge=None) -> tuple[float, str]:
    """A letter must be the gold; an open answer is taken apart."""
    golds = example["rule"]["golds"]
    if example["answer_type"] == "choice":
        return float(extraction in golds), "rule, letter"
    return float(is_open_right(extraction, golds)), "rule, open"


# --- Open questions ------------------------------------------------------------------------------


def is_open_right(response: str, golds: list[str]) -> bool:
    """Does one of the answers that the response may give equal, or contain, one of the golds?"""
    wanted = [form for gold in golds for form in comparable(gold)]
    for answer in possible_answers(response):
        if isinstance(answer, float):
            if answer in wanted:
                return True
        elif any(isinstance(gold, str) and gold in answer for gold in wanted):
            return True
    return False


def possible_answers(response: str) -> list[str | float]:
    """The ends of sentences, and every number in them."""
    ends = ends_of_sentences(response)
    texts = list(ends)
    for end in ends:
        for pattern in NUMBERS:
            texts += re.findall(pattern, end)
    return [form for text in texts for form in comparable(text)]


def ends_of_sentences(response: str) -> list[str]:
    """Of each line the shortest end behind a word like "is"; without any, the whole response.

    In lower case no sentence begins with a capital, so that only lines are told apart: the authors'
    code lowers the text before it splits it.
    """
    response = response.strip().strip(".").lower()
    lines = response.split("\n")
    ends = []
    for i, line in enumerate(lines):
        words = BEFORE_ANSWERS + (("=",) if i == len(lines) - 1 else ())
        found = [line.split(word)[-1].strip() for word in words if word in line]
        shortest = min(found, key=len, default="")
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            ends.append(shortest)
    return ends or [response]


def comparable(text: str) -> list[str | float]:
    """A number rounded to 2 decimals; else lower case, a single letter with a space beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        pass
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


BENCHMARK = Benchmark(
    "mmmu", "lmms-lab/MMMU", None, "validation", read, extract, compare,
    extraction_key="official_prediction",
    verdict=lambda record: official_verdict(record),
)


def official_verdict(record: dict) -> bool | None:
    """From the official prediction, where it is a letter: of open questions the file keeps one."""
    if "official_prediction" not in record or record["question_type"] != "multiple-choice":
        return None
    return record["official_prediction"] == record["answer"]
