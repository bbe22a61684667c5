"""Models are asked, and their responses graded: a record for each (`scoring/responses.py`).

    Measurement   one way to question a model: which set, how to sample, how often
    Evaluator     asks a model all that a list of measurements names, each rank its share of a set
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from harness.parts import Parts
from harness.randomness import torch_generator
from harness.run import Run
from model.loading import load_model
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import Prompt
from model.sampling import sample_groups, sampling_dtype
from rewards import Judge
from scoring.responses import grade_groups
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
    """Asks models questions and grades their responses."""

    cfg: object  # the settings of evaluate.py
    run: Run
    judge: Judge | None
    parts: Parts  # finished pieces of sampling, which --resume reads back

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
            records += self.sample_and_grade(policy, encoder, prompts, measurement, name)
        return records

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
                    logits_stat=measurement.logits_stat)
            labels = {"model": model_name, "set": measurement.set_name, "mode": measurement.mode}
            return [{**labels, **record}
                    for record in grade_groups(groups, encoder, policy.eos_ids, self.judge)]

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
