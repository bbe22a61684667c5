"""A run and its folder: settings from the command line, logs, curves, checkpoints and exact resume.

    runs/NAME/
        config.json      the settings of the run, as printed at its start
        metrics.jsonl    one line a step
        samples.jsonl    prompts, picture files, completions, rewards and reasons, every few steps
        pictures/        the pictures that samples.jsonl names
        curves.png       the metrics as curves
        step_00020/      a model folder that `from_pretrained` opens, every --save_every steps
        model/           the last one
        state.pt         optimizer, step, data position and random states: what --resume needs

Settings are a frozen dataclass a stage, whose fields say their unit, default and source; the command
line is made from it. `@file` on the command line reads flags from a file (see configs/).
"""

import argparse
import dataclasses
import datetime
import difflib
import json
import math
import os
import shutil
import sys
import time
import typing
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers

from prompts import load_picture

WAIT = datetime.timedelta(hours=6)  # of one rank for another: rollouts end when they end

# --- 1. The command line -------------------------------------------------------------------------


def flag(default, text: str):
    """A dataclass field with its help: what it is, unit, source."""
    return dataclasses.field(default=default, metadata={"help": text})


def parse_cli(config_class, doc: str, argv: list[str] | None = None):
    """Make the command line of a settings dataclass and read it.

    A wrong flag or value ends the program with a message that names it; an unknown flag also names the
    nearest one that exists. A bool `--name` has a twin `--no_name`.
    """
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False, fromfile_prefix_chars="@",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.convert_arg_line_to_args = lambda line: line.split("#")[0].split()
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind = next((t for t in typing.get_args(hints[field.name]) if t is not type(None)), hints[field.name])
        text = f"{field.metadata['help']} (default: {field.default})".replace("%", "%%")
        if kind is bool:
            text += f"; --no_{field.name} turns it off" if field.default else ""
            parser.add_argument(f"--{field.name}", action="store_true", default=field.default, help=text)
            parser.add_argument(f"--no_{field.name}", dest=field.name, action="store_false", help=argparse.SUPPRESS)
        else:
            parser.add_argument(f"--{field.name}", type=kind, default=field.default, metavar=kind.__name__, help=text)
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        names = [name for action in parser._actions for name in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], names, n=1)
        parser.error(f"unknown flag {unknown[0]}" + (f", did you mean {near[0]}?" if near else "; see --help"))
    try:
        return config_class(**vars(values))
    except ValueError as error:  # __post_init__ of the dataclass checks what belongs together
        parser.error(str(error))


def run_stage(main, config) -> None:
    """Run a stage's main; what the user can mend is printed as one line instead of a traceback."""
    try:
        main(config)
    except (ValueError, FileExistsError) as error:
        sys.exit(f"error: {error}")


# --- 2. The run folder ---------------------------------------------------------------------------


class Run:
    """The folder of one run. Only the main process writes; the others call the same methods in vain."""

    def __init__(self, config, stage: str, accelerator: Accelerator, columns: list[str]):
        self.config, self.stage, self.accelerator, self.columns = config, stage, accelerator, columns
        self.writes = accelerator.is_main_process
        name = config.run_dir or f"runs/{stage}_{time.strftime('%Y%m%d_%H%M%S')}"
        self.folder = Path(gather_objects(name, accelerator)[0])  # ranks may start in different seconds
        self.start, self.worked_s = 0, 0.0
        taken = self.folder.exists() and any(self.folder.iterdir())
        if taken and not (config.resume or config.overwrite):
            raise FileExistsError(f"--run_dir {name} is not empty: --resume goes on with it, --overwrite empties it")
        if taken and not (self.folder / "config.json").is_file():
            raise FileExistsError(f"--run_dir {name} holds other things than a run (no config.json): it is left alone")
        accelerator.wait_for_everyone()
        if self.writes:
            if taken and not config.resume:
                shutil.rmtree(self.folder)  # only ever a run's own folder, see above
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        accelerator.wait_for_everyone()
        if config.log_with:  # not before: a tracker writes into the folder that was just checked and made
            accelerator.init_trackers("specs", config=dataclasses.asdict(config))

    def say(self, text: str) -> None:
        if self.writes:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """From any process, since each reads rows of its own."""
        print(f"[{self.accelerator.process_index}] {text}", file=sys.stderr, flush=True)

    def log(self, step: int, steps: int, metrics: dict) -> None:
        """One JSON line, one aligned line on the terminal with the time that is left, and the trackers."""
        self.accelerator.log(metrics, step=step)
        if not self.writes:
            return
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        columns = [name for name in self.columns if name in metrics]
        if step == self.start + 1:
            print("  ".join(f"{name:>{max(7, len(name))}}" for name in ["step", *columns, "left"]))
        self.worked_s += metrics["step_s"]
        left = self.worked_s / (step - self.start) * (steps - step)
        bar = f"{left // 60:.0f}:{left % 60:02.0f} {'#' * round(10 * step / steps):.<10}"
        cells = [f"{metrics[name]:>{max(7, len(name))}.4g}" for name in columns]
        print("  ".join([f"{step:>7}", *cells, bar]), flush=True)

    def sample(self, record: dict, pictures: list) -> None:
        """Append one record to samples.jsonl, its pictures as files beside it."""
        if not self.writes:
            return
        names = []
        (self.folder / "pictures").mkdir(exist_ok=True)
        for i, picture in enumerate(pictures):
            names.append(f"pictures/step{record['step']}_{record['id'].replace('/', '_')}_{i}.png")
            load_picture(picture, record["id"]).save(self.folder / names[-1])  # it may be a path, or CMYK
        with open(self.folder / "samples.jsonl", "a") as file:
            file.write(json.dumps({**record, "pictures": names}, ensure_ascii=False) + "\n")

    def records(self) -> list[dict]:
        file = self.folder / "metrics.jsonl"
        return read_jsonl(file) if file.exists() else []

    def finish(self) -> None:
        """All ranks leave together.

        Trap: gloo's destructor joins its threads while it holds Python's lock, and a thread that still lets
        go of a gathered tensor waits for that lock: without a moment in which it can have it, most runs of
        two processes hung after their last line (test_a_run_on_two_ranks)."""
        self.accelerator.wait_for_everyone()
        time.sleep(0.1)
        self.accelerator.end_training()

    # --- checkpoints -----------------------------------------------------------------------------

    def save_state(self, step: int, optimizer, extra: dict) -> None:
        """Write what --resume needs: optimizer, step, and `extra` (random state, data position) of every rank.

        Written under another name first: a run killed meanwhile leaves the old state whole."""
        extras = gather_objects(extra, self.accelerator)
        if self.writes:
            state = {"step": step, "optimizer": optimizer.state_dict(), "ranks": extras}
            torch.save(state, self.folder / "state.pt.partial")
            os.replace(self.folder / "state.pt.partial", self.folder / "state.pt")

    def load_state(self, optimizer) -> dict | None:
        """Restore the optimizer; returns this rank's `extra`, None if there is no state yet.

        Log lines after the saved step are dropped: those steps will be done again."""
        file = self.folder / "state.pt"
        if not (self.config.resume and file.exists()):
            self.forget_after(0)  # of a run that was stopped before its first checkpoint
            return None
        state = torch.load(file, weights_only=True, map_location="cpu")
        if len(state["ranks"]) != self.accelerator.num_processes:
            raise ValueError(f"--resume {self.folder}: saved by {len(state['ranks'])} processes, "
                             f"now {self.accelerator.num_processes}")
        optimizer.load_state_dict(state["optimizer"])
        self.start = state["step"]
        self.forget_after(self.start)
        self.say(f"resuming {self.folder} after step {self.start}")
        return state["ranks"][self.accelerator.process_index]

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps from the logs."""
        for path in (self.folder / "metrics.jsonl", self.folder / "samples.jsonl"):
            if self.writes and path.exists():
                kept = [record for record in read_jsonl(path) if record["step"] <= step]
                path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))

    def model_folder(self, step: int) -> Path:
        return self.folder / f"step_{step:05d}"

    def latest_model(self) -> str | None:
        """The model folder that belongs to state.pt, or None."""
        file = self.folder / "state.pt"
        if not (self.config.resume and file.exists()):
            return None
        return str(self.model_folder(torch.load(file, weights_only=True, map_location="cpu", mmap=True)["step"]))


def read_jsonl(file: Path) -> list[dict]:
    """Records of a file, one a line. Trap: `splitlines` also splits at U+2028 and its like, which JSON lets stand
    and a model may well write (test_odd_line_breaks_survive)."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def gather_objects(value, accelerator: Accelerator) -> list:
    """One value of every rank, on every rank."""
    if accelerator.num_processes == 1:
        return [value]
    values = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(values, value)
    return values


def sum_over_ranks(sums: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Add each entry up over ranks. Metrics are sums and counts until the very end, and divided once:
    a mean of the ranks' means would weigh a short completion more than a long one."""
    values = torch.tensor([float(v) for v in sums.values()], dtype=torch.float64, device="cpu")
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values.to(accelerator.device), "sum").cpu()
    return dict(zip(sums, values.tolist()))


def make_accelerator(config) -> Accelerator:
    """bf16 autocast on a GPU, fp32 on a CPU, unless --precision says otherwise.

    Gradient accumulation stays out of accelerate's hands: its `backward` would divide by the number of
    micro-batches, and the normaliser, which is half of the lesson, would disappear from the stage."""
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() else "no"
    if config.log_with and config.log_with not in (available := [str(t.value) for t in get_available_trackers()]):
        raise ValueError(f"--log_with {config.log_with}: not installed, or no tracker of accelerate's; here: {available}")
    accelerator = Accelerator(mixed_precision=precision, log_with=config.log_with or None,
                              project_dir=config.run_dir or "runs",
                              kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)])
    return accelerator


def learning_rate(step: int, config, steps: int) -> float:
    """Of step 0, 1, ...: linear warm-up, then constant, or cosine down to a tenth (MM-EUREKA)."""
    rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine":
        done = max(0, step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        rate *= 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
    return rate


# --- 3. Pictures of a run ------------------------------------------------------------------------


def plot_curves(records: list[dict], panels: dict[str, list[str]], file: Path, title: str) -> None:
    """One panel for each entry of `panels` (title -> names of metrics), all over the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {title: [m for m in metrics if any(m in r for r in records)] for title, metrics in panels.items()}
    panels = {title: metrics for title, metrics in panels.items() if metrics}
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.0), layout="constrained", squeeze=False)
    for axis, (name, metrics) in zip(axes[0], panels.items()):
        for metric in metrics:
            points = [(r["step"], r[metric]) for r in records if r.get(metric) is not None]
            axis.plot(*zip(*points) if points else ([], []), label=metric)
        axis.set(title=name, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    plt.close(figure)
