"""What DPO costs beside SFT on the same pairs: `python benchmarks/hybrid.py`, writes hybrid.json.

`hybrid` scores chosen and rejected against one encoding of their prompt, `sft` chosen alone. Steps alternate, set up
as `dpo_sft.py` sets them up: its default token budget, pairs sorted by length. The paper reports 1.057x seconds a pair.
Here: per pair, by wall clock and by process CPU; per response token and per token of any kind, a prompt counted once;
and per pair with the reference pass, which a run of one epoch pays once a pair.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from models import pair_groups, pairs_at  # puts the project on the path as well

import dpo_sft
from common import Group, load_model

HERE = Path(__file__).resolve().parent
BASE = str(HERE.parent / "toy" / "base")


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
        pairs = pair_groups(pairs_at(side, 64), codec, policy.eos_ids[0])
        pairs.sort(key=lambda g: max(map(len, g.completions)))  # as dpo_sft.py does within a step
        chosen = [Group(g.prompt, g.completions[:1]) for g in pairs]
        cfg = replace(dpo_sft.Config(), precision="no")
        took = {"hybrid": [], "sft": [], "reference": []}  # (wall, CPU) seconds of each step
        for _ in range(args.steps + 1):
            for name in took:
                began = time.perf_counter(), time.process_time()
                if name == "reference":
                    dpo_sft.reference_logps(policy, pairs, cfg, accelerator, show=False)
                elif name == "hybrid":
                    dpo_sft.update(policy, optimizer, accelerator, pairs, torch.full((128,), -20.0), 64, cfg)
                else:
                    dpo_sft.update(policy, optimizer, accelerator, chosen, None, 64, replace(cfg, loss="sft"))
                took[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
        s = {name: statistics.median(wall for wall, _ in t[1:]) for name, t in took.items()}
        responses = {n: sum(len(c) for g in groups for c in g.completions) for n, groups in (("hybrid", pairs), ("sft", chosen))}
        prompts = sum(len(g.prompt.ids) for g in pairs)
        walls, cpus = ([h[i] / f[i] for h, f in zip(took["hybrid"][1:], took["sft"][1:])] for i in (0, 1))
        per_pair = statistics.median(walls)
        results[str(side)] = {
            "seconds": s, "samples_per_s": {n: 64 / s[n] for n in ("hybrid", "sft")}, "prompt_tokens": prompts, "response_tokens": responses,
            "per_pair": per_pair, "per_pair_quartiles": statistics.quantiles(walls)[::2], "per_pair_range": [min(walls), max(walls)],
            "per_pair_by_cpu": statistics.median(cpus), "per_response_token": per_pair * responses["sft"] / responses["hybrid"],
            "per_token": per_pair * (prompts + responses["sft"]) / (prompts + responses["hybrid"]),
            "per_pair_with_reference": (s["hybrid"] + s["reference"]) / s["sft"]}
        print(side, json.dumps(results[str(side)]), flush=True)
    (HERE / "hybrid.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
