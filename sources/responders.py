"""Who writes the responses of stage 2a, for each side what --source or --rejected_source names.

    base, zero, or a model's folder    sampled here (`sample_responses`)
    FILE.jsonl, http://HOST/v1#MODEL   written elsewhere (`sources/elsewhere.py`)

A *responder* is a function of prompts. It is opened before anything is sampled, so that a source
that cannot be opened is an error at the start, not after hours.
"""

from collections.abc import Callable

from accelerate import Accelerator

from harness.parts import Parts
from harness.randomness import torch_generator
from harness.run import Run
from model.loading import load_model
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import Prompt, is_truncated
from model.sampling import sample_groups, sampling_dtype
from sources.elsewhere import is_elsewhere, responses_from
from sources.funnel import Response
from sources.lazily import Prompts

Responder = Callable[[Prompts], list[list[Response]]]  # prompts -> responses, [question][sample]


def open_responder(side: str, base_model: Policy, encoder: PromptEncoder, cfg,
                   run: Run, parts: Parts) -> Responder:
    """Who responds for a side of the pairs, by --source or --rejected_source.

    Raises ValueError naming the flag if it cannot be opened, before anything is sampled.
    """
    if side == "chosen":
        flag_name, source = "--source", cfg.source
    else:
        flag_name, source = "--rejected_source", cfg.rejected_source

    if is_elsewhere(source):  # a file of responses, or an endpoint
        responses_to = responses_from(source, flag_name, cfg, run.warn, show=run.writes)
        return lambda prompts: responses_to(prompts.examples)

    if source == "base":
        policy = base_model
    elif source == "zero":
        policy = load_other_model(cfg.zero, "--zero", encoder, cfg, run)
    else:
        policy = load_other_model(source, flag_name, encoder, cfg, run)
    return lambda prompts: sample_responses(policy, encoder, prompts, cfg, run.accelerator, parts,
                                            side)


def load_other_model(folder: str, flag_name: str, encoder: PromptEncoder, cfg,
                     run: Run) -> Policy:
    """A model beside the base, for the prompts of the base's `encoder`.

    Trap: the base's tokenizer encodes the prompts and decodes the responses of every model. One
    that was trained with another vocabulary would read and write garbage
    (test_a_source_with_another_tokenizer_is_refused).
    """
    policy, its_encoder = load_model(folder, flag=flag_name, freeze_vision=True,
                                     dtype=sampling_dtype(run.accelerator))
    if its_encoder.tokenizer.get_vocab() != encoder.tokenizer.get_vocab():
        raise ValueError(f"{flag_name} {folder}: its tokenizer is not that of --base {cfg.base}; "
                         "sample it elsewhere, and give FILE.jsonl")
    return policy


def sample_responses(policy: Policy, encoder: PromptEncoder, prompts: Prompts, cfg,
                     accelerator: Accelerator, parts: Parts, side: str) -> list[list[Response]]:
    """--samples responses of a model to each prompt; `parts` saves them, for --resume."""
    # The seed depends on `side`. With one for both, similar models would write the same responses,
    # and with --source base both sides would be equal.
    generator = torch_generator(cfg.seed, side, accelerator.process_index, accelerator.device)

    def sample_chunk(chunk: list[Prompt]) -> list[dict]:
        groups = sample_groups(
            policy, chunk, cfg.samples, max_new_tokens=cfg.max_new_tokens,
            temperature=cfg.temperature, generator=generator, sample_batch=cfg.sample_batch,
            compile_decode=cfg.compile_decode)
        return [{"texts": [encoder.decode(ids) for ids in group.completions],
                 "truncated": [is_truncated(ids, policy.eos_ids) for ids in group.completions]}
                for group in groups]

    policy.to(accelerator.device)
    prompts_at_a_time = max(1, cfg.sample_batch // cfg.samples)
    with accelerator.autocast():
        records = parts.each(f"{side} responses", prompts, prompts_at_a_time, sample_chunk,
                             generator)
    policy.cpu()  # makes room for the next model
    return [[Response(text, is_cut) for text, is_cut in zip(record["texts"], record["truncated"])]
            for record in records]
