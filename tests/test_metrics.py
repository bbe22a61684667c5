"""Metrics of a step: one division over all ranks, and no value where nothing was measured."""

from dataclasses import replace

import pytest
from accelerate import Accelerator

import grpo
import harness.metrics
from harness.metrics import Means
from harness.run import Run, read_jsonl


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_ranks_are_divided_once(accelerator, monkeypatch):
    """Two ranks, three completions and one: the mean of all four, not the mean of two means."""
    first, second = Means(), Means()
    first.add("length", 6, count=3)
    second.add("length", 10, count=1)
    second.add("only here", 5)

    def gather(value, accelerator):
        other = (second.totals, second.counts, second.numbers)
        return [value, other]

    monkeypatch.setattr(harness.metrics, "gather_objects", gather)
    means = first.over_ranks(accelerator)

    assert means == {"length": 16 / 4, "only here": 5.0}
    assert means["length"] != (6 / 3 + 10 / 1) / 2, "the classic mean of means"


def test_no_value_is_not_zero(accelerator):
    """No completion could be scored: there is no accuracy. An accuracy of 0 stays."""
    means = Means()
    means.add("accuracy", 0.0, count=0)
    means.add("format", 0.0, count=2)
    assert means.over_ranks(accelerator) == {"format": 0.0}


def test_numbers_are_added_up(accelerator):
    """`unscored` is a number of completions, not a mean over groups; 0 is logged as well."""
    means = Means()
    for unscored in (2, 0, 1):
        means.add_number("unscored", unscored)
        means.add_number("none", 0)
    assert means.over_ranks(accelerator) == {"unscored": 3, "none": 0}


def test_no_value_is_a_blank_cell(accelerator, tmp_path, capsys):
    """The judge is down in steps 1 and 3: the column begins at step 2 and is blank at step 3."""
    cfg = replace(grpo.Config(), run_dir=str(tmp_path / "run"))
    run = Run(cfg, "grpo", accelerator, columns=["accuracy", "length"])
    run.log(1, 3, {"length": 4.0, "step_s": 1.0})
    run.log(2, 3, {"length": 5.0, "accuracy": 0.5, "step_s": 1.0})
    run.log(3, 3, {"length": 6.0, "step_s": 1.0})

    table = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert table == [
        ["step", "length", "left"],
        ["1", "4", "0:02"],
        ["step", "accuracy", "length"],
        ["2", "0.5", "5"],
        ["3", "6", "0:00"],
    ]
    assert "accuracy" not in read_jsonl(tmp_path / "run/metrics.jsonl")[2]
