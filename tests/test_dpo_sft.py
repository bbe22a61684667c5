"""The hybrid loss against its closed form, its parts, and what it is there to prevent."""

import math
from dataclasses import replace
from types import SimpleNamespace

import datasets
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import dpo_sft
from common import micro_batches_of, no_grad_logps, token_logps
from conftest import (
    KeepGradients,
    blank,
    fresh_policy,
    loss_gradients,
    make_example,
    make_groups,
    policies_of,
)
from dpo_sft import Config, dpo_loss, pair_loss, sft_alone, sft_loss
from harness.reference_cache import reference_key
from model.loading import load_model, save_model
from model.records import Group, completion_mask
from sources import lazily
from sources.read_pairs import load_pairs

CFG = Config(grad_clip=1e9)


def make_pairs(encoder, count=4, seed=0) -> list[Group]:
    return make_groups(encoder, seed, sizes=(2,) * count, images=(1, 0, 2, 1)[:count])


# --- DPO -----------------------------------------------------------------------------------------


def test_dpo_equals_the_closed_form():
    """-log sigmoid(beta * margin), pair by pair in plain Python."""
    g = torch.Generator().manual_seed(0)
    logps = -10 * torch.rand(4, 20, generator=g, dtype=torch.float64)
    chosen, rejected, chosen_ref, rejected_ref = logps
    terms = dpo_loss(chosen, rejected, chosen_ref, rejected_ref, 0.1)

    for i in range(20):
        margin = 0.1 * ((chosen[i] - chosen_ref[i]) - (rejected[i] - rejected_ref[i])).item()
        closed_form = -math.log(1 / (1 + math.exp(-margin)))
        assert terms["dpo"][i].item() == pytest.approx(closed_form, abs=1e-12)
        assert terms["margin"][i].item() == pytest.approx(margin, abs=1e-12)

    assert torch.allclose(terms["chosen_reward"], 0.1 * (chosen - chosen_ref))
    assert torch.allclose(terms["rejected_reward"], 0.1 * (rejected - rejected_ref))

    swapped = dpo_loss(rejected, chosen, rejected_ref, chosen_ref, 0.1)
    assert not torch.allclose(terms["dpo"], swapped["dpo"]), "which side is which matters"


def test_dpo_gradient_signs_and_far_tails():
    """Chosen up, rejected down, by beta * sigmoid(-h); finite where log(sigmoid) would be -inf."""
    logps = torch.tensor([-5.0, -7.0], requires_grad=True)
    ref = logps.detach()
    loss = dpo_loss(logps[:1], logps[1:], ref[:1], ref[1:], 0.1)["dpo"]
    loss.sum().backward()
    assert torch.allclose(logps.grad, torch.tensor([-0.05, 0.05]))

    zero = torch.zeros(1)
    far = dpo_loss(torch.tensor([-2000.0]), zero, zero, zero, 0.1)["dpo"]
    assert far.item() == pytest.approx(200.0)
    assert torch.sigmoid(torch.tensor(-89.0)).log().isinf()


def test_dpo_starts_at_log2(tiny):
    """Policy = reference: loss 0.6931, rewards and margin 0, gradient not 0."""
    policy, encoder = tiny
    pairs = make_pairs(encoder)
    logp = token_logps(policy, pairs)
    logp_ref = logp.detach().sum(-1)
    terms = pair_loss(logp, logp_ref, completion_mask(pairs), replace(CFG, loss="dpo"))

    with pytest.raises(AssertionError):  # not in rows
        pair_loss(logp, logp_ref.view(-1, 2), completion_mask(pairs), CFG)
    assert torch.allclose(terms["loss"], torch.full((4,), math.log(2)))
    assert terms["margin"].abs().max() == 0

    terms["loss"].sum().backward()
    assert policy.vlm.model.language_model.embed_tokens.weight.grad.abs().max() > 0


# --- SFT and the sum -----------------------------------------------------------------------------


def hf_loss(policy, prompt, completion):
    """HF's own loss of one response, the prompt masked by -100."""
    ids = torch.cat([prompt.ids, completion])[None]
    labels = ids.clone()
    labels[:, : len(prompt.ids)] = -100
    out = policy.vlm(
        input_ids=ids,
        labels=labels,
        pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.image_grid_thw,
        mm_token_type_ids=(ids == policy.vlm.config.image_token_id).int(),
    )
    return out.loss


def test_sft_term_equals_hf_loss(tiny):
    """The mean over each response's own tokens, as in HF's own loss of one response."""
    policy, encoder = tiny
    policy.suppressed[:] = False  # HF's loss suppresses no ids
    pairs = make_pairs(encoder)

    with torch.no_grad():
        logp = token_logps(policy, pairs)
        logp, mask = logp[0::2], completion_mask(pairs)[0::2]  # chosen
        ours = sft_loss(logp, mask)
        for i, pair in enumerate(pairs):
            wanted = hf_loss(policy, pair.prompt, pair.completions[0])
            assert torch.allclose(ours[i], wanted, atol=1e-5)

    padded_mean = -(logp * mask).mean(-1)
    assert not torch.allclose(ours, padded_mean, atol=1e-3), "over the padding it is another loss"


def test_hybrid_is_the_sum_and_its_parts_alone():
    """lambda weighs SFT beside DPO; `dpo` is without it; `sft` alone is given chosen alone."""
    g = torch.Generator().manual_seed(0)
    logp, mask = -torch.rand(6, 4, generator=g), torch.ones(6, 4)
    logp_ref = -4 * torch.rand(6, generator=g)
    cfg = replace(CFG, sft_weight=0.5)

    hybrid = pair_loss(logp, logp_ref, mask, replace(cfg, loss="hybrid"))
    dpo = pair_loss(logp, logp_ref, mask, replace(cfg, loss="dpo"))
    sft = sft_alone(logp[0::2], mask[0::2])

    assert torch.allclose(hybrid["loss"], dpo["loss"] + 0.5 * sft["loss"])
    assert torch.allclose(hybrid["chosen_logp"], sft["chosen_logp"])
    assert torch.allclose(dpo["loss"], dpo["dpo"])


def train(policy, pairs, cfg, steps=25, lr=3e-3) -> tuple[dict, dict]:
    """The sums of the first and of the last step."""
    accelerator = Accelerator(cpu=True)
    logp_ref = no_grad_logps(policy, pairs, accelerator, cfg).sum(-1)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)
    policies = policies_of(policy, optimizer)

    sums = []
    for _ in range(steps):
        sums.append(dpo_sft.update(pairs, logp_ref, pairs[0], policies, accelerator, cfg))
    return sums[0], sums[-1]


def test_margin_up_chosen_may_fall(tiny):
    """DPO alone widens the margin and lets chosen sink, where responses share most of their words.

    lambda 1 keeps chosen at least as likely as before. (16 words, of which one differs. Of 8 words
    chosen sinks for some and rises for others.)
    """
    policy, encoder = tiny
    words = torch.randint(10, 60, (16,), generator=torch.Generator().manual_seed(1))
    eos = torch.tensor([policy.eos_ids[0]])
    chosen = torch.cat([words, eos])
    rejected = torch.cat([words[:-1], words[:1], eos])
    pairs = []
    for seed in range(3):
        pairs.append(Group(encoder.encode(make_example(1, seed=seed)), [chosen, rejected]))

    dpo_first, dpo_last = train(policy, pairs, replace(CFG, loss="dpo"))
    fresh, _ = fresh_policy()
    hybrid_first, hybrid_last = train(fresh, pairs, CFG)

    assert dpo_last["margin"] > dpo_first["margin"] + 0.5
    assert hybrid_last["margin"] > hybrid_first["margin"]
    assert dpo_last["chosen_logp"] < dpo_first["chosen_logp"], "the well-known sinking"
    assert hybrid_last["chosen_logp"] > hybrid_first["chosen_logp"]
    assert hybrid_last["chosen_reward"] > 0 > dpo_last["chosen_reward"]


@pytest.mark.parametrize("budget", [60, 10_000])
def test_dpo_update_equals_the_plain_loss(tiny64, budget):
    """fp64, 1e-10: the formulas of the module docstring, pair by pair.

    With the mean over tokens in DPO's part too, a common slip, the gradient is another one.
    """
    policy, encoder = tiny64
    pairs = make_pairs(encoder)
    logp_ref = torch.linspace(-30, -10, 8, dtype=torch.float64).view(-1, 2)
    cfg = replace(CFG, max_tokens_per_micro_batch=budget, sft_weight=0.7)
    optimizer = KeepGradients(policy)
    policies = policies_of(policy, optimizer)
    dpo_sft.update(pairs, logp_ref.flatten(), pairs[0], policies, Accelerator(cpu=True), cfg)

    loss = dpo_sft.plain_loss(policy, pairs, logp_ref, cfg.beta, cfg.sft_weight)
    plain = loss_gradients(policy, loss)
    assert all(torch.allclose(optimizer.grads[n], plain[n], rtol=0, atol=1e-10) for n in plain)

    logp, mask = token_logps(policy, pairs), completion_mask(pairs).double()
    means = logp.sum(-1) / mask.sum(-1)
    refs = logp_ref.flatten() / mask.sum(-1)
    dpo = dpo_loss(means[0::2], means[1::2], refs[0::2], refs[1::2], cfg.beta)["dpo"]
    loss = (dpo + cfg.sft_weight * sft_loss(logp[0::2], mask[0::2])).mean()
    classic = loss_gradients(policy, loss)
    assert not all(torch.allclose(classic[n], plain[n], rtol=0, atol=1e-4) for n in plain)


@pytest.mark.parametrize("budget", [1, 150, 10_000])
def test_micro_batches_of_pairs_give_the_same_gradient(tiny64, budget):
    """fp64, 1e-10, whichever way pairs are packed; a pair stays whole."""
    policy, encoder = tiny64
    pairs = make_pairs(encoder)
    logp_ref = torch.linspace(-30, -10, 8, dtype=torch.float64)

    grads = []
    for max_tokens in (10_000, budget):
        optimizer = KeepGradients(policy)
        cfg = replace(CFG, max_tokens_per_micro_batch=max_tokens)
        policies = policies_of(policy, optimizer)
        dpo_sft.update(pairs, logp_ref, pairs[0], policies, Accelerator(cpu=True), cfg)
        grads.append(optimizer.grads)

    whole, cut = grads
    assert all(torch.allclose(whole[name], cut[name], atol=1e-10) for name in whole)
    for part in micro_batches_of(pairs, budget, split=False):
        assert all(len(pair.completions) == 2 for pair in part.groups)


# --- Reference and pairs -------------------------------------------------------------------------


def test_reference_cache_key(tiny, tmp_path):
    """Another weight, answer, image, precision, suppressed id: another key. The same: the same."""
    policy, encoder = tiny
    alone = SimpleNamespace(process_index=0, num_processes=1, mixed_precision="no")

    def key(changed=None, accelerator=alone, rows=range(3)) -> str:
        records = [pair_record(i, images=[blank()]) for i in rows]
        if changed is not None:
            records[0] = changed(records[0])
        file = write_table(tmp_path, records)
        pairs = load_pairs(Config(pairs=file), encoder, policy, print, alone)
        return reference_key(policy, pairs.digest, accelerator)

    first = key()
    assert key() == first
    others = [
        key(rows=range(2)),
        key(accelerator=SimpleNamespace(**{**vars(alone), "mixed_precision": "bf16"})),
        key(lambda record: {**record, "images": [Image.new("RGB", (84, 84), "red")]}),
        key(lambda record: {**record, "question": "count the squares ."}),
        key(lambda record: {**record, "rejected": record["chosen"]}),
    ]
    with torch.no_grad():
        policy.vlm.lm_head.weight[0, 0] += 1e-3
    others.append(key())
    policy.suppressed[0] = ~policy.suppressed[0]
    assert len({first, *others, key()}) == 8


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": float("nan")}, {"loss": "kto"}])
def test_wrong_settings_name_their_flag(wrong):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))} "):
        Config(**wrong)


def test_pairs_are_encoded_when_needed(tiny, tmp_path, monkeypatch):
    """With room for nothing, the groups are the same, and no encoded pair is kept."""
    policy, encoder = tiny
    file = write_table(tmp_path, [pair_record(i, images=[blank()]) for i in range(5)])
    accelerator = Accelerator(cpu=True)
    batches = [[0, 1], [4], [2, 3, 1]]

    texts = []
    for room in (2**30, 0):
        monkeypatch.setattr(lazily.Room.__init__, "__defaults__", (room,))
        pairs = load_pairs(Config(pairs=file), encoder, policy, print, accelerator)
        found = []
        for groups in pairs.batches(batches):
            found.append([group.prompt.example["id"] for group in groups])
            assert len(pairs.lazily.started) <= 3, "one batch ahead, no more"
        texts.append(found)
        assert len(pairs.lazily.kept) == (5 if room else 0)
        assert len(pairs) == 5
    assert texts[0] == texts[1] == [["p0", "p1"], ["p4"], ["p2", "p3", "p1"]]


def test_unusable_pairs_are_named_and_skipped(tiny, tmp_path):
    """Too long, empty, or with a word the model cannot say: each is named.

    Where none is left, the flag is named.
    """
    policy, encoder = tiny
    save_model(policy, encoder, tmp_path / "model")
    policy, encoder = load_model(str(tmp_path / "model"))

    texts = ["that is 2 .", "that is 2 . " * 30, "", "zebra"]
    records = [pair_record(i, chosen=text) for i, text in enumerate(texts)]
    cfg = Config(pairs=write_table(tmp_path, records), max_response_tokens=50)
    accelerator = Accelerator(cpu=True)

    warnings = []
    pairs = load_pairs(cfg, encoder, policy, warnings.append, accelerator)
    assert len(pairs) == 1
    assert [w.split("example ")[1][:2] for w in warnings] == ["p1", "p2", "p3"]

    write_table(tmp_path, records[1:])
    with pytest.raises(ValueError, match="--pairs"):
        load_pairs(cfg, encoder, policy, warnings.append, accelerator)


def pair_record(i: int, images=(), chosen="that is 2 .") -> dict:
    return {
        "id": f"p{i}",
        "images": list(images),
        "question": "count the circles .",
        "instruction": "",
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": "2"}],
    }


def write_table(folder, records: list[dict]) -> str:
    """The records as a parquet file, as `build_prefs.py` writes them."""
    table = datasets.Dataset.from_list(records)
    if records[0]["images"]:
        table = table.cast_column("images", datasets.List(datasets.Image()))
    table.to_parquet(folder / "pairs.parquet")
    return str(folder / "pairs.parquet")
