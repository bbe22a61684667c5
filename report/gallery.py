"""What page.js shows: rollouts, pairs, and one question from base to final.

Log-probabilities and the reasons of the rewards come from the run's own records. Advantages and
clipped tokens are what `grpo.py` computes from them, by its own functions.
"""

import json
from collections import Counter
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from grpo import group_advantages, policy_loss
from harness.run import read_jsonl
from model.images import load_image
from model.records import ExampleError
from report.images import ImageStore
from report.runs import LoadedRun, first_of_arms
from rewards import is_in_format
from sources.tables import open_table, read_record

FIRST_TOKENS, LAST_TOKENS = 900, 300  # of a longer completion: what lies between is left out
PAIRS_PER_CORRUPTION = 6
JOURNEYS = 12  # questions


# --- Rollouts ------------------------------------------------------------------------------------


def rollouts(runs: list[LoadedRun], images: ImageStore) -> list[dict]:
    """The recorded groups of all runs of GRPO."""
    groups = []
    for run in runs:
        if run.stage == "GRPO":
            groups += [group_data(run, sample, images) for sample in run.samples]
    return groups


def group_data(run: LoadedRun, sample: dict, images: ImageStore) -> dict:
    """One line of samples.jsonl as page.js wants it."""
    totals = torch.tensor([float("nan") if t is None else t for t in sample["totals"]])  # (G,)
    advantages = group_advantages(totals[None], run.divides_by_std())[0]  # (G,)
    clipped = clipped_tokens(sample, advantages, run.config)
    known = totals[~totals.isnan()]

    completions = []
    for i, text in enumerate(sample["completions"]):
        completions.append(
            {
                **token_data(sample, i, clipped),
                "rewards": sample["rewards"][i],
                "total": None if totals[i].isnan() else round(float(totals[i]), 4),
                "advantage": round(float(advantages[i]), 4),
                "reason": sample["reasons"][i],
                "cut": sample["truncated"][i],
                "right": sample["rewards"][i].get("accuracy"),
                "in_format": sample["rewards"][i].get("format", float(is_in_format(text))),
            }
        )
    return {
        "run": run.name,
        "step": sample["step"],
        "images": [add_file(images, run.folder / name) for name in sample["images"]],
        "question": sample.get("question") or sample["prompt"],
        "instruction": sample.get("instruction", ""),
        "kind": sample.get("kind", ""),
        "gold": sample["gold"],
        "mean": round(float(known.mean()), 4) if len(known) else None,
        "completions": completions,
    }


def add_file(images: ImageStore, file: Path) -> int:
    return images.add(load_image(file, file.name))


def padded(lines: list[list[float]]) -> torch.Tensor:
    """(G, T), 0 behind the end of a line."""
    return pad_sequence([torch.tensor(line) for line in lines], batch_first=True)


def clipped_tokens(sample: dict, advantages: torch.Tensor, config: dict) -> list[list[int]]:
    """Of each completion, the tokens whose ratio has left the band: the clip stops their gradient.
    """
    if "logp_sampler" not in sample:  # a record of an older run
        return [[] for _ in sample["completions"]]
    # The sampler's log-probabilities stand for logp_old: both are of the policy before the update.
    logp, logp_sampler = padded(sample["logp"]), padded(sample["logp_sampler"])  # (G, T)
    terms = policy_loss(logp, logp_sampler, advantages, torch.ones_like(logp), config["clip_low"],
                        config["clip_high"])  # fmt: skip
    return [line.nonzero()[:, 0].tolist() for line in terms["clipped"]]


def token_data(sample: dict, i: int, clipped: list[list[int]]) -> dict:
    """The tokens of completion i with their numbers; the middle of a long one is left out."""
    if "logp_sampler" not in sample:
        words = sample["completions"][i].split(" ")
        return {"tokens": words, "logp": None, "logp_sampler": None, "clipped": [],
                "left_out": None}  # fmt: skip

    tokens, logp, logp_sampler = (sample[key][i] for key in ("tokens", "logp", "logp_sampler"))
    count, left_out = len(tokens), None
    kept = list(range(count))
    if count > FIRST_TOKENS + LAST_TOKENS:
        left_out = {"after": FIRST_TOKENS, "count": count - FIRST_TOKENS - LAST_TOKENS}
        kept = kept[:FIRST_TOKENS] + kept[-LAST_TOKENS:]
    is_clipped = set(clipped[i])
    return {
        "tokens": [tokens[t] for t in kept],
        "logp": [round(logp[t], 3) for t in kept],
        "logp_sampler": [round(logp_sampler[t], 3) for t in kept],
        "clipped": [place for place, t in enumerate(kept) if t in is_clipped],
        "left_out": left_out,
    }


def fitting(groups: list[dict], images: ImageStore, limit: int) -> list[dict]:
    """Every group, or every second, third, ... of each run, until they fit into `limit` bytes.

    images   of the groups; their sizes count as well
    """
    sizes = []
    for group in groups:
        size_of_images = sum(len(images.urls[number]) for number in group["images"])
        sizes.append(len(json.dumps(group)) + size_of_images)
    place_in_run = []
    seen = Counter()
    for group in groups:
        place_in_run.append(seen[group["run"]])
        seen[group["run"]] += 1

    for stride in range(1, len(groups) + 1):
        kept = [i for i, place in enumerate(place_in_run) if place % stride == 0]
        if sum(sizes[i] for i in kept) <= limit:
            return [groups[i] for i in kept]
    return []


def with_images_in(groups: list[dict], old: ImageStore, new: ImageStore) -> list[dict]:
    """The same groups, their images moved into another store: only those are stored there."""
    moved = []
    for group in groups:
        numbers = [new.add_url(old.urls[number]) for number in group["images"]]
        moved.append({**group, "images": numbers})
    return moved


# --- Pairs ---------------------------------------------------------------------------------------


def pairs(runs: list[LoadedRun], images: ImageStore) -> list[dict]:
    """Some pairs of each corruption, of the first run of every arm that made pairs."""
    found = []
    for run in first_of_arms(runs, "pairs"):
        if not (run.folder / "data").is_dir():
            continue
        table = open_table(str(run.folder), "train", "RUN")
        taken = Counter()
        for i, corruption in enumerate(table["corruption"]):
            if taken[corruption] == PAIRS_PER_CORRUPTION:
                continue
            taken[corruption] += 1
            try:
                found.append(pair_data(run, read_record(table, i), images))
            except ExampleError:  # an image that cannot be read
                continue
    return found


def pair_data(run: LoadedRun, record: dict, images: ImageStore) -> dict:
    return {
        "run": run.name,
        "images": [images.add(load_image(image, record["id"])) for image in record["images"]],
        "question": record["question"],
        "gold": record["answer"],
        "corruption": record["corruption"],
        "chosen": record["chosen"][-1]["content"],
        "rejected": record["rejected"][-1]["content"],
    }


# --- One question from base to final -------------------------------------------------------------


def journeys(runs: list[LoadedRun], images: ImageStore) -> list[dict]:
    """Questions that every model of an evaluation answered: those whose images it kept."""
    found = []
    for run in first_of_arms(runs, "evaluation"):
        file = run.folder / "completions.jsonl"
        if not file.is_file():
            continue
        by_question: dict[str, list[dict]] = {}
        for record in read_jsonl(file):
            if (record["set"], record["mode"]) == ("id", "sampled"):
                identity = record.get("question_id", record.get("id"))  # of an earlier version
                by_question.setdefault(identity, []).append(record)
        of_run = []
        for identity, records in by_question.items():
            files = sorted((run.folder / "images").glob(f"{identity.replace('/', '_')}_*.png"))
            if files:
                of_run.append(journey_data(run, records, [add_file(images, f) for f in files]))
        of_run.sort(key=progress, reverse=True)  # first those that got better on the way
        found += of_run[:JOURNEYS]
    return found


def progress(journey: dict) -> float:
    """Score of the last model, minus that of the first."""
    first, last = journey["answers"][0]["score"], journey["answers"][-1]["score"]
    return (last or 0.0) - (first or 0.0)


def journey_data(run: LoadedRun, records: list[dict], numbers: list[int]) -> dict:
    keys = ("model", "response", "score", "reason", "in_format")
    return {
        "run": run.name,
        "images": numbers,
        "question": records[0]["question"],
        "gold": records[0]["gold"],
        "kind": records[0]["kind"],
        "answers": [{key: record[key] for key in keys} for record in records],
    }
