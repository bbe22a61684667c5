"""Models are asked what a list of measurements names; `evaluate.py` samples and grades.

    Measurement             one way to question a model: which set, how to sample, how often
    Evaluator               asks a model a list of measurements, each rank its share of a set
    rates_of_checkpoints    asks each checkpoint of a run; what remains is a rate for each set
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from harness.cli import split_names
from harness.parts import Parts
from harness.randomness import torch_generator
from harness.ranks import gather_objects
from harness.run import Run, checkpoints
from model.loading import load_model
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import Prompt
from model.sampling import sampling_dtype
from rewards import Judge
from scoring import load_gf_sets
from sources.lazily import Prompts
from sources.stream import EncodedSets
from sources.understood import LOOKED_AT, say_what_was_understood


@dataclass(frozen=True)
class Measurement:
    """One way to question a model."""

    set_name: str
    mode: str  # "sampled" (once), "greedy", or "pass" (several times, for pass@k)
    temperature: float
    samples: int = 1  # per question
    max_questions: int | None = None  # the first ones of the set; None: all of it
    logits_stat: Callable[[Tensor], Tensor] | None = None  # (B, V) -> (B,), at each sampled token


@dataclass(frozen=True)
class Evaluator:
    """Asks models questions, each rank its share, one chunk of prompts after the other."""

    cfg: object  # the settings of evaluate.py
    run: Run
    judge: Judge | None
    parts: Parts  # finished pieces of sampling, which --resume reads back
    sample_records: Callable  # that of evaluate.py: prompts -> a record for each response

    def measure(self, name: str, folder: str, flag_name: str, encoded: EncodedSets,
                measurements: list[Measurement]) -> list[dict]:
        """The records of one model, of this rank's share of the questions.

        name        of the model, in its records
        flag_name   the flag that an error about its folder names
        """
        accelerator = self.run.accelerator
        policy, encoder = load_model(
            folder, flag=flag_name, freeze_vision=True, max_pixels=self.cfg.max_pixels,
            dtype=sampling_dtype(accelerator), device=accelerator.device)
        prompts_of_set = encoded.for_encoder(encoder)
        looked_at = prompts_of_set[measurements[0].set_name][:LOOKED_AT]
        say_what_was_understood(self.run, encoder, looked_at, judge=self.judge)

        records = []
        for measurement in measurements:
            prompts = prompts_of_set[measurement.set_name]
            records += self.records_of(policy, encoder, prompts, measurement, name)
        return records

    def records_of(self, policy: Policy, encoder: PromptEncoder, prompts: Prompts,
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

        labels = {"model": model_name, "set": measurement.set_name, "mode": measurement.mode}

        def sample_chunk(chunk: list[Prompt]) -> list[dict]:
            with accelerator.autocast():
                records = self.sample_records(
                    policy, encoder, chunk, measurement, generator, cfg, self.judge)
            return [{**labels, **record} for record in records]

        # One chunk after the other; with --resume, those that were finished are read back.
        prompts = self.first_questions(prompts, measurement.max_questions)
        prompts_at_a_time = max(1, cfg.sample_batch // measurement.samples)
        return self.parts.each(f"{model_name}: {purpose}", prompts, prompts_at_a_time,
                               sample_chunk, generator)

    def first_questions(self, prompts: Prompts, limit: int | None) -> Prompts:
        """Those of this rank's prompts that are among the first `limit` questions of their set.

        Trap: the first so many *prompts* are not those of the first questions. Where a question was
        skipped, a later one would take its place, on one rank and not on another
        (test_a_skipped_question_has_no_substitute).
        """
        if limit is None:
            return prompts
        accelerator = self.run.accelerator
        # Rank r of R has the questions r, r + R, r + 2 R, ...
        own = range(accelerator.process_index, limit, accelerator.num_processes)
        return prompts.among_first(len(own))


def rates_of_checkpoints(evaluator: Evaluator) -> dict[str, dict[int, dict[str, float]]]:
    """Name of each run in --gf_runs -> step -> the rate of each set of GF at that checkpoint.

    The rate is accuracy, on the sets of --gf_id and --gf_ood. Without these it is the share in
    format, on the formats of the embedded world. The responses are not kept.
    """
    cfg, run = evaluator.cfg, evaluator.run
    run_folders = split_names(cfg.gf_runs, "--gf_runs")
    if not run_folders:
        return {}
    sets = load_gf_sets(cfg, run.warn)
    encoded = EncodedSets(sets, run.accelerator, cfg.max_prompt_tokens, run.warn)
    measurements = [Measurement(name, "sampled", cfg.temperature) for name in sets]
    field = "score" if cfg.gf_id else "in_format"

    rates = defaultdict(dict)
    for run_name, run_folder in run_folders.items():
        for step, folder in checkpoints(Path(run_folder), "--gf_runs"):
            name = f"{run_folder} step {step}"
            records = evaluator.measure(name, str(folder), "--gf_runs", encoded, measurements)
            rates[run_name][step] = means_of_sets(records, field, name, run.accelerator)
    return rates


def means_of_sets(records: list[dict], field: str, name: str, accelerator) -> dict[str, float]:
    """Set -> the mean of a field, over the records of all ranks; `name` is that of the model.

    Raises ValueError if no response to a set could be graded. Trap: a mean of 0 instead would give
    a GF that looks measured (test_gf_of_what_cannot_be_scored_is_an_error).
    """
    # Only the field that is averaged goes to the other ranks, not the responses.
    values_of_rank = [(record["set"], record[field]) for record in records]
    values_of = defaultdict(list)
    for set_name, value in sum(gather_objects(values_of_rank, accelerator), []):
        values_of[set_name] += [] if value is None else [float(value)]

    for set_name, values in values_of.items():
        if not values:
            raise ValueError(f"--gf_runs {name}: no response to {set_name} could be graded")
    return {set_name: sum(values) / len(values) for set_name, values in values_of.items()}
