"""Memory and time of a run before either is spent: `--plan h100` on every stage prints and stops.

    memory      every part of it on one GPU, from `model/memory.py`, and whether it fits
    host        main memory of all processes: encoded prompts and kept pixels
    sampling    steps x (bytes of text weights + bytes of the cache) / bandwidth
    updating    (4 to 8) x weights x tokens / (HFU x the device's peak);
                GRPO adds 2 for each forward without gradient: logp_old, logp_ref

So sampling is bound by bandwidth and updating by arithmetic, the two sides of the roofline model.
Left out: attention's products, which grow with length squared, the vision tower, the prefill of the
prompts, and DPO's one pass of the reference over all pairs (with checkpointing a quarter of an
epoch, with LoRA a third). Counted too much: an embedding table that is not the head's (7 % of the
7B), and the head on prompt tokens.

It needs the model's config.json and no weights. Prompts and completions are as long as the flags
allow. What no arithmetic shows (fragmentation, CUDA's own gigabyte, the buffers of NCCL) is left to
MARGIN.
"""

import math
import re
from dataclasses import dataclass

from harness.ranks import check_shares
from model.memory import ALWAYS, FP32, PHASES, Part, Sizes, Work, parts, peak, total
from model.qwen import max_logits

GB = 1e9
MARGIN = 0.08  # of a device's memory, to be left free; ours
# Hardware FLOPs utilisation: the share of a device's peak that an update reaches, what is computed
# again included (MFU leaves that out). Ours, a goal.
HFU = 0.4

# --- 1. Devices --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """One GPU."""

    memory_bytes: float
    flops_per_second: float  # dense, bf16
    bytes_per_second: float


# Source: NVIDIA's data sheets. The CPU is a laptop's, two cores in fp32; ours, by measurement.
DEVICES = {
    "rtx4090": Device(24 * GB, 165e12, 1.01e12),
    "a100": Device(80 * GB, 312e12, 2.04e12),
    "h100": Device(80 * GB, 989e12, 3.35e12),
    "h200": Device(141 * GB, 989e12, 4.8e12),
    "cpu": Device(16 * GB, 5e10, 1e10),
}


# --- 2. Host memory, and time ------------------------------------------------------------------

PIXELS_PER_PATCH = 14 * 14
PATCHES_PER_TOKEN = 2 * 2  # the projector merges a square of patches into an image token
BYTES_PER_PATCH = FP32 * 3 * 2 * PIXELS_PER_PATCH  # three colours; each picture as two frames
PROCESS_BYTES = 4 * GB  # Python, PyTorch, CUDA; ours: 1 GB measured without CUDA, and room for it
KEPT_BYTES = 2 * 2**30  # pixels that stages 2a, 2b and evaluate.py keep to use again: `lazily.Room`


def host_bytes(sizes: Sizes, work: Work, prompts: int) -> float:
    """Host memory of one process with so many prompts, each with as large an image as fits."""
    pixel_bytes = PATCHES_PER_TOKEN * BYTES_PER_PATCH  # of an image token
    feature_bytes = FP32 * sizes.hidden  # what a frozen tower made of it, kept
    return PROCESS_BYTES + prompts * work.image_tokens * (pixel_bytes + feature_bytes)


def sampling_seconds(sizes: Sizes, work: Work, device: Device) -> float:
    """To sample --max_new_tokens for --sample_batch sequences.

    Decoding is bound by memory bandwidth. Each step gives one token to every sequence, and reads
    all text weights once, and the cache: all prompts, and half of the completions on average.
    """
    bytes_each = work.bytes_each
    slots = work.sequences * (work.prompt_tokens + work.completion_tokens / 2)
    text_weights = bytes_each * (sizes.weights - sizes.vision)
    bytes_per_step = text_weights + sizes.cache_bytes(slots, bytes_each)
    return work.completion_tokens * bytes_per_step / device.bytes_per_second


def typical_micro_batch(work: Work) -> tuple[int, int]:
    """(prompts, completions) of a micro-batch of longest groups: whole groups where they fit.

    For time. Memory counts with `Work.completions_per_pass`.
    """
    group_tokens = work.prompt_tokens + work.group_size * work.completion_tokens
    groups = work.max_pass_tokens // group_tokens
    if groups:
        return groups, groups * work.group_size

    completions = work.group_size  # halved until it fits, as `common.micro_batches_of` does
    while (work.prompt_tokens + completions * work.completion_tokens > work.max_pass_tokens
           and completions > work.never_split):
        completions = math.ceil(completions / 2)
    return 1, completions


def pass_seconds(sizes: Sizes, work: Work, device: Device) -> float:
    """Forward and backward of one micro-batch."""
    prompts, completions = typical_micro_batch(work)
    tokens = prompts * work.prompt_tokens + completions * work.completion_tokens
    flops = work.flops_per_weight_and_token * (sizes.weights - sizes.vision) * tokens
    return flops / (HFU * device.flops_per_second)


# --- 3. From the settings of a stage to a page of text -----------------------------------------


def work_of(cfg, device_name: str, ranks: int) -> Work:
    """The work of a stage, from its settings.

    A stage that lacks a flag does not do that part of the work: without --lr it trains nothing,
    without --sample_batch it samples nothing. Only pairs have --max_response_tokens.
    """
    bf16 = cfg.precision == "bf16" or (cfg.precision == "auto" and device_name != "cpu")

    is_pairs = hasattr(cfg, "max_response_tokens")  # dpo_sft.py
    if is_pairs:
        group_size = 1 if cfg.loss == "sft" else 2  # SFT alone takes chosen
        completion_tokens = cfg.max_response_tokens
    else:  # evaluate.py has one completion for most questions
        group_size = getattr(cfg, "group_size", getattr(cfg, "samples", 1))
        completion_tokens = cfg.max_new_tokens

    sequences = getattr(cfg, "sample_batch", 0)
    if hasattr(cfg, "prompts_per_step"):  # grpo.py: no more than this rank's share of a rollout
        check_shares(cfg, ranks, "the devices")
        sequences = min(sequences, cfg.prompts_per_step * cfg.group_size // ranks)

    image_tokens = cfg.max_prompt_tokens
    if cfg.max_pixels:
        image_tokens = min(image_tokens, cfg.max_pixels // (PATCHES_PER_TOKEN * PIXELS_PER_PATCH))
    return Work(
        trains=hasattr(cfg, "lr"),
        bf16=bf16,
        ranks=ranks,
        prompt_tokens=cfg.max_prompt_tokens,
        completion_tokens=completion_tokens,
        image_tokens=image_tokens,
        sequences=sequences,
        group_size=group_size,
        max_pass_tokens=getattr(cfg, "max_tokens_per_micro_batch", 0),
        never_split=group_size if is_pairs else 1,
        freeze_vision=getattr(cfg, "freeze_vision", True),
        checkpointing=getattr(cfg, "gradient_checkpointing", False),
        reference=getattr(cfg, "kl_beta", 0.0) > 0,
        lora_rank=getattr(cfg, "lora_rank", 0),
        lora_targets=getattr(cfg, "lora_targets", ""),
        lora_merge=getattr(cfg, "lora_merge", True),
        shard=getattr(cfg, "shard", False),
        max_logits=max_logits("cpu" if device_name == "cpu" else "cuda"),
    )


def parse_device(text: str) -> tuple[str, int]:
    """`h100` -> ("h100", 1), `h100x8` -> ("h100", 8). Raises ValueError naming --plan."""
    match = re.fullmatch(rf"({'|'.join(DEVICES)})(?:x([1-9]\d*))?", text.lower())
    if match is None:
        raise ValueError(f"--plan {text}: wanted one of {', '.join(DEVICES)}, or that many: h100x8")
    return match[1], int(match[2] or 1)


def plan(cfg) -> str:
    """What --plan prints for the settings of a stage. Raises ValueError naming a flag."""
    device_name, ranks = parse_device(cfg.plan)
    device = DEVICES[device_name]
    model = model_of(cfg)
    sizes, work = Sizes.of(model), work_of(cfg, device_name, ranks)

    all_parts = parts(sizes, work)
    lines = [f"{model}: {sizes.weights / 1e9:.2f} billion weights, on {ranks} x {device_name}", ""]
    lines += memory_table(all_parts, device, cfg)
    if work.trains and not work.freeze_vision:
        lines.append("not counted: activations of the vision tower, which is trained")
    lines += ["", *how_long(cfg, sizes, work, device), host_memory(cfg, sizes, work)]
    return "\n".join(lines)


def model_of(cfg) -> str:
    """Folder or hub name of the model that a stage works with: the first one of evaluate.py."""
    if hasattr(cfg, "models"):
        return cfg.models.split(",")[0].split("=")[-1]  # NAME=FOLDER,...
    return cfg.base if hasattr(cfg, "base") else cfg.model


def memory_table(all_parts: list[Part], device: Device, cfg) -> list[str]:
    """A line for each part, its bytes under each phase in which it is there, and the verdict."""
    # Only the phases in which this stage has something that is not there always.
    phases = []
    for phase in PHASES:
        if any(phase in part.phases for part in all_parts if part.phases != ALWAYS):
            phases.append(phase)
    unit, unit_name = (GB, "GB") if peak(all_parts) > GB else (GB / 1e3, "MB")

    def line(name: str, values: list[float | None]) -> str:
        cells = ["" if value is None else f"{value / unit:.2f}" for value in values]
        return f"{name:<40}" + "".join(f"{cell:>12}" for cell in cells)

    lines = [f"{unit_name + ' on one device':<40}" + "".join(f"{phase:>12}" for phase in phases)]
    for part in all_parts:
        values = [part.bytes if phase in part.phases else None for phase in phases]
        lines.append(line(part.name, values))
    lines.append(line("together", [total(all_parts, phase) for phase in phases]))
    return [*lines, verdict(all_parts, device, cfg, unit, unit_name)]


def verdict(all_parts: list[Part], device: Device, cfg, unit: float, unit_name: str) -> str:
    """Whether the fullest phase fits; if not, the flags that help."""
    usable = (1 - MARGIN) * device.memory_bytes
    needed = f"{peak(all_parts) / unit:.1f} of {usable / unit:.1f} {unit_name}"
    if peak(all_parts) <= usable:
        return f"fits: {needed} ({MARGIN:.0%} of the device is left free)"

    fullest = max(PHASES, key=lambda phase: total(all_parts, phase))
    there = [part for part in all_parts if fullest in part.phases]
    helps = []  # flags of this stage, first the one that makes the largest part smaller
    for part in sorted(there, key=lambda part: -part.bytes):
        for flag in part.smaller_by:
            # "--kl_beta 0" -> kl_beta, "--no_lora_merge" -> lora_merge
            name = flag.split()[0].removeprefix("--").removeprefix("no_")
            if hasattr(cfg, name) and flag not in helps:
                helps.append(flag)
    what = f"; what helps: {', '.join(helps)}" if helps else ""
    return f"DOES NOT FIT: {needed} in the phase `{fullest}`{what}"


def how_long(cfg, sizes: Sizes, work: Work, device: Device) -> list[str]:
    """Time of a rollout, speed of sampling, or speed of training on pairs, at full lengths."""
    if hasattr(cfg, "prompts_per_step"):  # grpo.py
        return rollout_time(cfg, sizes, work, device)
    if work.sequences:  # build_prefs.py, evaluate.py
        tokens = work.ranks * work.sequences * work.completion_tokens
        per_second = tokens / sampling_seconds(sizes, work, device)
        return [f"sampling: {per_second:,.0f} tokens a second at full length, by bandwidth"]

    prompts, _ = typical_micro_batch(work)  # dpo_sft.py: each pair has a prompt of its own
    per_second = work.ranks * prompts / pass_seconds(sizes, work, device)
    return [f"training: {per_second:.2f} pairs a second of the longest kind, {HFU:.0%} of "
            f"the peak; {cfg.batch_pairs} make a step"]  # fmt: skip


def host_memory(cfg, sizes: Sizes, work: Work) -> str:
    """Host memory of all processes: encoded prompts, and pixels kept to be used again."""
    if work.sequences:
        batch = max(1, work.sequences // work.group_size)
    else:
        batch = math.ceil(cfg.batch_pairs / work.ranks)

    prompts, kept = 2 * batch, KEPT_BYTES  # those of a batch, and of the next one, on its way
    if hasattr(cfg, "prompts_per_step"):  # GRPO holds a rollout's, and meets a prompt once
        prompts, kept = max(prompts, cfg.prompts_per_step // work.ranks), 0
    total = work.ranks * (host_bytes(sizes, work, prompts) + kept)
    return f"memory of the host: {total / GB:.0f} GB for {work.ranks} process(es)"


def rollout_time(cfg, sizes: Sizes, work: Work, device: Device) -> list[str]:
    """How much a rollout of GRPO is, and how long it takes at full length."""
    completions = cfg.prompts_per_step * cfg.group_size
    batches = math.ceil(completions / (work.ranks * work.sequences))
    passes = math.ceil(completions / (work.ranks * typical_micro_batch(work)[1]))

    sampling = batches * sampling_seconds(sizes, work, device)
    training = passes * pass_seconds(sizes, work, device)
    updates = cfg.updates_per_rollout
    # For each training pass, the forwards without gradient that come on top: one for logp_old,
    # except in the first of the updates, and one for logp_ref if there is a KL term.
    extra_forwards = (updates - 1) / updates + (1 if cfg.kl_beta > 0 else 0)
    cost_of_one = 2 / work.flops_per_weight_and_token  # 2 operations, as a share of the pass
    training *= 1 + extra_forwards * cost_of_one
    return [
        f"a rollout: {completions} completions of at most {work.completion_tokens:,} tokens, "
        f"{updates} optimizer steps",
        f"  sampling: {sampling / 60:.1f} minutes at full length, by bandwidth",
        f"  training: {training / 60:.1f} minutes at {HFU:.0%} of the peak",
    ]
