"""Measure any of the models: accuracy, format, generalisation, pass@k, branching.

    1. load the questions, set by set                            load_sets
    2. each model answers every set: a record for each response  model_records
       (completions.jsonl, a line each: response, extracted answer, gold, score)
    3. each checkpoint of --gf_runs answers the sets of GF       measure_gf
    4. records -> rates with intervals, a table                  summarize, write_report

The set `id` (in distribution) has questions like those of training, `shuffled` the same ones with
their images exchanged; all other sets are OOD (out of distribution). What is measured:

    format      share of responses in exactly the format that was asked for; outside of the embedded
                world always the think format, whatever the instruction says
    accuracy    share of right answers (of bounding boxes the mean score, 0 to 1). Responses are
                sampled at --temperature, 1 as in training; on `id` they are also decoded greedily
    shuffled    accuracy with another question's image. A model that does not look keeps its
                accuracy; one that looks loses it, and may end below `guessing`
    guessing    the best blind guess: to each kind of question its most common gold answer
    OOD         format and accuracy on formats, wordings, looks and tasks that stages 1 to 3 never
                had
    pass@k      chance that at least one of k samples is right (score 1); from n samples, c of them
                right, without bias: 1 - C(n-c, k) / C(n, k)
    branching   size of the 0.95 nucleus, averaged over the sampled tokens: how many tokens were
                likely there (arXiv 2508.07534)
    GF          generalisation factor at a checkpoint of a run (SPECS section 3.1), beta 2:
                    (1 + beta^2) g_ID g_OOD / (beta^2 g_ID + g_OOD),   g = rate now - at start
                beta > 1 weighs the gain on OOD more. The rate is format in the embedded world,
                accuracy on the sets of --gf_id and --gf_ood.

Where this departs from the paper, or fills in what it leaves open:
  1. GF is 0 where a gain is not positive: an F-measure has no meaning there. Each OOD format is
     shown beside their mean: a good mean can hide one lost format, for example one that resembles
     the rejected responses.
  2. Intervals are 95 %, over questions: Wilson's for rates, bootstrapped for pass@k. Wilson's takes
     each score for 0 or 1; those of bounding boxes scatter less, so it is too wide for them. The
     bootstrap's has no width where all questions have the same pass@k, as at 100 %: it knows of no
     others.
  3. GF has no interval. It is made of two gains, each a difference of two rates. Over 255 questions
     a rate near 50 % has an interval of +-6 points, such a difference one of +-9 (less, if the same
     questions are hard at both checkpoints). By chance alone a small gain may be negative, and so
     GF 0: compare seeds.

`--rescore FILE` grades a completions.jsonl again, by repaired rules, or against a gold answer that
was edited in it. `--benchmark NAME` asks a public benchmark and grades by its authors' rule, never
by the training reward; `--benchmark NAME --score FILE` does so with responses made elsewhere.

    accelerate launch evaluate.py --models base=toy/base,zero=runs/zero/model
    accelerate launch evaluate.py --models "" --gf_runs hybrid=runs/warmup,sft=runs/sft
    accelerate launch evaluate.py --models base=MODEL --benchmark mathvision
    python evaluate.py --models base=toy/base --ask "how many red things are there ?" --image x.png
"""

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from harness import settings
from harness.cli import flag, parse_cli, run_stage, split_names
from harness.parts import Parts
from harness.randomness import torch_generator
from harness.ranks import gather_objects, make_accelerator
from harness.run import Run, all_model_folders, check_models, check_runs, checkpoints
from model.loading import load_model, smallest_max_pixels
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import Prompt
from model.sampling import sample_groups, sampling_dtype
from rewards import Judge, make_judge
from scoring import category_rates, find_benchmark, load_gf_sets, load_sets
from scoring.rates import accuracy, bootstrap, guessing_rate, rate_with_interval
from scoring.responses import (
    append_records,
    grade_groups,
    read_records,
    rescore,
    save_images,
    say_judge_counts,
    write_report,
)
from scoring.score_file import score_responses
from sources.asking import ask_models, side_by_side
from sources.lazily import Prompts
from sources.stream import EncodedSets
from sources.understood import LOOKED_AT, say_what_was_understood

IN_DISTRIBUTION = "id"  # the name of a set, record["set"]; but record["id"] names a question


@dataclass(frozen=True)
class Config(settings.Columns, settings.Benchmark, settings.Generalization, settings.OtherModes,
             settings.Sampling, settings.Judge, settings.RunFolder):
    # models and questions
    models: str = flag("base=toy/base", "NAME=FOLDER, ... of the models to compare")
    data: str = flag("toy", "`toy` with its OOD sets, or a folder, file or hub name (see sources/)")
    split: str = flag("test", "split of --data (toy: always held out, a file: all of it)")
    items: int | None = flag(None, "questions per set, the first ones; None for all (toy: 510)")
    instruction: str | None = flag(None, "format instruction per question, None for the built-in, "
                                   "`official` for the words of a benchmark's authors")
    seed: int = flag(7, "of questions and sampling; ours")
    # sampling
    temperature: float = flag(1.0, "of all responses but the greedy ones; paper: not stated")
    pass_items: int = flag(120, "questions for pass@k, 0: leave it out")
    pass_samples: int = flag(16, "samples per question for pass@k (n); paper: not stated, k to 64")
    greedy_only: bool = flag(False, "only greedy responses to `id`, as benchmarks are reported")

    def __post_init__(self):
        super().__post_init__()
        if self.gf_runs and self.data != "toy" and not self.gf_id:
            raise ValueError(f"--gf_runs: for --data {self.data} say --gf_id and --gf_ood as well")
        if self.benchmark:
            find_benchmark(self.benchmark)  # raises if there is none of that name
        if self.instruction is not None and self.data == "toy" and not (self.benchmark or self.ask):
            raise ValueError("--instruction: each set of --data toy comes with its own")
        if self.columns and self.data == "toy" and not (self.gf_id or self.benchmark):
            raise ValueError(f"--columns {self.columns}: --data toy has no columns to name")
        split_names(self.models, "--models")
        self.check_at_least(1, "pass_samples", "gf_items")
        if self.items is not None:
            self.check_at_least(1, "items")
        self.check_at_least(0, "pass_items", "temperature")
        other_mode = self.rescore or self.score or self.ask
        measures_pass_at_k = self.pass_items > 0 and not (self.greedy_only or other_mode)
        if self.temperature == 0 and measures_pass_at_k:
            raise ValueError("--temperature 0: all samples of a question would be the same, and "
                             "pass@k would say nothing; --pass_items 0 leaves it out")


# --- The metrics: pure functions, used by 2, 3 and 4 ----------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """pass@k of a question with n samples, c of them right, for k <= n: an unbiased estimate.

    The chance that k of the n samples, drawn without replacement, hold at least one right one.

    Trap: 1 - (1 - c/n)^k is biased, too low (test_pass_at_k_unbiased).
    Source: Codex (arXiv 2107.03374) eq. 1.
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def nucleus_size(logits: Tensor, p: float = 0.95) -> Tensor:
    """(B, V) -> (B,) how many of the likeliest tokens reach probability p together, at least 1."""
    probs = logits.softmax(-1).sort(-1, descending=True).values  # (B, V)
    before = probs.cumsum(-1) - probs  # (B, V) probability of all likelier tokens
    return (before < p).sum(-1)


def generalization_factor(gain_id: float, gain_ood: float, beta: float = 2.0) -> float:
    """F-beta of the two gains, ID as precision and OOD as recall: beta = 2 favours OOD.

    Source: SPECS section 3.1. That it is 0 where a gain is not positive is ours.
    """
    if gain_id <= 0 or gain_ood <= 0:
        return 0.0
    return (1 + beta**2) * gain_id * gain_ood / (beta**2 * gain_id + gain_ood)


# --- 2. Each model answers every set --------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """One way to question a model: which set, how to sample, how often."""

    set_name: str
    mode: str  # "sampled" (once), "greedy", or "pass" (several times, for pass@k)
    temperature: float
    samples: int = 1  # per question
    max_prompts: int | None = None  # of this rank's share of the set; None: all of it
    branching: bool = False  # measure the nucleus at each token


def list_measurements(cfg: Config, set_names: list[str], rank: int, world_size: int
                      ) -> list[Measurement]:
    """How each model is questioned.

        every set    sampled, one response per question
        `id`         also greedy, and --pass_samples times for its first --pass_items questions

    With --greedy_only: `id`, greedy, and nothing else.
    """
    if cfg.greedy_only:
        return [Measurement(IN_DISTRIBUTION, "greedy", temperature=0.0)]
    others = [name for name in set_names if name != IN_DISTRIBUTION]
    measurements = [
        Measurement(IN_DISTRIBUTION, "sampled", cfg.temperature, branching=True),
        Measurement(IN_DISTRIBUTION, "greedy", temperature=0.0),
        *[Measurement(name, "sampled", cfg.temperature) for name in others],
    ]
    if cfg.pass_items:
        # Rank r has the questions r, r + world_size, ...: this counts those below --pass_items.
        count_of_rank = len(range(rank, cfg.pass_items, world_size))
        measurements.append(Measurement(IN_DISTRIBUTION, "pass", cfg.temperature,
                                        cfg.pass_samples, max_prompts=count_of_rank))
    return measurements


@dataclass(frozen=True)
class Evaluator:
    """Asks models questions and grades their responses, each rank its share of every set."""

    cfg: Config
    run: Run
    judge: Judge | None
    parts: Parts  # finished pieces of sampling, which --resume reads back

    def model_records(self, name: str, folder: str, encoded: EncodedSets) -> list[dict]:
        """The records of one model: all measurements of all sets."""
        policy, encoder = self.open_model(folder, "--models")
        prompts_of_set = encoded.for_encoder(encoder)
        looked_at = prompts_of_set[IN_DISTRIBUTION][:LOOKED_AT]
        say_what_was_understood(self.run, encoder, looked_at, judge=self.judge)

        accelerator = self.run.accelerator
        rank, world_size = accelerator.process_index, accelerator.num_processes
        records = []
        for measurement in list_measurements(self.cfg, list(prompts_of_set), rank, world_size):
            prompts = prompts_of_set[measurement.set_name]
            records += self.sample_and_grade(policy, encoder, prompts, measurement, name)
        return records

    def open_model(self, folder: str, flag_name: str) -> tuple[Policy, PromptEncoder]:
        """A model in the dtype that samples; `flag_name` is the flag that an error names."""
        accelerator = self.run.accelerator
        return load_model(
            folder, flag=flag_name, freeze_vision=True, max_pixels=self.cfg.max_pixels,
            dtype=sampling_dtype(accelerator), device=accelerator.device)

    def sample_and_grade(self, policy: Policy, encoder: PromptEncoder, prompts: Prompts,
                         measurement: Measurement, model_name: str) -> list[dict]:
        """One record per response to this rank's prompts.

        The seed depends on set, mode and rank, not on the model's name, so one model under two
        names gives the same records. Two models are not compared with common random numbers: once
        their completions differ in length, their draws no longer line up.
        """
        cfg, accelerator = self.cfg, self.run.accelerator
        purpose = f"{measurement.set_name} {measurement.mode}"
        generator = torch_generator(
            cfg.seed, purpose, accelerator.process_index, accelerator.device)

        def sample_chunk(chunk: list[Prompt]) -> list[dict]:
            with accelerator.autocast():
                groups = sample_groups(
                    policy, chunk, measurement.samples, max_new_tokens=cfg.max_new_tokens,
                    temperature=measurement.temperature, generator=generator,
                    sample_batch=cfg.sample_batch, compile_decode=cfg.compile_decode,
                    logits_stat=nucleus_size if measurement.branching else None)
            labels = {"model": model_name, "set": measurement.set_name, "mode": measurement.mode}
            return [{**labels, **record}
                    for record in grade_groups(groups, encoder, policy.eos_ids, self.judge)]

        # One chunk after the other; with --resume, those that were finished are read back.
        prompts_at_a_time = max(1, cfg.sample_batch // measurement.samples)
        return self.parts.each(f"{model_name}: {purpose}", prompts.first(measurement.max_prompts),
                               prompts_at_a_time, sample_chunk, generator)


# --- 3. GF at each checkpoint of a run ------------------------------------------------------------


def gf_curve(rates: dict[int, dict[str, float]], beta: float = 2.0) -> list[dict]:
    """GF at each checkpoint of a run.

    rates     step -> rate of each set at that checkpoint: `id`, and at least one OOD set; the start
              model first
    returns   an entry per checkpoint: step, the rates, `ood` (mean of the other sets), `gf`

    >>> curve = gf_curve({0: {"id": 0.4, "tags": 0.2}, 16: {"id": 0.9, "tags": 0.4}})
    >>> [round(entry["gf"], 3) for entry in curve]
    [0.0, 0.227]
    """
    curve = []
    for step, by_set in rates.items():
        ood = [rate for name, rate in by_set.items() if name != IN_DISTRIBUTION]
        curve.append({"step": step, **by_set, "ood": sum(ood) / len(ood)})

    start = curve[0]
    for entry in curve:
        gain_id = entry[IN_DISTRIBUTION] - start[IN_DISTRIBUTION]
        entry["gf"] = generalization_factor(gain_id, entry["ood"] - start["ood"], beta)
    return curve


def checkpoint_rates(evaluator: Evaluator, name: str, folder: Path,
                     encoded: EncodedSets) -> dict[str, float]:
    """The rate of each set for the model of one checkpoint, over the shares of all ranks.

    Trap: if no response could be graded, the mean is 0 over a count of 0. Used as a rate, it would
    give a GF that looks measured (test_gf_of_what_cannot_be_scored_is_an_error).
    """
    cfg, accelerator = evaluator.cfg, evaluator.run.accelerator
    # Without --gf_id the sets are the formats of the embedded world, measured by format.
    field = "score" if cfg.gf_id else "in_format"
    policy, encoder = evaluator.open_model(str(folder), "--gf_runs")

    rates = {}
    for set_name, prompts in encoded.for_encoder(encoder).items():
        measurement = Measurement(set_name, "sampled", cfg.temperature)
        records = evaluator.sample_and_grade(policy, encoder, prompts, measurement, name)
        # Only the field that is averaged goes to the other ranks, not the responses.
        outcomes_of_rank = [{field: record[field]} for record in records]
        outcomes = sum(gather_objects(outcomes_of_rank, accelerator), [])
        rate = rate_with_interval(outcomes, field)
        if rate["count"] == 0:
            raise ValueError(f"--gf_runs {name}: no response to {set_name} could be graded")
        rates[set_name] = rate["mean"]
    return rates


def measure_gf(evaluator: Evaluator) -> dict[str, list[dict]]:
    """The curve of each run in --gf_runs."""
    cfg, run = evaluator.cfg, evaluator.run
    run_folders = split_names(cfg.gf_runs, "--gf_runs")
    if not run_folders:
        return {}
    sets = load_gf_sets(cfg, run.warn)
    encoded = EncodedSets(sets, run.accelerator, cfg.max_prompt_tokens, run.warn)

    curves = {}
    for run_name, run_folder in run_folders.items():
        rates = {}
        for step, folder in checkpoints(Path(run_folder), "--gf_runs"):
            name = f"{run_folder} step {step}"
            rates[step] = checkpoint_rates(evaluator, name, folder, encoded)
        curves[run_name] = gf_curve(rates, cfg.gf_beta)
    return curves


# --- 4. Records to a report -----------------------------------------------------------------------


def summarize(records: list[dict]) -> dict:
    """The report of one model, from its records only. What was not measured is left out.

    "SET MODE"     as "id greedy": format and accuracy with intervals, mean length, share truncated
    "branching"    mean size of the nucleus, over the tokens sampled on `id`
    "guessing"     accuracy of the best blind guess at these questions
    "categories"   of a benchmark: heading -> category -> accuracy
    "pass@k"       k -> mean with its interval

    "guessing" and "categories" take one response per question: the greedy one, else the sampled.
    """
    by_measurement = defaultdict(list)
    for record in records:
        by_measurement[record["set"], record["mode"]].append(record)

    report = {}
    for (set_name, mode), measured in by_measurement.items():
        if mode != "pass":
            report[f"{set_name} {mode}"] = {
                "format": rate_with_interval(measured, "in_format"),
                "accuracy": accuracy(measured),
                "length": sum(record["tokens"] for record in measured) / len(measured),
                "truncated": sum(record["truncated"] for record in measured) / len(measured),
            }

    sampled = by_measurement.get((IN_DISTRIBUTION, "sampled"), [])
    greedy = by_measurement.get((IN_DISTRIBUTION, "greedy"), [])
    for_pass = by_measurement.get((IN_DISTRIBUTION, "pass"), [])
    nucleus_sum = sum(record["nucleus_sum"] for record in sampled)
    if nucleus_sum > 0:  # 0: not measured, since a nucleus has at least one token
        report["branching"] = nucleus_sum / sum(record["tokens"] for record in sampled)
    one_per_question = greedy or sampled
    if one_per_question:
        report["guessing"] = guessing_rate(one_per_question)  # of their gold answers only
    if categories := category_rates(one_per_question, accuracy):
        report["categories"] = categories
    if for_pass:
        report["pass@k"] = mean_pass_at_k(for_pass)
    return report


def mean_pass_at_k(records: list[dict]) -> dict[str, dict]:
    """pass@k for k = 1, 2, 4, ... 64: the mean over the questions with at least k graded samples.

    Where grades are missing, a larger k is a mean over fewer questions, so the curve may fall.
    """
    outcomes_of = defaultdict(list)  # id of a question -> of each graded sample: is it right?
    for record in records:
        if record["score"] is not None:
            outcomes_of[record["id"]].append(record["score"] == 1.0)
    counts = [(len(outcomes), sum(outcomes)) for outcomes in outcomes_of.values()]  # n, c of each

    rates = {}
    for k in (1, 2, 4, 8, 16, 32, 64):
        estimates = [pass_at_k(n, c, k) for n, c in counts if n >= k]  # one per question
        if estimates:
            low, high = bootstrap(estimates)
            rates[str(k)] = {"mean": sum(estimates) / len(estimates), "low": low, "high": high}
    return rates


# --- Main -----------------------------------------------------------------------------------------


def main(cfg: Config) -> None:
    if cfg.rescore:
        print(rescore(cfg.rescore, make_judge(cfg), summarize))
    elif cfg.score:
        score_responses(cfg, make_judge(cfg))
    elif cfg.ask:
        check_models(cfg.models, "--models")
        print(side_by_side(ask_models(cfg, split_names(cfg.models, "--models"))))
    else:
        evaluate(cfg)


def evaluate(cfg: Config) -> None:
    """Each of --models on every set, then each run of --gf_runs, then the report."""
    check_models(cfg.models, "--models")
    check_runs(cfg.gf_runs, "--gf_runs")
    run = Run(cfg, "evaluate", make_accelerator(cfg), columns=[])
    folders = all_model_folders(cfg.models, cfg.gf_runs)
    if cfg.max_pixels is None and folders:  # all models see images of one size, the smallest limit
        cfg = replace(cfg, max_pixels=smallest_max_pixels(folders))

    # 1. Load the questions, set by set, the same for all models.
    judge = make_judge(cfg, run.warn)
    sets = load_sets(cfg, run.warn, run.say)
    save_images(sets.get(IN_DISTRIBUTION, []), run)
    encoded = EncodedSets(sets, run.accelerator, cfg.max_prompt_tokens, run.warn)
    evaluator = Evaluator(cfg, run, judge, Parts(run))

    # 2. Each model answers every set: a record for each response.
    file = run.folder / "completions.jsonl"
    if run.writes:
        file.write_text("")  # written anew; what --resume has kept is not sampled again
    for name, folder in split_names(cfg.models, "--models").items():
        records = evaluator.model_records(name, folder, encoded)
        append_records(file, records, run)

    # 3. Each checkpoint of --gf_runs answers the sets of GF.
    curves = measure_gf(evaluator)

    # 4. Records to rates with intervals, and a table.
    if run.writes:
        reports = {name: summarize(records) for name, records in read_records(file).items()}
        write_report(reports, curves, run)
    say_judge_counts(judge, run)
    run.finish()


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
