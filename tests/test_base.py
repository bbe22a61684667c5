"""The committed base model is what its script describes, and behaves as the README says."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

import evaluate
from evaluate import Measurement, Session, answer_set, guessing_rate, rate_with_interval
from model.loading import load_model
from rewards.consistency import check_consistency
from sources import with_shuffled_images
from sources.stream import encode_all
from toy import world
from toy.train_base import (
    CORPUS_KINDS,
    SPECIAL,
    Phase,
    build,
    half_list,
    vocabulary,
    write_reasoning,
)

BASE = Path(__file__).parent.parent / "toy" / "base"

# In the place of `harness.parts.Parts`, which keeps what is finished in the folder of a run.
KEEP_NOTHING = SimpleNamespace(each=lambda name, items, size, work, generator: work(items))


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

    kinds = tuple(world.WORDINGS)
    for formats in ([world.THINK], *world.OOD_FORMATS.values()):
        for example in world.examples(60, 0, formats=formats, unseen_wording=True, kinds=kinds):
            assert unknown not in encoder.encode(example).ids.tolist()


def test_base_behaves_as_documented(base):
    """It obeys the format in about 40 %, is right in about 25 %, and lists about as often.

    With the image of another question its answers are worth no more than a blind guess.
    """
    policy, encoder = base
    examples = world.examples(600, seed=11, held_out=True)
    run = SimpleNamespace(accelerator=Accelerator(cpu=True))
    session = Session(evaluate.Config(), run, None, KEEP_NOTHING)

    records = {}
    for name, asked in (("own", examples), ("shuffled", with_shuffled_images(examples))):
        prompts = encode_all(asked, encoder)
        measurement = Measurement(name, "sampled", temperature=1.0)
        records[name] = answer_set(policy, encoder, prompts, measurement, "base", session)

    assert 0.33 < rate_with_interval(records["own"], "in_format")["mean"] < 0.47
    assert 0.18 < rate_with_interval(records["own"], "score")["mean"] < 0.32

    # A list holds a colon, a guess does not, and half a list ends in "and many".
    responses = [record["response"] for record in records["own"]]
    lists = [response for response in responses if " : " in response and "many" not in response]
    assert 0.18 < len(lists) / len(examples) < 0.34

    blind = guessing_rate(records["own"])
    assert rate_with_interval(records["shuffled"], "score")["mean"] <= blind


# --- What it is taught ---------------------------------------------------------------------------


def test_unseen_task_is_unseen():
    """The corpus of the base, RL and the pairs have no question that adds and subtracts."""
    assert world.OOD_KIND not in (*CORPUS_KINDS, *world.KINDS)


def test_half_lists_are_no_short_full_ones():
    """Half a list names two things and says "many"; a list of two things or fewer is a guess."""
    rng = random.Random(0)
    for i in range(300):
        kind = CORPUS_KINDS[i % len(CORPUS_KINDS)]
        question = world.ask(rng, kind, held_out=False, wording=0)
        half = half_list(question)
        assert half.endswith(f"that is {question.answer} .")

        things = question.reasoning.split(" . ")[0].count(" , ") + 1
        if things <= 2:
            assert half == f"that is {question.answer} ."
        else:
            assert half.count(" , ") == 1
            assert " and many . " in half
            assert question.reasoning.startswith(half.split(" and many")[0])


@pytest.mark.parametrize("contradict", [0.0, 1.0])
def test_contradictions_are_decidable(contradict):
    """Whatever the habit, `check_consistency` finds the reasonings that were taught to contradict.

    All of them and no other.
    """
    rng = random.Random(0)
    phase = Phase(
        "habits", 1, 1e-3, world.MAX_THINGS, guess=0.3, lazy=0.3, contradict=contradict
    )
    for i in range(300):
        kind = CORPUS_KINDS[i % len(CORPUS_KINDS)]
        question = world.ask(rng, kind, held_out=False, wording=0)
        response = world.THINK.template.format(
            reasoning=write_reasoning(rng, question, phase), answer=question.answer
        )
        example = {
            "question": question.text,
            "answer": str(question.answer),
            "answer_type": "number",
            "choices": [],
        }
        wanted = "agrees" if contradict == 0.0 else "disagrees"
        assert check_consistency(example, response) == wanted, response
