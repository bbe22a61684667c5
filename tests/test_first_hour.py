"""The README's first hour, done as it is written: own data, own reward; and a few kills."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure

import chaos
import grpo
from conftest import small_grpo
from harness import plots
from harness.cli import parse_cli
from harness.run import read_jsonl
from rewards import groups

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def block(text: str, language: str) -> str:
    """The first fenced block of a language."""
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


def command(text: str, stage: str) -> list[str]:
    """The arguments of the first command of a stage; a line that ends in a backslash goes on."""
    line = re.search(rf"python {stage} ((?:[^\n]*\\\n)*[^\n]*)", text)[1]
    return shlex.split(line.replace("\\\n", " "))


# --- Own data ------------------------------------------------------------------------------------


def own_run(tmp_path, monkeypatch, *more: str) -> list[dict]:
    """Draw the pictures and run the command, both as they stand in the README; the metrics."""
    text = section("Your own data")
    subprocess.run([sys.executable, "-c", block(text, "python")], cwd=tmp_path, check=True)
    arguments = command(text, "grpo.py")

    monkeypatch.chdir(tmp_path)
    base = ["--model", str(ROOT / "toy/base")]
    grpo.main(parse_cli(grpo.Config, "", [*arguments, *base, *more]))
    return read_jsonl(tmp_path / "runs/mine/metrics.jsonl")


def test_own_data_as_in_the_readme(tmp_path, monkeypatch, capsys):
    """Every example is used, with its image."""
    steps = own_run(tmp_path, monkeypatch, "--steps", "1", "--max_new_tokens", "8")
    assert steps[0]["skipped_examples"] == 0
    said = capsys.readouterr().out
    assert "20 examples; columns used: question = problem, answer = solution, images = pict" in said
    assert "[image 112x112, 16 tokens]" in said
    assert (tmp_path / "runs/mine/curves.png").is_file()


@pytest.mark.slow
def test_own_data_gives_a_rising_curve(tmp_path, monkeypatch):
    """As far as the README says: from 27 % to 78 %."""
    steps = own_run(tmp_path, monkeypatch)
    assert len(steps) == 16
    assert steps[0]["accuracy"] < 0.4 and steps[-1]["accuracy"] > 0.6
    assert steps[-1]["reward"] > steps[0]["reward"] + 0.5


# --- Own reward ----------------------------------------------------------------------------------


def test_own_reward_as_in_the_readme(start, tmp_path, monkeypatch):
    """That very diff is applied to today's file; the reward is paid, logged, drawn, recorded."""
    text = section("Your own reward")
    (tmp_path / "rewards").mkdir()
    copy = tmp_path / "rewards/__init__.py"
    copy.write_text((ROOT / "rewards/__init__.py").read_text())
    patch = subprocess.run(
        ["patch", "--fuzz=0", "-p1"], input=block(text, "diff"), cwd=tmp_path, text=True,
        capture_output=True,
    )  # fmt: skip
    assert patch.returncode == 0, patch.stdout

    spec = importlib.util.spec_from_file_location("patched_rewards", copy)
    patched = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "patched_rewards", patched)
    spec.loader.exec_module(patched)
    monkeypatch.setattr(groups, "make_rewards", patched.make_rewards)
    drawn = []

    class Kept(Figure):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            drawn.append(self)

    monkeypatch.setattr(plots, "Figure", Kept)
    weights = command(text, "grpo.py")[1]
    grpo.main(small_grpo(start, tmp_path / "run", steps=1, reward_weights=weights))

    record = read_jsonl(tmp_path / "run/metrics.jsonl")[0]
    sample = read_jsonl(tmp_path / "run/samples.jsonl")[0]
    for rewards, total, words in zip(sample["rewards"], sample["totals"], sample["completions"]):
        assert rewards["lists"] == min(1.0, words.count(",") / 4)
        parts = 0.5 * rewards["format"] + rewards["accuracy"] + 0.5 * rewards["lists"]
        assert total == pytest.approx(parts)
    assert 0 <= record["lists"] <= 1
    legend = drawn[0].axes[0].get_legend().get_texts()
    assert "lists" in [entry.get_text() for entry in legend]


# --- Citing --------------------------------------------------------------------------------------


def test_citation_is_complete():
    """What the format asks for, and the paper; no licence is claimed."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert "2510.25801" in citation["references"][0]["url"]
    assert "license" not in citation and "No licence has been chosen yet" in README


# --- Chaos ---------------------------------------------------------------------------------------

TASTE = """
import random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import chaos
root, rng = Path(sys.argv[2]), random.Random(1)
everything = chaos.commands(chaos.make_pairs(root))
failed = sum(chaos.run_trials(command, 1, root, rng) for command in everything)
failed += chaos.run_trials(everything[0], 1, root, rng, ranks=2)
print("full disk:", chaos.full_disk(everything[0], root / "full") or "whole")
print("failed:", failed)
"""


@pytest.mark.slow
def test_a_taste_of_chaos(tmp_path):
    """One trial of each command, one on two ranks, one full disk; `make chaos` is many.

    In a process of its own, since it forks.
    """
    tests = str(Path(chaos.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", TASTE, tests, str(tmp_path)], cwd=ROOT, text=True,
        capture_output=True,
    )  # fmt: skip
    assert "full disk: whole" in done.stdout, done.stdout + done.stderr
    assert "failed: 0" in done.stdout, done.stdout + done.stderr
