"""Measure every checkpoint of some runs on the same questions, in one process.

    python -m experiments.checkpoints --runs NAME=RUN_FOLDER,... --out FOLDER --items 100

Writes what evaluate.py writes. A model is called NAME@STEP; step 0 is the start of that run.
"""

import argparse
from pathlib import Path

import evaluate
from harness.cli import split_names
from harness.run import checkpoints


def models_of(runs: dict[str, str]) -> dict[str, str]:
    """NAME@STEP -> model folder, of every checkpoint of every run."""
    models = {}
    for name, run_folder in runs.items():
        for step, folder in checkpoints(Path(run_folder), "--runs"):
            models[f"{name}@{step}"] = str(folder)
    return models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--runs", required=True, help="NAME=RUN_FOLDER,... of the runs")
    parser.add_argument("--items", type=int, default=100, help="questions a set; ours")
    parser.add_argument("--seed", type=int, default=7, help="of questions and sampling; ours")
    parser.add_argument("--out", required=True, help="folder of the evaluation")
    args = parser.parse_args()

    models = models_of(split_names(args.runs, "--runs"))
    listed = ",".join(f"{name}={folder}" for name, folder in models.items())
    evaluate.main(
        evaluate.Config(
            models=listed,
            items=args.items,
            pass_items=0,
            seed=args.seed,
            run_dir=args.out,
            overwrite=True,
        )
    )


if __name__ == "__main__":
    main()
