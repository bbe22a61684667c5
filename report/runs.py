"""What a run folder holds, for the page."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from harness.run import read_jsonl

STAGES = {  # a setting that only this stage has -> the stage
    "group_size": "GRPO",
    "batch_pairs": "cold start",
    "coupled": "pairs",
    "pass_items": "evaluation",
}


@dataclass(frozen=True)
class LoadedRun:
    """One run folder."""

    name: str  # unique on the page
    arm: str  # runs of one stage and arm are taken for seeds of one thing
    stage: str  # GRPO, cold start, pairs, evaluation
    folder: Path
    config: dict
    metrics: list[dict] = field(default_factory=list)
    samples: list[dict] = field(default_factory=list)

    def divides_by_std(self) -> bool:
        """Are advantages divided by the std of their group? Runs before that flag did so."""
        return self.config.get("divide_by_std", True)


def load_runs(folders: list[Path]) -> list[LoadedRun]:
    """The runs in these folders: each is a run, or holds runs at any depth.

    Raises ValueError naming a folder without any run.
    """
    found: list[Path] = []
    for folder in folders:
        inside = find_runs(folder)
        if not inside:
            raise ValueError(f"RUN {folder}: no run in it (no config.json with a run_dir)")
        found += [run for run in inside if run not in found]
    return [load_run(folder, name) for folder, name in zip(found, short_names(found))]


def first_of_arms(runs: list[LoadedRun], stage: str) -> list[LoadedRun]:
    """Of the runs of a stage, the first of each arm: what is shown of one seed only."""
    first: dict[str, LoadedRun] = {}
    for run in runs:
        if run.stage == stage:
            first.setdefault(run.arm, run)
    return list(first.values())


def find_runs(folder: Path) -> list[Path]:
    """The run folders at or below `folder`, oldest first: in the order in which stages follow."""
    if read_config(folder) is not None:
        return [folder]
    below = {file.parent for file in folder.rglob("config.json")}
    runs = [path for path in below if read_config(path) is not None]
    return sorted(runs, key=lambda path: ((path / "config.json").stat().st_mtime, str(path)))


def read_config(folder: Path) -> dict | None:
    """The settings of a run; None if it is not one. A model folder has a config.json as well."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text())
    return config if "run_dir" in config else None


def short_names(folders: list[Path]) -> list[str]:
    """The last part of each path; of two that agree in it, the last two parts."""
    names = [folder.resolve().name for folder in folders]
    short = []
    for folder, name in zip(folders, names):
        is_unique = names.count(name) == 1
        short.append(name if is_unique else "/".join(folder.resolve().parts[-2:]))
    return short


def load_run(folder: Path, name: str) -> LoadedRun:
    config = read_config(folder)
    stage = next((stage for key, stage in STAGES.items() if key in config), "run")
    logs = {}
    for log in ("metrics", "samples"):
        file = folder / f"{log}.jsonl"
        logs[log] = read_jsonl(file) if file.is_file() else []
    return LoadedRun(name, folder.resolve().name, stage, folder, config, **logs)
