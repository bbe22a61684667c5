"""Own data: what was understood is said once, and what was not is refused by name."""

import csv
import io
import json
from types import SimpleNamespace

import datasets
import pytest
from PIL import Image

import build_prefs
import evaluate
import grpo
from conftest import blank, make_example, small_grpo
from harness.cli import parse_cli
from model.images import load_image
from model.records import ExampleError
from sources import load_examples
from sources.columns import to_example, with_choices
from sources.mixture import Mixture, parse_sources
from sources.stream import PromptStream
from sources.understood import best_blind_guess, prompt_in_words, unknown_words

QUESTION = "how many red things are there ?"
ROW = {"question": QUESTION, "answer": "2"}


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- Columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image", "images", "picture", "pictures"])
@pytest.mark.parametrize("form", ["path", "list", "PIL", "bytes", "struct"])
def test_images_in_every_form(tmp_path, name, form):
    """Four names, five forms: all give the one image that is there."""
    blank((56, 28)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    value = {
        "path": "a.png",
        "list": ["a.png"],
        "PIL": Image.open(io.BytesIO(content)),
        "bytes": content,
        "struct": {"bytes": content, "path": None},
    }[form]

    if form in ("path", "list"):
        source = write(tmp_path / "rows.jsonl", [{**ROW, name: value}])
    else:
        source = str(tmp_path / "rows.parquet")
        datasets.Dataset.from_list([{**ROW, name: value}]).to_parquet(source)

    images = load_examples(source)[0]["images"]
    assert [load_image(image, "x").size for image in images] == [(56, 28)]


@pytest.mark.parametrize(
    "image, words",
    [
        ("https://example.org/a.png", "on the web"),
        ("data:image/png;base64,iVBOR", "an image as text"),
        ("A" * 5000, "an image as text"),
        ("['a.png', 'b.png']", "a list as text: csv has no lists"),
    ],
)
def test_texts_that_are_no_paths_are_refused(image, words):
    with pytest.raises(ExampleError, match=words):
        to_example({**ROW, "image": image}, 0, "", "rows.jsonl")


def test_a_folder_as_save_to_disk_writes_it(tmp_path):
    """A data set, or several splits of it, with their images."""
    table = datasets.Dataset.from_list([{**ROW, "image": blank((56, 28))}])
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "val": table}).save_to_disk(tmp_path / "splits")

    for source, split in (("one", "train"), ("splits", "val")):
        examples = load_examples(str(tmp_path / source), split=split)
        assert load_image(examples[0]["images"][0], "x").size == (56, 28)
    with pytest.raises(ValueError, match="no split 'test', only 'train', 'val'"):
        load_examples(str(tmp_path / "splits"), split="test")


def test_a_folder_of_pictures_and_questions_names_the_file(tmp_path):
    """`datasets` would see the pictures alone, and the questions would seem to have no column."""
    blank((56, 28)).save(tmp_path / "a.png")
    source = write(tmp_path / "questions.jsonl", [{**ROW, "image": "a.png"}])
    with pytest.raises(ValueError, match=f"name the file, {source}"):
        load_examples(str(tmp_path))

    (tmp_path / "questions.jsonl").rename(tmp_path / "metadata.jsonl")
    text = json.dumps({**ROW, "file_name": "a.png"}) + "\n"  # the layout that `datasets` reads
    (tmp_path / "metadata.jsonl").write_text(text)
    assert load_examples(str(tmp_path))[0]["images"]


@pytest.mark.parametrize("name", ["imgs", "Image", "img_path", "scan"])
def test_a_misspelt_image_column_does_not_train_blind(tmp_path, name):
    """By its name, or by what is in it: the run ends, and says how to go on with or without it."""
    source = write(tmp_path / "rows.jsonl", [{**ROW, name: "a.png"}])
    with pytest.raises(ValueError, match=f"{name} seems to hold some: --columns image={name}"):
        load_examples(source)

    assert load_examples(source, columns=f"image={name}")[0]["images"] == [str(tmp_path / "a.png")]
    assert load_examples(source, columns="image=")[0]["images"] == []


def test_columns_of_other_names(tmp_path):
    """--columns maps, also onto a name that is taken; what is ignored is said with its nearest."""
    rows = [{"problem": QUESTION, "solution": "3", "answer": "long", "picture": None, "optoins": 1}]
    source = write(tmp_path / "rows.jsonl", rows)
    examples = load_examples(source, columns="question=problem,answer=solution")
    assert (examples[0]["question"], examples[0]["answer"]) == (QUESTION, "3")

    said = examples.understood()[0]
    assert "1 examples; columns used: question = problem, answer = solution" in said
    assert "images = picture" in said
    assert "ignored: answer, optoins" in said
    assert examples.labels(5) == [("", "3")]

    rows = [{"question": "q", "answer": "A", "options": ["x", "y"]}]
    said = load_examples(write(tmp_path / "b.jsonl", rows)).understood()[0]
    assert "options (--columns choices=options uses it)" in said


@pytest.mark.parametrize(
    "row, columns, words",
    [
        ({"problem": "q", "answer": "1"}, "", "has no column question; it has problem, answer. "
         "--columns question=problem names the right one"),
        ({"question": "q"}, "", "has no column answer; it has question"),
        (ROW, "answer=anwser", "--columns answer=anwser"),
        (ROW, "answer=anwser", "did you mean answer?"),
        (ROW, "answr=answer", "OURS is one of question, answer"),
        (ROW, "answer", "OURS=THEIRS"),
        ({**ROW, "image": "a", "pictures": "b"}, "", "image and pictures are both columns for im"),
    ],
)  # fmt: skip
def test_wrong_columns_are_one_sentence(tmp_path, row, columns, words):
    source = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError) as error:
        load_examples(source, columns=columns)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere.jsonl", "./nowhere", "a/b/c", "tests/nowhere", "x.csv"])
def test_a_missing_file_is_said_without_asking_a_hub(monkeypatch, name):
    """A name that cannot be one of the hub's is never sent there."""
    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(ValueError, match=f"--data {name}: no such file or folder"):
        load_examples(name)


def test_a_csv_file(tmp_path):
    """Its numbers are numbers, its choices are text, and an empty cell is no image."""
    blank().save(tmp_path / "a.png")
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", "choices", "image"])
        writer.writerow(["which ?", "B", '["x", "y"]', "a.png"])
        writer.writerow(["how many ?", 3, "", ""])
    examples = load_examples(str(tmp_path / "rows.csv"))
    assert examples[0]["choices"] == ["x", "y"]
    assert examples[0]["images"] == [str(tmp_path / "a.png")]
    assert (examples[1]["answer"], examples[1]["images"]) == ("3", [])


# --- Choices -------------------------------------------------------------------------------------


def test_choices_reach_the_prompt(tmp_path, tiny):
    """They stand below the question, in training and in the pairs that are made of it."""
    _, encoder = tiny
    row = {"question": "which is red ?", "answer": "B", "choices": ["circle", "square"]}
    example = load_examples(write(tmp_path / "rows.jsonl", [row]), instruction="")[0]
    assert example["question"] == "which is red ?\n(A) circle\n(B) square"
    text = encoder.tokenizer.decode(encoder.encode(example).ids.tolist())
    assert "( A" not in text and "circle" in text and "square" in text


@pytest.mark.parametrize(
    "question, choices, is_changed",
    [
        ("Which? (A) 2 (B) 3", ["2", "3"], False),
        ("Which?\nA. 2\nB: 3", ["2", "3"], False),
        ("Which of 2 and 3?", ["2", "3"], True),
        ("Which? (A) 2 (B) 4", ["2", "3"], True),
        ("Which image?", ["A", "B"], False),
        ("How many?", [], False),
    ],
)
def test_choices_are_written_once(question, choices, is_changed):
    """Not where the question holds each behind its letter, or where they are the letters."""
    assert (with_choices(question, choices) != question) == is_changed


# --- Several sources -----------------------------------------------------------------------------


def rows(count: int, answer: str) -> list[dict]:
    return [{"question": f"q {i}", "answer": answer} for i in range(count)]


def test_sources_are_mixed_by_their_shares(tmp_path):
    """All of all; three to one, where the short one decides; as many as are asked for."""
    a = write(tmp_path / "a.jsonl", rows(100, "1"))
    b = str(tmp_path / "b.parquet")
    datasets.Dataset.from_list(rows(10, "2")).to_parquet(b)

    everything = load_examples(f"{a},{b}")
    assert (len(everything), everything.counts) == (110, [100, 10])
    assert load_examples(f"{a},{b}", count=11).counts == [10, 1]

    mixed = load_examples(f"{a}:3,{b}:1")
    assert mixed.counts == [30, 10]
    assert [mixed[i]["answer"] for i in (0, 29, 30, 39)] == ["1", "1", "2", "2"]
    assert (mixed[0]["id"], mixed[30]["id"]) == ("a.jsonl/0", "b.parquet/0")
    assert len({example["id"] for example in mixed}) == 40
    assert f"  {b}: 10 of 10 are used, 25 % of all" in mixed.understood()

    with_toy = load_examples(f"toy:1,{b}:1")
    assert with_toy.counts == [10, 10]
    assert isinstance(with_toy, Mixture)


@pytest.mark.parametrize("text", ["a:3,b", "a,,b", "a:0,b:1"])
def test_shares_that_make_no_sense(text):
    with pytest.raises(ValueError, match=f"--data {text}"):
        parse_sources(text)


def test_columns_of_a_mixture(tmp_path):
    """Each name holds where there is such a column; a name that no table has is refused."""
    ours = write(tmp_path / "ours.jsonl", [ROW])
    theirs = write(tmp_path / "theirs.jsonl", [{"problem": QUESTION, "gold": "3"}])
    both = f"{ours},{theirs}"

    examples = load_examples(both, columns="question=problem,answer=gold")
    assert [(e["question"], e["answer"]) for e in examples] == [(QUESTION, "2"), (QUESTION, "3")]
    with pytest.raises(ValueError, match="answer=golt: no part of --data .* has a column golt"):
        load_examples(both, columns="question=problem,answer=gold,answer=golt")
    with pytest.raises(ValueError, match="theirs.jsonl has no column answer"):
        load_examples(both, columns="question=problem")


def test_names_with_a_colon_are_names():
    assert [source.name for source in parse_sources("hf:x/y,b:c")] == ["hf:x/y", "b:c"]


# --- What is said --------------------------------------------------------------------------------


def test_one_whole_prompt_is_shown(tiny):
    """As the model sees it: chat template, instruction, and each image with its size and tokens."""
    _, encoder = tiny
    prompt = encoder.encode({**make_example(2, QUESTION), "instruction": "think first"})
    text = prompt_in_words(prompt, encoder)
    assert text.count("[image 84x84, 9 tokens]") == 1
    assert text.count("[image 56x112, 8 tokens]") == 1
    assert "<|im_start|>" in text and QUESTION.split()[0] in text
    assert "<|image_pad|>" not in text


def test_every_stage_says_what_it_understood(start, tmp_path, capsys):
    """Before the first step, once, with the counts that it has."""
    source = write(tmp_path / "rows.jsonl", [{**ROW, "answer_type": "text", "extra": 1}] * 3)
    common = dict(data=source, max_examples=None, instruction="", max_new_tokens=2)
    grpo.main(small_grpo(start, tmp_path / "run", steps=1, **common))
    said = capsys.readouterr().out
    assert said.count("one prompt, as the model sees it:") == 1
    assert "3 examples; columns used: question, answer, answer_type; ignored: extra" in said
    assert "3 examples, 4 prompts a rollout: some come twice" in said
    assert "3 of 3 answers are of type text: without --judge_url" in said
    assert "images: 3 with 0" in said
    assert said.index("as the model sees it") < said.index("reward")

    config = build_prefs.Config(base=start, zero=start, run_dir=str(tmp_path / "p"), **common)
    with pytest.raises(ValueError, match="no pair came out"):
        build_prefs.main(config)
    models = f"a={start},b={start}"
    evaluate.main(
        evaluate.Config(models=models, run_dir=str(tmp_path / "e"), pass_items=0, data=source,
                        instruction="", max_new_tokens=2, items=3)
    )  # fmt: skip
    assert capsys.readouterr().out.count("one prompt, as the model sees it:") == 2


def test_unknown_words_are_an_error(start, tmp_path, capsys):
    """Own words become <unk>, all the same: they are named, with the words that the model knows."""
    source = write(tmp_path / "rows.jsonl", [{"question": "wieviele rote Dinge ?", "answer": "2"}])
    config = small_grpo(start, tmp_path / "run", steps=1, data=source, max_examples=None)
    with pytest.raises(ValueError) as error:
        grpo.main(config)
    message = str(error.value)
    assert "wieviele" in message and "Dinge" in message and "--allow_unknown" in message
    assert "knows 87 words" in message and "triangles" in message
    assert "first think between <think>" in message, "an instruction that it can read"

    argv = ["--data", source, "--allow_unknown", "--run_dir", str(tmp_path / "b"), "--steps", "1"]
    allowed = parse_cli(grpo.Config, "", [*argv, "--model", start, "--max_new_tokens", "2"])
    grpo.main(allowed)
    assert "words that the model does not know: " in capsys.readouterr().out


def test_a_tokenizer_of_bytes_knows_every_word(tiny):
    """Qwen's has no unknown token, so there is nothing to count."""
    policy, encoder = tiny
    prompt = encoder.encode(make_example(0, "wieviele ?"))
    assert unknown_words([prompt], encoder).share > 0

    tokenizer = SimpleNamespace(unk_token_id=None)
    other = SimpleNamespace(tokenizer=tokenizer, image_token_id=encoder.image_token_id)
    assert unknown_words([prompt], other).share == 0


def test_a_bad_row_is_said_once(tiny):
    """Not in every epoch again; it is counted each time."""
    _, encoder = tiny
    examples = [make_example(0, id="good"), {**make_example(0, id="bad"), "images": ["none.png"]}]
    said = []
    stream = PromptStream(examples, encoder, seed=0, warn=said.append)
    stream.take(5)
    assert len(said) == 1 and "skipped, in every epoch: example bad" in said[0]
    assert stream.skipped > 2


def test_of_many_bad_rows_the_first_are_named(tiny):
    """A thousand lines about a thousand missing images would hide everything else."""
    _, encoder = tiny
    good = make_example(0, id="good")
    examples = [good] + [{**good, "id": f"bad {i}", "images": ["none.png"]} for i in range(99)]
    said = []
    stream = PromptStream(examples, encoder, seed=0, warn=said.append)
    for _ in range(3):
        stream.take(1)
    assert len(said) == 6 and "counted only" in said[-1]
    assert stream.skipped >= 99


def test_a_bad_row_is_said_before_the_first_step(tiny):
    """By the first look, and not again when its turn comes."""
    _, encoder = tiny
    examples = [make_example(0, id="good"), {**make_example(0, id="bad"), "images": ["none.png"]}]
    said = []
    stream = PromptStream(examples, encoder, seed=0, warn=said.append)
    assert len(stream.preview(64)) == 1
    stream.take(3)
    assert len(said) == 1 and "example bad" in said[0]


def test_a_preview_leaves_the_stream_where_it_is(tiny):
    """Prompts from all over the examples; what the stream then gives does not depend on it."""
    _, encoder = tiny
    examples = [make_example(0, id=f"r{i}") for i in range(10)]
    looked, plain = (PromptStream(examples, encoder, seed=0) for _ in range(2))
    assert [p.example["id"] for p in looked.preview(5)] == ["r0", "r2", "r4", "r6", "r8"]
    assert len(looked.preview(64)) == 10
    ids = [[p.example["id"] for p in stream.take(12)] for stream in (looked, plain)]
    assert ids[0] == ids[1]


def test_best_blind_guess(tmp_path):
    """To each kind its most common answer: 2 of 3 and 1 of 1."""
    rows = [{"question": "q", "answer": a, "kind": k} for a, k in ("1a", "1a", "2a", "9b")]
    examples = load_examples(write(tmp_path / "rows.jsonl", rows))
    assert best_blind_guess(examples) == best_blind_guess(list(examples)) == 0.75


def test_revision_is_passed_on_and_recorded(start, tmp_path, monkeypatch):
    """It is the hub's, so nothing else is tried here than that it gets there."""
    asked = {}

    def load_dataset(name, **more):
        asked.update(more)
        return datasets.Dataset.from_list([ROW] * 4)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = small_grpo(start, tmp_path / "run", steps=1, data="someone/questions",
                        revision="abc123", max_examples=None, instruction="", max_new_tokens=2)
    grpo.main(config)
    assert asked["revision"] == "abc123"
    assert json.loads((tmp_path / "run/config.json").read_text())["revision"] == "abc123"


def test_data_that_lost_rows_are_refused_at_resume(tiny):
    """The order of an epoch depends on their number: the run would go on elsewhere in silence."""
    _, encoder = tiny
    examples = [make_example(0, id=f"r{i}") for i in range(6)]
    state = PromptStream(examples, encoder, seed=0).state()
    PromptStream(examples, encoder, seed=0).restore(state)
    with pytest.raises(ValueError, match="--data has 5 examples now, and had 6"):
        PromptStream(examples[:5], encoder, seed=0).restore(state)


def test_data_with_other_answers_are_refused_at_resume(tmp_path, tiny):
    """As many rows, another gold: the run would go on with other rewards."""
    _, encoder = tiny
    source = write(tmp_path / "rows.jsonl", [ROW, {**ROW, "answer": "3"}])
    state = PromptStream(load_examples(source), encoder, seed=0).state()
    PromptStream(load_examples(source), encoder, seed=0).restore(state)

    write(tmp_path / "rows.jsonl", [ROW, {**ROW, "answer": "4"}])
    with pytest.raises(ValueError, match="--resume: the answers in --data are not those"):
        PromptStream(load_examples(source), encoder, seed=0).restore(state)


def test_messages_about_columns_say_what_is_wrong(tmp_path):
    """Semicolons, a part that does not exist, a share that is none, a line that is no JSON."""
    (tmp_path / "a.csv").write_text("question,answer\n")
    with pytest.raises(ValueError, match="holds no examples|has no examples"):
        load_examples(str(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text("question;answer\nx;1\n")
    with pytest.raises(ValueError, match="by commas, not by semicolons"):
        load_examples(str(tmp_path / "a.csv"))
    source = write(tmp_path / "rows.jsonl", [ROW])
    with pytest.raises(ValueError, match="did you mean question"):
        load_examples(source, columns="questoin=question")
    with pytest.raises(ValueError, match="the share 'x' is not a positive number"):
        load_examples(f"{source}:x,{source}:1")
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + '\n{"question": ')
    with pytest.raises(ValueError, match="JSON"):
        load_examples(source)


def test_a_truncated_file_is_named(tmp_path):
    """Pillow says what is wrong, and not where."""
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    file = tmp_path / "half.png"
    file.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ExampleError, match="example e7: image cannot be read: .*half.png"):
        load_image(str(file), "e7")


@pytest.mark.parametrize("answer", ["3", 3, 2.5, "three", "50 %", "1/2", "-7", "1,000", "12 cm"])
def test_an_answer_of_type_number_is_one(answer):
    """Another one could never be given: accuracy would be 0, without a word."""
    row = {**ROW, "answer_type": "number"}
    assert to_example({**row, "answer": answer}, 0, "", "rows.jsonl")["answer"] == str(answer)
    with pytest.raises(ExampleError, match="example 0: answer 'red' is no number"):
        to_example({**row, "answer": "red"}, 0, "", "rows.jsonl")


def test_columns_without_their_data_are_refused():
    """Who forgets --data would train on the embedded world, and take it for their own data."""
    for config in (grpo.Config, build_prefs.Config, evaluate.Config):
        with pytest.raises(ValueError, match="--columns question=q: --data toy has no columns"):
            config(columns="question=q")
        config(columns="question=q", data="mine.jsonl")
    evaluate.Config(columns="question=q", gf_id="a.jsonl", gf_ood="b=b.jsonl")
    with pytest.raises(ValueError, match="--max_examples 0: must be at least 1"):
        grpo.Config(max_examples=0)


def test_an_answer_outside_of_the_choices_is_refused(tmp_path):
    """Wrong before: every completion unscored, and a run without a gradient that ended well."""
    record = {"question": "which ?", "choices": ["red", "blue"]}
    for good in ("A", "(b)", "blue"):
        assert to_example({**record, "answer": good}, 0, "", "x.jsonl")["answer"] == good
    for bad in ("green", "E"):
        with pytest.raises(ExampleError, match="neither letter nor text of one of its choices"):
            to_example({**record, "answer": bad}, 0, "", "x.jsonl")
