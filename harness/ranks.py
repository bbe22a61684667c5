"""Several processes (ranks) in one run: start them, gather values, add numbers up.

Each function also works in a single process, where there is nothing to exchange.
"""

import datetime

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers

WAIT = datetime.timedelta(hours=6)  # how long a rank waits for another: a rollout may take hours


def make_accelerator(config) -> Accelerator:
    """bf16 autocast on a GPU, fp32 on a CPU, unless --precision says otherwise.

    Raises ValueError naming --log_with if that tracker is not installed: it would log nothing.

    Gradient accumulation is not left to accelerate. Its `backward` would divide by the number of
    micro-batches, while the stages divide by the tokens (or pairs) of the whole step.
    """
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() else "no"

    available = [str(tracker.value) for tracker in get_available_trackers()]
    if config.log_with and config.log_with not in available:
        raise ValueError(
            f"--log_with {config.log_with}: not installed, or no tracker of accelerate's; "
            f"here: {available}"
        )
    # Buffers (rotary frequencies, suppressed ids) never change. To send them before each
    # synchronised forward would make that forward a collective, while ranks may run unequally many
    # forwards without gradient.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(
        mixed_precision=precision,
        log_with=config.log_with or None,
        project_dir=config.run_dir or "runs",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT), ddp],
    )


def rank_generator(seed: int, rank: int, device: torch.device) -> torch.Generator:
    """A random generator of this rank. With the same one, all ranks would sample alike."""
    return torch.Generator(device).manual_seed(1000 * seed + rank)


def gather_objects(value, accelerator: Accelerator) -> list:
    """One value of every rank, on every rank, in the order of the ranks."""
    if accelerator.num_processes == 1:
        return [value]
    values = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(values, value)
    return values


def sum_over_ranks(sums: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Add up each entry over the ranks.

    Metrics are kept as sums and counts, and divided once, at the very end. A mean of the ranks'
    means would give a token in a short completion more weight than one in a long completion.
    """
    values = torch.tensor([float(v) for v in sums.values()], dtype=torch.float64, device="cpu")
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values.to(accelerator.device), "sum").cpu()
    return dict(zip(sums, values.tolist()))
