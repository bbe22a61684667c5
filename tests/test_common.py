"""`token_logps` against HF, and the ways in which log-probabilities go wrong."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import common
import grpo
from common import micro_batches_of, plain_token_logps, token_logps
from conftest import make_groups
from harness.schedule import learning_rate
from model.records import Group, completion_mask


def hf_logits(policy, prompt, completion):
    """HF's own forward, alone in its batch: logits (t, V) that predict the completion."""
    ids = torch.cat([prompt.ids, completion])[None]
    pixel_values = prompt.pixel_values
    if pixel_values is not None:
        pixel_values = pixel_values.to(policy.vlm.dtype)

    out = policy.vlm(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == policy.vlm.config.image_token_id).int(),
        pixel_values=pixel_values,
        image_grid_thw=prompt.image_grid_thw,
    )
    return out.logits[0, len(prompt.ids) - 1 : -1]


def separate_logps(policy, groups):
    """Oracle (B, T): each completion by itself through HF, no shared prefix, softmax in full."""
    longest = max(len(c) for g in groups for c in g.completions)

    logps = []
    for g in groups:
        for c in g.completions:
            logits = hf_logits(policy, g.prompt, c).masked_fill(policy.suppressed, float("-inf"))
            logp = logits.log_softmax(-1).gather(-1, c[:, None])[:, 0]
            logps.append(nn.functional.pad(logp, (0, longest - len(c))))
    return torch.stack(logps)


# --- Values and gradients ------------------------------------------------------------------------


def test_token_logps_equal_hf_completion_by_completion(tiny):
    """Unequal prompts and groups, 0 to 2 images: a shared prefix gives what copies of it give."""
    policy, encoder = tiny
    groups = make_groups(encoder)

    with torch.no_grad():
        logp = token_logps(policy, groups)
        assert torch.allclose(logp, separate_logps(policy, groups), atol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logps_equal_the_plain_version(tiny64, temperature):
    """fp64, 1e-9, values and gradients: shared prompts, no padding, chunks change nothing."""
    policy, encoder = tiny64
    groups = make_groups(encoder, sizes=(3, 1, 2), images=(1, 0, 2))
    weights = torch.randn(completion_mask(groups).shape, dtype=torch.float64)

    results = []
    for score in (plain_token_logps, token_logps):
        policy.zero_grad()
        logp = score(policy, groups, temperature)
        (logp * weights).sum().backward()
        gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
        results.append([logp.detach(), *gradients])

    plain, fast = results
    assert len(plain) == len(fast) > 10
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(plain, fast))


def test_plain_version_needs_to_know_where_images_are(tiny):
    """Without `mm_token_type_ids` HF silently takes an image for text, and every number moves."""
    policy, encoder = tiny
    (group,) = make_groups(encoder, sizes=(1,), images=(1,))
    ids = torch.cat([group.prompt.ids, group.completions[0]])[None]

    with torch.no_grad():
        right = policy.plain_logits(group.prompt, group.completions[0])
        wrong = policy.vlm(
            input_ids=ids,
            pixel_values=group.prompt.pixel_values,
            image_grid_thw=group.prompt.image_grid_thw,
        ).logits[0]
    assert not torch.allclose(right, wrong, atol=1e-3)


def test_completions_of_one_token(tiny):
    """EOS at once, in all: no completion has an input, and the prompts' last tokens predict all."""
    policy, encoder = tiny
    groups = [Group(g.prompt, [c[-1:] for c in g.completions]) for g in make_groups(encoder)]
    logp = token_logps(policy, groups)

    assert logp.shape == (6, 1)
    assert torch.allclose(logp, separate_logps(policy, groups), atol=2e-5)

    logp.sum().backward()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("sizes, images", [((3, 1, 2), (1, 0, 2)), ((4,), (2,)), ((2, 2), (0, 0))])
def test_shared_prefix_has_the_gradients_of_separate_sequences(
    tiny64, checkpointing, sizes, images
):
    """fp64, 1e-9: what all completions send back adds up in their prompt and the vision tower."""
    policy, encoder = tiny64
    groups = make_groups(encoder, sizes=sizes, images=images)
    g = torch.Generator().manual_seed(1)
    weights = torch.randn(completion_mask(groups).shape, generator=g, dtype=torch.float64)

    (separate_logps(policy, groups) * weights).sum().backward()
    wanted = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}

    policy.zero_grad()
    policy.gradient_checkpointing = checkpointing
    (token_logps(policy, groups) * weights).sum().backward()
    found = {n: p.grad for n, p in policy.named_parameters()}

    for name, grad in wanted.items():
        assert torch.allclose(found[name], grad, atol=1e-9, rtol=1e-7), name


def test_gradient_checkpointing_changes_nothing(tiny):
    """The same values and the same gradients."""
    policy, encoder = tiny
    groups = make_groups(encoder)

    results = []
    for checkpointing in (False, True):
        policy.gradient_checkpointing = checkpointing
        logp = token_logps(policy, groups)
        policy.zero_grad()
        logp.sum().backward()
        results.append([logp.detach(), *[p.grad.clone() for p in policy.parameters()]])

    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results))


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_head_chunks_do_not_matter(tiny64, monkeypatch, chunk):
    """One token at a time, seven, or all: the same log-probs and gradients."""
    policy, encoder = tiny64
    groups = make_groups(encoder)

    results = []
    for size in (3, chunk):
        limit = size * policy.vocab_size
        monkeypatch.setattr(common, "max_logits", lambda _, limit=limit: limit)
        policy.zero_grad()
        logp = token_logps(policy, groups)
        logp.sum().backward()
        results.append([logp.detach(), policy.vlm.lm_head.weight.grad.clone()])

    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*results))


def test_head_gradient_is_summed_in_fp32(tiny, monkeypatch):
    """Under autocast, in 300 chunks: the head's gradient is as near to fp32's as in one chunk.

    With autocast's cache on, the gradients of the chunks are added up in bf16.
    """
    policy, _ = tiny
    head, V = policy.vlm.lm_head.weight, len(policy.suppressed)
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, head.shape[1], generator=g)
    targets = torch.randint(10, V - 1, (600,), generator=g)

    def gradient(size: int, autocast: bool, through_forward: bool = True) -> torch.Tensor:
        monkeypatch.setattr(common, "max_logits", lambda _: size * V)
        policy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if through_forward:  # as `token_logps` does
                logps = policy(common.chunked_logps, hidden, targets, 1.0)
            else:
                logps = common.chunked_logps(policy, hidden, targets, 1.0)
            logps.sum().backward()
        return head.grad.clone()

    exact = gradient(600, autocast=False)

    def error(grad: torch.Tensor) -> float:
        return float((grad - exact).norm() / exact.norm())

    in_one = error(gradient(600, autocast=True))
    assert error(gradient(2, autocast=True)) < 1.2 * in_one
    wrong = gradient(2, autocast=True, through_forward=False)
    assert error(wrong) > 2 * in_one, "with autocast's cache the error must be seen"


def test_sum_of_logps_is_hf_loss(tiny):
    """The mean over completion tokens is HF's own loss with the prompt masked by -100."""
    policy, encoder = tiny
    policy.suppressed[:] = False  # HF's loss suppresses no ids
    group = make_groups(encoder, sizes=(1,), images=(1,))[0]
    ids = torch.cat([group.prompt.ids, group.completions[0]])[None]
    labels = ids.clone()
    labels[:, : len(group.prompt.ids)] = -100

    with torch.no_grad():
        out = policy.vlm(
            input_ids=ids,
            labels=labels,
            pixel_values=group.prompt.pixel_values,
            image_grid_thw=group.prompt.image_grid_thw,
            mm_token_type_ids=(ids == encoder.image_token_id).int(),
        )
        logp = token_logps(policy, [group])

    assert torch.allclose(-logp.mean(), out.loss, atol=1e-5)


def make_certain(policy, path, monkeypatch) -> None:
    """Make the model certain, by a logit of 50, of the token that follows each token of `path`.

    The embedding of each is a unit vector, the layers pass it on, and the head is a table.
    """
    text = policy.vlm.model.language_model
    monkeypatch.setattr(text.norm, "forward", lambda hidden: hidden)
    for layer in text.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)

    vocabulary, width = policy.vlm.lm_head.weight.shape
    embedding, head = torch.zeros(vocabulary, width), torch.zeros(vocabulary, width)
    for i, (token, following) in enumerate(zip(path, path[1:])):
        embedding[token, i % width] = 1.0
        head[following, i % width] = 50.0
    text.embed_tokens.weight.data = embedding
    policy.vlm.lm_head.weight = nn.Parameter(head)


def test_perfect_predictor_has_logp_zero(tiny, monkeypatch):
    """A model certain of each next token has log-prob 0. Unshifted, it would have about -50."""
    policy, encoder = tiny
    group = make_groups(encoder, sizes=(1,), images=(0,))[0]
    completion = group.completions[0]
    path = [int(group.prompt.ids[-1]), *completion.tolist()]
    assert len(set(path)) == len(path), "the test needs a path without repeats"
    make_certain(policy, path, monkeypatch)

    with torch.no_grad():
        logp = token_logps(policy, [group])
        assert logp.abs().max() < 1e-6

        hidden = policy.vlm.model.language_model.embed_tokens(completion)
        unshifted = policy.logits(hidden, 1.0).log_softmax(-1).gather(-1, completion[:, None])
        assert unshifted.mean() < -2, "the classic mistake: each token predicts itself"


def test_mask_survives_pad_equals_eos(tiny):
    """EOS is trained, also where it is the padding id: lengths travel with the record."""
    _, encoder = tiny
    prompt = make_groups(encoder)[0].prompt
    eos = encoder.tokenizer.eos_token_id

    group = Group(prompt, [torch.tensor([20, eos]), torch.tensor([20, 21, 22, eos])])
    mask = completion_mask([group]).tolist()
    assert mask == [[1, 1, 0, 0], [1, 1, 1, 1]]

    padded = torch.tensor([[20, eos, eos, eos], [20, 21, 22, eos]])
    assert (padded != eos).float().tolist() != mask, "ids cannot tell padding from EOS"


def test_logps_do_not_depend_on_the_batch(tiny):
    """Alone, among longer prompts, in another order: a completion's numbers stay the same."""
    policy, encoder = tiny
    groups = make_groups(encoder, sizes=(2, 2, 2), images=(1, 2, 0))

    with torch.no_grad():
        together = token_logps(policy, groups)
        backwards = token_logps(policy, groups[::-1])
        in_order = backwards.view(3, 2, -1).flip(0).reshape(together.shape)
        assert torch.allclose(together, in_order, atol=1e-5)

        for i, group in enumerate(groups):
            alone = token_logps(policy, [group])
            assert torch.allclose(together[2 * i : 2 * i + 2, : alone.shape[1]], alone, atol=1e-5)


# --- Memory --------------------------------------------------------------------------------------


class MostLogits(TorchDispatchMode):
    """Watches every operation for tensors (tokens, V); `tokens` is the largest seen."""

    def __init__(self, head):
        super().__init__()
        self.vocabulary, self.width = head.shape
        self.tokens = 0

    def is_logits(self, x) -> bool:
        if not isinstance(x, torch.Tensor) or x.ndim != 2:
            return False
        # The head itself, transposed, is (width, vocabulary).
        return x.shape[1] == self.vocabulary and len(x) != self.width

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if self.is_logits(x):
                self.tokens = max(self.tokens, len(x))
        return out


def test_no_tensor_of_all_tokens_by_vocabulary(tiny, monkeypatch):
    """Forward and backward, no tensor holds more than `max_logits` logits.

    In one piece, there is a tensor of all tokens by the vocabulary.
    """
    policy, encoder = tiny
    head = policy.vlm.lm_head.weight
    groups = make_groups(encoder, sizes=(4, 4), images=(1, 0), longest=30)
    tokens = sum(len(c) for g in groups for c in g.completions)

    most = []
    for chunk in (16, 10_000):
        monkeypatch.setattr(common, "max_logits", lambda _, size=chunk * len(head): size)
        with MostLogits(head) as watch:
            token_logps(policy, groups).sum().backward()
        most.append(watch.tokens)

    assert most == [16, tokens]
    assert tokens > 32


def test_no_logits_wait_for_backward(tiny, monkeypatch):
    """In chunks, no logits at all are kept between forward and backward.

    In one piece, those of all tokens are, several times over.
    """
    policy, encoder = tiny
    head = policy.vlm.lm_head.weight
    groups = make_groups(encoder, sizes=(4, 4), images=(1, 0), longest=30)
    tokens = sum(len(c) for g in groups for c in g.completions)
    is_logits = MostLogits(head).is_logits

    kept = []
    for chunk in (16, 10_000):
        monkeypatch.setattr(common, "max_logits", lambda _, size=chunk * len(head): size)
        saved = []

        def keep(x, saved=saved):
            saved.append(x)
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            logp = token_logps(policy, groups)
        kept.append(sum(len(x) for x in saved if is_logits(x)))
        logp.sum().backward()

    assert kept[0] == 0
    assert kept[1] >= tokens


# --- Micro-batches and the learning rate ---------------------------------------------------------


def test_micro_batches_hold_every_completion_once(tiny):
    """Any budget: completions keep their order, none is lost, and each part knows its place.

    A large group is split, down to single completions.
    """
    _, encoder = tiny
    groups = make_groups(encoder, sizes=(5, 1, 3), images=(1, 0, 2))
    completions = [c.tolist() for g in groups for c in g.completions]

    for budget in (1, 60, 120, 10_000):
        parts = micro_batches_of(groups, budget)
        assert [c.tolist() for p in parts for g in p.groups for c in g.completions] == completions
        for part in parts:
            in_part = [c.tolist() for g in part.groups for c in g.completions]
            assert completions[part.span] == in_part

    assert all(len(g.completions) == 1 for part in micro_batches_of(groups, 1) for g in part.groups)
    assert len(micro_batches_of(groups, 10_000)) == 1


def test_a_longer_run_has_another_cosine():
    """At the end of 100 steps the rate is a tenth; in a run of 200 it is more than half there."""
    cfg = SimpleNamespace(lr=1.0, warmup_steps=0, schedule="cosine")
    assert learning_rate(100, cfg, 100) == pytest.approx(0.1)
    assert learning_rate(100, cfg, 200) == pytest.approx(0.55)


def test_learning_rate():
    """Warm-up by step, then flat, or down to a tenth."""
    cfg = grpo.Config(lr=1.0, warmup_steps=4, steps=104)
    assert [learning_rate(s, cfg, 104) for s in (0, 1, 3, 50)] == [0.25, 0.5, 1.0, 1.0]

    cosine = replace(cfg, schedule="cosine")
    assert learning_rate(4, cosine, 104) == 1.0
    assert learning_rate(104, cosine, 104) == pytest.approx(0.1)
