"""Each variant is a small patch of a stage: it applies, its value and gradient are the paper's."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from variants import apply as apply_module
from variants.apply import VARIANTS, apply, names

ROOT = Path(__file__).parent.parent


def load(name: str, folder: Path):
    """The patched stage as a module."""
    copy = apply(name, folder)
    spec = importlib.util.spec_from_file_location(f"variant_{name}", copy)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def random_batch(completions=4, longest=5):
    """logp (with gradient), logp_old (B, T), advantages (B,), mask (B, T); fp64."""
    g = torch.Generator().manual_seed(0)
    shape = (completions, longest)
    logp = (torch.randn(shape, generator=g, dtype=torch.float64) * 0.3 - 2).requires_grad_()
    logp_old = torch.randn(shape, generator=g, dtype=torch.float64) * 0.3 - 2
    advantages = torch.tensor([1.0, -0.5, 0.8, -1.2], dtype=torch.float64)
    lengths = torch.tensor([[5], [2], [3], [4]])
    return logp, logp_old, advantages, (torch.arange(longest) < lengths).double()


@pytest.mark.parametrize("name", names())
def test_every_variant_applies_and_is_small(name, tmp_path):
    """At most 20 changed lines, a sentence and a paper; the copy is a whole stage."""
    text = (VARIANTS / f"{name}.patch").read_text()
    added = re.findall(r"^\+(?!\+\+)", text, re.MULTILINE)  # not the line `+++ b/stage.py`
    removed = re.findall(r"^-(?!--)", text, re.MULTILINE)
    copy = apply(name, tmp_path)

    assert len(added) + len(removed) <= 20
    assert "arXiv" in text[: text.index("--- a/")]
    assert copy.read_text() != (ROOT / copy.name).read_text()


def test_a_patch_that_no_longer_fits_says_so(tmp_path, monkeypatch):
    """After an edit of the lines around it, the error names the patch and the stage."""
    monkeypatch.setattr("variants.apply.PROJECT", tmp_path)
    stage = (ROOT / "dpo_sft.py").read_text()
    (tmp_path / "dpo_sft.py").write_text(stage.replace("F.logsigmoid", "torch.log_sigmoid"))

    with pytest.raises(ValueError, match=r"ipo.patch no longer fits dpo_sft.py"):
        apply("ipo", tmp_path / "out")
    with pytest.raises(ValueError, match="no variant 'ppo'; there are gspo, ipo, rloo"):
        apply("ppo", tmp_path / "out")


def test_gspo_has_one_ratio_a_completion(tmp_path):
    """Value: the geometric mean of the tokens' ratios. Gradient: equal on all tokens of it.

    Closed form inside of the band: token t of completion i gets -A_i s_i, from the |o_i| terms of
    the sum that each depend on it by 1 / |o_i|.
    """
    gspo = load("gspo", tmp_path)
    logp, logp_old, advantages, mask = random_batch()
    terms = gspo.policy_loss(logp, logp_old, advantages, mask, 10.0, 10.0)
    (terms["loss"] * mask).sum().backward()

    for i in range(len(logp)):
        length = int(mask[i].sum())
        product = (logp[i, :length] - logp_old[i, :length]).exp().prod()
        s = product ** (1 / length)
        assert torch.allclose(terms["ratio"][i, :length], s.detach().expand(length))
        assert torch.allclose(logp.grad[i, :length], (-advantages[i] * s).expand(length))
        assert logp.grad[i, length:].abs().max() == 0 if length < 5 else True

    over_padding = ((logp - logp_old).mean(-1)).exp()  # the classic mistake
    assert not torch.allclose(over_padding, terms["ratio"][:, 0])


def test_gspo_clips_whole_completions(tmp_path):
    """Outside of the band a completion with A > 0 sends no gradient at all."""
    gspo = load("gspo", tmp_path)
    logp, _, advantages, mask = random_batch()
    terms = gspo.policy_loss(logp, logp.detach() - 0.1, advantages, mask, 0.01, 0.01)
    (terms["loss"] * mask).sum().backward()

    assert logp.grad[advantages > 0].abs().max() == 0
    assert (logp.grad[advantages < 0] * mask[advantages < 0]).abs().max() > 0


def test_rloo_leaves_a_completion_out_of_its_own_baseline(tmp_path):
    """R_i minus the mean of the others, nan left out; not the group's mean."""
    rloo = load("rloo", tmp_path)
    rewards = torch.tensor([[1.0, 0.5, 0.0, 1.5], [1.0, float("nan"), 0.0, 0.0]])
    advantages = rloo.group_advantages(rewards)

    assert torch.allclose(advantages[0], torch.tensor([1 / 3, -1 / 3, -1.0, 1.0]))
    assert torch.allclose(advantages[1], torch.tensor([1.0, 0.0, -0.5, -0.5]))
    assert rloo.group_advantages(torch.full((1, 4), 0.1)).abs().max() == 0


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_stops_at_a_finite_margin(beta, tmp_path):
    """(m - 1 / (2 beta))^2 of the log-ratio margin m; its gradient is 0 at m = 1 / (2 beta)."""
    ipo = load("ipo", tmp_path)
    margins = torch.tensor([0.0, 1.0, 1 / (2 * beta), 30.0], dtype=torch.float64)
    chosen = margins.clone().requires_grad_()
    zero = torch.zeros_like(margins)
    terms = ipo.dpo_loss(chosen, zero, zero, zero, beta)
    loss = terms["dpo"]
    loss.sum().backward()

    assert torch.allclose(loss, (margins - 1 / (2 * beta)) ** 2)
    assert torch.allclose(chosen.grad, 2 * (margins - 1 / (2 * beta)))
    rewards = terms["chosen_reward"]
    assert torch.allclose(rewards, beta * margins), "what is logged stays DPO's reward"


def test_a_patch_that_changes_nothing_is_named(tmp_path, monkeypatch):
    """A sentence alone: what belongs behind it is said."""
    (tmp_path / "mine.patch").write_text("An idea of my own.\n")
    monkeypatch.setattr(apply_module, "VARIANTS", tmp_path)
    with pytest.raises(ValueError, match="variants/mine.patch changes nothing: a variant changes"):
        apply("mine", tmp_path)
    two = "--- a/grpo.py\n+++ b/grpo.py\n--- a/common.py\n+++ b/common.py\n"
    (tmp_path / "mine.patch").write_text(two)
    with pytest.raises(ValueError, match="changes grpo.py, common.py: a variant changes one of"):
        apply("mine", tmp_path)


def test_a_change_that_is_still_in_the_stage_is_said(tmp_path, monkeypatch):
    """Who forgot to take it back reads what to type, and no log of `patch`."""
    patched = apply("rloo", tmp_path / "once").read_text()
    (tmp_path / "grpo.py").write_text(patched)
    monkeypatch.setattr(apply_module, "PROJECT", tmp_path)
    with pytest.raises(ValueError, match="has this change already; `git checkout grpo.py`"):
        apply("rloo", tmp_path / "twice")


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_variant_trains(name, tmp_path):
    """`make variant` and two steps of the patched stage from the shell, as its message says."""
    folder = tmp_path / "variant"
    command = [sys.executable, "variants/apply.py", name, "--out", str(folder)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    stage = next(folder.glob("*.py"))
    assert f"PYTHONPATH=. .venv/bin/python {stage}" in said

    flags = ["--run_dir", str(tmp_path / "run")]
    if stage.name == "grpo.py":
        flags += ["--steps", "2", "--prompts_per_step", "4", "--max_examples", "8"]
    else:
        prefs = [sys.executable, "build_prefs.py", "--zero", "toy/base", "--max_examples", "48"]
        run = ["--run_dir", str(tmp_path / "prefs")]
        subprocess.run([*prefs, *run], cwd=ROOT, check=True, capture_output=True)
        flags += ["--pairs", str(tmp_path / "prefs"), "--max_steps", "2"]
    result = subprocess.run(
        [sys.executable, str(stage), *flags],
        cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/model/model.safetensors").exists()
