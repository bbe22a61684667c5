"""The policy of a run in its roles: what trains, what samples, what is compared with.

    load_policy       from --model or the last checkpoint, with adapters if --lora_rank asks
    build_policies    the sampler's copy, the frozen reference, the optimizer; sharded or under DDP

Which of these exist, and in which dtype, is decided here alone: neither grpo.py nor dpo_sft.py asks
about the machine.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model.loading import load_model
from model.lora import FOLDER, add_adapters, load_adapters, lora_linears
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.sampling import sampling_copy, sampling_dtype
from model.sharding import shard


@dataclass
class Policies:
    """The policy in its roles (trained, bare, sampler), its reference, and its optimizer."""

    trained: nn.Module  # wrapped by accelerate (DDP, autocast): what the loss is computed with
    bare: Policy  # the same weights, unwrapped: to save, and to refresh the sampler
    sampler: Policy  # draws the tokens: `bare`, or a copy (bf16, whole, or with merged adapters)
    optimizer: torch.optim.Optimizer
    reference: Policy | None = None  # of the KL term: the frozen start model; see `build_policies`
    skipped_in_a_row: int = 0  # steps without a finite gradient, see `optimizer_step`


def load_policy(cfg, checkpoint: str | None, accelerator) -> tuple[Policy, PromptEncoder]:
    """The policy that a stage trains, from its last checkpoint, or from --model if that is None.

    With --lora_rank the frozen base always comes from --model, in the dtype that the run computes
    in; a checkpoint holds the adapters only.
    """
    has_adapters = cfg.lora_rank > 0
    folder = cfg.model if has_adapters or checkpoint is None else checkpoint
    policy, encoder = load_model(
        folder,
        freeze_vision=cfg.freeze_vision,
        gradient_checkpointing=cfg.gradient_checkpointing,
        max_pixels=cfg.max_pixels,
        dtype=sampling_dtype(accelerator) if has_adapters else torch.float32,
        device=accelerator.device,
    )
    if has_adapters:
        add_adapters(policy, cfg.lora_rank, cfg.lora_alpha, cfg.lora_targets, cfg.seed)
        if checkpoint:
            load_adapters(policy, Path(checkpoint) / FOLDER)
    return policy, encoder


def build_policies(
    policy: Policy,
    cfg,
    accelerator,
    *,
    samples: bool = False,
    kl_beta: float = 0.0,
    resumed: bool = False,
) -> Policies:
    """Make the optimizer, the sampler and the reference, and wrap the policy for DDP and autocast.

    With --shard, policy and reference are sharded (`sharding.py`), and DDP wraps nothing.

    samples  the stage samples while it trains. What then draws the tokens:
                 --lora_rank      a copy with merged adapters; with --no_lora_merge the policy
                 else --shard     a whole copy on each rank, in bf16 if the run computes in it
                 else bf16        a bf16 copy
                 else             the policy itself
    kl_beta  above 0 a frozen reference is needed; with adapters it is the policy itself, whose
             adapters are off while it is scored
    resumed  `policy` comes from a checkpoint, so the reference is loaded from --model

    The sampler is never wrapped. It needs no gradient, and no collective may run while tokens are
    drawn, since ranks take unequally long. accelerate's `prepare` puts autocast into the forward of
    the wrapped policy; sampler and reference are called inside of `accelerator.autocast()`.
    """
    has_adapters = bool(lora_linears(policy))
    dtype = sampling_dtype(accelerator)
    if not samples:
        needs_copy = False
    elif has_adapters:
        needs_copy = cfg.lora_merge  # a merged copy runs no adapters: faster
    else:
        needs_copy = cfg.shard or dtype == torch.bfloat16  # a whole one, or a bf16 one
    sampler = policy
    if needs_copy:
        sampler = sampling_copy(policy, dtype, will_shard=cfg.shard)
    if cfg.shard:
        shard(policy)  # now, so that only one model at a time is whole

    reference = None
    if kl_beta > 0:
        reference = policy if has_adapters else frozen_start(policy, cfg, accelerator, resumed)

    trainable = [p for p in policy.parameters() if p.requires_grad]
    betas = (cfg.adam_beta1, cfg.adam_beta2)
    optimizer = torch.optim.AdamW(
        trainable,
        lr=cfg.lr,
        betas=betas,
        weight_decay=cfg.weight_decay,
        # On a GPU AdamW's default needs room for all parameters once more while it steps.
        fused=accelerator.device.type == "cuda",
    )
    # `evaluation_mode` leaves out DDP alone: a sharded policy reduces its gradients itself.
    trained = accelerator.prepare_model(policy, evaluation_mode=cfg.shard)
    optimizer = accelerator.prepare_optimizer(optimizer)
    return Policies(trained, accelerator.unwrap_model(trained), sampler, optimizer, reference)


def frozen_start(policy: Policy, cfg, accelerator, resumed: bool) -> Policy:
    """The start model, for the KL term: a copy of the policy before it is trained."""
    if resumed or cfg.shard:  # the policy has been trained since, or is in shards: load it again
        reference, _ = load_model(cfg.model, device=accelerator.device)
    else:
        reference = copy.deepcopy(policy)

    reference.requires_grad_(False)
    if cfg.shard:
        shard(reference)
    if policy.vision_is_frozen():  # then the tower is the same in both
        reference.feature_cache = policy.feature_cache
    return reference
