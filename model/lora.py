"""LoRA: two small matrices beside each linear learn, the model itself stays as it is.

    y = x W^T + b + (alpha / r) (x A^T) B^T        W (out, in) frozen, A (r, in), B (out, r) trained

    add_adapters      a loaded model becomes a frozen base with adapters
    adapters_off      the base alone, which is the reference of KL and DPO: no second model exists
    merged_weights    W + (alpha / r) B A: what the sampler's copy and a saved model folder hold
    save_adapters     A and B in PEFT's layout; load_adapters reads them back, to the last bit

B starts at 0, so the policy starts as its base. A starts as a linear of PyTorch does. Only the
decoder's linears are adapted: embeddings, norms, head and vision tower are frozen.

Frozen weights take no gradient, no optimizer state, and no fp32: where the run computes in bf16
they are bf16. Adapters are fp32, for the reason that trained weights are (`qwen.Policy`).

Source: LoRA (arXiv 2106.09685), section 4.1; initial values and file layout are PEFT's.
"""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.qwen import Policy

ADAPTERS = ("lora_A", "lora_B")  # names of the trained weights


# --- 1. A linear with its adapter ---------------------------------------------------------------


class LoraLinear(nn.Linear):
    """A frozen linear and its adapter. `weight` and `bias` are those of the linear, by name too."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: int, generator: torch.Generator):
        """
        linear     its tensors are taken over, not copied
        generator  on the CPU; draws A
        """
        has_bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, has_bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.alpha, self.scale = alpha, alpha / rank
        self.is_on = True

        # kaiming_uniform with a = sqrt(5), as `nn.Linear` starts: +- 1 / sqrt(in).
        A = torch.empty(rank, self.in_features, dtype=torch.float32)  # (r, in)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
        B = torch.zeros(self.out_features, rank, dtype=torch.float32)  # (out, r)
        self.lora_A = nn.Parameter(A.to(self.weight.device))
        self.lora_B = nn.Parameter(B.to(self.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        y = F.linear(x, self.weight, self.bias)  # (..., out)
        if not self.is_on:
            return y
        low = F.linear(x, self.lora_A) * self.scale  # (..., r)
        return y + F.linear(low, self.lora_B)

    def merged(self) -> Tensor:
        """(out, in) W + (alpha / r) B A, added in at least fp32, in the dtype of W.

        Trap: bf16 has 8 significant bits. What the adapter adds below half a step is rounded away,
        for good if W itself is overwritten. So W is kept, each merge starts from it, and the exact
        adapter is saved beside the merged model (test_merging_never_changes_the_base).
        """
        return (self.weight + self.scale * (self.lora_B @ self.lora_A)).to(self.weight.dtype)


def lora_linears(module: nn.Module) -> dict[str, LoraLinear]:
    """Name -> each linear with an adapter; empty for a model without adapters."""
    return {name: m for name, m in module.named_modules() if isinstance(m, LoraLinear)}


@contextmanager
def adapters_off(policy: Policy) -> Iterator[None]:
    """Within it the policy is its base, bit for bit; without adapters it changes nothing.

    Trap: a pass with gradient must be recomputed as it was. Gradient checkpointing runs layers
    again in `backward`, which therefore has to come after the end of this context
    (test_reference_pass_between_forward_and_backward).
    """
    linears = lora_linears(policy).values()
    for linear in linears:
        linear.is_on = False
    try:
        yield
    finally:
        for linear in linears:
            linear.is_on = True


# --- 2. A policy with adapters ------------------------------------------------------------------


def add_adapters(policy: Policy, rank: int, alpha: int, targets: str, seed: int) -> None:
    """Freeze the policy and put an adapter beside each target linear of its decoder layers.

    targets   names of linears, with commas: q_proj,v_proj
    seed      of A: the same on all ranks

    The residual stream stays fp32, though bf16 embeddings start it: a frozen bf16 model then
    computes what its weights in fp32 would under autocast, to the bit
    (test_a_bf16_base_computes_as_fp32_weights_do). Raises ValueError naming --lora_targets.
    """
    layers = policy.vlm.model.language_model.layers
    available = {n.split(".")[-1] for n, m in layers.named_modules() if isinstance(m, nn.Linear)}
    names = target_names(targets, available)

    policy.requires_grad_(False)
    policy.residual_dtype = torch.float32
    generator = torch.Generator().manual_seed(seed)
    for block in layers.modules():
        for name, child in list(block.named_children()):
            if name in names and isinstance(child, nn.Linear):
                setattr(block, name, LoraLinear(child, rank, alpha, generator))


def target_names(targets: str, there: Iterable[str]) -> list[str]:
    """The names in --lora_targets. Raises ValueError if one is not among the linears of a layer."""
    names = [name.strip() for name in targets.split(",")]
    unknown = sorted({*names} - {*there})
    if unknown:
        raise ValueError(
            f"--lora_targets {', '.join(unknown)}: no such linear in a decoder layer; there are "
            f"{', '.join(sorted(there))}"
        )
    return names


@torch.no_grad()
def merged_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of all weights of a model as if it had no adapters: one at a time is merged.

    Without adapters these are `named_parameters`.
    """
    linears = lora_linears(module)
    for name, weight in module.named_parameters():
        owner, _, kind = name.rpartition(".")
        if kind in ADAPTERS:
            continue
        is_adapted = owner in linears and kind == "weight"
        yield name, (linears[owner].merged() if is_adapted else weight)


def merge_copy(policy: Policy) -> None:
    """Make a copy of a policy with adapters one without: plain linears with weights of their own.

    Their values come with the next `sampling.refresh`.
    """
    for name, linear in lora_linears(policy).items():
        plain = nn.Linear(linear.in_features, linear.out_features, device="meta")
        weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
        plain.weight, plain.bias = weight, linear.bias
        owner, _, leaf = name.rpartition(".")
        setattr(policy.get_submodule(owner), leaf, plain)
    policy.residual_dtype = Policy.residual_dtype  # the default: only a bf16 base needs another


# --- 3. Files -----------------------------------------------------------------------------------

FOLDER = "adapter"  # in a model folder. Trap: in the model folder itself, HF would load these on
# top of the merged weights, so that they count twice (test_a_saved_folder_opens_in_stock_classes).
PREFIX = "base_model.model."  # what PEFT puts before the name of each module


def base_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """`state_dict` without the adapters."""
    state = module.state_dict()
    return {name: state[name] for name in state if name.rpartition(".")[2] not in ADAPTERS}


@torch.no_grad()
def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The same with the adapters merged in, for `save_pretrained`. What is merged is on the CPU."""
    linears = lora_linears(module).items()
    merged = {f"{name}.weight": linear.merged().cpu() for name, linear in linears}
    return base_state_dict(module) | merged


def save_adapters(policy: Policy, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as PEFT does."""
    folder.mkdir(parents=True)
    linears = lora_linears(policy.vlm)
    tensors = {}
    for name, linear in linears.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = linear.lora_A.detach().cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = linear.lora_B.detach().cpu().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    first = next(iter(linears.values()))
    # Trap: names alone would also match the tower, whose MLP has a gate_proj as well. So PEFT is
    # given a pattern for the whole name (test_peft_opens_them).
    targets = "|".join(sorted({name.rpartition(".")[2] for name in linears}))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": policy.vlm.name_or_path,
        "r": len(first.lora_A),
        "lora_alpha": first.alpha,
        "target_modules": rf".*language_model\.layers\.\d+\.\w+\.({targets})",
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def load_adapters(policy: Policy, folder: Path) -> None:
    """Read what `save_adapters` wrote. Raises ValueError naming --resume if it does not fit."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ValueError(f"--resume: {file} is missing, the adapters of the last checkpoint")
    tensors = load_file(file)
    for name, linear in lora_linears(policy.vlm).items():
        for kind in ADAPTERS:
            saved = tensors.pop(f"{PREFIX}{name}.{kind}.weight", None)
            adapter = getattr(linear, kind)
            if saved is None or saved.shape != adapter.shape:
                raise ValueError(f"--resume: {file} does not fit these --lora_* flags: {name}")
            adapter.copy_(saved)
    if tensors:
        raise ValueError(f"--resume: {file} does not fit these --lora_* flags: {min(tensors)}")
