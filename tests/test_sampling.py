"""The sampler against HF's `generate`, and against `token_logps`."""

import copy

import pytest
import torch
from torch.overrides import TorchFunctionMode

from common import token_logps
from conftest import LiveBytes, make_example, make_groups
from model import compiled, decoding, sampling
from model.decoding import DecodeCache, prefill
from model.records import Group, is_truncated
from model.sampling import plain_sample, refresh, sample_groups, sampling_copy, token_entropy


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def greedy(policy, prompts, max_new_tokens, **more) -> list[Group]:
    """One greedy completion of each prompt."""
    groups = sample_groups(
        policy, prompts, 1, max_new_tokens=max_new_tokens, temperature=0.0, **more
    )
    return groups


def greedy_by_hf(policy, prompt, max_new_tokens) -> torch.Tensor:
    """`generate` on one prompt alone, the same ids suppressed."""
    ids = prompt.ids[None]
    images = {}
    if prompt.pixel_values is not None:
        images = {
            "pixel_values": prompt.pixel_values,
            "image_grid_thw": prompt.image_grid_thw,
            "mm_token_type_ids": (ids == policy.vlm.config.image_token_id).int(),
        }

    out = policy.vlm.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        suppress_tokens=policy.suppressed.nonzero()[:, 0].tolist(),
        **images,
    )
    return out[0, len(prompt.ids) :]


# --- Against HF, against token_logps, against the distribution -----------------------------------


def test_greedy_equals_generate(tiny):
    """Token for token: unequal prompts in a batch, 0 to 2 images, some sequences ending early."""
    policy, encoder = tiny
    questions = [
        (1, "count the red things ."),
        (0, "how many red things and blue things are there ?"),
        (2, "subtract all circles . how many things are left ?"),
        (1, "count the circles ."),
    ]
    prompts = [encoder.encode(make_example(n, question, seed=n)) for n, question in questions]

    lengths = set()
    for boost in (0.0, 1.5):  # with a likelier EOS some sequences end before the limit
        policy.vlm.lm_head.weight.data[policy.eos_ids[0]] *= 1 + boost
        for prompt, group in zip(prompts, greedy(policy, prompts, 12)):
            completion = group.completions[0].tolist()
            assert completion == greedy_by_hf(policy, prompt, 12).tolist()
            lengths.add(len(completion))

    assert len(lengths) > 1, "the test should see early ends as well"


def test_generate_leaves_nothing_behind(tiny):
    """HF keeps the rope deltas of the last `generate` on the module; our positions are our own."""
    policy, encoder = tiny
    groups = make_groups(encoder)

    with torch.no_grad():
        before = token_logps(policy, groups)
        greedy_by_hf(policy, encoder.encode(make_example(2)), 3)
        assert torch.equal(before, token_logps(policy, groups))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_sampled_equals_scored(tiny, temperature):
    """The sampler's log-probs are those of `token_logps`, at any temperature.

    Computed at another temperature, they differ.
    """
    policy, encoder = tiny
    prompts = [encoder.encode(make_example(n)) for n in (1, 0)]
    eos_ids = policy.eos_ids
    policy.eos_ids = [10**6]  # nothing ends: all sequences stay active

    groups = sample_groups(
        policy,
        prompts,
        2,
        max_new_tokens=5,
        temperature=temperature,
        logits_stat=token_entropy,
        generator=seeded(),
    )
    policy.eos_ids = eos_ids

    drawn = torch.stack([logp for g in groups for logp in g.logps])  # (B, T)
    entropies = torch.stack([stat for g in groups for stat in g.stats])  # (B, T)
    with torch.no_grad():
        same = token_logps(policy, groups, temperature)
        other = token_logps(policy, groups, temperature * 1.2)
        logits = policy.plain_logits(prompts[0], groups[0].completions[0])[-6:-1] / temperature
    assert torch.allclose(drawn, same, atol=1e-4)
    assert not torch.allclose(drawn, other, atol=1e-2)

    dist = torch.distributions.Categorical(logits=logits[:, ~policy.suppressed])
    assert torch.allclose(entropies[0], dist.entropy(), atol=1e-4)


def test_samples_follow_the_distribution(tiny):
    """4000 draws of a first token against its probabilities: total variation under 0.1."""
    policy, encoder = tiny
    prompt = encoder.encode(make_example(1))
    policy.vlm.lm_head.weight.data *= 0.3

    groups = sample_groups(
        policy,
        [prompt],
        4000,
        max_new_tokens=1,
        temperature=1.0,
        sample_batch=4000,
        generator=seeded(),
    )
    drawn = torch.cat(groups[0].completions)
    frequency = torch.bincount(drawn, minlength=len(encoder.tokenizer)) / 4000

    with torch.no_grad():
        hidden, *_ = prefill(policy, [prompt])
        exact = policy.logits(hidden, 1.0).softmax(-1)[0]
    assert (frequency - exact).abs().sum() / 2 < 0.1
    assert frequency[policy.suppressed].sum() == 0


def test_image_tokens_are_never_sampled_nor_scored(tiny):
    """+100 on the image token's logit changes neither the samples nor their log-probs."""
    policy, encoder = tiny
    prompts = [encoder.encode(make_example(1))]
    image_ids = torch.tensor([encoder.image_token_id, policy.vlm.config.video_token_id])

    def run():
        groups = sample_groups(
            policy, prompts, 4, max_new_tokens=6, temperature=1.0, generator=seeded(3)
        )
        with torch.no_grad():
            return groups[0].completions, token_logps(policy, groups)

    before, logp_before = run()

    head = policy.vlm.lm_head.forward
    bias = torch.zeros(len(encoder.tokenizer)).index_fill(0, image_ids, 100.0)
    policy.vlm.lm_head.forward = lambda hidden: head(hidden) + bias
    after, logp_after = run()

    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert torch.allclose(logp_before, logp_after)
    assert not torch.isin(torch.cat(after), image_ids).any()


# --- Groups and ends -----------------------------------------------------------------------------


def test_groups_are_contiguous(tiny):
    """Completions n*G to n*G + G-1 share prompt n, however many are decoded at a time."""
    policy, encoder = tiny
    prompts = [encoder.encode(make_example(n % 3, seed=n)) for n in range(5)]
    alone = [greedy(policy, [prompt], 4)[0].completions[0] for prompt in prompts]

    for sample_batch in (2, 6, 100):
        groups = sample_groups(
            policy, prompts, 2, max_new_tokens=4, temperature=0.0, sample_batch=sample_batch
        )
        assert [g.prompt is p for g, p in zip(groups, prompts)] == [True] * 5
        assert all(torch.equal(c, a) for g, a in zip(groups, alone) for c in g.completions)

    prompt_of = torch.arange(3)
    dealt_out = prompt_of.repeat(2).tolist()
    assert prompt_of.repeat_interleave(2).tolist() != dealt_out, "the classic mistake: in turn"


@pytest.mark.parametrize("sample_batch", [1, 2, 3, 5, 9, 100])
def test_never_more_sequences_at_a_time_than_sample_batch(tiny, monkeypatch, sample_batch):
    """Also where one group is larger: decoded in parts, it is still one group of its size."""
    policy, encoder = tiny
    prompts = [encoder.encode(make_example(n % 3, seed=n)) for n in range(3)]

    decoded = []  # sequences at each step
    draw = sampling.draw

    def watched(logits, *args):
        decoded.append(len(logits))
        return draw(logits, *args)

    monkeypatch.setattr(sampling, "draw", watched)
    groups = sample_groups(
        policy,
        prompts,
        5,
        max_new_tokens=4,
        temperature=0.0,
        sample_batch=sample_batch,
        logits_stat=lambda logits: logits.amax(-1),
    )
    assert max(decoded) <= sample_batch
    assert [g.prompt is p for g, p in zip(groups, prompts)] == [True] * 3
    assert [len(g.completions) for g in groups] == [5] * 3
    for group in groups:
        assert [len(stat) for stat in group.stats] == [len(c) for c in group.completions]

    for group, alone in zip(groups, greedy(policy, prompts, 4)):
        assert all(torch.equal(c, alone.completions[0]) for c in group.completions)


@pytest.mark.parametrize("sample_batch, at_a_time", [(5, 1), (9, 1), (10, 2), (100, 3)])
def test_groups_that_fit_are_decoded_whole(tiny, sample_batch, at_a_time):
    """The same random numbers, so the same completions, as whole groups batch by batch."""
    policy, encoder = tiny
    prompts = [encoder.encode(make_example(n % 3, seed=n)) for n in range(3)]
    groups = sample_groups(
        policy,
        prompts,
        5,
        max_new_tokens=4,
        temperature=1.0,
        sample_batch=sample_batch,
        generator=seeded(),
    )
    sampled = [c for g in groups for c in g.completions]

    generator, whole = seeded(), []
    for start in range(0, 3, at_a_time):
        batch = prompts[start : start + at_a_time]
        with torch.no_grad():
            prompt_of = torch.arange(len(batch)).repeat_interleave(5)
            drawn = sampling.decode_batch(
                policy, batch, prompt_of, 4, 1.0, generator, None, compile_decode=False
            )
        whole += drawn.tokens
    assert all(torch.equal(a, b) for a, b in zip(sampled, whole, strict=True))


def test_every_eos_id_ends_a_completion(tiny):
    """Qwen stops on two ids; both stay in the completion, and nothing comes after them."""
    policy, encoder = tiny
    assert len(policy.eos_ids) == 2
    assert policy.eos_ids[0] == encoder.tokenizer.eos_token_id

    prompts = [encoder.encode(make_example(1))]
    head = policy.vlm.lm_head.forward
    for eos in policy.eos_ids:
        bias = torch.zeros(len(encoder.tokenizer))
        bias[eos] = 1e4
        policy.vlm.lm_head.forward = lambda hidden, bias=bias: head(hidden) + bias

        groups = sample_groups(policy, prompts, 3, max_new_tokens=8, temperature=1.0)
        assert [c.tolist() for c in groups[0].completions] == [[eos]] * 3
        assert not is_truncated(groups[0].completions[0], policy.eos_ids)


def test_completion_without_eos_is_truncated(tiny):
    """The limit is reached: the completion has exactly that many tokens, and says so."""
    policy, encoder = tiny
    eos_ids = torch.tensor(policy.eos_ids)
    policy.vlm.lm_head.weight.data[policy.eos_ids] = 0
    head = policy.vlm.lm_head.forward
    policy.vlm.lm_head.forward = lambda hidden: head(hidden).index_fill(-1, eos_ids, -1e4)

    prompts = [encoder.encode(make_example(1))]
    groups = sample_groups(policy, prompts, 2, max_new_tokens=5, temperature=1.0)
    for completion in groups[0].completions:
        assert len(completion) == 5
        assert is_truncated(completion, policy.eos_ids)


def test_dropping_ended_sequences_changes_no_completion(tiny):
    """Sequences that end early leave the batch; the others say what they say alone (greedy)."""
    policy, encoder = tiny
    policy.vlm.lm_head.weight.data[policy.eos_ids[0]] *= 2.0
    prompts = [encoder.encode(make_example(n % 3, seed=n)) for n in range(12)]

    groups = greedy(policy, prompts, 20)
    lengths = {len(g.completions[0]) for g in groups}
    assert len(lengths) > 2, "the test needs sequences of unequal length"

    for prompt, group in zip(prompts, groups):
        alone = greedy(policy, [prompt], 20)[0]
        assert torch.equal(group.completions[0], alone.completions[0])


def test_sampling_is_seeded_and_modes_are_left_alone(tiny):
    """The same generator state draws the same tokens; the model stays in eval mode, no gradient."""
    policy, encoder = tiny
    prompt = encoder.encode(make_example(1))

    runs = []
    for _ in range(2):
        groups = sample_groups(
            policy, [prompt], 4, max_new_tokens=6, temperature=1.0, generator=seeded(5)
        )
        runs.append([c.tolist() for c in groups[0].completions])

    assert runs[0] == runs[1]
    assert len({tuple(completion) for completion in runs[0]}) > 1
    assert not policy.vlm.training
    assert all(p.grad is None for p in policy.parameters())
    assert isinstance(groups[0], Group)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_sampling_equals_the_plain_version(tiny, temperature):
    """The cache, the prefill and the positions change no token: a prompt with images, one without.

    One sequence at a time, so that both versions draw the same random numbers.
    """
    policy, encoder = tiny
    policy.vlm.lm_head.weight.data[policy.eos_ids[0]] *= 2.5  # completions end at unequal lengths
    lengths = set()
    for num_images, seed in ((1, 1), (0, 2), (2, 3)):
        prompt = encoder.encode(make_example(num_images, seed=seed))
        plain = plain_sample(policy, prompt, 12, temperature, seeded(seed))
        (group,) = sample_groups(
            policy,
            [prompt],
            1,
            max_new_tokens=12,
            temperature=temperature,
            generator=seeded(seed),
        )
        assert torch.equal(plain, group.completions[0])
        lengths.add(len(plain))
    assert temperature == 0.0 or len(lengths) > 1


def test_static_decoding_changes_no_token(tiny, monkeypatch):
    """A compiled step of fixed shapes gives the tokens of the plain loop, greedy and sampled.

    Sequences end at unequal lengths. Here the step is traced, not compiled: once, not once a token.
    """
    policy, encoder = tiny
    policy.vlm.lm_head.weight.data[policy.eos_ids[0]] *= 2.5
    traced = {"backend": "eager", "fullgraph": True, "dynamic": False}
    monkeypatch.setattr(compiled, "COMPILE", traced)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    prompts = [encoder.encode(make_example(n % 3, seed=n)) for n in range(4)]

    def completions(temperature, compile_decode):
        groups = sample_groups(
            policy,
            prompts,
            2,
            max_new_tokens=20,
            temperature=temperature,
            compile_decode=compile_decode,
            generator=seeded(1),
        )
        return [c for g in groups for c in g.completions]

    for plain, static in zip(completions(0.0, False), completions(0.0, True)):
        assert torch.equal(plain, static)

    # Sequences that were dropped draw no random numbers, so of sampled ones the first tokens agree.
    for plain, static in zip(completions(1.0, False), completions(1.0, True)):
        assert plain[0] == static[0]

    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("compile_decode", [False, True])
def test_a_decoding_step_never_repeats_the_cache(tiny, monkeypatch, compile_decode):
    """Attention gets the cache as it is, with its two key heads; repeated, they would be four."""
    policy, encoder = tiny
    monkeypatch.setattr(compiled, "COMPILE", {"backend": "eager", "dynamic": False})
    torch._dynamo.reset()
    config = policy.vlm.config.text_config
    assert config.num_attention_heads == 2 * config.num_key_value_heads

    heads = set()
    plain_attention = torch.nn.functional.scaled_dot_product_attention

    class WatchAttention(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is plain_attention and args[0].shape[0] == 6:  # sequences: a decoding step
                heads.add(args[1].shape[1])
            return function(*args, **(kwargs or {}))

    prompts = [encoder.encode(make_example(1))]
    with WatchAttention():
        sample_groups(
            policy,
            prompts,
            6,
            max_new_tokens=3,
            temperature=1.0,
            compile_decode=compile_decode,
        )
    assert heads == {config.num_key_value_heads}


@pytest.mark.parametrize("growth", [1, 3, 512])
def test_a_growing_cache_changes_no_token(tiny, monkeypatch, growth):
    """Room for one more token at a time, three, or all from the start."""
    policy, encoder = tiny
    prompts = [encoder.encode(make_example(n, seed=n)) for n in (1, 0, 2)]
    plain = greedy(policy, prompts, 12)

    monkeypatch.setattr(decoding, "GROWTH", growth)
    for group, other in zip(plain, greedy(policy, prompts, 12)):
        assert torch.equal(group.completions[0], other.completions[0])


def test_a_cache_changes_layer_by_layer():
    """Dropping sequences: at most one tensor of one layer exists twice, not the whole cache."""
    layers, shape = 8, (4, 2, 100, 16)
    cache = DecodeCache.__new__(DecodeCache)
    cache.visible = torch.ones(4, 100, dtype=torch.bool)
    kept = torch.tensor([0, 1, 2])

    with LiveBytes() as watch:
        cache.keys = [torch.zeros(shape) for _ in range(layers)]
        cache.values = [torch.zeros(shape) for _ in range(layers)]
        full = watch.live
        cache.select(kept)
    one_tensor = full / (2 * layers)
    assert watch.peak < full + 1.5 * one_tensor
    assert watch.live < 0.8 * full

    with LiveBytes() as watch:
        old = [torch.zeros(shape) for _ in range(2 * layers)]
        new = [x.index_select(0, kept) for x in old]  # the classic: all new ones, then free the old
    assert watch.peak > 1.5 * full and len(new) == len(old)


# --- The bf16 copy that samples ------------------------------------------------------------------


def test_bf16_copy_keeps_its_positions(tiny):
    """Every weight is rounded, the head stays tied, and position 5000 stays where it is.

    Rounded like the weights, the rotary frequencies would put it elsewhere.
    """
    policy, _ = tiny
    sampler = sampling_copy(policy)
    rounded = copy.deepcopy(policy).bfloat16()

    assert {p.dtype for p in sampler.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert sampler.vlm.lm_head.weight is sampler.vlm.model.language_model.embed_tokens.weight

    def cosines(p):
        far = torch.full((3, 1, 1), 5000)
        return p.vlm.model.language_model.rotary_emb(torch.zeros(1, 1, 64), far)[0]

    assert torch.equal(cosines(policy), cosines(sampler))
    assert (cosines(policy) - cosines(rounded)).abs().max() > 0.5


def test_bf16_copy_is_refreshed(tiny):
    """It samples nearly what the policy would; after a step, only `refresh` brings new weights."""
    policy, encoder = tiny
    sampler = sampling_copy(policy)
    prompts = [encoder.encode(make_example(n % 3, seed=n)) for n in range(8)]

    def probabilities(p):
        with torch.no_grad():
            hidden, *_ = prefill(p, prompts)
            return p.logits(hidden, 1.0).softmax(-1)  # (8, V)

    def distance():
        return float((probabilities(policy) - probabilities(sampler)).abs().sum(-1).mean() / 2)

    assert distance() < 0.05

    with torch.no_grad():
        for p in policy.parameters():
            p += 0.1 * torch.randn_like(p)
    assert distance() > 0.2, "the copy still is the policy of before"

    refresh(sampler, policy)
    assert distance() < 0.05


def test_bf16_copy_sees_what_is_trained_on(tiny):
    """A frozen tower encodes an image once for both, in the policy's precision.

    Training finds the very features that sampling used.
    """
    policy, encoder = tiny
    policy.vlm.model.visual.requires_grad_(False)
    sampler = sampling_copy(policy)
    prompts = [encoder.encode(make_example(1, seed=n)) for n in range(3)]

    groups = sample_groups(sampler, prompts, 2, max_new_tokens=4, temperature=1.0)
    sampled_from = {p: policy.feature_cache[p] for p in prompts}
    assert {features.dtype for features in sampled_from.values()} == {torch.float32}
    assert len(sampler.feature_cache) == 0

    token_logps(policy, groups)
    assert all(policy.feature_cache[p] is sampled_from[p] for p in prompts)
