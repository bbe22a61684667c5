"""Several processes (ranks) in one run: connect them, gather values, add numbers up.

Each function also works in a single process, where there is nothing to exchange.
"""

import datetime

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers

WAIT = datetime.timedelta(hours=6)  # how long a rank waits for another: a rollout may take hours


def make_accelerator(config) -> Accelerator:
    """The connection to the other ranks; bf16 autocast on a GPU and fp32 on a CPU by default.

    config    a stage's settings: --precision, --log_with and --run_dir are read

    Raises ValueError naming --log_with if that tracker is not installed: accelerate would silently
    log nothing.

    accelerate's gradient accumulation is not used. Its `backward` divides by the number of
    micro-batches, while the stages divide by the tokens (or pairs) of the whole step.
    """
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() else "no"

    available = [str(tracker.value) for tracker in get_available_trackers()]
    if config.log_with and config.log_with not in available:
        raise ValueError(
            f"--log_with {config.log_with}: not installed, or not a tracker that accelerate knows; "
            f"installed: {available}"
        )

    # By default DDP broadcasts buffers before a forward. Ranks run different numbers of forwards
    # without gradient, so that broadcast could hang; our buffers never change
    # (test_buffers_are_not_broadcast). And by default it keeps a second copy of all gradients.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(
        mixed_precision=precision,
        log_with=config.log_with or None,
        project_dir=config.run_dir or "runs",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT), ddp],
    )


def gather_objects(value, accelerator: Accelerator) -> list:
    """Collect one value from each rank; every rank gets the list, in the order of the ranks."""
    if accelerator.num_processes == 1:
        return [value]
    values = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(values, value)
    return values


def sum_over_ranks(sums: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Add up each entry over the ranks. All ranks must pass the same names in the same order."""
    values = torch.tensor([float(v) for v in sums.values()], dtype=torch.float64, device="cpu")
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values.to(accelerator.device), "sum").cpu()
    return dict(zip(sums, values.tolist()))
