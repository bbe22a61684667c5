"""Does the embedded world leave something to win? Several seeds of the whole pipeline, and its
bars.

    python benchmarks/headroom.py --seeds 5 --out runs/headroom      about 20 minutes of one core

Each seed has its own zero, pairs, warm-up and final model. They are measured on a development set
(evaluate.py --seed 1007, on which the world's settings were chosen) and on a report set (--seed 7,
on which nothing was chosen). What is done already is kept, so the command can be given again.
Writes headroom.json and prints one line per bar: mean over seeds, and half of its 95 % interval.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from experiments.verdict import mean_interval  # noqa: E402
from harness.run import read_jsonl  # noqa: E402
from rewards import is_in_format  # noqa: E402
from rewards.consistency import DISAGREES, check_consistency  # noqa: E402

STAGE3 = ["--steps", "100", "--lr", "3e-4", "--schedule", "cosine"]
SETS = {"dev": 1007, "report": 7}  # seed of evaluate.py


def run(folder: Path, stage: str, *flags: str) -> None:
    """Run a stage into `folder`, unless it ended there before."""
    if (folder / "ended").exists():
        return
    command = [sys.executable, stage, *flags, "--run_dir", str(folder), "--overwrite"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (folder / "ended").touch()


def pipeline(folder: Path, seed: int) -> None:
    """All stages of one seed, then both evaluations."""
    zero, prefs, warmup, final = (folder / name for name in ("zero", "prefs", "warmup", "final"))
    run(zero, "grpo.py", "--seed", f"{10 * seed}")
    run(prefs, "build_prefs.py", "--zero", f"{zero}/model", "--seed", f"{10 * seed + 1}")
    run(warmup, "dpo_sft.py", "--pairs", f"{prefs}", "--seed", f"{10 * seed}")
    run(final, "grpo.py", "--model", f"{warmup}/model", *STAGE3, "--seed", f"{10 * seed + 2}")

    models = f"base=toy/base,zero={zero}/model,warm-up={warmup}/model,final={final}/model"
    for name, eval_seed in SETS.items():
        run(folder / name, "evaluate.py", "--models", models, "--seed", f"{eval_seed}",
            "--items", "300")  # fmt: skip


def inconsistent_share(file: Path) -> float:
    """Of zero's right responses in the format: the share whose reasoning comes to another
    answer."""
    checked = []
    for record in read_jsonl(file):
        is_measured = (record["model"], record["set"], record["mode"]) == ("zero", "id", "sampled")
        if is_measured and record["score"] == 1.0 and is_in_format(record["response"]):
            example = {**record, "answer": record["gold"]}
            checked.append(check_consistency(example, record["response"]) == DISAGREES)
    return statistics.mean(checked)


def bars(folder: Path, name: str) -> dict[str, float]:
    """The figures of one seed on one set, shares in percent."""
    models = json.loads((folder / name / "report.json").read_text())["models"]
    figures = {}
    for model, report in models.items():
        for metric in ("accuracy", "format"):
            figures[f"{model} {metric}"] = 100 * report["id sampled"][metric]["mean"]
        figures[f"{model} shuffled"] = 100 * report["shuffled sampled"]["accuracy"]["mean"]
    figures["final - zero accuracy"] = figures["final accuracy"] - figures["zero accuracy"]
    figures["base pass@16"] = 100 * models["base"]["pass@k"]["16"]["mean"]
    figures["best blind guess"] = 100 * models["base"]["guessing"]
    share = inconsistent_share(folder / name / "completions.jsonl")
    figures["zero inconsistent, of right"] = 100 * share

    steps = read_jsonl(folder / "final" / "metrics.jsonl")
    figures["stage 3 zero-std groups"] = statistics.mean(step["zero_std%"] for step in steps)
    figures["stage 3 entropy, first 5 steps"] = statistics.mean(s["entropy"] for s in steps[:5])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the whole pipeline")
    parser.add_argument("--first", type=int, default=0, help="first seed, to share work out")
    parser.add_argument("--out", type=Path, default=Path("runs/headroom"), help="folder")
    args = parser.parse_args()
    out = args.out.resolve()

    seeds = range(args.first, args.first + args.seeds)
    for seed in seeds:
        pipeline(out / f"seed{seed}", seed)
        print(f"seed {seed} done", flush=True)

    results = {name: [bars(out / f"seed{seed}", name) for seed in seeds] for name in SETS}
    (out / "headroom.json").write_text(json.dumps(results, indent=1) + "\n")
    for figure in results["dev"][0]:
        cells = []
        for name in SETS:
            found = mean_interval([by_seed[figure] for by_seed in results[name]])
            half = found.high - found.mean if found.count > 1 else 0.0
            cells.append(f"{name} {found.mean:7.2f} +- {half:5.2f}")
        print(f"{figure:<32}" + "   ".join(cells))


if __name__ == "__main__":
    main()
