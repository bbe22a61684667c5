"""Preference pairs that differ in format only: stage 2a of SPECS.

Two models answer the same questions. From the *zero* model (stage 1, good at the format) comes the
chosen response, from the *base* model the rejected one:

    chosen      sampled by zero  -> right answer?  -> format supplied where a closing tag is missing
                                 -> reasoning agrees with the answer?
    rejected    sampled by base  -> right answer?  -> one of five corruptions of the format
                                    (kept as it is if it never had the format)

Both are right, so what tells them apart is the format alone: "decoupled" pairs. With --coupled the
rejected response is a wrong one, so that correctness and format are mixed, which the paper finds worse.

Where the paper is silent:
  1. "Format supplement" is not defined: here a missing closing tag is put where it belongs.
  2. The consistency check is a rule: the last number (or boxed expression) of the reasoning equals the
     answer. --judge_url asks a judge instead, as the paper asks Gemini; --no_verify leaves it out.
  3. The five corruptions are drawn evenly.

    accelerate launch build_prefs.py --zero runs/zero/model       ~25 seconds on two cores
    accelerate launch build_prefs.py --source base ...            ablation: chosen by the base model too

Writes a folder that `datasets.load_dataset(folder)` opens, pictures included, with the columns of
    TRL             prompt, chosen, rejected (lists of messages), images
    LLaMA-Factory   conversations, chosen_message, rejected_message, images   (see its dataset_info.json)
and in it funnel.json, which counts every response that was dropped and says why.
"""

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from tqdm import tqdm

from common import load_model
from data import encode_all, load_rows
from prompts import chat_messages, load_picture
from rewards import Judge, extract_answer, format_reward, grade, last_boxed
from rollout import is_truncated, sample_groups
from runs import Run, flag, gather_objects, make_accelerator, parse_cli, run_stage


@dataclass(frozen=True)
class Config:
    # models
    base: str = flag("toy/base", "folder or hub name of the base model; paper: Qwen2.5-VL-7B-Instruct")
    zero: str = flag("runs/zero/model", "model folder of stage 1")
    source: str = flag("zero", "who writes chosen: `zero` (paper), `base`, or a folder or hub name of a teacher")
    # data and sampling
    data: str = flag("toy", "`toy`, a folder, a file or a hub name; paper: ~9k pairs, which questions is not stated")
    rows: int = flag(2048, "questions to ask; ours")
    instruction: str | None = flag(None, "format instruction after each question, None for the built-in; ours")
    samples: int = flag(4, "responses a question of each model; paper: not stated")
    temperature: float = flag(1.0, "of both models; paper: not stated")
    max_new_tokens: int = flag(64, "limit of a response, tokens; paper: 10240")
    max_prompt_tokens: int = flag(3000, "longer prompts are skipped and counted, tokens; MM-EUREKA")
    max_pixels: int | None = flag(None, "pictures are scaled down to this many pixels, None: as the model says")
    sample_rows: int = flag(512, "rows decoded at a time in each process; ours")
    compile_decode: bool = flag(False, "static cache and a compiled decoding step: for a GPU and many tokens; ours")
    # pairing
    coupled: bool = flag(False, "rejected is a wrong response; ablation, its recipe is not published")
    verify: bool = flag(True, "keep chosen only if its reasoning agrees with its answer; --no_verify: ablation")
    pairs_per_question: int = flag(2, "at most so many pairs a question; ours")
    judge_url: str = flag("", "OpenAI-compatible endpoint for the consistency check; paper: Gemini-2.5-flash")
    judge_model: str = flag("", "model name at --judge_url")
    # bookkeeping
    precision: str = flag("auto", "`no` (fp32), `bf16`, or `auto`: bf16 on a GPU")
    seed: int = flag(1, "of questions, sampling and corruptions (1: not the questions of stage 1); ours")
    run_dir: str = flag("", "folder to write; empty: runs/prefs_DATE_TIME")
    resume: bool = flag(False, "not used here: this stage starts over")
    overwrite: bool = flag(False, "empty --run_dir first")
    log_with: str = flag("", "a tracker that accelerate knows; empty: none")

    def __post_init__(self):
        if self.resume:
            raise ValueError("--resume: build_prefs.py starts over, use --overwrite")
        if self.samples < 1 or self.pairs_per_question < 1:
            raise ValueError("--samples and --pairs_per_question must be at least 1")


# --- 1. Chosen: supplement and consistency ---------------------------------------------------------


def supplement(response: str) -> str | None:
    """The response in the full format, a missing *closing* tag supplied; None if more than that is missing.

    >>> supplement("<think> a <answer> 2 </answer>")
    '<think> a </think> <answer> 2 </answer>'
    >>> supplement("a <answer> 2 </answer>") is None
    True
    """
    if "</think>" not in response:
        response = re.sub(r"\s*<answer>", " </think> <answer>", response, count=1)
    if "</answer>" not in response and "<answer>" in response:
        response = response.rstrip() + " </answer>"
    return response.strip() if format_reward(response) else None


CONSISTENCY_QUESTION = ("Does the reasoning below lead to the stated answer? Reply yes or no.\n"
                        "Question: {question}\nReasoning: {reasoning}\nStated answer: {answer}")


def is_consistent(response: str, row: dict, judge: Judge | None) -> bool | None:
    """True if the reasoning's own conclusion is the answer; None if a judge was asked and is silent.

    By rule: the last \\boxed{}, else the last "answer is", else the last number (for a choice, the last
    letter in brackets) of the think block is graded as if it were the answer. Reasoning without any
    conclusion proves nothing and is not consistent."""
    reasoning = response.split("<think>")[1].split("</think>")[0]
    if judge is not None:
        answer = extract_answer(response, row["answer_type"])
        return judge.yes(CONSISTENCY_QUESTION.format(question=row["question"], reasoning=reasoning, answer=answer))
    conclusion = last_boxed(reasoning) or extract_answer(reasoning, row["answer_type"])
    if conclusion is None and row["answer_type"] == "choice":
        conclusion = (re.findall(r"\(([A-J])\)", reasoning) or [None])[-1]
    if conclusion is None and row["answer_type"] == "math":
        conclusion = extract_answer(reasoning, "number")
    return conclusion is not None and grade(row, f"<answer>{conclusion}</answer>").score == 1.0


# --- 2. Rejected: the five corruptions -------------------------------------------------------------


def drop(text: str, *tags: str) -> str:
    for tag in tags:
        text = text.replace(tag, "")
    return re.sub(r"[ \t]+", " ", text).strip()


CORRUPTIONS = {
    "no tags": lambda r: drop(r, "<think>", "</think>", "<answer>", "</answer>"),
    "no answer tags": lambda r: drop(r, "<answer>", "</answer>"),
    "no think tags": lambda r: drop(r, "<think>", "</think>"),
    "think around all": lambda r: drop(r, "<answer>", "</answer>", "</think>") + " </think>",
    "answer in words": lambda r: drop(r.replace("<answer>", "Answer:"), "</answer>"),
}


def corrupt(response: str, rng: random.Random) -> tuple[str, str]:
    """(response without the format, what was done). Source: SPECS' five kinds, one drawn evenly.

    A response that never had the format is as it should be, and stays untouched."""
    if not format_reward(response):
        return response, "as sampled"
    name = rng.choice(list(CORRUPTIONS))
    return CORRUPTIONS[name](response), name


# --- 3. Pairs ------------------------------------------------------------------------------------


def choose(texts: list[str], truncated: list[bool], row: dict, judge, cfg: Config, funnel: Counter) -> list[str]:
    """Chosen candidates among a question's responses; every one dropped is counted with its reason."""
    kept = []
    for text, cut in zip(texts, truncated):
        funnel["chosen: sampled"] += 1
        if cut:
            funnel["chosen: dropped, truncated"] += 1
        elif grade(row, text).score != 1.0:
            funnel["chosen: dropped, wrong answer"] += 1
        elif (full := supplement(text)) is None:
            funnel["chosen: dropped, format beyond supplement"] += 1
        elif cfg.verify and (agrees := is_consistent(full, row, judge)) is not True:
            why = "the judge gave no answer" if agrees is None else "reasoning disagrees with answer"
            funnel[f"chosen: dropped, {why}"] += 1
        elif full in kept:
            funnel["chosen: dropped, same words as another"] += 1
        else:
            funnel["chosen: format supplied"] += full != text
            funnel["chosen: kept"] += 1
            kept.append(full)
    return kept


def reject(texts: list[str], truncated: list[bool], row: dict, rng, cfg: Config,
           funnel: Counter) -> list[tuple[str, str]]:
    """Rejected candidates (text, corruption) among a question's responses, each counted."""
    wanted, kept = (0.0 if cfg.coupled else 1.0), []
    for text, cut in zip(texts, truncated):
        funnel["rejected: sampled"] += 1
        if cut:
            funnel["rejected: dropped, truncated"] += 1
        elif grade(row, text).score != wanted:
            funnel[f"rejected: dropped, {'right' if cfg.coupled else 'wrong'} answer"] += 1
        else:
            corrupted, how = corrupt(text, rng)
            if any(corrupted == other for other, _ in kept):
                funnel["rejected: dropped, same words as another"] += 1
                continue
            funnel[f"rejected: kept, {how}"] += 1
            kept.append((corrupted, how))
    return kept


def pair_record(row: dict, chosen: str, rejected: str, how: str) -> dict:
    """One line of the data set, in TRL's and LLaMA-Factory's columns."""
    question = "\n".join(part for part in (row["question"], row["instruction"]) if part)
    pieces = chat_messages(question, len(row["images"]), row["id"])[0]["content"]
    marked = "".join("<image>" if piece["type"] == "image" else piece["text"] for piece in pieces)
    return {"id": row["id"], "images": [load_picture(p, row["id"]) for p in row["images"]],
            "prompt": [{"role": "user", "content": marked.replace("<image>", "").strip()}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "conversations": [{"role": "user", "content": marked}],
            "chosen_message": {"role": "assistant", "content": chosen},
            "rejected_message": {"role": "assistant", "content": rejected},
            "question": row["question"], "instruction": row["instruction"], "answer": row["answer"],
            "answer_type": row["answer_type"], "corruption": how}


# The hub's own layout: `load_dataset` takes these files alone, whatever else lies in the folder. A card that
# named the file would do as well, but then two folders of one name share an entry of the `datasets` cache.
TABLE = "data/train-{:05d}-of-{:05d}.parquet"  # one a process

LLAMA_FACTORY_INFO = {"specs_pairs": {
    "file_name": "data", "formatting": "sharegpt", "ranking": True,
    "columns": {"messages": "conversations", "chosen": "chosen_message", "rejected": "rejected_message",
                "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}}


CARD = """{count} preference pairs. `datasets.load_dataset` opens this folder.
TRL reads `prompt`, `chosen`, `rejected`, `images`; LLaMA-Factory reads `conversations`, `chosen_message`,
`rejected_message`, `images` (see dataset_info.json);
`corruption` says what was done to the rejected response, funnel.json what was dropped on the way.
"""


def sample_texts(policy, codec, prompts, cfg: Config, seed: int, title: str,
                 show: bool) -> list[tuple[list[str], list[bool]]]:
    """Per prompt: the texts of its samples, and which of them were cut off."""
    generator = torch.Generator(policy.device).manual_seed(seed)
    result, at_a_time = [], max(1, cfg.sample_rows // cfg.samples)
    for i in tqdm(range(0, len(prompts), at_a_time), desc=title, disable=not show):
        groups, _ = sample_groups(policy, prompts[i : i + at_a_time], cfg.samples, max_new_tokens=cfg.max_new_tokens,
                                  temperature=cfg.temperature, generator=generator, max_rows=cfg.sample_rows,
                                  static=cfg.compile_decode)
        result += [([codec.decode(c) for c in g.completions], [is_truncated(c, policy.eos_ids) for c in g.completions])
                   for g in groups]
    return result


def make_pairs(prompts, chosen_texts, rejected_texts, cfg: Config, judge, rng: random.Random,
               funnel: Counter) -> list[dict]:
    """Pair the i-th chosen with the i-th rejected of each question, at most --pairs_per_question."""
    pairs = []
    for prompt, right, wrong in zip(prompts, chosen_texts, rejected_texts):
        chosen, rejected = choose(*right, prompt.row, judge, cfg, funnel), reject(*wrong, prompt.row, rng, cfg, funnel)
        matched = [(c, r, how) for c, (r, how) in zip(chosen, rejected) if c != r][: cfg.pairs_per_question]
        pairs += [pair_record(prompt.row, c, r, how) for c, r, how in matched]
        funnel["questions"] += 1
        funnel["questions: without chosen"] += not chosen
        funnel["questions: without rejected"] += bool(chosen) and not rejected
        funnel["pairs"] += len(matched)
    return pairs


def main(cfg: Config) -> None:
    accelerator = make_accelerator(cfg)
    run = Run(cfg, "prefs", accelerator, [])
    ranks, rank = accelerator.num_processes, accelerator.process_index
    base, codec = load_model(cfg.base, flag="--base", freeze_vision=True, max_pixels=cfg.max_pixels)
    writer = {"zero": cfg.zero, "base": cfg.base}.get(cfg.source, cfg.source)
    better, _ = load_model(writer, flag="--zero" if cfg.source == "zero" else "--source", freeze_vision=True)
    rows = load_rows(cfg.data, count=cfg.rows, seed=cfg.seed, instruction=cfg.instruction)
    prompts = encode_all(rows, codec, cfg.max_prompt_tokens, run.warn, rank, ranks)

    judge = Judge(cfg.judge_url, cfg.judge_model, run.folder / "judge") if cfg.judge_url else None
    texts = []
    for name, model, seed in ((cfg.source, better, 2 * cfg.seed), ("base", base, 2 * cfg.seed + 1)):
        with accelerator.autocast():
            texts.append(sample_texts(model.to(accelerator.device), codec, prompts, cfg, 1000 * seed + rank,
                                      f"{name} answers", run.writes))
        model.cpu()
    funnel = Counter({"questions: skipped, see the warnings": len(range(rank, len(rows), ranks)) - len(prompts)})
    pairs = make_pairs(prompts, *texts, cfg, judge, random.Random(f"{cfg.seed} {rank}"), funnel)
    funnel = sum(gather_objects(funnel, accelerator), Counter())
    if not funnel["pairs"]:
        raise ValueError(f"no pair came out of {len(rows)} questions: {dict(funnel)}; is --zero a trained model?")
    if pairs:
        write_table(pairs, run.folder / TABLE.format(rank, ranks))
    firsts = gather_objects([{**pair, "images": None} for pair in pairs[:1]], accelerator)
    if run.writes:
        write_report(sum(firsts, [])[0], funnel, run)
    run.finish()


def write_table(pairs: list[dict], file: Path) -> None:
    """Each rank writes the pairs of its own questions: pictures never travel between ranks."""
    file.parent.mkdir(exist_ok=True)
    datasets.Dataset.from_list(pairs).cast_column("images", datasets.List(datasets.Image())).to_parquet(file)


def write_report(pair: dict, funnel: Counter, run: Run) -> None:
    """The card, dataset_info.json, the funnel, and one pair on the terminal."""
    (run.folder / "README.md").write_text(CARD.format(count=funnel["pairs"]))
    (run.folder / "dataset_info.json").write_text(json.dumps(LLAMA_FACTORY_INFO, indent=2) + "\n")
    (run.folder / "funnel.json").write_text(json.dumps(funnel, indent=2) + "\n")
    print(f"\none pair ({pair['corruption']}), question: {pair['question']}")
    print(f"  chosen    {pair['chosen'][0]['content']}\n  rejected  {pair['rejected'][0]['content']}\n")
    for name in sorted(funnel):
        print(f"  {funnel[name]:>6}  {name}")
    print(f"wrote {funnel['pairs']} pairs to {run.folder}/data")


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
