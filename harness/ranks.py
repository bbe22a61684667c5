"""Several processes (ranks) in one run: connect them, gather values, add numbers up.

Each function also works in a single process, where there is nothing to exchange.
"""

import contextlib
import datetime
import os
import re
import sys
import warnings
from typing import NoReturn

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers

WAIT = datetime.timedelta(hours=6)  # how long a rank waits for another: a rollout may take hours
# How long it waits at the start, when all connect. A launcher sees that a rank has died, and ends
# the others; without one, nobody tells them. PyTorch tries again: up to 2.5 times as long in all.
CONNECT, CONNECT_LAUNCHED = datetime.timedelta(seconds=20), datetime.timedelta(minutes=10)


def make_accelerator(config) -> Accelerator:
    """The connection to the other ranks: on CUDA if it is there, else on the CPU.

    config    a stage's settings: --precision and --log_with are read

    Raises ValueError naming --log_with if that tracker is not installed: accelerate would silently
    log nothing. Raises ValueError if the ranks do not know each other, ConnectionError if one of
    them does not come.

    A Mac's GPU (MPS) is not used: its kernels differ, and nothing here was tried on one.

    accelerate's gradient accumulation is not used. Its `backward` divides by the number of
    micro-batches, while the stages divide by the tokens (or pairs) of the whole step.
    """
    precision, why = choose_precision(config.precision)
    check_tracker(config.log_with)

    # By default DDP broadcasts buffers before a forward. Ranks run different numbers of forwards
    # without gradient, so that broadcast could hang; our buffers never change
    # (test_buffers_are_not_broadcast). And by default it keeps a second copy of all gradients.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    # PyTorch has a new name for it, which accelerate does not pass on yet.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    with connecting() as patience:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=precision,
            log_with=config.log_with or None,
            project_dir=config.run_dir or "runs",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=patience), ddp],
        )
    check_world_size(accelerator.num_processes)
    if why:
        accelerator.print(why)
    return accelerator


@contextlib.contextmanager
def connecting():
    """Yield how long to wait for the other ranks to connect; afterwards they are waited for longer.

    Raises ConnectionError if one does not come.

    Trap: PyTorch has one timeout for connecting and for all that follows. With one that is long
    enough for a rollout, the other of two ranks waits for hours for one that was killed at its
    start (test_a_rank_that_never_connects_is_not_waited_for).
    """
    patience = CONNECT_LAUNCHED if "TORCHELASTIC_RUN_ID" in os.environ else CONNECT
    try:
        yield patience
    except RuntimeError as error:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1 or is_connected():
            raise
        first_line = str(error).splitlines()[0]
        raise ConnectionError(
            f"another process of this run has ended, or did not start within {patience.seconds} s, "
            f"so this one ends as well. Start all of them again, together ({first_line})"
        ) from error
    if is_connected():
        torch.distributed.distributed_c10d._set_pg_timeout(WAIT)


def is_connected() -> bool:
    """True if this process is one of several that are connected."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def choose_precision(asked: str) -> tuple[str, str]:
    """The precision for accelerate, and a sentence if it is not what one would expect.

    asked   --precision. `auto` is bf16 on a GPU that has it, and fp32 (`no`) elsewhere.

    Raises ValueError if bf16 is asked for on a GPU that has none.
    """
    cuda = torch.cuda.is_available()
    has_bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "auto" and cuda and not has_bf16:
        return "no", "this GPU has no bf16: the run is in fp32, slower, and with twice the memory"
    if asked == "auto":
        return ("bf16" if has_bf16 else "no"), ""
    if asked == "bf16" and cuda and not has_bf16:
        raise ValueError("--precision bf16: this GPU has no bf16, leave it at auto, or take `no`")
    return asked, ""


PIP = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}  # what to install


def check_tracker(name: str) -> None:
    """Raise ValueError naming --log_with if a tracker is asked for that is not there."""
    available = [str(tracker.value) for tracker in get_available_trackers()]
    if not name or name in available:
        return
    if name in PIP:
        raise ValueError(f"--log_with {name}: not installed; pip install {PIP[name]}")
    raise ValueError(
        f"--log_with {name}: not a tracker that accelerate knows; installed: {available}"
    )


def check_world_size(num_processes: int) -> None:
    """Raise ValueError if this process was started as one of many and does not know the others.

    Trap: each would take itself for the only one, and all would write into one folder
    (test_ranks_that_do_not_know_each_other_are_refused).
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != num_processes:
        raise ValueError(
            f"WORLD_SIZE is {started}, but this process is connected to {num_processes - 1} "
            "others: start the ranks with torchrun --nproc_per_node or accelerate launch, or unset "
            "WORLD_SIZE"
        )


# What the libraries that connect the ranks (gloo, NCCL) say when one of them is gone.
LOST = re.compile(
    "closed by peer|connection reset|connection refused|broken pipe|pair closure|remote process|"
    "connection was aborted|communicator was aborted|socket",
    re.IGNORECASE,
)


def check_shares(cfg, ranks: int | None = None, what: str = "processes") -> None:
    """Raise ValueError if a rollout cannot be shared out evenly over ranks and updates.

    cfg     the settings of grpo.py
    ranks   how many; None: as many as a launcher has started
    what    the ranks are, for the message
    """
    if ranks is None:
        ranks = int(os.environ.get("WORLD_SIZE", 1))
    if cfg.prompts_per_step % (ranks * cfg.updates_per_rollout):
        raise ValueError(
            f"--prompts_per_step {cfg.prompts_per_step} must be a multiple of "
            f"{what} ({ranks}) x --updates_per_rollout ({cfg.updates_per_rollout})"
        )


def is_lost_rank(error: Exception) -> bool:
    """True if the error says that another rank of this run has ended."""
    return is_connected() and isinstance(error, RuntimeError) and bool(LOST.search(str(error)))


def leave_without(error: Exception) -> NoReturn:
    """End this process at once, with a sentence: the usual way out would wait for the lost rank."""
    first_line = str(error).splitlines()[0]
    print(
        "error: another process of this run has ended, so this one ends as well. The last "
        "checkpoint is whole: go on with --resume, and as many processes as before\n"
        f"({first_line})",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def gather_objects(value, accelerator: Accelerator) -> list:
    """Collect one value from each rank; every rank gets the list, in the order of the ranks."""
    if accelerator.num_processes == 1:
        return [value]
    values = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(values, value)
    return values


def gather_shares(share: torch.Tensor, count: int, accelerator: Accelerator) -> torch.Tensor:
    """Rank r of R has the rows r, r + R, r + 2 R, ... of (count, ...): every rank gets all rows."""
    whole = torch.zeros(count, *share.shape[1:])
    for rank, rows in enumerate(gather_objects(share, accelerator)):
        whole[rank :: accelerator.num_processes] = rows
    return whole


def sum_over_ranks(sums: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Add up each entry over the ranks. All ranks must pass the same names in the same order."""
    values = torch.tensor([float(v) for v in sums.values()], dtype=torch.float64, device="cpu")
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values.to(accelerator.device), "sum").cpu()
    return dict(zip(sums, values.tolist()))
