"""Command line, run folder, and resume: what is saved is enough to go on as if nothing had happened."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import fresh_policy
from PIL import Image

import dpo_sft
import grpo
from common import load_model, save_model
from runs import flag, learning_rate, parse_cli, read_jsonl

ROOT = Path(__file__).parent.parent
STAGES = ["grpo.py", "build_prefs.py", "dpo_sft.py", "evaluate.py"]


@dataclass(frozen=True)
class Small:
    lr: float = flag(0.5, "a rate, per step")
    rows: int | None = flag(None, "how many, None for all")
    verify: bool = flag(True, "check it")

    def __post_init__(self):
        if self.lr < 0:
            raise ValueError("--lr must not be negative")


@pytest.mark.parametrize("argv, words", [
    (["--lrr", "1"], ["--lrr", "did you mean --lr?"]), (["--lr", "x"], ["--lr", "'x'"]), (["--rows", "1.5"], ["--rows", "1.5"]),
    (["--lr=-1"], ["--lr must not be negative"]), (["stray"], ["stray"])])
def test_wrong_flags_are_named(argv, words, capsys):
    """Unknown, ill-typed, out of range: the message names the flag, and the nearest one that exists."""
    with pytest.raises(SystemExit):
        parse_cli(Small, "doc", argv)
    error = capsys.readouterr().err
    assert all(w in error for w in words), error


def test_accelerate_launches_a_stage_in_bf16(tmp_path):
    """The README's command, `accelerate launch grpo.py`, with a bf16 copy that samples and fp32 weights that train."""
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu", "--num_processes", "1", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run([*launch, "grpo.py", "--precision", "bf16", "--steps", "2", "--prompts_per_step", "4", "--rows", "8",
                           "--kl_beta", "0.01", "--run_dir", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert len(steps) == 2 and all(0 < s["grad_norm"] < 100 and abs(s["ratio"] - 1) < 0.1 for s in steps)
    policy, _ = load_model(str(tmp_path / "run/model"))
    start, _ = load_model(str(ROOT / "toy/base"))
    moved = [(a - b).abs().max() for a, b in zip(policy.parameters(), start.parameters())]
    assert 0 < max(moved) < 1e-2, "a step of 2e-4 moves fp32 weights by about as much, not by bf16's rounding"


def test_flags_and_files(tmp_path):
    """--no_verify, None, and @file with comments."""
    (tmp_path / "small.args").write_text("--lr 0.25  # per step\n\n# a comment\n--no_verify\n")
    assert parse_cli(Small, "", [f"@{tmp_path / 'small.args'}", "--rows", "3"]) == Small(0.25, 3, False)
    assert parse_cli(Small, "", []) == Small()


@pytest.mark.parametrize("stage", STAGES)
def test_help_says_unit_default_and_source(stage):
    """Every setting of every stage; the help starts with what the stage is."""
    out = subprocess.run([sys.executable, stage, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    module = __import__(stage[:-3])
    for name, field in module.Config.__dataclass_fields__.items():
        assert f"--{name}" in out and field.metadata["help"]
    assert module.__doc__.splitlines()[0] in out and "paper" in out and "(default:" in out


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.args")), ids=lambda p: p.name)
def test_paper_settings_parse(config):
    """The files in configs/ are accepted by the stage that their name says."""
    module = __import__(next(s[:-3] for s in STAGES if config.name.startswith(s[:-3])))
    assert getattr(parse_cli(module.Config, "", [f"@{config}"]), "lr", 1e-6) == 1e-6


def test_learning_rate():
    """Warm-up by step, then flat, or down to a tenth."""
    cfg = grpo.Config(lr=1.0, warmup_steps=4, steps=104)
    assert [learning_rate(s, cfg, 104) for s in (0, 1, 3, 50)] == [0.25, 0.5, 1.0, 1.0]
    cosine = replace(cfg, schedule="cosine")
    assert learning_rate(4, cosine, 104) == 1.0 and learning_rate(104, cosine, 104) == pytest.approx(0.1)


@pytest.fixture
def start(tmp_path):
    policy, codec = fresh_policy()
    save_model(policy, codec, tmp_path / "start")
    return str(tmp_path / "start")


def weights(folder):
    return {n: p for n, p in load_model(str(folder))[0].named_parameters()}


def stripped(folder):
    """metrics.jsonl without what a clock decides."""
    return [{k: v for k, v in json.loads(line).items() if k not in ("step_s", "gen%")}
            for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def grpo_config(start, folder, **more):
    return grpo.Config(**{**dict(model=start, run_dir=str(folder), rows=12, steps=4, prompts_per_step=4, group_size=3,
                                 max_new_tokens=6, updates_per_rollout=2, save_every=1, sample_every=1, lr=1e-3), **more})


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resume_equals_uninterrupted(start, tmp_path, stop):
    """GRPO: stopped after any step and resumed, weights and logs are bit-equal to the unbroken run's (which
    crosses the edge of an epoch: 12 rows, 16 prompts)."""
    grpo.main(grpo_config(start, tmp_path / "whole"))
    grpo.main(grpo_config(start, tmp_path / "cut", steps=stop))
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:  # a step that was logged but not saved
        file.write(json.dumps({"step": stop + 1, "reward": 99}) + "\n")
    grpo.main(grpo_config(start, tmp_path / "cut", resume=True))
    assert stripped(tmp_path / "cut") == stripped(tmp_path / "whole")
    a, b = weights(tmp_path / "cut/model"), weights(tmp_path / "whole/model")
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not all(torch.equal(a[n], p) for n, p in weights(start).items()), "something was trained"


def test_dpo_resume_equals_uninterrupted(start, tmp_path):
    """Stage 2: the reference log-probs of a resumed run are still the start model's."""
    import datasets

    rows = [{"id": str(i), "images": [], "question": "count the circles .", "instruction": "",
             "chosen": [{"role": "assistant", "content": f"that is {i} ."}],
             "rejected": [{"role": "assistant", "content": f"{i} is that"}]} for i in range(9)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")

    def config(folder, **more):
        return dpo_sft.Config(**{**dict(model=start, pairs=str(tmp_path / "pairs.parquet"), run_dir=str(tmp_path / folder),
                                        batch_pairs=4, epochs=2, save_every=1, lr=1e-3), **more})

    dpo_sft.main(config("whole"))
    for name in ("config.json", "metrics.jsonl", "curves.png", "state.pt", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).is_file()
    first = stripped(tmp_path / "whole")[0]
    assert first["dpo"] == pytest.approx(0.6931, abs=1e-4) and abs(first["margin"]) < 1e-5
    dpo_sft.main(config("cut", max_steps=2))
    dpo_sft.main(config("cut", resume=True))
    assert stripped(tmp_path / "cut") == stripped(tmp_path / "whole") and len(stripped(tmp_path / "whole")) == 6
    a, b = weights(tmp_path / "cut/model"), weights(tmp_path / "whole/model")
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_run_folder_is_complete_and_safe(start, tmp_path, capsys):
    """What a run leaves; a folder that is taken is neither mixed up nor emptied unasked."""
    folder = tmp_path / "run"
    grpo.main(grpo_config(start, folder, steps=2))
    out = capsys.readouterr().out
    assert "4 prompts x 3 samples = 12 completions a rollout -> 2 optimizer steps" in out
    for name in ("config.json", "metrics.jsonl", "samples.jsonl", "curves.png", "state.pt", "model/config.json", "step_00002"):
        assert (folder / name).exists(), name
    sample = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    assert len(sample["completions"]) == len(sample["rewards"]) == len(sample["reasons"]) == 3
    assert (folder / sample["pictures"][0]).is_file()
    first = stripped(folder)[0]
    assert 0.5 < first["ratio"] < 1.5 and first["unscored"] == 0 and first["skipped_updates"] == 0
    with pytest.raises(FileExistsError, match="--resume"):
        grpo.main(grpo_config(start, folder, steps=2))
    grpo.main(grpo_config(start, folder, steps=1, overwrite=True))
    assert len(stripped(folder)) == 1 and not (folder / "step_00002").exists()


def test_odd_line_breaks_survive(tmp_path):
    """U+2028 inside a completion ends no record; `splitlines` would cut it in two."""
    text = json.dumps({"response": "a\u2028b\x85c"}, ensure_ascii=False) + "\n"
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8")
    assert read_jsonl(tmp_path / "x.jsonl") == [{"response": "a\u2028b\x85c"}] and len(text.splitlines()) == 3


def test_pictures_given_as_files_are_recorded(start, tmp_path):
    """Rows of a jsonl name picture files, one in CMYK; a broken row is skipped, and a run stopped before its
    first checkpoint starts its log anew."""
    Image.new("CMYK", (84, 84)).save(tmp_path / "a.jpg")
    rows = [{"id": str(i), "question": "count the circles .", "answer": "2" if i else "", "images": ["a.jpg"]} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    cfg = grpo_config(start, tmp_path / "run", data=str(tmp_path / "rows.jsonl"), rows=None, steps=2)
    grpo.main(cfg)
    sample = read_jsonl(tmp_path / "run/samples.jsonl")[0]
    assert (tmp_path / "run" / sample["pictures"][0]).is_file() and read_jsonl(tmp_path / "run/metrics.jsonl")[-1]["skipped_rows"] >= 1
    (tmp_path / "run/state.pt").unlink()
    grpo.main(replace(cfg, resume=True))
    assert [r["step"] for r in read_jsonl(tmp_path / "run/metrics.jsonl")] == [1, 2]


def test_only_a_run_is_ever_emptied(start, tmp_path):
    """--overwrite of a folder that no run made (a home folder, say) is refused, and nothing in it is touched."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    for more in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(FileExistsError, match="--run_dir.*left alone"):
            grpo.main(grpo_config(start, tmp_path / "home", **more))
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"


def test_missing_tracker_is_named(start, tmp_path):
    """A tracker that is not installed would otherwise log nothing, without a word."""
    with pytest.raises(ValueError, match="--log_with nonsense"):
        grpo.main(grpo_config(start, tmp_path / "run", log_with="nonsense"))


def test_state_is_read_without_running_it(start, tmp_path):
    """A checkpoint that holds code is refused: weights_only."""
    grpo.main(grpo_config(start, tmp_path / "run", steps=1))

    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"step": 1, "optimizer": Evil(), "ranks": [{}]}, tmp_path / "run/state.pt")
    with pytest.raises(Exception, match="(?i)weights"):
        grpo.main(grpo_config(start, tmp_path / "run", resume=True))


@pytest.mark.parametrize("damage, words", [
    (lambda f: [p.unlink() for p in f.glob("*.safetensors")], "model"), (lambda f: (f / "config.json").unlink(), "config.json"),
    (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
    (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]), "cannot be loaded")])
def test_half_written_model_folder_is_refused(start, damage, words):
    """Missing or cut files: --model is named, with what is wrong."""
    damage(Path(start))
    with pytest.raises(ValueError, match="--model") as error:
        load_model(start)
    assert words in str(error.value)


def test_a_folder_that_is_not_there_is_no_hub_name():
    """runs/zero/model before stage 1 has run: what is missing is a file, not a login at the hub."""
    with pytest.raises(ValueError, match="--zero runs/no/model: not a model folder, config.json is missing"):
        load_model("runs/no/model", flag="--zero")


def test_missing_weights_are_refused(start):
    """from_pretrained would fill them in with random ones and only warn."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(f"{start}/model.safetensors")
    del tensors[next(n for n in tensors if "q_proj.weight" in n)]
    save_file(tensors, f"{start}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="incomplete.*q_proj"):
        load_model(start)


def test_dynamic_sampling_gives_up_with_a_message(start, tmp_path):
    """A model that is never right: after --max_draws rollouts it says why it stops."""
    with pytest.raises(ValueError, match="--dynamic_sampling: 2 draws"):
        grpo.main(grpo_config(start, tmp_path / "run", dynamic_sampling=True, max_draws=2, group_size=2, max_new_tokens=1))
