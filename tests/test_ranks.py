"""Two processes (gloo, CPU) do what one does: the same gradients, no dead wait, one run folder."""

import os
import socket
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from conftest import fresh_policy, keep_fp64, make_groups

import dpo_sft
import grpo
from common import completion_mask, save_model
from runs import sum_over_ranks

WORLD = 2
CFG = replace(grpo.Config(), grad_clip=1e9)


def on_two_ranks(work, *args):
    """Run `work(rank, *args)` in two new processes that know each other; any failure in one fails the test."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(enter, args=(port, work, args), nprocs=WORLD)


def enter(rank, port, work, args):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), MASTER_ADDR="localhost", MASTER_PORT=str(port),
                      ACCELERATE_USE_CPU="true")  # what `accelerate launch --cpu` sets
    torch.set_num_threads(1)
    work(rank, *args)


class NoStep(torch.optim.SGD):
    """An optimizer that keeps the gradients and leaves the weights."""

    def step(self, closure=None):
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def grpo_gradients(policy, accelerator, groups, advantages, cfg):
    optimizer = NoStep(policy.parameters(), lr=0.0)
    mask = completion_mask(groups).double()
    sums = grpo.update(policy, None, optimizer, accelerator, groups, advantages, mask, None, cfg)
    return optimizer.seen, sums


def dpo_gradients(policy, accelerator, groups, logp_ref, own, cfg):
    optimizer = NoStep(policy.parameters(), lr=0.0)
    dpo_sft.update(policy, optimizer, accelerator, groups, logp_ref, own, cfg)
    return optimizer.seen


def fp64_policy():
    keep_fp64()
    policy, codec = fresh_policy()
    return policy.double(), codec


def check_grpo(rank, folder, budget):
    """Rank 0 has two groups with pictures, rank 1 one of text only: sizes, passes and towers all differ."""
    policy, codec = fp64_policy()
    groups = make_groups(codec, sizes=(3, 2, 3), pictures=(1, 0, 2))
    advantages = torch.tensor([1.0, -0.5, -0.5, 0.7, -0.7, 0.0, 1.1, -1.1], dtype=torch.float64)
    mine, rows = ([groups[0], groups[2]], [0, 1, 2, 5, 6, 7]) if rank == 0 else ([groups[1]], [3, 4])
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == WORLD
    cfg = replace(CFG, max_tokens_per_micro_batch=budget)
    seen, sums = grpo_gradients(accelerator.prepare(policy), accelerator, mine, advantages[rows], cfg)
    total = sum_over_ranks({"tokens": sums["tokens"], "loss": sums["loss"]}, accelerator)
    torch.save({"grads": seen, "total": total}, f"{folder}/rank{rank}.pt")


@pytest.mark.parametrize("budget", [10_000, 60])
def test_two_ranks_equal_one(tiny64, tmp_path, budget):
    """fp64, 1e-10: tokens of both ranks make one normaliser. Averaging each rank's own mean would differ."""
    on_two_ranks(check_grpo, str(tmp_path), budget)
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(WORLD)]
    policy, codec = tiny64
    groups = make_groups(codec, sizes=(3, 2, 3), pictures=(1, 0, 2))
    advantages = torch.tensor([1.0, -0.5, -0.5, 0.7, -0.7, 0.0, 1.1, -1.1], dtype=torch.float64)
    alone, sums = grpo_gradients(policy, Accelerator(cpu=True), groups, advantages, CFG)
    for rank in ranks:
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(rank["grads"], alone))
        assert rank["total"]["tokens"] == sums["tokens"] and rank["total"]["loss"] == pytest.approx(sums["loss"], abs=1e-9)
    parts = [grpo_gradients(policy, Accelerator(cpu=True), g, a, CFG)[0]
             for g, a in (([groups[0], groups[2]], advantages[[0, 1, 2, 5, 6, 7]]), ([groups[1]], advantages[3:5]))]
    means = [(a + b) / 2 for a, b in zip(*parts)]
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(means, alone)), "the classic mean of means"


def check_uneven(rank, folder):
    """Rank 0 needs six passes, rank 1 one; and in stage 2 rank 1 has no pair left at all."""
    policy, codec = fp64_policy()
    accelerator = Accelerator(cpu=True)
    policy = accelerator.prepare(policy)
    groups = make_groups(codec, sizes=(6,) if rank == 0 else (1,), pictures=(1,))
    advantages = torch.ones(6 if rank == 0 else 1, dtype=torch.float64)
    seen, _ = grpo_gradients(policy, accelerator, groups, advantages, replace(CFG, max_tokens_per_micro_batch=1))
    assert all(torch.isfinite(g).all() for g in seen)
    pairs = make_groups(codec, sizes=(2, 2, 2), pictures=(1, 0, 2))
    mine, own = (pairs, 3) if rank == 0 else (pairs[:1], 0)
    cfg = replace(dpo_sft.Config(), grad_clip=1e9, max_tokens_per_micro_batch=1)
    ref = torch.linspace(-30, -10, 2 * len(mine), dtype=torch.float64)
    torch.save(dpo_gradients(policy, accelerator, mine, ref, own, cfg), f"{folder}/rank{rank}.pt")


def test_uneven_ranks_do_not_hang(tiny64, tmp_path):
    """Every rank runs as many passes as the busiest one, the idle ones with weight 0, and the sum is right."""
    on_two_ranks(check_uneven, str(tmp_path))
    policy, codec = tiny64
    pairs = make_groups(codec, sizes=(2, 2, 2), pictures=(1, 0, 2))
    ref = torch.linspace(-30, -10, 6, dtype=torch.float64)
    alone = dpo_gradients(policy, Accelerator(cpu=True), pairs, ref, 3, replace(dpo_sft.Config(), grad_clip=1e9))
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found, alone))


def run_grpo(rank, cfg):
    seen, score = [], grpo.score

    def watch(group, *args):
        seen.append((group.prompt.row["id"], [c.tolist() for c in group.completions]))
        return score(group, *args)

    grpo.score = watch
    grpo.main(cfg)
    torch.save(seen, f"{cfg.run_dir}/seen{rank}.pt")


def test_a_run_on_two_ranks(tmp_path):
    """One folder, metrics of all completions, other prompts and other samples on each rank; it resumes."""
    policy, codec = fresh_policy()
    save_model(policy, codec, tmp_path / "start")
    cfg = grpo.Config(model=str(tmp_path / "start"), run_dir=str(tmp_path / "run"), rows=12, steps=2, prompts_per_step=4,
                      group_size=3, max_new_tokens=6, save_every=1, lr=1e-3)
    on_two_ranks(run_grpo, cfg)
    seen = [torch.load(tmp_path / f"run/seen{r}.pt", weights_only=True) for r in range(WORLD)]
    assert not {i for i, _ in seen[0]} & {i for i, _ in seen[1]} and len(seen[0]) == len(seen[1]) == 4
    assert all(a != b for (_, a), (_, b) in zip(*seen)), "the ranks must not draw the same random numbers"
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    on_two_ranks(run_grpo, replace(cfg, resume=True, steps=3))
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3
    with pytest.raises(ValueError, match="--resume.*saved by 2 processes"):
        grpo.main(replace(cfg, resume=True, steps=4))
