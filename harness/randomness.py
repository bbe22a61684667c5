"""Where every random number of the project comes from.

    seed_of(seed, purpose, rank)     one number for each seed, purpose and rank
    torch_generator, random_of       generators made from it

Two purposes, or two ranks, never share their numbers by accident. Where numbers are shared on
purpose, the purpose says so: all ranks must agree on the order of the data (no rank is given), and
all models of a comparison start from the same state (the model is not part of the purpose), so that
one model under two names gives one result.
"""

import hashlib
import random

import torch


def seed_of(seed: int, purpose: str, rank: int = 0) -> int:
    """A number below 2^63, as good as random, that depends on all three and on nothing else.

    seed     of the run (--seed)
    purpose  what the numbers are for, for example "rollout" or "order of epoch 3"
    rank     of the process; 0 for numbers that all ranks must share

    >>> seed_of(0, "rollout", 0) == seed_of(0, "rollout", 1)
    False
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(
    seed: int, purpose: str, rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A torch generator of this seed, purpose and rank."""
    return torch.Generator(device).manual_seed(seed_of(seed, purpose, rank))


def random_of(seed: int, purpose: str, rank: int = 0) -> random.Random:
    """A Python generator of this seed, purpose and rank."""
    return random.Random(seed_of(seed, purpose, rank))
