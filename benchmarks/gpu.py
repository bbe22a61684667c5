"""What a GPU does: every figure that cannot be had without one, in parts of at most nine minutes.

    python benchmarks/gpu.py --out runs/gpu                 all parts that are not there yet
    python benchmarks/gpu.py --out runs/gpu --parts grpo_3b rollout_7b_64
    python benchmarks/gpu.py --out runs/gpu --table         only the table, from what is there

Each part is a process of its own, whose last line is its result, kept as OUT/PART.json; what it
printed is OUT/PART.log. A part that is there is not run again, one that failed is. After each part
the table is written anew: OUT/report.md.

    tests_*      the quick tests, with the card visible and the models of the tests on it
    logps_*      bf16 against fp32 log-probabilities
    rollout_*    tokens a second of 16, 64 and 128 rows, eager and compiled, and the bandwidth floor
    grpo_*       one step of GRPO: update tokens a second, MFU, peak memory against --plan
    dpo_*        the same for DPO: pairs a second

LoRA of 3B runs as if the card had 24 GB, the others as if it had 80. Weights are random: no figure
here depends on what a model has learnt. Goals: 60 % of the bandwidth at 64 rows, 40 % MFU, memory
within 10 % of the plan.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from harness.plan import DEVICES  # noqa: E402

LIMIT_S = 540

# Shorter completions than in the files, so that a step ends in time; the plan is of these lengths.
STEPS = {
    "grpo_3b": (80, "grpo @configs/grpo_3b.args --max_new_tokens 2048 --sample_batch 64"),
    "grpo_3b_lora": (24, "grpo @configs/grpo_3b_lora.args --max_new_tokens 6144 --sample_batch 16"),
    "grpo_7b_lora": (80, "grpo @configs/grpo_7b_lora.args --max_new_tokens 4096 --sample_batch 64"),
    "dpo_3b": (80, "dpo --pairs_in_step 8 @configs/dpo_sft_3b.args --max_response_tokens 2048"),
    "dpo_3b_lora": (24, "dpo --pairs_in_step 2 @configs/dpo_sft_3b_lora.args"),
    "dpo_7b_lora": (80, "dpo --pairs_in_step 2 @configs/dpo_sft_7b_lora.args"),
}
TEST_FILES = {  # two parts, so that each stays within its minutes
    "tests_model": "attention common qwen sampling optimizer_step lora memory loading prompts",
    "tests_stages": "grpo dpo_sft prefs evaluate run zoo variants",
}


def commands() -> dict[str, list[str]]:
    """Part -> the arguments of Python."""
    found = {}
    for part, names in TEST_FILES.items():
        files = [f"tests/test_{name}.py" for name in names.split()]
        found[part] = ["-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", *files]
    found["logps_3b"] = ["benchmarks/bf16_logps.py", "--size", "3b"]
    for size in ("3b", "7b"):
        for rows in (16, 64, 128):
            flags = f"--size {size} --groups {rows // 8} --new_tokens 128 --no_update"
            found[f"rollout_{size}_{rows}"] = ["benchmarks/roofline.py", *flags.split()]
    for part, (gigabytes, flags) in STEPS.items():
        stage, *rest = flags.split()
        found[part] = ["benchmarks/steps.py", stage, "--limit_GB", str(gigabytes), *rest]
    return found


def small_commands(model: str) -> dict[str, list[str]]:
    """One part of each kind on the model of a folder: seconds on a CPU. For the tests of this."""
    small = "--max_prompt_tokens 40 --max_pixels 7056 --max_tokens_per_micro_batch 99"
    return {
        "tests_model": ["-m", "pytest", "-p", "no:cacheprovider", "tests/test_metrics.py"],
        "logps_tiny": ["benchmarks/bf16_logps.py", "--new_tokens", "8", "--side", "84"],
        "rollout_tiny_16": ["benchmarks/roofline.py", "--groups", "2", "--new_tokens", "4",
                            "--side", "84", "--no_update"],
        "grpo_tiny": ["benchmarks/steps.py", "grpo", "--model", model, "--sample_batch", "8",
                      "--max_new_tokens", "5", "--lora_rank", "2", *small.split()],
        "dpo_tiny": ["benchmarks/steps.py", "dpo", "--model", model,
                     "--max_response_tokens", "5", *small.split()],
    }  # fmt: skip


# --- Running -------------------------------------------------------------------------------------


def run_part(part: str, arguments: list[str], out: Path) -> dict:
    """Run a part, write its result and its log. An error is a result as well."""
    began = time.perf_counter()
    command = [sys.executable, *arguments]
    device = "cuda" if part.startswith("tests") else ""
    env = {**os.environ, "SPECS_TEST_DEVICE": device, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S
        )
        output = done.stdout + done.stderr
        result = result_of(part, done)
    except subprocess.TimeoutExpired as late:
        output = "".join(x if isinstance(x, str) else x.decode()
                         for x in (late.stdout, late.stderr) if x)  # fmt: skip
        result = {"error": f"not done after {LIMIT_S} s"}
    result |= {"command": " ".join(arguments), "part_s": round(time.perf_counter() - began, 1)}
    (out / f"{part}.log").write_text(output)
    (out / f"{part}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def result_of(part: str, done: subprocess.CompletedProcess) -> dict:
    """The last line, as JSON. Of tests it is pytest's own, in words, with the first failures."""
    lines = done.stdout.strip().splitlines() or [""]
    if part.startswith("tests"):
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        return {"summary": lines[-1].strip("= "), "failed": failed[:20], "code": done.returncode}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return json.loads(lines[-1])


def is_done(file: Path) -> bool:
    return file.exists() and "error" not in json.loads(file.read_text())


# --- The table -----------------------------------------------------------------------------------


def table(results: dict[str, dict]) -> str:
    """Markdown, a section for each kind of part that is there."""
    lines = ["# On a GPU", "", time.strftime("%Y-%m-%d"), ""]
    for kind, columns in COLUMNS.items():
        mine = {part: r for part, r in results.items() if part.startswith(kind)}
        if not mine:
            continue
        lines += ["| part | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for part, result in mine.items():
            try:
                cells = CELLS[kind](result) if "error" not in result else [result["error"]]
            except KeyError as missing:  # a result of another version
                cells = [f"no {missing}"]
            lines.append(f"| {part} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def rollout_cells(r: dict) -> list[str]:
    cells = [f"{r['sequences']}", f"{r['floor_ms_a_step']:.2f}"]
    for way in ("dynamic", "static, compiled"):
        share = f"{100 * r[way]['share_of_bandwidth']:.0f} %"
        cells += [f"{r[way]['tokens_a_second']:,.0f}", share]
    return cells


def memory_cells(r: dict) -> list[str]:
    planned, measured = r["planned_GB"], r["measured_GB"]
    return [f"{planned:.1f}", f"{measured:.1f}", f"{100 * (measured / planned - 1):+.0f} %"]


def update_cells(r: dict) -> list[str]:
    peak = peak_of(r["device"])
    mfu = f"{r['operations_a_second'] / 1e12:.2f} TFLOP/s"
    if peak:
        mfu = f"{100 * r['operations_a_second'] / peak:.0f} %"
    return [f"{r['update_tokens_a_second']:,.0f}", mfu]


def peak_of(name: str) -> float | None:
    """Dense bf16 operations a second of a card, by its name, as the plan has them."""
    for known, device in DEVICES.items():
        if known.removeprefix("rtx") in name.lower().replace(" ", ""):
            return device.flops_per_second
    return None


COLUMNS = {
    "tests": ["what pytest says", "failed"],
    "logps": ["tokens", "trainer, mean (max) |d| nats", "sampler", "sampler to trainer"],
    "rollout": ["rows", "floor, ms a step", "eager, tokens/s", "of the bandwidth",
                "compiled, tokens/s", "of the bandwidth"],
    "grpo": ["planned, GB", "measured", "off", "update tokens/s", "MFU", "sampled tokens/s"],
    "dpo": ["planned, GB", "measured", "off", "update tokens/s", "MFU", "pairs/s"],
}  # fmt: skip
CELLS = {
    "tests": lambda r: [r["summary"], str(len(r["failed"]))],
    "logps": lambda r: [f"{r['tokens']:,}", *[
        f"{r[name]['mean_abs']:.1e} ({r[name]['max_abs']:.1e})"
        for name in ("trainer", "sampler", "sampler_to_trainer")]],
    "rollout": rollout_cells,
    "grpo": lambda r: [*memory_cells(r), *update_cells(r), f"{r['sampled_a_second']:,.0f}"],
    "dpo": lambda r: [*memory_cells(r), *update_cells(r), f"{r['pairs_a_second']:.2f}"],
}  # fmt: skip


def report(out: Path) -> None:
    """Write OUT/report.md from the results that are there."""
    results = {file.stem: json.loads(file.read_text()) for file in sorted(out.glob("*.json"))}
    (out / "report.md").write_text(table(results))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/gpu", help="folder of results, log files and table")
    parser.add_argument("--parts", nargs="+", default=[], help="only these, even if there")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--small", default="", help="a model folder: each kind of part, in small")
    args = parser.parse_args()

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    todo = small_commands(args.small) if args.small else commands()
    unknown = set(args.parts) - todo.keys()
    if unknown:
        parser.error(f"--parts {' '.join(sorted(unknown))}: wanted some of {' '.join(todo)}")

    for part, arguments in todo.items():
        wanted = part in args.parts or not (args.parts or is_done(out / f"{part}.json"))
        if wanted and not args.table:
            result = run_part(part, arguments, out)
            print(part, result.get("error") or f"{result['part_s']} s", flush=True)
            report(out)
    report(out)
    print((out / "report.md").read_text())


if __name__ == "__main__":
    main()
