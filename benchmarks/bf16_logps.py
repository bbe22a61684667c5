"""How far log-probabilities in bf16 are from fp32, at real shapes, with random weights.

    fp32        the weights as they are kept, no autocast
    trainer     the same weights under bf16 autocast: what the losses see
    sampler     the bf16 copy that samples, over the same groups

A model with random weights is nearly uniform, so this measures rounding alone; a trained one has
likelier tokens. The last line is one JSON object.

    python benchmarks/bf16_logps.py --size tiny     on a CPU, seconds
    python benchmarks/bf16_logps.py --size 3b       one GPU of 80 GB
"""

import argparse
import json

import torch
from workloads import SIZES, random_group, random_policy

from common import token_logps
from model.sampling import sampling_copy


def differences(logp: torch.Tensor, exact: torch.Tensor) -> dict:
    """Mean and largest |difference| in nats, and its mean (a bias)."""
    d = logp.double() - exact.double()
    return {"mean_abs": float(d.abs().mean()), "max_abs": float(d.abs().max()),
            "mean": float(d.mean())}  # fmt: skip


@torch.no_grad()
def measure(args, device: str) -> dict:
    policy = random_policy(args.size, device)
    group = random_group(args.side, args.prompt_tokens, args.new_tokens, args.group_size)
    exact = token_logps(policy, [group])  # (B, T), all equally long
    with torch.autocast(device, torch.bfloat16):
        trainer = token_logps(policy, [group])
        sampler = token_logps(sampling_copy(policy), [group])
    return {
        "tokens": exact.numel(),
        "prompt_tokens": len(group.prompt.ids),
        "mean_logp": float(exact.mean()),
        "trainer": differences(trainer, exact),
        "sampler": differences(sampler, exact),
        "sampler_to_trainer": differences(sampler, trainer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="tiny", choices=sorted(SIZES), help="of the model")
    parser.add_argument("--group_size", type=int, default=8, help="completions")
    parser.add_argument("--prompt_tokens", type=int, default=400, help="words of the prompt")
    parser.add_argument("--side", type=int, default=700, help="pixels of its image")
    parser.add_argument("--new_tokens", type=int, default=1024, help="tokens of a completion")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(json.dumps(measure(args, device)))


if __name__ == "__main__":
    main()
