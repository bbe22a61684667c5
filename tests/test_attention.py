"""Attention over a flat list of prompts and rows, against a loop that looks up each token's keys by name."""

from types import SimpleNamespace

import torch
from conftest import make_groups

from attention import Layout, attend
from common import token_logps

HEADS, KV_HEADS, WIDTH = 4, 2, 8
MODULE = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, is_causal=True)  # what HF's attention asks its layer for


def docstring_layout() -> Layout:
    """p1 p2 p3 q1 q2 a1 a2 b1 b2 b3 c1 c2: a and b continue p, c continues q."""
    return Layout.of([3, 2], [2, 3, 2], [0, 0, 1], "cpu")


def who_sees_whom(prompt_lengths, row_lengths, prompt_of) -> list[list[int]]:
    """Oracle: for each token of the list, the places it looks at, one after the other."""
    starts, at = [], 0
    for length in [*prompt_lengths, *row_lengths]:
        starts.append(at)
        at += length
    seen = [[start + i for i in range(step + 1)] for start, length in zip(starts, prompt_lengths) for step in range(length)]
    for row, length in enumerate(row_lengths):
        own, prompt = starts[len(prompt_lengths) + row], prompt_of[row]
        before = [starts[prompt] + i for i in range(prompt_lengths[prompt])]
        seen += [before + [own + i for i in range(step + 1)] for step in range(length)]
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
    g = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, tokens, WIDTH, generator=g, dtype=torch.float64).requires_grad_() for heads in (HEADS, KV_HEADS, KV_HEADS)]


def test_layout_of_the_docstring():
    """Written out by hand; a dot repeats the last token before it. Rows stand by falling length: b, a, c."""
    layout = docstring_layout()
    assert layout.starts.tolist() == [0, 3, 5, 7, 10]
    prompts, rows = layout.blocks
    assert prompts.queries.tolist() == prompts.keys.tolist() == [[0, 1, 2], [3, 4, 4]] and prompts.mask is None
    assert rows.queries.tolist() == [[7, 8, 9], [5, 6, 6], [10, 11, 11]]
    assert rows.keys.tolist() == [[0, 1, 2, 7, 8, 9], [0, 1, 2, 5, 6, 6], [3, 4, 4, 10, 11, 11]]
    assert rows.mask[2, 0].int().tolist() == [[1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 1]]
    assert layout.back.tolist() == [0, 1, 2, 3, 4, 9, 10, 6, 7, 8, 12, 13]


def test_long_and_short_are_kept_apart():
    """Every prompt and row once, none padded to twice its length, as queries or as keys. In one block, a long row would
    stretch all others to its own length, and a long prompt everyone's keys."""
    prompts, rows = [700, 40, 35, 600], [5, 400, 60, 0, 61, 33, 1, 31, 7, 0, 260]
    prompt_of, lengths = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3], [*prompts, *rows]
    layout, found = Layout.of(prompts, rows, prompt_of, "cpu"), []
    starts = {start: i for i, start in enumerate(layout.starts.tolist()) if lengths[i]}
    for block in layout.blocks:
        members = [starts[start] for start in block.queries[:, 0].tolist()]
        found += members
        keys = [lengths[i] + (0 if block.mask is None else prompts[prompt_of[i - 4]]) for i in members]
        assert all(2 * lengths[i] > block.queries.shape[1] for i in members) and 2 * min(keys) > block.keys.shape[1]
    assert sorted(found) == sorted(starts.values())
    assert len(set(layout.back.tolist())) == sum(lengths) < (4 * max(prompts) + 11 * max(rows)) / 3


def test_attend_equals_a_loop():
    """fp64, values and gradients, rows of 0 to 4 tokens. As one long text, where everyone sees all before it, it differs."""
    lengths, rows, prompt_of = [3, 5, 1], [3, 0, 4, 1, 2], [0, 0, 1, 1, 2]
    seen = who_sees_whom(lengths, rows, prompt_of)
    weights = torch.randn(len(seen), HEADS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for function in (lambda *qkv: attend(MODULE, *qkv, Layout.of(lengths, rows, prompt_of, "cpu"))[0],
                     lambda *qkv: loop(*qkv, seen),
                     lambda *qkv: loop(*qkv, [list(range(i + 1)) for i in range(len(seen))])):
        qkv = random_qkv(len(seen))
        out = function(*qkv)
        (out[0] * weights).sum().backward()
        found.append([out.detach(), *[x.grad for x in qkv]])
    ours, wanted, one_text = found
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, wanted))
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(ours, one_text))


def test_rows_look_at_nobody_elses_tokens():
    """To the last bit: group q does not depend on group p, nor row b on its sibling a; both of p's rows do on p."""
    layout, qkv = docstring_layout(), random_qkv(12)
    out = attend(MODULE, *qkv, layout)[0][0]  # (tokens, heads, d)
    reach = torch.autograd.grad(out[[3, 4, 10, 11]].sum(), qkv, retain_graph=True)  # q1 q2 c1 c2
    assert all(grad[:, :, [0, 1, 2, 5, 6, 7, 8, 9]].abs().max() == 0 for grad in reach)
    assert all(grad[:, :, [3, 4]].abs().max() > 0 for grad in reach)
    of_b = torch.autograd.grad(out[[7, 8, 9]].sum(), qkv)
    assert all(grad[:, :, [5, 6]].abs().max() == 0 for grad in of_b) and of_b[1][:, :, :3].abs().amin((0, 1, 3)).min() > 0


def test_layers_see_no_padding(tiny):
    """A row of 28 tokens beside rows of one: the layers get each prompt once and each token once, no more."""
    policy, codec = tiny
    groups = make_groups(codec, sizes=(3, 4), pictures=(1, 0))
    groups[0].completions[0] = torch.arange(10, 38)
    groups[1].completions[1:] = [c[-1:] for c in groups[1].completions[1:]]
    passed = []
    mlp = policy.vlm.model.language_model.layers[0].mlp
    mlp.register_forward_hook(lambda module, args, out: passed.append(args[0].shape[:-1]))
    token_logps(policy, groups)
    prompts = sum(len(g.prompt.ids) for g in groups)
    inputs = [len(c) - 1 for g in groups for c in g.completions]  # nothing is predicted from the last token
    assert passed == [(1, prompts + sum(inputs))]
    assert prompts + len(inputs) * max(inputs) > 2 * passed[0][1], "padded to the longest, it would be twice as much"
