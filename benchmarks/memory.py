"""Extra memory of log-probabilities at vocabulary 151,936: `python benchmarks/memory.py`.

Writes memory.json. Each case runs in a process of its own: one warm-up pass of 16 tokens (so that
gradients exist), then one pass forward and backward over T tokens. Reported is how far the peak
resident memory rose above the warm-up's.
"""

import argparse
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


def run_case(way: str, tokens: int) -> None:
    """Print the extra megabytes of one case, `chunked` (ours) or `plain`."""
    import torch
    from workloads import random_group, random_policy

    import common

    torch.set_num_threads(1)
    if way == "plain":
        common.chunked_logps = plain_logps
    policy = random_policy("wide_head")

    def peak_mb(num_tokens: int) -> int:
        group = random_group(0, 20, num_tokens, 1)
        logp = common.token_logps(policy, [group])
        logp.sum().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    before = peak_mb(16)
    print(peak_mb(tokens) - before)


def extra_mb(way: str, tokens: int) -> int:
    """`run_case` in a new process."""
    command = [sys.executable, __file__, "--case", way, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE)
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs=2, metavar=("WAY", "TOKENS"), help="one case, printed")
    args = parser.parse_args()
    if args.case:
        way, tokens = args.case
        run_case(way, int(tokens))
        return

    results = {}
    for tokens in (512, 1024, 2048):
        chunked, plain = extra_mb("chunked", tokens), extra_mb("plain", tokens)
        results[f"chunked {tokens}"], results[f"plain {tokens}"] = chunked, plain
        print(
            f"{tokens:>5} tokens: chunked +{chunked} MB, plain +{plain} MB, "
            f"{plain / max(1, chunked):.1f}x",
            flush=True,
        )
    report = {"date": time.strftime("%Y-%m-%d"), "extra_mb": results}
    (HERE / "memory.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
