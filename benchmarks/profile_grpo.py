"""What a GRPO step on the embedded world spends its time on: `python benchmarks/profile_grpo.py`.

Prints self CPU time by kind of operation over some steps, rollout and update apart. Half a minute.
"""

import argparse
import os
import statistics
import time
from collections import Counter
from functools import partial

import torch
import workloads  # puts the project on the path
from accelerate import Accelerator
from torch.profiler import profile

import grpo
from harness.metrics import Stopwatch
from model.loading import load_model
from model.policies import Policies
from rewards.groups import Rewarder
from sources import load_examples
from sources.stream import PromptStream

os.chdir(workloads.ROOT)  # the stage's defaults name toy/base

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "linear"),
    "attention": ("scaled_dot_product",),
    "convolution": ("convolution",),
    "copies": ("copy_", "cat", "index", "gather", "scatter", "clone", "select", "masked"),
    "element by element": (
        "mul", "add", "sub", "div", "silu", "neg", "pow", "rsqrt", "exp", "softmax", "sum",
        "mean", "where", "fill", "logsumexp",
    ),
    "optimizer": ("foreach", "adam"),
}  # fmt: skip


def kind_of(operation: str) -> str:
    """The first kind whose words the name of an operation holds."""
    operation = operation.removeprefix("aten::").strip("_").lower()
    for kind, words in KINDS.items():
        if any(word in operation for word in words):
            return kind
    return "rest"


class Step:
    """The two halves of a GRPO step, at the stage's own defaults."""

    def __init__(self):
        self.cfg = cfg = grpo.Config(precision="no")
        policy, encoder = load_model(cfg.model, freeze_vision=cfg.freeze_vision)
        trainable = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=cfg.lr)
        self.policies = Policies(policy, policy, policy, optimizer)
        self.accelerator = Accelerator(cpu=True)

        self.stream = PromptStream(load_examples("toy", count=256), encoder, seed=0)
        self.generator = torch.Generator().manual_seed(0)
        self.rewarder = Rewarder(cfg, encoder, policy.eos_ids, judge=None)

    def rollout(self) -> list:
        return grpo.collect_rollout(
            self.policies.sampler,
            self.stream,
            self.rewarder,
            self.generator,
            self.accelerator,
            self.cfg,
            progress=0.0,
            sampling_time=Stopwatch(),
        )

    def update(self, rollout: list) -> None:
        for batch in grpo.prepare_mini_batches(rollout, self.policies, self.accelerator, self.cfg):
            grpo.update(batch, self.policies, self.accelerator, self.cfg)


def measure(step: Step, half: str, steps: int) -> tuple[float, Counter]:
    """Median seconds of one half, and seconds a step by kind of operation under the profiler."""

    def prepare():
        """The half as a function without arguments; what it needs is made outside the clock."""
        if half == "rollout":
            return step.rollout
        return partial(step.update, step.rollout())

    walls, by_kind = [], Counter()
    for _ in range(steps):
        run = prepare()
        began = time.perf_counter()
        run()
        walls.append(time.perf_counter() - began)

        run = prepare()
        with profile() as record:
            run()
        for event in record.key_averages():
            by_kind[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / steps
    return statistics.median(walls), by_kind


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6, help="steps of each half")
    args = parser.parse_args()
    torch.set_num_threads(1)

    step = Step()
    step.update(step.rollout())  # warm up
    for half in ("rollout", "update"):
        wall, by_kind = measure(step, half, args.steps)
        total = by_kind.total()
        print(f"{half}: {1e3 * wall:.0f} ms a step; operations, profiled: {1e3 * total:.0f} ms")
        for kind, seconds in by_kind.most_common():
            print(f"    {100 * seconds / total:5.1f} %  {kind}")


if __name__ == "__main__":
    main()
