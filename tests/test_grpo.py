"""Rewards, advantages, the clipped loss, its normaliser, and what a step of GRPO may not do."""

import copy
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy
import pytest
import torch
from accelerate import Accelerator

import grpo
from common import no_grad_logps, plain_token_logps, token_logps
from conftest import (
    KeepGradients,
    loss_gradients,
    make_example,
    make_groups,
    mini_batch,
    policies_of,
    sampled,
    small_grpo,
    train_on,
)
from grpo import Config, MiniBatch, group_advantages, policy_loss
from harness.metrics import kl_k3, sampler_gap
from harness.run import read_jsonl
from model.records import Group, Prompt, completion_mask, padded
from rewards import groups, overlong_penalty
from rewards.groups import RewardedGroup, Rewarder
from test_run import grpo_config

CFG = Config(clip_low=0.2, clip_high=0.28, grad_clip=1e9)

# --- Rewards -------------------------------------------------------------------------------------

TOTALS = [  # response, total reward
    ("<think> a </think> <answer> 2 </answer>", 1.5),
    ("<think> a </think> <answer> 3 </answer>", 0.5),
    ("the answer is 2 .", 1.0),
    ("the answer is 3 .", 0.0),
]


def test_total_is_half_for_the_format_and_one_for_the_answer():
    """The default weights are the paper's: 0.5 and 1, independent and summed."""
    responses = [response for response, _ in TOTALS]
    completions = [torch.tensor([i, 99]) for i in range(len(responses))]
    prompt = Prompt(make_example(0), torch.tensor([1]), torch.zeros(3, 1), None, None)

    rewards = Rewarder(CFG, encoder=None, eos_ids=[99], judge=None)
    rewarded = rewards.reward_group(Group(prompt, completions), responses, progress=0.0)
    assert rewarded.responses == responses
    assert rewarded.totals == [total for _, total in TOTALS]
    assert rewarded.truncated == [False] * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", [1.0]])
def test_a_reward_that_is_no_number_is_an_error(value):
    """Taken for "could not be scored", it trained on nothing, and the run ended well."""
    example = {**make_example(0), "id": "q7"}
    prompt = Prompt(example, torch.tensor([1]), torch.zeros(3, 1), None, None)
    group = Group(prompt, [torch.tensor([1, 99])] * 2)
    rewards = Rewarder(CFG, encoder=None, eos_ids=[99], judge=None)

    rewards.functions = {"mine": lambda example, completion: value}
    with pytest.raises(ValueError, match=r"reward `mine` of example q7 is .*: wanted a finite"):
        rewards.reward_group(group, ["a", "b"], progress=0.0)

    rewards.functions = {"mine": lambda example, completion: completion.text.index(",")}
    with pytest.raises(ValueError, match=r"`mine` of example q7: ValueError: .*test_grpo.py, line"):
        rewards.reward_group(group, ["a", "b"], progress=0.0)

    rewards.functions = {"mine": lambda example, completion: None}  # could not be scored
    assert rewards.reward_group(group, ["a", "b"], 0.0).known("mine") == []


def test_a_reward_that_forgets_its_return_is_named():
    """None is "could not be scored": of all completions an error, of some a warning, once.

    In one branch only, the run trained on the completions of the other, and looked perfect.
    """
    example = {**make_example(0), "id": "q7"}
    prompt = Prompt(example, torch.tensor([1]), torch.zeros(3, 1), None, None)
    group = Group(prompt, [torch.tensor([1, 99])] * 2)
    said = []
    encoder = SimpleNamespace(decode=lambda ids: "a")
    rewards = Rewarder(CFG, encoder, eos_ids=[99], judge=None, warn=said.append)

    rewards.functions = {"mine": lambda example, completion: None}
    with pytest.raises(ValueError, match="reward `mine` gave None for each of 2 completions"):
        rewards.reward_groups([group], progress=0.0)

    for _ in range(2):
        answers = iter([None, 1.0])
        rewards.functions = {"mine": lambda *_, answers=answers: next(answers)}
        assert len(rewards.reward_groups([group], progress=0.0)[0].known("mine")) == 1
    assert len(said) == 1 and "`mine` gave None for 1 of 2 completions" in said[0]

    rewards.functions = {"mine": lambda example, completion: numpy.float32(0.5)}
    assert rewards.reward_groups([group], progress=0.0)[0].known("mine") == [0.5, 0.5]


def test_a_reward_may_not_have_the_name_of_a_metric(monkeypatch):
    """Its values would be added to those of the metric: `length` was the mean of both.

    All names that a step logs are taken, but those of the rewards themselves.
    """
    monkeypatch.setattr(groups, "make_rewards", lambda cfg, judge: {"length": None})
    with pytest.raises(ValueError, match="a reward cannot be called length"):
        Rewarder(CFG, encoder=None, eos_ids=[99], judge=None)
    shown = {*grpo.COLUMNS, *[name for names in grpo.PANELS.values() for name in names]}
    assert shown <= groups.TAKEN


def test_weights_in_force_are_said():
    """A weight that is not named is 1, also that of the format: it is printed at the start."""
    cfg = replace(CFG, reward_weights="accuracy=0.5")
    formula = Rewarder(cfg, encoder=None, eos_ids=[99], judge=None).formula()
    assert "1 format" in formula and "0.5 accuracy" in formula
    with pytest.raises(ValueError, match="format is given twice"):
        replace(CFG, reward_weights="format=1,format=2")
    with pytest.raises(ValueError, match="--clip_low 2.0: must be between 0 and 1"):
        replace(CFG, clip_low=2.0)
    cfg = replace(CFG, reward_weights="accuracy=0,format=0")
    with pytest.raises(ValueError, match="all are 0"):
        Rewarder(cfg, encoder=None, eos_ids=[99], judge=None)


def test_overlong_penalty():
    """DAPO eq. 13: nothing, then a line, then -1."""
    assert [overlong_penalty(n, 100, 20) for n in (10, 80, 90, 100)] == [0.0, 0.0, -0.5, -1.0]
    assert overlong_penalty(100, 100, 0) == 0.0


def rewarded(group, formats, accuracies, totals=None) -> RewardedGroup:
    """A group of which only the rewards matter."""
    size = len(accuracies)
    rewards = [{"format": f, "accuracy": a} for f, a in zip(formats, accuracies)]
    if totals is None:
        totals = [0.5 * f + a for f, a in zip(formats, accuracies)]
    return RewardedGroup(group, [""] * size, [False] * size, rewards, totals)


def test_dynamic_sampling_looks_at_accuracy():
    """All wrong with unequal format is not informative, though its rewards differ."""
    assert not rewarded(None, [1.0, 0.0], [0.0, 0.0]).is_informative()
    assert not rewarded(None, [1.0, 0.0], [1.0, 1.0]).is_informative()
    assert rewarded(None, [1.0, 0.0], [1.0, 0.0]).is_informative()


def test_dynamic_sampling_gives_up_with_a_message(start, tmp_path):
    """A model that is never right: after --max_draws rollouts it says why it stops."""
    never_right = dict(dynamic_sampling=True, max_draws=2, group_size=2, max_new_tokens=1)
    with pytest.raises(ValueError, match="--dynamic_sampling: 2 draws"):
        grpo.main(grpo_config(start, tmp_path / "run", **never_right))


# --- Advantages ----------------------------------------------------------------------------------


def test_equal_rewards_zero_advantage():
    """Exactly 0, also where fp32 rounds: eight rewards of 0.1 have a mean that is not quite 0.1."""
    rewards = torch.tensor([[0.1] * 8, [0.1] * 7 + [1.1]])
    advantages = group_advantages(rewards, eps=1e-9)
    assert advantages[0].abs().max() == 0
    assert advantages[1].abs().max() > 0.3

    classic = (rewards[0] - rewards[0].mean()) / (rewards[0].std() + 1e-9)
    assert classic.abs().max() > 0.5, "by std alone, rounding makes an advantage of -0.83"


def test_advantage_values():
    """Unbiased std, groups apart, Dr. GRPO without division."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.5, 0.5, 0.5, 1.5]])
    advantages = group_advantages(rewards, eps=0.0)
    assert torch.allclose(advantages[0], torch.tensor([1.5, -0.5, -0.5, -0.5]))

    by_group = (rewards - rewards.mean(-1, keepdim=True)) / rewards.std(-1, keepdim=True)
    assert torch.allclose(advantages, by_group)

    centred = group_advantages(rewards, divide_by_std=False)
    assert torch.allclose(centred[0], torch.tensor([0.75, -0.25, -0.25, -0.25]))

    by_batch = (rewards - rewards.mean()) / rewards.std()
    assert not torch.allclose(advantages, by_batch), "the batch is not the group"


def test_unscored_completions_are_left_out_of_the_group():
    """nan is neither wrong nor right: the others' advantages are as if it had not been sampled."""
    nan = float("nan")
    with_nan = group_advantages(torch.tensor([[1.0, nan, 0.0, 0.0]]))
    without = group_advantages(torch.tensor([[1.0, 0.0, 0.0]]))

    assert with_nan[0, 1] == 0
    assert torch.allclose(with_nan[0, [0, 2, 3]], without[0])
    assert group_advantages(torch.full((1, 3), nan)).abs().max() == 0


# --- Loss ----------------------------------------------------------------------------------------


def slow_loss(logp, logp_old, advantages, mask, low, high):
    """Oracle: DAPO eq. 8 in plain loops."""
    total, tokens = 0.0, 0
    for b in range(len(logp)):
        for t in range(len(logp[b])):
            if not mask[b][t]:
                continue
            ratio = math.exp(logp[b][t] - logp_old[b][t])
            clipped = min(max(ratio, 1 - low), 1 + high)
            total += min(ratio * advantages[b], clipped * advantages[b])
            tokens += 1
    return -total / tokens


def random_batch(seed=0, completions=6, longest=5):
    """logp, logp_old (B, T), advantages (B,) and mask (B, T), fp64."""
    g = torch.Generator().manual_seed(seed)
    shape = (completions, longest)
    logp = torch.randn(shape, generator=g, dtype=torch.float64) * 0.5 - 2
    logp_old = torch.randn(shape, generator=g, dtype=torch.float64) * 0.5 - 2
    lengths = torch.randint(1, longest + 1, (completions, 1), generator=g)
    advantages = torch.randn(completions, generator=g, dtype=torch.float64)
    return logp, logp_old, advantages, (torch.arange(longest) < lengths).double()


def test_loss_equals_a_slow_triple_loop():
    """Over all signs, both sides of the band, unequal lengths."""
    for seed in range(20):
        logp, logp_old, advantages, mask = random_batch(seed)
        terms = policy_loss(logp, logp_old, advantages, mask, 0.2, 0.28)
        fast = (terms["loss"] * mask).sum() / mask.sum()

        lists = [x.tolist() for x in (logp, logp_old, advantages, mask)]
        assert abs(fast - slow_loss(*lists, 0.2, 0.28)) < 1e-12


@pytest.mark.parametrize(
    "advantage, ratio, value, gradient",
    [
        (1.0, 0.5, 0.5, 1.0),
        (1.0, 1.1, 1.1, 1.0),
        (1.0, 1.5, 1.28, 0.0),
        (-1.0, 0.5, -0.8, 0.0),
        (-1.0, 1.1, -1.1, -1.0),
        (-1.0, 1.5, -1.5, -1.0),
    ],
)
def test_clip_quadrants(advantage, ratio, value, gradient):
    """Which side clips: A > 0 stops above 1 + high, A < 0 below 1 - low, the rest goes on."""
    r = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    logp, logp_old = r.log().view(1, 1), torch.zeros(1, 1).double()
    mask = torch.ones(1, 1).double()
    terms = policy_loss(logp, logp_old, torch.tensor([advantage]).double(), mask, 0.2, 0.28)
    objective = -terms["loss"].sum()
    objective.backward()

    assert objective.item() == pytest.approx(value)
    assert r.grad.item() == pytest.approx(gradient)
    assert terms["clipped"].item() == (gradient == 0.0)

    # The classic mistake, a max where the advantage is negative.
    turned = torch.max(r * advantage, r.clamp(0.8, 1.28) * advantage)
    if advantage < 0 and ratio != 1.1:
        assert turned.item() != pytest.approx(value)


def test_zero_loss_nonzero_gradient():
    """On the sampling policy the loss of equal lengths is 0; its gradient is REINFORCE's, not 0."""
    logp = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    advantages = group_advantages(rewards).flatten()
    mask = torch.ones_like(logp)
    terms = policy_loss(logp, logp.detach(), advantages, mask, 0.2, 0.28)
    loss = terms["loss"].sum() / logp.numel()
    loss.backward()

    assert abs(loss.item()) < 1e-12
    reinforce = (-advantages[:, None] / logp.numel()).expand(4, 3)
    assert torch.allclose(logp.grad, reinforce)
    assert logp.grad.abs().min() > 0


def test_k3_nonnegative_for_small_d():
    """In fp32 the plain form loses everything below 1e-4, and turns negative; expm1 does not."""
    for d in (1e-3, 1e-4, 1e-5, 1e-6):
        found = kl_k3(torch.zeros(1), torch.tensor([d])).item()
        assert found >= 0
        assert d < 1e-3 or found == pytest.approx(math.expm1(d) - d, rel=0.05)

    tiny = torch.tensor([1e-6])
    assert (tiny.exp() - tiny - 1).item() < 0, "the classic form is negative here"


def test_k3_is_unbiased_for_the_kl():
    """Its mean under the policy is KL(policy || reference), summed over a small vocabulary."""

    def random_logp(seed):
        return torch.randn(7, generator=torch.Generator().manual_seed(seed)).log_softmax(0)

    p, q = random_logp(0), random_logp(1)
    kl = (p.exp() * (p - q)).sum()
    assert torch.allclose((p.exp() * kl_k3(p, q)).sum(), kl, atol=1e-6)
    assert not torch.allclose((p.exp() * kl_k3(q, p)).sum(), kl, atol=1e-2), "d has a sign"


def test_k3_pulls_like_the_other_kl():
    """As a loss, k3 has on average the gradient of KL(reference || policy), not of its value's KL.

    Every token of a small vocabulary, weighted by its probability: what sampling does on average.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=generator, requires_grad=True)
    q = torch.randn(7, generator=generator).log_softmax(0)

    def gradient(value):
        return torch.autograd.grad(value, logits)[0]

    p = logits.log_softmax(0)
    weights = p.detach().exp()  # sampled tokens: no gradient through how they were drawn
    k3 = gradient((weights * kl_k3(p, q)).sum())

    p = logits.log_softmax(0)
    assert torch.allclose(k3, gradient((q.exp() * (q - p)).sum()), atol=1e-6)

    p = logits.log_softmax(0)
    assert not torch.allclose(k3, gradient((p.exp() * (p - q)).sum()), atol=1e-2)


def test_inputs_are_left_alone():
    """Pure functions: what goes in comes out unchanged."""
    logp, logp_old, advantages, mask = random_batch()
    inputs = (logp, logp_old, advantages, mask)
    copies = [x.clone() for x in inputs]

    policy_loss(logp, logp_old, advantages, mask, 0.2, 0.28)
    kl_k3(logp, logp_old)
    group_advantages(advantages.view(2, 3))

    assert all(torch.equal(a, b) for a, b in zip(inputs, copies))


# --- One step ------------------------------------------------------------------------------------


def step_batch(encoder, dtype=torch.float64) -> MiniBatch:
    """Three groups of 3, 2 and 3 completions, with 1, 0 and 2 images."""
    groups = make_groups(encoder, sizes=(3, 2, 3), images=(1, 0, 2))
    advantages = torch.tensor([1.0, -0.5, -0.5, 0.7, -0.7, 0.0, 1.1, -1.1], dtype=dtype)
    return mini_batch(groups, advantages, completion_mask(groups).to(dtype))


def one_step(policy, batch, cfg):
    """Gradients by name, and the sums of one update; the optimizer step itself is left out."""
    optimizer = KeepGradients(policy)
    policies = policies_of(policy, optimizer)
    sums = grpo.update(batch, policies, Accelerator(cpu=True), cfg)
    return optimizer.grads, sums


def same_gradients(a, b, atol=1e-10) -> bool:
    return all(torch.allclose(a[name], b[name], rtol=0, atol=atol) for name in b)


@pytest.mark.parametrize("budget", [1, 60, 120, 10_000])
def test_micro_batch_split_does_not_change_gradient(tiny64, budget):
    """fp64, 1e-10: one micro-batch, or one completion at a time, give the same step."""
    policy, encoder = tiny64
    batch = step_batch(encoder)
    whole, whole_sums = one_step(policy, batch, CFG)
    cut, cut_sums = one_step(policy, batch, replace(CFG, max_tokens_per_micro_batch=budget))

    assert same_gradients(cut, whole)
    assert all(cut_sums[k] == pytest.approx(whole_sums[k], abs=1e-9) for k in whole_sums)


def test_mean_of_micro_batch_means_differs(tiny64):
    """The classic mistake: each micro-batch averaged by itself gives short completions too much."""
    policy, encoder = tiny64
    batch = step_batch(encoder)
    right, _ = one_step(policy, batch, CFG)
    policy.zero_grad()

    start = 0
    for group in batch.groups:
        end = start + len(group.completions)
        logp = token_logps(policy, [group])
        mask = batch.mask[start:end, : logp.shape[1]]
        terms = policy_loss(logp, logp.detach(), batch.advantages[start:end], mask, 0.2, 0.28)
        mean = (terms["loss"] * mask).sum() / mask.sum()
        (mean / len(batch.groups)).backward()
        start = end

    name = "vlm.model.language_model.embed_tokens.weight"
    wrong = dict(policy.named_parameters())[name].grad
    assert not torch.allclose(wrong, right[name], atol=1e-4)


def test_gradient_equals_the_slow_way(tiny64):
    """The step against autograd over one big batch, with ratios on both sides of the band."""
    policy, encoder = tiny64
    batch = step_batch(encoder)
    advantages, mask = batch.advantages[:, None], batch.mask
    noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        logp_old = token_logps(policy, batch.groups) + 0.3 * noise

    cfg = replace(CFG, max_tokens_per_micro_batch=50)
    fast, sums = one_step(policy, replace(batch, logp_old=logp_old), cfg)

    policy.zero_grad()
    logp = token_logps(policy, batch.groups)
    ratio = (logp - logp_old).exp()
    objective = torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    (-(objective * mask).sum() / mask.sum()).backward()
    slow = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}

    assert same_gradients(slow, fast)
    assert sums["clipped"] > 0
    assert sums["ratio"] / sums["tokens_passed"] != 1


@pytest.mark.parametrize("budget", [50, 10_000])
def test_update_equals_the_plain_loss(tiny64, monkeypatch, budget):
    """From rewards to gradients by the formulas of the module docstring, token by token.

    Both sides of the clip act; 1e-6, since advantages are fp32. With the mean over completions of
    means over tokens, which is GRPO as first published, the gradient is another one.
    """
    policy, encoder = tiny64
    groups = make_groups(encoder, sizes=(3, 3, 3), images=(1, 0, 2))
    accuracies = ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    rollout = [rewarded(group, [1.0] * len(right), right)
               for group, right in zip(groups, accuracies)]
    equal = torch.tensor([1.7] * 3)  # in fp32 its mean is not 1.7, and no advantage would be 0
    assert ((equal - equal.mean()) / (equal.std() + 1e-6)).abs().min() > 0.1
    rollout[1] = replace(rollout[1], totals=equal.tolist())
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        logp_old = [plain_token_logps(policy, [group]) for group in groups]  # (G, T) each
    logp_old = [old + 0.3 * torch.randn(old.shape, generator=noise).double() for old in logp_old]

    def moved(policy, asked, *args, **more):  # as if other updates had come before
        return padded([row for group in asked for row in logp_old[groups.index(group)]])

    monkeypatch.setattr(grpo, "no_grad_logps", moved)
    cfg = replace(CFG, max_tokens_per_micro_batch=budget)
    policies = policies_of(policy, KeepGradients(policy))
    batch = grpo.prepare_mini_batch(rollout, policies, Accelerator(cpu=True), cfg, is_first=False)
    assert len(batch.groups) == 2, "the group of equal rewards adds nothing"
    fast, sums = one_step(policy, batch, cfg)
    assert sums["clipped"] > 0

    bounds = (cfg.clip_low, cfg.clip_high)
    plain = loss_gradients(policy, grpo.plain_loss(policy, rollout, logp_old, *bounds))
    assert same_gradients(plain, fast, atol=1e-6)

    classic = 0.0
    for r, old in zip(rollout, logp_old):
        for i, completion in enumerate(r.group.completions):
            alone = Group(r.group.prompt, [completion])
            logp = plain_token_logps(policy, [alone])
            advantage = group_advantages(torch.tensor([r.totals]))[0, i : i + 1]
            terms = policy_loss(logp, old[i : i + 1, : len(completion)], advantage, None, *bounds)
            classic = classic + terms["loss"].mean() / 9
    assert not same_gradients(loss_gradients(policy, classic), plain, atol=1e-4)


def test_first_update_ratio_is_one(tiny):
    """Ratio exactly 1 and clip 0 before any step; after one on the same rollout, ratios move."""
    policy, encoder = tiny
    batch = step_batch(encoder, torch.float32)
    _, sums = one_step(policy, batch, CFG)
    assert sums["ratio"] == sums["tokens_passed"]
    assert sums["clipped"] == 0

    policies = policies_of(policy, torch.optim.SGD(policy.parameters(), lr=0.5))
    later = replace(batch, logp_old=no_grad_logps(policy, batch.groups, Accelerator(cpu=True), CFG))
    _, before = one_step(policy, later, CFG)
    assert abs(before["ratio"] / before["tokens_passed"] - 1) < 1e-6

    grpo.update(batch, policies, Accelerator(cpu=True), replace(CFG, grad_clip=1.0))
    _, after = one_step(policy, later, CFG)
    assert abs(after["ratio"] / after["tokens_passed"] - 1) > 1e-4


def test_masked_completions_count_nowhere(tiny64):
    """Under --mask_truncated a completion is in neither numerator nor denominator.

    Where all are masked the loss is 0, not nan, and no weight moves.
    """
    policy, encoder = tiny64
    batch = step_batch(encoder)
    without_second = batch.mask.clone()
    without_second[3:5] = 0
    masked_batch = mini_batch(batch.groups, batch.advantages, without_second)
    masked, sums = one_step(policy, masked_batch, CFG)

    rest = [0, 1, 2, 5, 6, 7]
    groups = [batch.groups[0], batch.groups[2]]
    left = mini_batch(groups, batch.advantages[rest], batch.mask[rest])
    alone, _ = one_step(policy, left, CFG)

    assert sums["tokens_passed"] == without_second.sum()
    assert same_gradients(masked, alone)

    nothing, _ = one_step(policy, replace(batch, mask=batch.mask * 0, normalizer_share=0.0), CFG)
    assert all(grad.abs().max() == 0 for grad in nothing.values())


def test_groups_without_gradient_change_nothing(tiny64):
    """A group of equal rewards is not passed through the model, and its tokens still count.

    fp64, 1e-12. Leaving its tokens out of the normaliser too, another algorithm, differs.
    """
    policy, encoder = tiny64
    groups = make_groups(encoder, sizes=(3, 3, 3), images=(1, 0, 2))
    accuracies = ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    rollout = [rewarded(group, [0.0] * 3, right) for group, right in zip(groups, accuracies)]

    policies = policies_of(policy, KeepGradients(policy))
    batch = grpo.prepare_mini_batch(rollout, policies, Accelerator(cpu=True), CFG, is_first=True)
    batch = replace(batch, advantages=batch.advantages.double(), mask=batch.mask.double())
    assert {id(group) for group in batch.groups} == {id(groups[0]), id(groups[2])}

    advantages = group_advantages(torch.tensor([r.totals for r in rollout])).flatten()
    whole = mini_batch(groups, advantages.double(), completion_mask(groups).double())
    assert batch.normalizer_share == whole.normalizer_share

    fast, sums = one_step(policy, batch, CFG)
    slow, all_sums = one_step(policy, whole, CFG)
    assert same_gradients(slow, fast, atol=1e-12)
    assert sums["loss"] == pytest.approx(all_sums["loss"], abs=1e-12)
    assert sums["tokens_passed"] < all_sums["tokens_passed"]

    other = replace(batch, normalizer_share=float(batch.mask.sum()))
    wrong, _ = one_step(policy, other, CFG)
    assert not same_gradients(slow, wrong, atol=1e-4)

    with_kl = replace(CFG, kl_beta=0.1)  # it pulls on all groups
    batch = grpo.prepare_mini_batch(rollout, policies, Accelerator(cpu=True), with_kl, True)
    assert len(batch.groups) == 3


def test_each_half_of_dr_grpo_changes_one_thing(tiny64):
    """--no_divide_by_std changes the advantages, --constant_normalizer scales the gradient."""
    policy, encoder = tiny64
    groups = make_groups(encoder, sizes=(3, 3), images=(1, 0))
    accuracies = ([1.0, 0.0, 0.0], [0.0, 1.0, 1.0])
    rollout = [rewarded(group, [0.0] * 3, right) for group, right in zip(groups, accuracies)]
    policies = policies_of(policy, KeepGradients(policy))

    def prepared(**flags) -> MiniBatch:
        cfg = replace(CFG, max_new_tokens=50, **flags)
        batch = grpo.prepare_mini_batch(rollout, policies, Accelerator(cpu=True), cfg, True)
        return replace(batch, advantages=batch.advantages.double(), mask=batch.mask.double())

    plain, centred = prepared(), prepared(divide_by_std=False)
    right = torch.tensor(accuracies[0] + accuracies[1])
    means = torch.tensor([1 / 3] * 3 + [2 / 3] * 3)
    assert torch.allclose(centred.advantages.float(), right - means)
    assert not torch.allclose(plain.advantages, centred.advantages)
    assert centred.normalizer_share == plain.normalizer_share == plain.mask.sum()

    constant = prepared(constant_normalizer=True)
    assert torch.equal(constant.advantages, plain.advantages)
    assert constant.normalizer_share == 2 * 3 * 50  # N * G * max_new_tokens
    by_tokens, _ = one_step(policy, plain, CFG)
    by_constant, _ = one_step(policy, constant, CFG)
    scale = float(plain.mask.sum()) / (2 * 3 * 50)
    assert same_gradients(by_constant, {name: g * scale for name, g in by_tokens.items()})


def test_unscored_completions_train_nothing(tiny):
    """A completion without a reward (nan) is in neither sum nor count, and no step is skipped."""
    policy, encoder = tiny
    groups = make_groups(encoder, sizes=(3, 3), images=(1, 0))
    rollout = [
        rewarded(groups[0], [0.0] * 3, [1.0, 0.0, None], totals=[1.0, 0.0, float("nan")]),
        rewarded(groups[1], [0.0] * 3, [0.0, 1.0, 0.0]),
    ]
    policies = policies_of(policy, torch.optim.SGD(policy.parameters(), lr=0.0))
    cfg = replace(CFG, updates_per_rollout=1)
    totals = train_on(rollout, policies, Accelerator(cpu=True), cfg)

    tokens = sum(len(c) for g in groups for c in g.completions)
    assert totals["tokens_passed"] == tokens - len(groups[0].completions[2])
    assert totals["normalizer_share"] == totals["tokens_passed"]
    assert totals["skipped_updates"] == 0
    assert totals["grad_norm"] > 0


def test_without_any_gradient_adamw_still_steps(tiny):
    """Where no group has a gradient, one filler pass gives zeros, and momentum moves the weights.

    Without any pass the gradients are None, and AdamW leaves every weight alone.
    """
    policy, encoder = tiny
    groups = make_groups(encoder, sizes=(3, 3), images=(1, 0))
    all_right = [rewarded(group, [0.0] * 3, [1.0] * 3) for group in groups]
    mixed = [rewarded(group, [0.0] * 3, [1.0, 0.0, 0.0]) for group in groups]

    policies = policies_of(policy, torch.optim.AdamW(policy.parameters(), lr=1e-3))
    cfg = replace(CFG, updates_per_rollout=1)
    train_on(mixed, policies, Accelerator(cpu=True), cfg)
    before = [p.clone() for p in policy.parameters()]
    sums = train_on(all_right, policies, Accelerator(cpu=True), cfg)

    assert sums["grad_norm"] == 0
    assert sums["skipped_updates"] == 0
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.parameters()))

    before = [p.clone() for p in policy.parameters()]
    policies.optimizer.zero_grad()
    policies.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters())), "the classic"


def test_gap_between_sampler_and_trainer(tiny):
    """By hand, and blind ratios: the gap is there although every ratio is 1."""
    logp_trainer = torch.tensor([[-1.0, -2.0, -0.5]])
    logp_sampler = torch.tensor([[-1.0, -1.7, -0.8]])  # ratios 1, 0.74 and 1.35
    gap = sampler_gap(logp_trainer, logp_sampler, 0.2, 0.28)
    assert torch.allclose(gap["gap"], torch.tensor([[0.0, 0.3, 0.3]]))
    assert gap["gap_outside"].tolist() == [[0.0, 1.0, 1.0]]
    ratio = torch.tensor([[0.0, -0.3, 0.3]]).exp()
    assert torch.allclose(gap["gap_k3"], ratio - 1 - ratio.log(), atol=1e-6)

    policy, encoder = tiny
    batch = step_batch(encoder, torch.float32)  # as if sampled with probability 1
    _, sums = one_step(policy, batch, CFG)
    assert sums["ratio"] == sums["tokens_passed"]
    assert sums["gap"] / sums["tokens_passed"] > 1


def test_tis_weighs_each_token(tiny64):
    """exp(trainer - sampler), capped and without gradient, times the token's loss."""
    policy, encoder = tiny64
    batch = step_batch(encoder)
    with torch.no_grad():
        logp = token_logps(policy, batch.groups)
    noise = torch.randn(logp.shape, generator=torch.Generator().manual_seed(3)).double()
    batch = replace(batch, logp_sampler=(logp + noise) * batch.mask)
    fast, _ = one_step(policy, batch, replace(CFG, tis=2.0))

    policy.zero_grad()
    weight = (-noise).exp().clamp(max=2.0)
    assert (weight == 2.0).any() and (weight < 2.0).any()
    logp = token_logps(policy, batch.groups)
    ratio = (logp - logp.detach()).exp()
    (-(ratio * batch.advantages[:, None] * weight * batch.mask).sum() / batch.mask.sum()).backward()
    slow = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    assert same_gradients(slow, fast)

    off, _ = one_step(policy, batch, CFG)
    assert not same_gradients(off, fast, atol=1e-4)


def test_no_step_on_nan(tiny):
    """A gradient that is not finite is counted, and every weight stays as it was."""
    policy, encoder = tiny
    batch = step_batch(encoder, torch.float32)
    batch = replace(batch, advantages=batch.advantages * float("nan"))
    before = [p.clone() for p in policy.parameters()]

    policies = policies_of(policy, torch.optim.AdamW(policy.parameters(), lr=1.0))
    sums = grpo.update(batch, policies, Accelerator(cpu=True), replace(CFG, grad_clip=1.0))

    assert sums["skipped_updates"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))


def test_kl_pulls_back_to_the_reference(tiny):
    """With --kl_beta a policy that has moved gets a gradient even where all advantages are 0."""
    policy, encoder = tiny
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        policy.vlm.lm_head.weight.mul_(1.3)

    batch = step_batch(encoder, torch.float32)
    batch = replace(batch, advantages=batch.advantages * 0)
    policies = policies_of(policy, torch.optim.SGD(policy.parameters(), lr=0.02))
    policies.reference = reference
    cfg = replace(CFG, kl_beta=1.0, grad_clip=1.0)

    kl = []
    for _ in range(4):
        sums = grpo.update(batch, policies, Accelerator(cpu=True), cfg)
        kl.append(sums["kl_ref"])

    assert kl[0] > 0
    assert kl[-1] < kl[0]


# --- The metrics of a step -----------------------------------------------------------------------


def summary_of(cfg=CFG):
    """Two groups whose every count is another number, summed up; their tokens stand for nothing."""
    completions = [[torch.arange(n) for n in lengths] for lengths in ((3, 5, 9), (2, 2, 4))]
    groups = [sampled(None, of_group) for of_group in completions]
    groups[1].stats[2][1] = 5.0  # an entropy
    nan = float("nan")
    rollout = [
        RewardedGroup(
            groups[0], [""] * 3, [False, True, True],
            [{"format": 1.0, "accuracy": 1.0}, {"format": 1.0, "accuracy": None},
             {"format": 0.0, "accuracy": 0.0}],
            [1.5, nan, 0.0],
        ),
        RewardedGroup(
            groups[1], [""] * 3, [False, False, False],
            [{"format": 1.0, "accuracy": 0.0}] * 3, [0.5, 0.5, 0.5],
        ),
    ]  # fmt: skip
    totals = Counter(
        tokens_passed=20, normalizer_share=40, loss=-4.0, ratio=22.0, clipped=3.0, kl_ref=1.0,
        gap=0.4, gap_k3=0.2, gap_outside=2.0, grad_norm=7.0, skipped_updates=1.0,
    )  # fmt: skip
    cfg = replace(cfg, updates_per_rollout=2)
    return grpo.summarize(rollout, totals, {"skipped_examples": 4}, Accelerator(cpu=True), cfg)


@pytest.mark.parametrize(
    "name, value",
    [
        ("reward", 3.0 / 5),  # 1.5 + 0 + 0.5 * 3, of the five that could be scored
        ("format", 5 / 6),  # of all six
        ("accuracy", 1 / 5),  # of the five that could be scored
        ("length", 25 / 6),
        ("trunc%", 100 * 2 / 6),
        ("zero_std%", 50.0),  # the second of two groups
        ("unscored", 1),
        ("skipped_examples", 4),
        ("entropy", 5 / 25),  # over all tokens
        ("loss", -4 / 40),  # by what the gradient was divided by
        ("ratio", 22 / 20),  # over the tokens of groups with a gradient, as those below
        ("clip%", 100 * 3 / 20),
        ("gap", 0.4 / 20),
        ("gap_k3", 0.2 / 20),
        ("gap_outside%", 100 * 2 / 20),
        ("kl_ref", 1 / 20),  # there only with a reference
        ("grad_norm", 7 / 1),  # mean over the two updates but the skipped one
        ("skipped_updates", 1.0),
    ],
)
def test_summary_of_a_step(name, value):
    """Field by field, by hand: what is summed, and what it is divided by."""
    assert summary_of()[name] == pytest.approx(value)


def test_summary_has_no_other_field():
    names = {name for mark in test_summary_of_a_step.pytestmark for name, _ in mark.args[1]}
    assert set(summary_of()) == names


# --- The stage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, name",
    [
        ({"prompts_per_step": 5, "updates_per_rollout": 2}, "prompts_per_step"),
        ({"group_size": 1}, "group_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"clip_high": float("nan")}, "clip_high"),
        ({"clip_low": 1.0}, "clip_low"),
        ({"schedule": "linear"}, "schedule"),
        ({"precision": "fp16"}, "precision"),
    ],
)
def test_every_flag_combination_that_cannot_work_is_refused(wrong, name):
    """The message names the flag."""
    with pytest.raises(ValueError, match=f"--{name}"):
        Config(**wrong)


def test_each_rollout_samples_the_newest_weights(tmp_path, monkeypatch):
    """In mixed precision a copy samples: it is brought up to date before every rollout.

    Otherwise it would stay the start model for ever.
    """
    order = []
    collect_rollout = grpo.collect_rollout

    def watched_rollout(*args, **more):
        order.append("rollout")
        return collect_rollout(*args, **more)

    monkeypatch.setattr(grpo, "refresh", lambda sampler, policy: order.append("refresh"))
    monkeypatch.setattr(grpo, "collect_rollout", watched_rollout)
    cfg = replace(
        CFG,
        steps=2,
        prompts_per_step=2,
        group_size=2,
        max_new_tokens=4,
        max_examples=4,
        precision="no",
        run_dir=str(tmp_path / "run"),
    )
    grpo.main(cfg)

    assert order == ["refresh", "rollout"] * 2


def test_a_step_is_logged_over_all_its_updates(start, tmp_path, monkeypatch):
    """Two updates of a rollout: loss and tokens are added up, the norm is their mean.

    And a group is recorded after the first step, then every --sample_every steps.
    """
    updates = iter([{"loss": 1.0, "grad_norm": 2.0}, {"loss": 3.0, "grad_norm": 4.0}] * 5)

    def update(*args):
        fixed = {"normalizer_share": 1.0, "tokens_passed": 1.0, "skipped_updates": 0.0,
                 "ratio": 1.0, "clipped": 0.0, "gap": 0.0, "gap_k3": 0.0, "gap_outside": 0.0}
        return {**fixed, **next(updates)}

    monkeypatch.setattr(grpo, "update", update)
    grpo.main(small_grpo(start, tmp_path / "run", steps=5, updates_per_rollout=2, sample_every=2))
    for logged in read_jsonl(tmp_path / "run/metrics.jsonl"):
        assert logged["loss"] == 2.0
        assert logged["grad_norm"] == 3.0
    samples = read_jsonl(tmp_path / "run/samples.jsonl")
    assert sorted({sample["step"] for sample in samples}) == [1, 2, 4]


def test_a_weight_without_its_reward_is_refused(start, tmp_path):
    """A misspelt name would leave the real reward at its weight of 1, silently."""
    with pytest.raises(ValueError, match="--reward_weights: no reward fromat .* format, accuracy"):
        grpo.main(grpo_config(start, tmp_path / "run", reward_weights="fromat=0.5"))
