"""Orsta-47k and ViRL39K in small, in their exact columns, through the loader of training."""

import io
import json
import zipfile
from types import SimpleNamespace

import datasets
import pytest
from PIL import Image

from model.records import ExampleError
from rewards import Completion, make_rewards
from rewards.bounding_boxes import box_reward, iou, read_boxes
from sources import __main__ as sources_main
from sources import load_examples
from sources.__main__ import main as peek
from sources.duplicates import Seen, fingerprint, leaked
from sources.stream import encode_all
from sources.virl39k import read_image
from toy import world


def png(image: Image.Image, size=None, kind="PNG") -> bytes:
    file = io.BytesIO()
    (image.resize(size) if size else image).save(file, kind)
    return file.getvalue()


SCENES = [png(example["images"][0]) for example in world.examples(4, 0)]

# --- Orsta ---------------------------------------------------------------------------------------

BOXES = [{"bbox_2d": [0, 0, 100, 100], "label": "car"}, {"bbox_2d": [200, 0, 300, 100],
                                                         "label": "Dog"}]


def orsta_row(content: str, answer: str, verifier="mathverify", ability="math", **more) -> dict:
    """Every column of the data set, nested as there."""
    return {
        "data_source": "mmmath",
        "images": [{"bytes": SCENES[0], "path": None}],
        "prompt": [{"content": content, "role": "user"}],
        "ability": ability,
        "reward_model": {
            "answer": answer, "ground_truth": f"\\boxed{{{answer}}}", "accuracy_ratio": 1.0,
            "format_ratio": 0.0, "verifier": verifier,
            "verifier_parm": {"det_verifier_normalized": True,
                              "det_reward_ratio": {"iou_max_label_first": 1.0}},
        },
        "extra_info": {"id": "7", "image_path": "a.png"},
        **more,
    }


STEPS = "Think step by step, then put the final answer in \\boxed{}."
TAGS = "Write the reasoning in <think></think> tags and the result in <answer></answer> tags."
ORSTA = [
    orsta_row(f"<image>How many dots are there?\n{STEPS}", "4"),
    orsta_row(f"<image>\n{TAGS} Find the car and the dog.", str(BOXES), "detection", "detection"),
    orsta_row("<image>Read the sign.", "Main Street", ability="ocr"),
    orsta_row("<image>Which one?", "B", ability="puzzle"),
    orsta_row("", "4"),
    orsta_row("<image>q", ""),
    orsta_row("<image>q", "4", "poem"),
]


@pytest.fixture
def orsta(tmp_path):
    """A copy of the data set: train/ and test/, which holds MEGA-Bench."""
    # One file may hold boxes as lists, where another one has text: they share no schema.
    listed = orsta_row("<image>Find the cat.", "", "detection", "detection")
    listed["reward_model"]["answer"] = BOXES
    files = [("train", ORSTA), ("test", ORSTA[:1]), ("train", [listed])]
    for folder, rows in files:
        (tmp_path / "orsta" / folder).mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_list(rows)
        table = table.cast_column("images", datasets.List(datasets.Image()))
        name = f"{folder}_math_mmmath_{len(rows)}.parquet"
        table.to_parquet(str(tmp_path / "orsta" / folder / name))
    return str(tmp_path / "orsta")


def test_orsta_rows_become_examples(orsta, tiny):
    """Types by verifier and answer, its own instruction dropped, broken rows named; no test/."""
    _, encoder = tiny
    examples = load_examples(f"orsta:{orsta}")
    assert len(examples) == len(ORSTA) + 1, "test/ is not read"

    said = []
    prompts = encode_all(examples, encoder, warn=said.append)
    found = [prompt.example for prompt in prompts]
    assert [example["question"] for example in found] == [
        "<image>Find the cat.", "<image>How many dots are there?",
        "<image> Find the car and the dog.", "<image>Read the sign.", "<image>Which one?"]
    assert [example["answer_type"] for example in found] == [
        "boxes", "number", "boxes", "text", "choice"]
    assert read_boxes(found[0]["answer"]) == read_boxes(found[2]["answer"]) == BOXES
    assert found[0]["instruction"].startswith("First think")
    assert ["has no question", "has no answer", "unknown verifier"] == [
        next(w for w in ("has no question", "has no answer", "unknown verifier") if w in text)
        for text in said]
    assert len(load_examples(f"orsta:{orsta}", count=2)) == 2
    with pytest.raises(ValueError, match="--data: no folder"):
        load_examples("orsta:nowhere")


# --- Boxes ---------------------------------------------------------------------------------------


def boxed(*boxes) -> str:
    found = [dict(bbox_2d=corners, label=name) for corners, name in boxes]
    return f"<think> a </think> <answer>{found}</answer>"


CAR, DOG = ([0, 0, 100, 100], "car"), ([200, 0, 300, 100], "dog")


@pytest.mark.parametrize(
    "response, progress, reward",
    [
        (boxed(CAR, DOG), 1.0, 1.0),
        (boxed(CAR), 1.0, 0.7 + 0.3 / 2),  # all given are right, half are found
        (boxed(CAR, DOG, ([500, 500, 600, 600], "cat")), 1.0, 0.7 * 2 / 3 + 0.3),
        (boxed(([0, 0, 100, 90], "car")), 0.05, 0.7 * 0.9 + 0.15),  # IoU 0.9 counts at first
        (boxed(([0, 0, 100, 90], "car")), 0.2, 0.0),  # and no more behind a tenth of the run
        (boxed(([0, 0, 100, 100], "truck")), 1.0, 0.0),  # another label
        (boxed(CAR, CAR, CAR), 1.0, 0.7 + 0.15),  # said three times, it is one box
        (boxed(CAR, ([0, 0, 100, 99.5], "car")), 1.0, 0.7 / 2 + 0.15),  # a gold is matched once
        ("<answer>[{'bbox_2d': [9, 9, 1, 1], 'label': 'car'}]</answer>", 1.0, 0.0),
        ("<answer>no boxes</answer>", 1.0, 0.0),
        ("<answer>[__import__('os').getcwd()]</answer>", 1.0, 0.0),
    ],
)
def test_box_reward_by_hand(response, progress, reward):
    assert box_reward(str(BOXES), response, progress) == pytest.approx(reward)


def test_iou_against_counting_cells():
    """By counting unit squares."""
    for a, b in [([0, 0, 4, 4], [2, 2, 6, 6]), ([0, 0, 2, 2], [2, 0, 4, 2]), ([0, 0, 3, 1],) * 2]:
        cells = [{(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}
                 for box in (a, b)]
        assert iou(a, b) == len(cells[0] & cells[1]) / len(cells[0] | cells[1])


def test_boxes_are_rewarded_in_training():
    """The accuracy reward of a run, with the ramp over its progress."""
    rewards = make_rewards(SimpleNamespace(data="toy", overlong_buffer=0), None)
    example = {"answer_type": "boxes", "answer": str(BOXES)}
    text = boxed(([0, 0, 100, 90], "car"))
    early, late = (rewards["accuracy"](example, Completion(text, 9, False, p)) for p in (0.01, 1))
    assert early > late == 0.0
    assert len(read_boxes(str(BOXES))) == 2


# --- ViRL39K -------------------------------------------------------------------------------------


def virl_row(number: int, question: str, answer: str, image=(), rate=0.5) -> dict:
    """Every column of the data set."""
    return {"question": question, "answer": answer, "PassRate_32BTrained": rate,
            "PassRate_7BBase": 0.1, "category": "(GradeSchool) Geometric", "source": "Processed",
            "qid": f"q{number}", "image": list(image)}


VIRL = [
    virl_row(0, "<image>How long is AB?", "\\boxed{12}", ["images/0.png"], 1.0),
    virl_row(1, "What is 1 + 1?", "\\boxed{2", rate=0.2),  # unbalanced, text only
    virl_row(2, "<image>Which?\nA. x\nB. y", "\\boxed{B}", ["images/1.png"]),
    virl_row(3, "<image>q", "\\boxed{1}", ["images/none.png"]),
    virl_row(4, "<image>q", "\\boxed{1}", ["../../etc/passwd"]),
    virl_row(5, "<image>q", "\\boxed{1}", ["/etc/passwd"]),
    virl_row(6, "<image>q", "\\boxed{1}", ["images/link.png"]),
    virl_row(7, "<image>q", "", ["images/0.png"]),
]


@pytest.fixture
def virl(tmp_path):
    folder = tmp_path / "virl"
    folder.mkdir()
    table = datasets.Dataset.from_list(VIRL)
    table = table.cast_column("image", datasets.List(datasets.Value("string")))
    table.to_parquet(str(folder / "39Krelease.parquet"))
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("images/0.png", SCENES[0])
        archive.writestr("images/1.png", SCENES[1])
        archive.writestr("../../etc/passwd", SCENES[2])
        link = zipfile.ZipInfo("images/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return str(folder)


def test_virl39k_rows_become_examples(virl, tiny):
    """Images out of the zip, golds out of their boxes; what leads out of it is refused by name."""
    _, encoder = tiny
    said = []
    prompts = encode_all(load_examples(f"virl39k:{virl}"), encoder, warn=said.append)
    found = [prompt.example for prompt in prompts]
    assert [(e["answer"], e["answer_type"], len(e["images"])) for e in found] == [
        ("12", "number", 1), ("2", "number", 0), ("B", "choice", 1)]
    words = ["not in images.zip", "leads out", "leads out", "is a link", "has no answer"]
    assert len(said) == len(words)
    assert all(word in text for word, text in zip(words, said))


def test_virl39k_bands_of_pass_rates(virl):
    """Both ends belong to the band; a wrong one names the flag."""
    rates = [len(load_examples(f"virl39k:{virl}@{band}")) for band in ("0-1", "0.2-0.5", "1-1")]
    assert rates == [8, 7, 1]
    with pytest.raises(ValueError, match="--data virl39k: @easy, wanted"):
        load_examples(f"virl39k:{virl}@easy")


def test_unpacked_images_stay_in_their_folder(tmp_path):
    """Without the zip: a link out of the folder is refused, a file in it is read."""
    (tmp_path / "set/images").mkdir(parents=True)
    (tmp_path / "set/images/a.png").write_bytes(SCENES[0])
    (tmp_path / "secret.png").write_bytes(SCENES[0])
    (tmp_path / "set/images/b.png").symlink_to(tmp_path / "secret.png")
    assert read_image("images/a.png", tmp_path / "set", "x")["path"].endswith("a.png")
    with pytest.raises(ExampleError, match="example x: image 'images/b.png': leads out"):
        read_image("images/b.png", tmp_path / "set", "x")


# --- MM-EUREKA -----------------------------------------------------------------------------------


def test_mm_eureka_chats_become_examples(tmp_path, tiny):
    """A chat in a text, with an image beside the file, and as plain text; broken ones are named."""
    _, encoder = tiny
    (tmp_path / "a.png").write_bytes(SCENES[0])
    asked = [{"type": "image", "image": "file://a.png"},
             {"type": "text", "text": f"How long is it?\n{STEPS}"}]
    lines = [
        {"id": "0", "message": json.dumps([{"role": "user", "content": asked}]), "answer": "$12$"},
        {"id": "1", "message": json.dumps([{"role": "user", "content": "1 + 1?"}]), "answer": "2"},
        {"id": "2", "message": "hello", "answer": "2"},
        {"id": "3", "message": "[]", "answer": "2"},
        {"id": "4", "message": "[]", "answer": None},
    ]
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    said = []
    prompts = encode_all(load_examples(f"mm_eureka:{file}"), encoder, warn=said.append)
    found = [prompt.example for prompt in prompts]
    assert [example["question"] for example in found] == ["<image>How long is it?", "1 + 1?"]
    assert [example["answer_type"] for example in found] == ["number", "number"]
    assert ["no chat", "no chat", "no answer"] == [
        "no chat" if "no chat" in text else "no answer" for text in said]
    with pytest.raises(ValueError, match="--data mm_eureka:nowhere: no such file"):
        load_examples("mm_eureka:nowhere")


# --- Duplicates and leaks ------------------------------------------------------------------------


def example(name: str, question: str, *images: bytes) -> dict:
    return {"id": name, "question": question,
            "images": [{"bytes": image, "path": None} for image in images]}


def test_the_same_question_in_other_clothes():
    """Another size, format and punctuation are the same; another image or question is not."""
    small = png(Image.open(io.BytesIO(SCENES[0])).convert("RGB"), (60, 60), "JPEG")
    first = fingerprint(example("a", "<image> How many, then?", SCENES[0]))
    seen = Seen()
    seen.add(first)
    assert seen.find(fingerprint(example("b", "how many then", small))) is first
    assert seen.find(fingerprint(example("c", "how many then", SCENES[1]))) is None
    assert seen.find(fingerprint(example("d", "how few then", SCENES[0]))) is None
    assert seen.find(fingerprint(example("e", "how many then"))) is None
    assert SCENES[0] != small, "by their bytes, the copies differ"


def test_evaluation_items_are_found_inside_their_prompts():
    """An evaluation asks with hints and options around the question."""
    question = "How many red things are there in the image?"
    items = [fingerprint(example("item", f"Hint: say a number. Question: {question} (A) 1",
                                 SCENES[0]))]
    assert leaked(fingerprint(example("a", question, SCENES[0])), items).id == "item"
    assert leaked(fingerprint(example("b", question, SCENES[1])), items) is None
    assert leaked(fingerprint(example("c", "red", SCENES[0])), items) is None, "too short to tell"


def test_peek(virl, orsta, tmp_path, capsys):
    """Examples, counts, lengths, refusals, duplicates and leaks; what remains can be trained on."""
    twin = virl_row(8, "<image> How long is AB ?", "\\boxed{12}", ["images/0.png"])
    table = datasets.Dataset.from_list([*VIRL, twin])
    table.to_parquet(f"{virl}/39Krelease.parquet")
    evaluation = tmp_path / "vision.jsonl"
    evaluation.write_text(
        '{"id": "9", "question": "What is 1 + 1?", "options": [], "answer": "2", "level": 1}\n')

    peek([f"virl39k:{virl}", "--peek", "2", "--against", f"mathvision:{evaluation}",
          "--write", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "virl39k q0: 1 images, number" in said
    assert "by refused: 5" in said
    assert "1  the same as another" in said
    assert "leak: virl39k q1 is 9" in said
    assert "image tokens: least 0" in said

    remaining = load_examples(str(tmp_path / "out"))
    assert [remaining[i]["id"] for i in range(len(remaining))] == ["virl39k q0", "virl39k q2"]
    assert remaining[0]["images"][0]["bytes"]


def test_what_is_kept_is_written_file_by_file(virl, tmp_path, monkeypatch):
    """No more rows than those of one file are a table at a time; an older, longer set goes."""
    sizes, from_list = [], datasets.Dataset.from_list
    monkeypatch.setattr(sources_main, "ROWS_A_FILE", 1)
    monkeypatch.setattr(
        datasets.Dataset, "from_list",
        lambda rows, **more: sizes.append(len(rows)) or from_list(rows, **more))  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-00007-of-00008.parquet").write_text("of a longer set")

    peek([f"virl39k:{virl}", "--peek", "0", "--write", str(out)])
    remaining = load_examples(str(out))
    assert len(remaining) == len(list(out.glob("*.parquet"))) == len(sizes) > 1
    assert set(sizes) == {1}
    assert remaining[0]["images"][0]["bytes"]


def test_geometry3k_by_its_columns(tmp_path, tiny):
    """`--columns question=problem` reads its rows: a list of images, a problem, an answer.

    The layout is that of hiyouga/geometry3k on the hub: `<image>` stands in the problem.
    """
    _, encoder = tiny
    row = {"images": [{"bytes": SCENES[0], "path": None}], "answer": "3",
           "problem": "<image>Chords A C and D F are equidistant from the center. Find A C."}
    table = datasets.Dataset.from_list([row]).cast_column(
        "images", datasets.List(datasets.Image())
    )
    table.to_parquet(tmp_path / "train-00000-of-00001.parquet")

    examples = load_examples(str(tmp_path), columns="question=problem")
    assert examples[0]["question"].startswith("<image>Chords")
    prompt = encoder.encode(examples[0])
    assert prompt.image_grid_thw.shape == (1, 3)
    with pytest.raises(ValueError, match="--columns question=problem names the right one"):
        load_examples(str(tmp_path))
