"""What --resume goes on with: the settings of the run itself, from its config.json.

    settings_of_run    on the command line: the run's settings, and what was given again
    check_changes      in the folder: a setting that changes the maths is refused, others are taken
    record_settings    config.json: the settings, the stage, and what was changed at which step
    command_to_resume  what to type to go on

A flag may change where its declaration says `changeable`: it decides how long, how often or how
fast, not what is computed.
"""

import dataclasses
import hashlib
import json
import os
import sys
import time
from pathlib import Path

NOT_COMPARED = ("run_dir", "resume", "overwrite")  # they say where and how to start, not what


def read_config(folder: str | Path) -> dict:
    """The config.json of a run. Raises ValueError naming --resume if there is none."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ValueError(
            f"--resume: no run in {folder} (no config.json); without --resume one is started there"
        )
    return json.loads(file.read_text())


def settings_of_run(config_class, given: dict) -> dict:
    """The settings to resume with: those of the run, and over them the flags that were given.

    config_class   the settings of the stage
    given          name of a setting -> its value on the command line

    Raises ValueError naming --resume if there is no run to go on with.
    """
    if not given.get("run_dir"):
        raise ValueError("--resume needs --run_dir, the folder of the run to go on with")
    if given.get("overwrite"):
        raise ValueError("--resume goes on with a run, --overwrite empties it: give one of them")

    stored = read_config(given["run_dir"])
    known = {field.name for field in dataclasses.fields(config_class)} - {*NOT_COMPARED}
    return {**{name: stored[name] for name in stored if name in known}, **given}


def check_changes(config, stage: str, stored: dict, ranks: int) -> dict[str, list]:
    """What is not as it was: name of a setting -> [before, now].

    config    the settings to resume with
    stored    the config.json of the run
    ranks     processes of this run

    Raises ValueError if the folder is that of another stage or of another number of processes, or
    if a setting differs that changes what is computed.
    """
    if stored.get("stage", stage) != stage:
        raise ValueError(
            f"--resume {config.run_dir}: that is a run of {stored['stage']}, not of {stage}"
        )

    if stored.get("processes", ranks) != ranks:
        saved = stored["processes"]
        raise ValueError(
            f"--resume {config.run_dir}: saved by {saved} processes, now {ranks}; go on with "
            f"{command_to_resume(config.run_dir, saved)}"
        )

    changes, refused = {}, []
    for field in dataclasses.fields(config):
        if field.name in NOT_COMPARED or field.name not in stored:
            continue
        before, now = stored[field.name], getattr(config, field.name)
        if before == now:
            continue
        changes[field.name] = [before, now]
        if not field.metadata["changeable"]:
            refused.append(f"--{field.name} {now} (it runs with {before})")

    if refused:
        raise ValueError(
            f"--resume {config.run_dir} goes on with the settings of that run. These would change "
            f"what it computes: {', '.join(refused)}. Leave them out, or start another run"
        )
    return changes


def record_settings(
    config, stage: str, file: Path, history: list[dict], ranks: int, stored: dict | None = None
) -> None:
    """Write config.json: the settings, the stage, its processes, and the history of changes.

    stored   the config.json of a run that goes on: it keeps the code that the run began with

    It is written under another name first: a run that is killed here keeps its old one.
    """
    settings = {**dataclasses.asdict(config), "stage": stage, "processes": ranks}
    settings["code"] = (stored or {}).get("code", code_of_stage())
    settings["file"] = (stored or {}).get("file", str(started_file()))
    settings["history"] = history
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(settings, indent=2) + "\n")
    os.replace(partial, file)


def code_of_stage() -> str:
    """A hash of the file that was started, of common.py and of rewards/: what one edits.

    It tells a variant from its stage, and a reward that was changed since.
    """
    project = Path(__file__).resolve().parent.parent
    edited = [started_file(), project / "common.py", *sorted((project / "rewards").glob("*.py"))]
    digest = hashlib.sha256()
    for file in edited:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def started_file() -> Path:
    """The file that was started: a stage, or a variant of one."""
    return Path(getattr(sys.modules["__main__"], "__file__", None) or "")


def change_of(changes: dict[str, list], step: int) -> dict:
    """An entry of the history: when and after which step a setting changed, from what to what."""
    return {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "after_step": step, "changed": changes}


def command_to_resume(folder: str | Path, ranks: int) -> str:
    """The command that goes on with a run: it has the settings, so none is repeated."""
    start = "python" if ranks == 1 else f"torchrun --nproc_per_node {ranks}"
    if Path(sys.argv[0]).name != sys.argv[0]:  # a variant's copy, which finds `common` by this
        start = f"PYTHONPATH=. {start}"
    return f"{start} {sys.argv[0]} --run_dir {folder} --resume"
