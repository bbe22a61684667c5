"""Preference pairs that differ in format, not in correctness: stage 2a of SPECS.

Two models answer the same questions, one for each *side* of the pairs. The *base* model writes the
rejected side; the *zero* model, the base after stage 1, writes the chosen side: the base will learn
from its own descendant, which is SPECS' self-distillation. (A *responder* is what writes a side:
one of these models, or by flag a file or an endpoint.) As a program:

    0. open the responder of each side, load the questions           open_responder
    1. sample responses of both sides: --samples of each model       respond_chosen,
       to each question                                              respond_rejected
    2. make pairs of them                                            make_pairs
         a. chosen: complete, with a right answer, in format         chosen_candidate
            (missing closing tags are added), and with reasoning
            that agrees with the answer; all others are dropped
         b. rejected: complete, with a right answer, out of format:  rejected_candidate
            either base wrote it so ("as sampled"), or it was in
            format and is corrupted in one of five ways
         c. drop repeats, match the i-th chosen with the i-th rejected
    3. write the pairs, and what became of every response            save_pairs

For example, three responses of each model to a question whose answer is the number 2:

    zero   <think> I see 1 . that is 1 </think> <answer> 1 </answer>    wrong answer
           <think> I see 2 . that is 2 </think> <answer> 2              chosen: </answer> is added
           <think> a ball and a cube : 2 </think> <answer> 2 </answer>  chosen
    base   there are 2                                                  rejected: is out of format
           <think> 2 </think> <answer> 2 </answer>                      rejected: "no answer tags"
           <think> 3 </think> <answer> 3 </answer>                      wrong answer

    pairs  <think> I see 2 . that is 2 </think> <answer> 2 </answer>    over   there are 2
           <think> a ball and a cube : 2 </think> <answer> 2 </answer>  over   <think> 2 </think> 2

The paper calls such pairs *decoupled*: both answers are right, so correctness does not separate
them; the format does. Correctness is graded once, on the response as it was sampled. A corrupted
text is not graded again: the grader goes by tags, and without them it may find another number.

The sides also differ in three ways that are not wanted (confounders), and DPO may learn these too:
the style of two models; length (in the embedded world chosen has 27 tokens on average, rejected
18); and consistency, which is checked for chosen only. The questions are selected too: a pair needs
a right response of *both* models, so a question that base never answers right in --samples tries
gives none, and the pairs are of the easier questions.

With --coupled the rejected answer is wrong as well as out of format, which the paper finds worse.

Where the paper is silent:
  1. "Format supplement" is not defined: here a missing </think> is put before <answer>, and a
     missing </answer> at the end of the response.
  2. "Consistent" is not defined: here the conclusion that the reasoning states is the answer.
         by default     a rule decides (`rewards/consistency.py`); --unsure says what becomes of a
                        response that the rule cannot decide
         --judge_url    a judge decides, as Gemini does in the paper; without a verdict: dropped
         --no_verify    not checked
  3. Only score 1 counts as right. Bounding boxes are scored by overlap, so they give few pairs.
  4. One of the five corruptions is drawn uniformly.
  5. Texts that repeat are dropped. The i-th chosen meets the i-th rejected, in order of sampling
     (of FILE.jsonl, in that of the file). A question gives at most --pairs_per_question pairs.

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
from dataclasses import dataclass

from harness import settings
from harness.cli import flag, parse_cli, run_stage
from harness.parts import Parts
from harness.randomness import random_of
from harness.ranks import gather_objects, make_accelerator
from harness.run import Run
from model.loading import load_model
from model.sampling import sampling_dtype
from rewards import Judge, grade, is_in_format, make_judge
from rewards.consistency import AGREES, UNSURE, check_consistency
from rewards.format import answer_in_words, remove_tags
from rewards.judge import QUESTIONS_AT_A_TIME, ask_ahead, take_counts
from sources import load_examples
from sources.funnel import (
    AS_SAMPLED,
    NOT_CHECKED,
    Candidate,
    Response,
    count_question,
    count_sources,
    kept,
    mark_repeats,
    write_funnel,
)
from sources.pairs import TABLE_PATH, pair_record, write_readme, write_table
from sources.responders import open_responder
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
    unsure: str = flag("drop", "`drop` or `keep` chosen that the rule cannot decide about; ours")
    judge_url: str = flag("", "OpenAI-compatible endpoint, asked whether reasoning agrees (paper: "
                          "Gemini-2.5-flash) and about answers of type `text`", changeable=True)
    pairs_per_question: int = flag(2, "at most so many pairs per question; ours")

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "samples", "pairs_per_question")
        self.check_positive("temperature", "at 0 all --samples of a question are the same")
        if self.unsure not in ("drop", "keep"):
            raise ValueError(f"--unsure {self.unsure}: wanted drop or keep")


# --- 2. Make pairs -------------------------------------------------------------------------------

# Two records of `sources/funnel.py`:
#     Response(text, truncated)      as it was sampled; text None: an endpoint did not reply
#     Candidate(text, change, reason, consistency)      a response as one side of a pair
#         change         what was done to the text: "as sampled", or "format supplemented"
#                        (chosen), or the name of a corruption (rejected)
#         reason         why it was dropped, as "wrong answer"; then text is None
#         consistency    how the reasoning agrees with the answer, see 2a


def make_pairs(examples: list[dict], chosen_side: list[list[Response]],
               rejected_side: list[list[Response]], cfg: Config, judge: Judge | None,
               rng: random.Random) -> tuple[list[dict], Counter]:
    """(pairs, funnel): the i-th chosen with the i-th rejected of each question.

    chosen_side, rejected_side  [question][sample]: the responses sampled for that side
    rng                         draws the corruptions
    """
    pairs, funnel = [], Counter()
    for example, for_chosen, for_rejected in zip(examples, chosen_side, rejected_side):
        # 2a, 2b. Each response becomes a candidate for its side, or is dropped for a reason.
        chosen = [chosen_candidate(response, example, judge, cfg) for response in for_chosen]
        rejected = [rejected_candidate(response, example, judge, rng, cfg)
                    for response in for_rejected]

        # 2c. Drop repeats: candidates whose final text is that of an earlier one. (A response that
        # was sampled twice, and corrupted in two ways, has two texts: both stay.) Then match.
        chosen, rejected = mark_repeats(chosen), mark_repeats(rejected)
        matched = list(zip(kept(chosen), kept(rejected)))[: cfg.pairs_per_question]

        for one_chosen, one_rejected in matched:
            pairs.append(pair_record(example, one_chosen.text, one_rejected.text,
                                     corruption=one_rejected.change))
        funnel += count_question(chosen, rejected, cfg.pairs_per_question)
    return pairs, funnel


# --- For 2a and 2b: can a response be used at all? -----------------------------------------------


def why_unusable(response: Response, example: dict, judge: Judge | None,
                 want_right: bool) -> str | None:
    """Why a response has to be dropped, for the funnel; None if it can be used.

    want_right  True: only a right answer can be used. False (rejected, with --coupled): only a
                wrong one

    In both cases the response must be complete, gradable, and wholly right or wrong. One without
    any answer is graded 0: it counts as wrong, so with --coupled it can be rejected.
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
    was graded: where </answer> is missing, the grader reads to the end of the response. So words
    after the answer end up inside its block, in a response that will be chosen.

    >>> supplement("<think> a <answer> 2 </answer>")
    '<think> a </think> <answer> 2 </answer>'
    >>> supplement("<think> a </think> <answer> 2 so it is")
    '<think> a </think> <answer> 2 so it is </answer>'
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
    # Complete, with a right answer?
    reason = why_unusable(response, example, judge, want_right=True)
    if reason is not None:
        return Candidate.dropped(reason)

    # In format, once missing closing tags are added?
    text = supplement(response.text)
    if text is None:
        return Candidate.dropped("format beyond supplement")

    # Does the reasoning agree with the answer?
    consistency = NOT_CHECKED
    if cfg.verify:
        consistency = check_consistency(example, text, judge)
        accepted = (AGREES, UNSURE) if cfg.unsure == "keep" else (AGREES,)
        if consistency not in accepted:
            return Candidate.dropped(f"reasoning: {consistency}", consistency)
    change = AS_SAMPLED if text == response.text.strip() else "format supplemented"
    return Candidate(text, change, consistency=consistency)


# --- 2b. Rejected: right (with --coupled: wrong), out of format ----------------------------------


CORRUPTIONS = {
    "no tags": lambda r: remove_tags(r, "<think>", "</think>", "<answer>", "</answer>"),
    "no answer tags": lambda r: remove_tags(r, "<answer>", "</answer>"),
    "no think tags": lambda r: remove_tags(r, "<think>", "</think>"),
    "think around all": lambda r: remove_tags(r, "<answer>", "</answer>", "</think>") + " </think>",
    "answer in words": answer_in_words,
}


def corrupt(text: str, rng: random.Random) -> tuple[str, str]:
    """(text, change): a response that breaks the format, and what was done to it.

    A response in format is corrupted in one of five ways, drawn at random: the change is its name.
    One that is out of format is left as it is: the change is AS_SAMPLED. Either way the white space
    around it is removed, as it is from chosen: it must not tell the sides apart
    (test_no_side_has_white_space_around_it).

    Source: the five kinds are SPECS'; the uniform draw is ours.

    >>> for name, corruption in CORRUPTIONS.items():
    ...     print(f"{name:<18}{corruption('<think> a </think> <answer> 2 </answer>')}")
    no tags           a 2
    no answer tags    <think> a </think> 2
    no think tags     a <answer> 2 </answer>
    think around all  <think> a 2 </think>
    answer in words   <think> a </think> Answer: 2
    """
    change = AS_SAMPLED
    if is_in_format(text):
        change = rng.choice(list(CORRUPTIONS))
        text = CORRUPTIONS[change](text)
    return text.strip(), change


def rejected_candidate(response: Response, example: dict, judge: Judge | None,
                       rng: random.Random, cfg: Config) -> Candidate:
    """A response as the rejected side of a pair, or why it cannot be that side."""
    reason = why_unusable(response, example, judge, want_right=not cfg.coupled)
    if reason is not None:
        return Candidate.dropped(reason)
    text, change = corrupt(response.text, rng)
    return Candidate(text, change)


# --- 3. Write them -------------------------------------------------------------------------------


def save_pairs(pairs: list[dict], funnel: Counter, num_questions: int, run: Run) -> None:
    """Each rank writes its own pairs; the main process writes the report on all of them."""
    accelerator = run.accelerator
    funnel = sum(gather_objects(funnel, accelerator), Counter())
    if not funnel["pairs"]:
        raise ValueError(f"no pair came out of {num_questions} questions: {dict(funnel)}; by "
                         "default --zero must be a model that stage 1 has trained")
    if pairs:
        name = TABLE_PATH.format(accelerator.process_index, accelerator.num_processes)
        write_table(pairs, run.folder / name)

    # One pair to print. Its rank may not be the main process, and images are never sent.
    first_of_rank = [{**pair, "images": None} for pair in pairs[:1]]
    first_pairs = sum(gather_objects(first_of_rank, accelerator), [])
    if run.writes:
        write_readme(run.folder, funnel["pairs"])
        write_funnel(funnel, first_pairs[0], run)


# --- With a judge: ask it ahead -------------------------------------------------------------------


def ask_judge_ahead(examples: list[dict], chosen_side: list[list[Response]],
                    rejected_side: list[list[Response]], cfg: Config, judge: Judge | None) -> None:
    """Ask the judge many questions at the same time, which saves hours; without a judge: nothing.

    `make_pairs` asks them one by one, and finds these answers. To know what it will ask, it is run
    ahead with a recorder in the judge's place, and its pairs are thrown away. It runs ahead twice:
    the reasoning is asked about only once the answer is known to be right, and of some answers only
    the judge can say that.
    """

    def dry_run(recorder) -> None:
        any_rng = random.Random(0)  # no question depends on how a response is corrupted
        make_pairs(examples, chosen_side, rejected_side, cfg, recorder, any_rng)

    ask_ahead(judge, dry_run, rounds=2, at_a_time=QUESTIONS_AT_A_TIME)


# --- Main ----------------------------------------------------------------------------------------


def main(cfg: Config) -> None:
    accelerator = make_accelerator(cfg)
    run = Run(cfg, "build_prefs", accelerator, columns=[])
    rank, world_size = accelerator.process_index, accelerator.num_processes

    # 0. Open the responder of each side: a function from prompts to responses. (What cannot be
    # opened is an error now, not after hours.) Load the questions.
    base_model, encoder = load_model(cfg.base, flag="--base", freeze_vision=True,
                                     max_pixels=cfg.max_pixels, dtype=sampling_dtype(accelerator))
    parts = Parts(run)
    respond_chosen = open_responder("chosen", base_model, encoder, cfg, run, parts)
    respond_rejected = open_responder("rejected", base_model, encoder, cfg, run, parts)

    examples = load_examples(cfg.data, count=cfg.max_examples, seed=cfg.seed,
                             instruction=cfg.instruction, columns=cfg.columns,
                             revision=cfg.revision)
    # This rank's share of the questions; those that cannot be encoded are left out. Entry i of
    # `prompts`, of `prompts.examples` and of both sides below is about the same question.
    prompts = encode_all(examples, encoder, cfg.max_prompt_tokens, run.warn, rank, world_size)
    judge = make_judge(cfg, run.warn)
    say_what_was_understood(run, encoder, prompts[:LOOKED_AT], examples=examples, judge=judge,
                            judge_is_asked=cfg.verify)

    # 1. Sample responses of both sides, one model after the other.
    chosen_side = respond_chosen(prompts)  # [question][sample]
    rejected_side = respond_rejected(prompts)  # [question][sample]

    # 2. Make pairs of them.
    ask_judge_ahead(prompts.examples, chosen_side, rejected_side, cfg, judge)  # for speed alone
    rng = random_of(cfg.seed, "corruptions", rank)
    pairs, funnel = make_pairs(prompts.examples, chosen_side, rejected_side, cfg, judge, rng)

    # 3. Write the pairs, and what became of every response.
    share_of_rank = range(rank, len(examples), world_size)
    num_skipped = len(share_of_rank) - len(prompts)
    funnel += count_sources(cfg, num_skipped, chosen_side, rejected_side, take_counts(judge))
    save_pairs(pairs, funnel, len(examples), run)
    run.finish()


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
