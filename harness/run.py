"""A run and its folder: settings, logs, samples, checkpoints and exact resume.

    runs/NAME/
        .lock            keeps a second run out while this one lives
        config.json      the settings of the run, and the history of their changes by --resume
        metrics.jsonl    one line per step
        samples.jsonl    prompts, image files, responses, rewards and reasons, every few steps
        images/          the images that samples.jsonl names
        curves.png       the metrics as curves
        tensorboard/     with --log_with tensorboard: metrics, completions and images
        step_00020/      a model folder that `from_pretrained` opens, every --save_every steps
        model/           the model folder of the last step
        state.pt         optimizer, step, data position and random states: what --resume needs
        optimizer_00020/ with --shard: the shards of the optimizer that belong to state.pt
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from harness import stopping
from harness.cli import split_names
from harness.lock import NAME as LOCK_NAME
from harness.lock import free_lock, is_used, take_lock
from harness.plots import plot_curves
from harness.ranks import gather_objects
from harness.resume import (
    change_of,
    check_changes,
    code_of_stage,
    command_to_resume,
    read_config,
    record_settings,
)
from harness.trackers import log_sample, start_trackers
from model.images import load_image
from model.loading import check_folder, save_model
from model.prompts import PromptEncoder
from model.sharding import load_optimizer, save_optimizer


class Run:
    """The folder of one run.

    config    the settings of the stage, a dataclass with those of `settings.RunFolder`
    stage     name of the stage, for the folder's name if --run_dir is empty
    columns   the metrics that `log` prints on the terminal

    Every process calls the same methods, but only the main process writes. A stage that trains
    calls them in this order:

        run = Run(config, "grpo", accelerator)                       the folder is ready
        policy, encoder = load_model(run.latest_model() or start)    with --resume: the last one
        extra = run.load_state(policies.optimizer)                   sets run.start_step
        for step in range(run.start_step + 1, steps + 1): ...        log, sample, save_checkpoint,
                                                                     stop_if_asked
        run.finish_training(...)
    """

    def __init__(self, config, stage: str, accelerator: Accelerator, columns: list[str] = ()):
        self.config = config
        self.stage = stage
        self.accelerator = accelerator
        self.columns = columns
        self.columns_shown = []  # those in the last header on the terminal
        self.writes = accelerator.is_main_process
        self.ranks = accelerator.num_processes
        self.start_step = 0  # steps that were done before this process started
        self.worked_s = 0.0  # seconds spent in the steps of this process
        self.understood = False  # what was understood of the data has been said
        self.stop_signal = None  # of Ctrl-C or SIGTERM, once all ranks know of it

        name = config.run_dir or f"runs/{stage}_{time.strftime('%Y%m%d_%H%M%S')}"
        name = gather_objects(name, accelerator)[0]  # ranks may start in different seconds
        self.folder = Path(name)
        if self.folder.is_file():
            raise ValueError(f"--run_dir {name}: that is a file, wanted a folder")
        self.prepare_folder(name)

        # After `prepare_folder`, which must find the folder empty: a tracker writes into it.
        start_trackers(accelerator, config, self.folder, self.saved_step())

    def prepare_folder(self, name: str) -> None:
        """Check the folder, lock it, empty it if --overwrite says so, and write config.json.

        With --resume the settings must be those of the run that is there (`harness/resume.py`).

        Raises FileExistsError if the folder is not empty and neither --resume nor --overwrite is
        given. Also raises it if the folder is not that of a run, or that of another stage: such a
        folder is never emptied.
        Raises ValueError if another run writes there, or if --resume does not fit.
        """
        used = is_used(self.folder)
        if used and not (self.config.resume or self.config.overwrite):
            raise FileExistsError(
                f"--run_dir {name} is not empty: --resume continues the run there"
                f"{self.whose_run()}, --overwrite empties the folder"
            )
        if used and not (self.folder / "config.json").is_file():
            raise FileExistsError(
                f"--run_dir {name} is not the folder of a run (no config.json): "
                "it is left alone"
            )
        if used and self.config.overwrite and self.whose_run():
            raise FileExistsError(
                f"--run_dir {name} holds a run{self.whose_run()}, which --overwrite leaves alone: "
                "name another folder, or remove this one"
            )
        stored = read_config(self.folder) if self.config.resume else None
        history = self.history_of_changes(stored) if stored is not None else []
        self.lock_folder()

        if self.writes:
            if used and not self.config.resume:
                empty_run(self.folder)
            file = self.folder / "config.json"
            record_settings(self.config, self.stage, file, history, self.ranks, stored)
        self.accelerator.wait_for_everyone()

    def whose_run(self) -> str:
        """Words about a run of another stage in the folder, "" if it is one of this stage."""
        file = self.folder / "config.json"
        stage = json.loads(file.read_text()).get("stage") if file.is_file() else self.stage
        return f" (of {stage}, not of {self.stage})" if stage != self.stage else ""

    def history_of_changes(self, stored: dict) -> list[dict]:
        """The changes of settings so far, and those that this --resume makes; these are said.

        stored   the config.json of the run
        """
        changes = check_changes(self.config, self.stage, stored, self.ranks)
        steps, done = getattr(self.config, "steps", None), self.saved_step()
        if steps is not None and steps < done:
            raise ValueError(
                f"--resume --steps {steps}: {self.folder} has done {done} already; {done} writes "
                "its last model again, more goes on"
            )
        for name, (before, now) in changes.items():
            self.say(f"--resume with --{name} {now}, it was {before}")

        code = code_of_stage()
        if stored.get("code", code) != code:  # a variant, or a stage that was edited
            changes["code"] = [stored["code"], code]
            self.say(f"--resume with other code: {sys.argv[0]} is not the file that began this run "
                     "(a variant?), or it, common.py or rewards/ was edited since")

        history = stored.get("history", [])
        if changes:
            history = [*history, change_of(changes, done)]
        return history

    def lock_folder(self) -> None:
        """Keep other runs out. The main process takes the lock, and all ranks learn if it failed.

        They all raise: a rank that raised alone would leave the others waiting for it.
        """
        refusal = None
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                take_lock(self.folder)
            except ValueError as error:
                refusal = str(error)
        refusal = gather_objects(refusal, self.accelerator)[0]
        if refusal:
            raise ValueError(refusal)

    # --- messages and logs ----------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print once, from the main process."""
        if self.writes:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Print from any process, with its number: each process reads its own examples."""
        print(f"[{self.accelerator.process_index}] {text}", file=sys.stderr, flush=True)

    def log(self, step: int, steps: int, metrics: dict) -> None:
        """Log one step: a line of metrics.jsonl, a line on the terminal, the trackers.

        steps     how many steps the run has; the time that is left follows from it
        metrics   must hold `step_s`, the seconds of this step
        """
        self.accelerator.log(metrics, step=step)
        if self.writes:
            append_jsonl(self.folder / "metrics.jsonl", [{"step": step, **metrics}])
            self.worked_s += metrics["step_s"]
            seconds_per_step = self.worked_s / (step - self.start_step)
            progress = progress_bar(step, steps, seconds_left=seconds_per_step * (steps - step))
            self.print_metrics(step, metrics, progress)

    def print_metrics(self, step: int, metrics: dict, progress: str) -> None:
        """Print the metrics of a step as a line of an aligned table.

        A metric that has no value in this step gets a blank cell (test_no_value_is_a_blank_cell).
        """
        columns = [name for name in self.columns if name in metrics or name in self.columns_shown]
        if columns != self.columns_shown:  # the first line, or a metric with its first value
            self.columns_shown = columns
            print(table_line("step", {name: name for name in columns}, f"{'left':>7}"))

        cells = {name: f"{metrics[name]:.4g}" if name in metrics else "" for name in columns}
        print(table_line(str(step), cells, progress), flush=True)

    def sample(self, step: int, make_record: Callable[[], dict]) -> None:
        """Append one record to samples.jsonl, and save its images as files beside it.

        make_record   returns the record, with its `id`, and PIL images or paths as `images`; only
                      the main process calls it
        """
        if not self.writes:
            return
        (self.folder / "images").mkdir(exist_ok=True)

        record = {"step": step, **make_record()}
        file_id = record["id"].replace("/", "_")
        # `load_image` opens paths, and converts modes that PNG does not have (CMYK).
        images = [load_image(image, record["id"]) for image in record["images"]]
        names = []
        for i, image in enumerate(images):
            name = f"images/step{step}_{file_id}_{i}.png"
            image.save(self.folder / name)
            names.append(name)
        append_jsonl(self.folder / "samples.jsonl", [{**record, "images": names}])
        log_sample(self.accelerator, record, images)

    def records(self) -> list[dict]:
        """The metrics of all steps so far."""
        file = self.folder / "metrics.jsonl"
        return read_jsonl(file) if file.exists() else []

    def finish_training(
        self, policies, encoder: PromptEncoder, panels: dict, title: str, chance: float = 0.0
    ) -> None:
        """Write the last model and the curves, and end the run.

        policies   the `model.policies.Policies` of the run
        panels     title of a panel -> names of its metrics, see `plot_curves`
        chance     accuracy of the best blind guess, 0 if it is not known
        """
        save_model(policies.bare, encoder, self.folder / "model", self.writes)
        if self.writes:
            plot_curves(self.records(), panels, self.folder / "curves.png", title, chance)
        self.say(f"wrote {self.folder}/model, metrics.jsonl, curves.png")
        self.finish()

    def finish(self) -> None:
        """Wait until all ranks are here, and end the run.

        Trap: without the pause, most CPU runs of two processes hang at their end. The threads of
        gloo (PyTorch's communication on a CPU) still have tensors to free, which needs Python's
        lock, while the main thread holds that lock and waits for them. The pause lets the threads
        finish first (test_a_run_on_two_ranks).
        """
        self.accelerator.wait_for_everyone()
        time.sleep(0.1)
        self.accelerator.end_training()
        free_lock(self.folder)

    def stop_if_asked(self) -> None:
        """End the process if Ctrl-C or SIGTERM came to any rank, and say how to go on.

        It is called by all ranks, after a step that `is_time_to_save` has seen to be saved. The
        exit status is that of the signal, so that `make` does not start the next stage.
        """
        if self.stop_signal is None:
            return
        self.say(f"stopped as asked; to go on: {command_to_resume(self.folder, self.ranks)}")
        self.finish()
        sys.exit(128 + self.stop_signal)

    # --- checkpoints ----------------------------------------------------------------------------

    def is_time_to_save(self, step: int, steps: int) -> bool:
        """True every --save_every steps, after the last one, and when the run was asked to stop."""
        signals = gather_objects(stopping.asked(), self.accelerator)
        self.stop_signal = next((number for number in signals if number is not None), None)
        due = step == steps or step % self.config.save_every == 0
        return due or self.stop_signal is not None

    def save_checkpoint(self, step: int, policies, encoder: PromptEncoder, extra: dict) -> None:
        """Write the model folder of a step, then the state that belongs to it.

        policies   the `model.policies.Policies` of the run
        extra      this rank's random state and data position

        Raises ValueError, on all ranks, if the disk has no room for it: before anything is written.
        Raises ValueError if it cannot be written all the same. The last checkpoint stays whole.
        """
        extras = gather_objects(extra, self.accelerator)
        too_full = gather_objects(self.disk_too_full(policies), self.accelerator)[0]
        if too_full:
            raise ValueError(too_full)
        try:  # a sharded policy is gathered from all ranks
            save_model(policies.bare, encoder, self.model_folder(step), self.writes)
            self.save_state(step, policies.optimizer, extras)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"the checkpoint of step {step} could not be written ({error}); the one before is "
                "whole: make room, then go on with --resume"
            ) from error
        if self.writes:
            self.drop_old_checkpoints()

    def disk_too_full(self, policies) -> str | None:
        """What to say if weights and optimizer would not fit beside what is there, else None."""
        weights = list(policies.bare.parameters())
        needed = sum(w.nbytes for w in weights)
        needed += sum(2 * w.nbytes for w in weights if w.requires_grad)  # AdamW's two moments
        free = shutil.disk_usage(self.folder).free
        if free >= needed:
            return None
        return (
            f"--run_dir {self.folder}: a checkpoint needs {needed / 1e9:.1f} GB, the disk has "
            f"{free / 1e9:.1f} GB left. The last checkpoint is whole: make room (see --keep_last "
            "and --save_every) and go on with --resume"
        )

    def drop_old_checkpoints(self) -> None:
        """Delete all but the newest --keep_last checkpoints, and shards of older optimizers."""
        for folder in sorted(self.folder.glob("optimizer_*"))[:-1]:
            shutil.rmtree(folder)
        if self.config.keep_last:
            for folder in sorted(self.folder.glob("step_*"))[: -self.config.keep_last]:
                shutil.rmtree(folder)

    def save_state(self, step: int, optimizer, extras: list[dict]) -> None:
        """Write what --resume needs: step, optimizer, and the `extra` of every rank.

        It is written under another name first: a run that is killed while it writes keeps its old
        state.
        """
        optimizer_state = save_optimizer(optimizer, self.optimizer_folder(step))
        if not self.writes:
            return
        partial = self.folder / "state.pt.partial"
        state = {"step": step, "optimizer": optimizer_state, "ranks": extras}
        torch.save(state, partial)
        os.replace(partial, self.folder / "state.pt")

    def load_state(self, optimizer) -> dict | None:
        """Restore the optimizer and `start_step`. Returns this rank's `extra`, as it was saved.

        Returns None if there is no state to continue from: the run starts from its beginning.
        Log lines after the saved step are dropped, since those steps will be done again.
        """
        if not self.has_state():
            if self.config.resume:
                self.say(f"no checkpoint in {self.folder} yet: it starts from step 1 again")
            self.forget_after(0)  # the lines of a run that stopped before its first checkpoint
            return None

        file = self.folder / "state.pt"
        state = torch.load(file, weights_only=True, map_location="cpu")
        self.start_step = state["step"]
        load_optimizer(optimizer, state["optimizer"], self.optimizer_folder(self.start_step))
        self.forget_after(self.start_step)
        self.say(f"resuming {self.folder} after step {self.start_step}")
        if getattr(self.config, "steps", None) == self.start_step:
            self.say("all its steps are done; a larger --steps goes on")
        return state["ranks"][self.accelerator.process_index]

    def has_state(self) -> bool:
        """True if --resume is given and there is a state to continue from."""
        return self.config.resume and (self.folder / "state.pt").exists()

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps from the logs.

        Each log is written anew under another name, then renamed: a run that is killed meanwhile
        keeps its old log.
        """
        if not self.writes:
            return
        for file in (self.folder / "metrics.jsonl", self.folder / "samples.jsonl"):
            if file.exists():
                kept = [record for record in read_jsonl(file) if record["step"] <= step]
                partial = file.with_name(file.name + ".partial")
                partial.unlink(missing_ok=True)  # left by a run that was killed here
                append_jsonl(partial, kept)
                os.replace(partial, file)

    def model_folder(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.folder / f"step_{step:05d}"

    def optimizer_folder(self, step: int) -> Path:
        """The folder of a sharded optimizer's shards after a step."""
        return self.folder / f"optimizer_{step:05d}"

    def saved_step(self) -> int:
        """The step that state.pt belongs to, 0 without one."""
        file = self.folder / "state.pt"
        if not file.exists():
            return 0
        return torch.load(file, weights_only=True, map_location="cpu", mmap=True)["step"]

    def latest_model(self) -> str | None:
        """The model folder that belongs to state.pt; None if the run starts from its beginning."""
        return str(self.model_folder(self.saved_step())) if self.has_state() else None


def empty_run(folder: Path) -> None:
    """Empty the folder of a run, but for its lock.

    config.json goes last: a run that is killed here leaves a folder that is still known as a run's.
    """
    entries = [entry for entry in folder.iterdir() if entry.name not in (LOCK_NAME, "config.json")]
    for entry in [*entries, folder / "config.json"]:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def checkpoints(run_folder: Path, flag: str) -> list[tuple[int, Path]]:
    """(step, model folder) of each checkpoint of a training run; step 0 is the start model.

    Raises ValueError naming `flag` if the folder is not that of a run that trains a model.
    """
    config = run_folder / "config.json"
    if not config.is_file():
        raise ValueError(f"{flag} {run_folder}: not the folder of a run (no config.json)")
    start_model = json.loads(config.read_text()).get("model")
    if start_model is None:
        raise ValueError(f"{flag} {run_folder}: that stage trains no model: no checkpoints")

    found = [(0, Path(start_model))]
    for folder in sorted(run_folder.glob("step_*")):
        step = int(folder.name.removeprefix("step_"))
        found.append((step, folder))
    return found


def all_model_folders(models: str, gf_runs: str) -> list[str]:
    """The folders of --models, and those of all checkpoints of --gf_runs."""
    folders = list(split_names(models, "--models").values())
    for run_folder in split_names(gf_runs, "--gf_runs").values():
        folders += [str(folder) for _, folder in checkpoints(Path(run_folder), "--gf_runs")]
    return folders


def check_models(models: str, flag: str) -> None:
    """Raise ValueError naming the flag of a model that is missing, before any is measured.

    A hub name passes: only loading can tell whether it exists.
    """
    for folder in split_names(models, flag).values():
        check_folder(folder, flag)


def check_runs(runs: str, flag: str) -> None:
    """The same for every checkpoint of each run."""
    for run_folder in split_names(runs, flag).values():
        for _, folder in checkpoints(Path(run_folder), flag):
            check_folder(str(folder), flag)


def table_line(step: str, cells: dict[str, str], progress: str) -> str:
    """One line of the table on the terminal; `cells` maps the name of a column to its text."""
    padded = [f"{text:>{max(7, len(name))}}" for name, text in cells.items()]
    return "  ".join([f"{step:>7}", *padded, progress])


def progress_bar(step: int, steps: int, seconds_left: float) -> str:
    """Time left, in minutes and seconds, and a bar of ten places: `3:20 ####......`."""
    minutes, seconds = divmod(int(seconds_left), 60)
    done = round(10 * step / steps)
    return f"{minutes}:{seconds:02} " + "#" * done + "." * (10 - done)


def append_jsonl(file: Path, records: list[dict]) -> None:
    """Append records to a file, one JSON object per line."""
    with open(file, "a", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_jsonl(file: Path, when_cut: Callable[[int], None] = lambda left: None) -> list[dict]:
    """The records of a file, one JSON object per line.

    A last line that is cut off is left out: a process that was killed while it wrote leaves one
    (test_a_line_that_is_cut_off_is_dropped). `when_cut` is then told how many records are left.

    Trap: `splitlines` also splits at U+2028 and other line separators. JSON allows them inside a
    string, and a model may write them (test_odd_line_breaks_survive).
    """
    *lines, last = file.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records += [json.loads(line)] if line else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not JSON ({error.msg})") from error
    if last:
        try:
            records.append(json.loads(last))
        except json.JSONDecodeError:
            when_cut(len(records))
    return records
