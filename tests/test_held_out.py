"""Accuracy on held-out examples while a run trains."""

from dataclasses import replace

import pytest
import torch

import grpo
from conftest import small_grpo
from evaluate import Config as EvaluateConfig
from harness.run import read_jsonl
from rewards.groups import Rewarder
from sources import load_examples
from sources.held_out import split_held_out
from sources.toy import evaluation_sets

CFG = replace(grpo.Config(), eval_every=2, eval_items=5)


def contents(examples) -> set:
    return {(example["question"], example["images"][0].tobytes()) for example in examples}


def test_toy_holds_out_scenes_that_no_other_set_has():
    """Not those of training, and not those of a table that `evaluate.py` shows."""
    cfg = replace(CFG, eval_items=200)
    examples = load_examples("toy", count=400, seed=cfg.seed)
    trained_on, held_out = split_held_out(examples, cfg)

    assert len(held_out) == 200
    assert not contents(trained_on) & contents(held_out)
    shown = evaluation_sets(200, EvaluateConfig().seed)["id"]
    assert len(contents(shown) & contents(held_out)) < 5  # small scenes repeat by chance


def test_a_table_is_split(tmp_path):
    """Every example is on one side, the same one for the same seed."""
    examples = [{"id": str(i)} for i in range(20)]
    cfg = replace(CFG, data="table.jsonl")
    trained_on, held_out = split_held_out(examples, cfg)

    ids = {example["id"] for example in trained_on}, {example["id"] for example in held_out}
    assert len(ids[0]) == 15 and len(ids[1]) == 5
    assert ids[0] | ids[1] == {str(i) for i in range(20)}
    assert list(split_held_out(examples, cfg)[1]) == list(held_out)
    assert list(split_held_out(examples, replace(cfg, seed=1))[1]) != list(held_out)

    with pytest.raises(ValueError, match="--eval_items 20: .* only 20 examples"):
        split_held_out(examples, replace(cfg, eval_items=20))


def test_held_out_accuracy_changes_nothing(start, tmp_path):
    """It is in the log every --eval_every steps; weights and all other metrics are the same."""
    weights, records = [], []
    for name, every in (("with", 2), ("without", 0)):
        folder = tmp_path / name
        grpo.main(small_grpo(start, folder, steps=3, eval_every=every, eval_items=4))
        weights.append((folder / "model" / "model.safetensors").read_bytes())
        records.append(read_jsonl(folder / "metrics.jsonl"))

    assert weights[0] == weights[1]
    assert [record.pop("eval_accuracy", None) is not None for record in records[0]] == [
        True, False, True
    ]  # fmt: skip
    for with_it, without in zip(*records):
        for timed in ("gen%", "step_s"):
            del with_it[timed], without[timed]
        assert with_it == without


def test_held_out_accuracy_is_of_greedy_answers(start, tmp_path, monkeypatch):
    """The policy that samples the rollout answers: at step 1 the start model, at temperature 0."""
    asked = []
    real = grpo.sample_groups

    def watched(*args, **kwargs):
        asked.append((len(args[1]), kwargs["temperature"]))
        return real(*args, **kwargs)

    strictness = []
    reward = Rewarder.reward_groups

    def watched_rewards(self, groups, progress):
        strictness.append(progress)
        return reward(self, groups, progress)

    monkeypatch.setattr(Rewarder, "reward_groups", watched_rewards)
    monkeypatch.setattr("sources.held_out.sample_groups", watched)
    grpo.main(small_grpo(start, tmp_path / "run", steps=2, eval_every=2, eval_items=4))
    assert asked == [(4, 0.0)]
    assert strictness == [1.0, 0.5, 1.0], "held out as strict as at the end, then the two rollouts"
    assert torch.is_grad_enabled()
