"""The learning rate of each cold start, from a small grid, on a development set.

    python -m experiments.choose_rates        writes experiments/rates.json

Each of SFT, DPO and DPO+SFT has the same three rates to choose from, on pipelines whose seeds no
experiment uses and on questions that no report shows (evaluate.py --seed 1007). The best is the one
with the highest mean reward of stage 3, 0.5 format + accuracy, on ID questions: what generalises,
which is what the experiments compare, has no say. It is chosen once. Give the command again to go
on where it stopped.
"""

import argparse
import json
import statistics
from pathlib import Path

from experiments.collect import read_models
from experiments.grid import COLD, PAPER, RATES, Pipeline
from experiments.schedule import Task, run_all

GRID = (1e-4, 2e-4, 4e-4)
SEEDS = (100, 101)  # of the pipelines
DEV_SEED = "1007"  # of evaluate.py
ITEMS = 200


def grid_tasks(out: Path, seed: int) -> list[Task]:
    """One zero and its pairs, every cold start at every rate, and their evaluation."""
    line = Pipeline(out / f"seed{seed}", seed, PAPER)
    prefs = line.prefs("prefs", line.zero())
    tasks = {}
    for loss in COLD:
        for rate in GRID:
            tasks[arm(loss, rate)] = line.cold(arm(loss, rate), prefs, rate, "--loss", loss)
    models = {name: f"{task.folder}/model" for name, task in tasks.items()}
    line.evaluate("dev", models, tuple(tasks.values()), ITEMS, "--seed", DEV_SEED)
    return line.tasks


def arm(loss: str, rate: float) -> str:
    return f"{loss}_{rate:g}"


def reward(rates: dict) -> float:
    """What stage 3 pays on average for an answer to an ID question."""
    return 0.5 * rates["id"]["format"] + rates["id"]["accuracy"]


def choose(measured: list[dict[str, dict]]) -> dict:
    """The grid and the best rate of each loss; `measured` has model -> set -> rates, a seed each.

    Of equal rewards the lower rate wins.
    """
    grid: dict[str, dict[str, float]] = {}
    for loss in COLD:
        grid[loss] = {}
        for rate in GRID:
            rewards = [reward(models[arm(loss, rate)]) for models in measured]
            grid[loss][f"{rate:g}"] = round(statistics.mean(rewards), 4)

    best = {loss: float(max(by_rate, key=by_rate.get)) for loss, by_rate in grid.items()}
    return {"chosen": best, "mean reward on the development set": grid}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("runs/rates"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="stages that run at the same time")
    args = parser.parse_args()

    out = args.out.resolve()
    run_all([task for seed in SEEDS for task in grid_tasks(out, seed)], args.jobs)
    result = choose([read_models(out / f"seed{seed}" / "dev") for seed in SEEDS])
    RATES.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
