"""Two processes (gloo, CPU) do what one does: the same gradients, no dead wait, one run folder."""

import datetime
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

import dpo_sft
import grpo
from conftest import fresh_policy, keep_fp64, make_groups, mini_batch, policies_of, small_grpo
from harness import ranks
from harness.ranks import gather_shares, make_accelerator, sum_over_ranks
from harness.run import read_jsonl
from model.policies import Policies
from model.records import completion_mask
from two_ranks import WORLD, on_two_ranks

BUDGETS = (10_000, 60)  # tokens of a micro-batch
GRPO = replace(grpo.Config(), grad_clip=1e9)
DPO = replace(dpo_sft.Config(), grad_clip=1e9)

# --- Gradients -----------------------------------------------------------------------------------


class KeepGradients(torch.optim.SGD):
    """An optimizer that keeps the gradients, in order of the weights, and leaves the weights."""

    def step(self, closure=None):
        weights = [p for group in self.param_groups for p in group["params"]]
        self.grads = [p.grad.clone() for p in weights]


def wrapped(policy, accelerator) -> Policies:
    """The policy as accelerate wraps it, with an optimizer that keeps the gradients."""
    trained = accelerator.prepare(policy)
    policies = policies_of(policy, KeepGradients(trained.parameters(), lr=0.0))
    return replace(policies, trained=trained)


def grpo_gradients(policies, accelerator, groups, advantages, cfg):
    """Gradients and sums of one GRPO update."""
    batch = mini_batch(groups, advantages, completion_mask(groups).double())
    sums = grpo.update(batch, policies, accelerator, cfg)
    return policies.optimizer.grads, sums


def dpo_gradients(policies, accelerator, pairs, logp_ref, filler, cfg):
    """Gradients of one DPO update."""
    dpo_sft.update(pairs, logp_ref, filler, policies, accelerator, cfg)
    return policies.optimizer.grads


def fp64_policy():
    """The same as the fixture `tiny64`, in a process of its own."""
    keep_fp64()
    policy, encoder = fresh_policy()
    return policy.double(), encoder


def step_inputs(encoder):
    """Three groups with 1, 0 and 2 images, and the advantages of their 3, 2 and 3 completions."""
    groups = make_groups(encoder, sizes=(3, 2, 3), images=(1, 0, 2))
    advantages = [1.0, -0.5, -0.5, 0.7, -0.7, 0.0, 1.1, -1.1]
    return groups, torch.tensor(advantages, dtype=torch.float64)


def share_of(rank, groups, advantages):
    """Rank 0 has two groups with images, rank 1 one of text only: sizes and passes all differ."""
    if rank == 0:
        return [groups[0], groups[2]], advantages[[0, 1, 2, 5, 6, 7]]
    return [groups[1]], advantages[3:5]


def close(grads, others, atol) -> bool:
    return all(torch.allclose(a, b, atol=atol) for a, b in zip(grads, others))


def check_grpo(rank, folder):
    """One rank of `test_two_ranks_equal_one`."""
    policy, encoder = fp64_policy()
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == WORLD

    groups, advantages = share_of(rank, *step_inputs(encoder))
    policies = wrapped(policy, accelerator)
    for budget in BUDGETS:
        cfg = replace(GRPO, max_tokens_per_micro_batch=budget)
        grads, sums = grpo_gradients(policies, accelerator, groups, advantages, cfg)
        summed = {name: sums[name] for name in ("tokens_passed", "loss")}
        total = sum_over_ranks(summed, accelerator)
        torch.save({"grads": grads, "total": total}, f"{folder}/rank{rank}_{budget}.pt")


def test_two_ranks_equal_one(tiny64, tmp_path):
    """fp64, 1e-10: the tokens of both ranks make one normaliser.

    Averaging each rank's own mean would differ.
    """
    on_two_ranks(check_grpo, str(tmp_path))
    names = [f"rank{r}_{budget}.pt" for r in range(WORLD) for budget in BUDGETS]
    ranks = [torch.load(tmp_path / name, weights_only=True) for name in names]

    policy, encoder = tiny64
    accelerator = Accelerator(cpu=True)
    policies = wrapped(policy, accelerator)
    groups, advantages = step_inputs(encoder)
    alone, sums = grpo_gradients(policies, accelerator, groups, advantages, GRPO)

    for rank in ranks:
        assert close(rank["grads"], alone, atol=1e-10)
        assert rank["total"]["tokens_passed"] == sums["tokens_passed"]
        assert rank["total"]["loss"] == pytest.approx(sums["loss"], abs=1e-9)

    parts = []
    for rank in range(WORLD):
        share = share_of(rank, groups, advantages)
        grads, _ = grpo_gradients(policies, accelerator, *share, GRPO)
        parts.append(grads)
    means = [(a + b) / 2 for a, b in zip(*parts)]
    assert not close(means, alone, atol=1e-4), "the classic mean of means"


def check_uneven(rank, folder):
    """Rank 0 needs six passes, rank 1 one; and in stage 2 rank 1 has no pair left at all."""
    policy, encoder = fp64_policy()
    accelerator = Accelerator(cpu=True)
    policies = wrapped(policy, accelerator)

    size = 6 if rank == 0 else 1
    groups = make_groups(encoder, sizes=(size,), images=(1,))
    advantages = torch.ones(size, dtype=torch.float64)
    cfg = replace(GRPO, max_tokens_per_micro_batch=1)
    grads, _ = grpo_gradients(policies, accelerator, groups, advantages, cfg)
    assert all(torch.isfinite(grad).all() for grad in grads)

    pairs = make_groups(encoder, sizes=(2, 2, 2), images=(1, 0, 2))
    mine = pairs if rank == 0 else []
    logp_ref = torch.linspace(-30, -10, 6, dtype=torch.float64)[: 2 * len(mine)]
    cfg = replace(DPO, max_tokens_per_micro_batch=1)
    grads = dpo_gradients(policies, accelerator, mine, logp_ref, pairs[0], cfg)
    torch.save(grads, f"{folder}/rank{rank}.pt")


def test_shares_are_put_together_in_order(monkeypatch):
    """Rank r of R had every R-th row, from the r-th on. Share after share, the classic, differs."""
    rows = torch.arange(14.0).view(7, 2)
    shares = [rows[rank::3] for rank in range(3)]
    monkeypatch.setattr(ranks, "gather_objects", lambda value, accelerator: shares)
    accelerator = SimpleNamespace(num_processes=3)
    assert torch.equal(gather_shares(shares[0], 7, accelerator), rows)
    assert not torch.equal(torch.cat(shares), rows)


def test_uneven_ranks_do_not_hang(tiny64, tmp_path):
    """Every rank runs as many passes as the busiest one, and the sum is right.

    The passes that a rank adds send gradients of zero.
    """
    on_two_ranks(check_uneven, str(tmp_path))

    policy, encoder = tiny64
    accelerator = Accelerator(cpu=True)
    policies = wrapped(policy, accelerator)
    pairs = make_groups(encoder, sizes=(2, 2, 2), images=(1, 0, 2))
    logp_ref = torch.linspace(-30, -10, 6, dtype=torch.float64)
    alone = dpo_gradients(policies, accelerator, pairs, logp_ref, pairs[0], DPO)

    for rank in range(WORLD):
        grads = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert close(grads, alone, atol=1e-10)


# --- A run ---------------------------------------------------------------------------------------


def run_grpo(rank, cfg):
    """A run of the stage that notes which prompts and completions this rank has seen."""
    seen = []
    reward_groups = grpo.Rewarder.reward_groups

    def watched(self, groups, progress):
        for group in groups:
            completions = [c.tolist() for c in group.completions]
            seen.append((group.prompt.example["id"], completions))
        return reward_groups(self, groups, progress)

    grpo.Rewarder.reward_groups = watched
    grpo.main(cfg)
    torch.save(seen, f"{cfg.run_dir}/seen{rank}.pt")


@pytest.mark.slow
def test_a_run_on_two_ranks(start, tmp_path):
    """One folder, metrics of all completions, other prompts and samples on each rank; resumable."""
    folder = tmp_path / "run"
    cfg = small_grpo(start, folder, steps=2)
    on_two_ranks(run_grpo, cfg)

    first, second = (torch.load(folder / f"seen{r}.pt", weights_only=True) for r in range(WORLD))
    assert not {name for name, _ in first} & {name for name, _ in second}
    assert len(first) == len(second) == 4
    for (_, a), (_, b) in zip(first, second):
        assert a != b, "the ranks must not draw the same random numbers"
    assert len(read_jsonl(folder / "metrics.jsonl")) == 2

    on_two_ranks(run_grpo, replace(cfg, resume=True, steps=3))
    assert len(read_jsonl(folder / "metrics.jsonl")) == 3

    with pytest.raises(ValueError, match="--resume.*saved by 2 processes"):
        grpo.main(replace(cfg, resume=True, steps=4))


SHORT = datetime.timedelta(seconds=3)


def connect_without(rank, absent):
    """One rank never comes."""
    ranks.CONNECT = SHORT
    if rank == absent:
        return
    with pytest.raises(ConnectionError, match="did not start within 3 s.*Start all of them again"):
        make_accelerator(grpo.Config())


@pytest.mark.parametrize("absent", [0, 1])
def test_a_rank_that_never_connects_is_not_waited_for(absent):
    """The other ends with a sentence, whether it is the one that listens or the one that calls."""
    on_two_ranks(connect_without, absent)


def come_late(rank, folder):
    """Connect at the same time, and be late for the first exchange."""
    (folder / str(rank)).touch()  # imports take unequally long on a busy machine
    while len(list(folder.iterdir())) < WORLD:
        time.sleep(0.01)
    ranks.CONNECT = SHORT
    accelerator = make_accelerator(grpo.Config())
    if rank == 1:
        time.sleep(2 * SHORT.seconds)
    assert sum_over_ranks({"one": 1.0}, accelerator) == {"one": WORLD}


def test_connected_ranks_wait_for_each_other_longer(tmp_path):
    """A rollout may take much longer than a start."""
    on_two_ranks(come_late, tmp_path)


def test_buffers_are_not_broadcast():
    """DDP would send them before a forward, which ranks run unequally often; they never change."""
    accelerator = make_accelerator(grpo.Config())
    assert accelerator.ddp_handler.to_kwargs()["broadcast_buffers"] is False
