"""Sharding (ZeRO-3, FSDP): each of R ranks keeps 1/R of weights, gradients and AdamW's moments.

It is torch's `fully_shard` (FSDP2), written out. A group of weights lies in R shards (DTensors) and
is whole only while it is used:

    a decoder layer    gathered before its forward, freed after it; gathered again before its
                       backward, after which its gradient is averaged and cut into R shards
    the root           everything else that is trained: embeddings, head (tied or not), final norm,
                       and the vision tower if it is trained. Whole from the beginning of a forward
                       to its end, and during the whole backward
    a frozen tower     not sharded: it encodes an image once, whenever a prompt needs it

So a rank holds its shards, the root, and one or two layers at a time. Weights are gathered and
gradients averaged in fp32, as they are kept; autocast makes the bf16 numbers of a layer inside it,
as it does under DDP. Gathering bf16 would halve the traffic, but would also sum the gradient of the
head over its chunks in bf16 (test_head_gradient_is_summed_in_fp32).

Every gathering (all-gather) waits for all ranks, so three things differ from DDP:

    passes     every rank must run equally many, those without gradient as well (`common.py`)
    sampling   by a whole copy on each rank, refreshed weight by weight (`sampling_copy`,
               `refresh`): nothing is gathered while tokens are drawn, however unequally long
    files      a model is saved from whole weights (`whole_weights`), the optimizer from its
               shards, by torch.distributed.checkpoint (`save_optimizer`)

Source: FSDP (arXiv 2304.11277); torch.distributed.fsdp.fully_shard. accelerate's own FSDP plugin is
not used: it has no CPU, prepares one model only, and reduces gradients in bf16 under autocast.

torch's distributed modules take two seconds to import, so only a sharded run imports them.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.lora import ADAPTERS
from model.qwen import Policy

# --- 1. Weights ---------------------------------------------------------------------------------


def shard(policy: Policy) -> None:
    """Shard a policy over all ranks, in place. Nothing to do if it is sharded already.

    Trap: gradients come out averaged over ranks, as from DDP, so that the loss is multiplied by the
    number of ranks here as there (test_all_ways_give_one_gradient).

    Trap: by default the root stays whole after a forward. After one without gradient nothing would
    shard it again, and the forward after the next optimizer step would run on the old weights
    (test_no_forward_runs_on_old_weights).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if is_sharded(policy):
        return
    connect_alone(policy.device.type)
    mesh = init_device_mesh(policy.device.type, (torch.distributed.get_world_size(),))
    # Weights are gathered and gradients reduced in the dtype of the weights, which is fp32.
    no_casts = MixedPrecisionPolicy(cast_forward_inputs=False)
    how = dict(mesh=mesh, mp_policy=no_casts, reshard_after_forward=True)

    for layer in policy.vlm.model.language_model.layers:
        fully_shard(layer, **how)

    tower = set(policy.vlm.model.visual.parameters()) if policy.vision_is_frozen() else set()
    fully_shard(policy, ignored_params=tower, **how)


def connect_alone(device: str) -> None:
    """Connect a process that is the only one with itself: `fully_shard` wants a group."""
    if not torch.distributed.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def is_sharded(policy: torch.nn.Module) -> bool:
    return any(is_shard(weight) for weight in policy.parameters())


def is_shard(x) -> bool:
    """True for a DTensor: this rank's shard of a tensor."""
    return hasattr(x, "full_tensor")


def whole(x: Tensor) -> Tensor:
    """The tensor of which x is a shard, gathered: every rank must ask for it. Else x itself."""
    return x.full_tensor() if is_shard(x) else x


def whole_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Each weight of HF's model by its name, gathered one at a time, in one order on all ranks.

    Adapters are left out, and a tied head is not there beside the embeddings.
    """
    for name, weight in policy.vlm.named_parameters():
        if name.rpartition(".")[2] in ADAPTERS:
            continue
        yield name, whole(weight)


# --- 2. The optimizer ---------------------------------------------------------------------------


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> dict:
    """The state of an optimizer; of a sharded one, without the moments: these go into a folder.

    Every rank writes its own shards. The files are safetensors: reading them unpickles nothing.
    """
    state = optimizer.state_dict()
    shards = {}
    for i, of_weight in state["state"].items():
        for name, x in of_weight.items():
            if is_shard(x):
                shards[f"{i}.{name}"] = x
    if not shards:
        return state

    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(shards, storage_writer=writer)
    rest = {}
    for i, of_weight in state["state"].items():
        rest[i] = {name: x for name, x in of_weight.items() if not is_shard(x)}
    return {**state, "state": rest, "shards": sorted(shards)}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict, folder: Path) -> None:
    """Restore what `save_optimizer` returned and wrote, on as many ranks as then."""
    names = state.pop("shards", [])
    if names:
        import torch.distributed.checkpoint as dcp

        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        shards = {}
        for name in names:  # room for each: a shard like that of its weight
            shards[name] = torch.zeros_like(weights[int(name.split(".")[0])].detach())
        dcp.load(shards, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))

        for name, moment in shards.items():
            i, kind = name.split(".")
            state["state"][int(i)][kind] = moment
    optimizer.load_state_dict(state)
