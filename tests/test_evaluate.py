"""Metrics by hand, and a score that can be computed again from the file."""

import itertools
import math

import pytest
import torch
from conftest import fresh_policy

from common import save_model
from evaluate import (Config, evaluation_sets, format_table, generalization_factor, guessing_rate, is_in_format, main,
                      nucleus_size, pass_at_k, read_records, summarise, wilson, with_wrong_pictures)
from toy import world


def test_pass_at_k_unbiased():
    """Against counting all k-subsets; the plug-in estimate 1 - (1 - c/n)^k is too low."""
    for n, c, k in [(5, 2, 3), (6, 0, 2), (6, 6, 4), (8, 1, 8), (4, 3, 2)]:
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))
    assert 1 - (1 - 2 / 5) ** 3 < pass_at_k(5, 2, 3)


def test_generalization_factor():
    """F2 of the gains: the paper's plotted step (98 and 94.6) gives 95.2; 0 where a gain is not positive."""
    assert generalization_factor(0.98, 0.946) == pytest.approx(0.952, abs=1e-3)
    assert generalization_factor(0.5, 0.5) == pytest.approx(0.5)
    assert generalization_factor(-0.1, 0.5) == generalization_factor(0.5, 0.0) == 0.0
    assert generalization_factor(0.9, 0.2) < generalization_factor(0.2, 0.9), "beta 2 cares for OOD"


def test_nucleus_size():
    """By hand: 0.6 + 0.3 + 0.08 passes 0.95 at the third; a sure token is 1; 100 equal ones take 95."""
    assert nucleus_size(torch.tensor([[0.6, 0.3, 0.08, 0.02]]).log()).tolist() == [3]
    assert nucleus_size(torch.tensor([[0.0, 50.0, 0.0]])).tolist() == [1]
    assert nucleus_size(torch.zeros(1, 100)).item() in (95, 96)


def test_wilson_covers():
    """Of many draws at p = 0.3 about 95 % of the intervals hold p; never outside [0, 1]."""
    draws = torch.distributions.Binomial(100, torch.tensor(0.3))
    torch.manual_seed(0)
    inside = [low <= 0.3 <= high for low, high in (wilson(draws.sample().item(), 100) for _ in range(2000))]
    assert 0.93 < sum(inside) / 2000 < 0.97
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0 and wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("form", [world.THINK, world.TAGS[0], world.BRACKETS, world.LAST_LINE])
def test_formats_are_told_apart(form):
    """Each format accepts its own template, and neither the plain one nor one with a mark missing."""
    row = {"instruction": form.instruction, "format": form.name}
    good = form.template.format(reasoning="that is 2 .", answer="2")
    assert is_in_format(row, good) and is_in_format(row, good.replace(" ", "\n"))
    assert not is_in_format(row, world.PLAIN.template.format(reasoning="that is 2 .", answer="2"))
    assert not is_in_format(row, form.template.format(reasoning="", answer="2").replace("  ", " "))
    for mark in [w for w in form.template.split() if not w.startswith("{")]:
        assert not is_in_format(row, good.replace(mark, "", 1)), mark
    others = [f for f in (world.THINK, world.BRACKETS, world.LAST_LINE) if f != form]
    assert not any(is_in_format({"instruction": f.instruction, "format": f.name}, good) for f in others)


def test_wrong_pictures_are_wrong_and_nothing_else_changes():
    rows = world.rows(30, 0, held_out=True)
    shuffled = with_wrong_pictures(rows)
    assert all(a["question"] == b["question"] and a["answer"] == b["answer"] for a, b in zip(rows, shuffled))
    assert all(a["images"][0] is not b["images"][0] for a, b in zip(rows, shuffled))


def test_guessing_rate_is_the_best_constant_a_kind():
    records = [{"kind": "a", "gold": g} for g in "1123"] + [{"kind": "b", "gold": g} for g in "55"]
    assert guessing_rate(records) == pytest.approx(4 / 6)


def test_unscorable_is_left_out_and_counted():
    base = {"model": "m", "set": "id", "mode": "sampled", "id": "0", "kind": "", "gold": "1", "in_format": True,
            "tokens": 3, "truncated": False, "nucleus_sum": 4}
    report = summarise([{**base, "score": 1.0}, {**base, "score": None}, {**base, "score": 0.0}])
    assert report["id sampled"]["accuracy"]["mean"] == 0.5 and report["id sampled"]["accuracy"]["unscored"] == 1
    assert report["branching"] == pytest.approx(4 / 3)


def test_sets_are_held_out_and_differ_in_one_thing():
    sets = evaluation_sets(Config(items=12), 12)
    assert set(sets) == {"id", "tags", "brackets", "last_line", "wording", "task"}
    assert {r["kind"] for r in sets["task"]} == {"subtract2"} and {r["format"] for r in sets["brackets"]} == {"brackets"}
    trained = {w for kind in world.KINDS for w in world.WORDINGS[kind][:-1]}
    words = {r["question"].split()[0] for r in sets["wording"]}
    assert words.isdisjoint({w.split()[0] for w in trained} - {"how"}) or words <= {"what", "without"}


def test_score_can_be_computed_again_from_the_file(tmp_path, capsys):
    """The whole script on a random model: table, JSON, picture; --rescore prints the same table."""
    policy, codec = fresh_policy()
    save_model(policy, codec, tmp_path / "m")
    out = tmp_path / "report"
    main(Config(models=f"a={tmp_path / 'm'}", items=6, pass_items=3, pass_samples=4, max_new_tokens=8, run_dir=str(out)))
    first = capsys.readouterr().out
    assert (out / "report.png").stat().st_size > 10_000 and (out / "report.json").is_file()
    records = read_records(out / "completions.jsonl")["a"]
    assert len(records) == 6 * 8 + 3 * 4
    assert {"response", "extracted", "gold", "score", "reason", "truncated", "question"} <= set(records[0])
    main(Config(rescore=str(out / "completions.jsonl")))
    again = capsys.readouterr().out
    assert again.strip() in first and "a " in again
    assert format_table({"a": summarise(records)}) in first
    assert not math.isnan(summarise(records)["guessing"])
