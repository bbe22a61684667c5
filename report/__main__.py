"""One self-contained HTML page about any run folders.

    python -m report runs/specs                             all runs in it -> runs/specs/page.html
    python -m report runs/zero runs/final --out page.html
    python -m report runs/paper --experiments runs/paper/metrics.json

It holds what the folders hold: curves, tables, a gallery of rollouts and pairs, one update in
numbers, and the experiments beside the paper's numbers. It asks for nothing from outside.
"""

import argparse
import json
import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from harness.tables import (
    MAIN_COLUMNS,
    OOD_ACCURACY_COLUMNS,
    OOD_FORMAT_COLUMNS,
    cell,
    measured,
)
from report import gallery
from report.charts import gf_charts, training_charts
from report.images import ImageStore
from report.lecture import explain_update
from report.runs import LoadedRun, first_of_arms, load_runs
from report.verdicts import experiment_sections

HERE = Path(__file__).resolve().parent
ROLLOUT_BYTES = 13_000_000  # of the gallery's groups; of more, every second, third, ... is shown


def build_page(folders: list[Path], experiments: Path | None = None) -> str:
    """The page as HTML text. Raises ValueError naming a folder that holds no run."""
    runs = load_runs(folders)
    images = ImageStore()
    evaluated = [run for run in first_of_arms(runs, "evaluation") if is_evaluated(run)]
    evaluations = [evaluation_section(run) for run in evaluated]
    metrics = json.loads(experiments.read_text()) if experiments else None

    of_all = ImageStore()  # also of groups that do not fit
    groups = gallery.fitting(gallery.rollouts(runs, of_all), of_all, ROLLOUT_BYTES)

    data = {
        "groups": gallery.with_images_in(groups, of_all, images),
        "pairs": gallery.pairs(runs, images),
        "journeys": gallery.journeys(runs, images),
        "images": images.urls,
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        runs=runs,
        experiments=experiment_sections(metrics) if metrics else [],
        evaluations=evaluations,
        charts=training_charts(runs, guess_for(runs, evaluated, evaluations)),
        lecture=explain_update(runs),
        data=data,
        recorded=sum(len(run.samples) for run in runs if run.stage == "GRPO"),
    )


def guess_for(
    runs: list[LoadedRun], evaluated: list[LoadedRun], evaluations: list[dict]
) -> float | None:
    """The best blind guess to draw beside the accuracies of training.

    None if no evaluation asked questions like those of the training runs: of other data it would be
    a line of no meaning.
    """
    trained_on = {run.config.get("data") for run in runs if run.stage == "GRPO"}
    for run, evaluation in zip(evaluated, evaluations):
        if {run.config.get("data")} == trained_on and evaluation["guessing"] is not None:
            return evaluation["guessing"]
    return None


# --- Evaluations ---------------------------------------------------------------------------------


def is_evaluated(run: LoadedRun) -> bool:
    return (run.folder / "report.json").is_file()


def evaluation_section(run: LoadedRun) -> dict:
    """The tables and curves of one evaluation."""
    report = json.loads((run.folder / "report.json").read_text())
    models, tables = report["models"], []
    for title, columns in (
        ("as trained", MAIN_COLUMNS),
        ("accuracy, OOD", OOD_ACCURACY_COLUMNS),
        ("format obeyed, OOD", OOD_FORMAT_COLUMNS),
    ):
        columns = measured(columns, models)
        if columns:
            rows = {name: [cell(c.rate(model)) for c in columns] for name, model in models.items()}
            tables.append({"title": title, "columns": [c.title for c in columns], "rows": rows})
    guessing = [model["guessing"] for model in models.values() if "guessing" in model]
    return {
        "name": run.name,
        "tables": tables,
        "pass": {
            name: {k: cell(rate) for k, rate in model["pass@k"].items()}
            for name, model in models.items()
            if "pass@k" in model
        },
        "guessing": guessing[0] if guessing else None,
        "charts": gf_charts(report["gf"]),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m report", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of runs")
    parser.add_argument("--out", type=Path, help="file; default: page.html in the first folder")
    parser.add_argument("--experiments", type=Path, help="metrics.json of `python -m experiments`")
    args = parser.parse_args(argv)

    out = args.out or args.runs[0] / "page.html"
    if out.is_dir():
        out = out / "page.html"
    try:
        page = build_page(args.runs, args.experiments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    out.write_text(page, encoding="utf-8")
    print(f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
