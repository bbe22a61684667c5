"""What is won by giving no pass to groups without a gradient, and is the curve the same?

    python benchmarks/late_steps.py --seeds 5 --out runs/late_steps      about 10 minutes, two cores

GRPO as it is, and a copy in which every group gets its pass, at the same time on two cores, seed by
seed. Gradients are equal (test_groups_without_gradient_change_nothing), but sums round differently,
so that two runs part after some steps: their curves are compared as means over seeds, each with its
95 % interval. Seconds are those of the last quarter of the steps, where most groups have equal
rewards. What is done already is kept. Writes late_steps.json and late_steps.png.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from workloads import ROOT

from experiments.verdict import mean_interval
from harness.run import read_jsonl

LEARNS = "    learns = ((advantages != 0) & in_loss).any(-1) | (cfg.kl_beta > 0)  # (n,)\n"
EVERY_GROUP = "    learns = torch.ones(len(part), dtype=torch.bool)  # (n,)\n"
VARIANTS = ("skipped", "every group")
METRICS = ("accuracy", "format", "zero_std%")
BLOCK = 10  # steps whose mean is one point of a curve


def folder_of(out: Path, variant: str, seed: int) -> Path:
    """The run of a variant with a seed."""
    return out / f"{variant.replace(' ', '_')}_{seed}"


def stages(out: Path) -> dict[str, Path]:
    """Each variant -> its grpo.py. Raises ValueError if the line to be changed is not there."""
    source = (ROOT / "grpo.py").read_text()
    if source.count(LEARNS) != 1:
        raise ValueError("grpo.py chooses its groups otherwise: change LEARNS in late_steps.py")
    copy = out / "grpo.py"
    copy.write_text(source.replace(LEARNS, EVERY_GROUP))
    return {"skipped": ROOT / "grpo.py", "every group": copy}


def run_seed(out: Path, seed: int, steps: int) -> None:
    """Both variants of one seed, side by side."""
    running = []
    for variant, stage in stages(out).items():
        folder = folder_of(out, variant, seed)
        if (folder / "ended").exists():
            continue
        flags = ["--lr", "3e-4", "--schedule", "cosine", "--steps", f"{steps}", "--seed", f"{seed}"]
        command = [sys.executable, str(stage), *flags, "--run_dir", str(folder), "--overwrite"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)  # fmt: skip
        running.append((process, folder))
    for process, folder in running:
        if process.wait() != 0:
            raise SystemExit(f"error: {folder} failed")
        (folder / "ended").touch()


def mean_and_half(values: list[float]) -> tuple[float, float]:
    """The mean over seeds, and half of its 95 % interval."""
    interval = mean_interval(values)
    return interval.mean, interval.high - interval.mean


def curves(runs: list[list[dict]], metric: str) -> list[tuple[float, float]]:
    """(mean, half interval) over seeds of each block of steps."""
    points = []
    for start in range(0, len(runs[0]), BLOCK):
        blocks = [[step[metric] for step in run[start : start + BLOCK]] for run in runs]
        points.append(mean_and_half([statistics.mean(block) for block in blocks]))
    return points


def late_seconds(run: list[dict]) -> dict[str, float]:
    """Mean seconds of a step in the last quarter: in all, and without the sampling."""
    late = run[3 * len(run) // 4 :]
    return {
        "step_s": statistics.mean(step["step_s"] for step in late),
        "without sampling": statistics.mean(
            step["step_s"] * (1 - step["gen%"] / 100) for step in late),  # fmt: skip
    }


def collect(out: Path, seeds: int) -> dict:
    """Curves of both variants, how often each mean lies in the other's interval, and ratios."""
    runs = {}
    for variant in VARIANTS:
        folders = [folder_of(out, variant, seed) for seed in range(seeds)]
        runs[variant] = [list(read_jsonl(folder / "metrics.jsonl")) for folder in folders]

    result = {"seeds": seeds, "curves": {}, "inside": {}, "every group / skipped": {}}
    for metric in METRICS:
        ours, other = (curves(runs[variant], metric) for variant in VARIANTS)
        result["curves"][metric] = dict(zip(VARIANTS, (ours, other)))
        inside = [abs(a - b) <= min(half_a, half_b) for (a, half_a), (b, half_b)
                  in zip(ours, other)]  # fmt: skip
        result["inside"][metric] = f"{sum(inside)} of {len(inside)}"

    seconds = {variant: [late_seconds(run) for run in runs[variant]] for variant in VARIANTS}
    for name in ("step_s", "without sampling"):
        ratios = [b[name] / a[name] for a, b in zip(*seconds.values())]
        result["every group / skipped"][name] = mean_and_half(ratios)
    return result


def draw(result: dict, file: Path) -> None:
    """A panel for each metric, both variants with their intervals."""
    figure, axes = plt.subplots(1, len(METRICS), figsize=(12, 3.2), layout="constrained")
    for axis, metric in zip(axes, METRICS):
        for variant, points in result["curves"][metric].items():
            steps = [BLOCK * (i + 0.5) for i in range(len(points))]
            means = [mean for mean, _ in points]
            axis.plot(steps, means, label=variant)
            axis.fill_between(steps, [m - h for m, h in points], [m + h for m, h in points],
                              alpha=0.2)  # fmt: skip
        axis.set(title=metric, xlabel="step")
    axes[0].legend(title="groups of equal rewards")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/late_steps"))
    args = parser.parse_args()

    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        run_seed(args.out, seed, args.steps)
        print(f"seed {seed} done", flush=True)

    result = {"steps": args.steps, **collect(args.out, args.seeds)}
    (args.out / "late_steps.json").write_text(json.dumps(result, indent=1))
    draw(result, args.out / "late_steps.png")
    print(json.dumps({key: result[key] for key in ("inside", "every group / skipped")}, indent=1))


if __name__ == "__main__":
    main()
