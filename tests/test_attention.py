"""Attention over a flat list of prompts and rows, against a loop that looks up each token's keys by name."""

from types import SimpleNamespace

import torch
from conftest import make_groups

from attention import Layout, attend
from common import token_logps

HEADS, KV_HEADS, WIDTH = 4, 2, 8
MODULE = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, is_causal=True)  # what HF's attention asks its layer for


def docstring_layout() -> Layout:
    """p1 p2 p3 q1 q2 a1 a2 b1 b2 b3 c1: a and b continue p, c continues q."""
    return Layout.of([3, 2], [2, 3, 1], torch.tensor([0, 0, 1]))


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
    """Written out by hand; a dot is 0."""
    layout = docstring_layout()
    assert layout.prompts.tolist() == [[0, 1, 2], [3, 4, 0]] and layout.last.tolist() == [2, 4]
    assert layout.rows.tolist() == [[5, 6, 0], [7, 8, 9], [10, 0, 0]]
    assert layout.keys.tolist() == [[0, 1, 2, 5, 6, 0], [0, 1, 2, 7, 8, 9], [3, 4, 0, 10, 0, 0]]
    assert layout.mask[2, 0].int().tolist() == [[1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 1]]
    assert layout.back.tolist() == [0, 1, 2, 3, 4, 6, 7, 9, 10, 11, 12]


def test_attend_equals_a_loop():
    """fp64, values and gradients, rows of 0 to 4 tokens. As one long text, where everyone sees all before it, it differs."""
    lengths, rows, prompt_of = [3, 5, 1], [2, 0, 4, 1, 1], [0, 0, 2, 1, 2]
    seen = who_sees_whom(lengths, rows, prompt_of)
    weights = torch.randn(len(seen), HEADS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for function in (lambda *qkv: attend(MODULE, *qkv, Layout.of(lengths, rows, torch.tensor(prompt_of)))[0],
                     lambda *qkv: loop(*qkv, seen),
                     lambda *qkv: loop(*qkv, [list(range(i + 1)) for i in range(len(seen))])):
        qkv = random_qkv(len(seen))
        out = function(*qkv)
        (out[0] * weights).sum().backward()
        found.append([out.detach(), *[x.grad for x in qkv]])
    ours, wanted, one_text = found
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, wanted))
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(ours, one_text))


def test_dots_are_never_looked_at():
    """All dots point at token 0, which belongs to prompt p. Nothing of group q may depend on it, to the last bit."""
    layout, qkv = docstring_layout(), random_qkv(11)
    out = attend(MODULE, *qkv, layout)[0][0]  # (tokens, heads, d)
    reach = torch.autograd.grad(out[[3, 4, 10]].sum(), qkv, retain_graph=True)  # q1 q2 c1
    assert all(grad[:, :, [0, 1, 2, 5, 6, 7, 8, 9]].abs().max() == 0 for grad in reach)
    assert all(grad[:, :, [3, 4]].abs().max() > 0 for grad in reach)
    siblings = torch.autograd.grad(out[[7, 8, 9]].sum(), qkv)  # b looks at p and itself, not at a
    assert all(grad[:, :, [5, 6]].abs().max() == 0 for grad in siblings) and siblings[1][:, :, 0].abs().max() > 0


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
