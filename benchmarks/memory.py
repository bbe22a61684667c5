"""Extra memory of scoring at vocabulary 151,936: `python benchmarks/memory.py`, writes memory.json.

Each case runs in a process of its own: one warm-up pass of 16 tokens (so that gradients exist), then one pass
forward and backward over T tokens; reported is how far the peak resident memory rose above the warm-up's.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def plain_logps(policy, hidden, targets, temperature):
    """What frameworks do: all logits at once, then log_softmax and gather."""
    logp = policy.logits(hidden, temperature).log_softmax(-1)
    return logp.gather(-1, targets[:, None])[:, 0], logp.new_zeros(len(targets))


def case(way: str, tokens: int) -> None:
    import torch
    from models import random_group, random_policy

    import common

    torch.set_num_threads(1)
    if way == "plain":
        common.chunked_logps = plain_logps
    policy = random_policy("wide_head")

    def run(count: int) -> int:
        common.token_logps(policy, [random_group(0, 20, count, 1)])[0].sum().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MB

    before = run(16)
    print(run(tokens) - before)


def main() -> None:
    results = {}
    for tokens in (512, 1024, 2048):
        for way in ("chunked", "plain"):
            out = subprocess.run([sys.executable, __file__, way, str(tokens)], capture_output=True, text=True, check=True, cwd=HERE)
            results[f"{way} {tokens}"] = int(out.stdout)
        print(f"{tokens:>5} tokens: chunked +{results[f'chunked {tokens}']} MB, plain +{results[f'plain {tokens}']} MB, "
              f"{results[f'plain {tokens}'] / max(1, results[f'chunked {tokens}']):.1f}x", flush=True)
    (HERE / "memory.json").write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), "extra_mb": results}, indent=1) + "\n")


if __name__ == "__main__":
    case(sys.argv[1], int(sys.argv[2])) if len(sys.argv) == 3 else main()
