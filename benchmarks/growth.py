"""How the cost of log-probabilities grows: `python benchmarks/growth.py`, 3 minutes on a CPU.

Writes growth.json and growth.png. One group, forward and backward, against the number of
completions G, the prompt P, the response R and the image. Ours should follow P + G*R; the same
completions one by one, each with its own copy of the prompt, follow G*(P + R).

The last axis keeps G*R and makes one response longer at the others' cost: padded to it, a batch
would grow with it.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from workloads import random_group, random_policy

from common import token_logps
from model.records import Group

HERE = Path(__file__).resolve().parent

START = dict(side=0, prompt=400, response=60, size=8, longest=0)
AXES = {
    "size": [2, 4, 8, 16, 32],
    "prompt": [50, 200, 800, 1600],
    "response": [15, 60, 240, 480],
    "side": [0, 84, 280, 560],
    "longest": [60, 120, 240, 400],
}
TITLES = {
    "size": "completions G",
    "prompt": "prompt P, tokens",
    "response": "response R, tokens",
    "side": "image side, pixels",
    "longest": "longest response, G R = 480 tokens",
}


def seconds(policy, groups: list[Group]) -> float:
    """Of one pass forward and backward."""
    began = time.perf_counter()
    logp = token_logps(policy, groups)
    logp.sum().backward()
    policy.zero_grad()
    return time.perf_counter() - began


def measure_point(policy, setting: dict, rounds: int) -> dict:
    """Median seconds with a shared prompt and with separate copies, measured in turn."""
    group = random_group(
        setting["side"],
        setting["prompt"],
        setting["response"],
        setting["size"],
        longest=setting["longest"],
    )
    separate = [Group(group.prompt, [completion]) for completion in group.completions]
    seconds(policy, [group])  # warm up

    shared_s, separate_s = [], []
    for _ in range(rounds):
        shared_s.append(seconds(policy, [group]))
        separate_s.append(seconds(policy, separate))
    return {
        "prompt_tokens": len(group.prompt.ids),
        "shared_s": statistics.median(shared_s),
        "separate_s": statistics.median(separate_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each point")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--only", default="", help="one of the axes, nothing written; empty: all")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    # The tower is trained, so that its cost shows as well.
    policy = random_policy("small", frozen_vision=False)
    points = []
    for axis, values in AXES.items():
        if args.only not in ("", axis):
            continue
        for value in values:
            setting = {**START, axis: value}
            point = {**setting, "axis": axis, **measure_point(policy, setting, args.rounds)}
            points.append(point)
            print(
                f"{axis:>9} {value:>5}: shared {point['shared_s']:.3f} s, "
                f"separate {point['separate_s']:.3f} s, "
                f"{point['separate_s'] / point['shared_s']:.1f}x",
                flush=True,
            )

    if not args.only:
        result = {"date": time.strftime("%Y-%m-%d"), "points": points}
        (HERE / "growth.json").write_text(json.dumps(result, indent=1) + "\n")
        plot(points)


def num_tokens(point: dict) -> int:
    """P + G R."""
    return point["prompt_tokens"] + point["size"] * point["response"]


def seconds_per_token(points: list[dict]) -> float:
    """One constant for all panels, by least squares, from the points without images."""
    without_images = [point for point in points if point["axis"] != "side"]
    tokens = torch.tensor([num_tokens(p) for p in without_images], dtype=torch.float64)
    times = torch.tensor([p["shared_s"] for p in without_images], dtype=torch.float64)
    return float((tokens * times).sum() / (tokens * tokens).sum())


def plot(points: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rate = seconds_per_token(points)
    figure, panels = plt.subplots(1, len(AXES), figsize=(17, 3.2), layout="constrained")
    for panel, (axis, values) in zip(panels, AXES.items()):
        here = [point for point in points if point["axis"] == axis]
        line = [rate * num_tokens(point) for point in here]
        panel.plot(values, [p["shared_s"] for p in here], marker="o", label="shared prompt")
        panel.plot(values, [p["separate_s"] for p in here], marker="o", label="separate copies")
        panel.plot(values, line, "k:", label=f"{1e6 * rate:.0f} us x (P + G R)")
        panel.set(xlabel=TITLES[axis], ylabel="seconds", ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)

    figure.suptitle("forward + backward of one group (P 400, R 60, G 8 but for the axis)")
    figure.savefig(HERE / "growth.png", dpi=110)


if __name__ == "__main__":
    main()
