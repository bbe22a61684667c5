"""Public benchmarks: how each one asks, what it takes for an answer, and when that answer is right.

    benchmark.py    what a benchmark is, and how one is opened
    mathvista.py    one file for each benchmark: its prompt, extraction, rule and categories, as its
    mathverse.py    authors publish them
    mathvision.py
    mmmu.py
    mmmu_pro.py
    megabench.py, megabench_metrics.py
    toy.py          the embedded world in the same form, for trying things out
    letters.py      what the two MMMU rules share: which option's letter a response names
    latex_value.py  the value of a LaTeX expression, in a process of its own
    score_file.py   responses made elsewhere, scored and compared with official verdicts
    measure.py      what it takes to ask a model
    other_jobs.py   what evaluate.py does instead of an evaluation
    responses.py    the graded responses of an evaluation, as a file and as a report

The training reward (`rewards/`) is never a benchmark's rule: a change of one must not move the
other. Where the authors let a language model find the answer in a response, the finder of
`rewards/extract.py` does it here, the same for every model.

To add a benchmark, write its file and enter it below.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

from harness.cli import split_names
from rewards import Grade, Judge, grade
from rewards.judge import QUESTIONS_AT_A_TIME, ask_ahead
from scoring import mathverse, mathvision, mathvista, megabench, mmmu, mmmu_pro, toy
from scoring.benchmark import Benchmark, grade_response, open_benchmark
from sources import load_evaluation_sets, with_shuffled_images, with_unique_ids
from sources.toy import evaluation_sets

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (mathvista, mathverse, mathvision, mmmu, mmmu_pro, megabench, toy)
}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name. Raises ValueError naming --benchmark."""
    if name not in BENCHMARKS:
        raise ValueError(f"--benchmark {name}: wanted one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def grade_example(example: dict, response: str, judge: Judge | None = None) -> Grade:
    """By the rule of the example's benchmark; without one, as in training."""
    if example.get("benchmark"):
        return grade_response(find_benchmark(example["benchmark"]), example, response, judge)
    return grade(example, response, judge)


def ask_judge(responses: Iterable[tuple[dict, str]], judge: Judge | None) -> None:
    """Ask the judge, at once, all that the grades of these (example, response) depend on."""

    def dry_run(recorder) -> None:
        for example, response in responses:
            name = example.get("benchmark")
            if find_benchmark(name).asks_judge if name else example["answer_type"] == "text":
                grade_example(example, response, recorder)

    ask_ahead(judge, dry_run, at_a_time=QUESTIONS_AT_A_TIME)


def load_sets(
    cfg, warn: Callable[[str], None], say: Callable[[str], None] = print
) -> dict[str, list[dict]]:
    """The sets to measure every model on, by name, from the settings of evaluate.py.

    A benchmark is the set `id`; beside it `shuffled`, the same with the images of other questions.
    """
    settings = dict(count=cfg.items, seed=cfg.seed, instruction=cfg.instruction, warn=warn)
    if not cfg.benchmark:
        table = dict(split=cfg.split, columns=cfg.columns, revision=cfg.revision, say=say)
        return load_evaluation_sets(cfg.data, **table, **settings)
    sets = {"id": load_questions(cfg.benchmark, cfg.benchmark_dir, **settings)}
    shuffled = with_shuffled_images(sets["id"], warn)
    return {**sets, "shuffled": shuffled} if shuffled else sets


def load_questions(
    name: str,
    folder: str,
    *,
    count: int | None,
    seed: int,
    instruction: str | None,
    warn: Callable[[str], None],
) -> list[dict]:
    """The questions of a benchmark, see `open_benchmark`; `seed` is of those that `toy` draws."""
    if name == "toy":
        return toy.open_world(count, seed)
    examples = open_benchmark(find_benchmark(name), folder, count, instruction, warn)
    return with_unique_ids(examples, warn)


def load_gf_sets(cfg, warn: Callable[[str], None]) -> dict[str, list[dict]]:
    """The sets of GF by name, `id` first; without --gf_id the formats of the embedded world.

    Each is given as --data takes it, or as NAME or NAME:FOLDER of a benchmark.
    """
    if not cfg.gf_id:
        return evaluation_sets(cfg.gf_items, cfg.seed, formats_only=True)
    settings = dict(count=cfg.gf_items, seed=cfg.seed, instruction=cfg.instruction, warn=warn)
    sets = {}
    for name, source in {"id": cfg.gf_id, **split_names(cfg.gf_ood, "--gf_ood")}.items():
        benchmark, _, folder = source.partition(":")
        if benchmark in BENCHMARKS:
            sets[name] = load_questions(benchmark, folder, **settings)
        else:
            sets[name] = load_evaluation_sets(source, split=cfg.split, **settings)["id"]
    return sets


def category_rates(records: list[dict], rate: Callable[[list[dict]], dict]
                   ) -> dict[str, dict[str, dict]]:
    """Heading -> category -> rate. A record may belong to several categories, or to none."""
    members: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for heading, categories in (record.get("categories") or {}).items():
            for category in categories:
                members[heading][category].append(record)
    return {
        heading: {category: rate(found) for category, found in sorted(categories.items())}
        for heading, categories in members.items()
    }
