"""Memory and time of a run before either is spent: `--plan h100` on every stage prints and stops.

    memory   every part of it on one GPU, from `model/memory.py`, and whether it fits
    time     from the bytes that must be read and the operations that must be done

It needs the model's config.json and no weights. Prompts and completions are as long as the flags
allow. What no arithmetic shows (fragmentation, CUDA's own gigabyte, the buffers of NCCL) is left to
MARGIN.
"""

import re
from dataclasses import dataclass

from model.memory import ALWAYS, Part, Sizes, Work, parts, peak
from model.qwen import max_logits

GB = 1e9
MARGIN = 0.08  # of a device's memory, to be left free; ours
MFU = 0.4  # share of the peak that an update reaches; ours, a goal

# --- 1. Devices --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """One GPU: its memory in bytes, dense bf16 operations a second, bytes a second."""

    memory: float
    operations: float
    bandwidth: float


# Source: NVIDIA's data sheets. The CPU is a laptop's, two cores in fp32; ours, by measurement.
DEVICES = {
    "rtx4090": Device(24 * GB, 165e12, 1.01e12),
    "a100": Device(80 * GB, 312e12, 2.04e12),
    "h100": Device(80 * GB, 989e12, 3.35e12),
    "h200": Device(141 * GB, 989e12, 4.8e12),
    "cpu": Device(16 * GB, 5e10, 1e10),
}


# --- 2. Host memory, and time ------------------------------------------------------------------

PATCH_BYTES = 4 * 3 * 2 * 14 * 14  # fp32 pixels of one patch of 14 x 14, two frames
PATCHES_PER_TOKEN = 4
PROCESS = 4 * GB  # Python, PyTorch and CUDA; ours: 1 GB measured without CUDA, and room for it


def host_bytes(sizes: Sizes, work: Work, prompts: int) -> float:
    """Main memory of one process with so many prompts, each with as large an image as fits."""
    image = work.image_tokens * (PATCHES_PER_TOKEN * PATCH_BYTES + 4 * sizes.hidden)
    return PROCESS + prompts * image


def sampling_seconds(sizes: Sizes, work: Work, device: Device) -> float:
    """To draw --max_new_tokens for --sample_batch sequences: reading is what takes the time.

    Each token reads all text weights once, and the cache, which is half full on average.
    """
    number = work.bytes_per_number
    slots = work.sequences * (work.prompt_tokens + work.completion_tokens / 2)
    per_token = number * (sizes.weights - sizes.vision) + sizes.cache_bytes(slots, number)
    return work.completion_tokens * per_token / device.bandwidth


def pass_seconds(sizes: Sizes, work: Work, device: Device) -> float:
    """Forward and backward of one micro-batch."""
    tokens = work.prompt_tokens + work.completions_per_pass * work.completion_tokens
    operations = work.operations * (sizes.weights - sizes.vision) * tokens
    return operations / (MFU * device.operations)


# --- 3. From the settings of a stage to a page of text -----------------------------------------


def work_of(cfg, device_name: str, ranks: int) -> Work:
    """The work of a stage, from its settings.

    A stage that lacks a flag does not do that part of the work: without --lr it trains nothing,
    without --sample_batch it samples nothing. Only pairs have --max_response_tokens.
    """
    bf16 = cfg.precision == "bf16" or (cfg.precision == "auto" and device_name != "cpu")
    is_pairs = hasattr(cfg, "max_response_tokens")
    completion_tokens = cfg.max_response_tokens if is_pairs else cfg.max_new_tokens
    image_tokens = cfg.max_prompt_tokens
    if cfg.max_pixels:
        image_tokens = min(image_tokens, cfg.max_pixels // (PATCHES_PER_TOKEN * 14 * 14))
    return Work(
        trains=hasattr(cfg, "lr"),
        bf16=bf16,
        ranks=ranks,
        prompt_tokens=cfg.max_prompt_tokens,
        completion_tokens=completion_tokens,
        image_tokens=image_tokens,
        sequences=getattr(cfg, "sample_batch", 0),
        group_size=getattr(cfg, "group_size", getattr(cfg, "samples", 1)),
        pass_tokens=getattr(cfg, "max_tokens_per_micro_batch", 0),
        never_split=2 if is_pairs else 1,
        freeze_vision=getattr(cfg, "freeze_vision", True),
        checkpointing=getattr(cfg, "gradient_checkpointing", False),
        reference=getattr(cfg, "kl_beta", 0.0) > 0,
        lora_rank=getattr(cfg, "lora_rank", 0),
        lora_targets=tuple(getattr(cfg, "lora_targets", "").split(",")),
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
    model = getattr(cfg, "model", None) or getattr(cfg, "base", None)
    if model is None:
        model = cfg.models.split(",")[0].split("=")[-1]  # NAME=FOLDER,...
    sizes, work = Sizes.of(model), work_of(cfg, device_name, ranks)

    found = parts(sizes, work)
    lines = [f"{model}: {sizes.weights / 1e9:.2f} billion weights, on {ranks} x {device_name}", ""]
    lines += memory_table(found, device)
    lines += ["", *how_long(cfg, sizes, work, device)]
    return "\n".join(lines)


def memory_table(found: list[Part], device: Device) -> list[str]:
    """A line for each part, its bytes under each moment at which it is there, and the verdict."""
    # Only the moments at which this stage has something that is not there always.
    moments = []
    for moment in ALWAYS:
        if any(moment in part.moments for part in found if part.moments != ALWAYS):
            moments.append(moment)
    unit, unit_name = (GB, "GB") if peak(found) > GB else (GB / 1e3, "MB")

    def line(name: str, values: list[float | None]) -> str:
        cells = ["" if value is None else f"{value / unit:.2f}" for value in values]
        return f"{name:<40}" + "".join(f"{cell:>12}" for cell in cells)

    lines = [f"{unit_name + ' on one device':<40}" + "".join(f"{m:>12}" for m in moments)]
    for part in found:
        lines.append(line(part.name, [part.bytes if m in part.moments else None for m in moments]))
    totals = [sum(p.bytes for p in found if moment in p.moments) for moment in moments]
    lines.append(line("together", totals))

    usable = (1 - MARGIN) * device.memory
    needed = f"{peak(found) / unit:.1f} of {usable / unit:.1f} {unit_name}"
    if peak(found) <= usable:
        return [*lines, f"fits: {needed} ({MARGIN:.0%} of the device is left free)"]

    fullest = moments[totals.index(max(totals))]
    there = [part for part in found if fullest in part.moments]
    helps = []  # the flag that makes the largest part smaller first
    for part in sorted(there, key=lambda part: -part.bytes):
        helps += [flag for flag in part.smaller_by if flag not in helps]
    what = f"; what helps: {', '.join(helps)}" if helps else ""
    return [*lines, f"DOES NOT FIT: {needed} at the moment `{fullest}`{what}"]


def how_long(cfg, sizes: Sizes, work: Work, device: Device) -> list[str]:
    """Work and time of a rollout or of a step at full lengths, and the memory of the host."""
    # Encoded prompts in main memory: those of a batch, and of the next one, on its way.
    prompts = 2 * max(1, work.sequences // work.group_size)
    if hasattr(cfg, "prompts_per_step"):
        lines = rollout_time(cfg, sizes, work, device)
        prompts = max(prompts, cfg.prompts_per_step // work.ranks)
    elif work.sequences:
        tokens = work.ranks * work.sequences * work.completion_tokens
        per_second = tokens / sampling_seconds(sizes, work, device)
        lines = [f"drawing: {per_second:,.0f} tokens a second at full length, by bandwidth"]
    else:
        pairs = work.ranks * work.completions_per_pass / 2
        per_second = pairs / pass_seconds(sizes, work, device)
        lines = [f"learning: {per_second:.2f} pairs a second of the longest kind, {MFU:.0%} of the "
                 f"peak; {cfg.batch_pairs} make a step"]  # fmt: skip

    host = work.ranks * host_bytes(sizes, work, prompts)
    return [*lines, f"memory of the host: {host / GB:.0f} GB for {work.ranks} process(es)"]


def rollout_time(cfg, sizes: Sizes, work: Work, device: Device) -> list[str]:
    """How much a rollout of GRPO is, and how long it takes at full length."""
    completions = cfg.prompts_per_step * cfg.group_size
    batches = -(-completions // (work.ranks * work.sequences))  # rounded up, as the next
    passes = -(-completions // (work.ranks * work.completions_per_pass))

    drawing = batches * sampling_seconds(sizes, work, device)
    learning = passes * pass_seconds(sizes, work, device)
    updates = cfg.updates_per_rollout
    # logp_old, for all updates but the first: a forward pass is 2 of the operations.
    forward = 2 / work.operations
    learning *= 1 + forward * (updates - 1) / updates
    return [
        f"a rollout: {completions} completions of at most {work.completion_tokens:,} tokens, "
        f"{updates} optimizer steps",
        f"  drawing: {drawing / 60:.1f} minutes at full length, by bandwidth",
        f"  learning: {learning / 60:.1f} minutes at {MFU:.0%} of the peak",
    ]
