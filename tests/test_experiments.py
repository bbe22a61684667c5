"""The paper in miniature: the rule of the verdicts, the grid, the schedule, the small file."""

import json
import math
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from matplotlib.figure import Figure

from experiments import __main__ as main_module
from experiments import choose_rates, leave_out
from experiments.claims import EXPERIMENTS, OOD, judge, outcomes
from experiments.collect import collect, write_metrics
from experiments.figures import FIGURES
from experiments.grid import COLD, LAMBDAS, MINIATURE, PAPER, SOURCES, paper_tasks
from experiments.more_claims import more_outcomes
from experiments.more_grid import BRANCHING, GRPO_ARMS, VARIANTS, more_tasks, slug
from experiments.schedule import Task, next_task, run_all
from experiments.verdict import (
    AGREES,
    CANNOT_TELL,
    DISAGREES,
    T_975,
    mean_interval,
    paired_differences,
    verdict,
)
from harness.cli import parse_cli
from test_cli import STAGES, stage_module

ROOT = Path(__file__).parent.parent
RATES = {"sft": 1e-4, "dpo": 2e-4, "hybrid": 2e-4}

# --- The rule ------------------------------------------------------------------------------------


def student_tail(t: float, freedom: int, steps: int = 1000) -> float:
    """P(T > t), by Simpson's rule on the density, x = t + u / (1 - u)."""
    norm = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2)
    norm /= math.sqrt(freedom * math.pi)

    def integrand(u: float) -> float:
        if u == 1:
            return 0.0 if freedom > 1 else norm * freedom  # its limit
        x = t + u / (1 - u)
        return norm * (1 + x * x / freedom) ** (-(freedom + 1) / 2) / (1 - u) ** 2

    h = 1 / steps
    total = integrand(0) + integrand(1)
    for i in range(1, steps):
        total += (4 if i % 2 else 2) * integrand(i * h)
    return total * h / 3


@pytest.mark.parametrize("freedom", sorted(T_975))
def test_the_table_is_students_t(freedom):
    """Above each entry lies 2.5 % of the density, which is integrated here."""
    assert student_tail(T_975[freedom], freedom) == pytest.approx(0.025, abs=3e-5)


def test_verdicts():
    """The whole interval on one side of 0, or no verdict; one seed never gives one."""
    assert verdict([1.0, 1.1, 0.9]) == AGREES
    assert verdict([-1.0, -1.1, -0.9]) == DISAGREES
    assert verdict([1.0, 2.0, -2.0]) == CANNOT_TELL
    assert verdict([5.0]) == verdict([]) == CANNOT_TELL
    assert verdict([0.5, 0.5]) == AGREES, "no spread at all"
    assert verdict([0.0, 0.0]) == CANNOT_TELL


def test_interval_against_the_textbook():
    """Six values worked by hand: mean 3.5, sd 1.8708, half 2.571 * 1.8708 / sqrt(6) = 1.9636."""
    interval = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert interval.mean == 3.5
    assert interval.low == pytest.approx(3.5 - 1.9636, abs=1e-3)
    assert interval.high == pytest.approx(3.5 + 1.9636, abs=1e-3)


def test_of_arms_that_do_not_differ_one_in_twenty_gets_a_verdict():
    """1,000 comparisons of eight seeds without any difference: 5 % fall on one side.

    With 1.96 instead of Student's t it would be 9 %, which is shown to differ.
    """
    rng = random.Random(0)
    drawn = [[rng.gauss(0, 0.02) for _ in range(8)] for _ in range(1000)]
    decided = sum(verdict(differences) != CANNOT_TELL for differences in drawn) / len(drawn)
    assert 0.035 < decided < 0.065

    too_narrow = 0
    for values in drawn:
        half = 1.96 * statistics.stdev(values) / 8**0.5
        too_narrow += abs(statistics.mean(values)) > half
    assert too_narrow / len(drawn) > 0.07


def test_pairing_sees_what_two_separate_means_do_not():
    """Seeds differ by far more than the arms do; the difference within a seed is steady."""
    smaller = {"0": 0.40, "1": 0.60, "2": 0.80}
    larger = {"0": 0.42, "1": 0.621, "2": 0.819, "3": 0.1}  # the other arm has no seed 3
    differences = paired_differences(larger, smaller)
    assert differences == pytest.approx([0.02, 0.021, 0.019])
    assert verdict(differences) == AGREES

    first = mean_interval([larger[seed] for seed in smaller])
    second = mean_interval(list(smaller.values()))
    assert first.low < second.high, "unpaired, the intervals overlap by far"


# --- Claims --------------------------------------------------------------------------------------


def rates(value: float) -> dict:
    sets = ("id", "greedy", "shuffled", *[name for names in OOD.values() for name in names])
    return {name: {"format": value, "accuracy": value / 2} for name in sets}


def seed_of_everything(seed: int, gap: float) -> dict:
    """Results of one of three seeds, with every arm: DPO+SFT is above the others by about `gap`."""
    arms = [*COLD, "base", "zero", *LAMBDAS, *SOURCES, "coupled", "verified", "unverified"]
    arms += [*GRPO_ARMS, *VARIANTS]

    def level(arm: str) -> float:
        return 0.6 + (gap + 0.01 * (seed - 1) if arm in ("hybrid", "verified") else 0.0)

    models = {"base": rates(0.4), "zero": rates(0.6)}
    for arm in arms:
        models |= {f"cold_{arm}": rates(level(arm)), f"rl_{arm}": rates(level(arm))}
    more = dict(models)
    for name in ("no tags", "no answer tags", "no think tags", "think around all",
                 "answer in words"):  # fmt: skip
        more[f"cold_{slug(name)}"] = rates(level(name))

    curve = {arm: [{"step": 0, "sets": rates(0.4)}, {"step": 8, "sets": rates(level(arm))},
                   {"step": 16, "sets": rates(level(arm))}] for arm in arms}  # fmt: skip
    logs = {arm: {"format": [0.9, 0.95, 0.9, level(arm)], "loss": [0.0] * 4} for arm in arms}
    losses = {arm: {"chosen_reward": [level(arm)] * 6, "rejected_reward": [-level(arm)] * 6,
                    "margin": [level(arm)] * 6} for arm in arms}  # fmt: skip
    explored = {"pass@k": {str(k): level("") for k in (8, 64)}, "branching": level("")}
    return {
        "models": models, "cold": curve, "rl": curve, "losses": losses, "curves": logs,
        "more": more, "inconsistent": models,
        "explore": {str(n): {"hybrid": explored, "sft": explored} for n in BRANCHING},
    }  # fmt: skip


def made_up_metrics(gap: float, seeds: int = 3) -> dict:
    results = {str(seed): seed_of_everything(seed, gap) for seed in range(seeds)}
    return {"cost": [1.05, 1.06, 1.055], "seeds": results}


def test_every_claim_reads_its_numbers():
    """No quantity names an arm, a set or a metric that the grid does not measure."""
    for title, judged in outcomes(made_up_metrics(0.2)) + more_outcomes(made_up_metrics(0.2)):
        for outcome in judged:
            assert outcome.difference.count == 3, f"{title}: {outcome.claim.text}"
            assert outcome.verdict in outcome.sentence()


@pytest.mark.parametrize("gap, expected", [(0.2, AGREES), (-0.2, DISAGREES), (0.0, CANNOT_TELL)])
def test_the_direction_is_the_papers(gap, expected):
    """If DPO+SFT is above SFT, the claims that say so agree; if it is below, they disagree."""
    metrics = made_up_metrics(gap)
    for experiment, text in ((0, "GF at the last step"), (2, "right more often")):
        claim = next(c for c in EXPERIMENTS[experiment].claims if text in c.text)
        assert judge(claim, metrics).verdict == expected


def test_what_has_not_ended_has_no_verdict():
    """An arm that is missing in all seeds but one leaves one pair, and no verdict."""
    metrics = made_up_metrics(0.2)
    for seed in ("1", "2"):
        del metrics["seeds"][seed]["models"]["rl_sft"]
    claim = next(c for c in EXPERIMENTS[2].claims if "right more often" in c.text)
    outcome = judge(claim, metrics)
    assert outcome.difference.count == 1
    assert outcome.verdict == CANNOT_TELL


def test_cost_is_judged_against_a_bound():
    """1.05 is almost nothing, 1.4 is not."""
    metrics = made_up_metrics(0.0)
    assert outcomes(metrics)[-1][1][0].verdict == AGREES
    expensive = {**metrics, "cost": [1.39, 1.41, 1.40]}
    assert outcomes(expensive)[-1][1][0].verdict == DISAGREES


# --- The grid ------------------------------------------------------------------------------------


def flags_of(task: Task) -> dict[str, str]:
    """Flag -> value of a task's command, for flags that have one."""
    words = task.command
    return {a: b for a, b in zip(words, words[1:]) if a.startswith("--")}


ONE_SEED = replace(PAPER, seeds=1, few_seeds=1)


@pytest.mark.parametrize("scale", [ONE_SEED, MINIATURE], ids=lambda scale: scale.name)
def test_every_command_of_the_grid_is_one_that_the_stage_takes(tmp_path, scale):
    """Each flag and value passes the stage's own parser; each task comes after what it needs."""
    tasks = paper_tasks(tmp_path, scale, RATES) + more_tasks(tmp_path, scale, RATES)
    seen, stages = set(), 0
    for task in tasks:
        assert {need.folder for need in task.needs} <= seen, task.folder
        seen.add(task.folder)
        file = Path(task.command[1]).name
        if file in STAGES:
            stages += 1
            config = parse_cli(stage_module(file).Config, "", list(task.command[2:]))
            assert config.run_dir == str(task.folder)
    assert stages > 20
    explored = [flags_of(task)["--items"] for task in tasks if "explore_" in task.folder.name]
    assert explored == (["120", "240", "480"] if scale is ONE_SEED else ["12"] * 3)

    same_folder = {}
    for task in tasks:  # what both lists hold is the same task
        assert same_folder.setdefault(task.folder, task.key()) == task.key()


def test_cold_starts_of_a_seed_see_the_same_pairs_in_the_same_order(tmp_path):
    """They differ in loss, its weight, the learning rate and the folder, and in nothing else."""
    tasks = {task.folder.name: task for task in paper_tasks(tmp_path, MINIATURE, RATES)}
    cold = [flags_of(tasks[f"cold_{name}"]) for name in (*COLD, *LAMBDAS)]
    differ = {"--loss", "--sft_weight", "--lr", "--run_dir"}
    for flags in cold:
        assert {k: v for k, v in flags.items() if k not in differ} == {
            k: v for k, v in cold[0].items() if k not in differ
        }
    assert [flags_of(tasks[f"cold_{name}"])["--lr"] for name in COLD] == ["0.0001"] + ["0.0002"] * 2

    rl = [flags_of(tasks[f"rl_{name}"]) for name in (*COLD, "base", "zero")]
    differ = {"--model", "--run_dir"}
    assert len({json.dumps({k: v for k, v in f.items() if k not in differ}) for f in rl}) == 1


# --- The schedule --------------------------------------------------------------------------------


def noting(folder: Path, note: str, *needs: Task, alone: bool = False) -> Task:
    """A task that appends a line to a file beside its folder."""
    file = folder.parent / "notes"
    command = ("sh", "-c", f"echo {note} >> {file}")
    return Task(folder, command, needs, alone)


def notes(tmp_path: Path) -> list[str]:
    return (tmp_path / "notes").read_text().split()


def test_a_list_can_be_given_again(tmp_path):
    """What ended is kept; a changed command runs again, and so does what depends on it."""
    first = noting(tmp_path / "a", "a")
    second, other = noting(tmp_path / "b", "b", first), noting(tmp_path / "c", "c")
    for _ in range(2):
        assert run_all([first, second, other, first], jobs=2, say=lambda text: None)
    assert sorted(notes(tmp_path)) == ["a", "b", "c"]
    assert notes(tmp_path).index("a") < notes(tmp_path).index("b")

    changed = noting(tmp_path / "a", "a2")
    run_all([changed, replace(second, needs=(changed,)), other], jobs=1, say=lambda text: None)
    assert notes(tmp_path)[3:] == ["a2", "b"]


def test_a_failed_task_is_named_and_runs_again(tmp_path):
    """The error shows the end of its log; nothing that needs it was started."""
    broken = Task(tmp_path / "x", ("sh", "-c", "echo the cause; exit 3"))
    after = noting(tmp_path / "y", "y", broken)
    with pytest.raises(RuntimeError, match="the cause"):
        run_all([broken, after], jobs=2, say=lambda text: None)
    assert not (tmp_path / "notes").exists()
    assert not broken.has_ended()

    mended = Task(tmp_path / "x", ("true",))
    assert run_all([mended, replace(after, needs=(mended,))], jobs=1, say=lambda text: None)


def test_a_task_alone_is_not_overtaken(tmp_path):
    """While others run it waits, and later tasks wait behind it; while it runs, nothing starts."""
    alone = noting(tmp_path / "alone", "alone", alone=True)
    running, later = noting(tmp_path / "r", "r"), noting(tmp_path / "l", "l")
    assert next_task([alone, later], [running], jobs=4) is None
    assert next_task([alone, later], [], jobs=4) is alone
    assert next_task([later], [alone], jobs=4) is None
    assert next_task([later], [running], jobs=4) is later
    assert next_task([later], [running], jobs=1) is None


def test_when_the_time_is_up_nothing_new_starts(tmp_path):
    """What runs ends; the rest is left for the next time."""
    slow = Task(tmp_path / "slow", ("sleep", "0.3"))
    rest = noting(tmp_path / "rest", "rest", slow)
    assert not run_all([slow, rest], jobs=1, minutes=1e-3, say=lambda text: None)
    assert slow.has_ended() and not rest.has_ended()
    assert run_all([slow, rest], jobs=1, say=lambda text: None)


# --- The small file, rates, pairs ----------------------------------------------------------------


def test_from_metrics_draws_without_a_run(tmp_path, capsys):
    """metrics.json is all that the verdicts and the two figures need."""
    write_metrics(made_up_metrics(0.1), tmp_path / "metrics.json")
    main_module.main(["--from_metrics", str(tmp_path / "metrics.json")])
    assert (tmp_path / "gf.png").stat().st_size > 5000
    assert (tmp_path / "rl.png").stat().st_size > 5000
    assert "agrees" in capsys.readouterr().out


def test_a_grid_without_results_has_neither_verdicts_nor_errors(tmp_path):
    """It may be looked at before anything has ended."""
    metrics = collect(tmp_path)
    assert metrics == {"cost": [], "seeds": {}}
    assert all(o.verdict == CANNOT_TELL for _, judged in outcomes(metrics) for o in judged)
    for panels in FIGURES.values():
        for panel in panels:
            panel(Figure().subplots(), metrics)


def test_the_rate_with_the_best_reward_is_chosen():
    """The mean over seeds of 0.5 format + accuracy; of equal ones the lower rate."""

    def measured(best: dict[str, float]) -> dict:
        models = {}
        for loss in COLD:
            for rate in choose_rates.GRID:
                right = 0.5 if rate == best.get(loss) else 0.4
                models[f"{loss}_{rate:g}"] = {"id": {"format": 0.8, "accuracy": right}}
        return models

    chosen = choose_rates.choose([measured({"sft": 4e-4, "dpo": 1e-4}), measured({"sft": 4e-4})])
    assert chosen["chosen"] == {"sft": 4e-4, "dpo": 1e-4, "hybrid": 1e-4}
    assert chosen["mean reward on the development set"]["sft"]["0.0004"] == 0.9


def test_pairs_of_one_corruption_are_left_out(tmp_path):
    """The others stay, in their order."""
    folder = tmp_path / "prefs" / "data"
    folder.mkdir(parents=True)
    pairs = Dataset.from_dict({"id": list("abc"), "corruption": ["x", "y", "x"]})
    pairs.to_parquet(folder / "train-00000-of-00001.parquet")
    leave_out.main([str(tmp_path / "prefs"), str(tmp_path / "out"), "--corruption", "x"])
    left = Dataset.from_parquet(str(tmp_path / "out/data/train-00000-of-00001.parquet"))
    assert left["id"][:] == ["b"]


@pytest.mark.slow
def test_the_grid_in_miniature(tmp_path):
    """Every stage of the six experiments once, then the page about them."""
    out = tmp_path / "paper"
    command = [sys.executable, "-m", "experiments", "--scale", "miniature", "--out", str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "One seed only" in result.stdout, "one seed gives numbers and no verdict"

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    total = again.stdout.split(" tasks had ended before")[0].split(" of ")
    assert total[0] == total[1], "given again, nothing runs again"

    command = [sys.executable, "-m", "report", str(out)]
    command += ["--experiments", str(out / "metrics.json")]
    subprocess.run(command, cwd=ROOT, check=True)
    page = (out / "page.html").read_text()
    assert "Generalisation of the cold start" in page
    assert "1. From rewards to advantages" in page
