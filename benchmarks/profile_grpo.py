"""What a GRPO step on the embedded world spends its time on: `python benchmarks/profile_grpo.py` (half a minute).

Prints self CPU time by kind of operation over some steps, rollout and update apart.
"""

import argparse
import os
import time
from collections import Counter

import torch
from accelerate import Accelerator
from models import random_policy  # noqa: F401  (puts the project on the path)
from torch.profiler import profile

import grpo
from common import load_model
from data import PromptStream, load_rows

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
KINDS = {"matrix products": ("mm", "addmm", "bmm", "linear"), "attention": ("scaled_dot_product",), "convolution": ("convolution",),
         "copies": ("copy_", "cat", "index", "gather", "scatter", "clone", "select", "masked"), "element by element": (
             "mul", "add", "sub", "div", "silu", "neg", "pow", "rsqrt", "exp", "softmax", "sum", "mean", "where", "fill", "logsumexp"),
         "optimizer": ("foreach", "adam")}


def kind_of(name: str) -> str:
    name = name.removeprefix("aten::").strip("_")
    return next((kind for kind, words in KINDS.items() if any(word in name.lower() for word in words)), "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = grpo.Config(precision="no")
    policy, codec = load_model(cfg.model, freeze_vision=cfg.freeze_vision)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=cfg.lr)
    stream, generator = PromptStream(load_rows("toy", count=256), codec, seed=0), torch.Generator().manual_seed(0)
    accelerator = Accelerator(cpu=True)

    def rollout():
        return grpo.rollout(policy, stream, cfg.prompts_per_step, cfg, codec, None, generator)

    grpo.train_on(rollout(), policy, None, optimizer, accelerator, cfg)  # warm up
    for name in ("rollout", "update"):
        walls, counts = [], Counter()
        for _ in range(args.steps):
            scored = rollout() if name == "update" else None
            began = time.perf_counter()
            grpo.train_on(scored, policy, None, optimizer, accelerator, cfg) if name == "update" else rollout()
            walls.append(time.perf_counter() - began)
            scored = rollout() if name == "update" else None
            with profile() as record:
                grpo.train_on(scored, policy, None, optimizer, accelerator, cfg) if name == "update" else rollout()
            for event in record.key_averages():
                counts[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / args.steps
        wall = sorted(walls)[len(walls) // 2]
        total = sum(counts.values())
        print(f"{name}: {1e3 * wall:.0f} ms a step; operations, profiled: {1e3 * total:.0f} ms")
        for kind, seconds in counts.most_common():
            print(f"    {100 * seconds / total:5.1f} %  {kind}")


if __name__ == "__main__":
    main()
