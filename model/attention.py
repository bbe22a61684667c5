"""Attention for one prompt with many completions: one packed sequence, without padding.

From the last token of a completion nothing is predicted, so the model never reads it: the *input*
of a completion is all its tokens but the last. A pass over prompt p with the inputs a and b, and
prompt q with the input c, is one packed sequence, prompts first:

    p1 p2 p3 q1 q2 a1 a2 b1 b2 b3 c1 c2

Every layer works on it token by token. Only attention must know which tokens belong together:

    a prompt attends to itself        a completion attends to its whole prompt, and to itself
        p1 p2 p3                          a:  p1 p2 p3 | a1 a2 .
        q1 q2 .                           b:  p1 p2 p3 | b1 b2 b3
                                          c:  q1 q2 .  | c1 c2 .

(and nothing attends to what comes later). So the keys and values of a prompt are computed once,
however many completions it has, and in the backward pass their gradients add up.

There are two versions, equal by test. The plain one is the definition: one mask over the whole
packed sequence. It wastes most of its work on tokens that have nothing to do with each other. The
fast one gathers each completion with its prompt, and is the one that runs. The dots above are the
only padding there is; they are masked, and exist inside attention only.

The fast version works in *blocks*, one call of attention each. Sequences are bucketed by length for
it: in a block the longest is less than twice as long as the shortest.

Dimensions beside those of `records.py`
    tokens   length of the packed sequence      d   width of one attention head
    n        sequences in a block               Q   longest of them      K   keys per query
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

NAME = "one_prompt_many_completions"  # what HF's layers know `attend` by


# --- 1. The plain version ----------------------------------------------------------------------


def plain_mask(
    prompt_lengths: list[int], completion_lengths: list[int], prompt_of: list[int]
) -> Tensor:
    """(tokens, tokens) bool: which token (row) attends to which (column).

    A token attends to its group's prompt and to its own sequence, and never ahead. Arguments as in
    `Layout.of`.
    """
    num_prompts, num_completions = len(prompt_lengths), len(completion_lengths)
    lengths = torch.tensor([*prompt_lengths, *completion_lengths])  # (N + B,)
    prompt_of_sequence = torch.tensor([*range(num_prompts), *prompt_of])  # (N + B,)

    sequence = torch.arange(num_prompts + num_completions).repeat_interleave(lengths)  # (tokens,)
    prompt = prompt_of_sequence[sequence]  # (tokens,)
    index = torch.arange(len(sequence))  # (tokens,)

    same_sequence = sequence[:, None] == sequence
    in_my_prompt = prompt[:, None] == sequence  # sequence n < N is prompt n
    not_ahead = index[:, None] >= index
    return (same_sequence | in_my_prompt) & not_ahead


def plain_attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention as it is defined: softmax(q k^T * scaling) v, over the tokens that the mask allows.

    q        (1, query heads, tokens, d)
    k, v     (1, key heads, tokens, d); several query heads share one key head
    mask     (tokens, tokens) bool, see `plain_mask`
    returns  (1, tokens, query heads, d)
    """
    queries_per_key = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(queries_per_key, dim=1)
    v = v.repeat_interleave(queries_per_key, dim=1)

    scores = q @ k.transpose(-1, -2) * scaling  # (1, query heads, tokens, tokens)
    scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


# --- 2. The layout: where each token is, and to which it attends -------------------------------


@dataclass(frozen=True)
class Block:
    """One call of attention: prompts, or completions, of similar length, padded to the longest."""

    queries: Tensor  # (n, Q) indices into the packed sequence
    keys: Tensor  # (n, K) the same; the prompt of a completion comes first
    mask: Tensor | None  # (n, 1, Q, K) bool, True where a query sees a key; None: causal (prompts)
    is_token: Tensor  # (n, Q) bool, False where `queries` is padding; on the CPU
    additive_masks: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def additive_mask(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as what is added to the scores, 0 or -inf: made once for all layers.

        SDPA would make one of its own from a bool mask, in each layer, and keep it for the backward
        pass (test_all_layers_share_one_mask).
        """
        if self.mask is None:
            return None
        if dtype not in self.additive_masks:
            hidden = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device)
            self.additive_masks[dtype] = hidden.masked_fill_(~self.mask, float("-inf"))
        return self.additive_masks[dtype]


@dataclass(frozen=True)
class Layout:
    """Where prompts and completions are in the packed sequence, and the blocks of attention."""

    offsets: Tensor  # (N + B,) index of the first token of each prompt and completion; CPU
    last_of_prompt: Tensor  # (N,) index of the last token of each prompt; on the CPU
    blocks: list[Block]
    slot_of_token: Tensor  # (tokens,) row of each token in the outputs of all blocks

    @classmethod
    def of(
        cls,
        prompt_lengths: list[int],
        completion_lengths: list[int],
        prompt_of: list[int],
        device: torch.device,
    ) -> "Layout":
        """Lay out a pass.

        prompt_lengths      N numbers of tokens
        completion_lengths  B numbers of input tokens, 0 for a completion that is only its EOS
        prompt_of           B, the prompt of each completion; empty for a pass over prompts only
        """
        num_prompts = len(prompt_lengths)
        lengths = torch.tensor([*prompt_lengths, *completion_lengths])  # (N + B,)
        offsets = lengths.cumsum(0) - lengths  # (N + B,)

        blocks = []
        for prompts in bucket_by_length(range(num_prompts), lengths):
            blocks.append(prompt_block(prompts, offsets, lengths, device))

            # Of these prompts only, or one long prompt would pad the keys of all others.
            here = [num_prompts + b for b, prompt in enumerate(prompt_of) if prompt in prompts]
            for completions in bucket_by_length(here, lengths):
                their_prompts = [prompt_of[c - num_prompts] for c in completions]
                blocks.append(
                    completion_block(completions, their_prompts, offsets, lengths, device)
                )

        last_of_prompt = (offsets + lengths - 1)[:num_prompts]
        slot_of_token = slots_of_tokens(blocks, int(lengths.sum()))
        return cls(offsets, last_of_prompt, blocks, slot_of_token.to(device))


def prompt_block(prompts: list[int], offsets: Tensor, lengths: Tensor, device) -> Block:
    """Prompts attend to themselves: causal attention, so no mask is needed."""
    queries, is_token = padded_indices(offsets[prompts], lengths[prompts])  # (n, Q)
    return Block(queries.to(device), queries.to(device), None, is_token)


def completion_block(
    completions: list[int], prompts: list[int], offsets: Tensor, lengths: Tensor, device
) -> Block:
    """Completions attend to their prompt and to themselves; prompts (n,) of each completion."""
    prompt_keys, in_prompt = padded_indices(offsets[prompts], lengths[prompts])  # (n, S)
    queries, is_token = padded_indices(offsets[completions], lengths[completions])  # (n, Q)
    num, longest = queries.shape

    earlier = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()  # (Q, Q)
    in_prompt = in_prompt.to(device)[:, None].expand(-1, longest, -1)  # (n, Q, S)
    mask = torch.cat([in_prompt, earlier.expand(num, -1, -1)], dim=2)  # (n, Q, S + Q)

    keys = torch.cat([prompt_keys, queries], dim=1)  # (n, S + Q)
    return Block(queries.to(device), keys.to(device), mask[:, None], is_token)


def slots_of_tokens(blocks: list[Block], num_tokens: int) -> Tensor:
    """(tokens,) the row in which each token's output lies, when all blocks are laid end to end.

    For the picture above, longest first, the rows are  p1 p2 p3 q1 q2 . b1 b2 b3 a1 a2 . c1 c2 .
    So b1 is in row 6, and a1 in row 9.
    """
    token_of_slot = torch.cat([block.queries.cpu().flatten() for block in blocks])  # (slots,)
    is_token = torch.cat([block.is_token.flatten() for block in blocks])  # (slots,)

    slot_of_token = torch.empty(num_tokens, dtype=torch.long)
    slot_of_token[token_of_slot[is_token]] = is_token.nonzero()[:, 0]
    return slot_of_token


def padded_indices(offsets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of n sequences in the packed sequence, padded to the longest.

    offsets, lengths (n,) -> indices (n, longest), is_token (n, longest) bool. Padding repeats the
    last token of its own sequence, so that every index is a valid one.
    """
    step = torch.arange(int(lengths.max()))  # (longest,)
    is_token = step < lengths[:, None]
    return offsets[:, None] + torch.minimum(step, lengths[:, None] - 1), is_token


def bucket_by_length(sequences: Iterable[int], lengths: Tensor) -> list[list[int]]:
    """Sort by length and cut into buckets, each with its longest under twice its shortest.

    A sequence of length 0 (a completion that is only its EOS) is in no bucket: it has no input.
    """
    length = lengths.tolist()
    buckets: list[list[int]] = []

    for i in sorted(sequences, key=lambda i: -length[i]):
        if length[i] == 0:
            continue
        if buckets and length[buckets[-1][0]] < 2 * length[i]:
            buckets[-1].append(i)
        else:
            buckets.append([i])
    return buckets


# --- 3. The fast version -----------------------------------------------------------------------


def attend(
    module, q: Tensor, k: Tensor, v: Tensor, layout: Layout | Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """`plain_attend` over `plain_mask`, block by block (test_attend_equals_the_plain_version).

    34 to 54 times faster on a rollout of the embedded world (2,446 tokens, one CPU thread). HF's
    decoder layers call it once a layer, see `register` below.

    q            (1, query heads, tokens, d)
    k, v         (1, key heads, tokens, d)
    layout       the layout of the pass. With a mask, or None, in its place this is HF's own
                 attention, so that HF's own forward still works, or that of a decoding step
    returns      (1, tokens, query heads, d), and None for the attention weights, as HF wants it

    Trap: with more keys than queries, SDPA's `is_causal` starts at the upper left: the first token
    of a completion would see one token of its prompt instead of all. So completions bring a mask
    (test_attend_equals_a_loop).
    """
    if not isinstance(layout, Layout):
        if q.shape[2] == 1:
            return attend_from_one_token(q, k, v, layout, kwargs["scaling"]), None
        return hf_attention()(module, q, k, v, layout, **kwargs)

    # Under autocast, RoPE returns q and k in fp32. Cast them back before gathering: half the bytes.
    q, k = q.to(v.dtype), k.to(v.dtype)

    outputs = []
    for block in layout.blocks:
        block_q = gather_tokens(q, block.queries)  # (n, query heads, Q, d)
        block_k = gather_tokens(k, block.keys)  # (n, key heads, K, d)
        block_v = gather_tokens(v, block.keys)  # (n, key heads, K, d)
        mask = block.additive_mask(v.dtype)  # (n, 1, Q, K)
        out, _ = hf_attention()(module, block_q, block_k, block_v, mask, **kwargs)
        outputs.append(out.flatten(0, 1))  # (n * Q, query heads, d)

    in_slots = torch.cat(outputs)  # (slots, query heads, d), padding included
    return in_slots.index_select(0, layout.slot_of_token)[None], None


def attend_from_one_token(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """A decoding step: the newest token of each of n sequences attends to the cache.

    q        (n, query heads, 1, d)
    k, v     (n, key heads, K, d)
    mask     (n, 1, 1, K) bool
    returns  (n, 1, query heads, d)

    The query heads that share a key head are laid out as if they were queries of it, one after the
    other. Nothing is causal among them, since all belong to the same token.

    Trap: the usual way repeats keys and values to all query heads first. For Qwen2.5-VL-3B that is
    eight times the cache, written and read again in each layer for every token
    (test_a_decoding_step_never_repeats_the_cache).
    """
    num, _, _, d = q.shape
    queries = q.reshape(num, k.shape[1], -1, d)  # (n, key heads, query heads of each, d)
    out = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, scale=scaling)
    return out.reshape(num, 1, -1, d)


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """x (1, heads, tokens, d) at indices (n, Q) -> (n, heads, Q, d)."""
    tokens_first = x[0].transpose(0, 1)  # (tokens, heads, d)
    gathered = tokens_first.index_select(0, indices.flatten())  # (n * Q, heads, d)
    return gathered.unflatten(0, indices.shape).transpose(1, 2)


@cache
def hf_attention():
    """HF's own attention, through SDPA. Fetched at the first call: transformers loads what a model
    needs when it is asked for, and `--help` needs no model."""
    return transformers.AttentionInterface()["sdpa"]


def register() -> None:
    """Make `attend` known to HF's layers as NAME.

    They find their attention function by its name, and pass their second argument, which HF calls
    `attention_mask`, on to it untouched. That is how a Layout reaches `attend`.
    """
    masks = transformers.AttentionMaskInterface
    transformers.AttentionInterface.register(NAME, attend)
    masks.register(NAME, masks()["sdpa"])
