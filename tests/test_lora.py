"""LoRA: gradients equal autograd's through the merged model, the base never moves, PEFT's files."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.func import functional_call
from torch.utils.checkpoint import CheckpointError
from transformers import AutoModelForImageTextToText

import dpo_sft
import grpo
from common import score_groups, token_logps
from conftest import KeepGradients, fresh_policy, make_groups, mini_batch, policies_of, small_grpo
from harness.run import read_jsonl
from model.loading import load_model, save_model
from model.lora import LoraLinear, adapters_off, add_adapters, load_adapters, lora_linears
from model.records import completion_mask
from model.sampling import refresh, sample_groups, sampling_copy
from test_dpo_sft import pair_record, write_table
from test_ranks import (
    WORLD,
    close,
    fp64_policy,
    grpo_gradients,
    on_two_ranks,
    share_of,
    step_inputs,
    wrapped,
)
from test_run import same_weights, stripped

ALL = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
RANK, ALPHA = 4, 6
SCALE = ALPHA / RANK
CFG = replace(grpo.Config(), grad_clip=1e9)


def adapt(policy, targets=ALL, moved=True):
    """Give a policy adapters, in its own dtype; `moved`: B is no longer 0, as after some steps."""
    add_adapters(policy, RANK, ALPHA, targets, seed=0)
    generator = torch.Generator().manual_seed(1)
    for linear in lora_linears(policy).values():
        if moved:
            linear.lora_B.data = 0.1 * torch.randn(linear.lora_B.shape, generator=generator)
        if linear.weight.dtype == torch.float64:
            linear.lora_A.data, linear.lora_B.data = linear.lora_A.double(), linear.lora_B.double()
    return policy


# --- One linear, one model -----------------------------------------------------------------------


def test_it_starts_as_its_base(tiny):
    """B is 0: not a bit of any log-probability changes. A spreads as a linear of PyTorch does."""
    policy, encoder = tiny
    groups = make_groups(encoder)
    with torch.no_grad():
        before = token_logps(policy, groups)
        adapt(policy, moved=False)
        assert torch.equal(token_logps(policy, groups), before)

    down = policy.vlm.model.language_model.layers[0].mlp.down_proj
    bound = down.in_features**-0.5
    assert 0.9 * bound < down.lora_A.abs().max() <= bound
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("targets", [ALL, "q_proj,v_proj"])
def test_gradients_equal_those_through_the_merged_model(tiny64, targets):
    """fp64: what A and B get is what autograd gives for W + (alpha / r) B A put in W's place.

    The classic slip, B A without alpha / r, is another model.
    """
    policy, encoder = tiny64
    plain = copy.deepcopy(policy)
    adapt(policy, targets)
    groups = make_groups(encoder)
    weights = torch.rand(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(logp):
        return (logp * weights[: len(logp), : logp.shape[1]]).sum()

    loss(token_logps(policy, groups)).backward()

    for scale in (SCALE, 1.0):
        pairs = {}  # name of the linear -> A, B of the oracle
        merged = dict(plain.named_parameters())
        for name, linear in lora_linears(policy).items():
            A, B = (x.detach().clone().requires_grad_() for x in (linear.lora_A, linear.lora_B))
            pairs[name] = A, B
            merged[f"{name}.weight"] = linear.weight + scale * (B @ A)
        loss(functional_call(plain, merged, (score_groups, groups, 1.0))).backward()

        for name, linear in lora_linears(policy).items():
            A, B = pairs[name]
            assert A.grad.abs().max() > 1e-3 and B.grad.abs().max() > 1e-3
            same = [
                torch.allclose(linear.lora_A.grad, A.grad, atol=1e-10),
                torch.allclose(linear.lora_B.grad, B.grad, atol=1e-10),
            ]
            assert all(same) == (scale == SCALE)
    frozen = [p for n, p in policy.named_parameters() if "lora" not in n]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert len(pairs) == 2 * len(targets.split(","))


def test_adapters_off_is_the_base_to_the_bit(tiny):
    """Off equals the base, afterwards they are on again, also where the pass ends with an error."""
    policy, encoder = tiny
    groups = make_groups(encoder)
    with torch.no_grad():
        base = token_logps(policy, groups)
        adapt(policy)
        on = token_logps(policy, groups)
        with pytest.raises(ZeroDivisionError), adapters_off(policy):
            assert torch.equal(token_logps(policy, groups), base)
            1 / 0
        assert torch.equal(token_logps(policy, groups), on)
    assert not torch.allclose(on, base, atol=1e-2)


def test_reference_pass_between_forward_and_backward(tiny):
    """With checkpointing, layers are computed again in backward: by then adapters are on again.

    The classic slip: backward while they are off. Here torch notices, since less is kept.
    """
    policy, encoder = tiny
    adapt(policy)
    groups = make_groups(encoder)
    grads = []
    for checkpointing in (False, True):
        policy.gradient_checkpointing = checkpointing
        policy.zero_grad()
        logp = token_logps(policy, groups)
        with torch.no_grad(), adapters_off(policy):
            token_logps(policy, groups)
        logp.sum().backward()
        grads.append([p.grad.clone() for p in policy.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*grads))

    logp = token_logps(policy, groups)
    with pytest.raises(CheckpointError), adapters_off(policy):
        logp.sum().backward()


# --- bf16 bases ----------------------------------------------------------------------------------


def to_bf16(policy):
    """Frozen weights in bf16, as `load_model(dtype=...)` reads them: no buffer becomes bf16."""
    for weight in policy.parameters():
        weight.data = weight.data.bfloat16()
    return policy


def test_a_bf16_base_computes_as_fp32_weights_do(tiny):
    """Under autocast, to the bit: the residual stream is fp32 either way.

    Left to itself, a bf16 embedding makes a bf16 stream, which is rounded in every layer.
    """
    policy, encoder = tiny
    groups = make_groups(encoder)
    full = copy.deepcopy(policy)
    for weight in full.parameters():
        weight.data = weight.data.bfloat16().float()
    adapt(to_bf16(policy), moved=False)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = token_logps(full, groups)
        assert torch.equal(token_logps(policy, groups), wanted)
        policy.residual_dtype = torch.bfloat16
        assert not torch.allclose(token_logps(policy, groups), wanted, atol=1e-3)


def test_merging_never_changes_the_base(tiny):
    """A hundred merges, each from the same bf16 W. Added in place and taken out again, W drifts."""
    policy, encoder = tiny
    adapt(to_bf16(policy))
    base = {name: linear.weight.clone() for name, linear in lora_linears(policy).items()}
    sampler = sampling_copy(policy)
    for _ in range(100):
        refresh(sampler, policy)
    for name, linear in lora_linears(policy).items():
        assert torch.equal(linear.weight, base[name])
        delta = SCALE * (linear.lora_B @ linear.lora_A).detach()
        assert torch.equal(sampler.get_submodule(name).weight, (base[name] + delta).bfloat16())

        classic = base[name].clone()
        classic += delta
        classic -= delta
        assert not torch.equal(classic, base[name])


# --- Sampling ------------------------------------------------------------------------------------


def test_merged_equals_unmerged(tiny):
    """fp32, 1e-5, and greedy samples are the same; a copy that is not refreshed is the base."""
    policy, encoder = tiny
    adapt(policy)
    groups = make_groups(encoder)
    sampler = sampling_copy(policy, torch.float32)
    assert not lora_linears(sampler)

    def both(function):
        with torch.no_grad():
            return function(policy), function(sampler)

    unmerged, stale = both(lambda p: token_logps(p, groups))
    assert not torch.allclose(unmerged, stale, atol=1e-2)
    refresh(sampler, policy)
    unmerged, merged = both(lambda p: token_logps(p, groups))
    assert torch.allclose(unmerged, merged, atol=1e-5)

    prompts = [group.prompt for group in groups]
    drawn = both(lambda p: sample_groups(p, prompts, 1, max_new_tokens=12, temperature=0))
    for one, other in zip(*drawn):
        assert one.completions[0].tolist() == other.completions[0].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_copy_shares_what_has_no_adapter(tiny, dtype):
    """Embeddings, norms, biases and head are the base's own; adapted weights are the copy's."""
    policy, _ = tiny
    if dtype == torch.bfloat16:
        to_bf16(policy)
    adapt(policy, "q_proj,down_proj")
    sampler = sampling_copy(policy, dtype)
    adapted = {f"{name}.weight" for name in lora_linears(policy)}
    own = dict(policy.named_parameters())
    for name, weight in sampler.named_parameters():
        assert (weight.data_ptr() == own[name].data_ptr()) == (name not in adapted), name


# --- Files ---------------------------------------------------------------------------------------


def hf_logits(model, groups):
    """Logits of HF's own forward of each prompt with its first completion."""
    found = []
    for group in groups:
        prompt = group.prompt
        ids = torch.cat([prompt.ids, group.completions[0]])[None]
        images = {}
        if prompt.pixel_values is not None:
            images = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
        is_image = (ids == model.config.image_token_id).int()
        with torch.no_grad():
            found.append(model(input_ids=ids, mm_token_type_ids=is_image, **images).logits[0])
    return torch.cat(found)


@pytest.fixture
def saved(start, tmp_path):
    """(policy with adapters, encoder, its folder, the base's folder), saved as a stage does."""
    policy, encoder = load_model(start)
    adapt(policy)
    save_model(policy, encoder, tmp_path / "model")
    return policy, encoder, tmp_path / "model", start


def test_a_saved_folder_opens_in_stock_classes(saved):
    """Merged, and once: HF, which knows PEFT, must not find the adapters on top of it."""
    policy, encoder, folder, _ = saved
    groups = make_groups(encoder)
    stock = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert torch.allclose(hf_logits(stock, groups), hf_logits(policy.vlm, groups), atol=1e-5)
    assert set(stock.state_dict()) == set(fresh_policy()[0].vlm.state_dict())

    (folder / "adapter" / "adapter_config.json").rename(folder / "adapter_config.json")
    (folder / "adapter" / "adapter_model.safetensors").rename(
        folder / "adapter_model.safetensors"
    )
    twice = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert not torch.allclose(hf_logits(twice, groups), hf_logits(policy.vlm, groups), atol=1e-2)


@pytest.mark.parametrize("targets", [ALL, "q_proj,v_proj"])
def test_peft_opens_them(start, tmp_path, targets):
    """The same logits, no key missing, and no adapter of PEFT's in the vision tower."""
    from peft import PeftModel  # here, since it takes seconds in each process of the other tests

    policy, encoder = load_model(start)
    adapt(policy, targets)
    save_model(policy, encoder, tmp_path / "model")

    base = AutoModelForImageTextToText.from_pretrained(start).eval()
    groups = make_groups(encoder)
    alone = hf_logits(base, groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of missing keys
        adapted = PeftModel.from_pretrained(base, tmp_path / "model" / "adapter")
    logits = hf_logits(adapted, groups)
    assert torch.allclose(logits, hf_logits(policy.vlm, groups), atol=1e-5)
    assert not torch.allclose(logits, alone, atol=1e-2)

    names = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert len(names) == len(lora_linears(policy))
    assert not any("visual" in name for name in names)


def test_adapters_come_back_to_the_bit(saved):
    """What is read is what was saved; a file of another rank or other linears is refused."""
    policy, _, folder, start = saved
    again, _ = load_model(start)
    add_adapters(again, RANK, ALPHA, ALL, seed=5)
    load_adapters(again, folder / "adapter")
    weights = dict(policy.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in again.named_parameters())

    for rank, targets in ((RANK + 1, ALL), (RANK, "q_proj")):
        other, _ = load_model(start)
        add_adapters(other, rank, ALPHA, targets, seed=0)
        with pytest.raises(ValueError, match="--resume: .* does not fit"):
            load_adapters(other, folder / "adapter")
    with pytest.raises(ValueError, match="--resume: .* is missing"):
        load_adapters(again, folder / "none")


# --- Runs ----------------------------------------------------------------------------------------

LORA = dict(lora_rank=RANK, lora_alpha=ALPHA, lr=1e-2)


@pytest.fixture
def new_accelerator():
    """The next one may have another precision; accelerate keeps its first one otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "more",
    [
        dict(kl_beta=0.1, gradient_checkpointing=True),
        dict(precision="bf16", lora_merge=False),
        pytest.param(dict(precision="bf16"), marks=pytest.mark.slow),
        pytest.param(dict(lora_merge=False), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_resume_equals_uninterrupted(start, tmp_path, new_accelerator, more):
    """Stopped and resumed: the same merged model, adapters and logs as an unbroken run."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    grpo.main(small_grpo(start, whole, **LORA, **more))
    grpo.main(small_grpo(start, cut, steps=2, **LORA, **more))
    grpo.main(small_grpo(start, cut, resume=True, **LORA, **more))

    assert same_weights(whole / "model", cut / "model")
    assert stripped(whole) == stripped(cut)
    adapters = [load_file(f / "model/adapter/adapter_model.safetensors") for f in (whole, cut)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_only_adapters_are_trained(start, tmp_path):
    """A run ends at W + (alpha / r) B A exactly, W the start model's, and every B has moved."""
    grpo.main(small_grpo(start, tmp_path / "run", **LORA))
    base, _ = load_model(start)
    trained, _ = load_model(str(tmp_path / "run/model"))
    adapt(base, moved=False)
    load_adapters(base, tmp_path / "run/model/adapter")
    for linear in lora_linears(base).values():
        assert linear.lora_B.abs().max() > 0
    merged = sampling_copy(base, torch.float32)
    refresh(merged, base)

    weights = dict(trained.named_parameters())
    for name, weight in merged.named_parameters():
        assert torch.equal(weight, weights[name]), name
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    assert len(state["optimizer"]["state"]) == 2 * len(lora_linears(base))


def test_dpo_scores_its_reference_with_the_adapters_off(start, tmp_path, monkeypatch):
    """One model is loaded, the loss starts at log 2, and a resumed run ends at the same bits."""
    pairs = write_table(tmp_path, [pair_record(i) for i in range(6)])
    settings = dict(model=start, pairs=pairs, batch_pairs=2, warmup_steps=0, save_every=1, **LORA)
    loaded = []

    def counted(name, **more):
        loaded.append(name)
        return load_model(name, **more)

    monkeypatch.setattr("model.policies.load_model", counted)
    dpo_sft.main(dpo_sft.Config(run_dir=str(tmp_path / "whole"), **settings))
    assert loaded == [start]
    first, *_, last = read_jsonl(tmp_path / "whole/metrics.jsonl")
    assert first["margin"] == 0 and last["margin"] > 0

    cut = dpo_sft.Config(run_dir=str(tmp_path / "cut"), max_steps=1, **settings)
    dpo_sft.main(cut)
    # Without the cache, the reference of a resumed run is scored again: it must be the base's.
    for file in (tmp_path / "reference_logps").iterdir():
        file.unlink()
    dpo_sft.main(replace(cut, resume=True, max_steps=0))
    assert same_weights(tmp_path / "whole/model", tmp_path / "cut/model")
    assert stripped(tmp_path / "whole") == stripped(tmp_path / "cut")


def test_the_kl_is_to_the_base(tiny64):
    """fp64: with the policy as its own reference, the same gradients as with a second model."""
    policy, encoder = tiny64
    base = copy.deepcopy(policy).requires_grad_(False)
    adapt(policy)
    groups = make_groups(encoder)
    mask = completion_mask(groups).double()
    batch = mini_batch(groups, torch.zeros(len(mask), dtype=torch.float64), mask)
    cfg = replace(CFG, kl_beta=1.0)

    results = []
    for reference in (policy, base):
        policies = replace(policies_of(policy, KeepGradients(policy)), reference=reference)
        sums = grpo.update(batch, policies, Accelerator(cpu=True), cfg)
        results.append((sums["kl_ref"], policies.optimizer.grads))
    (kl, grads), (kl_of_two, grads_of_two) = results
    assert kl == pytest.approx(kl_of_two, rel=1e-12) and kl > 0.1
    assert grads.keys() == grads_of_two.keys()
    assert close(grads.values(), grads_of_two.values(), atol=1e-12)


# --- Two processes -------------------------------------------------------------------------------


def check_two_ranks(rank, folder):
    """One rank of `test_two_ranks_equal_one`; its frozen weights are no part of DDP's buckets."""
    policy, encoder = fp64_policy()
    adapt(policy)
    accelerator = Accelerator(cpu=True)
    groups, advantages = share_of(rank, *step_inputs(encoder))
    cfg = replace(CFG, max_tokens_per_micro_batch=60)
    grads, _ = adapter_gradients(policy, accelerator, groups, advantages, cfg)
    torch.save(grads, f"{folder}/rank{rank}.pt")


def adapter_gradients(policy, accelerator, groups, advantages, cfg):
    """Gradients of one GRPO update of the adapters, the optimizer holding nothing else."""
    policies = wrapped(policy, accelerator)
    optimizer = policies.optimizer
    optimizer.param_groups[0]["params"] = [p for p in policy.parameters() if p.requires_grad]
    return grpo_gradients(policies, accelerator, groups, advantages, cfg)


def test_two_ranks_equal_one(tiny64, tmp_path):
    """DDP over frozen weights and adapters, fp64, 1e-10."""
    on_two_ranks(check_two_ranks, str(tmp_path))
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(WORLD)]

    policy, encoder = tiny64
    adapt(policy)
    alone, _ = adapter_gradients(policy, Accelerator(cpu=True), *step_inputs(encoder), CFG)
    assert any(grad.abs().max() > 1e-3 for grad in alone)
    for grads in ranks:
        assert len(grads) == len(alone)
        assert close(grads, alone, atol=1e-10)


# --- What cannot work ----------------------------------------------------------------------------


def test_wrong_settings_are_named(tiny):
    policy, _ = tiny
    with pytest.raises(ValueError, match="--lora_targets qkv: .* there are down_proj, gate_proj"):
        add_adapters(policy, 4, 8, "q_proj, qkv", seed=0)
    assert not any(isinstance(m, LoraLinear) for m in policy.modules())
    with pytest.raises(ValueError, match="--lora_rank must not be negative"):
        grpo.Config(lora_rank=-1)
    with pytest.raises(ValueError, match="--lora_rank freezes .* --no_freeze_vision"):
        dpo_sft.Config(lora_rank=4, freeze_vision=False)


# --- Learning ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns(tmp_path):
    """`python grpo.py --lora_rank 8 --lr 5e-4`, 16 steps of the embedded world, 20 seconds."""
    grpo.main(grpo.Config(run_dir=str(tmp_path / "run"), lora_rank=8, lr=5e-4))
    steps = read_jsonl(tmp_path / "run/metrics.jsonl")
    first, last = steps[:2], steps[-4:]

    def mean(records, name):
        return sum(record[name] for record in records) / len(records)

    assert mean(last, "format") > mean(first, "format") + 0.25
    assert mean(last, "reward") > mean(first, "reward") + 0.25
