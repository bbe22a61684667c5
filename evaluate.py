"""Measure any of the models: accuracy, format, generalisation, pass@k, branching.

    1. load the questions, set by set                            load_sets
    2. each model answers every set: a record for each response  Evaluator (scoring/measure.py)
    3. each checkpoint of --gf_runs answers the sets of GF       measure_gf
    4. records -> rates with intervals, a table                  summarize, write_report

A record is a line of completions.jsonl. All metrics are made of these fields:

    model, set, mode    who was asked, which set, and how: `sampled`, `greedy`, or `pass` for pass@k
    id, kind, gold      of the question: its name, its kind (as `count`), its right answer
    response            what the model wrote
    extracted, score    the answer in it, and its grade: 1 right, 0 wrong, of bounding boxes also
                        between; null: it could not be graded, and is left out of all rates
    in_format           true if it has exactly the format that was asked for; outside of the
                        embedded world always the think format, whatever the instruction says
    tokens, truncated   its length, EOS included; true if it ran into the limit
    nucleus_sum         the sizes of the nucleus (see branching), summed over its tokens; 0: not
                        measured

The set `id` (in distribution) has questions like those of training, `shuffled` the same ones with
their images exchanged; all other sets are OOD (out of distribution). What is measured:

    format      share of responses in format
    accuracy    mean score: the share of right answers. Responses are sampled at --temperature, 1 as
                in training; on `id` they are also decoded greedily
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
  2. Intervals are 95 %, over questions: Wilson's for rates, bootstrapped for pass@k.
  3. GF has no interval. It is made of two gains, each a difference of two rates. Over the 255
     questions of a set (--gf_items) a rate near 50 % has an interval of +-6 points, such a
     difference one of +-9 (less, if the same questions are hard at both checkpoints). By chance
     alone a small gain may be negative, and so GF 0: compare seeds.

    accelerate launch evaluate.py --models base=toy/base,zero=runs/zero/model
    accelerate launch evaluate.py --models "" --gf_runs hybrid=runs/warmup,sft=runs/sft
    accelerate launch evaluate.py --models base=MODEL --benchmark mathvision

`--benchmark NAME` asks a public benchmark and grades by its authors' rule, never by the training
reward. Three other modes measure nothing new:

    --rescore FILE                   grade a completions.jsonl again, by repaired rules, or against
                                     a gold answer that was edited in it
    --benchmark NAME --score FILE    grade responses that were made elsewhere
    --ask "how many red things are there ?" --image x.png       one question to each of --models
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from harness import settings
from harness.cli import flag, parse_cli, run_stage, split_names
from harness.parts import Parts
from harness.ranks import gather_objects, make_accelerator
from harness.run import Run, all_model_folders, check_models, check_runs, checkpoints
from model.loading import smallest_max_pixels
from rewards import make_judge
from scoring import category_rates, find_benchmark, load_gf_sets, load_sets
from scoring.measure import Evaluator, Measurement
from scoring.responses import (
    append_records,
    read_records,
    rescore,
    save_images,
    say_judge_counts,
    write_report,
)
from scoring.score_file import score_responses
from sources.asking import ask_models, side_by_side
from sources.stream import EncodedSets

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
        other_mode = self.rescore or self.score or self.ask
        measures_pass_at_k = self.pass_items > 0 and not (self.greedy_only or other_mode)
        if self.temperature == 0 and measures_pass_at_k:
            raise ValueError("--temperature 0: all samples of a question would be the same, and "
                             "pass@k would say nothing; --pass_items 0 leaves it out")


# --- Metrics: rates over questions, with their intervals -----------------------------------------


def wilson(successes: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval (low, high) of a rate: `successes` of `count`.

    Unlike mean +- 2 sd it stays inside [0, 1], and is not empty at 0 or 1. It takes each success
    for 0 or 1: scores in between, as of bounding boxes, scatter less, and it is too wide for them.

    >>> [round(x, 3) for x in wilson(10, 10)]
    [0.722, 1.0]
    """
    if count == 0:
        return 0.0, 1.0
    p = successes / count
    denominator = 1 + z * z / count
    centre = (p + z * z / (2 * count)) / denominator
    half = z / denominator * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    # At 0 and at 1 an end is the rate itself, but for rounding, which may put it on the wrong side.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def bootstrap(values: list[float], draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval (low, high) of the mean of `values`, one per question.

    The questions are drawn again with replacement, by a fixed seed: a report computed again is the
    same. Where all values are equal, so are all means, and the interval has no width: that is "not
    known", not "certain".

    Trap: over all samples of all questions it would be too narrow
    (test_pass_at_k_has_an_interval_over_questions).
    """
    sample = torch.tensor(values, dtype=torch.float64)
    indices = torch.randint(len(values), (draws, len(values)),
                            generator=torch.Generator().manual_seed(seed))
    means = sample[indices].mean(1)  # (draws,)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def rate_with_interval(records: list[dict], key: str) -> dict:
    """Mean and interval of a 0/1 field; records that could not be scored (None) are left out."""
    values = [float(record[key]) for record in records if record[key] is not None]
    low, high = wilson(sum(values), len(values))
    mean = sum(values) / max(1, len(values))
    unscored = len(records) - len(values)
    return {"mean": mean, "low": low, "high": high, "count": len(values), "unscored": unscored}


def accuracy(records: list[dict]) -> dict:
    """The share of right answers, with its interval."""
    return rate_with_interval(records, "score")


def guessing_rate(records: list[dict]) -> float:
    """Accuracy of the best blind guess: for each kind of question its most common answer.

    An oracle among constant guesses: it knows the gold answers of these very questions.
    """
    counts_of = defaultdict(Counter)  # kind -> how often each gold answer occurs
    for record in records:
        counts_of[record["kind"]][record["gold"]] += 1
    right = sum(max(counts.values()) for counts in counts_of.values())
    return right / max(1, len(records))


# --- Metrics: pass@k and branching ---------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """pass@k of a question with n samples, c of them right, for k <= n: an unbiased estimate.

    The chance that k of the n samples, drawn without replacement, hold at least one right one.

    Trap: 1 - (1 - c/n)^k is biased, too low (test_pass_at_k_unbiased).
    Source: Codex (arXiv 2107.03374) eq. 1.
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def mean_pass_at_k(records: list[dict]) -> dict[str, dict]:
    """pass@k for k = 1, 2, 4, ... 64: the mean over the questions with at least k graded samples.

    Where grades are missing, a larger k is a mean over fewer questions, so the curve may fall.
    """
    is_right = defaultdict(list)  # question -> one bool for each of its graded samples
    for record in records:
        if record["score"] is not None:
            is_right[record["id"]].append(record["score"] == 1.0)
    n_and_c = [(len(outcomes), sum(outcomes)) for outcomes in is_right.values()]  # per question

    rates = {}
    for k in (1, 2, 4, 8, 16, 32, 64):
        estimates = [pass_at_k(n, c, k) for n, c in n_and_c if n >= k]  # per question
        if estimates:
            low, high = bootstrap(estimates)
            rates[str(k)] = {"mean": sum(estimates) / len(estimates), "low": low, "high": high}
    return rates


def nucleus_size(logits: Tensor, p: float = 0.95) -> Tensor:
    """(B, V) -> (B,) how many of the likeliest tokens reach probability p together, at least 1."""
    probs = logits.softmax(-1).sort(-1, descending=True).values  # (B, V)
    before = probs.cumsum(-1) - probs  # (B, V) probability of all likelier tokens
    return (before < p).sum(-1)


# --- Metrics: GF of a run -------------------------------------------------------------------------


def generalization_factor(gain_id: float, gain_ood: float, beta: float = 2.0) -> float:
    """F-beta of the two gains, ID as precision and OOD as recall: beta = 2 favours OOD.

    Source: SPECS section 3.1. That it is 0 where a gain is not positive is ours.
    """
    if gain_id <= 0 or gain_ood <= 0:
        return 0.0
    return (1 + beta**2) * gain_id * gain_ood / (beta**2 * gain_id + gain_ood)


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


# --- 2. Each model answers every set --------------------------------------------------------------


def list_measurements(cfg: Config, set_names: list[str]) -> list[Measurement]:
    """How each model is questioned.

        every set    sampled, one response per question
        `id`         also greedy, and --pass_samples times for its first --pass_items questions

    With --greedy_only: `id`, greedy, and nothing else.
    """
    greedy = Measurement(IN_DISTRIBUTION, "greedy", temperature=0.0)
    if cfg.greedy_only:
        return [greedy]
    sampled = Measurement(IN_DISTRIBUTION, "sampled", cfg.temperature, logits_stat=nucleus_size)
    others = [Measurement(name, "sampled", cfg.temperature)
              for name in set_names if name != IN_DISTRIBUTION]
    measurements = [sampled, greedy, *others]
    if cfg.pass_items:
        measurements.append(Measurement(IN_DISTRIBUTION, "pass", cfg.temperature,
                                        cfg.pass_samples, max_questions=cfg.pass_items))
    return measurements


# --- 3. GF at each checkpoint of a run ------------------------------------------------------------


def measure_gf(evaluator: Evaluator, cfg: Config, run: Run) -> dict[str, list[dict]]:
    """The curve of each run in --gf_runs."""
    run_folders = split_names(cfg.gf_runs, "--gf_runs")
    if not run_folders:
        return {}
    sets = load_gf_sets(cfg, run.warn)
    encoded = EncodedSets(sets, run.accelerator, cfg.max_prompt_tokens, run.warn)
    measurements = [Measurement(name, "sampled", cfg.temperature) for name in sets]
    # Without --gf_id the sets are the formats of the embedded world, measured by format.
    field = "score" if cfg.gf_id else "in_format"

    curves = {}
    for run_name, run_folder in run_folders.items():
        rates = {}
        for step, folder in checkpoints(Path(run_folder), "--gf_runs"):
            name = f"{run_folder} step {step}"
            records = evaluator.measure(name, str(folder), "--gf_runs", encoded, measurements)
            rates[step] = rates_of_sets(records, field, name, run.accelerator)
        curves[run_name] = gf_curve(rates, cfg.gf_beta)
    return curves


def rates_of_sets(records: list[dict], field: str, name: str, accelerator) -> dict[str, float]:
    """Set -> the mean of a field, over the records of all ranks; `name` is that of the model.

    Trap: if no response could be graded, the mean is 0 over a count of 0. Used as a rate, it would
    give a GF that looks measured (test_gf_of_what_cannot_be_scored_is_an_error).
    """
    # Only the field that is averaged goes to the other ranks, not the responses.
    outcomes_of_rank = [{"set": record["set"], field: record[field]} for record in records]
    by_set = defaultdict(list)
    for outcome in sum(gather_objects(outcomes_of_rank, accelerator), []):
        by_set[outcome["set"]].append(outcome)

    rates = {}
    for set_name, outcomes in by_set.items():
        rate = rate_with_interval(outcomes, field)
        if rate["count"] == 0:
            raise ValueError(f"--gf_runs {name}: no response to {set_name} could be graded")
        rates[set_name] = rate["mean"]
    return rates


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


# --- Main -----------------------------------------------------------------------------------------


def main(cfg: Config) -> None:
    if cfg.rescore:
        print(rescore(cfg.rescore, make_judge(cfg), summarize))
    elif cfg.score:
        score_responses(cfg, make_judge(cfg), accuracy)
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
    models = split_names(cfg.models, "--models")
    sets = load_sets(cfg, run.warn, run.say) if models else {}  # for --gf_runs alone: none of them
    save_images(sets.get(IN_DISTRIBUTION, []), run)
    encoded = EncodedSets(sets, run.accelerator, cfg.max_prompt_tokens, run.warn)
    judge = make_judge(cfg, run.warn)
    evaluator = Evaluator(cfg, run, judge, Parts(run))

    # 2. Each model answers every set: a record for each response.
    file = run.folder / "completions.jsonl"
    if run.writes:
        file.write_text("")  # written anew; what --resume has kept is not sampled again
    for name, folder in models.items():
        measurements = list_measurements(cfg, list(sets))
        records = evaluator.measure(name, folder, "--models", encoded, measurements)
        append_records(file, records, run)

    # 3. Each checkpoint of --gf_runs answers the sets of GF.
    curves = measure_gf(evaluator, cfg, run)

    # 4. Records to rates with intervals, and a table.
    if run.writes:
        reports = {name: summarize(records) for name, records in read_records(file).items()}
        write_report(reports, curves, run)
    say_judge_counts(judge, run)
    run.finish()


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
