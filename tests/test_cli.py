"""The command line: wrong flags are named, help is complete, and the paper's settings parse."""

import functools
import importlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import settings
from harness.cli import flag, nearest_flag, parse_cli, run_stage
from harness.run import read_jsonl
from model.loading import load_model

ROOT = Path(__file__).parent.parent
STAGES = ["grpo.py", "build_prefs.py", "dpo_sft.py", "evaluate.py"]


def stage_module(stage: str):
    """`grpo.py` -> the module."""
    return importlib.import_module(stage.removesuffix(".py"))


@functools.cache
def help_of(stage: str) -> str:
    """What `python STAGE --help` prints."""
    command = [sys.executable, stage, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Small:
    lr: float = flag(0.5, "learning rate, per step")
    max_examples: int | None = flag(None, "how many, None for all", alias="rows")
    verify: bool = flag(True, "check it")
    instruction: str = flag("", "words")

    def __post_init__(self):
        if self.lr < 0:
            raise ValueError("--lr must not be negative")


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--lrr", "1"], ["--lrr", "did you mean --lr?"]),
        (["--learning_rate", "1"], ["--learning_rate", "did you mean --lr?"]),
        (["--lr", "x"], ["--lr", "'x'"]),
        (["--max_examples", "1.5"], ["--max_examples", "1.5"]),
        (["--rows", "1.5"], ["--rows", "1.5"]),
        (["--lr=-1"], ["--lr must not be negative"]),
        (["stray"], ["stray"]),
    ],
)
def test_wrong_flags_are_named(argv, words, capsys):
    """Unknown, ill-typed, out of range: the message names the flag, and the nearest that exists.

    It comes first, and one line of usage behind it: a list of all flags would push it away.
    """
    with pytest.raises(SystemExit):
        parse_cli(Small, "doc", argv)
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    first, second = error.splitlines()
    assert first.startswith("error: ") and second.startswith("usage: ")


@pytest.mark.parametrize(
    "stage, name",
    [
        ("grpo", "steps"),
        ("grpo", "updates_per_rollout"),
        ("grpo", "sample_every"),
        ("grpo", "save_every"),
        ("dpo_sft", "batch_pairs"),
        ("build_prefs", "samples"),
        ("evaluate", "pass_samples"),
    ],
)
def test_a_count_of_nothing_is_named(stage, name):
    """Some of them had divided by zero, after the first step."""
    with pytest.raises(ValueError, match=f"--{name} 0: must be at least 1"):
        importlib.import_module(stage).Config(**{name: 0})


@pytest.mark.parametrize(
    "stage, name, value",
    [
        ("dpo_sft", "beta", -1.0),  # the margin grew, by unlearning
        ("dpo_sft", "beta", 0.0),
        ("dpo_sft", "sft_weight", -1.0),
        ("grpo", "kl_beta", -1.0),
        ("grpo", "lr", float("nan")),
        ("evaluate", "items", 0),
    ],
)
def test_weights_that_would_train_backwards_are_named(stage, name, value):
    with pytest.raises(ValueError, match=f"--{name}"):
        importlib.import_module(stage).Config(**{name: value})


@pytest.mark.parametrize(
    "stage, name, wanted",
    [
        ("grpo.py", "learning_rate", "lr"),  # as the help calls it
        ("grpo.py", "num_generations", "group_size"),  # as TRL calls it
        ("grpo.py", "max-new-tokens", "max_new_tokens"),
        ("grpo.py", "instructions", "instruction"),
        ("dpo_sft.py", "steps", "max_steps"),  # as another stage calls it
        ("build_prefs.py", "items", "max_examples"),
        ("dpo_sft.py", "num_train_epochs", "epochs"),
        ("dpo_sft.py", "group_size", None),  # not of this stage, and like none
    ],
)
def test_the_nearest_flag_is_found(stage, name, wanted):
    assert nearest_flag(name.replace("-", "_"), stage_module(stage).Config) == wanted


HEAVY = ["transformers.modeling_utils", "torch._dynamo", "sympy", "matplotlib.pyplot"]


@pytest.mark.parametrize("stage", STAGES)
def test_help_loads_no_model(stage):
    """What takes seconds to import is imported when a model is loaded, not to print --help."""
    module = stage.removesuffix(".py")
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_flags_and_files(tmp_path):
    """--no_verify, None, an alias, and @file with comments."""
    file = tmp_path / "small.args"
    file.write_text("--lr 0.25  # per step\n\n# a comment\n--no_verify\n")

    assert parse_cli(Small, "", [f"@{file}", "--max_examples", "3"]) == Small(0.25, 3, False)
    assert parse_cli(Small, "", [f"@{file}", "--rows", "3"]) == Small(0.25, 3, False)
    assert parse_cli(Small, "", []) == Small()


def test_files_are_split_as_a_shell_does(tmp_path, capsys):
    """A quoted value keeps its blanks and its `#`; a quote that is not closed names its line."""
    file = tmp_path / "small.args"
    file.write_text("--instruction 'think, then answer # in words'  # LLaMA's\n--lr 2\n")

    config = parse_cli(Small, "", [f"@{file}"])
    assert config == Small(lr=2.0, instruction="think, then answer # in words")

    file.write_text("--instruction don't\n")
    with pytest.raises(SystemExit):
        parse_cli(Small, "", [f"@{file}"])
    assert "in the line: --instruction don't" in capsys.readouterr().err


def test_errors_are_one_line_unless_the_traceback_is_asked_for(monkeypatch):
    """The line says how to see the traceback, which a bug in the code needs."""

    def broken_stage(config):
        raise ValueError("--data nowhere: cannot be opened")

    monkeypatch.delenv("SPECS_TRACEBACK", raising=False)
    with pytest.raises(SystemExit, match="error: --data nowhere.*\\n.*SPECS_TRACEBACK=1"):
        run_stage(broken_stage, settings.RunFolder())

    monkeypatch.setenv("SPECS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="--data nowhere"):
        run_stage(broken_stage, settings.RunFolder())


@pytest.mark.parametrize("stage", STAGES)
def test_no_flags_give_the_defaults(stage):
    """Every flag off the command line has the default of its field, and every switch both ways.

    Registered twice, as `--x` and `--no_x`, a switch takes the default of whichever comes first.
    """
    config = stage_module(stage).Config
    assert parse_cli(config, "", []) == config()
    assert parse_cli(config, "", ["--overwrite"]).overwrite
    assert not parse_cli(config, "", ["--no_overwrite"]).overwrite


@pytest.mark.parametrize("stage", STAGES)
def test_help_says_unit_default_and_source(stage):
    """Every setting of every stage; the help starts with what the stage is."""
    out = help_of(stage)
    module = stage_module(stage)

    for name, field in module.Config.__dataclass_fields__.items():
        assert f"--{name}" in out
        assert field.metadata["help"]

    assert module.__doc__.splitlines()[0] in out
    assert "paper" in out
    assert "(default:" in out


@pytest.mark.parametrize("stage", STAGES)
def test_shared_settings_stand_behind_those_of_the_stage(stage):
    """--help groups flags: the stage's own first, each shared class under its docstring."""
    out = help_of(stage)
    own = out.index("settings of this stage:")
    run = out.index("The run and its folder:")
    assert own < run < out.index("--run_dir", run)

    first_flag = re.search(r"--(\w+)", out[own:])[1]
    own_fields = list(stage_module(stage).Config.__annotations__)
    assert first_flag == own_fields[0]


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.args")), ids=lambda p: p.name)
def test_paper_settings_parse(config):
    """The files in configs/ are accepted by the stage that their name says."""
    stage = next(s for s in STAGES if config.name.startswith(s.removesuffix(".py")))
    settings = parse_cli(stage_module(stage).Config, "", [f"@{config}"])
    wanted = 1e-5 if "lora" in config.name else 1e-6  # ours, and the paper's
    assert getattr(settings, "lr", wanted) == wanted


LAUNCH = (
    "launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
)
SMALL_RUN = (
    "grpo.py --precision bf16 --steps 2 --prompts_per_step 4 --max_examples 8 --kl_beta 0.01"
)


@pytest.mark.slow
def test_accelerate_launches_a_stage_in_bf16(tmp_path):
    """The README's command, with a bf16 copy that samples and fp32 weights that train."""
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    folder = tmp_path / "run"
    command = [accelerate, *LAUNCH.split(), *SMALL_RUN.split(), "--run_dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    steps = read_jsonl(folder / "metrics.jsonl")
    assert len(steps) == 2
    assert all(0 < step["grad_norm"] < 100 for step in steps)
    assert all(abs(step["ratio"] - 1) < 0.1 for step in steps)

    trained, _ = load_model(str(folder / "model"))
    base, _ = load_model(str(ROOT / "toy/base"))
    moved = [(a - b).abs().max() for a, b in zip(trained.parameters(), base.parameters())]
    assert 0 < max(moved) < 1e-2, "a step of 2e-4 moves fp32 weights by about that, bf16 by more"
