"""What DPO costs beside SFT on the same pairs: `python benchmarks/hybrid.py`, writes hybrid.json.

`hybrid` scores chosen and rejected against one encoding of their prompt, `sft` chosen alone. Steps alternate.
The paper reports 1.057x seconds a pair. Here: per pair, per scored token (prompt once, and responses), and per pair
with the reference pass, which a run of one epoch pays once a pair.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from models import pairs_at  # puts the project on the path as well

import dpo_sft
from common import Group, load_model
from data import encode_all

HERE = Path(__file__).resolve().parent
BASE = str(HERE.parent / "toy" / "base")


def groups_at(codec, eos: int, side: int, count: int) -> list[Group]:
    """The pairs of `pairs_at` as groups [chosen, rejected]."""
    return [Group(prompt, [codec.encode_completion(prompt.row[text], eos) for text in ("chosen", "rejected")])
            for prompt in encode_all(pairs_at(side, count), codec)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps of each loss, alternating")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {"date": time.strftime("%Y-%m-%d")}
    for side in (84, 280):
        policy, codec = load_model(BASE, freeze_vision=True)
        optimizer, accelerator = torch.optim.SGD(policy.parameters(), lr=0.0), Accelerator(cpu=True)
        pairs = groups_at(codec, policy.eos_ids[0], side, 64)
        pairs.sort(key=lambda g: max(map(len, g.completions)))  # as dpo_sft.py does within a step
        chosen = [Group(g.prompt, g.completions[:1]) for g in pairs]
        cfg = replace(dpo_sft.Config(), precision="no", max_tokens_per_micro_batch=4096)
        took = {"hybrid": [], "sft": [], "reference": []}
        for _ in range(args.steps + 1):
            for name in took:
                began = time.perf_counter()
                if name == "reference":
                    dpo_sft.reference_logps(policy, pairs, cfg, accelerator, show=False)
                elif name == "hybrid":
                    dpo_sft.update(policy, optimizer, accelerator, pairs, torch.full((128,), -20.0), 64, cfg)
                else:
                    dpo_sft.update(policy, optimizer, accelerator, chosen, None, 64, replace(cfg, loss="sft"))
                took[name].append(time.perf_counter() - began)
        s = {name: statistics.median(t[1:]) for name, t in took.items()}
        tokens = {name: sum(len(g.prompt.ids) + sum(map(len, g.completions)) for g in groups)
                  for name, groups in (("hybrid", pairs), ("sft", chosen))}
        per_pair = [h / f for h, f in zip(took["hybrid"][1:], took["sft"][1:])]
        results[str(side)] = {
            "seconds": s, "scored_tokens": tokens, "samples_per_s": {n: 64 / s[n] for n in ("hybrid", "sft")},
            "per_pair": statistics.median(per_pair), "per_pair_range": [min(per_pair), max(per_pair)],
            "per_scored_token": (s["hybrid"] / tokens["hybrid"]) / (s["sft"] / tokens["sft"]),
            "per_pair_with_reference": (s["hybrid"] + s["reference"]) / s["sft"]}
        print(side, json.dumps(results[str(side)]), flush=True)
    (HERE / "hybrid.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
