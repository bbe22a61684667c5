"""The hybrid loss against its closed form, its parts, and what it is there to prevent."""

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from conftest import fresh_policy, make_groups, make_row

import dpo_sft
from common import Group, completion_mask, load_model, micro_batches, save_model, token_logps
from dpo_sft import Config, dpo_loss, hybrid_loss, reference_key, reference_logps, sft_loss

CFG = Config(grad_clip=1e9)


def make_pairs(codec, count=4, seed=0):
    return make_groups(codec, seed, sizes=(2,) * count, pictures=(1, 0, 2, 1)[:count])


def test_dpo_equals_the_closed_form():
    """-log sigmoid(beta * margin), pair by pair in plain Python."""
    g = torch.Generator().manual_seed(0)
    chosen, rejected, chosen_ref, rejected_ref = -10 * torch.rand(4, 20, generator=g, dtype=torch.float64)
    loss, rewards = dpo_loss(chosen, rejected, chosen_ref, rejected_ref, 0.1)
    for i in range(20):
        h = 0.1 * ((chosen[i] - chosen_ref[i]) - (rejected[i] - rejected_ref[i])).item()
        assert loss[i].item() == pytest.approx(-math.log(1 / (1 + math.exp(-h))), abs=1e-12)
    assert torch.allclose(rewards[0], 0.1 * (chosen - chosen_ref))
    swapped, _ = dpo_loss(rejected, chosen, rejected_ref, chosen_ref, 0.1)
    assert not torch.allclose(loss, swapped), "which side is which matters"


def test_dpo_gradient_signs_and_far_tails():
    """Chosen up, rejected down, by beta * sigmoid(-h); finite where log(sigmoid) would be -inf."""
    logps = torch.tensor([-5.0, -7.0], requires_grad=True)
    loss, _ = dpo_loss(logps[:1], logps[1:], torch.tensor([-5.0]), torch.tensor([-7.0]), 0.1)
    loss.sum().backward()
    assert torch.allclose(logps.grad, torch.tensor([-0.05, 0.05]))
    far, _ = dpo_loss(torch.tensor([-2000.0]), torch.tensor([0.0]), torch.zeros(1), torch.zeros(1), 0.1)
    assert far.item() == pytest.approx(200.0) and torch.sigmoid(torch.tensor(-200.0)).log().isinf()


def test_dpo_starts_at_log2(tiny):
    """Policy = reference: loss 0.6931, rewards and margin 0, gradient not 0."""
    policy, codec = tiny
    groups = make_pairs(codec)
    logp, _ = token_logps(policy, groups)
    mask = completion_mask(groups)
    terms = hybrid_loss(logp, logp.detach().sum(-1), mask, replace(CFG, loss="dpo"))
    assert torch.allclose(terms["loss"], torch.full((4,), math.log(2))) and terms["margin"].abs().max() == 0
    terms["loss"].sum().backward()
    assert policy.vlm.model.language_model.embed_tokens.weight.grad.abs().max() > 0


def test_sft_term_equals_hf_loss(tiny):
    """One response: HF's own loss with the prompt masked. Several: the mean over each response's own tokens."""
    policy, codec = tiny
    policy.banned[:] = False
    groups = make_pairs(codec)
    with torch.no_grad():
        logp, _ = token_logps(policy, groups)
        mask = completion_mask(groups)
        ours = sft_loss(logp[0::2], mask[0::2])
        for i, group in enumerate(groups):
            ids = torch.cat([group.prompt.ids, group.completions[0]])[None]
            labels = ids.clone()
            labels[:, : len(group.prompt.ids)] = -100
            hf = policy.vlm(input_ids=ids, labels=labels, pixel_values=group.prompt.pixels, image_grid_thw=group.prompt.grids,
                            mm_token_type_ids=(ids == codec.image_token_id).int()).loss
            assert torch.allclose(ours[i], hf, atol=1e-5)
    padded_mean = -(logp[0::2] * mask[0::2]).mean(-1)
    assert not torch.allclose(ours, padded_mean, atol=1e-3), "over the padded width it would be another loss"


def test_hybrid_is_the_sum_and_its_parts_alone():
    """lambda weighs SFT beside DPO; `dpo` is without it, and `sft` alone is given the chosen rows alone."""
    g = torch.Generator().manual_seed(0)
    logp, mask, ref = -torch.rand(6, 4, generator=g), torch.ones(6, 4), -4 * torch.rand(6, generator=g)
    by = {loss: hybrid_loss(logp, ref, mask, replace(CFG, loss=loss, sft_weight=0.5)) for loss in ("hybrid", "dpo")}
    by["sft"] = hybrid_loss(logp[0::2], None, mask[0::2], replace(CFG, loss="sft", sft_weight=0.5))
    assert torch.allclose(by["hybrid"]["loss"], by["dpo"]["loss"] + 0.5 * by["sft"]["loss"])
    assert torch.allclose(by["hybrid"]["chosen_logp"], by["sft"]["chosen_logp"]) and torch.allclose(by["dpo"]["loss"], by["dpo"]["dpo"])


def train(policy, groups, cfg, steps=25, lr=3e-3):
    accelerator = Accelerator(cpu=True)
    ref = reference_logps(policy, groups, cfg, accelerator, show=False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)
    return [dpo_sft.update(policy, optimizer, accelerator, groups, ref, len(groups), cfg) for _ in range(steps)]


def test_margin_up_chosen_may_fall(tiny):
    """DPO alone widens the margin and lets chosen sink where the two responses share most of their words;
    lambda 1 keeps chosen at least as likely as before."""
    policy, codec = tiny
    words = torch.randint(10, 60, (8,), generator=torch.Generator().manual_seed(1))
    eos = torch.tensor([policy.eos_ids[0]])
    groups = [Group(codec.encode(make_row(1, seed=s)), [torch.cat([words, eos]), torch.cat([words[:-1], words[:1], eos])]) for s in range(3)]
    alone = train(policy, groups, replace(CFG, loss="dpo"))
    fresh, _ = fresh_policy()
    hybrid = train(fresh, groups, CFG)
    assert alone[-1]["margin"] > alone[0]["margin"] + 0.5 and hybrid[-1]["margin"] > hybrid[0]["margin"]
    assert alone[-1]["chosen_logp"] < alone[0]["chosen_logp"], "the well-known sinking"
    assert hybrid[-1]["chosen_logp"] > hybrid[0]["chosen_logp"] and hybrid[-1]["chosen_reward"] > 0 > alone[-1]["chosen_reward"]


@pytest.mark.parametrize("budget", [1, 150, 10_000])
def test_micro_batches_of_pairs_give_the_same_gradient(tiny64, budget):
    """fp64, 1e-10, whichever way pairs are packed; a pair stays whole."""
    policy, codec = tiny64
    groups = make_pairs(codec)
    ref = torch.linspace(-30, -10, 8, dtype=torch.float64)
    grads = []
    for tokens in (10_000, budget):
        seen = {}

        class NoStep(torch.optim.SGD):
            def step(self, closure=None):
                seen.update({n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None})

        cfg = replace(CFG, max_tokens_per_micro_batch=tokens)
        dpo_sft.update(policy, NoStep(policy.parameters(), lr=0.0), Accelerator(cpu=True), groups, ref, 4, cfg)
        grads.append(seen)
    assert all(torch.allclose(grads[0][n], grads[1][n], atol=1e-10) for n in grads[0])
    assert all(len(g.completions) == 2 for part in micro_batches(groups, budget, split=False) for g in part)


def test_reference_cache_key(tiny):
    """Another weight, another answer, another picture or precision: another key. The same: the same."""
    policy, codec = tiny
    groups = make_pairs(codec)
    key = reference_key(policy, groups, "no")
    assert key == reference_key(policy, groups, "no") != reference_key(policy, groups, "bf16")
    assert key != reference_key(policy, groups[:3], "no")
    brighter = Group(replace(groups[0].prompt, pixels=groups[0].prompt.pixels + 0.01), groups[0].completions)
    assert key != reference_key(policy, [brighter, *groups[1:]], "no")
    with torch.no_grad():
        policy.vlm.lm_head.weight[0, 0] += 1e-3
    assert key != reference_key(policy, groups, "no")


def test_prompt_ids_are_a_prefix(tiny):
    """Chosen and rejected share the very same prompt ids, pictures expanded, and end in EOS."""
    _, codec = tiny
    prompt = codec.encode(make_row(2))
    for text in ("<think> that is 2 . </think> <answer> 2 </answer>", "answer : 2"):
        completion = codec.encode_completion(text, codec.tokenizer.eos_token_id)
        together = codec.tokenizer(codec.tokenizer.decode(prompt.ids.tolist()) + " " + text, add_special_tokens=False)["input_ids"]
        assert torch.cat([prompt.ids, completion[:-1]]).tolist() == together
        assert completion[-1] == codec.tokenizer.eos_token_id


def test_unusable_pairs_are_named_and_skipped(tiny, tmp_path):
    """Too long, empty, or with a word the model cannot say: each is named; with none left the flag is."""
    import datasets

    policy, codec = tiny
    save_model(policy, codec, tmp_path / "model")
    policy, codec = load_model(str(tmp_path / "model"))

    def record(i, chosen, rejected):
        return {"id": f"p{i}", "images": [], "question": "count the circles .", "instruction": "",
                "chosen": [{"role": "assistant", "content": chosen}], "rejected": [{"role": "assistant", "content": rejected}]}

    rows = [record(0, "that is 2 .", "2"), record(1, "that is 2 . " * 30, "2"), record(2, "", "2"), record(3, "zebra", "2")]
    file = tmp_path / "pairs.parquet"
    datasets.Dataset.from_list(rows).to_parquet(file)
    said = []
    groups = dpo_sft.load_pairs(Config(pairs=str(file), max_response_tokens=50), codec, policy, said.append)
    assert len(groups) == 1 and [s.split("row ")[1][:2] for s in said] == ["p1", "p2", "p3"]
    datasets.Dataset.from_list(rows[1:]).to_parquet(file)
    with pytest.raises(ValueError, match="--pairs"):
        dpo_sft.load_pairs(Config(pairs=str(file), max_response_tokens=50), codec, policy, said.append)
