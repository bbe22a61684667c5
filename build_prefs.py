"""Preference pairs that differ in format, not in correctness: stage 2a of SPECS.

Two models answer the same questions. The *base* model writes the rejected response; the *zero*
model, the base after stage 1, writes the chosen one: the base will learn from its own descendant,
which is SPECS' self-distillation.

    chosen      sampled by zero  -> complete, and the answer right?
                                 -> in format, if need be with a missing closing tag added?
                                 -> reasoning agrees with the answer?
    rejected    sampled by base  -> complete, and the answer right?
                                 -> one of five corruptions, or unchanged if already out of format
    pairs       of each question: repeats dropped on each side, then the i-th chosen with the i-th
                rejected, at most --pairs_per_question

As a program:

    0. open who responds for each side, load the questions       open_responder
    1. sample responses for both sides                           sample_responses
    2. make pairs of them                                        make_pairs
         a. can a response be chosen? If not, why not?           chosen_candidate
         b. can a response be rejected? If not, why not?         rejected_candidate
         c. drop repeats, match the i-th chosen with the i-th rejected
    3. write the pairs, and what became of every response        save_pairs

The paper calls such pairs *decoupled*: both answers are right, so correctness does not separate
them; the format does. "Right" means as sampled. A corrupted response is not graded again: without
its tags the grader may find another number first.

Three other things separate them, though nobody asked for it: the style of two models; their length
(in the embedded world chosen has 27 tokens on average, rejected 18); and consistency, for which
only chosen is checked.

With --coupled the rejected answer is wrong, and its format corrupted as well, which the paper finds
worse.

Where the paper is silent:
  1. "Format supplement" is not defined: here a missing closing tag is put where it belongs.
  2. "Consistent" is not defined: here the conclusion that the reasoning states is the answer.
         by default     a rule decides (`rewards/consistency.py`); --unsure says what becomes of a
                        response that the rule cannot decide
         --judge_url    a judge decides, as Gemini does in the paper; without a verdict: dropped
         --no_verify    not checked
  3. An answer is right at score 1 only, so that bounding boxes, scored by overlap, give few pairs.
  4. One of the five corruptions is drawn uniformly.

    accelerate launch build_prefs.py --zero runs/zero/model       ~30 seconds on one core
    accelerate launch build_prefs.py --source base ...            ablation: chosen by base as well
    accelerate launch build_prefs.py --source http://HOST:8000/v1#MODEL ...     chosen by a teacher

Writes a folder that `datasets.load_dataset(folder)` opens, images included, with the columns of
    TRL             prompt, chosen, rejected (lists of messages), images
    LLaMA-Factory   conversations, chosen_message, rejected_message, images (dataset_info.json)
and in it funnel.json, which counts what became of every response (`sources/funnel.py`).
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

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
from rewards import Judge, grade, is_in_format, make_judge
from rewards.consistency import AGREES, UNSURE, check_consistency
from rewards.format import answer_in_words, remove_tags
from rewards.judge import QUESTIONS_AT_A_TIME, ask_ahead, take_counts
from sources import load_examples
from sources.elsewhere import is_elsewhere, responses_from
from sources.funnel import (
    Candidate,
    Response,
    count_question,
    drop_repeats,
    dropped,
    kept,
    write_funnel,
)
from sources.lazily import Prompts
from sources.pairs import TABLE_PATH, pair_record, write_readme, write_table
from sources.stream import encode_all
from sources.understood import LOOKED_AT, say_what_was_understood


@dataclass(frozen=True)
class Config(settings.Data, settings.Sampling, settings.Judge, settings.RunFolder):
    # models
    base: str = flag("toy/base", "base model, folder or hub name; paper: Qwen2.5-VL-7B-Instruct")
    zero: str = flag("runs/zero/model", "model folder of stage 1")
    source: str = flag("zero", "who writes chosen: zero (paper), base, or a teacher: a folder or "
                       "hub name, FILE.jsonl of id and response, or http://HOST/v1#MODEL")
    rejected_source: str = flag("base", "who writes rejected, as in --source; paper: base")
    responses_call_s: float = flag(600.0, "limit of one call to such an endpoint, seconds; ours")
    responses_cache: str = flag("runs/responses", "folder of what such endpoints wrote; ours")
    # questions and sampling
    data: str = flag("toy", "`toy`, a folder, a file or a hub name; paper: not stated")
    max_examples: int = flag(1536, "questions; ours, paper: enough for ~9k pairs", alias="rows")
    samples: int = flag(4, "responses per question of each model; paper: not stated")
    temperature: float = flag(1.0, "of both models; paper: not stated")
    seed: int = flag(1, "of questions, sampling and corruptions; 1, as stage 1 has seed 0; ours")
    # pairs
    coupled: bool = flag(False, "rejected is wrong and corrupted; ablation, recipe not published")
    verify: bool = flag(True, "chosen: reasoning must agree with answer; --no_verify: ablation")
    unsure: str = flag("drop", "`drop` or `keep` chosen whose reasoning states no conclusion; ours")
    judge_url: str = flag("", "OpenAI-compatible endpoint, asked whether reasoning agrees (paper: "
                          "Gemini-2.5-flash) and about answers of type `text`", changeable=True)
    pairs_per_question: int = flag(2, "at most so many pairs per question; ours")

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "samples", "pairs_per_question")
        self.check_positive("temperature", "at 0 all --samples of a question are the same")
        if self.unsure not in ("drop", "keep"):
            raise ValueError(f"--unsure {self.unsure}: wanted drop or keep")


# --- 1. Sample responses for both sides ----------------------------------------------------------


Responder = Callable[[Prompts], list[list[Response]]]  # prompts -> responses, [prompt][sample]


def open_responder(side: str, base_model: Policy, encoder: PromptEncoder, cfg: Config,
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


def load_other_model(folder: str, flag_name: str, encoder: PromptEncoder, cfg: Config,
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


def sample_responses(policy: Policy, encoder: PromptEncoder, prompts: Prompts, cfg: Config,
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


# --- For 2a and 2b: can a response be used at all? -----------------------------------------------


AS_SAMPLED = "as sampled"  # the note of a candidate whose text was only stripped of white space


def why_unusable(response: Response, example: dict, judge: Judge | None,
                 want_right: bool) -> str | None:
    """Why a response has to be dropped, for the funnel; None if it can be used.

    want_right  True: only a right answer can be used. False (rejected, with --coupled): only a
                wrong one

    In both cases the response must be complete, and its answer gradable.
    """
    if response.text is None:
        return "no reply"
    if response.truncated:
        return "truncated"

    score = grade(example, response.text, judge).score
    if score is None:
        return "could not be graded"
    if 0.0 < score < 1.0:  # bounding boxes are graded by their overlap
        return "answer partly right"
    is_right = score == 1.0
    if is_right != want_right:
        return "right answer" if is_right else "wrong answer"
    return None


# --- 2a. Chosen: right, in the full format, consistent -------------------------------------------


def supplement(text: str) -> str | None:
    """The response with its missing *closing* tags added; None if it is out of format even then.

    This is what we take the paper's "format supplement" to be. If a response is in the format
    already, only the white space around it is removed. The added tags do not change the answer that
    was graded: where </answer> is missing, the grader reads to the end of the response.

    >>> supplement("<think> a <answer> 2 </answer>")
    '<think> a </think> <answer> 2 </answer>'
    >>> supplement("a <answer> 2 </answer>") is None
    True
    """
    if "</think>" not in text and "<answer>" in text:
        thought, rest = text.split("<answer>", 1)
        # The tag goes behind the last word; the white space stays in front of <answer>.
        words = thought.rstrip()
        white_space = thought[len(words):]
        text = words + " </think>" + white_space + "<answer>" + rest
    if "</answer>" not in text and "<answer>" in text:
        text = text.rstrip() + " </answer>"
    return text.strip() if is_in_format(text) else None


def chosen_candidate(response: Response, example: dict, judge: Judge | None,
                     cfg: Config) -> Candidate:
    """A response as the chosen side of a pair, or why it cannot be that side."""
    reason = why_unusable(response, example, judge, want_right=True)
    if reason is not None:
        return dropped(reason)

    text = supplement(response.text)
    if text is None:
        return dropped("format beyond supplement")

    consistency = ""
    if cfg.verify:
        consistency = check_consistency(example, text, judge)
        is_accepted = consistency == AGREES or (consistency == UNSURE and cfg.unsure == "keep")
        if not is_accepted:
            return dropped(f"reasoning: {consistency}", consistency)
    note = AS_SAMPLED if text == response.text.strip() else "format supplemented"
    return Candidate(text, note, consistency)


# --- 2b. Rejected: right (with --coupled: wrong), out of format ----------------------------------


CORRUPTIONS = {
    "no tags": lambda r: remove_tags(r, "<think>", "</think>", "<answer>", "</answer>"),
    "no answer tags": lambda r: remove_tags(r, "<answer>", "</answer>"),
    "no think tags": lambda r: remove_tags(r, "<think>", "</think>"),
    "think around all": lambda r: remove_tags(r, "<answer>", "</answer>", "</think>") + " </think>",
    "answer in words": answer_in_words,
}


def corrupt(text: str, rng: random.Random) -> tuple[str, str]:
    """(text, note): a response taken out of the format, and how.

    in format       one of CORRUPTIONS, drawn at random, and its name
    out of format   stripped of the white space around it, and AS_SAMPLED

    Source: the five kinds are SPECS'; the uniform draw is ours.

    >>> for name, corruption in CORRUPTIONS.items():
    ...     print(f"{name:<18}{corruption('<think> a </think> <answer> 2 </answer>')}")
    no tags           a 2
    no answer tags    <think> a </think> 2
    no think tags     a <answer> 2 </answer>
    think around all  <think> a 2 </think>
    answer in words   <think> a </think> Answer: 2
    """
    if not is_in_format(text):
        return text.strip(), AS_SAMPLED  # chosen is stripped too: white space is no cue
    name = rng.choice(list(CORRUPTIONS))
    return CORRUPTIONS[name](text), name


def rejected_candidate(response: Response, example: dict, judge: Judge | None,
                       rng: random.Random, cfg: Config) -> Candidate:
    """A response as the rejected side of a pair, or why it cannot be that side."""
    reason = why_unusable(response, example, judge, want_right=not cfg.coupled)
    if reason is not None:
        return dropped(reason)
    text, note = corrupt(response.text, rng)
    return Candidate(text, note)


# --- 2. Make pairs: 2a and 2b for each response, then 2c -----------------------------------------


def make_candidates(examples: list[dict], chosen_side: list[list[Response]],
                    rejected_side: list[list[Response]], cfg: Config, judge: Judge | None,
                    rng: random.Random) -> list[tuple[list[Candidate], list[Candidate]]]:
    """2a and 2b: each response as a candidate for its side, [question] -> (chosen, rejected)."""
    candidates = []
    for example, for_chosen, for_rejected in zip(examples, chosen_side, rejected_side):
        chosen = [chosen_candidate(response, example, judge, cfg) for response in for_chosen]
        rejected = [rejected_candidate(response, example, judge, rng, cfg)
                    for response in for_rejected]
        candidates.append((chosen, rejected))
    return candidates


def make_pairs(examples: list[dict], chosen_side: list[list[Response]],
               rejected_side: list[list[Response]], cfg: Config, judge: Judge | None,
               rng: random.Random) -> tuple[list[dict], Counter]:
    """(pairs, funnel): the i-th chosen with the i-th rejected of each question.

    chosen_side, rejected_side  [question][sample]: the responses sampled for that side

    i has no meaning: samples of one question come in no particular order.
    """

    # Before a and b, if there is a judge: ask it many questions at a time, which saves hours. To
    # collect them, make candidates with a recorder in the judge's place, and throw them away. Two
    # rounds: the reasoning is asked about only once the answer is known to be right, and of some
    # answers only the judge can say that.
    def dry_run(recorder) -> None:
        any_rng = random.Random(0)  # no question depends on how a response is corrupted
        make_candidates(examples, chosen_side, rejected_side, cfg, recorder, any_rng)

    ask_ahead(judge, dry_run, rounds=2, at_a_time=QUESTIONS_AT_A_TIME)

    # 2a, 2b. Each response becomes a candidate for its side, or is dropped for a reason.
    candidates = make_candidates(examples, chosen_side, rejected_side, cfg, judge, rng)

    # 2c. On each side drop repeats, then match the i-th chosen with the i-th rejected. A repeat has
    # the same final text as an earlier candidate: equal responses, corrupted in different ways, are
    # none, and both are kept.
    pairs, funnel = [], Counter()
    for example, (chosen, rejected) in zip(examples, candidates):
        chosen, rejected = drop_repeats(chosen), drop_repeats(rejected)
        matched = list(zip(kept(chosen), kept(rejected)))
        for winner, loser in matched[: cfg.pairs_per_question]:
            pairs.append(pair_record(example, winner.text, loser.text, corruption=loser.note))
        funnel += count_question(chosen, rejected, cfg.pairs_per_question)
    return pairs, funnel


# --- 3. Write them -------------------------------------------------------------------------------


def save_pairs(pairs: list[dict], funnel: Counter, num_questions: int, run: Run) -> None:
    """Write the pairs of every rank, and the report on all of them."""
    accelerator = run.accelerator
    funnel = sum(gather_objects(funnel, accelerator), Counter())
    if not funnel["pairs"]:
        raise ValueError(f"no pair came out of {num_questions} questions: {dict(funnel)}; by "
                         "default --zero must be a model that stage 1 has trained")
    if pairs:
        name = TABLE_PATH.format(accelerator.process_index, accelerator.num_processes)
        write_table(pairs, run.folder / name)

    # One pair to print. Its rank may not be the main process, and images are never sent.
    first_pairs = [{**pair, "images": None} for pair in pairs[:1]]
    first_pairs = sum(gather_objects(first_pairs, accelerator), [])
    if run.writes:
        write_readme(run.folder, funnel["pairs"])
        write_funnel(funnel, first_pairs[0], run)


# --- Main ----------------------------------------------------------------------------------------


def main(cfg: Config) -> None:
    accelerator = make_accelerator(cfg)
    run = Run(cfg, "build_prefs", accelerator, columns=[])
    rank, world_size = accelerator.process_index, accelerator.num_processes

    # 0. Open who responds for each side: what cannot be opened is an error now, not after hours.
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

    # 1. Sample responses for both sides, one model after the other.
    chosen_side = respond_chosen(prompts)
    rejected_side = respond_rejected(prompts)

    # 2. Make pairs of them.
    rng = random_of(cfg.seed, "corruptions", rank)
    pairs, funnel = make_pairs(prompts.examples, chosen_side, rejected_side, cfg, judge, rng)

    # 3. Write the pairs, and what became of every response.
    questions_of_rank = range(rank, len(examples), world_size)
    funnel += Counter({  # adding leaves out what is 0: the funnel lists what happened
        "questions: skipped, see the warnings": len(questions_of_rank) - len(prompts),
        f"chosen: from {cfg.source}": sum(map(len, chosen_side)),
        f"rejected: from {cfg.rejected_source}": sum(map(len, rejected_side)),
        **take_counts(judge),
    })
    save_pairs(pairs, funnel, len(examples), run)
    run.finish()


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
