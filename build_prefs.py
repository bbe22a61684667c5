"""Preference pairs that differ in format, not in correctness: stage 2a of SPECS.

Two models answer the same questions. The *zero* model (stage 1, good at the format) writes the
chosen response, the *base* model the rejected one:

    chosen      sampled by zero  -> right answer?  -> a missing closing tag supplied
                                 -> reasoning agrees with the answer?
    rejected    sampled by base  -> right answer?  -> one of five corruptions, or unchanged if it
                                                      was already out of format

Both answers are right, so correctness does not separate them; the format does (and the style of two
models). The paper calls such pairs "decoupled". With --coupled the rejected answer is wrong, and
its format corrupted as well: correctness and format are mixed, which the paper finds worse.

Where the paper is silent:
  1. "Format supplement" is not defined: here a missing closing tag is put where it belongs.
  2. The consistency check is a rule: the conclusion that the reasoning states is the answer
     (`rewards/consistency.py`). Where it is unsure, --unsure decides. --judge_url asks a judge, as
     the paper asks Gemini (no verdict: not chosen); --no_verify leaves the check out.
  3. One of the five corruptions is drawn uniformly.

    accelerate launch build_prefs.py --zero runs/zero/model       ~30 seconds on one core
    accelerate launch build_prefs.py --source base ...            ablation: chosen by base as well
    accelerate launch build_prefs.py --source http://HOST:8000/v1#MODEL ...     chosen by a teacher

Writes a folder that `datasets.load_dataset(folder)` opens, images included, with the columns of
    TRL             prompt, chosen, rejected (lists of messages), images
    LLaMA-Factory   conversations, chosen_message, rejected_message, images (dataset_info.json)
and in it funnel.json, which counts what became of every response (`sources/funnel.py`).
"""

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from accelerate import Accelerator

from harness import settings
from harness.cli import flag, parse_cli, run_stage
from harness.parts import Parts
from harness.randomness import random_of, torch_generator
from harness.ranks import gather_objects, make_accelerator
from harness.run import Run
from model.loading import load_model
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import Prompt, is_truncated
from model.sampling import sample_groups, sampling_dtype
from rewards import AskLater, Judge, grade, is_in_format, make_judge
from rewards.consistency import AGREES, UNSURE, check_consistency
from rewards.judge import QUESTIONS_AT_A_TIME, take_counts
from sources import load_examples
from sources.elsewhere import is_elsewhere, responses_from
from sources.funnel import Candidate, Response, count_question, drop_repeats, kept, write_funnel
from sources.lazily import Prompts
from sources.pairs import TABLE_PATH, pair_record, write_readme, write_table
from sources.stream import encode_all
from sources.understood import LOOKED_AT, say_what_was_understood


@dataclass(frozen=True)
class Config(settings.Data, settings.Sampling, settings.Judge, settings.RunFolder):
    # models
    base: str = flag("toy/base", "base model, folder or hub name; paper: Qwen2.5-VL-7B-Instruct")
    zero: str = flag("runs/zero/model", "model folder of stage 1")
    source: str = flag("zero", "who writes chosen: zero (paper), base, a folder or hub name, "
                       "FILE.jsonl of id and response, or http://HOST/v1#MODEL; paper's teachers")
    rejected_source: str = flag("base", "who writes rejected: the same choice; paper: base")
    responses_call_s: float = flag(600.0, "limit of one call to such an endpoint, seconds; ours")
    responses_cache: str = flag("runs/responses", "folder of what such endpoints wrote; ours")
    # questions and sampling
    data: str = flag("toy", "`toy`, a folder, a file or a hub name; paper: not stated")
    max_examples: int = flag(1536, "questions; ours, paper: enough for ~9k pairs", alias="rows")
    samples: int = flag(4, "responses per question of each model; paper: not stated")
    temperature: float = flag(1.0, "of both models; paper: not stated")
    seed: int = flag(1, "of questions, sampling, corruptions (1: not those of stage 1); ours")
    # pairs
    coupled: bool = flag(False, "rejected is wrong and corrupted; ablation, recipe not published")
    verify: bool = flag(True, "chosen: reasoning must agree with answer; --no_verify: ablation")
    unsure: str = flag("drop", "`drop` or `keep` chosen whose reasoning states no conclusion; ours")
    judge_url: str = flag("", "OpenAI-compatible endpoint for that check; paper: Gemini-2.5-flash",
                          changeable=True)
    pairs_per_question: int = flag(2, "at most so many pairs per question; ours")

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 1 or self.pairs_per_question < 1:
            raise ValueError("--samples and --pairs_per_question must be at least 1")
        if self.unsure not in ("drop", "keep"):
            raise ValueError(f"--unsure {self.unsure}: wanted drop or keep")


AS_SAMPLED = "as sampled"  # the note of a candidate whose text was left as it was


# --- 0. What both sides ask of a response --------------------------------------------------------


def why_unusable(response: Response, example: dict, judge: Judge | None,
                 wanted: float) -> str | None:
    """Why a response cannot be used where the score `wanted` is asked for; None if it can."""
    if response.text is None:
        return "no reply"
    if response.truncated:
        return "truncated"

    score = grade(example, response.text, judge).score
    if score is None:
        return "could not be graded"
    if 0.0 < score < 1.0:  # bounding boxes are graded by their overlap
        return "answer partly right"
    if score != wanted:
        return "wrong answer" if wanted == 1.0 else "right answer"
    return None


# --- 1. Chosen: right, in the full format, consistent --------------------------------------------


def supplement(response: str) -> str | None:
    """The paper's format supplement: a missing *closing* tag is added.

    None if that does not bring the response into the format.

    >>> supplement("<think> a <answer> 2 </answer>")
    '<think> a </think> <answer> 2 </answer>'
    >>> supplement("a <answer> 2 </answer>") is None
    True
    """
    if "</think>" not in response and "<answer>" in response:
        thought, rest = response.split("<answer>", 1)
        words = thought.rstrip()
        blanks = thought[len(words):]  # they stay in front of <answer>
        response = words + " </think>" + blanks + "<answer>" + rest
    if "</answer>" not in response and "<answer>" in response:
        response = response.rstrip() + " </answer>"
    return response.strip() if is_in_format(response) else None


def choose(response: Response, example: dict, judge: Judge | None, cfg: Config) -> Candidate:
    """A response as the chosen side of a pair, or why it cannot be that side."""
    reason = why_unusable(response, example, judge, wanted=1.0)
    if reason is not None:
        return Candidate(None, reason)

    text = supplement(response.text)
    if text is None:
        return Candidate(None, "format beyond supplement")

    consistency = ""
    if cfg.verify:
        consistency = check_consistency(example, text, judge)
        is_accepted = consistency == AGREES or (consistency == UNSURE and cfg.unsure == "keep")
        if not is_accepted:
            return Candidate(None, f"reasoning: {consistency}", consistency)
    note = AS_SAMPLED if text == response.text.strip() else "format supplied"
    return Candidate(text, note, consistency)


# --- 2. Rejected: right (with --coupled: wrong), out of format -----------------------------------


def remove_tags(text: str, *tags: str) -> str:
    """The text without these tags and the white space that belonged to them, the rest as it is.

    >>> remove_tags("<think> a </think>\\n  <answer> 2 </answer>", "<answer>", "</answer>")
    '<think> a </think>\\n2'

    Blanks around a tag belong to it; between two words one is left. A line of nothing but tags is
    removed with its line break.

    Trap: collapsing all runs of blanks would take the indentation of lists and code away. Chosen
    keeps it, so white space would be a cue beside the format (test_corruptions_keep_white_space).
    """
    # Tags in a row, with the blanks before, between and behind. `(?<![ \t])`: a match begins at the
    # first of several blanks only. To try each would be quadratic in their number.
    row = rf"(?<![ \t])(?:[ \t]*(?:{'|'.join(tags)}))+[ \t]*"
    text = re.sub(rf"^{row}(?:\n|\Z)", "", text.strip(), flags=re.MULTILINE)
    text = re.sub(rf"^{row}|{row}$", "", text, flags=re.MULTILINE)
    return re.sub(row, " ", text).strip("\n")


CORRUPTIONS = {
    "no tags": lambda r: remove_tags(r, "<think>", "</think>", "<answer>", "</answer>"),
    "no answer tags": lambda r: remove_tags(r, "<answer>", "</answer>"),
    "no think tags": lambda r: remove_tags(r, "<think>", "</think>"),
    "think around all": lambda r: remove_tags(r, "<answer>", "</answer>", "</think>") + " </think>",
    # The word "Answer:" in place of the tags.
    "answer in words": lambda r: remove_tags(r.replace("<answer>", "Answer:"), "</answer>"),
}


def corrupt(response: str, rng: random.Random) -> tuple[str, str]:
    """(response without the format, what was done). One already out of format is left as it is.

    Source: the five kinds are SPECS'; the uniform draw is ours.

    >>> for name, corruption in CORRUPTIONS.items():
    ...     print(f"{name:<18}{corruption('<think> a </think> <answer> 2 </answer>')}")
    no tags           a 2
    no answer tags    <think> a </think> 2
    no think tags     a <answer> 2 </answer>
    think around all  <think> a 2 </think>
    answer in words   <think> a </think> Answer: 2
    """
    if not is_in_format(response):
        return response.strip(), AS_SAMPLED  # chosen is stripped too: white space is no cue
    name = rng.choice(list(CORRUPTIONS))
    return CORRUPTIONS[name](response), name


def reject(response: Response, example: dict, judge: Judge | None, rng: random.Random,
           cfg: Config) -> Candidate:
    """A response as the rejected side of a pair, or why it cannot be that side."""
    reason = why_unusable(response, example, judge, wanted=0.0 if cfg.coupled else 1.0)
    if reason is not None:
        return Candidate(None, reason)
    text, kind = corrupt(response.text, rng)
    return Candidate(text, note=kind)


# --- 3. Pairs ------------------------------------------------------------------------------------


def sample_responses(policy: Policy, encoder: PromptEncoder, prompts: Prompts, cfg: Config,
                     accelerator: Accelerator, parts: Parts, side: str) -> list[list[Response]]:
    """--samples responses of a model to each prompt, for one side of the pairs.

    What an earlier process of this run has sampled is read from `parts`.
    """
    # By `side`: with the same numbers, similar models would write the same responses, and with
    # --source base both sides would be equal.
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
    return [list(map(Response, record["texts"], record["truncated"])) for record in records]


def ask_ahead(examples: list[dict], chosen_side: list[list[Response]],
              rejected_side: list[list[Response]], cfg: Config, judge: Judge) -> None:
    """Ask the judge all that `make_pairs` will ask, in two rounds: one by one, it would take hours.

        1. is the answer right?
        2. of the right ones: does the reasoning lead to the answer?

    A round is a dry run of `choose` and `reject`; only their questions are kept. In the first, an
    answer that needs the judge counts as "could not be graded", so its reasoning is asked about in
    the second. Which corruption is drawn does not matter here.
    """
    later = AskLater(judge)  # it notes a question and does not answer it yet
    for _ in range(2):
        for example, for_chosen, for_rejected in zip(examples, chosen_side, rejected_side):
            for response in for_chosen:
                choose(response, example, later, cfg)
            for response in for_rejected:
                reject(response, example, later, random.Random(0), cfg)
        later.ask_pending(QUESTIONS_AT_A_TIME)


def make_pairs(examples: list[dict], chosen_side: list[list[Response]],
               rejected_side: list[list[Response]], cfg: Config, judge: Judge | None,
               rng: random.Random) -> tuple[list[dict], Counter]:
    """(pairs, funnel): the i-th chosen with the i-th rejected of each question.

    Which one meets which does not matter: both are samples of the same question.
    """
    if judge is not None:
        ask_ahead(examples, chosen_side, rejected_side, cfg, judge)

    pairs, funnel = [], Counter()
    for example, for_chosen, for_rejected in zip(examples, chosen_side, rejected_side):
        chosen = drop_repeats([choose(r, example, judge, cfg) for r in for_chosen])
        rejected = drop_repeats([reject(r, example, judge, rng, cfg) for r in for_rejected])

        matched = list(zip(kept(chosen), kept(rejected)))
        for one_chosen, one_rejected in matched[: cfg.pairs_per_question]:
            pairs.append(pair_record(example, one_chosen.text, one_rejected.text,
                                     corruption=one_rejected.note))
        funnel += count_question(chosen, rejected, cfg.pairs_per_question)
    return pairs, funnel


# --- 4. Main -----------------------------------------------------------------------------------


Responder = Callable[[Prompts], list[list[Response]]]  # the responses to each prompt


def open_responder(side: str, base_model: Policy, encoder: PromptEncoder, cfg: Config,
                   run: Run, parts: Parts) -> Responder:
    """Who responds for a side of the pairs, by --source or --rejected_source.

    Raises ValueError naming the flag if it cannot be opened, before anything is sampled.
    """
    if side == "chosen":
        flag_name, source = "--source", cfg.source
    else:
        flag_name, source = "--rejected_source", cfg.rejected_source

    if is_elsewhere(source):
        responses_to = responses_from(source, flag_name, cfg, run.warn, show=run.writes)
        return lambda prompts: responses_to(prompts.examples)

    if source == "base":
        policy = base_model
    else:
        if source == "zero":
            flag_name, source = "--zero", cfg.zero
        policy, _ = load_model(source, flag=flag_name, freeze_vision=True,
                               dtype=sampling_dtype(run.accelerator))
    return partial(sample_responses, policy, encoder, cfg=cfg, accelerator=run.accelerator,
                   parts=parts, side=side)


def save_pairs(pairs: list[dict], funnel: Counter, num_questions: int, run: Run) -> None:
    """Write the pairs of every rank, and the report on all of them."""
    accelerator = run.accelerator
    funnel = sum(gather_objects(funnel, accelerator), Counter())
    if not funnel["pairs"]:
        raise ValueError(f"no pair came out of {num_questions} questions: {dict(funnel)}; "
                         "is --zero a trained model?")
    if pairs:
        name = TABLE_PATH.format(accelerator.process_index, accelerator.num_processes)
        write_table(pairs, run.folder / name)

    # One pair to print. Its rank may not be the main process, and images are never sent.
    first_pairs = [{**pair, "images": None} for pair in pairs[:1]]
    first_pairs = sum(gather_objects(first_pairs, accelerator), [])
    if run.writes:
        write_readme(run.folder, funnel["pairs"])
        write_funnel(funnel, first_pairs[0], run)


def main(cfg: Config) -> None:
    accelerator = make_accelerator(cfg)
    run = Run(cfg, "build_prefs", accelerator, columns=[])
    rank, world_size = accelerator.process_index, accelerator.num_processes

    base_model, encoder = load_model(cfg.base, flag="--base", freeze_vision=True,
                                     max_pixels=cfg.max_pixels, dtype=sampling_dtype(accelerator))
    parts = Parts(run)
    respond_chosen = open_responder("chosen", base_model, encoder, cfg, run, parts)
    respond_rejected = open_responder("rejected", base_model, encoder, cfg, run, parts)

    examples = load_examples(cfg.data, count=cfg.max_examples, seed=cfg.seed,
                             instruction=cfg.instruction, columns=cfg.columns,
                             revision=cfg.revision)
    prompts = encode_all(examples, encoder, cfg.max_prompt_tokens, run.warn, rank, world_size)
    judge = make_judge(cfg, run.warn)
    say_what_was_understood(run, encoder, prompts[:LOOKED_AT], examples=examples, judge=judge,
                            judge_is_asked=cfg.verify)

    chosen_side, rejected_side = respond_chosen(prompts), respond_rejected(prompts)

    rng = random_of(cfg.seed, "corruptions", rank)
    pairs, funnel = make_pairs(prompts.examples, chosen_side, rejected_side, cfg, judge, rng)
    funnel += Counter(take_counts(judge))
    funnel[f"chosen: from {cfg.source}"] = sum(map(len, chosen_side))
    funnel[f"rejected: from {cfg.rejected_source}"] = sum(map(len, rejected_side))
    questions_of_rank = len(range(rank, len(examples), world_size))
    funnel["questions: skipped, see the warnings"] = questions_of_rank - len(prompts)
    save_pairs(pairs, funnel, len(examples), run)
    run.finish()


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
