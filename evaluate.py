"""Measure any of the models: accuracy, format, generalisation, pass@k, branching.

Every response is kept in completions.jsonl, with its extracted answer, gold, score and reason. The
table comes from that file alone. `--rescore FILE` prints it again, the responses graded anew: by
repaired rules, or against a gold answer that was edited in the file.

    format      share of responses in exactly the format that was asked for
    accuracy    share of right answers; sampled at temperature 1 as in training, and greedy
    shuffled    accuracy if each question comes with the images of another: what guessing earns
    OOD         the same for other formats, other wordings and another task than training saw
    pass@k      chance that one of k samples is right, unbiased: 1 - C(n-c, k) / C(n, k)
    branching   tokens in the 0.95 nucleus at a sampled step, on average (arXiv 2508.07534)
    GF          generalisation factor over a run's checkpoints (SPECS section 3.1):
                (1 + b^2) G_ID G_OOD / (b^2 G_ID + G_OOD), b = 2, G = format now - format at start

Where this departs from the paper, or fills in what it leaves open:
  1. GF is 0 where a gain is not positive (the formula is undefined there). Each OOD format is shown
     beside their mean: a good mean can hide that a format was lost which training *rejected*.
  2. Intervals are Wilson's, 95 %, over questions.

    accelerate launch evaluate.py --models base=toy/base,zero=runs/zero/model
    accelerate launch evaluate.py --gf_runs hybrid=runs/warmup,sft=runs/sft
"""

import json
import math
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from tqdm import tqdm

from harness import settings
from harness.cli import flag, parse_cli, run_stage, split_names
from harness.plots import plot_report
from harness.ranks import gather_objects, make_accelerator
from harness.run import Run, append_jsonl, checkpoints, read_jsonl
from harness.tables import format_table, wilson
from model.loading import check_folder, load_model
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import Prompt, is_truncated
from model.sampling import sample_groups
from rewards import Grade, Judge, grade, make_judge
from sources import load_evaluation_sets
from sources.stream import EncodedSets
from sources.toy import evaluation_sets, is_in_asked_format


@dataclass(frozen=True)
class Config(settings.Inputs, settings.Sampling, settings.Judge, settings.OneShot):
    # models and questions
    models: str = flag("base=toy/base", "NAME=FOLDER, ... of the models to compare")
    data: str = flag("toy", "`toy` with its OOD sets, or a folder, file or hub name (see sources/)")
    split: str = flag("test", "split of --data (toy: always held out, a file: all of it)")
    items: int = flag(510, "questions of each set, the first ones of a file; ours")
    instruction: str | None = flag(
        None, "format instruction after each question, None for the built-in; ours"
    )
    # sampling
    temperature: float = flag(1.0, "of sampled accuracy, pass@k and branching; paper: not stated")
    pass_items: int = flag(120, "questions for pass@k, 0: leave it out")
    pass_samples: int = flag(16, "samples a question for pass@k (n); paper: not stated, k up to 64")
    # generalisation factor, report
    gf_runs: str = flag("", "NAME=RUN_FOLDER, ... of the runs to measure GF over; empty: none")
    gf_items: int = flag(255, "questions of each set for each checkpoint; paper: not stated")
    gf_beta: float = flag(2.0, "weight of OOD against ID in GF; paper")
    rescore: str = flag("", "a completions.jsonl: grade it again, print its table and stop")
    # shared settings that mean something else here
    seed: int = flag(7, "of questions and sampling; ours")

    def __post_init__(self):
        super().__post_init__()
        if self.gf_runs and self.data != "toy":
            raise ValueError(f"--gf_runs: GF needs the OOD formats of --data toy, not {self.data}")
        if self.instruction is not None and self.data == "toy":
            raise ValueError("--instruction: each set of --data toy comes with its own")
        split_names(self.models, "--models")
        split_names(self.gf_runs, "--gf_runs")


# --- 1. Metrics: pure functions -------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, drawn without putting back, hold one of the c right ones.

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
    """F-beta of the two gains; 0 where one is not positive. SPECS section 3.1."""
    if gain_id <= 0 or gain_ood <= 0:
        return 0.0
    return (1 + beta**2) * gain_id * gain_ood / (beta**2 * gain_id + gain_ood)


def rate_with_interval(records: list[dict], key: str) -> dict:
    """Mean and interval of a 0/1 field; records that could not be scored (None) are left out."""
    values = [float(record[key]) for record in records if record[key] is not None]
    low, high = wilson(sum(values), len(values))
    return {
        "mean": sum(values) / max(1, len(values)),
        "low": low,
        "high": high,
        "count": len(values),
        "unscored": len(records) - len(values),
    }


def guessing_rate(records: list[dict]) -> float:
    """Accuracy of the best blind guess: for each kind of question its most common answer."""
    answers: dict[str, Counter] = defaultdict(Counter)
    for record in records:
        answers[record["kind"]][record["gold"]] += 1
    right = sum(max(counts.values()) for counts in answers.values())
    return right / max(1, len(records))


# --- 2. Measurements: prompts to records ----------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """What is asked of a model."""

    set: str
    mode: str  # "sampled", "greedy", or "pass" for the samples of pass@k
    temperature: float
    samples: int = 1  # of each question
    max_prompts: int | None = None  # on this rank, None: the whole set
    branching: bool = False  # measure the nucleus at each token


def list_measurements(
    cfg: Config, sets: list[str], rank: int, world_size: int
) -> list[Measurement]:
    """All that is asked of each model; `sets` are names.

    Greedy decoding and pass@k cost the most, so they are measured on `id` only.
    """
    measurements = [
        Measurement("id", "sampled", cfg.temperature, branching=True),
        Measurement("id", "greedy", 0.0),
    ]
    for name in sets:
        if name != "id":
            measurements.append(Measurement(name, "sampled", cfg.temperature))
    if cfg.pass_items:
        share = len(range(rank, cfg.pass_items, world_size))  # of this rank: they add up
        for_pass = Measurement("id", "pass", cfg.temperature, cfg.pass_samples, share)
        measurements.append(for_pass)
    return measurements


def measure(
    name: str, folder: str, encoded: EncodedSets, judge: Judge | None, cfg: Config, run: Run
) -> list[dict]:
    """The records of one model, over this rank's prompts of each set."""
    accelerator = run.accelerator
    policy, encoder = load_model(
        folder, flag="--models", freeze_vision=True, max_pixels=cfg.max_pixels
    )
    policy.to(accelerator.device)
    prompts = encoded.for_encoder(encoder)

    records = []
    with accelerator.autocast():
        for measurement in list_measurements(
            cfg, list(prompts), accelerator.process_index, accelerator.num_processes
        ):
            records += collect_responses(
                policy, encoder, prompts[measurement.set], cfg, judge, measurement,
                model_name=name, show=run.writes,
            )
    return records


def collect_responses(
    policy: Policy, encoder: PromptEncoder, prompts: list[Prompt], cfg: Config,
    judge: Judge | None, measurement: Measurement, *, model_name: str = "", show: bool = False,
) -> list[dict]:
    """Sample and grade; one record a response. `show` draws a progress bar.

    Each starts from the same seed: models that are compared draw with the same random numbers.
    """
    title = f"{model_name}: {measurement.set} {measurement.mode}"
    groups, nucleus_sizes = sample_groups(
        policy, prompts[: measurement.max_prompts], measurement.samples,
        max_new_tokens=cfg.max_new_tokens,
        temperature=measurement.temperature,
        generator=torch.Generator(policy.device).manual_seed(cfg.seed),
        sample_batch=cfg.sample_batch,
        logits_stat=nucleus_size if measurement.branching else None,
        compile_decode=cfg.compile_decode,
        progress=title if show else None,
    )
    completions = [(group.prompt.example, ids) for group in groups for ids in group.completions]

    records = []
    for (example, ids), sizes in zip(completions, nucleus_sizes):
        response = encoder.decode(ids)
        verdict = grade(example, response, judge)
        records.append({
            "model": model_name,
            "set": measurement.set,
            "mode": measurement.mode,
            **response_record(example, response, verdict),
            "tokens": len(ids),
            "truncated": is_truncated(ids, policy.eos_ids),
            "nucleus_sum": sum(sizes),
        })
    return records


def response_record(example: dict, response: str, verdict: Grade) -> dict:
    """A response with its grade, and all that the grade depends on."""
    return {
        "id": example["id"],
        "kind": example["kind"],
        "question": example["question"],
        "instruction": example["instruction"],
        "format": example["format"],
        "gold": example["answer"],
        "answer_type": example["answer_type"],
        "choices": example["choices"],
        "response": response,
        **asdict(verdict),
        "in_format": is_in_asked_format(example, response),
    }


# --- 3. Records to a report -----------------------------------------------------------------------


def summarize(records: list[dict]) -> dict:
    """The report of one model, from its records alone. See `harness.tables` for its keys."""
    by_measurement = defaultdict(list)
    for record in records:
        by_measurement[record["set"], record["mode"]].append(record)

    report = {}
    for (set_name, mode), responses in by_measurement.items():
        if mode != "pass":
            report[f"{set_name} {mode}"] = {
                "format": rate_with_interval(responses, "in_format"),
                "accuracy": rate_with_interval(responses, "score"),
                "length": sum(r["tokens"] for r in responses) / len(responses),
                "truncated": sum(r["truncated"] for r in responses) / len(responses),
            }

    sampled = by_measurement["id", "sampled"]
    nucleus_sum = sum(r["nucleus_sum"] for r in sampled)
    if nucleus_sum:
        report["branching"] = nucleus_sum / sum(r["tokens"] for r in sampled)
    if sampled:
        report["guessing"] = guessing_rate(sampled)
    if by_measurement["id", "pass"]:
        report["pass@k"] = mean_pass_at_k(by_measurement["id", "pass"])
    return report


def mean_pass_at_k(records: list[dict]) -> dict[str, float]:
    """pass@k for every k up to 64: the mean over the questions with at least k scored samples."""
    correct_of = defaultdict(list)  # id of a question -> for each scored sample: is it right?
    for record in records:
        if record["score"] is not None:
            correct_of[record["id"]].append(record["score"] == 1.0)

    rates = {}
    for k in (1, 2, 4, 8, 16, 32, 64):
        enough = [correct for correct in correct_of.values() if len(correct) >= k]
        if enough:
            chances = [pass_at_k(len(correct), sum(correct), k) for correct in enough]
            rates[str(k)] = sum(chances) / len(enough)
    return rates


def read_records(file: str | Path) -> dict[str, list[dict]]:
    """The records of a completions.jsonl by model. ValueError naming --rescore if there is none."""
    if not Path(file).is_file():
        raise ValueError(f"--rescore {file}: no such file")
    by_model = defaultdict(list)
    for record in read_jsonl(Path(file)):
        by_model[record["model"]].append(record)
    return by_model


def rescore(cfg: Config) -> None:
    """Grade every response of --rescore FILE again, from its record alone, and print the table.

    A `text` answer that needs a judge keeps its stored score where none answers. Nothing is written
    but what --judge_url answers, to the cache beside FILE.
    """
    by_model = read_records(cfg.rescore)
    silent = SimpleNamespace(yes=lambda question: None)  # stands in for a judge, never answers
    judge = make_judge(cfg, Path(cfg.rescore).parent) or silent

    kept = 0
    for record in sum(by_model.values(), []):
        example = {**record, "answer": record["gold"]}
        verdict = grade(example, record["response"], judge)
        if verdict.score is None and record["answer_type"] == "text":
            kept += 1
            verdict = Grade(record["score"], record["reason"], record["extracted"])
        record.update(response_record(example, record["response"], verdict))

    if kept:
        print(f"{kept} answers need a judge (--judge_url) and keep the score that is stored")
    print(format_table({name: summarize(records) for name, records in by_model.items()}))


# --- 4. Generalisation over a run -----------------------------------------------------------------


def measure_gf(run_folder: Path, encoded: EncodedSets, cfg: Config, device) -> list[dict]:
    """One entry a checkpoint, the start model first: format on each set, mean over OOD, GF."""
    curve = []
    title = f"GF of {run_folder.name}"
    for step, folder in tqdm(checkpoints(run_folder, "--gf_runs"), desc=title, leave=False):
        policy, encoder = load_model(
            str(folder), flag="--gf_runs", freeze_vision=True, max_pixels=cfg.max_pixels
        )
        policy.to(device)

        rates = {}
        for name, prompts in encoded.for_encoder(encoder).items():
            measurement = Measurement(name, "sampled", cfg.temperature)
            records = collect_responses(policy, encoder, prompts, cfg, None, measurement)
            rates[name] = rate_with_interval(records, "in_format")["mean"]

        ood_rates = [rate for name, rate in rates.items() if name != "id"]
        entry = {"step": step, **rates, "ood": sum(ood_rates) / max(1, len(ood_rates))}
        first = curve[0] if curve else entry
        gain_id = entry["id"] - first["id"]
        gain_ood = entry["ood"] - first["ood"]
        entry["gf"] = generalization_factor(gain_id, gain_ood, cfg.gf_beta)
        curve.append(entry)
    return curve


def measure_gf_runs(cfg: Config, run: Run) -> dict[str, list[dict]]:
    """The curve of each run in --gf_runs. It is little work, so one process does it."""
    folders = split_names(cfg.gf_runs, "--gf_runs")
    sets = evaluation_sets(cfg.gf_items, cfg.seed, formats_only=True) if folders else {}
    encoded = EncodedSets(sets, cfg.max_prompt_tokens, run.warn)
    curves = {}
    for name, folder in folders.items():
        with run.accelerator.autocast():
            curves[name] = measure_gf(Path(folder), encoded, cfg, run.accelerator.device)
    return curves


# --- 5. Main --------------------------------------------------------------------------------------


def write_report(file: Path, curves: dict[str, list[dict]], run: Run) -> None:
    """Write report.json and report.png, print the table, all from the file of records alone."""
    reports = {name: summarize(records) for name, records in read_records(file).items()}
    report = json.dumps({"models": reports, "gf": curves}, indent=2)
    (run.folder / "report.json").write_text(report + "\n")
    plot_report(reports, curves, run.folder / "report.png")

    print(format_table(reports, curves))
    print(f"wrote {run.folder}/report.json, completions.jsonl, report.png")


def check_paths(cfg: Config) -> None:
    """Raise ValueError naming the flag of a model or run that is missing, before any is measured.

    A hub name passes: only loading can tell whether it exists.
    """
    for folder in split_names(cfg.models, "--models").values():
        check_folder(folder, "--models")
    for run_folder in split_names(cfg.gf_runs, "--gf_runs").values():
        for _, folder in checkpoints(Path(run_folder), "--gf_runs"):
            check_folder(str(folder), "--gf_runs")


def main(cfg: Config) -> None:
    if cfg.rescore:
        rescore(cfg)
        return
    check_paths(cfg)

    accelerator = make_accelerator(cfg)
    run = Run(cfg, "evaluate", accelerator, columns=[])
    rank, world_size = accelerator.process_index, accelerator.num_processes
    judge = make_judge(cfg, run.folder)

    sets = load_evaluation_sets(
        cfg.data, split=cfg.split, count=cfg.items, seed=cfg.seed, instruction=cfg.instruction,
        warn=run.warn,
    )
    sets_of_rank = {name: examples[rank::world_size] for name, examples in sets.items()}
    encoded = EncodedSets(sets_of_rank, cfg.max_prompt_tokens, run.warn)

    file = run.folder / "completions.jsonl"
    if run.writes:
        file.touch()
    for name, folder in split_names(cfg.models, "--models").items():
        records = measure(name, folder, encoded, judge, cfg, run)
        for records_of_rank in gather_objects(records, accelerator):
            if run.writes:
                append_jsonl(file, records_of_rank)

    if run.writes:
        write_report(file, measure_gf_runs(cfg, run), run)
    run.finish()


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
