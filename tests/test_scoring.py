"""Public benchmarks in small: the exact public columns through the real loader and scorer.

Scores are computed by hand; the classic wrong reading stands beside the right one.
"""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

import evaluate
from conftest import blank
from harness.run import read_jsonl
from model.records import ExampleError
from scoring import BENCHMARKS, category_rates, find_benchmark, grade_example, mathvision, mmmu
from scoring.benchmark import grade_extraction, open_benchmark, read_list
from scoring.latex_value import readable_part, value
from scoring.mathvista import edit_distance, nearest_option
from scoring.score_file import score_file

PNG = io.BytesIO()
blank().save(PNG, "PNG")
IMAGE = {"bytes": PNG.getvalue(), "path": "images/1.jpg"}

# One or more rows of each public data set, every column there.
MATHVISTA = {
    "pid": "3", "question": "How long is AB?", "image": "images/3.jpg", "decoded_image": IMAGE,
    "choices": ["135°", "140°", "145°", "150°"], "unit": None, "precision": None,
    "answer": "145°", "question_type": "multi_choice", "answer_type": "text",
    "metadata": {"category": "math-targeted-vqa", "context": "geometry diagram",
                 "grade": "high school", "img_height": 60, "img_width": 131, "language": "english",
                 "skills": ["geometry reasoning", "algebraic reasoning"], "source": "GeoQA+",
                 "split": "testmini", "task": "geometry problem solving"},
    "query": "Hint: Please answer the question and provide the correct option letter, e.g., A, B, "
             "C, D, at the end.\nQuestion: How long is AB?\nChoices:\n(A) 135°\n(B) 140°",
}
FREE = {**MATHVISTA, "choices": None, "question_type": "free_form"}
MATHVERSE = {
    "sample_index": "1", "problem_index": "1", "problem_version": "Vision Only", "question": "",
    "image": IMAGE, "answer": "C", "question_type": "multi-choice",
    "metadata": {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry",
                 "subfield": "Angle"},
    "query_wo": "", "query_cot": "According to the question shown in the image, please answer.",
    "question_for_eval": "How large is angle 1?\nChoices:\nA:40°\nB:60°\nC:70°\nD:80°",
}
MATHVISION = {
    "id": "2", "question": "Which bike costs most?\n<image1>\n<image2>",
    "options": ["$\\frac{3}{4}$", "1", "2", "3", "4"], "image": "images/2.jpg",
    "decoded_image": IMAGE, "answer": "A", "solution": None, "level": 2, "subject": "arithmetic",
}
MMMU = {
    "id": "validation_Art_Theory_7", "question": "<image 1> and <image 2>: see <image 1>?",
    "options": "['a cat', '<image 3>', 'a dog', 'none']", "explanation": "", "img_type": "['x']",
    **{f"image_{n}": IMAGE if n < 4 else None for n in range(1, 8)}, "answer": "B",
    "topic_difficulty": "Easy", "question_type": "multiple-choice", "subfield": "Painting",
}
OPEN = {**MMMU, "id": "validation_Math_1", "question": "How many?", "options": "[]",
        "question_type": "open", "answer": "['24/7', '3.429']"}
MMMU_PRO = {
    "id": "test_History_1", "question": "What is it? <image 1>",
    "options": str([f"option {i}" for i in range(10)]), "explanation": "?", "image_1": IMAGE,
    **{f"image_{n}": None for n in range(2, 8)}, "img_type": "['x']", "answer": "J",
    "topic_difficulty": "Easy", "subject": "History",
}
VISION = {"id": "test_History_2", "image": IMAGE, "options": MMMU_PRO["options"], "answer": "B",
          "subject": "History"}
ROWS = [("mathvista", MATHVISTA), ("mathvista", FREE), ("mathverse", MATHVERSE),
        ("mathvision", MATHVISION), ("mmmu", MMMU), ("mmmu", OPEN), ("mmmu_pro", MMMU_PRO),
        ("mmmu_pro", VISION)]


def score(name: str, row: dict, response: str, **more) -> float | None:
    """A row of the data set and a response, as evaluate.py grades them."""
    return grade_example(find_benchmark(name).read({**row, **more}), response).score


ROOT = Path(__file__).parent.parent

# --- Loading -------------------------------------------------------------------------------------


def as_parquet(folder: Path, name: str, rows: list[dict]) -> str:
    """The rows as the hub holds them: images embedded, in a file named by config and split."""
    table = datasets.Dataset.from_list(rows)
    for column, feature in table.features.items():
        if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
            table = table.cast_column(column, datasets.Image())
    benchmark = find_benchmark(name)
    file = folder / (benchmark.config or "data") / f"{benchmark.split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    table.to_parquet(str(file))
    return str(folder)


@pytest.mark.parametrize("name, row", ROWS, ids=[f"{name}{i}" for i, (name, _) in enumerate(ROWS)])
def test_public_columns_become_prompts(tiny, tmp_path, name, row):
    """Through parquet and the real loader to a prompt, with the images that the row has."""
    _, encoder = tiny
    folder = as_parquet(tmp_path, name, [row])
    examples = open_benchmark(find_benchmark(name), folder, None, None, pytest.fail)
    assert examples[0]["instruction"].startswith("First think")
    assert encoder.encode(examples[0]).pixel_values is not None

    official = open_benchmark(find_benchmark(name), folder, 1, "official", pytest.fail)[0]
    assert official["instruction"] == find_benchmark(name).read(row)["hint"]


def test_the_right_files_of_a_folder_are_read(tmp_path):
    """Other configs and splits lie beside it; a folder without a file names the flag."""
    folder = as_parquet(tmp_path / "pro", "mmmu_pro", [MMMU_PRO])
    other = tmp_path / "pro/standard (4 options)/test-00000-of-00001.parquet"
    other.parent.mkdir()
    datasets.Dataset.from_list([{"id": "wrong"}]).to_parquet(str(other))
    examples = open_benchmark(find_benchmark("mmmu_pro"), folder, None, "", print)
    assert [example["id"] for example in examples] == ["test_History_1"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="--benchmark_dir .*empty: no files"):
        open_benchmark(find_benchmark("mmmu"), str(tmp_path / "empty"), None, "", print)
    with pytest.raises(ValueError, match="--benchmark nothing: wanted one of mathvista"):
        find_benchmark("nothing")


def test_rows_that_cannot_be_read_are_named(tmp_path):
    """A list that is no list, and no answer: the others are read."""
    rows = [MMMU, {**MMMU, "id": "b", "options": "['open"}, {**MMMU, "id": "c", "answer": None}]
    folder, said = as_parquet(tmp_path, "mmmu", rows), []
    assert len(open_benchmark(find_benchmark("mmmu"), folder, None, "", said.append)) == 1
    assert "row 1: a list is written as" in said[0]
    assert "row 2: --benchmark mmmu: example c has no answer" in said[1]
    with pytest.raises(ExampleError):
        read_list("__import__('os').getcwd()")


def test_images_stand_where_they_are_named():
    """image_1 to image_7 in the order of their first marks; a mark that comes again is in words.

    Taken in the order of the columns, images would go to the wrong marks.
    """
    images = {n: f"{n}.png" for n in (1, 3, 7)}
    row = {**MMMU, **{f"image_{n}": images.get(n) for n in range(1, 8)},
           "question": "<image 7> then <image 1>, again <image 7>?",
           "options": "['<image 3>', 'b']"}
    example = find_benchmark("mmmu").read(row)
    assert example["images"] == ["7.png", "1.png", "3.png"]
    assert example["question"] == (
        "<image> then <image>, again [image 7]?\n(A) <image>\n(B) b")
    without_text = {**row, "question": "", "options": "['a', 'b']"}
    assert find_benchmark("mmmu").read(without_text)["question"] == (
        "<image><image><image>\n(A) a\n(B) b")


def test_options_that_are_just_letters_are_not_listed():
    """In 384 questions of MathVision they stand in the image: (A) A would only mislead."""
    letters = find_benchmark("mathvision").read({**MATHVISION, "options": list("ABCDE")})
    assert letters["question"] == "Which bike costs most?\n[image 1]\n[image 2]"
    values = find_benchmark("mathvision").read(MATHVISION)
    assert values["question"].endswith("(A) $\\frac{3}{4}$\n(B) 1\n(C) 2\n(D) 3\n(E) 4")


def test_mathvista_query_is_built_where_it_is_missing():
    """Files without the column `query` get the same words."""
    row = {**FREE, "query": None, "answer_type": "float", "precision": 1.0, "unit": "cm"}
    assert find_benchmark("mathvista").read(row)["question"] == (
        "Hint: Please answer the question requiring a floating-point number with one decimal place "
        "and provide the final value, e.g., 1.2, 1.3, 1.4, at the end.\n"
        "Question: How long is AB? (Unit: cm)")
    assert find_benchmark("mathvista").read({**MATHVISTA, "query": ""})["question"].startswith(
        MATHVISTA["query"])


# --- Rules, by hand ------------------------------------------------------------------------------


def test_mathvista_golds_are_texts():
    """The gold is the option's text: a right letter is turned into it before it is compared."""
    assert score("mathvista", MATHVISTA, "<answer> C </answer>") == 1.0
    assert score("mathvista", MATHVISTA, "The answer is (C).") == 1.0
    assert score("mathvista", MATHVISTA, "<answer> \\boxed{145°} </answer>") == 1.0
    assert score("mathvista", MATHVISTA, "<answer> B </answer>") == 0.0
    assert MATHVISTA["answer"] != "C", "compared as it is, no letter were ever right"


@pytest.mark.parametrize(
    "kind, precision, gold, extraction, right",
    [
        ("integer", None, "7", "7.9", True),  # int(float()): cut, not rounded
        ("integer", None, "8", "7.9", False),
        ("integer", None, "7", "7 cm", False),  # no number: wrong, not an error
        ("integer", None, "7", "inf", False),
        ("float", 1.0, "1.2", "1.249", True),
        ("float", 1.0, "1.2", "1.26", False),
        ("float", 2.0, "0.5", "0.5", True),
        ("float", 2.0, "0.50", "0.5", False),  # text against text: str(0.5) is "0.5"
        ("list", None, "[2014, 2016]", "[2014, 2016]", True),
        ("list", None, "[2014, 2016]", "[2014,2016]", False),
    ],
)
def test_mathvista_numbers_are_normalised_as_published(kind, precision, gold, extraction, right):
    """The official rule on an official extraction."""
    row = {**FREE, "answer_type": kind, "precision": precision, "answer": gold}
    benchmark = find_benchmark("mathvista")
    assert grade_extraction(benchmark, benchmark.read(row), extraction).score == float(right)


def test_nearest_option():
    """Letters first, then edit distance; of equally near ones the first. Against a plain recursion.
    """
    assert nearest_option("(b)", ["x", "y"]) == "y"
    assert nearest_option("C", ["x", "y"]) == "x", "no such letter: a text like any other"
    assert nearest_option("yess", ["No", "Yes"]) == "Yes"

    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        same = slow(a[1:], b[1:]) + (a[0] != b[0])
        return min(same, slow(a[1:], b) + 1, slow(a, b[1:]) + 1)

    for a, b in [("", "abc"), ("kitten", "sit"), ("abc", "cab"), ("aa", "a")]:
        assert edit_distance(a, b) == slow(a, b)


def test_mathverse_vision_only_and_free_form():
    """The question is in the image; letters by rule, free-form by the judge where there is one."""
    example = find_benchmark("mathverse").read(MATHVERSE)
    assert example["question"] == MATHVERSE["query_cot"]
    assert score("mathverse", MATHVERSE, "so \\boxed{C}") == 1.0
    assert score("mathverse", MATHVERSE, "<answer>(B)</answer>") == 0.0

    free = {**MATHVERSE, "question_type": "free-form", "answer": "8\\sqrt{2}"}
    assert score("mathverse", free, "<answer>$8\\sqrt{2}$</answer>") == 1.0
    asked = []

    class Judge:
        def yes(self, question):
            asked.append(question)

    example = find_benchmark("mathverse").read(free)
    graded = grade_example(example, "<answer>eleven</answer>", Judge())
    assert graded.score is None, "a silent judge gives no verdict: not wrong"
    assert "How large is angle 1?" in asked[0]


@pytest.mark.parametrize(
    "answer, gold, same",
    [
        ("a", "A", True),
        ("0.333", "\\frac{1}{3}", True),  # 2 decimals
        ("0.34", "\\frac{1}{3}", False),
        ("\\frac{1}{300}", "$\\frac{1}{900}$", True),  # both are 0.0, as published
        ("108", "$108^{\\circ}$", False),  # degrees have no value
        ("8:5", "$8: 5$", True),
        ("x+1", "1+x", False),  # letters have no value
        ("", "A", False),
        ("\\frac{4}{9}}.\\end{align*", "$\\frac{4}{9}$", True),  # read as far as it is LaTeX
    ],
)
def test_mathvision_values_are_equal_to_two_decimals(answer, gold, same):
    """The published rule, with its habits, each seen in an official verdict."""
    plain = answer.lower().strip() == gold.lower().strip()
    values = value(gold.lower()), value(answer.lower())
    assert (plain or (values[0] is not None and values[0] == values[1])) == same


def test_mathvision_through_its_process():
    """The gold letter or the option's value; a tower of powers is stopped, and is wrong."""
    assert score("mathvision", MATHVISION, "<answer> \\boxed{A} </answer>") == 1.0
    assert score("mathvision", MATHVISION, "so it is \\boxed{0.75}") == 1.0
    assert score("mathvision", MATHVISION, "The answer is (B).") == 0.0
    assert readable_part("5.so,even") == "5"


@pytest.mark.parametrize(
    "response, answer",
    [
        ("thus \\boxed{2}, no, \\boxed{3}", "3"),
        ("The answer is 7. I am sure.", "7"),
        ("It must be C.", "c"),
        ("B\nsince it is", "b"),
        ("\\boxed{(A)}", "a"),
        ("\\boxed{\\text{D}}", "d"),
        ("x = 12 \\text{ km}", "12"),
        ("0.5", "\\frac{1}{2}"),
        ("3/4", "\\frac{3}{4}"),
    ],
)
def test_mathvision_extraction_as_published(response, answer):
    """What the authors' code writes as `model_answer`."""
    assert mathvision.extract(find_benchmark("mathvision").read(MATHVISION), response) == answer


@pytest.mark.parametrize(
    "response, letter",
    [
        ("B", "B"),
        ("(A) or (C)? (C), not (A)", "A"),  # the last one, whatever it says
        ("I think B is right, not A at all", "A"),
        ("A) a cat", None),  # the authors draw one at random
        ("the picture shows a dog and not a cat", "A"),  # more than five words: the last text
        ("a dog", None),
        ("<think> A </think> <answer> \\boxed{D} </answer>", "D"),
    ],
)
def test_mmmu_letters_as_published(response, letter):
    """Brackets before bare letters before texts; what is last counts."""
    example = find_benchmark("mmmu").read(MMMU)
    assert mmmu.extract(example, response) == letter


@pytest.mark.parametrize(
    "response, gold, right",
    [
        ("3.43", "3.429", True),  # both are rounded to 2 decimals
        ("So the answer is 1,234", "1234", True),
        ("24.31", "24.32", False),
        ("$1.00", "1.00", True),  # the number in it
        ("The result is 24/7", "24/7", True),
        ("It is 1/4", "1/64", False),
        ("about embryonic development", "embryonic", True),
        ("Step b", "B", True),  # a single letter needs a space beside it
        ("Stepb", "B", False),
        ("It is 5.\nThe answer is 6", "5", True),  # every line's end may be the answer
    ],
)
def test_mmmu_open_answers_as_published(response, gold, right):
    """The 53 open questions, by hand."""
    assert score("mmmu", OPEN, response, answer=gold) == float(right)


def test_mmmu_golds_in_a_list():
    """A list written as text is several golds; brackets that are no list are one."""
    assert score("mmmu", OPEN, "3.43") == score("mmmu", OPEN, "24/7") == 1.0
    assert score("mmmu", OPEN, "3.5") == 0.0
    assert score("mmmu", OPEN, "it is [0, 1)", answer="[0, 1)") == 1.0


@pytest.mark.parametrize(
    "response, letter",
    [
        ("A? B?\n\nAnswer: J", "J"),
        ("Answer: A\nno,\nAnswer: **C**", "C"),
        ("Answer: A or B", "B"),  # two behind it: then the marks, and of these the last
        ("<think> Answer: A </think> <answer> Answer: B </answer>", "B"),
        ("<answer> B </answer>", "B"),
        ("<answer>\\boxed{J}</answer>", "J"),
        ("It is C.", "C"),
        ("none", None),
    ],
)
def test_mmmu_pro_answer_beside_tags(response, letter):
    """"Answer:" counts inside the answer block if there is one, else in the whole response."""
    benchmark = find_benchmark("mmmu_pro")
    assert benchmark.extract(benchmark.read(MMMU_PRO), response) == letter


def test_the_training_reward_is_no_benchmark_rule(monkeypatch):
    """With the training grade broken, benchmarks score as before."""
    monkeypatch.setattr("scoring.grade", lambda *_: pytest.fail("the training reward was asked"))
    assert score("mmmu_pro", MMMU_PRO, "Answer: J") == 1.0


def test_rates_by_category_equal_the_means():
    """A record counts under each of its categories, an unscored one in none."""
    records = [
        {"score": 1.0, "categories": {"skill": ["a", "b"]}},
        {"score": 0.0, "categories": {"skill": ["a"]}},
        {"score": None, "categories": {"skill": ["b"]}},
    ]
    rates = category_rates(records, evaluate.accuracy)["skill"]
    assert (rates["a"]["mean"], rates["a"]["count"]) == (0.5, 2)
    assert (rates["b"]["mean"], rates["b"]["count"], rates["b"]["unscored"]) == (1.0, 1, 1)


# --- Responses made elsewhere --------------------------------------------------------------------


def write(path: Path, rows: list[dict]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return str(path)


def test_scores_of_a_file(tmp_path, capsys):
    """Golds from another file, gzipped; the authors' verdicts are compared with ours."""
    row = {key: MATHVISTA[key] for key in MATHVISTA if "image" not in key}
    gold = write(tmp_path / "gold.jsonl.gz", [row])
    responses = [{"pid": "3", "response": "The answer is (C).", "extraction": "B",
                  "true_false": False}] * 2
    file = write(tmp_path / "responses.jsonl", responses)
    settings = dict(score=file, gold=gold, benchmark="mathvista")

    evaluate.main(evaluate.Config(**settings, run_dir=str(tmp_path / "out")))
    said = capsys.readouterr().out
    assert "100.00" in said
    assert "agree with the official verdict: 0.00 % of 2" in said
    assert "decided by: rule 2" in said
    records = [json.loads(line) for line in open(tmp_path / "out/scored.jsonl")]
    assert len(records) == 2
    assert {"prompt", "extracted", "gold", "rule", "score", "verdict"} <= set(records[0])
    assert (records[0]["extracted"], records[0]["gold"]) == ("C", "145°")

    evaluate.main(evaluate.Config(**settings, extraction="official"))
    assert "agree with the official verdict: 100.00 % of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "row, word",
    [
        ({"pid": "9", "response": "1"}, "record 1: no question has the id 9"),
        ({"response": "1"}, "record 1: no 'pid' and no 'id'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, row, word):
    """The record and what it lacks."""
    gold = write(tmp_path / "gold.jsonl", [{**MATHVISTA, "decoded_image": None}])
    cfg = evaluate.Config(score=write(tmp_path / "r.jsonl", [row]), gold=gold,
                          benchmark="mathvista")
    with pytest.raises(ValueError, match=word):
        score_file(find_benchmark("mathvista"), cfg, None)


REAL = [  # file, benchmark, golds, extraction, least agreement
    ("mathvista_responses_bard", "mathvista", "mathvista_testmini", "official", 0.999),
    ("mathvista_responses_chatgpt_2shot_solution", "mathvista", "mathvista_testmini", "official",
     0.999),
    ("mathvision_responses_sphinx_v2", "mathvision", "mathvision_test", "official", 0.995),
    ("mmmu_pro_responses_gpt4o_standard_cot", "mmmu_pro", None, "own", 0.999),
    ("mmmu_val_responses_llava15_13b", "mmmu", None, "own", 0.997),
]


@pytest.mark.skipif(not os.environ.get("SPECS_REAL_DATA"), reason="SPECS_REAL_DATA is not set")
@pytest.mark.parametrize("file, name, gold, extraction, least", REAL)
def test_official_verdicts(file, name, gold, extraction, least):
    """Ours against the authors' own, and the mean of their column against our mean."""
    folder = Path(os.environ["SPECS_REAL_DATA"])
    cfg = evaluate.Config(score=f"{folder}/{file}.jsonl.gz", benchmark=name, extraction=extraction,
                          gold=f"{folder}/{gold}.jsonl.gz" if gold else "")
    records = [r for r in score_file(find_benchmark(name), cfg, None) if r["verdict"] is not None]
    agree = [(r["score"] == 1.0) == r["verdict"] for r in records]
    assert sum(agree) / len(agree) >= least


def test_every_benchmark_has_what_a_run_needs():
    """Names are unique and lower case, as on the command line."""
    assert set(BENCHMARKS) >= {"mathvista", "mathverse", "mathvision", "mmmu", "mmmu_pro", "toy"}
    assert Image.open(io.BytesIO(IMAGE["bytes"])).size == blank().size


@pytest.mark.slow
def test_mathvision_from_a_folder_end_to_end(tmp_path):
    """The script that takes real pictures, on three drawn ones: a parquet, a model, a report."""
    images = tmp_path / "mathvision_testmini_images"
    images.mkdir()
    rows = []
    for name in ("1", "2", "3"):
        rows.append({"id": name, "question": "How many ?<image1>", "options": [], "answer": "2",
                     "image": f"images/{name}.jpg", "solution": None, "level": 1,
                     "subject": "counting"})  # fmt: skip
        blank((56, 28)).save(images / f"{name}.jpg")
    with gzip.open(tmp_path / "mathvision_test.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mathvision_testmini_ids.txt").write_text("1\n2\n3\n")

    command = [sys.executable, "benchmarks/mathvision_testmini.py", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--max_new_tokens", "2"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "SPECS_REAL_DATA": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "0 of 304 refused" in done.stdout and "counting" in done.stdout
    assert len(read_jsonl(tmp_path / "out/run/completions.jsonl")) == 3

