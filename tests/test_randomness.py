"""Random numbers: shared where that is the point, and nowhere else."""

import itertools

import torch

from harness.randomness import random_of, seed_of, torch_generator


def test_every_seed_purpose_and_rank_has_its_own_numbers():
    """No two of 2,000 agree. The classic 1000 * seed + rank collides: seed 0, rank 1000."""
    purposes = ["rollout", "chosen", "rejected", "order of epoch 1", "order of epoch 11"]
    keys = list(itertools.product(range(10), purposes, range(40)))
    assert len({seed_of(*key) for key in keys}) == len(keys)
    assert all(0 <= seed_of(*key) < 2**63 for key in keys)
    assert 1000 * 0 + 1000 == 1000 * 1 + 0


def test_numbers_depend_on_nothing_else():
    """The same in every process (Python's own `hash` of a string is not), and in both kinds."""
    assert seed_of(0, "rollout") == 5744114572069357870
    assert random_of(3, "a").random() == random_of(3, "a").random()
    a, b = torch_generator(3, "a", 1), torch_generator(3, "a", 1)
    assert torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b))
