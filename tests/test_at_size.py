"""`make gpu` and `make rehearsal` run in small, so that they still run where they are needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import rehearsal  # noqa: E402
import steps  # noqa: E402

import dpo_sft  # noqa: E402
import grpo  # noqa: E402
from conftest import fresh_policy  # noqa: E402
from harness.cli import parse_cli  # noqa: E402
from harness.plan import MARGIN, work_of  # noqa: E402
from model.memory import Sizes, parts, peak  # noqa: E402


@pytest.fixture
def model(tmp_path) -> str:
    """The folder of a small model's config; no step needs more of it."""
    policy, _ = fresh_policy()
    policy.vlm.config.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def run(script: str, *flags: str) -> str:
    command = [sys.executable, f"benchmarks/{script}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def planned_GB(flags: list[str], device: str) -> float:
    """What --plan says of a step's command line."""
    stage = {"grpo": grpo, "dpo": dpo_sft}[flags[0]]
    if flags[1] == "--pairs_in_step":
        flags = [flags[0], *flags[3:]]
    cfg = parse_cli(stage.Config, "", flags[1:])
    return peak(parts(Sizes.of(cfg.model), work_of(cfg, device, 1))) / 1e9


@pytest.mark.parametrize("part", gpu.STEPS)
def test_each_step_is_planned_to_fit(part):
    """The lengths of `make gpu` fit the card that each part pretends to have."""
    gigabytes, flags = gpu.STEPS[part]
    assert planned_GB(flags.split(), "h100") <= (1 - MARGIN) * gigabytes


def test_the_rehearsal_is_planned_to_fit():
    """24 GB hold Python, PyTorch and what the plan says."""
    common = rehearsal.COMMON.format(max_pixels=501760, model=rehearsal.MODEL)
    for flags in rehearsal.STEPS.values():
        assert planned_GB([*flags.split(), *common.split()], "cpu") < 20


def test_the_table_of_all_kinds():
    """One line a part, an error in its place, and a share of the peak where the card is known."""
    step = {
        "device": "NVIDIA H100 80GB HBM3", "planned_GB": 60.0, "measured_GB": 63.0,
        "update_tokens_a_second": 1234.0, "operations_a_second": 989e12 / 4,
    }  # fmt: skip
    way = {"tokens_a_second": 2000.0, "share_of_bandwidth": 0.5}
    difference = {"mean_abs": 1e-3, "max_abs": 0.1, "mean": 0.0}
    text = gpu.table({
        "grpo_3b": {**step, "sampled_a_second": 500.0},
        "dpo_3b": {**step, "device": "another card", "pairs_a_second": 1.5},
        "rollout_3b_64": {"sequences": 64, "floor_ms_a_step": 2.0, "dynamic": way,
                          "static, compiled": way},
        "rollout_7b_64": {"error": "not done after 540 s"},
        "logps_3b": {"tokens": 8192, "trainer": difference, "sampler": difference,
                     "sampler_to_trainer": difference},
        "tests_model": {"summary": "9 passed", "failed": []},
    })  # fmt: skip
    assert "| grpo_3b | 60.0 | 63.0 | +5 % | 1,234 | 25 % | 500 |" in text
    assert "| 247.25 TFLOP/s | 1.50 |" in text
    assert "| rollout_3b_64 | 64 | 2.00 | 2,000 | 50 % | 2,000 | 50 % |" in text
    assert "| rollout_7b_64 | not done after 540 s |" in text
    assert "1.0e-03 (1.0e-01)" in text and "| 9 passed | 0 |" in text


def test_parts_name_what_exists():
    """Each script, settings file and test file of `make gpu`."""
    for part, arguments in gpu.commands().items():
        for argument in arguments:
            if argument.endswith((".py", ".args")):
                assert (ROOT / argument.removeprefix("@")).is_file(), (part, argument)


@pytest.mark.parametrize("stage", ["grpo", "dpo"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_step_of_each_stage(model, stage, lora_rank):
    """The figures of a step on a small model; all completions are as long as the flags allow."""
    more = {"grpo": {"sample_batch": 8, "max_new_tokens": 5}, "dpo": {"max_response_tokens": 5}}
    cfg = {"grpo": grpo, "dpo": dpo_sft}[stage].Config(
        model=model, lora_rank=lora_rank, max_prompt_tokens=40, max_pixels=7056, precision="no",
        max_tokens_per_micro_batch=99, **more[stage],
    )  # fmt: skip
    figures = steps.run(stage, cfg)
    assert figures["measured_GB"] > 0 and figures["update_tokens_a_second"] > 0
    rate = {"grpo": "sampled_a_second", "dpo": "pairs_a_second"}[stage]
    assert figures[rate] > 0


@pytest.mark.slow
def test_gpu_runs_in_small(model, tmp_path):
    """Every kind of part, on the CPU; what is there is not run again, what failed is."""
    out = tmp_path / "gpu"
    run("gpu.py", "--small", model, "--out", str(out))
    results = {file.stem: json.loads(file.read_text()) for file in out.glob("*.json")}
    assert results.keys() == gpu.small_commands(model).keys()
    errors = {part: r["error"] for part, r in results.items() if "error" in r}
    assert not errors

    (out / "logps_tiny.json").write_text('{"error": "out of memory"}')
    text = run("gpu.py", "--small", model, "--out", str(out))
    assert "logps_tiny" in text.split("#")[0] and "dpo_tiny" not in text.split("#")[0]


@pytest.mark.slow
def test_rehearsal_runs_in_small(model, tmp_path):
    flags = "--lora_rank 2 --max_prompt_tokens 40 --max_tokens_per_micro_batch 99 --precision no"
    text = run("rehearsal.py", "--model", model, "--out", str(tmp_path / "out"), "--max_pixels",
               "7056", "--flags", flags)  # fmt: skip
    assert "| grpo |" in text and "| dpo |" in text
