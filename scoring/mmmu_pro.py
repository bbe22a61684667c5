"""MMMU-Pro: 1,730 questions with up to ten options, config "standard (10 options)" or "vision".

Source: arXiv 2409.02813, its evaluation code. In the vision config question and options are in the
image. By rule: a single letter behind the last "Answer:", else the marks of `letters.py`.
"""

from scoring.benchmark import LETTERS, Benchmark, answer_part, lettered, make_example
from scoring.letters import named_option
from scoring.mmmu import DOMAIN_OF, place_images, read_options, subject_of

HINT = (
    "Answer the preceding multiple choice question. The last line of your response should be of "
    "the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options. "
    "Think step by step before answering."
)
VISION = "Write out the multiple-choice question in the image and then solve it."


def read(row: dict) -> dict:
    """A row of MMMU/MMMU_Pro; of the vision config it has one column `image`."""
    options = read_options(row)
    subject = row.get("subject") or subject_of(row["id"])
    if row.get("image") is not None:
        question, images = VISION, [row["image"]]
    else:
        text = f"{row.get('question') or ''}\n{lettered(options, '{letter}. {option}')}"
        question, images = place_images(text, row)
    return make_example(
        "mmmu_pro", row["id"], question, row.get("answer"), hint=HINT, images=images,
        choices=options, answer_type="choice",
        categories={"domain": [DOMAIN_OF.get(subject)], "subject": [subject]}, rule={},
    )


def extract(example: dict, response: str) -> str | None:
    """A letter. "Answer: B" may stand in the <answer> block, or without any."""
    text = answer_part(response)
    behind = text.rpartition("Answer:")[2].strip() if "Answer:" in text else ""
    found = [a for a in LETTERS[: len(example["choices"])] if a in behind]
    if len(found) == 1:
        return found[0]
    return named_option(text, example["choices"], ["({})", "{} ", "{}."])


def compare(example: dict, extraction: str, judge=None) -> tuple[float, str]:
    return float(extraction == example["answer"]), "rule, letter"


BENCHMARK = Benchmark(
    "mmmu_pro", "MMMU/MMMU_Pro", "standard (10 options)", "test", read, extract, compare,
    extraction_key="pred_indexs", verdict=lambda record: record.get("if_right"),
)
