"""Sharded, DDP or alone: the same gradients, steps, samples and files, and no rank waits for ever.

The two processes are started once for all quick checks: `check_ranks` runs these one by one.
"""

import copy
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp as fsdp
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

import dpo_sft
import grpo
from common import no_grad_logps, plain_token_logps, token_logps
from conftest import (
    LiveBytes,
    fresh_policy,
    keep_fp64,
    loss_gradients,
    make_groups,
    mini_batch,
    small_grpo,
)
from harness.ranks import make_accelerator
from harness.run import read_jsonl
from model import sharding
from model.loading import load_model, save_model
from model.memory import HEAD, LAYER, ROOT, Sizes, Work, parts
from model.policies import build_policies
from model.records import Group, completion_mask
from model.sampling import refresh, sample_groups
from model.sharding import is_shard, is_sharded, load_optimizer, save_optimizer, whole
from test_memory import V, at, random_policy, text_prompt
from test_run import write_pairs
from two_ranks import WORLD, on_two_ranks

KL_BETA = 0.1
GRPO = replace(grpo.Config(), grad_clip=1e9, precision="no")
DPO = replace(dpo_sft.Config(), grad_clip=1e9, precision="no")
MODELS = [(True, True), (False, False)]  # (tied head, frozen tower)

# --- Models and work -----------------------------------------------------------------------------


def make_policy(tied: bool, frozen: bool):
    """(policy, encoder) in fp64, the same in every process."""
    policy, encoder = fresh_policy()
    if not tied:
        torch.manual_seed(1)
        head = policy.vlm.lm_head
        head.weight = nn.Parameter(0.15 * torch.randn(head.weight.shape))
        for config in (policy.vlm.config, policy.vlm.config.text_config):
            config.tie_word_embeddings = False
    policy.vlm.model.visual.requires_grad_(not frozen)
    return policy.double(), encoder


def make_reference(policy):
    """Another frozen model, not far away."""
    reference = copy.deepcopy(policy).requires_grad_(False)
    torch.manual_seed(2)
    for weight in reference.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    return reference


def grpo_work(encoder):
    """Groups with 1, 0 and 2 images, and the advantages of their 3, 2 and 3 completions."""
    groups = make_groups(encoder, sizes=(3, 2, 3), images=(1, 0, 2))
    advantages = [1.0, -0.5, -0.5, 0.7, -0.7, 0.0, 1.1, -1.1]
    return groups, torch.tensor(advantages, dtype=torch.float64)


def dpo_work(encoder):
    pairs = make_groups(encoder, sizes=(2, 2, 2), images=(1, 0, 2))
    return pairs, torch.linspace(-30, -10, 6, dtype=torch.float64)


def plain_gradients(policy, encoder) -> dict[str, dict]:
    """The oracle: each loss from its formula, over HF's own forward of each completion alone."""
    groups, advantages = grpo_work(encoder)
    mask = completion_mask(groups)
    logp = plain_token_logps(policy, groups)
    with torch.no_grad():
        d = plain_token_logps(make_reference(policy), groups) - logp.detach()
    # At ratio 1 the surrogate's gradient is that of -A logp; that of k3 is (1 - e^d) grad logp.
    per_token = -advantages[:, None] * logp + KL_BETA * (1 - d.exp()) * logp
    found = {"grpo": loss_gradients(policy, (per_token * mask).sum() / mask.sum())}

    pairs, ref = dpo_work(encoder)
    mask = completion_mask(pairs)
    logp = plain_token_logps(policy, pairs)
    sums = (logp * mask).sum(-1)
    margin = DPO.beta * ((sums[0::2] - ref[0::2]) - (sums[1::2] - ref[1::2]))
    sft = -sums[0::2] / mask[0::2].sum(-1)
    return {**found, "dpo": loss_gradients(policy, (sft - F.logsigmoid(margin)).mean())}


# --- One way of running it -----------------------------------------------------------------------


class KeepGradients(torch.optim.SGD):
    """An optimizer that keeps the whole gradients, by name, and leaves the weights."""

    def __init__(self, policy):
        super().__init__(policy.parameters(), lr=0.0)
        self.policy = policy

    def step(self, closure=None):
        named = self.policy.named_parameters()
        self.grads = {name: whole(w.grad).clone() for name, w in named if w.grad is not None}


def prepared(tied: bool, frozen: bool, shard: bool, accelerator, **more):
    """(policies, encoder), made as the stages make them; the gradients are kept."""
    policy, encoder = make_policy(tied, frozen)
    reference = make_reference(policy)
    cfg = replace(GRPO, shard=shard, freeze_vision=frozen)
    policies = build_policies(policy, cfg, accelerator, **more)
    if shard:
        sharding.shard(reference)
    return replace(policies, optimizer=KeepGradients(policies.bare), reference=reference), encoder


def gradients_of(policies, encoder, accelerator, budget: int) -> dict[str, dict]:
    """The gradients of a GRPO and a DPO update.

    Of two ranks the first has two groups with images, the second one of text only, or no pair.
    """
    policies.bare.gradient_checkpointing = budget < 100
    rank, ranks = accelerator.process_index, accelerator.num_processes
    groups, advantages = grpo_work(encoder)
    pairs, ref = dpo_work(encoder)
    filler = pairs[0]
    if ranks == 2:
        mine = [[0, 2], [1]][rank]
        lines = [[0, 1, 2, 5, 6, 7], [3, 4]][rank]
        groups, advantages = [groups[i] for i in mine], advantages[lines]
        pairs, ref = (pairs, ref) if rank == 0 else ([], ref[:0])

    batch = mini_batch(groups, advantages, completion_mask(groups).double())
    cfg = replace(GRPO, max_tokens_per_micro_batch=budget, kl_beta=KL_BETA)
    grpo.update(batch, policies, accelerator, cfg)
    found = {"grpo": policies.optimizer.grads}

    # Stage 2b scores its reference before it trains, and has none in the loop.
    policies = replace(policies, reference=None)
    cfg = replace(DPO, max_tokens_per_micro_batch=budget)
    dpo_sft.update(pairs, ref, filler, policies, accelerator, cfg)
    return {**found, "dpo": policies.optimizer.grads}


def assert_close(found: dict[str, dict], wanted: dict[str, dict], what: str) -> None:
    for loss, gradients in wanted.items():
        assert found[loss].keys() == gradients.keys(), f"{what} {loss}"
        for name, gradient in gradients.items():
            error = (found[loss][name] - gradient).abs().max()
            assert error < 1e-9, f"{what} {loss} {name}: {error}"


# --- The quick checks, on two ranks --------------------------------------------------------------


def check_ranks(rank, folder):
    keep_fp64()
    accelerator = make_accelerator(GRPO)
    assert accelerator.num_processes == 2
    for check in CHECKS:
        check(Path(folder), accelerator)
        (Path(folder) / f"{check.__name__}{rank}").touch()


def check_gradients(folder, accelerator):
    for tied, frozen in MODELS:
        wanted = torch.load(folder / f"{tied}.pt", weights_only=True)
        for shard in (False, True):
            policies, encoder = prepared(tied, frozen, shard, accelerator)
            assert is_sharded(policies.bare) == shard
            for budget in (10_000, 60):
                found = gradients_of(policies, encoder, accelerator, budget)
                assert_close(found, wanted, f"tied {tied}, sharded {shard}, budget {budget}")


def check_scoring(folder, accelerator):
    """The first rank scores six completions one by one, the second has no group at all."""
    policies, encoder = prepared(True, True, True, accelerator)
    groups = make_groups(encoder, sizes=(6,), images=(1,))
    mine = groups if accelerator.is_main_process else []
    cfg = replace(GRPO, max_tokens_per_micro_batch=1)
    logp = no_grad_logps(policies.trained, mine, accelerator, cfg, filler=groups[0])
    if accelerator.is_main_process:
        policy, _ = make_policy(True, True)
        assert torch.allclose(logp, plain_token_logps(policy, groups), atol=1e-9)

    cached = policies.bare.feature_cache
    assert list(cached) == [groups[0].prompt], "the prompt was rebuilt on its way"


def check_old_weights(folder, accelerator):
    """Gradients, a scoring, a step, a scoring: the second one sees the step.

    With torch's default the root stays whole after the first scoring, and the second uses that.
    """

    def scores(policy) -> torch.Tensor:
        optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
        token_logps(policy, groups).sum().backward()
        no_grad_logps(policy, groups, accelerator, GRPO)
        optimizer.step()
        return no_grad_logps(policy, groups, accelerator, GRPO)

    policy, encoder = make_policy(True, True)
    groups = make_groups(encoder, sizes=(2,), images=(1,))
    ours, default = copy.deepcopy(policy), copy.deepcopy(policy)
    sharding.shard(ours)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsdp, "fully_shard", without("reshard_after_forward", fsdp.fully_shard))
        sharding.shard(default)
    wanted = scores(policy)
    assert torch.allclose(scores(ours), wanted, atol=1e-9)
    assert not torch.allclose(scores(default), wanted, atol=1e-3)


def without(name: str, function):
    return lambda *args, **more: function(*args, **{k: more[k] for k in more if k != name})


def check_a_step(folder, accelerator):
    """After one step of AdamW the sharded weights are those of DDP, and so is what they compute."""
    for tied, frozen in MODELS:
        logps, weights = [], []
        for shard in (False, True):
            policies, encoder = prepared(tied, frozen, shard, accelerator, samples=True)
            groups = make_groups(encoder, sizes=(2, 2), images=(1, 0))
            score = lambda: no_grad_logps(policies.trained, groups, accelerator, GRPO)  # noqa: E731
            before = score()
            trained = [w for w in policies.bare.parameters() if w.requires_grad]
            policies.optimizer = torch.optim.AdamW(trained, lr=1e-3)
            step(policies, groups, accelerator, GRPO)
            logps.append(score())
            assert (logps[-1] - before).abs().max() > 1e-3, "the step is not seen"
            named = policies.bare.named_parameters()
            weights.append({name: whole(w).detach().clone() for name, w in named})

        assert torch.allclose(*logps, atol=1e-9)
        for name, weight in weights[0].items():
            assert torch.allclose(weights[1][name], weight, atol=1e-9), name
        check_sampler(policies, groups, accelerator)


def step(policies, groups, accelerator, cfg):
    """A GRPO update over these groups on this rank, after a scoring without gradient."""
    count = sum(len(group.completions) for group in groups)
    advantages = torch.linspace(-1, 1, count, dtype=torch.float64)
    batch = mini_batch(groups, advantages, completion_mask(groups).double())
    policies.reference = None
    return grpo.update(batch, policies, accelerator, cfg)


def check_sampler(policies, groups, accelerator):
    """The sampler is whole, has the new weights, and draws while the other rank does nothing."""
    sampler = policies.sampler
    assert not is_sharded(sampler) and sampler is not policies.bare
    prompts = [group.prompt for group in groups]
    if sampler.vlm.model.visual is not None:  # features that will be out of date
        sampler.image_features(prompts)

    refresh(sampler, policies.bare)
    logp = no_grad_logps(policies.trained, groups, accelerator, GRPO)
    if accelerator.is_main_process:
        with torch.no_grad():
            sampled = token_logps(sampler, groups)
        assert torch.allclose(sampled.double(), logp, atol=1e-4)  # the sampler is in fp32
        drawn = sample_groups(sampler, prompts, 2, max_new_tokens=3, temperature=1.0)
        assert len(drawn) == len(prompts)


def check_files(folder, accelerator):
    """A sharded policy is saved as the whole one; its optimizer is restored to the bit."""
    for tied, frozen in MODELS:
        policies, encoder = prepared(tied, frozen, True, accelerator)
        trained = [w for w in policies.bare.parameters() if w.requires_grad]
        policies.optimizer = optimizer = torch.optim.AdamW(trained, lr=1e-3)
        groups = make_groups(encoder, sizes=(2, 2), images=(1, 0))
        step(policies, groups, accelerator, GRPO)

        writes = accelerator.is_main_process
        save_model(policies.bare, encoder, folder / f"model{tied}", writes)
        state = save_optimizer(optimizer, folder / f"optimizer{tied}")
        if writes:
            torch.save(state, folder / f"state{tied}.pt")
        accelerator.wait_for_everyone()

        again, _ = load_model(str(folder / f"model{tied}"), dtype=torch.double)
        mine = dict(again.named_parameters())
        for name, weight in policies.bare.named_parameters():
            assert torch.equal(whole(weight), mine[name]), name

        fresh = torch.optim.AdamW(trained, lr=1e-3)
        state = torch.load(folder / f"state{tied}.pt", weights_only=True)
        load_optimizer(fresh, state, folder / f"optimizer{tied}")
        for weight in trained:
            for name, moment in optimizer.state[weight].items():
                assert torch.equal(whole(moment), whole(fresh.state[weight][name])), name
            assert is_shard(fresh.state[weight]["exp_avg"])


def check_memory(folder, accelerator):
    """The bytes that live in a pass, beside weights, gradients and optimizer, as `--plan` says."""
    S, T, completions = 100, 60, 3
    for bf16, checkpointing in ((False, False), (True, True)):
        policy = random_policy(folder / "wide")
        policy.gradient_checkpointing = checkpointing
        sharding.shard(policy)
        group = Group(text_prompt(S), [torch.randint(10, V, (T,)) for _ in range(completions)])
        token_logps(policy, [group]).sum().backward()  # gradients are there from now on
        tensors = [x for w in policy.parameters() for x in (w, w.grad) if x is not None]
        made_before = [x.to_local() if is_shard(x) else x for x in tensors]
        with LiveBytes(made_before, resized=True) as watch:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                token_logps(policy, [group]).sum().backward()

        work = Work(
            True, bf16, 2, S, T, max_pass_tokens=S + completions * T, checkpointing=checkpointing,
            max_logits=2**24, shard=True,
        )  # fmt: skip
        found = [p for p in parts(Sizes.of(str(folder / "wide")), work) if p.name != "gradients"]
        planned = max(at(found, moment) for moment in (HEAD, LAYER, ROOT))
        assert planned == pytest.approx(watch.peak, rel=0.1), (planned, watch.peak)


CHECKS = (
    check_memory, check_gradients, check_scoring, check_old_weights, check_a_step, check_files,
)  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which two ranks have run the checks; an error if one has failed."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        keep_fp64(patch.setattr)
        for tied, frozen in MODELS:
            torch.save(plain_gradients(*make_policy(tied, frozen)), folder / f"{tied}.pt")
    on_two_ranks(check_ranks, str(folder))
    return folder


def passed(folder, check) -> bool:
    return all((folder / f"{check.__name__}{rank}").exists() for rank in range(WORLD))


def test_all_ways_give_one_gradient(done):
    """DDP and sharded, tied and untied head, frozen and trained tower, one and many micro-batches.

    fp64, 1e-9, against the formulas of the losses over HF's own forward.
    """
    assert passed(done, check_gradients)


def test_scoring_does_not_hang(done):
    assert passed(done, check_scoring)


def test_no_forward_runs_on_old_weights(done):
    assert passed(done, check_old_weights)


def test_a_sharded_step_is_the_step_of_ddp(done):
    """Its weights, its log-probabilities, and a sampler that has them and that nobody waits for."""
    assert passed(done, check_a_step)


def test_a_sharded_update_is_as_planned(done):
    """Within 10 % of what really lives on gloo: gathered layers, root and gradients as well."""
    assert passed(done, check_memory)


def test_files_of_a_sharded_run(done):
    """Stock transformers opens the model; each rank wrote its shards of the optimizer."""
    assert passed(done, check_files)
    for tied, _ in MODELS:
        stock = AutoModelForImageTextToText.from_pretrained(done / f"model{tied}")
        same = stock.lm_head.weight is stock.model.language_model.embed_tokens.weight
        assert same == tied
        files = os.listdir(done / f"optimizer{tied}")
        assert len(files) == WORLD and all(name.endswith(".safetensors") for name in files)


# --- One rank ------------------------------------------------------------------------------------


@pytest.fixture
def alone():
    """What `connect_alone` connects is left again."""
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("tied, frozen", MODELS)
def test_one_rank_alone_gives_it_too(monkeypatch, alone, tied, frozen):
    """A single process may be sharded as well: all weights are in its one shard."""
    keep_fp64(monkeypatch.setattr)
    wanted = plain_gradients(*make_policy(tied, frozen))
    accelerator = make_accelerator(GRPO)
    policies, encoder = prepared(tied, frozen, True, accelerator)
    for budget in (10_000, 60):
        found = gradients_of(policies, encoder, accelerator, budget)
        assert_close(found, wanted, f"budget {budget}")


def test_sharding_with_lora_is_refused():
    for stage in (grpo, dpo_sft):
        with pytest.raises(ValueError, match="--shard with --lora_rank: not built"):
            stage.Config(shard=True, lora_rank=8)


# --- Runs ----------------------------------------------------------------------------------------


def run(rank, cfg):
    {grpo.Config: grpo, dpo_sft.Config: dpo_sft}[type(cfg)].main(cfg)


def whole_weights_of(folder) -> dict:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.slow
def test_sharded_runs(start, tmp_path):
    """GRPO with a KL term, resumed to the bit; DPO; another number of processes is refused."""
    more = dict(steps=3, kl_beta=0.05, shard=True, freeze_vision=False)
    whole_run = small_grpo(start, tmp_path / "whole", **more)
    cut = small_grpo(start, tmp_path / "cut", **{**more, "steps": 2})
    pairs = write_pairs(tmp_path / "pairs.parquet", 7)
    pairs = dpo_sft.Config(
        model=start, pairs=pairs, run_dir=str(tmp_path / "dpo"), batch_pairs=3, shard=True
    )
    for cfg in (whole_run, cut, replace(cut, steps=3, resume=True), pairs):
        on_two_ranks(run, cfg)

    weights = [whole_weights_of(tmp_path / name) for name in ("whole", "cut")]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
    steps = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut", "dpo")]
    assert [line["reward"] for line in steps[0]] == [line["reward"] for line in steps[1]]
    assert steps[2][0]["dpo"] == pytest.approx(math.log(2), abs=1e-4)  # policy and reference agree
    assert len(list((tmp_path / "whole").glob("optimizer_*"))) == 1, "old shards are dropped"

    with pytest.raises(ValueError, match="--resume.*saved by 2 processes, now 1"):
        grpo.main(replace(cut, steps=4, resume=True))
