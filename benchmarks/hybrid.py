"""What DPO costs beside SFT on the same pairs: `python benchmarks/hybrid.py`, writes hybrid.json.

`hybrid` scores chosen and rejected against one encoding of their prompt, `sft` chosen alone. Steps
alternate, set up as `dpo_sft.py` sets them up: its default token budget, pairs sorted by length.
The paper reports 1.057x seconds a pair.

Here: per pair, by wall clock and by process CPU; per response token, and per token of any kind, a
prompt counted once; and per pair with the reference pass, which one epoch pays once a pair.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from workloads import pair_groups, pairs_at

import dpo_sft
from common import no_grad_logps
from model.loading import load_model
from model.policies import Policies
from model.records import Group

HERE = Path(__file__).resolve().parent
BASE = str(HERE.parent / "toy" / "base")
NUM_PAIRS = 64


@dataclass
class Seconds:
    """Of each step, the first left out of every statistic."""

    wall: list[float]
    cpu: list[float]

    def median(self) -> float:
        return statistics.median(self.wall[1:])


def measure(steps: int, side: int) -> tuple[dict[str, Seconds], list[Group], list[Group]]:
    """Steps of both losses and the reference pass in turn; with the pairs, and chosen alone."""
    policy, encoder = load_model(BASE, freeze_vision=True)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    policies = Policies(trained=policy, bare=policy, sampler=policy, optimizer=optimizer)
    hybrid = replace(dpo_sft.Config(), precision="no")
    sft = replace(hybrid, loss="sft")

    pairs = pair_groups(pairs_at(side, NUM_PAIRS), encoder, policy.eos_ids[0])
    pairs.sort(key=lambda g: max(map(len, g.completions)))  # as dpo_sft.py does within a step
    chosen = [Group(g.prompt, g.completions[:1]) for g in pairs]
    logp_ref = torch.full((2 * NUM_PAIRS,), -20.0)

    work = {
        "hybrid": lambda: dpo_sft.update(
            pairs, logp_ref, pairs[0], policies, accelerator, hybrid
        ),
        "sft": lambda: dpo_sft.update(chosen, None, chosen[0], policies, accelerator, sft),
        "reference": lambda: no_grad_logps(policy, pairs, accelerator, hybrid),
    }
    took = {name: Seconds([], []) for name in work}
    for _ in range(steps + 1):
        for name, step in work.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            took[name].wall.append(time.perf_counter() - wall)
            took[name].cpu.append(time.process_time() - cpu)
    return took, pairs, chosen


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Of neighbouring steps, the first left out."""
    return [n / d for n, d in zip(numerator[1:], denominator[1:])]


def response_tokens(groups: list[Group]) -> int:
    return sum(len(c) for g in groups for c in g.completions)


def report(took: dict[str, Seconds], pairs: list[Group], chosen: list[Group]) -> dict:
    """The numbers of one image size."""
    hybrid, sft, reference = took["hybrid"], took["sft"], took["reference"]
    prompts = sum(len(g.prompt.ids) for g in pairs)
    responses = {"hybrid": response_tokens(pairs), "sft": response_tokens(chosen)}

    per_pair = ratios(hybrid.wall, sft.wall)
    median = statistics.median(per_pair)
    sft_share = responses["sft"] / responses["hybrid"]
    sft_share_of_all = (prompts + responses["sft"]) / (prompts + responses["hybrid"])
    return {
        "seconds": {name: seconds.median() for name, seconds in took.items()},
        "samples_per_s": {n: NUM_PAIRS / took[n].median() for n in ("hybrid", "sft")},
        "prompt_tokens": prompts,
        "response_tokens": responses,
        "per_pair": median,
        "per_pair_quartiles": statistics.quantiles(per_pair)[::2],
        "per_pair_range": [min(per_pair), max(per_pair)],
        "per_pair_by_cpu": statistics.median(ratios(hybrid.cpu, sft.cpu)),
        "per_response_token": median * sft_share,
        "per_token": median * sft_share_of_all,
        "per_pair_with_reference": (hybrid.median() + reference.median()) / sft.median(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12, help="steps of each loss, alternating")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--out", default=str(HERE / "hybrid.json"), help="file of the results")
    parser.add_argument("--sides", type=int, nargs="+", default=[84, 280], help="of images, pixels")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    results = {"date": time.strftime("%Y-%m-%d")}
    for side in args.sides:
        results[str(side)] = report(*measure(args.steps, side))
        print(side, json.dumps(results[str(side)]), flush=True)
    Path(args.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
