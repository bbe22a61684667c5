"""Two processes on the CPU that know each other (gloo), with a limit in which they must end."""

import faulthandler
import os
import socket
import time

import torch

WORLD = 2
LIMIT_S = 300  # ranks that wait for each other for ever fail the test, and do not hold it up


def on_two_ranks(work, *args) -> None:
    """Run `work(rank, *args)` in two new processes.

    Any failure in one fails the test, and so does a rank that has not ended within the limit.
    """
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    ranks = torch.multiprocessing.spawn(
        enter, args=(port, work, args), nprocs=WORLD, join=False
    )
    end = time.monotonic() + LIMIT_S
    while not ranks.join(timeout=1):
        if time.monotonic() > end:
            for process in ranks.processes:
                process.kill()
            raise TimeoutError(f"{work.__name__}: the ranks still ran after {LIMIT_S} s")


def enter(rank, port, work, args):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",  # what `accelerate launch --cpu` sets
    )
    faulthandler.dump_traceback_later(LIMIT_S - 60)  # says where a rank waits
    torch.set_num_threads(1)
    work(rank, *args)
