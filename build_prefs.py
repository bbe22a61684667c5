"""Preference pairs that differ in format only: stage 2a of SPECS.

Two models answer the same questions. The *zero* model (stage 1, good at the format) writes the
chosen response, the *base* model the rejected one:

    chosen      sampled by zero  -> right answer?  -> format supplied where a closing tag is missing
                                 -> reasoning agrees with the answer?
    rejected    sampled by base  -> right answer?  -> one of five corruptions of the format
                                    (kept as it is if it never had the format)

Both answers are right, so the pair differs in the format alone: "decoupled" pairs. With --coupled
the rejected answer is wrong, so that correctness and format are mixed; the paper finds it worse.

Where the paper is silent:
  1. "Format supplement" is not defined: here a missing closing tag is put where it belongs.
  2. The consistency check is a rule: the last number (or boxed expression) of the reasoning equals
     the answer. --judge_url asks a judge, as the paper asks Gemini; --no_verify leaves it out.
  3. The five corruptions are drawn evenly.

    accelerate launch build_prefs.py --zero runs/zero/model       ~25 seconds on two cores
    accelerate launch build_prefs.py --source base ...            ablation: chosen by base as well

Writes a folder that `datasets.load_dataset(folder)` opens, images included, with the columns of
    TRL             prompt, chosen, rejected (lists of messages), images
    LLaMA-Factory   conversations, chosen_message, rejected_message, images (dataset_info.json)
and in it funnel.json, which counts every response that was dropped and says why.
"""

import json
import random
import re
from collections import Counter
from dataclasses import dataclass

from accelerate import Accelerator

from harness import settings
from harness.cli import flag, parse_cli, run_stage
from harness.ranks import gather_objects, make_accelerator, rank_generator
from harness.run import Run
from model.loading import load_model
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import Prompt, is_truncated
from model.sampling import sample_groups
from rewards import Judge, grade, is_in_format, make_judge
from rewards.grading import extract_answer, last_boxed
from sources import load_examples
from sources.pairs import TABLE_PATH, pair_record, write_readme, write_table
from sources.stream import encode_all


@dataclass(frozen=True)
class Config(settings.Inputs, settings.Sampling, settings.Judge, settings.OneShot):
    # models
    base: str = flag("toy/base", "base model, folder or hub name; paper: Qwen2.5-VL-7B-Instruct")
    zero: str = flag("runs/zero/model", "model folder of stage 1")
    source: str = flag(
        "zero", "who writes chosen: `zero` (paper), `base`, or a folder or hub name of a teacher"
    )
    # questions and sampling
    data: str = flag(
        "toy",
        "`toy`, a folder, a file or a hub name; paper: ~9k pairs, which questions is not stated",
    )
    max_examples: int = flag(2048, "questions to ask; ours", alias="rows")
    instruction: str | None = flag(
        None, "format instruction after each question, None for the built-in; ours"
    )
    samples: int = flag(4, "responses a question of each model; paper: not stated")
    temperature: float = flag(1.0, "of both models; paper: not stated")
    # pairs
    coupled: bool = flag(False, "rejected is a wrong response; ablation, recipe not published")
    verify: bool = flag(
        True, "keep chosen only if its reasoning agrees with its answer; --no_verify: ablation"
    )
    pairs_per_question: int = flag(2, "at most so many pairs a question; ours")
    # shared settings that mean something else here
    judge_url: str = flag(
        "", "OpenAI-compatible endpoint for the consistency check; paper: Gemini-2.5-flash"
    )
    seed: int = flag(1, "of questions, sampling, corruptions (1: not those of stage 1); ours")

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 1 or self.pairs_per_question < 1:
            raise ValueError("--samples and --pairs_per_question must be at least 1")


# --- 1. Chosen: supplement and consistency -----------------------------------------------------


def supplement(response: str) -> str | None:
    """The response in the full format, a missing *closing* tag added. None if more is missing.

    >>> supplement("<think> a <answer> 2 </answer>")
    '<think> a </think> <answer> 2 </answer>'
    >>> supplement("a <answer> 2 </answer>") is None
    True
    """
    if "</think>" not in response:
        response = re.sub(r"\s*<answer>", " </think> <answer>", response, count=1)
    if "</answer>" not in response and "<answer>" in response:
        response = response.rstrip() + " </answer>"
    return response.strip() if is_in_format(response) else None


CONSISTENCY_QUESTION = (
    "Does the reasoning below lead to the stated answer? Reply yes or no.\n"
    "Question: {question}\nReasoning: {reasoning}\nStated answer: {answer}"
)


def is_consistent(response: str, example: dict, judge: Judge | None) -> bool | None:
    """True if the reasoning comes to the right answer; None if a judge was asked and is silent.

    response: in the full format.

    Without a judge, the conclusion of the reasoning is graded as if it were the answer. Reasoning
    without any conclusion proves nothing and is not consistent.
    """
    reasoning = response.split("<think>")[1].split("</think>")[0]
    if judge is not None:
        answer = extract_answer(response, example["answer_type"])
        question = CONSISTENCY_QUESTION.format(
            question=example["question"], reasoning=reasoning, answer=answer
        )
        return judge.yes(question)

    conclusion = find_conclusion(reasoning, example["answer_type"])
    if conclusion is None:
        return False
    return grade(example, f"<answer>{conclusion}</answer>").score == 1.0


def find_conclusion(reasoning: str, answer_type: str) -> str | None:
    """What a think block comes to: the first of these that it has, the last one if it has several.

    A \\boxed{}; what follows "answer is"; for a choice, a letter in brackets; for a number or an
    expression, a number.
    """
    conclusion = last_boxed(reasoning) or extract_answer(reasoning, answer_type)
    if conclusion is not None:
        return conclusion
    if answer_type == "choice":
        letters = re.findall(r"\(([A-J])\)", reasoning)
        return letters[-1] if letters else None
    if answer_type == "math":
        return extract_answer(reasoning, "number")
    return None


# --- 2. Rejected: the five corruptions ---------------------------------------------------------


def drop(text: str, *tags: str) -> str:
    """The text without these tags and the white space that belonged to them, the rest as it is.

    Blanks around a tag belong to it; between two words one is left. A line of nothing but tags goes
    as a whole.

    Trap: collapsing all runs of blanks would take the indentation of lists and code away. Chosen
    keeps it, so white space would be a cue beside the format (test_corruptions_keep_white_space).
    """
    run = rf"(?:[ \t]*(?:{'|'.join(tags)}))+[ \t]*"  # tags, nothing but blanks between them
    text = re.sub(rf"^{run}(?:\n|\Z)", "", text.strip(), flags=re.MULTILINE)
    text = re.sub(rf"^{run}|{run}$", "", text, flags=re.MULTILINE)
    return re.sub(run, " ", text).strip("\n")


CORRUPTIONS = {
    "no tags": lambda r: drop(r, "<think>", "</think>", "<answer>", "</answer>"),
    "no answer tags": lambda r: drop(r, "<answer>", "</answer>"),
    "no think tags": lambda r: drop(r, "<think>", "</think>"),
    "think around all": lambda r: drop(r, "<answer>", "</answer>", "</think>") + " </think>",
    "answer in words": lambda r: drop(r.replace("<answer>", "Answer:"), "</answer>"),
}


def corrupt(response: str, rng: random.Random) -> tuple[str, str]:
    """(response without the format, what was done). A response without it is left as it is.

    Source: SPECS' five kinds, one drawn evenly.
    """
    if not is_in_format(response):
        return response, "as sampled"
    name = rng.choice(list(CORRUPTIONS))
    return CORRUPTIONS[name](response), name


# --- 3. Candidates of one question -------------------------------------------------------------

DUPLICATE = "same words as another"


def choose(
    texts: list[str], truncated: list[bool], example: dict, judge: Judge | None, cfg: Config,
    funnel: Counter,
) -> list[str]:
    """The chosen candidates among a question's responses. Each drop is counted with its reason."""
    kept = []
    for text, was_truncated in zip(texts, truncated):
        funnel["chosen: sampled"] += 1

        reason = why_not_chosen(text, was_truncated, example, judge, cfg)
        if reason is None:
            candidate = supplement(text)
            if candidate in kept:
                reason = DUPLICATE

        if reason is not None:
            funnel[f"chosen: dropped, {reason}"] += 1
            continue
        funnel["chosen: format supplied"] += int(candidate != text)
        funnel["chosen: kept"] += 1
        kept.append(candidate)
    return kept


def why_not_chosen(
    text: str, truncated: bool, example: dict, judge: Judge | None, cfg: Config
) -> str | None:
    """The reason why a response cannot be chosen, None if it can."""
    if truncated:
        return "truncated"
    if grade(example, text).score != 1.0:
        return "wrong answer"

    in_full_format = supplement(text)
    if in_full_format is None:
        return "format beyond supplement"
    if cfg.verify:
        agrees = is_consistent(in_full_format, example, judge)
        if agrees is None:
            return "the judge gave no answer"
        if not agrees:
            return "reasoning disagrees with answer"
    return None


def reject(
    texts: list[str], truncated: list[bool], example: dict, rng: random.Random, cfg: Config,
    funnel: Counter,
) -> list[tuple[str, str]]:
    """The rejected candidates (text, corruption) among a question's responses, each counted."""
    kept = []
    for text, was_truncated in zip(texts, truncated):
        funnel["rejected: sampled"] += 1

        reason = why_not_rejected(text, was_truncated, example, cfg)
        if reason is None:
            candidate, corruption = corrupt(text, rng)
            if candidate in [other for other, _ in kept]:
                reason = DUPLICATE

        if reason is not None:
            funnel[f"rejected: dropped, {reason}"] += 1
            continue
        funnel[f"rejected: kept, {corruption}"] += 1
        kept.append((candidate, corruption))
    return kept


def why_not_rejected(text: str, truncated: bool, example: dict, cfg: Config) -> str | None:
    """The reason why a response cannot be rejected, None if it can."""
    if truncated:
        return "truncated"

    score = grade(example, text).score
    if cfg.coupled and score != 0.0:
        return "right answer"
    if not cfg.coupled and score != 1.0:
        return "wrong answer"
    return None


# --- 4. Pairs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """The responses of one model to one question."""

    texts: list[str]
    truncated: list[bool]  # which of them ran into the limit


def sample_responses(
    policy: Policy, encoder: PromptEncoder, prompts: list[Prompt], cfg: Config,
    accelerator: Accelerator, *, seed: int, title: str,
) -> list[Samples]:
    """The responses of a model to each prompt, --samples of them. `title` is a progress bar's."""
    policy.to(accelerator.device)
    with accelerator.autocast():
        groups, _ = sample_groups(
            policy, prompts, cfg.samples,
            max_new_tokens=cfg.max_new_tokens,
            temperature=cfg.temperature,
            generator=rank_generator(seed, accelerator.process_index, policy.device),
            sample_batch=cfg.sample_batch,
            compile_decode=cfg.compile_decode,
            progress=title if accelerator.is_main_process else None,
        )
    policy.cpu()  # makes room for the next model

    samples = []
    for group in groups:
        texts = [encoder.decode(ids) for ids in group.completions]
        truncated = [is_truncated(ids, policy.eos_ids) for ids in group.completions]
        samples.append(Samples(texts, truncated))
    return samples


def make_pairs(
    prompts: list[Prompt], zero_samples: list[Samples], base_samples: list[Samples], cfg: Config,
    judge: Judge | None, rng: random.Random, funnel: Counter,
) -> list[dict]:
    """Pair the i-th chosen with the i-th rejected of each question, at most --pairs_per_question.

    Which one meets which does not matter: both are samples of the same question.
    """
    pairs = []
    for prompt, zero, base in zip(prompts, zero_samples, base_samples):
        example = prompt.example
        chosen = choose(zero.texts, zero.truncated, example, judge, cfg, funnel)
        rejected = reject(base.texts, base.truncated, example, rng, cfg, funnel)

        matched = []
        for chosen_text, (rejected_text, corruption) in zip(chosen, rejected):
            if chosen_text != rejected_text:
                matched.append(pair_record(example, chosen_text, rejected_text, corruption))
        matched = matched[: cfg.pairs_per_question]
        pairs += matched

        funnel["questions"] += 1
        funnel["questions: without chosen"] += int(not chosen)
        funnel["questions: without rejected"] += int(bool(chosen) and not rejected)
        funnel["pairs"] += len(matched)
    return pairs


def write_report(pair: dict, funnel: Counter, run: Run) -> None:
    """Write README.md, dataset_info.json and funnel.json; print one pair and the funnel."""
    write_readme(run.folder, funnel["pairs"])
    (run.folder / "funnel.json").write_text(json.dumps(funnel, indent=2) + "\n")

    print(f"\none pair ({pair['corruption']}), question: {pair['question']}")
    print(f"  chosen    {pair['chosen'][0]['content']}")
    print(f"  rejected  {pair['rejected'][0]['content']}\n")
    for name in sorted(funnel):
        print(f"  {funnel[name]:>6}  {name}")
    print(f"wrote {funnel['pairs']} pairs to {run.folder}/data")


# --- 5. Main -----------------------------------------------------------------------------------


def load_chosen_model(cfg: Config) -> Policy:
    """The model that writes the chosen responses, by --source."""
    folder = {"zero": cfg.zero, "base": cfg.base}.get(cfg.source, cfg.source)
    named_by = "--zero" if cfg.source == "zero" else "--source"
    policy, _ = load_model(folder, flag=named_by, freeze_vision=True)
    return policy


def save_pairs(pairs: list[dict], funnel: Counter, num_questions: int, run: Run) -> None:
    """Write the pairs of every rank, and the report on all of them."""
    accelerator = run.accelerator
    funnel = sum(gather_objects(funnel, accelerator), Counter())
    if not funnel["pairs"]:
        raise ValueError(
            f"no pair came out of {num_questions} questions: {dict(funnel)}; "
            "is --zero a trained model?"
        )
    if pairs:
        name = TABLE_PATH.format(accelerator.process_index, accelerator.num_processes)
        write_table(pairs, run.folder / name)

    first_pairs = [{**pair, "images": None} for pair in pairs[:1]]
    first_pairs = sum(gather_objects(first_pairs, accelerator), [])
    if run.writes:
        write_report(first_pairs[0], funnel, run)


def main(cfg: Config) -> None:
    accelerator = make_accelerator(cfg)
    run = Run(cfg, "prefs", accelerator, columns=[])
    rank, world_size = accelerator.process_index, accelerator.num_processes

    base_model, encoder = load_model(
        cfg.base, flag="--base", freeze_vision=True, max_pixels=cfg.max_pixels
    )
    chosen_model = load_chosen_model(cfg)

    examples = load_examples(
        cfg.data, count=cfg.max_examples, seed=cfg.seed, instruction=cfg.instruction
    )
    prompts = encode_all(examples, encoder, cfg.max_prompt_tokens, run.warn, rank, world_size)
    judge = make_judge(cfg, run.folder)

    # Two seeds, or the models would draw with the same random numbers.
    zero_samples = sample_responses(
        chosen_model, encoder, prompts, cfg, accelerator,
        seed=2 * cfg.seed, title=f"{cfg.source} answers",
    )
    base_samples = sample_responses(
        base_model, encoder, prompts, cfg, accelerator,
        seed=2 * cfg.seed + 1, title="base answers",
    )

    questions_of_rank = len(range(rank, len(examples), world_size))
    funnel = Counter({"questions: skipped, see the warnings": questions_of_rank - len(prompts)})
    rng = random.Random(f"{cfg.seed} {rank}")
    pairs = make_pairs(prompts, zero_samples, base_samples, cfg, judge, rng, funnel)
    save_pairs(pairs, funnel, len(examples), run)
    run.finish()


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
