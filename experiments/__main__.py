"""The paper in miniature: run its experiments, judge its claims, draw its figures.

    python -m experiments                          at most 90 minutes on two cores
    python -m experiments --quick                  15 minutes
    python -m experiments --from_metrics FILE      verdicts and figures again, without a run

Give the command again to go on where it stopped. Writes OUT/metrics.json, gf.png and rl.png, and
prints the verdicts.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from experiments.claims import outcomes
from experiments.collect import collect, write_metrics
from experiments.figures import draw_figures
from experiments.grid import SCALES, paper_tasks, read_rates
from experiments.more_claims import more_outcomes
from experiments.more_grid import more_tasks
from experiments.schedule import run_all


def print_verdicts(metrics: dict) -> None:
    """Every claim, with its verdict and the numbers behind it."""
    results = outcomes(metrics) + more_outcomes(metrics)
    for title, judged in results:
        if all(outcome.difference.count == 0 for outcome in judged):
            continue  # not run at this scale
        print(f"\n{title}")
        for outcome in judged:
            print(f"  {outcome.verdict:<17} {outcome.claim.text}")
            print(f"  {'':<17} {outcome.sentence()}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--scale", choices=SCALES, default="paper", help="how much is run")
    parser.add_argument("--quick", action="store_const", const="quick", dest="scale",
                        help="the same as --scale quick")  # fmt: skip
    parser.add_argument("--more", action="store_true", help="also what `make paper-more` runs")
    parser.add_argument("--out", type=Path, help="folder; default: runs/SCALE")
    parser.add_argument("--jobs", type=int, default=2, help="stages that run at the same time")
    parser.add_argument("--minutes", type=float, default=0,
                        help="start nothing new after so many, 0: no limit")  # fmt: skip
    parser.add_argument("--from_metrics", type=Path, help="a metrics.json: run nothing")
    args = parser.parse_args(argv)

    if args.from_metrics:
        out = args.out or args.from_metrics.parent
        metrics = json.loads(args.from_metrics.read_text())
    else:
        out = (args.out or Path("runs") / args.scale).resolve()
        metrics = run_grid(out, args)
        write_metrics(metrics, out / "metrics.json")

    print_verdicts(metrics)
    files = draw_figures(metrics, out)
    print("wrote " + ", ".join(str(file) for file in files))


def run_grid(out: Path, args) -> dict:
    """Run what has not ended yet; the metrics of all that has."""
    scale, rates = SCALES[args.scale], read_rates()
    tasks = paper_tasks(out, scale, rates)
    if args.more:
        tasks += more_tasks(out, scale, rates)
    if not run_all(tasks, args.jobs, args.minutes, say=lambda text: print(text, flush=True)):
        print(f"--minutes {args.minutes:g}: not all tasks have ended, verdicts are on what has")
    return {"scale": asdict(scale), "rates": rates, **collect(out)}


if __name__ == "__main__":
    main()
