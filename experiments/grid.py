"""The six experiments as a list of tasks: which stages run for a seed, and with which flags.

    seed's own     zero -> pairs -> a cold start of each kind -> stage 3 from each, and evaluations
    shared         the larger teacher; the cost of a step

All cold starts of a seed see the same pairs in the same order, for the same number of steps; all
runs of stage 3 see the same questions in the same order, for the same number of steps.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.schedule import ROOT, Task

BASE = "toy/base"
RATES = ROOT / "experiments" / "rates.json"  # written by choose_rates.py

COLD = ("sft", "dpo", "hybrid")  # the cold starts that are compared; hybrid is DPO+SFT
LAMBDAS = {"lambda_0": "0", "lambda_half": "0.5"}  # beside hybrid, whose lambda is 1
SOURCES = ("source_base", "source_teacher")  # who writes chosen, beside zero
COST_SIDE = "112"  # pixels of an image, those of the world
REPORT_SEED = "7"  # of evaluate.py: nothing is chosen on these questions


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    name: str
    seeds: int  # of the comparison of starts
    few_seeds: int  # of the other experiments
    questions: int  # from which pairs are made
    stage1_steps: int
    stage3_steps: int
    cold_every: int  # steps between the checkpoints of a cold start
    rl_every: int  # steps between those of stage 3
    items: int  # questions a set for the final models
    curve_items: int  # questions a set for a checkpoint
    cost_rounds: int
    with_teacher: bool = False  # it is trained first, which takes half an hour of a core
    prompts_per_step: int = 16
    cost_steps: int = 12
    most_explored: int = 480  # questions of --more that pass@k and branching are measured on


PAPER = Scale("paper", 8, 5, 1536, 16, 100, 12, 25, 300, 100, 5, with_teacher=True)
QUICK = Scale("quick", 2, 2, 512, 16, 40, 8, 20, 120, 60, 3)
MINIATURE = Scale("miniature", 1, 1, 96, 2, 2, 4, 1, 12, 6, 1, prompts_per_step=4,
                  cost_steps=2, most_explored=12)
SCALES = {scale.name: scale for scale in (PAPER, QUICK, MINIATURE)}


def read_rates() -> dict[str, float]:
    """The learning rate of each cold start, chosen by choose_rates.py."""
    return json.loads(RATES.read_text())["chosen"]


def stage(folder: Path, file: str, *flags: str, needs: tuple[Task, ...] = ()) -> Task:
    """A stage that fills `folder`."""
    command = (sys.executable, file, *flags, "--run_dir", str(folder), "--overwrite")
    return Task(folder, command, needs)


# --- One seed ------------------------------------------------------------------------------------


class Pipeline:
    """The tasks of one seed, in the order in which they were asked for.

    Each method returns the task that it adds, for others to wait for.
    """

    def __init__(self, folder: Path, seed: int, scale: Scale, base: str = BASE):
        self.folder, self.scale, self.base = folder, scale, base
        self.seeds = {"zero": 10 * seed, "prefs": 10 * seed + 1, "rl": 10 * seed + 2}
        self.tasks: list[Task] = []

    def add(self, name: str, file: str, *flags: str, needs: tuple[Task, ...] = ()) -> Task:
        task = stage(self.folder / name, file, *flags, needs=needs)
        self.tasks.append(task)
        return task

    def zero(self, *flags: str) -> Task:
        """Stage 1."""
        return self.add(
            "zero", "grpo.py", "--model", self.base, "--seed", str(self.seeds["zero"]),
            "--steps", str(self.scale.stage1_steps),
            "--prompts_per_step", str(self.scale.prompts_per_step), *flags,
        )  # fmt: skip

    def prefs(self, name: str, zero: Task, *flags: str, needs: tuple[Task, ...] = ()) -> Task:
        """Stage 2a."""
        return self.add(
            name, "build_prefs.py", "--zero", f"{zero.folder}/model", "--base", self.base,
            "--seed", str(self.seeds["prefs"]), "--max_examples", str(self.scale.questions),
            *flags, needs=(zero, *needs),
        )  # fmt: skip

    def cold(self, name: str, prefs: Task, rate: float, *flags: str) -> Task:
        """Stage 2b; the same seed for all, and so the same order of the pairs."""
        return self.add(
            f"cold_{name}", "dpo_sft.py", "--model", self.base, "--pairs", str(prefs.folder),
            "--lr", f"{rate:g}", "--seed", str(self.seeds["zero"]),
            "--save_every", str(self.scale.cold_every), *flags, needs=(prefs,),
        )  # fmt: skip

    def rl(self, name: str, start: Task | None, *flags: str) -> Task:
        """Stage 3 from a start, None for the base; the same seed for all."""
        model = f"{start.folder}/model" if start else self.base
        return self.add(
            f"rl_{name}", "grpo.py", "--model", model, "--seed", str(self.seeds["rl"]),
            "--lr", "3e-4", "--schedule", "cosine", "--steps", str(self.scale.stage3_steps),
            "--save_every", str(self.scale.rl_every), "--sample_every", "20",
            "--prompts_per_step", str(self.scale.prompts_per_step), *flags,
            needs=(start,) if start else (),
        )  # fmt: skip

    def rl_variant(self, name: str, start: Task, variant: Task, *flags: str) -> Task:
        """Stage 3 by the patched copy of grpo.py in the folder of `variant`."""
        task = self.rl(name, start, *flags)
        command = list(task.command)
        command[1] = f"{variant.folder}/grpo.py"
        patched = replace(task, command=tuple(command), needs=(*task.needs, variant))
        self.tasks[-1] = patched
        return patched

    def evaluate(self, name: str, models: dict[str, str], needs: tuple[Task, ...],
                 items: int, *flags: str) -> Task:
        """Measure models by name -> folder, all on the same questions."""
        listed = ",".join(f"{model}={folder}" for model, folder in models.items())
        return self.add(
            name, "evaluate.py", "--models", listed, "--items", str(items),
            "--pass_items", "0", "--seed", REPORT_SEED, *flags, needs=needs,
        )  # fmt: skip

    def curves(self, name: str, runs: tuple[Task, ...]) -> Task:
        """Measure every checkpoint of some runs: see checkpoints.py."""
        listed = ",".join(f"{task.folder.name}={task.folder}" for task in runs)
        command = (
            sys.executable, "-m", "experiments.checkpoints", "--runs", listed,
            "--items", str(self.scale.curve_items), "--seed", REPORT_SEED,
            "--out", str(self.folder / name),
        )  # fmt: skip
        task = Task(self.folder / name, command, runs)
        self.tasks.append(task)
        return task


def seed_tasks(folder: Path, seed: int, scale: Scale, rates: dict[str, float],
               teacher: Task | None, with_few: bool) -> list[Task]:
    """All tasks of one seed.

    teacher    the task that trains the larger teacher, None to leave its arm out
    with_few   also the arms of experiments 4 and 5, which fewer seeds have
    """
    line = Pipeline(folder, seed, scale)
    zero = line.zero()
    prefs = line.prefs("prefs", zero)

    cold = {name: line.cold(name, prefs, rates[name], "--loss", name) for name in COLD}
    starts = {**cold, "base": None, "zero": zero}
    if with_few:
        for name, weight in LAMBDAS.items():
            line.cold(name, prefs, rates["hybrid"], "--sft_weight", weight)
        starts |= other_sources(line, zero, rates["hybrid"], teacher)
    rl = {name: line.rl(name, start) for name, start in starts.items()}

    line.curves("eval_cold", tuple(cold.values()))
    line.curves("eval_rl", tuple(rl[name] for name in (*COLD, "base", "zero")))
    line.evaluate("eval_models", end_models(line, starts, rl), tuple(rl.values()), scale.items)
    return line.tasks


def end_models(line: Pipeline, starts: dict[str, Task | None],
               rl: dict[str, Task]) -> dict[str, str]:
    """Name -> folder of every model that is the end of a stage."""
    models = {"base": line.base}
    for name, start in starts.items():
        if start is not None:
            models[start.folder.name] = f"{start.folder}/model"  # zero, cold_sft, ...
    for name, task in rl.items():
        models[f"rl_{name}"] = f"{task.folder}/model"
    return models


def other_sources(line: Pipeline, zero: Task, rate: float,
                  teacher: Task | None) -> dict[str, Task]:
    """Cold starts by DPO+SFT whose chosen responses come from the base, or from the teacher."""
    starts = {}
    for name in SOURCES:
        if name == "source_base":
            prefs = line.prefs(f"prefs_{name}", zero, "--source", "base")
        elif teacher is not None:
            prefs = line.prefs(f"prefs_{name}", zero, "--source", teacher_model(teacher),
                               needs=(teacher,))
        else:
            continue
        starts[name] = line.cold(name, prefs, rate)
    return starts


# --- All of it -----------------------------------------------------------------------------------


def teacher_task(out: Path) -> Task:
    """A wider and deeper model of the same world that always lists and always obeys."""
    folder = out / "bases" / "teacher"
    command = (
        sys.executable, "toy/train_base.py", "--out", str(folder / "model"), "--width", "96",
        "--layers", "3", "--perception_steps", "1500", "--hard_steps", "1000",
        "--habit_steps", "0", "--obey", "1", "--sloppy", "0",
    )  # fmt: skip
    return Task(folder, command)


def teacher_model(teacher: Task) -> str:
    return f"{teacher.folder}/model"


def cost_tasks(out: Path, rounds: int, steps: int) -> list[Task]:
    """What a step of DPO+SFT costs beside one of SFT, each time in a process of its own."""
    tasks = []
    for i in range(rounds):
        folder = out / "cost" / str(i)
        command = (
            sys.executable, "benchmarks/hybrid.py", "--out", str(folder / "hybrid.json"),
            "--sides", COST_SIDE, "--steps", str(steps),
        )  # fmt: skip
        tasks.append(Task(folder, command, alone=True))
    return tasks


def paper_tasks(out: Path, scale: Scale, rates: dict[str, float]) -> list[Task]:
    """The six experiments. Seed after seed, so that what has ended so far can be looked at."""
    teacher = teacher_task(out) if scale.with_teacher else None
    tasks = cost_tasks(out, scale.cost_rounds, scale.cost_steps)
    if teacher is not None:
        tasks.append(teacher)
    for seed in range(scale.seeds):
        with_few = seed < scale.few_seeds
        tasks += seed_tasks(out / f"seed{seed}", seed, scale, rates, teacher, with_few)
    return tasks
