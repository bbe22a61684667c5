"""How far sampling and updating are from what the device can do.

Two numbers first, then the gap.

    sampling   a step reads all text weights once, and the keys and values of every sequence:
                   floor_s = (weight bytes + sequences * context * KV bytes a token) / bandwidth
               bandwidth is measured here by reading a large tensor
    updating   6 floating-point operations a weight and a token (2 forward, 4 backward), each
               prompt once, the head for response tokens alone:
                   MFU = 6 * (layer weights * tokens + head weights * response tokens)
                         / seconds / peak
               peak is measured here by a large matrix product; recomputed layers do not count

On a GPU this is the stage's own set-up: a bf16 copy samples, fp32 weights train under autocast. 7B
trains bf16 weights here, since fp32 weights and gradients do not fit one GPU.

    python benchmarks/roofline.py --size tiny    on a CPU, seconds: checks the arithmetic
    python benchmarks/roofline.py --size 3b      one GPU of 80 GB, random weights
"""

import argparse
import json
import time
from contextlib import nullcontext

import torch
from workloads import SIZES, random_group, random_policy, random_prompt

from common import micro_batches_of, token_logps
from model.sampling import sample_groups, sampling_copy

# --- What the device can do ----------------------------------------------------------------------


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device: str, function, repeats: int = 3) -> float:
    """Seconds of the fastest of some calls, after one that warms up."""
    function()
    fastest = float("inf")
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        function()
        synchronize(device)
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


def bandwidth(device: str) -> float:
    """Bytes a second of reading, by a sum over a large tensor."""
    x = torch.ones(2**30 if device == "cuda" else 2**26, dtype=torch.float32, device=device)
    return x.numel() * 4 / timed(device, x.sum)


def peak(device: str, dtype) -> float:
    """Floating-point operations a second of a large matrix product."""
    n = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / timed(device, lambda: a @ b)


# --- What the work needs -------------------------------------------------------------------------


def layer_weights(policy) -> int:
    return sum(p.numel() for p in policy.vlm.model.language_model.layers.parameters())


def head_weights(policy) -> int:
    """The embedding table is only looked up in, and does not count."""
    return policy.vlm.lm_head.weight.numel()


def kv_bytes_per_token(name: str, bytes_per_number: int) -> int:
    """Keys and values of one token, in all layers."""
    size = SIZES[name]
    return 2 * size.layers * size.kv_heads * (size.hidden // size.heads) * bytes_per_number


# --- Measurements --------------------------------------------------------------------------------


def measure_sampling(sampler, args, device: str, floor_s: float) -> dict:
    """Seconds of a decoding step without the prefill, with either cache."""
    sequences = args.groups * args.group_size
    prompts = make_prompts(args)

    results = {}
    for name, compile_decode in (("dynamic", False), ("static, compiled", True)):

        def sample(new_tokens: int, compile_decode=compile_decode):
            sample_groups(
                sampler,
                prompts,
                args.group_size,
                max_new_tokens=new_tokens,
                temperature=1.0,
                sample_batch=sequences,
                compile_decode=compile_decode,
            )

        few_s = timed(device, lambda: sample(2), 2)
        many_s = timed(device, lambda: sample(args.new_tokens), 2)
        step_s = (many_s - few_s) / (args.new_tokens - 2)
        results[name] = {
            "ms_a_step": 1e3 * step_s,
            "tokens_a_second": sequences / step_s,
            "share_of_bandwidth": floor_s / step_s,
        }
        print(
            f"sampling, {name}: {1e3 * step_s:.2f} ms a step, "
            f"{sequences / step_s:.0f} tokens/s, "
            f"{100 * floor_s / step_s:.0f} % of the bandwidth limit ({1e3 * floor_s:.2f} ms)",
            flush=True,
        )
    return results


def measure_update(policy, args, device: str, flops: float) -> dict:
    """Forward and backward over all groups."""
    groups = []
    for seed in range(args.groups):
        size = (args.side, args.prompt_tokens, args.new_tokens, args.group_size)
        groups.append(random_group(*size, seed))
    policy.gradient_checkpointing = args.size in ("3b", "7b")
    responses = args.groups * args.group_size * args.new_tokens
    tokens = sum(len(g.prompt.ids) for g in groups) + responses

    def update():
        context = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()
        with context:
            for batch in micro_batches_of(groups, 16384):
                token_logps(policy, batch.groups).sum().backward()
        policy.zero_grad()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(device, update)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None

    needed = 6 * (layer_weights(policy) * tokens + head_weights(policy) * responses)
    mfu = needed / seconds / flops
    print(
        f"update: {tokens / seconds:.0f} tokens/s (each prompt once), MFU {100 * mfu:.0f} %, "
        f"peak memory {peak_gb} GB",
        flush=True,
    )
    return {"tokens_a_second": tokens / seconds, "mfu": mfu, "peak_GB": peak_gb}


def make_prompts(args) -> list:
    return [random_prompt(args.side, args.prompt_tokens, seed) for seed in range(args.groups)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="tiny", choices=sorted(SIZES), help="of the model")
    parser.add_argument("--groups", type=int, default=8, help="prompts")
    parser.add_argument("--group_size", type=int, default=8, help="completions a prompt")
    parser.add_argument("--prompt_tokens", type=int, default=200, help="words of a prompt")
    parser.add_argument("--side", type=int, default=280, help="pixels of an image")
    parser.add_argument("--new_tokens", type=int, default=64, help="tokens of a completion")
    parser.add_argument("--no_update", action="store_true", help="sampling alone")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    bytes_per_number = torch.finfo(dtype).bits // 8
    bytes_per_second, flops = bandwidth(device), peak(device, dtype)

    in_bf16 = args.size == "7b" or (args.no_update and device == "cuda")
    policy = random_policy(args.size, device, torch.bfloat16 if in_bf16 else torch.float32)
    sampler = policy
    if device == "cuda" and not in_bf16:
        sampler = sampling_copy(policy)
    sampler.eos_ids = [10**9]  # nothing ends: every sequence is decoded to the limit

    sequences = args.groups * args.group_size
    context = len(make_prompts(args)[0].ids) + args.new_tokens / 2
    weights = layer_weights(policy) + head_weights(policy)
    kv_bytes = kv_bytes_per_token(args.size, bytes_per_number)
    floor_s = (weights * bytes_per_number + sequences * context * kv_bytes) / bytes_per_second

    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "date": time.strftime("%Y-%m-%d"),
        "size": args.size,
        "sequences": sequences,
        "bandwidth_GB_s": bytes_per_second / 1e9,
        "peak_TFLOP_s": flops / 1e12,
        "text_weights_M": weights / 1e6,
        "kv_bytes_a_token": kv_bytes,
        "floor_ms_a_step": 1e3 * floor_s,
    }
    print(json.dumps(result), flush=True)

    result |= measure_sampling(sampler, args, device, floor_s)
    if not args.no_update:
        result["update"] = measure_update(policy, args, device, flops)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
