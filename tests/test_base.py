"""The committed base model is what its script describes, and behaves as the README says."""

import json
from pathlib import Path

import pytest
import torch

from common import load_model
from evaluate import guessing_rate, respond, share, with_wrong_pictures
from evaluate import Config as EvaluateConfig
from data import encode_all
from toy import world
from toy.train_base import SPECIAL, build, vocabulary

BASE = Path(__file__).parent.parent / "toy" / "base"


@pytest.fixture(scope="module")
def base():
    return load_model(str(BASE))


def test_base_is_what_its_script_builds(base):
    """Same architecture, same words, same image processor; safetensors, about a megabyte, no code."""
    policy, codec = base
    fresh, fresh_codec = build()
    assert policy.vlm.config.text_config.to_dict() | {"dtype": None} == fresh.vlm.config.text_config.to_dict() | {"dtype": None}
    shapes = {n: p.shape for n, p in policy.named_parameters()}
    assert shapes == {n: p.shape for n, p in fresh.named_parameters()}
    assert [codec.tokenizer.convert_ids_to_tokens(i) for i in range(len(codec.tokenizer))] == vocabulary()
    assert policy.eos_ids == fresh.eos_ids and torch.equal(policy.banned, fresh.banned)
    assert codec.image_processor.to_dict()["size"] == fresh_codec.image_processor.to_dict()["size"]
    files = {f.name: f.stat().st_size for f in BASE.iterdir()}
    assert files["model.safetensors"] < 2_000_000 and not any(n.endswith((".bin", ".pt", ".py", ".pkl")) for n in files)
    assert "auto_map" not in json.loads((BASE / "config.json").read_text())


def test_base_knows_every_word(base):
    """No question, instruction or taught answer of the world holds a word that the base cannot say."""
    _, codec = base
    unknown = codec.tokenizer.unk_token_id
    assert codec.tokenizer.convert_ids_to_tokens(unknown) == SPECIAL[-1]
    for formats in ([world.THINK], *world.OOD_FORMATS.values()):
        for row in world.rows(60, 0, formats=formats, unseen_wording=True, kinds=(*world.KINDS, world.OOD_KIND)):
            assert unknown not in codec.encode(row).ids.tolist()


def test_base_behaves_as_documented(base):
    """It obeys the format about 40 % of the time, is right about 58 % and reasons about half of the time; with
    the picture of another question its answers are worth no more than a blind guess."""
    policy, codec = base
    rows = world.rows(600, seed=11, held_out=True)
    by = {}
    for name, asked in (("right", rows), ("shuffled", with_wrong_pictures(rows))):
        by[name] = respond(policy, codec, encode_all(asked, codec), EvaluateConfig(), None, {}, temperature=1.0)
    assert 0.33 < share(by["right"], "in_format")["mean"] < 0.47
    assert 0.50 < share(by["right"], "score")["mean"] < 0.66
    reasoned = sum(" : " in r["response"] for r in by["right"]) / len(rows)  # a listing holds a colon, a guess does not
    assert 0.40 < reasoned < 0.60
    assert share(by["shuffled"], "score")["mean"] <= guessing_rate(by["right"])
