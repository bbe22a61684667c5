"""How the cost of scoring grows: `python benchmarks/growth.py` (3 minutes on a CPU), writes growth.json and growth.png.

One group, forward and backward, against the number of completions G, the prompt P, the response R and the picture.
Ours should follow P + G*R; the same rows scored one by one, each with its own copy of the prompt, follow G*(P + R).
The last axis keeps G*R and makes one response longer at the others' cost: padded to it, a batch would grow with it.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from models import random_group, random_policy

from common import Group, token_logps

HERE = Path(__file__).resolve().parent
START = dict(side=0, prompt=400, response=60, size=8, longest=0)
AXES = {"size": [2, 4, 8, 16, 32], "prompt": [50, 200, 800, 1600], "response": [15, 60, 240, 480], "side": [0, 84, 280, 560],
        "longest": [60, 120, 240, 400]}
TITLES = {"size": "completions G", "prompt": "prompt P, tokens", "response": "response R, tokens", "side": "picture side, pixels",
          "longest": "longest response, G R = 480 tokens"}


def seconds(policy, groups: list[Group]) -> float:
    began = time.perf_counter()
    logp, _ = token_logps(policy, groups)
    logp.sum().backward()
    policy.zero_grad()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved measurements of each point")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    policy = random_policy("small", frozen_vision=False)  # trained, so that the tower's cost shows as well
    points = []
    for axis, values in AXES.items():
        for value in values:
            setting = {**START, axis: value}
            group = random_group(setting["side"], setting["prompt"], setting["response"], setting["size"],
                                 longest=setting["longest"])
            alone = [Group(group.prompt, [c]) for c in group.completions]
            seconds(policy, [group])
            rounds = [(seconds(policy, [group]), seconds(policy, alone)) for _ in range(args.rounds)]
            ours, rows = (statistics.median(r[i] for r in rounds) for i in (0, 1))
            points.append({**setting, "axis": axis, "prompt_tokens": len(group.prompt.ids), "shared_s": ours, "rows_s": rows})
            print(f"{axis:>9} {value:>5}: shared {ours:.3f} s, separate rows {rows:.3f} s, {rows / ours:.1f}x", flush=True)
    (HERE / "growth.json").write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), "points": points}, indent=1) + "\n")
    plot(points)


def plot(points: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # One constant for all panels: seconds a token, from the points without pictures.
    plain = [p for p in points if p["axis"] != "side"]
    tokens = torch.tensor([p["prompt_tokens"] + p["size"] * p["response"] for p in plain], dtype=torch.float64)
    times = torch.tensor([p["shared_s"] for p in plain], dtype=torch.float64)
    rate = float((tokens * times).sum() / (tokens * tokens).sum())
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.2), layout="constrained")
    for axis, (name, values) in zip(axes, AXES.items()):
        own = [p for p in points if p["axis"] == name]
        axis.plot(values, [p["shared_s"] for p in own], marker="o", label="shared prompt")
        axis.plot(values, [p["rows_s"] for p in own], marker="o", label="separate rows")
        axis.plot(values, [rate * (p["prompt_tokens"] + p["size"] * p["response"]) for p in own], "k:", label=f"{1e6 * rate:.0f} us x (P + G R)")
        axis.set(xlabel=TITLES[name], ylabel="seconds", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle("forward + backward of one group (P 400, R 60, G 8 but for the axis)")
    figure.savefig(HERE / "growth.png", dpi=110)


if __name__ == "__main__":
    main()
