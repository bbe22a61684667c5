"""The true Qwen2.5-VL-3B on a laptop's memory: one GRPO step and one DPO step, by LoRA, on a CPU.

All of its 3.75 billion weights, random and in bf16, one real picture at the size that training
uses, adapters that are trained, a merged copy that samples. Nothing is learnt: it shows that the
stages run at this size and need the memory that `--plan` says. Two cores, 24 GB, about ten minutes.

    python benchmarks/rehearsal.py --out runs/rehearsal [--picture FILE]

Without --picture it takes the first of $SPECS_REAL_DATA that is large enough, and draws one if
there is none. Each step is a process of its own (`steps.py`); OUT holds a JSON file and a log of
each, and report.md. A step whose file is there is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from workloads import ROOT

from toy import world

STEPS = {
    "grpo": "grpo --group_size 2 --sample_batch 2 --max_new_tokens 32",
    "dpo": "dpo --pairs_in_step 1 --max_response_tokens 64",
}
COMMON = (
    "--precision bf16 --lora_rank 64 --gradient_checkpointing --max_prompt_tokens 700 "
    "--max_tokens_per_micro_batch 1024 --max_pixels {max_pixels} --model {model}"
)
MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"


def find_picture(out: Path, side: int) -> Path:
    """An image file with both sides of at least `side` pixels; a drawn one if there is no other."""
    real = os.environ.get("SPECS_REAL_DATA")
    files = sorted(Path(real).rglob("*")) if real else []
    for file in files:
        if file.suffix.lower() in (".png", ".jpg", ".jpeg"):
            with Image.open(file) as image:
                if min(image.size) >= side:
                    return file
    drawn = out / "drawn.png"
    world.examples(1, seed=0)[0]["images"][0].resize((2 * side, side)).save(drawn)
    return drawn


def run_step(name: str, args, picture: Path, out: Path) -> dict:
    """One step in a new process: its figures, kept in OUT/NAME.json."""
    flags = COMMON.format(max_pixels=args.max_pixels, model=args.model)
    step = [*STEPS[name].split(), "--picture", str(picture), *flags.split(), *args.flags.split()]
    began = time.perf_counter()
    with open(out / f"{name}.log", "w") as log:
        done = subprocess.run(
            [sys.executable, "benchmarks/steps.py", *step],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name} failed, see {out}/{name}.log")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    result |= {"command": " ".join(step), "minutes": (time.perf_counter() - began) / 60}
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def table(results: dict[str, dict]) -> str:
    lines = [
        "| step | planned, GB | measured, GB | off | minutes | of these: |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        phases = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in r["seconds"].items())
        off = 100 * (r["measured_GB"] / r["planned_GB"] - 1)
        lines.append(
            f"| {name} | {r['planned_GB']:.1f} | {r['measured_GB']:.1f} | {off:+.0f} % "
            f"| {r['minutes']:.1f} | {phases} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/rehearsal", help="folder of results and log files")
    parser.add_argument("--picture", default="", help="an image file")
    parser.add_argument("--model", default=MODEL, help="folder or name with a config.json")
    parser.add_argument("--max_pixels", type=int, default=501760, help="of the picture; MM-EUREKA")
    parser.add_argument("--flags", default="", help="further flags of both stages, in quotes")
    args = parser.parse_args()

    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    picture = Path(args.picture).resolve() if args.picture else find_picture(out, side=400)
    results = {}
    for name in STEPS:
        file = out / f"{name}.json"
        print(f"{name}: {picture.name}", flush=True)
        results[name] = (
            json.loads(file.read_text()) if file.exists() else run_step(name, args, picture, out)
        )
        (out / "report.md").write_text(table(results))
    print((out / "report.md").read_text())


if __name__ == "__main__":
    main()
