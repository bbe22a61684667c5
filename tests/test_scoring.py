"""`token_logps` against HF, positions against HF, and the ways in which scoring goes wrong."""

import copy

import pytest
import torch
from conftest import fresh_policy, make_groups, make_row
from torch import nn

import common
from common import Group, completion_mask, load_model, micro_batches, next_positions, save_model, token_logps
from prompts import Prompt, mrope_positions


def hf_logits(policy, prompt, completion):
    """HF's own forward over prompt + completion, alone in its batch: logits (t, V) that predict the completion."""
    ids = torch.cat([prompt.ids, completion])[None]
    kinds = (ids == policy.vlm.config.image_token_id).int()
    pixels = None if prompt.pixels is None else prompt.pixels.to(policy.vlm.dtype)
    out = policy.vlm(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, pixel_values=pixels,
                     image_grid_thw=prompt.grids)
    return out.logits[0, len(prompt.ids) - 1 : -1]


def separate_rows(policy, groups):
    """Oracle: every row by itself through HF, no shared prefix, full softmax over allowed ids."""
    width = max(len(c) for g in groups for c in g.completions)
    rows = []
    for g in groups:
        for c in g.completions:
            logits = hf_logits(policy, g.prompt, c).masked_fill(policy.banned, float("-inf"))
            logp = logits.log_softmax(-1).gather(-1, c[:, None])[:, 0]
            rows.append(nn.functional.pad(logp, (0, width - len(c))))
    return torch.stack(rows)


def test_token_logps_equal_hf_row_by_row(tiny):
    """Unequal prompts, 0, 1 and 2 pictures, unequal groups: the shared prefix gives what separate rows give."""
    policy, codec = tiny
    groups = make_groups(codec)
    with torch.no_grad():
        logp, _ = token_logps(policy, groups)
        assert torch.allclose(logp, separate_rows(policy, groups), atol=2e-5)


def test_completions_of_one_token(tiny):
    """EOS at once, by all: no row is left, and the prompts' last tokens predict everything."""
    policy, codec = tiny
    groups = [Group(g.prompt, [c[-1:] for c in g.completions]) for g in make_groups(codec)]
    logp, _ = token_logps(policy, groups)
    assert logp.shape == (6, 1) and torch.allclose(logp, separate_rows(policy, groups), atol=2e-5)
    logp.sum().backward()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("sizes, pictures", [((3, 1, 2), (1, 0, 2)), ((4,), (2,)), ((2, 2), (0, 0))])
def test_shared_prefix_has_the_gradients_of_separate_rows(tiny64, recompute, sizes, pictures):
    """fp64, 1e-9: what all rows of a group send back meets in its one prompt, and in the vision tower."""
    policy, codec = tiny64
    groups = make_groups(codec, sizes=sizes, pictures=pictures)
    weights = torch.randn(completion_mask(groups).shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (separate_rows(policy, groups) * weights).sum().backward()
    wanted = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    policy.recompute = recompute
    (token_logps(policy, groups)[0] * weights).sum().backward()
    for name, grad in wanted.items():
        found = dict(policy.named_parameters())[name].grad
        assert torch.allclose(found, grad, atol=1e-9, rtol=1e-7), name


def test_recompute_changes_nothing(tiny):
    """Gradient checkpointing: same values, same gradients."""
    policy, codec = tiny
    groups, grads = make_groups(codec), []
    for recompute in (False, True):
        policy.recompute = recompute
        logp, _ = token_logps(policy, groups)
        policy.zero_grad()
        logp.sum().backward()
        grads.append([logp.detach(), *[p.grad.clone() for p in policy.parameters()]])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads))


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_head_chunks_do_not_matter(tiny64, monkeypatch, chunk):
    """One token at a time, seven, or all at once: the same log-probs, entropies and gradients."""
    policy, codec = tiny64
    groups = make_groups(codec)
    results = []
    for size in (3, chunk):
        monkeypatch.setattr(common, "HEAD_LOGITS", size * len(policy.banned))
        policy.zero_grad()
        logp, entropy = token_logps(policy, groups)
        logp.sum().backward()
        results.append([logp.detach(), entropy, policy.vlm.lm_head.weight.grad.clone()])
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*results))


def test_sum_of_logps_is_hf_loss(tiny):
    """The mean over completion tokens is HF's own language-model loss with the prompt masked by -100."""
    policy, codec = tiny
    policy.banned[:] = False  # HF's loss knows of no banned ids
    group = make_groups(codec, sizes=(1,), pictures=(1,))[0]
    ids = torch.cat([group.prompt.ids, group.completions[0]])[None]
    labels = ids.clone()
    labels[:, : len(group.prompt.ids)] = -100
    with torch.no_grad():
        out = policy.vlm(input_ids=ids, labels=labels, pixel_values=group.prompt.pixels, image_grid_thw=group.prompt.grids,
                         mm_token_type_ids=(ids == codec.image_token_id).int())
        logp, _ = token_logps(policy, [group])
    assert torch.allclose(-logp.mean(), out.loss, atol=1e-5)


def test_perfect_predictor_has_logp_zero(tiny, monkeypatch):
    """A model certain of every next token scores 0. Without the shift by one it would score about -50 a token."""
    policy, codec = tiny
    group = make_groups(codec, sizes=(1,), pictures=(0,))[0]
    path = [int(group.prompt.ids[-1]), *group.completions[0].tolist()]
    after = dict(zip(path, path[1:]))  # the token that follows each token
    table = torch.zeros(len(codec.tokenizer), len(codec.tokenizer))
    for token, following in after.items():
        table[token, following] = 50.0
    monkeypatch.setattr(policy.vlm.model.language_model.norm, "forward", lambda h: h)
    for layer in policy.vlm.model.language_model.layers:  # the embedding reaches the head untouched
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    eye = torch.eye(len(codec.tokenizer))
    policy.vlm.model.language_model.embed_tokens.weight.data = eye[:, : policy.vlm.config.text_config.hidden_size] * 0
    width = policy.vlm.config.text_config.hidden_size
    for i, token in enumerate(after):
        policy.vlm.model.language_model.embed_tokens.weight.data[token, i % width] = 1.0
    head = torch.zeros(len(codec.tokenizer), width)
    for i, token in enumerate(after):
        head[:, i % width] = table[token]
    policy.vlm.lm_head.weight = nn.Parameter(head)
    with torch.no_grad():
        logp, _ = token_logps(policy, [group])
        assert len(set(path)) == len(path), "the test needs a path without repeats"
        assert logp.abs().max() < 1e-6
        unshifted = policy.logits(policy.vlm.model.language_model.embed_tokens(group.completions[0]), 1.0).log_softmax(-1)
        assert unshifted.gather(-1, group.completions[0][:, None]).mean() < -2, "the classic mistake scores badly"


def test_mask_survives_pad_equals_eos(tiny):
    """EOS is trained, also where it is the padding id: lengths travel with the record."""
    _, codec = tiny
    eos = codec.tokenizer.eos_token_id
    group = Group(make_groups(codec)[0].prompt, [torch.tensor([20, eos]), torch.tensor([20, 21, 22, eos])])
    assert completion_mask([group]).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    padded = torch.tensor([[20, eos, eos, eos], [20, 21, 22, eos]])
    assert (padded != eos).float().tolist() != completion_mask([group]).tolist(), "ids cannot tell padding from EOS"


def test_logps_do_not_depend_on_company(tiny):
    """Alone, among longer prompts, in another order: a row's numbers are its own."""
    policy, codec = tiny
    groups = make_groups(codec, sizes=(2, 2, 2), pictures=(1, 2, 0))
    with torch.no_grad():
        together = token_logps(policy, groups)[0]
        backwards = token_logps(policy, groups[::-1])[0]
        assert torch.allclose(together, backwards.view(3, 2, -1).flip(0).reshape(together.shape), atol=1e-5)
        for i, group in enumerate(groups):
            alone = token_logps(policy, [group])[0]
            assert torch.allclose(together[2 * i : 2 * i + 2, : alone.shape[1]], alone, atol=1e-5)


def test_pictures_follow_their_rows(tiny):
    """1, 3, 0 and 2 pictures a prompt, permuted and put back. Swapping pixels between prompts must show."""
    policy, codec = tiny
    groups = make_groups(codec, sizes=(1, 1, 1, 1), pictures=(1, 3, 0, 2))
    order = [3, 1, 0, 2]
    with torch.no_grad():
        straight = token_logps(policy, groups)[0]
        permuted = token_logps(policy, [groups[i] for i in order])[0]
        assert torch.allclose(straight[order], permuted, atol=1e-5)
        other = make_groups(codec, seed=5, sizes=(1,), pictures=(1,))[0].prompt.pixels
        wrong = Group(Prompt(**{**vars(groups[0].prompt), "pixels": other}), groups[0].completions)
        assert not torch.allclose(token_logps(policy, [wrong])[0], token_logps(policy, groups[:1])[0], atol=1e-3)


def test_text_only_rows_still_reach_the_vision_tower(tiny):
    """A gradient of zero, not no gradient: DDP waits for every trained weight."""
    policy, codec = tiny
    groups = make_groups(codec, sizes=(2,), pictures=(0,))
    token_logps(policy, groups)[0].sum().backward()
    grads = [p.grad for p in policy.vlm.model.visual.parameters()]
    assert all(g is not None and g.abs().max() == 0 for g in grads)


def test_golden_positions_of_text_and_pictures():
    """Text, a picture of 2x3 merged patches, two words, a picture of 1x1, a word; written out by hand."""
    image, text = 5, 9
    ids = [text, *[image] * 6, text, text, image, text]
    grids = torch.tensor([[1, 4, 6], [1, 2, 2]])
    assert mrope_positions(ids, grids, image, merge=2).tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5, 6, 7],
        [0, 1, 1, 1, 2, 2, 2, 4, 5, 6, 7],
        [0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7]]


def test_positions_equal_hf(tiny):
    """Ours against `get_rope_index`, 0 to 3 pictures."""
    policy, codec = tiny
    for count in range(4):
        prompt = codec.encode(make_row(count))
        kinds = (prompt.ids == codec.image_token_id).int()[None]
        wanted, _ = policy.vlm.model.get_rope_index(prompt.ids[None], mm_token_type_ids=kinds, image_grid_thw=prompt.grids)
        assert torch.equal(prompt.positions, wanted[:, 0])


def test_completion_positions_after_a_picture(tiny):
    """A prompt that ends in a picture: go on from the largest axis, not from the token count."""
    policy, codec = tiny
    prompt = codec.encode(make_row(1))
    ends = len(prompt.ids) - prompt.ids.tolist()[::-1].index(codec.image_token_id)
    cut = Prompt(prompt.row, prompt.ids[:ends], prompt.positions[:, :ends], prompt.pixels, prompt.grids)
    first = next_positions([cut], 2)
    assert first.tolist() == [[int(cut.positions.max()) + 1, int(cut.positions.max()) + 2]]
    assert first[0, 0] != len(cut.ids), "the token count would be a classic mistake"


def test_banned_ids_get_no_probability(tiny):
    """Entropy and log-probs are of the distribution without picture and special ids."""
    policy, codec = tiny
    logits = policy.logits(torch.randn(3, policy.vlm.config.text_config.hidden_size), 1.0)
    assert logits.softmax(-1)[:, policy.banned].abs().max() == 0
    assert {codec.image_token_id, policy.vlm.config.video_token_id} <= set(policy.banned.nonzero()[:, 0].tolist())
    assert not policy.banned[policy.eos_ids].any()


def test_micro_batches_hold_every_row_once(tiny):
    """Any budget: rows keep their order, none is lost, a large group is split down to single rows."""
    _, codec = tiny
    groups = make_groups(codec, sizes=(5, 1, 3), pictures=(1, 0, 2))
    rows = [c.tolist() for g in groups for c in g.completions]
    for budget in (1, 60, 120, 10_000):
        parts = micro_batches(groups, budget)
        assert [c.tolist() for part in parts for g in part for c in g.completions] == rows
    assert all(len(g.completions) == 1 for part in micro_batches(groups, 1) for g in part)
    assert len(micro_batches(groups, 10_000)) == 1


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_give_equal_logps(tiny, tmp_path, tied):
    """3B-like (tied) and 7B-like (untied) heads: a saved folder opens again, and the tie survives a step."""
    policy, codec = tiny
    if not tied:
        policy.vlm.config.tie_word_embeddings = False
        policy.vlm.lm_head.weight = nn.Parameter(torch.randn_like(policy.vlm.lm_head.weight))
    save_model(policy, codec, tmp_path / "model")
    loaded, codec2 = load_model(str(tmp_path / "model"))
    groups = make_groups(codec2)
    with torch.no_grad():
        assert torch.equal(token_logps(policy, groups)[0], token_logps(loaded, groups)[0])
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    token_logps(loaded, groups)[0].sum().backward()
    optimizer.step()
    same = loaded.vlm.lm_head.weight is loaded.vlm.model.language_model.embed_tokens.weight
    assert same == tied


def test_small_steps_move_fp32_weights_only():
    """A step of 1e-6 reaches every fp32 weight of size 0.02, and only about 2 % of bf16 ones."""
    weights = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 0.02
    moved32 = ((weights + 1e-6) != weights).float().mean()
    half = weights.bfloat16()
    moved16 = ((half + torch.tensor(1e-6).bfloat16()) != half).float().mean()
    assert moved32 == 1 and moved16 < 0.05


def test_weights_load_as_fp32_in_eval_mode(tmp_path):
    """bf16 folders too (as Qwen's are): master weights are fp32 and dropout stays off."""
    policy, codec = fresh_policy()
    half = copy.deepcopy(policy)
    half.vlm.bfloat16()
    save_model(half, codec, tmp_path / "half")
    loaded, _ = load_model(str(tmp_path / "half"))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} and not loaded.vlm.training


def test_frozen_tower_looks_once(tiny, monkeypatch):
    """Frozen: one pass a picture however often it is scored, the same values, forgotten with its prompt.
    Trained: a pass each time, or gradients and later steps would see what an older tower saw."""
    policy, codec = tiny
    groups, passes = make_groups(codec), []
    run_tower = policy.run_tower
    monkeypatch.setattr(policy, "run_tower", lambda prompts: passes.append(len(prompts)) or run_tower(prompts))
    fresh = token_logps(policy, groups)[0]
    policy.vlm.model.visual.requires_grad_(False)
    first, again = token_logps(policy, groups)[0], token_logps(policy, groups[::-1])[0]
    assert passes == [2, 2] and torch.equal(fresh, first)  # two of the three prompts have pictures
    assert torch.allclose(again[:2, : first.shape[1]], first[4:6, : again.shape[1]], atol=1e-5)
    del groups
    assert len(policy.seen) == 0
    policy.vlm.model.visual.requires_grad_(True)
    token_logps(policy, make_groups(codec))
    assert passes == [2, 2, 2] and len(policy.seen) == 0


def test_no_tensor_of_all_tokens_by_vocabulary(tiny, monkeypatch):
    """Log-probs without logits: forward and backward, no tensor holds more than HEAD_LOGITS of them.
    Scored in one piece, there is one of all tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode

    policy, codec = tiny
    vocabulary, width = policy.vlm.lm_head.weight.shape  # the head itself, transposed, is (width, vocabulary)
    groups = make_groups(codec, sizes=(4, 4), pictures=(1, 0), longest=30)
    tokens = sum(len(c) for g in groups for c in g.completions)

    class Widest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor) and x.ndim == 2 and x.shape[1] == vocabulary and len(x) != width:
                    self.rows = max(self.rows, len(x))
            return out

    seen = []
    for chunk in (16, 10_000):
        monkeypatch.setattr(common, "HEAD_LOGITS", chunk * vocabulary)
        with Widest() as widest:
            token_logps(policy, groups)[0].sum().backward()
        seen.append(widest.rows)
    assert seen == [16, tokens] and tokens > 32


def test_no_logits_wait_for_backward(tiny, monkeypatch):
    """More than one chunk: between forward and backward not a single row of logits is kept. In one piece they all are,
    several times over."""
    policy, codec = tiny
    vocabulary, width = policy.vlm.lm_head.weight.shape
    groups, kept = make_groups(codec, sizes=(4, 4), pictures=(1, 0), longest=30), []
    for chunk in (16, 10_000):
        monkeypatch.setattr(common, "HEAD_LOGITS", chunk * vocabulary)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            logp, _ = token_logps(policy, groups)
        kept.append(sum(len(x) for x in saved if x.ndim == 2 and x.shape[1] == vocabulary and len(x) != width))
        logp.sum().backward()
    assert kept[0] == 0 and kept[1] >= sum(len(c) for g in groups for c in g.completions)
