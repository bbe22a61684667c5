"""How far sampling and updating are from what the device can do: `python benchmarks/roofline.py --size 7b` on a GPU.

Two numbers first, then the gap.

    sampling   a step reads all text weights once and every row's keys and values:
                   floor_s = (weight bytes + rows * context * KV bytes a token) / bandwidth
               bandwidth is measured here by reading a large tensor
    updating   6 floating-point operations a weight and a token (2 forward, 4 backward), each prompt once, the head for
               response tokens alone:
                   MFU = 6 * (layer weights * tokens + head weights * response tokens) / seconds / peak
               peak is measured here by a large matrix product; recomputing layers is not counted as useful

On a GPU the stage's own set-up: a bf16 copy samples, fp32 weights train under autocast. 7B trains bf16 weights here,
since fp32 weights and gradients do not fit one GPU.

    python benchmarks/roofline.py --size tiny      on a CPU, seconds: checks the script and its arithmetic
    python benchmarks/roofline.py --size 3b        one GPU of 80 GB, random weights
"""

import argparse
import json
import time
from contextlib import nullcontext

import torch
from models import SIZES, random_group, random_policy, random_prompt

from common import micro_batches, token_logps
from rollout import sample_groups, sampling_copy


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device: str, function, repeats: int = 3) -> float:
    """Seconds of the fastest of some calls, after one that warms up."""
    function()
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        function()
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


def bandwidth(device: str) -> float:
    """Bytes a second of reading, by a sum over a large tensor."""
    x = torch.ones(2**30 if device == "cuda" else 2**26, dtype=torch.float32, device=device)
    return x.numel() * 4 / timed(device, x.sum)


def peak(device: str, dtype) -> float:
    """Floating-point operations a second of a large matrix product."""
    n = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / timed(device, lambda: a @ b)


def text_weights(policy) -> tuple[int, int]:
    """Weights that a token goes through, of the layers and of the head; the embedding table is only looked up in."""
    return sum(p.numel() for p in policy.vlm.model.language_model.layers.parameters()), policy.vlm.lm_head.weight.numel()


def kv_bytes_a_token(size: str, width: int) -> int:
    hidden, _, layers, heads, kv_heads = SIZES[size][0][:5]
    return 2 * layers * kv_heads * (hidden // heads) * width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", choices=sorted(SIZES))
    parser.add_argument("--groups", type=int, default=8, help="prompts")
    parser.add_argument("--group_size", type=int, default=8, help="completions a prompt")
    parser.add_argument("--prompt_tokens", type=int, default=200, help="words of a prompt, beside its picture")
    parser.add_argument("--side", type=int, default=280, help="pixels of a picture")
    parser.add_argument("--new_tokens", type=int, default=64, help="tokens sampled a row")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    width = torch.finfo(dtype).bits // 8
    rows = args.groups * args.group_size

    read, flops = bandwidth(device), peak(device, dtype)
    policy = random_policy(args.size, device, torch.bfloat16 if args.size == "7b" else torch.float32)
    sampler = sampling_copy(policy) if device == "cuda" and args.size != "7b" else policy
    sampler.eos_ids = [10**9]  # nothing ends: every row is decoded to the limit
    (layers, head), kv = text_weights(policy), kv_bytes_a_token(args.size, width)
    prompts = [random_prompt(args.side, args.prompt_tokens, seed) for seed in range(args.groups)]
    context = len(prompts[0].ids) + args.new_tokens / 2
    floor = ((layers + head) * width + rows * context * kv) / read
    result = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "date": time.strftime("%Y-%m-%d"),
              "size": args.size, "rows": rows, "bandwidth_GB_s": read / 1e9, "peak_TFLOP_s": flops / 1e12,
              "text_weights_M": (layers + head) / 1e6, "kv_bytes_a_token": kv, "floor_ms_a_step": 1e3 * floor}
    print(json.dumps(result), flush=True)

    for name, static in (("dynamic", False), ("static, compiled", True)):
        def sample(tokens: int, static=static):
            sample_groups(sampler, prompts, args.group_size, max_new_tokens=tokens, temperature=1.0, max_rows=rows, static=static)

        few, many = timed(device, lambda: sample(2), 2), timed(device, lambda: sample(args.new_tokens), 2)
        step = (many - few) / (args.new_tokens - 2)  # without the prefill
        result[name] = {"ms_a_step": 1e3 * step, "tokens_a_second": rows / step, "share_of_bandwidth": floor / step}
        print(f"sampling, {name}: {1e3 * step:.2f} ms a step, {rows / step:.0f} tokens/s, {100 * floor / step:.0f} % of the "
              f"bandwidth limit ({1e3 * floor:.2f} ms)", flush=True)

    groups = [random_group(args.side, args.prompt_tokens, args.new_tokens, args.group_size, seed) for seed in range(args.groups)]
    policy.recompute = args.size in ("3b", "7b")
    responses = rows * args.new_tokens
    tokens = sum(len(g.prompt.ids) for g in groups) + responses
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def update():
        with torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext():
            for part in micro_batches(groups, 16384):
                token_logps(policy, part)[0].sum().backward()
        policy.zero_grad()

    seconds = timed(device, update)
    result["update"] = {"tokens_a_second": tokens / seconds, "mfu": 6 * (layers * tokens + head * responses) / seconds / flops,
                        "peak_GB": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None}
    print(f"update: {tokens / seconds:.0f} tokens/s (each prompt once), MFU {100 * result['update']['mfu']:.0f} %, peak memory "
          f"{result['update']['peak_GB']} GB", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
