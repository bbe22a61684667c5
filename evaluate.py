"""Measure any of the models: accuracy, format, generalisation, pass@k, branching.

In the order of this file:

    metrics      rates over questions, with intervals            rate_with_interval, guessing_rate
                 pass@k and branching                            mean_pass_at_k, nucleus_size
                 the generalisation factor (GF)                  gf_curve
    answers      each model answers every set, asked in          list_measurements, answer_set
                 several ways: a record for each response
    GF of runs   with --gf_runs, each checkpoint answers the     measure_gf
                 sets of GF: records -> rates -> the curve
    reports      records -> a report for each model              summarize
    evaluate     loads the questions, then does all of these in order

A record is one graded response, a line of completions.jsonl. These are the fields that the metrics
read; others (the question, its choices, ...) are kept for those who look, and for --rescore:

    {"model": "zero", "set": "id", "mode": "sampled",         who was asked, which set, and how
     "question_id": "toy-heldout-7-1", "kind": "add",         the question
     "gold": "3",                                             its right answer
     "response": "<think> that is 3 . </think> <answer> 3 </answer>",
     "extracted": "3", "score": 1.0,                          1 right, 0 wrong (boxes: overlap);
                                                              null: not gradable, left out of
                                                              accuracy and pass@k
     "in_format": true,                                       see `format` below
     "tokens": 10, "truncated": false,                        EOS included; ran into the limit
     "nucleus_sum": 12.0}                                     nucleus sizes, summed over the tokens;
                                                              0: not measured

Set `id` (in distribution) is what --data or --benchmark names: in the embedded world, questions
like those of training. Set `shuffled` is `id` with the images exchanged. All other sets are OOD,
out of distribution. What is made of the records:

    format       share in format: of the embedded world exactly the one that the question asks for,
                 of all other data the think format, whatever the instruction says
    accuracy     mean score: the share of right answers. Responses are sampled at --temperature, 1
                 as in training; on `id` also greedily
    shuffled     accuracy with another question's image: a model that does not look keeps its
                 accuracy, one that looks may end below `guessing`
    guessing     the best blind guess: to each kind of question its most common gold answer. All
                 questions count here, those of ungraded responses too
    OOD          format and accuracy on formats, wordings, looks and tasks that no stage had (the
                 task of set `easy` was in the base's own training)
    pass@k       chance that at least one of k samples is right                 `pass_at_k`
    branching    how many tokens were likely where one was drawn, on average    `nucleus_size`
    GF           how far a run's gain reaches beyond `id`               `generalization_factor`

Intervals are 95 %, over questions: Wilson's for format and accuracy, bootstrapped for pass@k; other
numbers have none. Each is of one model alone. Two models answer the same questions, so they can
differ beyond doubt though their intervals overlap (that of their difference is not computed). And
none says anything of another seed of training: compare several runs.

    accelerate launch evaluate.py --models base=toy/base,zero=runs/zero/model
    accelerate launch evaluate.py --models "" --gf_runs hybrid=runs/warmup,sft=runs/sft
    accelerate launch evaluate.py --models base=MODEL --benchmark mathvision

The last asks a public benchmark, graded by its authors' rule, never by the training reward. With
--rescore, --score or --ask the program does another job instead (`scoring/other_jobs.py`).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from harness import settings
from harness.cli import flag, parse_cli, run_stage, split_names
from harness.parts import Parts
from harness.randomness import torch_generator
from harness.ranks import make_accelerator
from harness.run import Run, all_model_folders, check_models, check_runs, checkpoints
from model.loading import smallest_max_pixels
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import Prompt, SampledGroup, is_truncated
from model.sampling import sample_groups
from rewards import Judge, make_judge
from scoring import category_rates, find_benchmark, grade_example, load_gf_sets, load_sets
from scoring.measure import first_questions, mean_over_ranks, open_model
from scoring.other_jobs import do_other_job
from scoring.responses import (
    append_records,
    ask_judge_about,
    read_records,
    response_record,
    save_images,
    say_judge_counts,
    write_report,
)
from sources.lazily import Prompts
from sources.stream import EncodedSets
from sources.understood import LOOKED_AT, say_what_was_understood

IN_DISTRIBUTION = "id"  # the name of the set of questions like those of training


@dataclass(frozen=True)
class Config(settings.Evaluation, settings.Sampling, settings.Judge, settings.RunFolder):
    models: str = flag("base=toy/base", "NAME=FOLDER, ... of the models to compare")
    seed: int = flag(7, "of questions and sampling; ours")
    temperature: float = flag(1.0, "of all responses but the greedy ones; paper: not stated")
    pass_items: int = flag(120, "questions for pass@k, 0: leave it out")
    pass_samples: int = flag(16, "samples per question for pass@k (n); paper: not stated, k to 64")
    greedy_only: bool = flag(False, "only greedy responses to `id`, as benchmarks are reported")

    def __post_init__(self):
        super().__post_init__()
        split_names(self.models, "--models")
        if self.benchmark:
            find_benchmark(self.benchmark)  # raises if there is none of that name
        self.check_at_least(1, "pass_samples")
        self.check_at_least(0, "pass_items", "temperature")
        measures_pass_at_k = self.pass_items and not self.greedy_only and not self.has_other_job()
        if self.temperature == 0 and measures_pass_at_k:
            raise ValueError("--temperature 0: all samples of a question would be the same, and "
                             "pass@k would say nothing; --pass_items 0 leaves it out")


# --- Metrics: rates over questions, with their intervals -----------------------------------------


def wilson(successes: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval (low, high) of a rate: `successes` of `count`.

    Unlike p +- 2 standard errors it stays inside [0, 1], and does not shrink to a point at 0 and 1.
    It assumes that each outcome is 0 or 1. Scores in between (the overlap of bounding boxes) vary
    less than zeros and ones of the same mean, so for them the interval is too wide. And it assumes
    that outcomes are independent: over the five versions of each problem of MathVerse, which are
    not, it is too narrow.

    >>> [round(x, 3) for x in wilson(10, 10)]
    [0.722, 1.0]
    """
    if count == 0:
        return 0.0, 1.0
    p = successes / count
    denominator = 1 + z * z / count
    centre = (p + z * z / (2 * count)) / denominator
    half = z / denominator * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    # In exact arithmetic low <= p <= high. Rounding can break that at p = 0 and p = 1, by 1e-16.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def bootstrap(values: list[float], draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval (low, high) of the mean of `values`, one per question.

    Draw as many questions, with replacement, and take the mean of their values; 1000 times. The
    interval holds the middle 95 % of these means. The seed is fixed, so that a report computed
    again is the same. Where all values are equal, so are all means, and the interval has no width:
    that is "not known", not "certain".

    Trap: questions are drawn, not responses. The responses to one question are not independent;
    drawn singly they give too narrow an interval (test_pass_at_k_has_an_interval_over_questions).
    """
    sample = torch.tensor(values, dtype=torch.float64)
    indices = torch.randint(len(values), (draws, len(values)),
                            generator=torch.Generator().manual_seed(seed))
    means = sample[indices].mean(1)  # (draws,)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def rate_with_interval(records: list[dict], key: str) -> dict:
    """Mean and interval of a field in [0, 1]; records that could not be scored (None) are left out.

    If none is left, the mean is 0 with a count of 0: no measurement. Look at the count.
    """
    values = [float(record[key]) for record in records if record[key] is not None]
    low, high = wilson(sum(values), len(values))
    mean = sum(values) / max(1, len(values))
    unscored = len(records) - len(values)
    return {"mean": mean, "low": low, "high": high, "count": len(values), "unscored": unscored}


def accuracy(records: list[dict]) -> dict:
    """The mean score, with its interval: the share of right answers, where each is 0 or 1."""
    return rate_with_interval(records, "score")


def guessing_rate(records: list[dict]) -> float:
    """Accuracy of the best blind guess: for each kind of question its most common answer.

    It is fitted to the gold answers of these very questions: where a kind has few of them it is too
    high, with one of each it is 1. Answers are compared as strings: where the grader takes several
    for equal, as 1/2 and 0.5, or pays for overlap, as of bounding boxes, it is too low.
    """
    counts_of = defaultdict(Counter)  # kind -> how often each gold answer occurs
    for record in records:
        counts_of[record["kind"]][record["gold"]] += 1
    right = sum(max(counts.values()) for counts in counts_of.values())
    return right / max(1, len(records))


# --- Metrics: pass@k and branching ---------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """An unbiased estimate of pass@k = 1 - (1 - p)^k, from n samples of a question, c of them
    right.

    p is the unknown chance that one sample is right. Of all ways to take k of the n samples, the
    estimate is the share that holds at least one right one; k <= n.

    >>> pass_at_k(n=4, c=1, k=2)  # of the 6 ways to draw 2 of 4, 3 hold the right one
    0.5

    Trap: putting c/n for p gives 1 - (1 - c/n)^k, which is too low on average for k > 1: it is
    concave in p, and c/n varies (test_pass_at_k_unbiased).
    Source: Codex (arXiv 2107.03374) eq. 1.
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def mean_pass_at_k(records: list[dict]) -> dict[str, dict]:
    """pass@k for k = 1, 2, 4, ... 64: the mean over the questions with at least k graded samples.

    Where grades are missing, a larger k is a mean over fewer questions, so the curve may fall. A
    sample is right at score 1: hardly any bounding box is, while accuracy averages their overlap.
    """
    outcomes_of = defaultdict(list)  # question -> whether each of its graded samples is right
    for record in records:
        if record["score"] is not None:
            outcomes_of[record["question_id"]].append(record["score"] == 1.0)
    n_and_c = [(len(outcomes), sum(outcomes)) for outcomes in outcomes_of.values()]  # per question

    rates = {}
    for k in (1, 2, 4, 8, 16, 32, 64):
        estimates = [pass_at_k(n, c, k) for n, c in n_and_c if n >= k]  # per question
        if estimates:
            low, high = bootstrap(estimates)
            rates[str(k)] = {"mean": sum(estimates) / len(estimates), "low": low, "high": high}
    return rates


def nucleus_size(logits: Tensor, p: float = 0.95) -> Tensor:
    """(B, V) -> (B,) how many of the likeliest tokens reach probability p together, at least 1.

    The logits are those that are sampled from: at another temperature it is another number.
    Source: the branching factor of arXiv 2508.07534; p = 0.95 is ours.

    >>> nucleus_size(torch.tensor([[0.90, 0.06, 0.03, 0.01], [0.25, 0.25, 0.25, 0.25]]).log())
    tensor([2, 4])
    """
    probs = logits.softmax(-1).sort(-1, descending=True).values  # (B, V)
    before = probs.cumsum(-1) - probs  # (B, V) probability of all likelier tokens: 0, .90, .96, .99
    return (before < p).sum(-1)


# --- Metrics: the generalisation factor ----------------------------------------------------------


def generalization_factor(gain_id: float, gain_ood: float, beta: float = 2.0) -> float:
    """How a run has generalised: F-beta of its two gains, g = rate now - rate at the start.

        GF = (1 + beta^2) g_ID g_OOD / (beta^2 g_ID + g_OOD)          beta 2 favours OOD

    0 where a gain is not positive: an F-measure has no meaning there (ours).

    Source: SPECS section 3.1.
    """
    if gain_id <= 0 or gain_ood <= 0:
        return 0.0
    return (1 + beta**2) * gain_id * gain_ood / (beta**2 * gain_id + gain_ood)


def gf_curve(rates: dict[int, dict[str, float]], beta: float = 2.0) -> list[dict]:
    """GF at each checkpoint of a run.

    rates     step -> rate of each set at that checkpoint: `id`, and at least one OOD set; the start
              model first
    returns   an entry per checkpoint: step, the rates, `ood` (mean of the other sets), `gf`. Each
              OOD set is kept beside their mean, which can hide a single format that was lost

    The rate is the share in format, on the formats of the embedded world; with --gf_id and --gf_ood
    it is accuracy, on these sets. g_ID is the gain on `id`, g_OOD that of the mean of the OOD sets.

    GF has no interval, and is noisy. With 255 questions a set (--gf_items) a rate near 50 % is good
    to +-6 points, the difference of two independent such rates to +-9. A gain is less noisy: its
    two rates are of the same questions, and g_OOD is a mean over several sets. All checkpoints
    share one start: if its rate came out low, the whole curve is too high. And a small gain may
    come out negative by chance, which makes GF 0. So compare seeds.

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


# --- Answers: each model answers every set -------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """One way to question a model."""

    set_name: str
    mode: str  # "sampled" (once), "greedy", or "pass" (several times, for pass@k)
    temperature: float
    samples: int = 1  # per question
    max_questions: int | None = None  # the first ones of the set; None: all of it
    logits_stat: Callable[[Tensor], Tensor] | None = None  # (B, V) -> (B,), at each sampled token


class Session(NamedTuple):
    """What asking needs beside a model and its questions."""

    cfg: Config
    run: Run
    judge: Judge | None
    parts: Parts  # finished chunks of sampling, which --resume reads back


def list_measurements(cfg: Config, set_names: list[str]) -> list[Measurement]:
    """What each model is asked, the same for all.

        every set    sampled, one response per question
        `id`         also greedy, and --pass_samples times for its first --pass_items questions

    With --greedy_only: `id`, greedy, and nothing else.
    """
    greedy = Measurement(IN_DISTRIBUTION, "greedy", temperature=0.0)
    if cfg.greedy_only:
        return [greedy]
    # At temperature 0 nothing is drawn, so there is no branching to measure.
    sampled = Measurement(IN_DISTRIBUTION, "sampled", cfg.temperature,
                          logits_stat=nucleus_size if cfg.temperature > 0 else None)
    others = [Measurement(name, "sampled", cfg.temperature)
              for name in set_names if name != IN_DISTRIBUTION]
    measurements = [sampled, greedy, *others]
    if cfg.pass_items:
        measurements.append(Measurement(
            IN_DISTRIBUTION, "pass", cfg.temperature, samples=cfg.pass_samples,
            max_questions=cfg.pass_items))
    return measurements


def answer_set(policy: Policy, encoder: PromptEncoder, prompts: Prompts, measurement: Measurement,
               model_name: str, session: Session) -> list[dict]:
    """A record for each response to this rank's prompts of a set, sampled a chunk at a time.

    The seed depends on set, mode and rank, not on the model, so one model under two names gives the
    same responses. For two different models equal seeds do not pair their noise: once completions
    differ in length, the draws no longer line up.
    """
    cfg, accelerator = session.cfg, session.run.accelerator
    prompts = first_questions(prompts, measurement.max_questions, accelerator)
    purpose = f"{measurement.set_name} {measurement.mode}"
    generator = torch_generator(cfg.seed, purpose, accelerator.process_index, accelerator.device)
    labels = {"model": model_name, "set": measurement.set_name, "mode": measurement.mode}

    def sample_and_grade(chunk: list[Prompt]) -> list[dict]:
        with accelerator.autocast():
            groups = sample_groups(
                policy, chunk, measurement.samples, max_new_tokens=cfg.max_new_tokens,
                temperature=measurement.temperature, generator=generator,
                sample_batch=cfg.sample_batch, compile_decode=cfg.compile_decode,
                logits_stat=measurement.logits_stat)
        records = grade_groups(groups, encoder, policy.eos_ids, session.judge)
        return [{**labels, **record} for record in records]

    # In one go this is: for each chunk of the prompts, records += sample_and_grade(chunk). `each`
    # also keeps a finished chunk on disk, so that --resume need not sample it again.
    prompts_at_a_time = max(1, cfg.sample_batch // measurement.samples)  # a batch of completions
    return session.parts.each(f"{model_name}: {purpose}", prompts, prompts_at_a_time,
                              sample_and_grade, generator)


def grade_groups(groups: list[SampledGroup], encoder: PromptEncoder, eos_ids: list[int],
                 judge: Judge | None) -> list[dict]:
    """Sampled groups -> a graded record for each completion."""
    responses = [[encoder.decode(ids) for ids in group.completions] for group in groups]
    ask_judge_about(groups, responses, judge)

    records = []
    for group, texts in zip(groups, responses):
        example = group.prompt.example
        for ids, text, nucleus_sizes in zip(group.completions, texts, group.stats):
            verdict = grade_example(example, text, judge)  # by training's rule, or a benchmark's
            records.append({
                **response_record(example, text, verdict),
                "tokens": len(ids),
                "truncated": is_truncated(ids, eos_ids),
                "nucleus_sum": float(nucleus_sizes.sum()),  # 0 where it was not measured
            })
    return records


# --- GF of runs: each checkpoint answers the sets of GF ------------------------------------------


def measure_gf(session: Session) -> dict[str, list[dict]]:
    """The curve of each run in --gf_runs."""
    cfg, run = session.cfg, session.run
    run_folders = split_names(cfg.gf_runs, "--gf_runs")
    if not run_folders:
        return {}
    encoded = EncodedSets(load_gf_sets(cfg, run.warn), run.accelerator, cfg.max_prompt_tokens,
                          run.warn)
    # GF is of the share in format; on sets that --gf_id names, of accuracy.
    field = "score" if cfg.gf_id else "in_format"

    curves = {}
    for run_name, run_folder in run_folders.items():
        rates = defaultdict(dict)  # step -> set -> rate
        for step, folder in checkpoints(Path(run_folder), "--gf_runs"):
            name = f"{run_folder} step {step}"
            policy, encoder = open_model(str(folder), "--gf_runs", cfg, run.accelerator)
            for set_name, prompts in encoded.for_encoder(encoder).items():
                measurement = Measurement(set_name, "sampled", cfg.temperature)
                records = answer_set(policy, encoder, prompts, measurement, name, session)
                rates[step][set_name] = mean_over_ranks(records, field, name, run.accelerator)
        curves[run_name] = gf_curve(rates, cfg.gf_beta)
    return curves


# --- Reports: records -> a report for each model -------------------------------------------------


def summarize(records: list[dict]) -> dict:
    """The report of one model, from its records only. What was not asked is left out; what could
    not be graded has a count of 0.

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
    for (set_name, mode), its_records in by_measurement.items():
        if mode != "pass":
            report[f"{set_name} {mode}"] = {
                "format": rate_with_interval(its_records, "in_format"),
                "accuracy": accuracy(its_records),
                "length": sum(record["tokens"] for record in its_records) / len(its_records),
                "truncated": sum(record["truncated"] for record in its_records) / len(its_records),
            }

    # Branching: over the tokens sampled on `id`.
    sampled = by_measurement.get((IN_DISTRIBUTION, "sampled"), [])
    nucleus_sum = sum(record["nucleus_sum"] for record in sampled)
    if nucleus_sum > 0:  # 0: it was not measured (a nucleus has at least one token)
        report["branching"] = nucleus_sum / sum(record["tokens"] for record in sampled)

    # Guessing, categories: one response per question.
    one_per_question = by_measurement.get((IN_DISTRIBUTION, "greedy")) or sampled
    if one_per_question:
        report["guessing"] = guessing_rate(one_per_question)  # of their gold answers only
    if categories := category_rates(one_per_question, accuracy):
        report["categories"] = categories

    # pass@k: several responses per question.
    for_pass = by_measurement.get((IN_DISTRIBUTION, "pass"), [])
    if for_pass:
        report["pass@k"] = mean_pass_at_k(for_pass)
    return report


# --- Main -----------------------------------------------------------------------------------------


def main(cfg: Config) -> None:
    if cfg.has_other_job():
        # scoring/ imports no stage, so the two functions that it needs are handed to it.
        do_other_job(cfg, summarize, accuracy)
    else:
        evaluate(cfg)


def evaluate(cfg: Config) -> None:
    """Each of --models on every set, then each run of --gf_runs, then the report."""
    check_models(cfg.models, "--models")
    check_runs(cfg.gf_runs, "--gf_runs")
    run = Run(cfg, "evaluate", make_accelerator(cfg), columns=[])
    folders = all_model_folders(cfg.models, cfg.gf_runs)
    # Models may differ in the largest image that they take. All see images of the smallest limit.
    if cfg.max_pixels is None and folders:
        cfg = replace(cfg, max_pixels=smallest_max_pixels(folders))

    # Load the questions, set by set, the same for all models.
    models = split_names(cfg.models, "--models")
    sets = load_sets(cfg, run.warn, run.say) if models else {}  # for --gf_runs alone: none of them
    save_images(sets.get(IN_DISTRIBUTION, []), run)
    encoded = EncodedSets(sets, run.accelerator, cfg.max_prompt_tokens, run.warn)
    judge = make_judge(cfg, run.warn)
    session = Session(cfg, run, judge, Parts(run))

    # Answers: a record for each response of each model to every set.
    file = run.folder / "completions.jsonl"
    if run.writes:
        file.write_text("")  # written anew; what --resume has kept is not sampled again
    measurements = list_measurements(cfg, list(sets))
    for name, folder in models.items():
        policy, encoder = open_model(folder, "--models", cfg, run.accelerator)
        prompts_of_set = encoded.for_encoder(encoder)  # this rank's
        looked_at = prompts_of_set[IN_DISTRIBUTION][:LOOKED_AT]
        say_what_was_understood(run, encoder, looked_at, judge=judge)
        records = []
        for measurement in measurements:
            prompts = prompts_of_set[measurement.set_name]
            records += answer_set(policy, encoder, prompts, measurement, name, session)
        append_records(file, records, run)

    # GF of runs: each checkpoint answers the sets of GF.
    curves = measure_gf(session)

    # Reports: of each model, and a table. The file has the records of all ranks.
    if run.writes:
        reports = {name: summarize(records) for name, records in read_records(file).items()}
        write_report(reports, curves, run)
    say_judge_counts(judge, run)
    run.finish()


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
