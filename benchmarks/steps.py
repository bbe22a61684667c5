"""One step of a stage at the full lengths of its settings, with random weights: time, and memory
against `--plan`.

Every completion is as long as the flags allow, so this is the worst batch that the plan describes.
GRPO: --sample_batch sequences are sampled, then one group of them makes an optimizer step.
DPO: the reference of --pairs_in_step pairs is scored, then they make an optimizer step. What stands
in the files of configs/ holds, but for flags that follow. On a CPU memory is that of the process.

    python benchmarks/steps.py grpo --limit_GB 24 @configs/grpo_3b_lora.args --max_new_tokens 2048
    python benchmarks/steps.py dpo @configs/dpo_sft_3b.args

The last line is one JSON object.
"""

import argparse
import json
import resource
import time

import torch
from roofline import head_weights, layer_weights, synchronize
from transformers import GenerationConfig
from workloads import EOS_ID, MERGE, PATCH

import dpo_sft
import grpo
from common import no_grad_logps
from harness.cli import parse_cli
from harness.plan import work_of
from harness.ranks import make_accelerator
from model.images import load_image
from model.lora import add_adapters
from model.memory import Sizes, parts, peak, read_config
from model.policies import build_policies
from model.qwen import Policy, model_class, mrope_positions
from model.records import Group, Prompt, completion_mask
from model.sampling import refresh, sample_groups, sampling_dtype

# --- Model and work ------------------------------------------------------------------------------


def random_stage_policy(cfg, accelerator) -> Policy:
    """What `model.policies.load_policy` loads, with random weights. Nothing ends a completion."""
    config = read_config(cfg.model)
    torch.manual_seed(cfg.seed)
    dtype = sampling_dtype(accelerator) if cfg.lora_rank else torch.float32
    torch.set_default_dtype(dtype)
    with accelerator.device:
        vlm = model_class(config)(config).eval()
    torch.set_default_dtype(torch.float32)
    vlm.generation_config = GenerationConfig(eos_token_id=EOS_ID, pad_token_id=0)
    vlm.model.visual.requires_grad_(not cfg.freeze_vision)

    nothing = torch.zeros(config.text_config.vocab_size, dtype=torch.bool)
    policy = Policy(vlm, [10**9], nothing.to(accelerator.device), cfg.gradient_checkpointing)
    if cfg.lora_rank:
        add_adapters(policy, cfg.lora_rank, cfg.lora_alpha, cfg.lora_targets, cfg.seed)
    return policy


def longest_prompt(cfg, policy: Policy, seed: int, picture: str = "") -> Prompt:
    """--max_prompt_tokens tokens: those of a picture, then random words.

    picture   an image file, scaled to --max_pixels at most; empty: noise of --max_pixels
    """
    limit = min(cfg.max_pixels or 501760, (cfg.max_prompt_tokens - 1) * (PATCH * MERGE) ** 2)
    side = PATCH * MERGE  # pixels of an image token
    width = height = max(1, int(limit**0.5) // side) * side
    if picture:
        image = load_image(picture, picture)
        scale = min(1.0, (limit / (image.width * image.height)) ** 0.5)
        width = max(1, int(scale * image.width) // side) * side
        height = max(1, int(scale * image.height) // side) * side
    grid = torch.tensor([[1, height // PATCH, width // PATCH]])
    g = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(int(grid.prod()), 3 * 2 * PATCH**2, generator=g)
    if picture:
        pixel_values = patches_of(image.resize((width, height)))

    config = policy.vlm.config
    num_image_tokens = len(pixel_values) // MERGE**2
    words = random_words(policy, cfg.max_prompt_tokens - num_image_tokens, g)
    ids = [config.image_token_id] * num_image_tokens + words.tolist()
    positions = mrope_positions(ids, grid, config.image_token_id, MERGE)
    return Prompt({"id": str(seed)}, torch.tensor(ids), positions, pixel_values, grid)


def patches_of(image) -> torch.Tensor:
    """(patches, patch_dim) of an image whose sides are multiples of 28, by HF's processor."""
    from transformers import Qwen2VLImageProcessorPil

    size = {"shortest_edge": 1, "longest_edge": 10**9}
    return Qwen2VLImageProcessorPil(size=size)(images=[image], return_tensors="pt")["pixel_values"]


def random_words(policy: Policy, count: int, g: torch.Generator) -> torch.Tensor:
    """(count,) ids that are no image token."""
    first_special = min(policy.vlm.config.image_token_id, len(policy.suppressed))
    if first_special < 20:  # a small model numbers its special ids first
        return torch.randint(20, len(policy.suppressed), (count,), generator=g)
    return torch.randint(0, first_special - 10, (count,), generator=g)


# --- Steps ---------------------------------------------------------------------------------------


class Timer:
    """Seconds of named phases, each measured once the device has finished."""

    def __init__(self, device: str):
        self.device, self.seconds = device, {}

    def __call__(self, name: str, function):
        synchronize(self.device)
        began = time.perf_counter()
        result = function()
        synchronize(self.device)
        self.seconds[name] = time.perf_counter() - began
        return result


def grpo_step(cfg, policies, accelerator, timer: Timer, picture: str) -> dict:
    """Sample --sample_batch completions, then an optimizer step over one group of them."""
    group_size = min(cfg.group_size, cfg.sample_batch)
    count = max(1, cfg.sample_batch // group_size)
    prompts = [longest_prompt(cfg, policies.bare, seed, picture) for seed in range(count)]

    def sample():
        with accelerator.autocast():
            return sample_groups(
                policies.sampler, prompts, group_size, max_new_tokens=cfg.max_new_tokens,
                temperature=cfg.temperature, sample_batch=cfg.sample_batch,
                compile_decode=cfg.compile_decode,
            )  # fmt: skip

    timer("refresh", lambda: refresh(policies.sampler, policies.bare))
    groups = timer("sampling", sample)[:1]
    mask = completion_mask(groups)
    advantages = torch.linspace(-1, 1, group_size)
    batch = grpo.MiniBatch(
        groups, advantages, mask, torch.zeros_like(mask), None, float(mask.sum()), groups[0]
    )
    timer("update", lambda: grpo.update(batch, policies, accelerator, cfg))
    sampled_a_second = count * group_size * cfg.max_new_tokens / timer.seconds["sampling"]
    return {"sampled_a_second": sampled_a_second, **work_done(groups, policies, timer)}


def dpo_step(cfg, policies, accelerator, timer: Timer, picture: str, count: int) -> dict:
    """Score the reference of `count` pairs, then an optimizer step over them."""
    g = torch.Generator().manual_seed(1)
    pairs = []
    for seed in range(count):
        prompt = longest_prompt(cfg, policies.bare, seed, picture)
        responses = [random_words(policies.bare, cfg.max_response_tokens, g) for _ in range(2)]
        pairs.append(Group(prompt, responses))

    def reference():
        return no_grad_logps(policies.trained, pairs, accelerator, cfg).sum(-1)

    logp_ref = timer("reference", reference)
    timer("update", lambda: dpo_sft.update(pairs, logp_ref, pairs[0], policies, accelerator, cfg))
    seconds = timer.seconds["reference"] + timer.seconds["update"]
    return {"pairs_a_second": count / seconds, **work_done(pairs, policies, timer)}


def work_done(groups: list[Group], policies, timer: Timer) -> dict:
    """Tokens a second of the update, and its operations: 6 a weight and token, 4 with adapters.

    Recomputed layers do not count; the head works for completions alone.
    """
    responses = sum(len(c) for group in groups for c in group.completions)
    tokens = responses + sum(len(group.prompt.ids) for group in groups)
    per_weight = 6 if policies.bare.vlm.lm_head.weight.requires_grad else 4
    layers, head = layer_weights(policies.bare), head_weights(policies.bare)
    operations = per_weight * (layers * tokens + head * responses)
    seconds = timer.seconds["update"]
    return {"update_tokens_a_second": tokens / seconds, "operations_a_second": operations / seconds}


# --- Memory --------------------------------------------------------------------------------------


def limit_memory(gigabytes: float) -> None:
    """Make the card behave as one of that size: what goes beyond is out of memory."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total))


def resident() -> int:
    """Bytes of main memory that this process has held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(cfg, device: str, at_start: int) -> dict:
    """Peak so far in GB, and what the plan says; on a CPU both with what was there `at_start`."""
    work = work_of(cfg, "h100" if device == "cuda" else "cpu", 1)
    planned = peak(parts(Sizes.of(cfg.model), work))
    if device == "cuda":
        measured = torch.cuda.max_memory_allocated()
    else:
        planned += at_start
        measured = resident()
    return {"planned_GB": planned / 1e9, "measured_GB": measured / 1e9}


def run(stage: str, cfg, picture: str = "", pairs: int = 1, limit_GB: float = 0.0) -> dict:
    """The figures of one step of a stage."""
    accelerator = make_accelerator(cfg)
    device = accelerator.device.type
    if device == "cuda" and limit_GB:
        limit_memory(limit_GB)
    timer, at_start = Timer(device), resident()
    policy = timer("weights", lambda: random_stage_policy(cfg, accelerator))
    if stage == "grpo":
        policies = build_policies(policy, cfg, accelerator, samples=True, kl_beta=cfg.kl_beta)
        result = grpo_step(cfg, policies, accelerator, timer, picture)
    else:
        policies = build_policies(policy, cfg, accelerator)
        result = dpo_step(cfg, policies, accelerator, timer, picture, pairs)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, **memory(cfg, device, at_start), **result, "seconds": timer.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["grpo", "dpo"])
    parser.add_argument("--limit_GB", type=float, default=0.0, help="of the card; 0: all of it")
    parser.add_argument("--picture", default="", help="an image file; empty: noise")
    parser.add_argument("--pairs_in_step", type=int, default=2, help="of the DPO step")
    own, flags = parser.parse_known_args()
    stage = {"grpo": grpo, "dpo": dpo_sft}[own.stage]
    cfg = parse_cli(stage.Config, "", flags)
    print(json.dumps(run(own.stage, cfg, own.picture, own.pairs_in_step, own.limit_GB)))


if __name__ == "__main__":
    main()
