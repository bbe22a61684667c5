"""Pairs of responses that were not sampled here: from a file, and from an endpoint that sees."""

import base64
import io
import json
import os
from types import SimpleNamespace

import pytest
from PIL import Image, ImageChops

import build_prefs
from build_prefs import Config
from conftest import make_example
from fake_endpoint import Cut, FakeEndpoint, Status
from sources import load_examples, responders
from sources.elsewhere import read_responses, request_body, responses_from

COUNT = 6
THINK = "<think> I count . that is {} . </think> <answer> {} </answer>"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("RESPONSES_API_KEY", "secret-key-18")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def images_of(body: dict) -> list[Image.Image]:
    urls = [p["image_url"]["url"] for p in body["messages"][0]["content"] if "image_url" in p]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in urls]


def same_image(a, b) -> bool:
    return a.size == b.size and ImageChops.difference(a.convert("RGB"), b).getbbox() is None


class Teacher:
    """Finds its question by the image that it is shown, and answers it in plain words."""

    def __init__(self, examples):
        self.examples = examples

    def __call__(self, body, before):
        (image,) = images_of(body)
        (example,) = [e for e in self.examples if same_image(image, e["images"][0])]
        assert example["question"] in body["messages"][0]["content"][-1]["text"]
        assert example["instruction"] in body["messages"][0]["content"][-1]["text"]
        return f"sample {body['seed']} : the answer is {example['answer']} ."


def settings(tmp_path, name, **more) -> Config:
    return Config(
        base="toy/base", max_examples=COUNT, seed=3, samples=2, max_new_tokens=8,
        run_dir=str(tmp_path / name), responses_cache=str(tmp_path / "responses"),
        responses_call_s=5.0, **more,
    )  # fmt: skip


def funnel_of(cfg) -> dict:
    build_prefs.main(cfg)
    with open(os.path.join(cfg.run_dir, "funnel.json")) as file:
        return json.load(file)


def test_chosen_from_a_file_and_rejected_from_an_endpoint(tmp_path, capsys):
    """And the other way round. The funnel names both sources; a second run asks nothing."""
    examples = load_examples("toy", count=COUNT, seed=3)
    file = tmp_path / "teacher.jsonl"
    lines = [{"id": e["id"], "response": THINK.format(e["answer"], e["answer"])} for e in examples]
    lines[0]["finish_reason"] = "length"
    lines += [{**lines[1], "response": "the answer is 99 ."}, {**lines[1], "id": "of others"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    with FakeEndpoint(Teacher(examples)) as server:
        url = f"{server.url}#big-model"
        funnel = funnel_of(settings(tmp_path, "a", source=str(file), rejected_source=url))
        assert funnel[f"chosen: from {file}"] == funnel["chosen: sampled"] == COUNT + 1
        assert funnel[f"rejected: from {url}"] == funnel["rejected: sampled"] == 2 * COUNT
        assert funnel["chosen: dropped, truncated"] == 1
        assert funnel["chosen: dropped, wrong answer"] == 1
        assert funnel["pairs"] == COUNT - 1

        assert len(server.asked) == 2 * COUNT
        assert {body["model"] for body in server.asked} == {"big-model"}
        assert {h["Authorization"] for h in server.headers} == {"Bearer secret-key-18"}

        # Plain words cannot be chosen: all of them are counted as what they are.
        with pytest.raises(ValueError, match="no pair came out"):
            build_prefs.main(settings(tmp_path, "b", source=url, rejected_source=str(file)))
        assert len(server.asked) == 2 * COUNT, "a second run asks nothing"
    written = [path for path in tmp_path.rglob("*.json*") if path.is_file()]
    assert all("secret-key-18" not in path.read_text() for path in written)


def test_images_stand_where_the_question_has_them():
    example = make_example(images=2, question="compare <image> with <image> now", instruction="go")
    body = request_body(example, 1, Config(max_new_tokens=99, temperature=0.7, seed=2))
    content = body["messages"][0]["content"]

    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "text"]
    assert [part.get("text") for part in content[::2]] == ["compare ", " with ", " now\ngo"]
    for sent, image in zip(images_of(body), example["images"]):
        assert same_image(sent, image)
    assert (body["max_tokens"], body["temperature"]) == (99, 0.7)
    assert body["seed"] != request_body(example, 2, Config(seed=2))["seed"]


def test_what_an_endpoint_does_not_answer_is_counted(tmp_path):
    """A failure for good and a reply that was cut: both are dropped, and neither is kept."""
    example = make_example(answer="2")
    cfg = settings(tmp_path, "a")

    def play(body, before):
        return Status(400) if body["seed"] % 2 else Cut("the answer is")

    with FakeEndpoint(play) as server:
        ask = responses_from(f"{server.url}#m", "--source", cfg, print, show=False)
        (responses,) = ask([example])
    notes = [
        build_prefs.chosen_candidate(response, example, None, cfg).reason for response in responses]
    assert sorted(notes) == ["no reply", "truncated"]
    assert [r.text for r in responses if r.text] == ["the answer is"]
    assert not list((tmp_path / "responses").rglob("*.json"))


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2"),
        ("[]", 'line 2: wanted {"id"'),
        ('{"response": "a"}', 'line 2: wanted {"id"'),
        ('{"id": 7}', "line 2: 'response'"),
        ('{"id": 7, "response": ["a"]}', "line 2: 'response'"),
    ],
)
def test_wrong_lines_are_named(tmp_path, line, message):
    file = tmp_path / "r.jsonl"
    file.write_text('{"id": 7, "response": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"--source .*{message}"):
        read_responses(file, "--source")


@pytest.mark.parametrize(
    "source, message",
    [
        ("missing.jsonl", "no such file"),
        ("http://127.0.0.1/v1", "URL#MODEL"),
        ("http:///v1#m", "wanted http"),
        ("ftp://h/v1#m", "wanted http"),
    ],
)
@pytest.mark.parametrize("side, flag", [("chosen", "--source"), ("rejected", "--rejected_source")])
def test_wrong_sources_name_their_flag_before_anything_is_sampled(source, message, side, flag):
    cfg = Config(**{flag.removeprefix("--"): source})
    run = SimpleNamespace(warn=print, writes=False)
    with pytest.raises(ValueError, match=f"{flag} .*{message}"):
        responders.open_responder(side, None, None, cfg, run, parts=None)


def test_ids_of_a_file_may_be_numbers_and_need_not_all_be_there(tmp_path):
    file, said = tmp_path / "r.jsonl", []
    file.write_text('{"id": 7, "response": "a"}\n\n{"id": "7", "response": "b"}\n')
    ask = responses_from(str(file), "--source", None, said.append, show=False)

    found, missing = ask([{"id": "7"}, {"id": "8"}])
    assert [response.text for response in found] == ["a", "b"]
    assert missing == []
    assert "no response to 1 of 2 questions, the first is 8" in said[0]
