"""`make paper-more` as a list of tasks, three seeds: what else the paper says, and what is ours.

    coupled        pairs whose rejected is wrong as well
    verification   a world whose zero contradicts itself more often, with and without the check
    exploration    pass@k up to 64, and branching at 120, 240 and 480 questions
    grpo           stage 3 with one thing changed: clip, normaliser, std, dynamic sampling,
                   updates per rollout, weight of the format reward, the variants
    leave_out      the cold start without one of the five corruptions: does its format survive?

Everything that the six experiments have as well (zero, pairs, DPO+SFT, its stage 3) is the same
task in the same folder, and runs once.
"""

import sys
from dataclasses import replace
from pathlib import Path

from build_prefs import CORRUPTIONS
from experiments.grid import REPORT_SEED, Pipeline, Scale
from experiments.schedule import Task

SEEDS = 3
CONTRADICT = "0.22"  # 14 to 24 % of right answers, 18 % in the mean of three seeds (LOG.md)

GRPO_ARMS = {  # name -> the flags that change in stage 3
    "clip_symmetric": ("--clip_high", "0.2"),
    "dr_grpo": ("--no_divide_by_std", "--constant_normalizer"),
    "no_std": ("--no_divide_by_std",),
    "constant_normalizer": ("--constant_normalizer",),
    "dynamic": ("--dynamic_sampling",),
    "updates_1": ("--updates_per_rollout", "1"),
    "updates_8": ("--updates_per_rollout", "8"),
    "format_0": ("--reward_weights", "format=0,accuracy=1"),
    "format_1": ("--reward_weights", "format=1,accuracy=1"),
}
VARIANTS = {"gspo": ("--clip_low", "3e-4", "--clip_high", "4e-4"), "rloo": ()}
BRANCHING = (120, 240, 480)  # questions, as in the paper
UPDATES_8_PROMPTS = 8  # --prompts_per_step must be a multiple of --updates_per_rollout


def slug(corruption: str) -> str:
    """The name of a corruption in the name of a folder."""
    return "without_" + corruption.replace(" ", "_")


def more_tasks(out: Path, scale: Scale, rates: dict[str, float]) -> list[Task]:
    """All tasks beyond the six experiments, and those of theirs that these need."""
    seeds = min(SEEDS, scale.seeds)
    variants = {name: variant_task(out, name) for name in VARIANTS}
    tasks = list(variants.values())
    for seed in range(seeds):
        tasks += more_of_seed(out / f"seed{seed}", seed, scale, rates, variants)

    if scale.with_teacher:  # the scales that train bases of their own
        base = inconsistent_base(out)
        tasks.append(base)
        for seed in range(seeds):
            tasks += verification(out / f"inconsistent{seed}", seed, scale, rates, base)
    return tasks


def more_of_seed(folder: Path, seed: int, scale: Scale, rates: dict[str, float],
                 variants: dict[str, Task]) -> list[Task]:
    """Coupled pairs, stage 3 changed, corruptions left out, exploration."""
    line = Pipeline(folder, seed, scale)
    rate = rates["hybrid"]
    zero = line.zero()
    prefs = line.prefs("prefs", zero)
    hybrid = line.cold("hybrid", prefs, rate, "--loss", "hybrid")
    sft = line.cold("sft", prefs, rates["sft"], "--loss", "sft")

    coupled = line.cold("coupled", line.prefs("prefs_coupled", zero, "--coupled"), rate)
    rl = {"hybrid": line.rl("hybrid", hybrid), "coupled": line.rl("coupled", coupled)}
    for name, flags in GRPO_ARMS.items():
        rl[name] = line.rl(name, hybrid, *flags, *more_prompts(name, scale))
    for name, flags in VARIANTS.items():
        rl[name] = line.rl_variant(name, hybrid, variants[name], *flags)

    without = []
    for corruption in CORRUPTIONS:
        pairs = leave_out(line, prefs, corruption)
        without.append(line.cold(slug(corruption), pairs, rate))

    starts = [hybrid, coupled, *without]
    models = {"base": line.base, "zero": f"{zero.folder}/model"}
    models |= {task.folder.name: f"{task.folder}/model" for task in (*starts, *rl.values())}
    line.evaluate("eval_more", models, (*starts, *rl.values()), scale.items)
    explore(line, {"base": line.base, "sft": f"{sft.folder}/model",
                   "hybrid": f"{hybrid.folder}/model"}, (sft, hybrid))  # fmt: skip
    return line.tasks


def more_prompts(name: str, scale: Scale) -> tuple[str, ...]:
    """A rollout must have at least as many prompts as updates."""
    if name == "updates_8" and scale.prompts_per_step < UPDATES_8_PROMPTS:
        return ("--prompts_per_step", str(UPDATES_8_PROMPTS))
    return ()


def leave_out(line: Pipeline, prefs: Task, corruption: str) -> Task:
    """The pairs without those of one corruption."""
    folder = line.folder / f"prefs_{slug(corruption)}"
    command = (
        sys.executable, "-m", "experiments.leave_out", str(prefs.folder), str(folder),
        "--corruption", corruption,
    )  # fmt: skip
    task = Task(folder, command, (prefs,))
    line.tasks.append(task)
    return task


def explore(line: Pipeline, models: dict[str, str], needs: tuple[Task, ...]) -> None:
    """pass@k with 64 samples beside the first measurement of branching; the others without."""
    listed = ",".join(f"{name}={folder}" for name, folder in models.items())
    for i, questions in enumerate(BRANCHING):
        items = min(questions, line.scale.most_explored)
        samples = 64 if items == questions else 8
        line.add(
            f"explore_{questions}", "evaluate.py", "--models", listed, "--items", str(items),
            "--pass_items", str(min(60, items) if i == 0 else 0),
            "--pass_samples", str(samples), "--seed", REPORT_SEED, needs=needs,
        )  # fmt: skip


def variant_task(out: Path, name: str) -> Task:
    """The patched copy of a stage."""
    folder = out / "variants" / name
    return Task(folder, (sys.executable, "variants/apply.py", name, "--out", str(folder)))


# --- Verification --------------------------------------------------------------------------------


def inconsistent_base(out: Path) -> Task:
    """A base that contradicts itself more often."""
    folder = out / "bases" / "inconsistent"
    command = (
        sys.executable, "toy/train_base.py", "--out", str(folder / "model"),
        "--contradict", CONTRADICT,
    )  # fmt: skip
    return Task(folder, command)


def verification(folder: Path, seed: int, scale: Scale, rates: dict[str, float],
                 base: Task) -> list[Task]:
    """The pipeline on that base, with the check of consistency and without."""
    line = Pipeline(folder, seed, replace(scale), base=f"{base.folder}/model")
    zero = replace(line.zero(), needs=(base,))
    line.tasks[-1] = zero
    models, needs = {"zero": f"{zero.folder}/model"}, []
    for name, flags in (("verified", ()), ("unverified", ("--no_verify",))):
        cold = line.cold(name, line.prefs(f"prefs_{name}", zero, *flags), rates["hybrid"])
        final = line.rl(name, cold)
        needs += [cold, final]
        models |= {task.folder.name: f"{task.folder}/model" for task in (cold, final)}
    line.evaluate("eval_models", models, tuple(needs), scale.items)
    return line.tasks
