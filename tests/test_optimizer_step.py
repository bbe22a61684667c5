"""The one optimizer step that both losses share: passes, normaliser, skipping, and its settings."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

import common
import dpo_sft
import grpo
from common import micro_batches_of, optimizer_step, plain_optimizer_step, token_logps
from conftest import KeepGradients, make_groups, policies_of
from model.policies import build_policies

CFG = SimpleNamespace(grad_clip=1e9, max_skipped=3)


def negative_logp(policies):
    """A loss for `optimizer_step`: minus the log-probabilities of a micro-batch, summed."""

    def loss_and_metrics(micro):
        logp = token_logps(policies.trained, micro.groups)
        loss = -logp.sum()
        return loss, {"nll": loss, "completions": torch.tensor(float(len(logp)))}

    return loss_and_metrics


def one_step(policies, groups, loss=None, max_tokens=10_000):
    return optimizer_step(
        policies,
        Accelerator(cpu=True),
        micro_batches_of(groups, max_tokens),
        loss or negative_logp(policies),
        normalizer=7.0,
        filler=groups[0],
        cfg=CFG,
    )


@pytest.mark.parametrize("grad_clip", [1e9, 0.1])
def test_optimizer_step_equals_the_plain_version(tiny64, grad_clip):
    """Two steps of AdamW in three micro-batches each, with and without clipping: the same weights.

    With each micro-batch divided by its own count, the classic mistake, they are others.
    """
    policy, encoder = tiny64
    groups = make_groups(encoder, sizes=(3, 2, 3), images=(1, 0, 2))
    cfg = replace(grpo.Config(), grad_clip=grad_clip)

    def weights_after(take_step) -> list[torch.Tensor]:
        trained = copy.deepcopy(policy)
        policies = policies_of(trained, torch.optim.AdamW(trained.parameters(), lr=1e-3))
        for _ in range(2):
            batches = micro_batches_of(groups, 40)
            assert len(batches) >= 3
            take_step(policies, batches)
        return [p.detach() for p in trained.parameters()]

    def ours(policies, batches):
        optimizer_step(policies, Accelerator(cpu=True), batches, negative_logp(policies),
                       normalizer=7.0, filler=groups[0], cfg=cfg)

    def plain(policies, batches):
        plain_optimizer_step(policies, batches, negative_logp(policies), normalizer=7.0,
                             grad_clip=grad_clip)

    def classic(policies, batches):
        def mean_of(micro):
            loss, metrics = negative_logp(policies)(micro)
            return loss / sum(len(g.completions) for g in micro.groups), metrics

        plain_optimizer_step(policies, batches, mean_of, normalizer=1.0, grad_clip=grad_clip)

    found, wanted, wrong = weights_after(ours), weights_after(plain), weights_after(classic)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found, wanted))
    assert not all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(wrong, wanted))


# --- Filler passes ------------------------------------------------------------------------------


@pytest.mark.parametrize("num_batches", [0, 1])
def test_filler_passes_add_nothing(tiny, monkeypatch, num_batches):
    """Another rank has three micro-batches: here two or three passes are fillers, and add zero."""
    policy, encoder = tiny
    groups = make_groups(encoder)
    policies = policies_of(policy, KeepGradients(policy))
    plain = one_step(policies, groups)
    wanted = dict(policies.optimizer.grads)

    monkeypatch.setattr(common, "gather_objects", lambda value, accelerator: [value, 3])
    batches = micro_batches_of(groups, 10_000)[:num_batches]
    sums = optimizer_step(
        policies,
        Accelerator(cpu=True),
        batches,
        negative_logp(policies),
        normalizer=7.0,
        filler=groups[0],
        cfg=CFG,
    )
    if num_batches:
        assert sums["nll"] == plain["nll"]
        assert all(torch.equal(policies.optimizer.grads[n], g) for n, g in wanted.items())
    else:
        assert "nll" not in sums
        assert all(g.abs().max() == 0 for g in policies.optimizer.grads.values())


def test_an_inf_in_a_filler_pass_does_not_poison_the_step(tiny, monkeypatch):
    """The filler pass never computes the loss.

    Zero times an infinite loss, the classic way to write it, is nan, and so is its gradient.
    """
    policy, encoder = tiny
    groups = make_groups(encoder)
    policies = policies_of(policy, KeepGradients(policy))
    calls = []

    def loss_and_metrics(micro):
        calls.append(micro)
        assert len(calls) == 1, "a second call would be the filler pass"
        return negative_logp(policies)(micro)

    monkeypatch.setattr(common, "gather_objects", lambda value, accelerator: [value, 2])
    sums = one_step(policies, groups, loss_and_metrics)
    assert sums["skipped_updates"] == 0
    assert math.isfinite(sums["grad_norm"])

    logp = torch.tensor([500.0], requires_grad=True)
    classic = 0.0 * logp.exp().sum()
    classic.backward()
    assert classic.isnan() and logp.grad.isnan()


# --- Metrics -------------------------------------------------------------------------------------


def test_metrics_wait_for_the_device_once_a_step(tiny):
    """Reading a number back makes a GPU wait. As often with ten micro-batches as with one."""
    policy, encoder = tiny
    groups = make_groups(encoder, sizes=(4, 4), images=(0, 0))
    policies = policies_of(policy, KeepGradients(policy))

    class CountReads(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                self.reads += 1
            return function(*args, **(kwargs or {}))

    reads = []
    for max_tokens in (10_000, 1):
        fixed = micro_batches_of(groups, max_tokens)
        losses = {id(b): negative_logp(policies)(b) for b in fixed}  # the loss's own reads are here
        with CountReads() as count:
            optimizer_step(
                policies,
                Accelerator(cpu=True),
                fixed,
                lambda b, losses=losses: losses[id(b)],
                normalizer=7.0,
                filler=groups[0],
                cfg=CFG,
            )
        reads.append(count.reads)
    assert len(micro_batches_of(groups, 1)) == 8
    assert reads[0] == reads[1] > 0


# --- Skipping ------------------------------------------------------------------------------------


def test_without_a_limit_of_skipped_steps_a_good_step_is_no_error(tiny):
    """0 is no limit, as for other flags; a count of 0 had reached it after a good step."""
    policies = policies_of(tiny[0], torch.optim.SGD(tiny[0].parameters(), lr=0.0))
    for grad_norm, skipped in ((1.0, 0), (math.nan, 1), (math.nan, 2), (1.0, 0)):
        common.count_skipped(policies, math.isfinite(grad_norm), max_skipped=0)
        assert policies.skipped_in_a_row == skipped


def test_a_run_of_skipped_steps_stops_with_a_sentence(tiny):
    """After --max_skipped in a row, with no weight changed. A good step starts the count again."""
    policy, encoder = tiny
    groups = make_groups(encoder, sizes=(1,), images=(0,))
    policies = policies_of(policy, torch.optim.SGD(policy.parameters(), lr=0.0))
    before = [p.clone() for p in policy.parameters()]

    def bad(micro):
        logp = token_logps(policies.trained, micro.groups)
        return logp.sum() * float("nan"), {}

    for loss in (bad, bad, None, bad, bad):
        sums = one_step(policies, groups, loss)
        assert sums["skipped_updates"] == (loss is bad)
        assert math.isfinite(sums["grad_norm"])

    with pytest.raises(ValueError, match="3 updates in a row .* --resume"):
        one_step(policies, groups, bad)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))


# --- The optimizer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, betas", [(grpo.Config, (0.9, 0.95)), (dpo_sft.Config, (0.9, 0.999))]
)
def test_betas_of_adamw_are_flags(tiny, config, betas):
    """GRPO has MM-EUREKA's, DPO LLaMA-Factory's, and a flag changes either."""
    policy, _ = tiny
    accelerator = Accelerator(cpu=True)
    policies = build_policies(policy, config(), accelerator)
    assert policies.optimizer.param_groups[0]["betas"] == betas

    cfg = replace(config(), adam_beta1=0.8, adam_beta2=0.88)
    policies = build_policies(policy, cfg, accelerator)
    assert policies.optimizer.param_groups[0]["betas"] == (0.8, 0.88)
