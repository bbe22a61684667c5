"""A run and its folder: settings, logs, samples, checkpoints and exact resume.

    runs/NAME/
        config.json      the settings of the run, written at its start
        metrics.jsonl    one line a step
        samples.jsonl    prompts, image files, responses, rewards and reasons, every few steps
        images/          the images that samples.jsonl names
        curves.png       the metrics as curves
        step_00020/      a model folder that `from_pretrained` opens, every --save_every steps
        model/           the last one
        state.pt         optimizer, step, data position and random states: what --resume needs
"""

import dataclasses
import json
import os
import shutil
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from harness.plots import plot_curves
from harness.ranks import gather_objects
from model.loading import save_model
from model.prompts import PromptEncoder, load_image


class Run:
    """The folder of one run.

    Every process calls the same methods, but only the main process writes.

    config: the settings of the stage, a dataclass with those of `settings.RunFolder`.
    stage: name of the stage, for the folder's name if --run_dir is empty.
    columns: the metrics that `log` prints on the terminal.
    """

    def __init__(self, config, stage: str, accelerator: Accelerator, columns: list[str] = ()):
        self.config = config
        self.stage = stage
        self.accelerator = accelerator
        self.columns = columns
        self.writes = accelerator.is_main_process
        self.start_step = 0  # steps that were done before this process started
        self.worked_s = 0.0  # seconds spent in the steps of this process

        name = config.run_dir or f"runs/{stage}_{time.strftime('%Y%m%d_%H%M%S')}"
        name = gather_objects(name, accelerator)[0]  # ranks may start in different seconds
        self.folder = Path(name)
        self.prepare_folder(name)

        # Only now: a tracker writes into the folder, which `prepare_folder` expects to find empty.
        if config.log_with:
            accelerator.init_trackers("specs", config=dataclasses.asdict(config))

    def prepare_folder(self, name: str) -> None:
        """Check the folder, empty it if --overwrite says so, and write config.json.

        Raises FileExistsError if it is not empty and neither --resume nor --overwrite is given,
        or if it is not the folder of a run: such a folder is never emptied.

        --resume goes on with the flags of now. They are not compared with the run's old ones, which
        config.json then no longer shows.
        """
        is_used = self.folder.exists() and any(self.folder.iterdir())
        if is_used and not (self.config.resume or self.config.overwrite):
            raise FileExistsError(
                f"--run_dir {name} is not empty: "
                "--resume goes on with it, --overwrite empties it"
            )
        if is_used and not (self.folder / "config.json").is_file():
            raise FileExistsError(
                f"--run_dir {name} holds other things than a run (no config.json): "
                "it is left alone"
            )
        self.accelerator.wait_for_everyone()

        if self.writes:
            if is_used and not self.config.resume:
                shutil.rmtree(self.folder)  # the checks above say that it is the folder of a run
            self.folder.mkdir(parents=True, exist_ok=True)
            settings = json.dumps(dataclasses.asdict(self.config), indent=2)
            (self.folder / "config.json").write_text(settings + "\n")
        self.accelerator.wait_for_everyone()

    # --- what is said and logged ----------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print once, from the main process."""
        if self.writes:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Print from any process, with its number: each process reads examples of its own."""
        print(f"[{self.accelerator.process_index}] {text}", file=sys.stderr, flush=True)

    def log(self, step: int, steps: int, metrics: dict) -> None:
        """Log one step: a line of metrics.jsonl, an aligned line on the terminal, the trackers.

        steps: how many steps the run has, for the time that is left.
        metrics: must hold `step_s`, the seconds of this step.
        """
        self.accelerator.log(metrics, step=step)
        if not self.writes:
            return
        append_jsonl(self.folder / "metrics.jsonl", [{"step": step, **metrics}])

        columns = [name for name in self.columns if name in metrics]
        if step == self.start_step + 1:
            header = [f"{name:>{max(7, len(name))}}" for name in columns]
            print("  ".join([f"{'step':>7}", *header, f"{'left':>7}"]))

        self.worked_s += metrics["step_s"]
        seconds_per_step = self.worked_s / (step - self.start_step)
        progress = progress_bar(step, steps, seconds_left=seconds_per_step * (steps - step))

        cells = [f"{metrics[name]:>{max(7, len(name))}.4g}" for name in columns]
        print("  ".join([f"{step:>7}", *cells, progress]), flush=True)

    def sample(self, record: dict, images: list) -> None:
        """Append one record to samples.jsonl, and save its images as files beside it.

        record: must hold `step` and `id`; they name the image files.
        images: PIL images or paths.
        """
        if not self.writes:
            return
        (self.folder / "images").mkdir(exist_ok=True)

        file_id = record["id"].replace("/", "_")
        names = []
        for i, image in enumerate(images):
            name = f"images/step{record['step']}_{file_id}_{i}.png"
            load_image(image, record["id"]).save(self.folder / name)  # opens paths, converts CMYK
            names.append(name)
        append_jsonl(self.folder / "samples.jsonl", [{**record, "images": names}])

    def records(self) -> list[dict]:
        """The metrics of all steps so far."""
        file = self.folder / "metrics.jsonl"
        return read_jsonl(file) if file.exists() else []

    def finish_training(self, policies, encoder: PromptEncoder, panels: dict, title: str) -> None:
        """Write the last model and the curves, and end the run. panels: see `plot_curves`."""
        if self.writes:
            save_model(policies.bare, encoder, self.folder / "model")
            plot_curves(self.records(), panels, self.folder / "curves.png", title)
        self.say(f"wrote {self.folder}/model, metrics.jsonl, curves.png")
        self.finish()

    def finish(self) -> None:
        """Wait until all ranks are here, and end the run.

        Trap: without the pause, most runs of two processes hang after their last line. The threads
        of gloo need Python's lock to free their last tensors; its destructor holds that lock while
        it waits for these threads. The pause lets them finish first (test_a_run_on_two_ranks).
        """
        self.accelerator.wait_for_everyone()
        time.sleep(0.1)
        self.accelerator.end_training()

    # --- checkpoints ----------------------------------------------------------------------------

    def save_checkpoint(self, step: int, policies, encoder: PromptEncoder, extra: dict) -> None:
        """Write the model folder of a step, then the state that belongs to it.

        policies: the `common.Policies` of the run. extra: see `save_state`.
        """
        if self.writes:
            save_model(policies.bare, encoder, self.model_folder(step))
        self.save_state(step, policies.optimizer, extra)

    def save_state(self, step: int, optimizer, extra: dict) -> None:
        """Write what --resume needs: step, optimizer, and `extra` of every rank.

        extra: this rank's random state and data position.

        The file is written under another name first: a run that is killed meanwhile keeps its old
        state.
        """
        extras = gather_objects(extra, self.accelerator)
        if self.writes:
            partial = self.folder / "state.pt.partial"
            state = {"step": step, "optimizer": optimizer.state_dict(), "ranks": extras}
            torch.save(state, partial)
            os.replace(partial, self.folder / "state.pt")

    def load_state(self, optimizer) -> dict | None:
        """Restore the optimizer and `start_step`. Returns this rank's `extra`, or None.

        None means that there is no state to go on from: the run starts from its beginning.
        Log lines after the saved step are dropped: those steps will be done again.
        Raises ValueError naming --resume if another number of processes saved the state.
        """
        if not self.has_state():
            self.forget_after(0)  # the lines of a run that stopped before its first checkpoint
            return None

        file = self.folder / "state.pt"
        state = torch.load(file, weights_only=True, map_location="cpu")
        if len(state["ranks"]) != self.accelerator.num_processes:
            raise ValueError(
                f"--resume {self.folder}: saved by {len(state['ranks'])} processes, "
                f"now {self.accelerator.num_processes}"
            )
        optimizer.load_state_dict(state["optimizer"])
        self.start_step = state["step"]
        self.forget_after(self.start_step)
        self.say(f"resuming {self.folder} after step {self.start_step}")
        return state["ranks"][self.accelerator.process_index]

    def has_state(self) -> bool:
        """True if --resume is given and there is a state to go on from."""
        return self.config.resume and (self.folder / "state.pt").exists()

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps from the logs."""
        for file in (self.folder / "metrics.jsonl", self.folder / "samples.jsonl"):
            if self.writes and file.exists():
                kept = [record for record in read_jsonl(file) if record["step"] <= step]
                file.write_text("")
                append_jsonl(file, kept)

    def model_folder(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.folder / f"step_{step:05d}"

    def latest_model(self) -> str | None:
        """The model folder that belongs to state.pt; None if the run starts from its beginning."""
        if not self.has_state():
            return None
        file = self.folder / "state.pt"
        state = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        return str(self.model_folder(state["step"]))


def checkpoints(run_folder: Path, flag: str) -> list[tuple[int, Path]]:
    """(step, model folder) of each checkpoint of a training run; its start model is step 0.

    Raises ValueError naming `flag` if the folder is not that of a run.
    """
    config = run_folder / "config.json"
    if not config.is_file():
        raise ValueError(f"{flag} {run_folder}: no config.json, not a run folder")
    start_model = json.loads(config.read_text())["model"]

    found = [(0, Path(start_model))]
    for folder in sorted(run_folder.glob("step_*")):
        step = int(folder.name.removeprefix("step_"))
        found.append((step, folder))
    return found


def progress_bar(step: int, steps: int, seconds_left: float) -> str:
    """Time left and a bar of ten places, for example `3:20 ####......`."""
    minutes = f"{seconds_left // 60:.0f}:{seconds_left % 60:02.0f}"
    done = round(10 * step / steps)
    return f"{minutes} " + "#" * done + "." * (10 - done)


def append_jsonl(file: Path, records: list[dict]) -> None:
    """Append records to a file, one JSON object a line."""
    with open(file, "a", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_jsonl(file: Path) -> list[dict]:
    """The records of a file, one JSON object a line.

    Trap: `splitlines` also splits at U+2028 and other line separators. JSON allows them inside a
    string, and a model may write them (test_odd_line_breaks_survive).
    """
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
