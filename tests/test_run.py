"""Run folder and resume: what is saved is enough to go on as if nothing had happened."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from PIL import Image

import dpo_sft
import grpo
from common import plain_token_logps
from conftest import small_grpo
from harness.lock import is_used
from harness.ranks import make_accelerator
from harness.run import Run, append_jsonl, checkpoints, read_jsonl
from model.loading import load_model
from model.records import Group

ROOT = Path(__file__).parent.parent


def weights(folder) -> dict:
    policy, _ = load_model(str(folder))
    return dict(policy.named_parameters())


def same_weights(folder, other) -> bool:
    """To the last bit."""
    a, b = weights(folder), weights(other)
    return all(torch.equal(a[name], b[name]) for name in a)


def stripped(folder) -> list[dict]:
    """metrics.jsonl without what a clock decides."""
    steps = read_jsonl(Path(folder) / "metrics.jsonl")
    return [{k: v for k, v in step.items() if k not in ("step_s", "gen%")} for step in steps]


def grpo_config(start, folder, **more) -> grpo.Config:
    """`small_grpo`, with two updates a rollout and a sample at every step."""
    return small_grpo(start, folder, **{"updates_per_rollout": 2, "sample_every": 1, **more})


# --- Resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resume_equals_uninterrupted(start, tmp_path, stop):
    """GRPO, stopped after any step and resumed: bit-equal to an unbroken run, weights and logs.

    The run crosses the edge of an epoch: 12 examples, 16 prompts.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    grpo.main(grpo_config(start, whole))
    grpo.main(grpo_config(start, cut, steps=stop))

    with open(cut / "metrics.jsonl", "a") as file:  # a step that was logged but not saved
        file.write(json.dumps({"step": stop + 1, "reward": 99}) + "\n")
    grpo.main(grpo_config(start, cut, resume=True))

    assert stripped(cut) == stripped(whole)
    assert same_weights(cut / "model", whole / "model")
    assert not same_weights(cut / "model", start), "something was trained"


def write_pairs(file, count: int) -> str:
    """A table of so many pairs without images."""
    pairs = []
    for i in range(count):
        pairs.append(
            {
                "id": str(i),
                "images": [],
                "question": "count the circles .",
                "instruction": "",
                "chosen": [{"role": "assistant", "content": f"that is {i} ."}],
                "rejected": [{"role": "assistant", "content": f"{i} is that"}],
            }
        )
    datasets.Dataset.from_list(pairs).to_parquet(file)
    return str(file)


def test_dpo_resume_equals_uninterrupted(start, tmp_path):
    """Stage 2: the reference log-probs of a resumed run are still the start model's."""
    small = dpo_sft.Config(
        model=start,
        pairs=write_pairs(tmp_path / "pairs.parquet", 9),
        batch_pairs=4,
        epochs=2,
        save_every=1,
        lr=1e-3,
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    dpo_sft.main(replace(small, run_dir=str(whole)))
    for name in ("config.json", "metrics.jsonl", "curves.png", "state.pt"):
        assert (whole / name).is_file()
    assert (whole / "model/model.safetensors").is_file()

    first = stripped(whole)[0]
    assert first["dpo"] == pytest.approx(0.6931, abs=1e-4)
    assert abs(first["margin"]) < 1e-5

    dpo_sft.main(replace(small, run_dir=str(cut), max_steps=2))
    dpo_sft.main(replace(small, run_dir=str(cut), resume=True))
    assert stripped(cut) == stripped(whole)
    assert len(stripped(whole)) == 6
    assert same_weights(cut / "model", whole / "model")


def test_state_is_read_without_running_it(start, tmp_path):
    """A checkpoint that holds code is refused: weights_only."""
    grpo.main(grpo_config(start, tmp_path / "run", steps=1))

    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"step": 1, "optimizer": Evil(), "ranks": [{}]}, tmp_path / "run/state.pt")
    with pytest.raises(Exception, match="(?i)weights"):
        grpo.main(grpo_config(start, tmp_path / "run", resume=True))


@pytest.mark.parametrize("killed_in", ["append_jsonl", "os.replace"])
def test_a_kill_while_the_log_is_cut_loses_nothing(tmp_path, monkeypatch, killed_in):
    """--resume drops the lines of later steps; killed in the middle of it, it leaves the log."""
    cfg = grpo.Config(run_dir=str(tmp_path / "run"))
    run = Run(cfg, "grpo", make_accelerator(cfg))
    log = tmp_path / "run/metrics.jsonl"
    append_jsonl(log, [{"step": step} for step in (1, 2, 3)])

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"harness.run.{killed_in}", kill)
        with pytest.raises(KeyboardInterrupt):
            run.forget_after(2)
    assert [record["step"] for record in read_jsonl(log)] == [1, 2, 3]

    run.forget_after(2)
    assert [record["step"] for record in read_jsonl(log)] == [1, 2]


# --- The folder ----------------------------------------------------------------------------------


def test_run_folder_is_complete_and_safe(start, tmp_path, capsys):
    """What a run leaves; a folder that is in use is neither mixed up nor emptied unasked."""
    folder = tmp_path / "run"
    grpo.main(grpo_config(start, folder, steps=2))

    out = capsys.readouterr().out
    assert "a rollout: 4 prompts x 3 completions -> 2 updates" in out
    for name in ("config.json", "metrics.jsonl", "samples.jsonl", "curves.png", "state.pt"):
        assert (folder / name).is_file(), name
    assert (folder / "model/config.json").is_file()
    assert (folder / "step_00002").is_dir()

    sample = read_jsonl(folder / "samples.jsonl")[0]
    assert len(sample["completions"]) == len(sample["rewards"]) == len(sample["reasons"]) == 3
    assert (folder / sample["images"][0]).is_file()

    first = stripped(folder)[0]
    assert 0.5 < first["ratio"] < 1.5
    assert first["unscored"] == 0
    assert first["skipped_updates"] == 0

    with pytest.raises(FileExistsError, match="--resume"):
        grpo.main(grpo_config(start, folder, steps=2))

    grpo.main(grpo_config(start, folder, steps=1, overwrite=True))
    assert len(stripped(folder)) == 1
    assert not (folder / "step_00002").exists()


def test_a_sample_tells_what_the_update_did(tmp_path):
    """Each token of the recorded group, scored before and after the update of its rollout.

    The oracle scores the recorded tokens with the start model and with the checkpoint of step 1,
    one completion at a time through HF's forward. Taken the other way round, both would be wrong.
    """
    base, folder = str(ROOT / "toy/base"), tmp_path / "run"  # random weights would earn nothing
    grpo.main(grpo_config(base, folder, steps=1, prompts_per_step=8, max_new_tokens=32))
    sample = read_jsonl(folder / "samples.jsonl")[0]
    example = {**sample, "images": [str(folder / name) for name in sample["images"]]}

    for model, name in ((base, "logp_sampler"), (folder / "step_00001", "logp")):
        policy, encoder = load_model(str(model))
        completions = []
        for tokens in sample["tokens"]:
            completions.append(torch.tensor(encoder.tokenizer.convert_tokens_to_ids(tokens)))
        group = Group(encoder.encode(example), completions)
        with torch.no_grad():
            expected = plain_token_logps(policy, [group])  # (G, T)

        for line, recorded in zip(expected, sample[name]):
            assert recorded == pytest.approx(line[: len(recorded)].tolist(), abs=2e-4)
        assert [len(line) for line in sample[name]] == [len(c) for c in completions]

    assert sample["logp"] != sample["logp_sampler"]
    assert sample["question"] in sample["prompt"] and sample["kind"] == "subtract"


@pytest.mark.parametrize("stage", ["grpo", "dpo"])
def test_checkpoints_are_those_that_save_every_says(start, tmp_path, stage):
    """Five steps and one checkpoint every two: 2, 4 and the last, to which state.pt belongs."""
    folder = tmp_path / "run"
    if stage == "grpo":
        grpo.main(grpo_config(start, folder, steps=5, save_every=2))
    else:
        pairs = write_pairs(tmp_path / "pairs.parquet", 5)
        cfg = dpo_sft.Config(model=start, pairs=pairs, batch_pairs=1, epochs=1, save_every=2)
        dpo_sft.main(replace(cfg, run_dir=str(folder)))

    assert len(stripped(folder)) == 5
    expected = [(0, Path(start))]
    for step in (2, 4, 5):
        expected.append((step, folder / f"step_{step:05d}"))
    assert checkpoints(folder, "--gf_runs") == expected
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == 5


def test_keep_last_keeps_the_newest(start, tmp_path):
    """With --keep_last 2 the older folders go, each only after a newer one is whole."""
    folder = tmp_path / "run"
    grpo.main(grpo_config(start, folder, steps=4, save_every=1, keep_last=2))
    assert [path.name for path in sorted(folder.glob("step_*"))] == ["step_00003", "step_00004"]
    grpo.main(grpo_config(start, folder, steps=5, save_every=1, keep_last=2, resume=True))
    assert [path.name for path in sorted(folder.glob("step_*"))] == ["step_00004", "step_00005"]


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_whole(start, tmp_path, monkeypatch):
    """The disk is looked at first: a sentence with both sizes, and nothing of the new one."""
    folder = tmp_path / "run"
    grpo.main(grpo_config(start, folder, steps=1, save_every=1))
    before = (folder / "state.pt").read_bytes()

    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2e6))
    with pytest.raises(ValueError, match=r"needs 0.0 GB, the disk has 0.0 GB left.*--keep_last"):
        grpo.main(grpo_config(start, folder, steps=2, save_every=1, resume=True))
    assert (folder / "state.pt").read_bytes() == before
    assert [path.name for path in folder.glob("step_*")] == ["step_00001"]

    monkeypatch.undo()
    grpo.main(grpo_config(start, folder, steps=2, save_every=1, resume=True))
    assert (folder / "step_00002").is_dir()


def test_odd_line_breaks_survive(tmp_path):
    """U+2028 inside a response ends no record; `splitlines` would cut it in two."""
    record = {"response": "a\u2028b\x85c"}
    text = json.dumps(record, ensure_ascii=False) + "\n"
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8")

    assert read_jsonl(tmp_path / "x.jsonl") == [record]
    assert len(text.splitlines()) == 3


def test_images_given_as_files_are_recorded(start, tmp_path, capsys):
    """Examples of a jsonl file name image files, one in CMYK; a broken example is skipped.

    A run that stopped before its first checkpoint starts its log anew.
    """
    Image.new("CMYK", (84, 84)).save(tmp_path / "a.jpg")
    lines = []
    for i in range(6):
        answer = "2" if i else ""  # the first has none
        example = {"question": "count the circles .", "answer": answer, "images": ["a.jpg"]}
        lines.append(json.dumps({"id": str(i), **example}) + "\n")
    data = tmp_path / "examples.jsonl"
    data.write_text("".join(lines))

    folder = tmp_path / "run"
    cfg = grpo_config(
        start, folder, data=str(data), instruction="", max_examples=None, steps=2
    )
    grpo.main(cfg)
    sample = read_jsonl(folder / "samples.jsonl")[0]
    assert (folder / sample["images"][0]).is_file()
    assert read_jsonl(folder / "metrics.jsonl")[-1]["skipped_examples"] >= 1

    (folder / "state.pt").unlink()
    grpo.main(replace(cfg, resume=True))
    assert "no checkpoint in" in capsys.readouterr().out
    assert [record["step"] for record in read_jsonl(folder / "metrics.jsonl")] == [1, 2]


def test_only_a_run_is_ever_emptied(start, tmp_path):
    """--overwrite of a folder that no run made (a home folder, say) is refused.

    Nothing in it is touched.
    """
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years")

    for more in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(FileExistsError, match="--run_dir.*left alone"):
            grpo.main(grpo_config(start, home, **more))

    assert (home / "thesis.txt").read_text() == "years"


def test_the_run_of_another_stage_is_never_emptied(start, tmp_path):
    """A mistyped --run_dir would have cost the trained model."""
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"stage": "dpo_sft"}))
    (folder / "state.pt").write_text("weeks")
    with pytest.raises(FileExistsError, match="holds a run .of dpo_sft, not of grpo., which"):
        grpo.main(grpo_config(start, folder, overwrite=True))
    assert (folder / "state.pt").read_text() == "weeks"


def test_missing_tracker_is_named(start, tmp_path):
    """A tracker that is not installed would otherwise log nothing, without a word."""
    with pytest.raises(ValueError, match="--log_with nonsense"):
        grpo.main(grpo_config(start, tmp_path / "run", log_with="nonsense"))


def test_a_run_that_trains_nothing_has_no_checkpoints(tmp_path):
    """The folder of evaluate.py or build_prefs.py is a run too; it is refused by name."""
    (tmp_path / "config.json").write_text(json.dumps({"models": "base=toy/base"}))
    with pytest.raises(ValueError, match="--gf_runs .*: that stage trains no model"):
        checkpoints(tmp_path, "--gf_runs")


def test_a_refused_start_does_not_block_its_folder(start, tmp_path):
    """The same command again, mended, needs no --overwrite: there is nothing but settings."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert not is_used(folder)
    (folder / "metrics.jsonl").write_text("")
    assert is_used(folder)


def test_other_code_is_said_at_resume(start, tmp_path, monkeypatch, capsys):
    """A variant that is resumed by its stage would go on with another loss without a word."""
    folder = tmp_path / "run"
    grpo.main(grpo_config(start, folder, steps=1))
    capsys.readouterr()
    for module in ("harness.run", "harness.resume"):
        monkeypatch.setattr(f"{module}.code_of_stage", lambda: "another file")
    for _ in range(2):  # each time: the code that began the run stays another one
        grpo.main(grpo_config(start, folder, steps=1, resume=True))
        assert "--resume with other code" in capsys.readouterr().out
