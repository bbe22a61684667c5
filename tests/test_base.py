"""The committed base model is what its script describes, and behaves as the README says."""

import json
from pathlib import Path

import pytest
import torch

import evaluate
from evaluate import Measurement, collect_responses, guessing_rate, rate_with_interval
from model.loading import load_model
from sources import with_shuffled_images
from sources.stream import encode_all
from toy import world
from toy.train_base import SPECIAL, build, vocabulary

BASE = Path(__file__).parent.parent / "toy" / "base"


@pytest.fixture(scope="module")
def base():
    return load_model(str(BASE))


def text_config(policy) -> dict:
    """The text half of a model's configuration, without the dtype it was saved in."""
    return policy.vlm.config.text_config.to_dict() | {"dtype": None}


def image_size(encoder) -> dict:
    """Smallest and largest number of pixels of an image."""
    return encoder.image_processor.to_dict()["size"]


def test_base_is_what_its_script_builds(base):
    """Same architecture, same words, same image processor; safetensors, a megabyte, no code."""
    policy, encoder = base
    fresh, fresh_encoder = build()

    assert text_config(policy) == text_config(fresh)
    shapes = {n: p.shape for n, p in policy.named_parameters()}
    assert shapes == {n: p.shape for n, p in fresh.named_parameters()}

    words = [encoder.tokenizer.convert_ids_to_tokens(i) for i in range(len(encoder.tokenizer))]
    assert words == vocabulary()
    assert policy.eos_ids == fresh.eos_ids
    assert torch.equal(policy.suppressed, fresh.suppressed)
    assert image_size(encoder) == image_size(fresh_encoder)

    sizes = {f.name: f.stat().st_size for f in BASE.iterdir()}
    assert sizes["model.safetensors"] < 2_000_000
    assert not any(name.endswith((".bin", ".pt", ".py", ".pkl")) for name in sizes)
    assert "auto_map" not in json.loads((BASE / "config.json").read_text())


def test_base_knows_every_word(base):
    """No question, instruction or taught answer of the world holds a word the base cannot say."""
    _, encoder = base
    unknown = encoder.tokenizer.unk_token_id
    assert encoder.tokenizer.convert_ids_to_tokens(unknown) == SPECIAL[-1]

    kinds = (*world.KINDS, world.OOD_KIND)
    for formats in ([world.THINK], *world.OOD_FORMATS.values()):
        for example in world.examples(60, 0, formats=formats, unseen_wording=True, kinds=kinds):
            assert unknown not in encoder.encode(example).ids.tolist()


def test_base_behaves_as_documented(base):
    """It obeys the format about 40 % of the time, is right about 58 % and reasons in half of all.

    With the image of another question its answers are worth no more than a blind guess.
    """
    policy, encoder = base
    examples = world.examples(600, seed=11, held_out=True)
    cfg = evaluate.Config()

    records = {}
    for name, asked in (("own", examples), ("shuffled", with_shuffled_images(examples))):
        prompts = encode_all(asked, encoder)
        measurement = Measurement(name, "sampled", temperature=1.0)
        records[name] = collect_responses(policy, encoder, prompts, cfg, None, measurement)

    assert 0.33 < rate_with_interval(records["own"], "in_format")["mean"] < 0.47
    assert 0.50 < rate_with_interval(records["own"], "score")["mean"] < 0.66

    # A listing holds a colon, a guess does not.
    reasoned = sum(" : " in record["response"] for record in records["own"]) / len(examples)
    assert 0.40 < reasoned < 0.60

    blind = guessing_rate(records["own"])
    assert rate_with_interval(records["shuffled"], "score")["mean"] <= blind
