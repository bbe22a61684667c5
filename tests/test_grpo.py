"""Advantages, the clipped loss, its normaliser, and what a step of GRPO may not do."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from conftest import make_groups

import grpo
from common import completion_mask, token_logps
from grpo import Config, group_advantages, kl_k3, overlong_penalty, policy_loss
from rewards import Grade

CFG = Config(clip_low=0.2, clip_high=0.28)


def slow_loss(logp, logp_old, advantages, mask, low, high):
    """Oracle: DAPO eq. 8 in three plain loops."""
    total, count = 0.0, 0
    for b in range(len(logp)):
        for t in range(len(logp[b])):
            if not mask[b][t]:
                continue
            r, a = math.exp(logp[b][t] - logp_old[b][t]), advantages[b]
            total += min(r * a, min(max(r, 1 - low), 1 + high) * a)
            count += 1
    return -total / count


def random_batch(seed=0, rows=6, width=5):
    g = torch.Generator().manual_seed(seed)
    logp, old = (torch.randn(rows, width, generator=g, dtype=torch.float64) * 0.5 - 2 for _ in range(2))
    lengths = torch.randint(1, width + 1, (rows, 1), generator=g)
    return logp, old, torch.randn(rows, generator=g, dtype=torch.float64), (torch.arange(width) < lengths).double()


def test_loss_equals_a_slow_triple_loop():
    """Over all signs, both sides of the band, unequal lengths."""
    for seed in range(20):
        logp, old, adv, mask = random_batch(seed)
        fast = (policy_loss(logp, old, adv, 0.2, 0.28)["loss"] * mask).sum() / mask.sum()
        assert abs(fast - slow_loss(logp.tolist(), old.tolist(), adv.tolist(), mask.tolist(), 0.2, 0.28)) < 1e-12


@pytest.mark.parametrize("advantage, ratio, value, gradient", [
    (1.0, 0.5, 0.5, 1.0), (1.0, 1.1, 1.1, 1.0), (1.0, 1.5, 1.28, 0.0),
    (-1.0, 0.5, -0.8, 0.0), (-1.0, 1.1, -1.1, -1.0), (-1.0, 1.5, -1.5, -1.0)])
def test_clip_quadrants(advantage, ratio, value, gradient):
    """Which side clips for which sign: A > 0 stops above 1 + high, A < 0 below 1 - low, the rest goes on."""
    r = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    loss = policy_loss(r.log().view(1, 1), torch.zeros(1, 1).double(), torch.tensor([advantage]).double(), 0.2, 0.28)
    objective = -loss["loss"].sum()
    objective.backward()
    assert objective.item() == pytest.approx(value) and r.grad.item() == pytest.approx(gradient)
    assert loss["clipped"].item() == (gradient == 0.0)
    turned = torch.max(r * advantage, r.clamp(0.8, 1.28) * advantage)  # the classic mistake for A < 0
    if advantage < 0 and ratio != 1.1:
        assert turned.item() != pytest.approx(value)


def test_zero_loss_nonzero_gradient():
    """On the sampling policy the loss of equal lengths is 0 and its gradient is REINFORCE's: -A grad logp."""
    logp = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    adv = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)).flatten()
    loss = policy_loss(logp, logp.detach(), adv, 0.2, 0.28)["loss"].sum() / logp.numel()
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert torch.allclose(logp.grad, (-adv[:, None] / logp.numel()).expand(4, 3)) and logp.grad.abs().min() > 0


def test_equal_rewards_zero_advantage():
    """Exactly 0, also where fp32 leaves a residue: eight rewards of 0.1 have a mean that is not quite 0.1."""
    rewards = torch.tensor([[0.1] * 8, [0.1] * 7 + [1.1]])
    adv = group_advantages(rewards, eps=1e-9)
    assert adv[0].abs().max() == 0 and adv[1].abs().max() > 0.3
    classic = (rewards[0] - rewards[0].mean()) / (rewards[0].std() + 1e-9)
    assert classic.abs().max() > 0.5, "without the comparison, rounding alone makes an advantage of -0.83"


def test_advantage_values():
    """Unbiased std, groups apart, Dr. GRPO without division."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.5, 0.5, 0.5, 1.5]])
    adv = group_advantages(rewards, eps=0.0)
    assert torch.allclose(adv[0], torch.tensor([1.5, -0.5, -0.5, -0.5]))
    assert torch.allclose(adv, (rewards - rewards.mean(-1, keepdim=True)) / rewards.std(-1, keepdim=True))
    assert torch.allclose(group_advantages(rewards, divide_by_std=False)[0], torch.tensor([0.75, -0.25, -0.25, -0.25]))
    assert not torch.allclose(adv, (rewards - rewards.mean()) / rewards.std()), "the batch is not the group"


def test_unscored_completions_are_left_out_of_the_group():
    """nan is neither wrong nor right: the others' advantages are as if it had not been sampled."""
    nan = float("nan")
    with_nan = group_advantages(torch.tensor([[1.0, nan, 0.0, 0.0]]))
    without = group_advantages(torch.tensor([[1.0, 0.0, 0.0]]))
    assert with_nan[0, 1] == 0 and torch.allclose(with_nan[0, [0, 2, 3]], without[0])
    assert group_advantages(torch.full((1, 3), nan)).abs().max() == 0


def test_inputs_are_left_alone():
    """Pure functions: what goes in comes out unchanged."""
    logp, old, adv, _ = random_batch()
    copies = [x.clone() for x in (logp, old, adv)]
    policy_loss(logp, old, adv, 0.2, 0.28)
    kl_k3(logp, old)
    group_advantages(adv.view(2, 3))
    assert all(torch.equal(a, b) for a, b in zip((logp, old, adv), copies))


def test_k3_nonnegative_for_small_d():
    """The plain form loses everything below 1e-4 in fp32, and turns negative; expm1 does not."""
    for d in (1e-3, 1e-4, 1e-5, 1e-6):
        x = torch.tensor([d])
        exact = math.expm1(d) - d
        assert kl_k3(torch.zeros(1), x).item() >= 0
        assert d < 1e-3 or kl_k3(torch.zeros(1), x).item() == pytest.approx(exact, rel=0.05)
    tiny = torch.tensor([1e-6])
    assert (tiny.exp() - tiny - 1).item() < 0, "the classic form is negative here"


def test_k3_is_unbiased_for_the_kl():
    """Its mean under the policy is KL(policy || reference), summed exactly over a small vocabulary."""
    p, q = (torch.randn(7, generator=torch.Generator().manual_seed(s)).log_softmax(0) for s in (0, 1))
    assert torch.allclose((p.exp() * kl_k3(p, q)).sum(), (p.exp() * (p - q)).sum(), atol=1e-6)
    assert not torch.allclose((p.exp() * kl_k3(q, p)).sum(), (p.exp() * (p - q)).sum(), atol=1e-2), "d has a sign"


def test_overlong_penalty():
    """DAPO eq. 13: nothing, then a line, then -1."""
    assert [overlong_penalty(n, 100, 20) for n in (10, 80, 90, 100)] == [0.0, 0.0, -0.5, -1.0]
    assert overlong_penalty(100, 100, 0) == 0.0


def test_dynamic_sampling_looks_at_accuracy():
    """All wrong with unequal format is not informative, though its rewards differ."""
    def scored(*scores, formats=(0.5, 0.0)):
        return grpo.Scored(None, ["", ""], list(formats), [Grade(s, "") for s in scores], [False] * 2,
                           [s + f for s, f in zip(scores, formats)])

    assert not grpo.is_informative(scored(0.0, 0.0)) and not grpo.is_informative(scored(1.0, 1.0))
    assert grpo.is_informative(scored(1.0, 0.0))


def one_step(policy, groups, advantages, mask, cfg, logp_old=None):
    """Gradients of one update, the optimizer step itself left out."""
    class NoStep(torch.optim.SGD):
        def step(self, closure=None):
            self.seen = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}

    optimizer = NoStep(policy.parameters(), lr=0.0)
    sums = grpo.update(policy, None, optimizer, Accelerator(cpu=True), groups, advantages, mask, logp_old, cfg)
    return optimizer.seen, sums


def step_inputs(codec, dtype=torch.float64):
    groups = make_groups(codec, sizes=(3, 2, 3), pictures=(1, 0, 2))
    advantages = torch.tensor([1.0, -0.5, -0.5, 0.7, -0.7, 0.0, 1.1, -1.1], dtype=dtype)
    return groups, advantages, completion_mask(groups).to(dtype)


@pytest.mark.parametrize("budget", [1, 60, 120, 10_000])
@pytest.mark.parametrize("dr_grpo", [False, True])
def test_micro_batch_split_does_not_change_gradient(tiny64, budget, dr_grpo):
    """fp64, 1e-10: one micro-batch, or one row at a time (groups split), give the same step."""
    policy, codec = tiny64
    groups, advantages, mask = step_inputs(codec)
    whole, sums = one_step(policy, groups, advantages, mask, replace(CFG, dr_grpo=dr_grpo, grad_clip=1e9))
    cut, cut_sums = one_step(policy, groups, advantages, mask,
                             replace(CFG, dr_grpo=dr_grpo, grad_clip=1e9, max_tokens_per_micro_batch=budget))
    assert all(torch.allclose(whole[n], cut[n], atol=1e-10) for n in whole)
    assert all(cut_sums[k] == pytest.approx(sums[k], abs=1e-9) for k in sums)


def test_mean_of_micro_batch_means_differs(tiny64):
    """The classic mistake: averaging each micro-batch by itself weighs a lone short completion too much."""
    policy, codec = tiny64
    groups, advantages, mask = step_inputs(codec)
    right, _ = one_step(policy, groups, advantages, mask, replace(CFG, grad_clip=1e9))
    policy.zero_grad()
    start = 0
    for group in groups:
        rows = slice(start, start := start + len(group.completions))
        logp, _ = token_logps(policy, [group])
        real = mask[rows, : logp.shape[1]]
        loss = (policy_loss(logp, logp.detach(), advantages[rows], 0.2, 0.28)["loss"] * real).sum() / real.sum()
        (loss / len(groups)).backward()
    name = "vlm.model.language_model.embed_tokens.weight"
    assert not torch.allclose(dict(policy.named_parameters())[name].grad, right[name], atol=1e-4)


def test_gradient_equals_the_slow_way(tiny64):
    """The whole step against separate sums by autograd over one big batch with a hand-made ratio."""
    policy, codec = tiny64
    groups, advantages, mask = step_inputs(codec)
    with torch.no_grad():
        old = token_logps(policy, groups)[0] + 0.3 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(2)).double()
    fast, sums = one_step(policy, groups, advantages, mask, replace(CFG, grad_clip=1e9, max_tokens_per_micro_batch=50), old)
    policy.zero_grad()
    logp, _ = token_logps(policy, groups)
    ratio = (logp - old).exp()
    worth = torch.min(ratio * advantages[:, None], ratio.clamp(0.8, 1.28) * advantages[:, None])
    (-(worth * mask).sum() / mask.sum()).backward()
    assert all(torch.allclose(p.grad, fast[n], atol=1e-10) for n, p in policy.named_parameters() if n in fast)
    assert sums["clipped"] > 0 and sums["ratio"] / sums["tokens"] != 1


def test_first_update_ratio_is_one(tiny):
    """Ratio exactly 1 and clip 0 before any step; after one step on the same rollout, ratios move."""
    policy, codec = tiny
    groups, advantages, mask = step_inputs(codec, torch.float32)
    _, sums = one_step(policy, groups, advantages, mask, CFG)
    assert sums["ratio"] == sums["tokens"] and sums["clipped"] == 0
    logp_old = grpo.score_tokens(policy, groups, CFG)
    _, again = one_step(policy, groups, advantages, mask, CFG, logp_old)
    assert abs(again["ratio"] / again["tokens"] - 1) < 1e-6
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    grpo.update(policy, None, optimizer, Accelerator(cpu=True), groups, advantages, mask, None, CFG)
    _, moved = one_step(policy, groups, advantages, mask, CFG, logp_old)
    assert abs(moved["ratio"] / moved["tokens"] - 1) > 1e-4


def test_masked_rows_count_nowhere(tiny64):
    """A truncated completion under --mask_truncated is in neither the numerator nor the denominator;
    when all are masked the loss is 0, not nan, and no weight moves."""
    policy, codec = tiny64
    groups, advantages, mask = step_inputs(codec)
    masked = mask.clone()
    masked[3:5] = 0
    seen, sums = one_step(policy, groups, advantages, masked, replace(CFG, grad_clip=1e9))
    kept, _ = one_step(policy, [groups[0], groups[2]], advantages[[0, 1, 2, 5, 6, 7]], mask[[0, 1, 2, 5, 6, 7]],
                       replace(CFG, grad_clip=1e9))
    assert sums["tokens"] == masked.sum() and all(torch.allclose(seen[n], kept[n], atol=1e-10) for n in kept)
    nothing, _ = one_step(policy, groups, advantages, mask * 0, CFG)
    assert all(g.abs().max() == 0 for g in nothing.values())


def test_unscored_completions_train_nothing(tiny):
    """A completion without a reward (nan) is in neither the sum nor the count of tokens, and no step is skipped."""
    policy, codec = tiny
    groups = make_groups(codec, sizes=(3, 3), pictures=(1, 0))
    rewards = [[1.0, 0.0, float("nan")], [0.0, 1.0, 0.0]]
    scored = [grpo.Scored(g, [""] * 3, [0.0] * 3, [Grade(0.0, "")] * 3, [False] * 3, r) for g, r in zip(groups, rewards)]
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    totals = grpo.train_on(scored, policy, None, optimizer, Accelerator(cpu=True), replace(CFG, updates_per_rollout=1))
    known = sum(len(c) for g in groups for c in g.completions) - len(groups[0].completions[2])
    assert totals["tokens"] == known and totals["skipped_updates"] == 0 and totals["grad_norm"] > 0


def test_no_step_on_nan(tiny):
    """A gradient that is not finite is counted, and every weight stays as it was."""
    policy, codec = tiny
    groups, advantages, mask = step_inputs(codec, torch.float32)
    before = [p.clone() for p in policy.parameters()]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1.0)
    sums = grpo.update(policy, None, optimizer, Accelerator(cpu=True), groups, advantages * float("nan"), mask, None, CFG)
    assert sums["skipped_updates"] == 1 and all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))


def test_kl_pulls_back_to_the_reference(tiny):
    """With --kl_beta a policy that has moved gets a gradient even where all advantages are 0."""
    policy, codec = tiny
    import copy

    reference = copy.deepcopy(policy)
    groups, advantages, mask = step_inputs(codec, torch.float32)
    with torch.no_grad():
        policy.vlm.lm_head.weight.mul_(1.3)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.02)
    values = [grpo.update(policy, reference, optimizer, Accelerator(cpu=True), groups, advantages * 0, mask, None,
                          replace(CFG, kl_beta=1.0))["kl_ref"] for _ in range(4)]
    assert values[0] > 0 and values[-1] < values[0]


def test_every_flag_combination_that_cannot_work_is_refused():
    """The message names the flag."""
    for wrong, name in [({"prompts_per_step": 5, "updates_per_rollout": 2}, "prompts_per_step"), ({"group_size": 1}, "group_size"),
                        ({"temperature": 0.0}, "temperature"), ({"schedule": "linear"}, "schedule")]:
        with pytest.raises(ValueError, match=f"--{name}"):
            Config(**wrong)
    assert list(itertools.islice(Config.__dataclass_fields__, 1)) == ["model"]


def test_each_rollout_samples_the_newest_weights(tmp_path, monkeypatch):
    """In mixed precision a copy samples: brought up to date before every rollout, or it stays the start model for ever."""
    order, rollout = [], grpo.rollout
    monkeypatch.setattr(grpo, "refresh", lambda sampler, policy: order.append("refresh"))
    monkeypatch.setattr(grpo, "rollout", lambda *args: order.append("rollout") or rollout(*args))
    grpo.main(replace(CFG, steps=2, prompts_per_step=2, group_size=2, max_new_tokens=4, rows=4, precision="no", run_dir=str(tmp_path / "run")))
    assert order == ["refresh", "rollout"] * 2
