"""At the keyboard: --resume takes the run's own settings, Ctrl-C saves, a folder has one writer."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import build_prefs
import dpo_sft
import evaluate
import grpo
from conftest import small_grpo
from harness import ranks, stopping
from harness.cli import parse_cli, run_stage
from harness.lock import free_lock, is_used, take_lock
from harness.ranks import check_world_size, choose_precision
from harness.run import read_jsonl
from sources import responders
from sources.tables import open_table

ROOT = Path(__file__).parent.parent


def settings(folder) -> dict:
    return json.loads((Path(folder) / "config.json").read_text())


@pytest.fixture
def run(start, tmp_path):
    """The folder of a GRPO run of two steps."""
    grpo.main(small_grpo(start, tmp_path / "run", steps=2, max_new_tokens=2))
    return str(tmp_path / "run")


def resume(folder, *more, stage=grpo):
    """The settings of `STAGE --resume`."""
    return parse_cli(stage.Config, "", ["--run_dir", folder, "--resume", *more])


# --- Settings ------------------------------------------------------------------------------------


def test_resume_takes_the_runs_own_settings(run, capsys):
    """Nothing is given again; steps and how often it saves may change, and config.json tells it.

    With the flags of the command line alone, it would go on with a group size of 8.
    """
    config = resume(run)
    assert (config.group_size, config.max_new_tokens, config.steps) == (3, 2, 2)
    assert grpo.Config().group_size == 8

    grpo.main(resume(run, "--steps", "3", "--save_every", "2"))
    assert len(read_jsonl(Path(run) / "metrics.jsonl")) == 3
    assert "--resume with --steps 3, it was 2" in capsys.readouterr().out
    stored = settings(run)
    assert (stored["steps"], stored["group_size"], stored["stage"]) == (3, 3, "grpo")
    assert stored["history"][0]["changed"] == {"steps": [2, 3], "save_every": [1, 2]}
    assert stored["history"][0]["after_step"] == 2

    grpo.main(resume(run, "--steps", "4"))
    assert [entry["after_step"] for entry in settings(run)["history"]] == [2, 3]
    before = settings(run)
    with pytest.raises(ValueError, match="--steps 1: .* has done 4 already"):
        grpo.main(resume(run, "--steps", "1"))
    assert settings(run) == before, "a refused command leaves the record as it was"


def test_resume_refuses_what_changes_the_maths(run, start):
    """Each such flag is named, with its value then and now; the folder stays as it was."""
    before = settings(run)
    with pytest.raises(ValueError, match=r"--lr 0.5 \(it runs with 0.001\), --group_size 4"):
        grpo.main(resume(run, "--group_size", "4", "--lr", "0.5"))
    with pytest.raises(ValueError, match="--lr 0.5"):
        grpo.main(small_grpo(start, run, resume=True, lr=0.5, max_new_tokens=2))
    assert settings(run) == before


def test_resume_without_a_run_is_a_sentence(run, tmp_path, capsys):
    """No folder given, no run in it, another stage's run, --overwrite as well."""
    for argv, words in [
        (["--resume"], "--resume needs --run_dir"),
        (["--resume", "--run_dir", str(tmp_path / "none")], "no run in"),
        (["--resume", "--overwrite", "--run_dir", run], "give one of them"),
    ]:
        with pytest.raises(SystemExit):
            parse_cli(grpo.Config, "", argv)
        error = capsys.readouterr().err
        assert error.startswith("error: --resume") and words in error

    with pytest.raises(ValueError, match="that is a run of grpo, not of dpo_sft"):
        dpo_sft.main(resume(run, stage=dpo_sft))
    with pytest.raises(ValueError, match="that is the folder of a run of grpo, and no data set"):
        open_table(run, "train", "--pairs")


# --- Signals -------------------------------------------------------------------------------------


def test_ctrl_c_ends_after_the_step_and_resumes(start, tmp_path, monkeypatch, capsys):
    """The step that it came in is saved, the command that goes on is printed, and it goes on."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    grpo.main(small_grpo(start, whole, save_every=100))
    handler = signal.getsignal(signal.SIGINT)

    prepare_mini_batches = grpo.prepare_mini_batches

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return prepare_mini_batches(*args)

    monkeypatch.setattr(grpo, "prepare_mini_batches", interrupted)
    with pytest.raises(SystemExit) as stop:
        run_stage(grpo.main, small_grpo(start, cut, save_every=100))
    assert stop.value.code == 128 + signal.SIGINT
    out = capsys.readouterr().out
    assert f"--run_dir {cut} --resume" in out
    assert len(read_jsonl(cut / "metrics.jsonl")) == 1
    assert (cut / "step_00001").is_dir()
    assert signal.getsignal(signal.SIGINT) is handler, "as it was before"

    monkeypatch.setattr(grpo, "prepare_mini_batches", prepare_mini_batches)
    grpo.main(resume(str(cut)))
    assert stripped(cut) == stripped(whole)


def stripped(folder) -> list[dict]:
    """metrics.jsonl without what a clock decides."""
    steps = read_jsonl(folder / "metrics.jsonl")
    return [{k: v for k, v in step.items() if k not in ("step_s", "gen%")} for step in steps]


WAITING = """
import sys, time
sys.path.insert(0, sys.argv[1])
from harness.stopping import listening
with listening():
    print("ready", flush=True)
    for _ in range(200):
        time.sleep(0.1)
"""


def test_second_ctrl_c_stops_at_once():
    """The first one is noted, and the process goes on; the second one ends it."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(ROOT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=5)
    assert process.returncode == -signal.SIGINT
    assert "this step is finished and saved first" in error


def test_notes_are_of_one_run_only():
    """What one run was asked does not stop the next."""
    with stopping.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.asked() == signal.SIGTERM
    with stopping.listening():
        assert stopping.asked() is None


# --- One writer ----------------------------------------------------------------------------------

HOLDING = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from harness.lock import take_lock
take_lock(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_refused_start_leaves_no_used_folder(tmp_path):
    """A wrong path was refused, and the folder as well, at the next try with the right one."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "config.json").write_text("{}")
    assert not is_used(tmp_path)
    (tmp_path / "parts/rank0.jsonl").write_text("")
    assert is_used(tmp_path)


def test_a_second_run_is_kept_out(run, start):
    """Neither --resume nor --overwrite comes into a folder where another process writes.

    Once that process is killed, its lock is gone with it (test_a_killed_run_leaves_no_lock).
    """
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(ROOT), run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "ready\n"
    for config in (resume(run), small_grpo(start, run, overwrite=True)):
        with pytest.raises(ValueError, match=f"another run is writing there .process {other.pid}"):
            grpo.main(config)
    assert len(read_jsonl(Path(run) / "metrics.jsonl")) == 2

    other.kill()
    other.communicate()
    grpo.main(resume(run, "--steps", "3"))
    assert len(read_jsonl(Path(run) / "metrics.jsonl")) == 3


def test_a_killed_run_leaves_no_lock(tmp_path):
    """The lock is the system's, not a file: what is left of it in the folder keeps nobody out."""
    (tmp_path / ".lock").write_text("12345\n")
    take_lock(tmp_path)
    free_lock(tmp_path)


def test_ranks_that_do_not_know_each_other_are_refused(monkeypatch):
    """Two processes, each of which takes itself for the only one, would write into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but this process is connected to 0"):
        check_world_size(1)
    check_world_size(2)


# --- What is finished is kept --------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def kill_in_call(monkeypatch, module, count: int) -> None:
    """The count-th batch that a stage samples is never finished."""
    sample_groups = module.sample_groups
    calls = []

    def sample(*args, **more):
        calls.append(1)
        if len(calls) == count:
            raise Killed
        return sample_groups(*args, **more)

    monkeypatch.setattr(module, "sample_groups", sample)


def tear(folder) -> None:
    """Leave half a line at the end, as a kill in the middle of a write does."""
    with open(folder / "parts/rank0.jsonl", "a") as file:
        file.write('{"part": "half a li')


def test_sampling_resumes_where_it_was_killed(tmp_path, monkeypatch):
    """build_prefs.py and evaluate.py: what is finished is not sampled again, and all is equal."""
    base = str(ROOT / "toy/base")
    prefs = build_prefs.Config(zero=base, max_examples=24, sample_batch=32, max_new_tokens=40)
    report = evaluate.Config(
        models=f"a={base},b={base}", items=6, pass_items=2, pass_samples=4, max_new_tokens=4
    )
    for stage, sampler, config, kill_at, name in [
        (build_prefs, responders, prefs, 5, "funnel.json"),
        (evaluate, evaluate, report, 16, "completions.jsonl"),
    ]:
        whole, cut = tmp_path / f"{name} whole", tmp_path / f"{name} cut"
        stage.main(replace(config, run_dir=str(whole)))
        with monkeypatch.context() as patch:
            kill_in_call(patch, sampler, kill_at)
            with pytest.raises(Killed):
                stage.main(replace(config, run_dir=str(cut)))
            tear(cut)
            finished = len(read_jsonl(cut / "parts/rank0.jsonl"))
            assert finished == kill_at - 1

        sampled = []
        sample_groups = sampler.sample_groups
        with monkeypatch.context() as patch:
            patch.setattr(
                sampler, "sample_groups",
                lambda *a, **k: sampled.append(1) or sample_groups(*a, **k),
            )  # fmt: skip
            stage.main(resume(str(cut), stage=stage))
        parts = read_jsonl(whole / "parts/rank0.jsonl")
        assert len(sampled) == len(parts) - finished > 0
        assert read_jsonl(cut / "parts/rank0.jsonl") == parts
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_a_line_that_is_cut_off_is_dropped(tmp_path):
    """Only the last one, and only if it is no JSON: a file without a last line break is whole."""
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2}')
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n{"a": ')
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]
    assert read_jsonl(tmp_path / "b.jsonl") == [{"a": 1}]

    (tmp_path / "c.jsonl").write_text('{"a": \n{"a": 1}\n')
    with pytest.raises(ValueError, match="c.jsonl, line 1: not JSON"):
        read_jsonl(tmp_path / "c.jsonl")


# --- Machines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cuda, bf16, asked, chosen",
    [
        (True, True, "auto", "bf16"),
        (True, False, "auto", "no"),
        (False, False, "auto", "no"),
        (False, False, "bf16", "bf16"),
        (True, True, "no", "no"),
    ],
)
def test_precision_is_what_the_machine_has(monkeypatch, cuda, bf16, asked, chosen):
    """An old card trains in fp32 and says so, or refuses bf16 by name."""
    monkeypatch.setattr(ranks.torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(ranks.torch.cuda, "is_bf16_supported", lambda **more: bf16)

    precision, why = choose_precision(asked)
    assert precision == chosen
    assert ("no bf16" in why) == (cuda and not bf16)
    if cuda and not bf16:
        with pytest.raises(ValueError, match="--precision bf16: this GPU has no bf16"):
            choose_precision("bf16")
