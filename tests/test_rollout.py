"""The sampler against HF's `generate`, and against the scorer."""

import copy

import pytest
import torch
from conftest import make_groups, make_row

import rollout
from common import Group, token_logps
from rollout import is_truncated, refresh, sample_groups, sampling_copy


def greedy_by_hf(policy, prompt, room):
    """`generate` on one prompt alone, the same ids banned."""
    ids = prompt.ids[None]
    pictures = {} if prompt.pixels is None else {
        "pixel_values": prompt.pixels, "image_grid_thw": prompt.grids,
        "mm_token_type_ids": (ids == policy.vlm.config.image_token_id).int()}
    out = policy.vlm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False,
                              suppress_tokens=policy.banned.nonzero()[:, 0].tolist(), **pictures)
    return out[0, len(prompt.ids) :]


def test_greedy_equals_generate(tiny):
    """Token for token: unequal prompts in one batch, 0, 1 and 2 pictures, some rows ending early."""
    policy, codec = tiny
    prompts = [codec.encode(make_row(n, question, seed=n)) for n, question in
               [(1, "count the red things ."), (0, "how many red things and blue things are there ?"),
                (2, "subtract all circles . how many things are left ?"), (1, "count the circles .")]]
    lengths = set()
    for boost in (0.0, 1.5):  # with a likelier EOS some rows end before the limit
        policy.vlm.lm_head.weight.data[policy.eos_ids[0]] *= 1 + boost
        groups, _ = sample_groups(policy, prompts, 1, max_new_tokens=12, temperature=0.0)
        for prompt, group in zip(prompts, groups):
            assert group.completions[0].tolist() == greedy_by_hf(policy, prompt, 12).tolist()
            lengths.add(len(group.completions[0]))
    assert len(lengths) > 1, "the test should see early ends as well"


def test_generate_leaves_nothing_behind(tiny):
    """HF keeps rope deltas of the last `generate` on the module; our positions are our own."""
    policy, codec = tiny
    groups = make_groups(codec)
    with torch.no_grad():
        before = token_logps(policy, groups)[0]
        greedy_by_hf(policy, codec.encode(make_row(2)), 3)
        assert torch.equal(before, token_logps(policy, groups)[0])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_sampled_equals_scored(tiny, temperature):
    """The sampler's own log-probs are the scorer's, at any temperature; scored at another they differ."""
    policy, codec = tiny
    prompts = [codec.encode(make_row(n)) for n in (1, 0)]
    policy_eos, policy.eos_ids = policy.eos_ids, [10**6]  # nothing ends: all rows stay
    tops = []

    def observe(logits):
        tops.append(logits.log_softmax(-1))
        return logits.amax(-1)

    groups, _ = sample_groups(policy, prompts, 2, max_new_tokens=5, temperature=temperature, observe=observe,
                              generator=torch.Generator().manual_seed(0))
    policy.eos_ids = policy_eos
    ids = torch.stack([c for g in groups for c in g.completions])
    sampled = torch.stack(tops, 1).gather(-1, ids[..., None])[..., 0]
    with torch.no_grad():
        assert torch.allclose(sampled, token_logps(policy, groups, temperature)[0], atol=1e-4)
        assert not torch.allclose(sampled, token_logps(policy, groups, temperature * 1.2)[0], atol=1e-2)


def test_samples_follow_the_distribution(tiny):
    """4000 draws of a first token against its probabilities: total variation under 0.05 (false alarm < 1e-6)."""
    policy, codec = tiny
    prompt = codec.encode(make_row(1))
    policy.vlm.lm_head.weight.data *= 0.3
    groups, _ = sample_groups(policy, [prompt], 4000, max_new_tokens=1, temperature=1.0, max_rows=4000,
                              generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.cat(groups[0].completions), minlength=len(codec.tokenizer)) / 4000
    with torch.no_grad():
        exact = policy.logits(policy.prefill([prompt])[0], 1.0).softmax(-1)[0]
    assert (counts - exact).abs().sum() / 2 < 0.1
    assert counts[policy.banned].sum() == 0


def test_picture_tokens_are_never_sampled_nor_scored(tiny):
    """+100 on the picture token's logit changes neither the samples nor their log-probs."""
    policy, codec = tiny
    prompts = [codec.encode(make_row(1))]

    def run():
        groups, _ = sample_groups(policy, prompts, 4, max_new_tokens=6, temperature=1.0,
                                  generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            return groups[0].completions, token_logps(policy, groups)[0]

    ids, logp = run()
    head = policy.vlm.lm_head.forward
    bias = torch.zeros(len(codec.tokenizer))
    bias[[codec.image_token_id, policy.vlm.config.video_token_id]] = 100.0
    policy.vlm.lm_head.forward = lambda hidden: head(hidden) + bias
    ids2, logp2 = run()
    assert all(torch.equal(a, b) for a, b in zip(ids, ids2)) and torch.allclose(logp, logp2)
    assert not torch.isin(torch.cat(ids2), torch.tensor([codec.image_token_id, policy.vlm.config.video_token_id])).any()


def test_groups_are_contiguous(tiny):
    """Rows p*G .. p*G+G-1 share prompt p, in prompt order, however many are decoded at a time."""
    policy, codec = tiny
    prompts = [codec.encode(make_row(n % 3, seed=n)) for n in range(5)]
    for max_rows in (2, 6, 100):
        groups, _ = sample_groups(policy, prompts, 2, max_new_tokens=4, temperature=0.0, max_rows=max_rows)
        assert [g.prompt is p for g, p in zip(groups, prompts)] == [True] * 5
        alone = [sample_groups(policy, [p], 1, max_new_tokens=4, temperature=0.0)[0][0].completions[0] for p in prompts]
        assert all(torch.equal(c, a) for g, a in zip(groups, alone) for c in g.completions)
    rows = torch.arange(3)
    assert rows.repeat_interleave(2).tolist() != rows.repeat(2).tolist(), "the classic mistake deals them out in turn"


def test_every_eos_id_ends_a_completion(tiny):
    """Qwen stops on two ids; both are kept in the completion, and nothing comes after them."""
    policy, codec = tiny
    assert len(policy.eos_ids) == 2 and policy.eos_ids[0] == codec.tokenizer.eos_token_id
    head = policy.vlm.lm_head.forward
    for eos in policy.eos_ids:
        bias = torch.zeros(len(codec.tokenizer))
        bias[eos] = 1e4
        policy.vlm.lm_head.forward = lambda hidden, bias=bias: head(hidden) + bias
        groups, _ = sample_groups(policy, [codec.encode(make_row(1))], 3, max_new_tokens=8, temperature=1.0)
        assert [c.tolist() for c in groups[0].completions] == [[eos]] * 3
        assert not is_truncated(groups[0].completions[0], policy.eos_ids)


def test_completion_without_eos_is_truncated(tiny):
    """The limit is reached: the completion has exactly that many tokens and says so."""
    policy, codec = tiny
    policy.vlm.lm_head.weight.data[policy.eos_ids] = 0
    head = policy.vlm.lm_head.forward
    policy.vlm.lm_head.forward = lambda hidden: head(hidden).index_fill(-1, torch.tensor(policy.eos_ids), -1e4)
    groups, _ = sample_groups(policy, [codec.encode(make_row(1))], 2, max_new_tokens=5, temperature=1.0)
    assert all(len(c) == 5 and is_truncated(c, policy.eos_ids) for c in groups[0].completions)


def test_dropping_rows_changes_no_row(tiny):
    """Rows that end early leave the batch; what the others say is what they say alone (greedy)."""
    policy, codec = tiny
    policy.vlm.lm_head.weight.data[policy.eos_ids[0]] *= 2.5
    prompts = [codec.encode(make_row(n % 3, seed=n)) for n in range(12)]
    groups, _ = sample_groups(policy, prompts, 1, max_new_tokens=20, temperature=0.0)
    assert len({len(g.completions[0]) for g in groups}) > 2, "the test needs rows of unequal length"
    for prompt, group in zip(prompts, groups):
        alone = sample_groups(policy, [prompt], 1, max_new_tokens=20, temperature=0.0)[0][0]
        assert torch.equal(group.completions[0], alone.completions[0])


def test_sampling_is_seeded_and_modes_are_left_alone(tiny):
    """The same generator state draws the same tokens; the model stays in eval mode, no gradient is left."""
    policy, codec = tiny
    prompt, runs = codec.encode(make_row(1)), []
    for _ in range(2):
        groups, _ = sample_groups(policy, [prompt], 4, max_new_tokens=6, temperature=1.0,
                                  generator=torch.Generator().manual_seed(5))
        runs.append([c.tolist() for c in groups[0].completions])
    assert runs[0] == runs[1] and len({tuple(r) for r in runs[0]}) > 1
    assert not policy.vlm.training and all(p.grad is None for p in policy.parameters())
    assert isinstance(groups[0], Group)


def test_static_decoding_changes_no_token(tiny, monkeypatch):
    """One compiled step of fixed shapes (traced here, not compiled) gives the tokens of the plain loop, greedy
    and sampled, rows of unequal ends included; and it is traced once, not once a token."""
    policy, codec = tiny
    policy.vlm.lm_head.weight.data[policy.eos_ids[0]] *= 2.5
    monkeypatch.setattr(rollout, "COMPILE", {"backend": "eager", "fullgraph": True, "dynamic": False})
    torch._dynamo.reset()
    counter = torch._dynamo.utils.counters
    counter.clear()
    prompts = [codec.encode(make_row(n % 3, seed=n)) for n in range(4)]
    for temperature in (0.0, 1.0):
        runs = [sample_groups(policy, prompts, 2, max_new_tokens=20, temperature=temperature, static=static,
                              generator=torch.Generator().manual_seed(1))[0] for static in (False, True)]
        if temperature == 0.0:  # dropped rows draw no random numbers: only greedy runs can be compared to the end
            assert all(torch.equal(a, b) for x, y in zip(*runs) for a, b in zip(x.completions, y.completions))
        else:
            assert all(a[0] == b[0] for x, y in zip(*runs) for a, b in zip(x.completions, y.completions))
    assert counter["stats"]["unique_graphs"] == 1


def test_bf16_copy_keeps_its_positions(tiny):
    """Every weight is rounded, the head stays tied, and position 5000 stays where it is; rounded like the weights, the
    rotary frequencies would put it elsewhere."""
    policy, _ = tiny
    sampler, wrong = sampling_copy(policy), copy.deepcopy(policy).bfloat16()
    assert {p.dtype for p in sampler.parameters()} == {torch.bfloat16} and {p.dtype for p in policy.parameters()} == {torch.float32}
    assert sampler.vlm.lm_head.weight is sampler.vlm.model.language_model.embed_tokens.weight
    far = torch.full((3, 1, 1), 5000)
    angles = [p.vlm.model.language_model.rotary_emb(torch.zeros(1, 1, 64), far)[0] for p in (policy, sampler, wrong)]
    assert torch.equal(angles[0], angles[1]) and (angles[0] - angles[2]).abs().max() > 0.5


def test_bf16_copy_is_refreshed(tiny):
    """It samples nearly what the policy would; after a step, only `refresh` tells it of the new weights."""
    policy, codec = tiny
    sampler, prompts = sampling_copy(policy), [codec.encode(make_row(n % 3, seed=n)) for n in range(8)]

    def probabilities(p):
        with torch.no_grad():
            return p.logits(p.prefill(prompts)[0], 1.0).softmax(-1)  # (8, V)

    def distance(a, b):
        return float((probabilities(a) - probabilities(b)).abs().sum(-1).mean() / 2)

    assert distance(policy, sampler) < 0.05
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.1 * torch.randn_like(p)
    assert distance(policy, sampler) > 0.2, "the copy still is the policy of before"
    refresh(sampler, policy)
    assert distance(policy, sampler) < 0.05


def test_bf16_copy_sees_what_is_trained_on(tiny):
    """A frozen tower looks once for both, in the policy's precision: scoring finds the features that sampling used."""
    policy, codec = tiny
    policy.vlm.model.visual.requires_grad_(False)
    sampler, prompts = sampling_copy(policy), [codec.encode(make_row(1, seed=n)) for n in range(3)]
    groups, _ = sample_groups(sampler, prompts, 2, max_new_tokens=4, temperature=1.0)
    seen = {p: policy.seen[p] for p in prompts}
    assert {x.dtype for x in seen.values()} == {torch.float32} and len(sampler.seen) == 0
    token_logps(policy, groups)
    assert all(policy.seen[p] is seen[p] for p in prompts)
