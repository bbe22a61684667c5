"""Attention over one list of prompts and completions, against a loop that looks keys up by name."""

from types import SimpleNamespace

import torch

from common import token_logps
from conftest import make_groups
from model.attention import Layout, attend, plain_attend, plain_mask

HEADS, KV_HEADS, WIDTH = 4, 2, 8

# What HF's attention asks its layer for.
MODULE = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, is_causal=True)


def docstring_layout() -> Layout:
    """p1 p2 p3 q1 q2 a1 a2 b1 b2 b3 c1 c2: a and b continue p, c continues q."""
    return Layout.of([3, 2], [2, 3, 2], [0, 0, 1], "cpu")


def who_sees_whom(prompt_lengths, completion_lengths, prompt_of) -> list[list[int]]:
    """Oracle: for each token of the list, the tokens it looks at, one after the other."""
    offsets, end = [], 0
    for length in [*prompt_lengths, *completion_lengths]:
        offsets.append(end)
        end += length

    seen = []
    for offset, length in zip(offsets, prompt_lengths):
        for step in range(length):
            seen.append([offset + i for i in range(step + 1)])

    for b, length in enumerate(completion_lengths):
        prompt, offset = prompt_of[b], offsets[len(prompt_lengths) + b]
        whole_prompt = [offsets[prompt] + i for i in range(prompt_lengths[prompt])]
        for step in range(length):
            seen.append(whole_prompt + [offset + i for i in range(step + 1)])

    return seen


def loop(q, k, v, seen) -> torch.Tensor:
    """(1, heads, tokens, d) -> (1, tokens, heads, d), a token and a head at a time."""
    out = torch.zeros(q.shape[2], HEADS, WIDTH, dtype=q.dtype)
    for token, keys in enumerate(seen):
        for head in range(HEADS):
            kv = head // (HEADS // KV_HEADS)
            weights = (k[0, kv, keys] @ q[0, head, token] / WIDTH**0.5).softmax(0)
            out[token, head] = weights @ v[0, kv, keys]
    return out[None]


def random_qkv(tokens: int) -> list[torch.Tensor]:
    """Query, key and value of one layer, each (1, heads, tokens, d) in fp64."""
    g = torch.Generator().manual_seed(0)
    qkv = []
    for heads in (HEADS, KV_HEADS, KV_HEADS):
        x = torch.randn(1, heads, tokens, WIDTH, generator=g, dtype=torch.float64)
        qkv.append(x.requires_grad_())
    return qkv


def test_layout_of_the_docstring():
    """Written out by hand. Padding repeats the last token; longest completions come first."""
    layout = docstring_layout()
    assert layout.offsets.tolist() == [0, 3, 5, 7, 10]
    assert layout.last_of_prompt.tolist() == [2, 4]

    prompts, completions = layout.blocks
    assert prompts.queries.tolist() == prompts.keys.tolist() == [[0, 1, 2], [3, 4, 4]]
    assert prompts.mask is None

    assert completions.queries.tolist() == [[7, 8, 9], [5, 6, 6], [10, 11, 11]]
    assert completions.keys.tolist() == [
        [0, 1, 2, 7, 8, 9],
        [0, 1, 2, 5, 6, 6],
        [3, 4, 4, 10, 11, 11],
    ]
    assert completions.mask[2, 0].int().tolist() == [
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 0, 1, 1, 1],
    ]

    assert layout.slot_of_token.tolist() == [0, 1, 2, 3, 4, 9, 10, 6, 7, 8, 12, 13]


def test_long_and_short_sequences_are_kept_apart():
    """Every sequence is in one block, and none is padded to twice its length, as query or as key.

    In one block of all, a long completion would pad every other to its own length, and a long
    prompt would pad the keys of all.
    """
    prompts = [700, 40, 35, 600]
    completions = [5, 400, 60, 0, 61, 33, 1, 31, 7, 0, 260]
    prompt_of = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    lengths = [*prompts, *completions]

    layout = Layout.of(prompts, completions, prompt_of, "cpu")
    sequence_at = {at: i for i, at in enumerate(layout.offsets.tolist()) if lengths[i]}

    found = []
    for block in layout.blocks:
        members = [sequence_at[at] for at in block.queries[:, 0].tolist()]
        found += members
        assert all(2 * lengths[i] > block.queries.shape[1] for i in members)

        num_keys = [lengths[i] for i in members]
        if block.mask is not None:  # completions: their prompt's keys as well
            num_keys = [lengths[i] + prompts[prompt_of[i - len(prompts)]] for i in members]
        assert 2 * min(num_keys) > block.keys.shape[1]

    assert sorted(found) == sorted(sequence_at.values())

    slots = len(set(layout.slot_of_token.tolist()))
    in_one_block = len(prompts) * max(prompts) + len(completions) * max(completions)
    assert slots == sum(lengths) < in_one_block / 3


def test_attend_equals_a_loop():
    """fp64, values and gradients, completions of 0 to 4 tokens.

    As one long text, where everyone sees all that comes before, the result is another.
    """
    prompts, completions, prompt_of = [3, 5, 1], [3, 0, 4, 1, 2], [0, 0, 1, 1, 2]
    layout = Layout.of(prompts, completions, prompt_of, "cpu")
    seen = who_sees_whom(prompts, completions, prompt_of)
    everything_before = [list(range(i + 1)) for i in range(len(seen))]

    g = torch.Generator().manual_seed(1)
    weights = torch.randn(len(seen), HEADS, WIDTH, generator=g, dtype=torch.float64)

    results = []
    for function in (
        lambda *qkv: attend(MODULE, *qkv, layout)[0],
        lambda *qkv: loop(*qkv, seen),
        lambda *qkv: loop(*qkv, everything_before),
    ):
        qkv = random_qkv(len(seen))
        out = function(*qkv)
        (out[0] * weights).sum().backward()
        results.append([out.detach(), *[x.grad for x in qkv]])

    ours, wanted, one_text = results
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, wanted))
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(ours, one_text))


def test_attend_equals_the_plain_version():
    """One mask over the whole list gives the same values and gradients, unequal lengths included.

    The classic mistake, one causal mask over the list, lets a completion see its neighbours.
    """
    lengths = [3, 9, 2], [2, 5, 0, 3, 1, 7], [0, 0, 1, 1, 2, 2]
    mask = plain_mask(*lengths)
    tokens = len(mask)
    weights = torch.randn(1, tokens, HEADS, WIDTH, dtype=torch.float64)

    results = []
    for plain in (True, False):
        q, k, v = random_qkv(tokens)
        if plain:
            out = plain_attend(q, k, v, mask, WIDTH**-0.5)
        else:
            layout = Layout.of(*lengths, "cpu")
            out, _ = attend(MODULE, q, k, v, layout, scaling=WIDTH**-0.5)
        (out * weights).sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*results))

    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    wrong = plain_attend(*random_qkv(tokens), causal, WIDTH**-0.5)
    assert not torch.allclose(wrong, results[0][0], atol=1e-3)


def test_completions_attend_to_nobody_elses_tokens():
    """To the last bit: group q does not depend on group p, nor completion b on its sibling a.

    Both completions of p do depend on p.
    """
    layout, qkv = docstring_layout(), random_qkv(12)
    out = attend(MODULE, *qkv, layout)[0][0]  # (tokens, heads, d)

    of_q = torch.autograd.grad(out[[3, 4, 10, 11]].sum(), qkv, retain_graph=True)  # q1 q2 c1 c2
    assert all(grad[:, :, [0, 1, 2, 5, 6, 7, 8, 9]].abs().max() == 0 for grad in of_q)
    assert all(grad[:, :, [3, 4]].abs().max() > 0 for grad in of_q)

    of_b = torch.autograd.grad(out[[7, 8, 9]].sum(), qkv)
    assert all(grad[:, :, [5, 6]].abs().max() == 0 for grad in of_b)
    assert of_b[1][:, :, :3].abs().amin((0, 1, 3)).min() > 0


def test_layers_see_no_padding(tiny):
    """A completion of 28 tokens beside some of one: the layers get each prompt and token once."""
    policy, encoder = tiny
    groups = make_groups(encoder, sizes=(3, 4), images=(1, 0))
    groups[0].completions[0] = torch.arange(10, 38)
    groups[1].completions[1:] = [c[-1:] for c in groups[1].completions[1:]]

    passed = []
    mlp = policy.vlm.model.language_model.layers[0].mlp
    mlp.register_forward_hook(lambda module, args, out: passed.append(args[0].shape[:-1]))
    token_logps(policy, groups)

    prompts = sum(len(g.prompt.ids) for g in groups)
    # The last token of a completion is no input: nothing is predicted from it.
    inputs = [len(c) - 1 for g in groups for c in g.completions]
    assert passed == [(1, prompts + sum(inputs))]

    padded = prompts + len(inputs) * max(inputs)
    assert padded > 2 * passed[0][1], "padded to the longest, it would be twice as much"


def test_all_layers_share_one_mask(tiny):
    """What is kept for the backward pass holds one mask a block, not one for each layer."""
    policy, encoder = tiny
    groups = make_groups(encoder, sizes=(4,), images=(1,), longest=20)
    assert policy.vlm.config.text_config.num_hidden_layers > 1

    longest = max(len(c) for c in groups[0].completions) - 1
    masks = set()

    def keep(x):
        if x.ndim == 4 and x.shape[1:3] == (1, longest):
            masks.add(x.untyped_storage().data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logp = token_logps(policy, groups)
    assert logp.requires_grad
    assert len(masks) == 1
