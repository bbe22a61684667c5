"""What every stage shares: one record, one model, one way to score.

A *group* is one prompt with its pictures and n continuations. GRPO samples G continuations of a
prompt, DPO holds a chosen and a rejected one, pass@k wants k of them: all three are groups, and all
three are scored by the one `token_logps` below. Prompt and pictures are encoded once a group:

    embed      every prompt once, pictures included, then every completion: one list of tokens, no padding
    layers     on that list; a completion attends to its group's prompt and to itself (`attention.py`)
    head       hidden states that predict a completion's token -> log-probability, in chunks
    unfold     one number a token -> (B, T)

Sampling (`rollout.py`) drives the same layers: the prompts alone first, then a token a row against
their keys and values.

Dimension key
    N prompts (= groups) in a batch      B rows (= completions) in a batch, grouped: group 0's rows first
    P longest prompt                     T longest completion, EOS included
    `tokens` of the list, in all         K keys in a cache      D hidden width      V vocabulary

One alignment for every per-token tensor of the project: shape (B, T), entry (b, t) talks about token
t of completion b. `mask` is 1 where such a token exists; the EOS that the model sampled is one.
"""

from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from attention import Layout, PromptCache
from prompts import Codec, Prompt

transformers_logging.disable_progress_bar()  # a bar a saved file would cut the table of steps in two

HEAD_LOGITS = 2**24  # logits that exist at a time: 110 rows of 151,936 in fp32 are 67 MB


# --- 1. The record -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """One prompt, many continuations."""

    prompt: Prompt
    completions: list[Tensor]  # each (t,) ids as sampled; never decoded and tokenised again


def completion_mask(groups: list[Group]) -> Tensor:
    """(B, T) float: 1 where completion b has a token t, EOS included.

    Trap: lengths come from the records, never from `ids != pad`: where pad and EOS share an id that
    would cut the EOS out, and the model would never be taught to stop (test_mask_survives_pad_equals_eos).
    """
    lengths = torch.tensor([len(c) for group in groups for c in group.completions])
    return (torch.arange(int(lengths.max()))[None] < lengths[:, None]).float()


# --- 2. The model --------------------------------------------------------------------------------


class Policy(nn.Module):
    """A Qwen2.5-VL that scores groups (`forward`) and that a sampler can drive (`prefill`, `extend`).

    One `forward` a micro-batch is all that DDP or FSDP ever sees. Weights stay fp32: at a learning
    rate of 1e-6, nearly every update of a bf16 weight rounds back to nothing
    (test_small_steps_move_fp32_weights_only). On a GPU autocast computes in bf16.
    """

    def __init__(self, vlm: nn.Module, eos_ids: list[int], banned: Tensor, recompute: bool = False):
        super().__init__()
        self.vlm = vlm
        vlm.set_attn_implementation({"text_config": "one_prompt_many_rows"})
        self.eos_ids = eos_ids  # every id that ends a completion; Qwen2.5-VL has two
        self.recompute = recompute  # gradient checkpointing: keep one hidden state a layer, redo the rest
        self.seen: WeakKeyDictionary[Prompt, Tensor] = WeakKeyDictionary()  # what a frozen tower saw, see `look`
        self.register_buffer("banned", banned, persistent=False)  # (V,) ids that are no text

    @property
    def device(self) -> torch.device:
        return self.banned.device

    def forward(self, groups: list[Group], temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """See `token_logps`, whose body this is (DDP and FSDP wrap `forward` and nothing else)."""
        prompts = [g.prompt for g in groups]
        prompt_of = [n for n, g in enumerate(groups) for _ in g.completions]  # (B,)
        completions = [c for g in groups for c in g.completions]
        inputs = [c[:-1] for c in completions]  # rows: nothing is predicted from the last token
        mask = completion_mask(groups).bool()  # (B, T)
        layout = Layout.of([len(p.ids) for p in prompts], [len(c) for c in inputs], prompt_of, self.device)

        embeds = torch.cat([self.embed_prompts(prompts), self.embed(torch.cat(inputs))])  # (tokens, D)
        # mask[:, 1:] is True as often as a row has inputs
        after = next_positions(prompts, mask.shape[1] - 1)[prompt_of][mask[:, 1:]]  # (tokens of inputs,)
        positions = torch.cat([*[p.positions for p in prompts], after.expand(3, -1)], dim=1)  # (3, tokens)
        hidden = self.run_layers(embeds[None], positions[:, None], layout)[0]  # (tokens, D)

        # Trap: which hidden state predicts which token? Token 0 is predicted by the last *prompt* token,
        # token t by token t-1 (test_perfect_predictor_has_logp_zero).
        rows = layout.starts[len(prompts) :, None] + torch.arange(mask.shape[1] - 1)  # (B, T - 1), too far where masked
        predictor = torch.cat([layout.last[prompt_of][:, None], rows], dim=1)[mask].to(self.device)  # (tokens of completions,)
        targets, mask = torch.cat(completions).to(self.device), mask.to(self.device)  # the same tokens
        logp, entropy = chunked_logps(self, hidden.index_select(0, predictor), targets, temperature)
        filled = logp.new_zeros(mask.shape)
        return filled.masked_scatter(mask, logp), filled.masked_scatter(mask, entropy)

    def prefill(self, prompts: list[Prompt]) -> tuple[Tensor, PromptCache]:
        """For the sampler: each prompt once, the hidden state of its last token (N, D), keys and values."""
        layout = Layout.of([len(p.ids) for p in prompts], [], [], self.device)
        cache = PromptCache(layout.starts)
        positions = torch.cat([p.positions for p in prompts], dim=1)  # (3, tokens)
        hidden = self.run_layers(self.embed_prompts(prompts)[None], positions[:, None], layout, cache)[0]
        return hidden[layout.last.to(self.device)], cache

    def extend(self, ids: Tensor, positions: Tensor, mask: Tensor, cache) -> Tensor:
        """For the sampler: one more token of B rows, ids and positions (B,), mask (B, K) bool over the keys in
        `cache` -> hidden (B, D). After the prompt all is text: the three M-RoPE axes agree."""
        positions = positions.expand(3, -1)[..., None]  # (3, B, 1)
        return self.run_layers(self.embed(ids)[:, None], positions, mask[:, None, None], cache)[:, 0]

    def run_layers(self, hidden: Tensor, positions: Tensor, attention: Layout | Tensor, cache=None) -> Tensor:
        """HF's decoder layers in order: hidden (n, tokens, D), positions (3, n, tokens) -> (n, tokens, D).

        Recomputing is done here: HF's own switch works in `train` mode alone (test_recompute_changes_nothing)."""
        text = self.vlm.model.language_model
        rope = text.rotary_emb(hidden, positions.to(self.device))
        for layer in text.layers:
            if self.recompute and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, attention, position_embeddings=rope, use_reentrant=False)
            else:
                hidden = layer(hidden, attention, position_embeddings=rope, past_key_values=cache)
        return text.norm(hidden)

    def embed(self, ids: Tensor) -> Tensor:
        return self.vlm.model.language_model.embed_tokens(ids.to(self.device))

    def embed_prompts(self, prompts: list[Prompt]) -> Tensor:
        """(tokens, D): words from the table, pictures from the vision tower."""
        ids = torch.cat([p.ids for p in prompts]).to(self.device)  # (tokens,)
        embeds = self.embed(ids)  # (tokens, D)
        if any(p.pixels is not None for p in prompts):
            features = self.look(prompts).to(embeds.device, embeds.dtype)  # (picture tokens, D)
            return embeds.masked_scatter((ids == self.vlm.config.image_token_id)[:, None], features)
        if torch.is_grad_enabled() and not self.tower_is_frozen():
            return embeds + 0.0 * self.blank_picture().to(embeds.dtype).sum()  # a trap, explained there
        return embeds

    def look(self, prompts: list[Prompt]) -> Tensor:
        """(picture tokens, D) what the vision tower makes of the pictures of all prompts, in order.

        A frozen tower sees the same whenever it looks, so it looks once: sampling, scoring and every update
        of a prompt share it (test_frozen_tower_looks_once). `seen` is on the CPU and forgets prompts that nobody
        holds."""
        prompts = [p for p in prompts if p.pixels is not None]
        if not self.tower_is_frozen():
            return self.run_tower(prompts)
        new = [p for p in prompts if p not in self.seen]
        if new:
            merge = self.vlm.model.visual.spatial_merge_size
            self.seen.update(zip(new, self.run_tower(new).cpu().split([len(p.pixels) // merge**2 for p in new])))
        return torch.cat([self.seen[p] for p in prompts])

    def run_tower(self, prompts: list[Prompt]) -> Tensor:
        # Trap: pixels are one flat list over prompts and pictures; what keeps picture and prompt together is
        # that both lists are in prompt order (test_pictures_follow_their_rows).
        visual = self.vlm.model.visual
        pixels = torch.cat([p.pixels for p in prompts]).to(self.device, visual.dtype)  # (patches, patch_dim)
        return visual(pixels, grid_thw=torch.cat([p.grids for p in prompts]).to(self.device)).pooler_output

    def tower_is_frozen(self) -> bool:
        return not self.vlm.model.visual.patch_embed.proj.weight.requires_grad

    def blank_picture(self) -> Tensor:
        """(1, D) the tower's view of one blank picture, for batches without any.

        Trap: DDP waits for a gradient of every trained weight; a rank with text-only rows would leave the
        vision tower out and desynchronise the others (test_text_only_rows_still_reach_the_vision_tower)."""
        visual = self.vlm.model.visual
        merge, patch = visual.spatial_merge_size, visual.patch_embed
        pixels = torch.zeros(merge**2, patch.in_channels * patch.temporal_patch_size * patch.patch_size**2)
        grid = torch.tensor([[1, merge, merge]], device=self.device)
        return visual(pixels.to(self.device, visual.dtype), grid_thw=grid).pooler_output

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """(..., V) logits, at least float32, of the distribution that is sampled *and* scored.

        Trap: temperature and banned ids belong to both. Left out of one, the ratio would compare two
        different distributions (test_sampled_equals_scored)."""
        logits = self.vlm.lm_head(hidden / temperature)  # the head is linear, and hidden states are the smaller tensor
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.masked_fill_(self.banned, float("-inf"))


def next_positions(prompts: list[Prompt], count: int) -> Tensor:
    """(N, count) positions after each prompt.

    Trap: they go on from the largest of the three axes, not from each axis' own end nor from the
    number of tokens: a picture takes h*w tokens but only max(h, w) positions
    (test_completion_positions_after_a_picture)."""
    start = torch.tensor([int(p.positions.max()) + 1 for p in prompts])
    return start[:, None] + torch.arange(count)


# --- 3. Log-probabilities, the one function that both losses share --------------------------------


def token_logps(policy: nn.Module, groups: list[Group], temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Score every token of every completion: logp (B, T) and entropy (B, T), nats, 0 where no token is.

    Entry (b, t) of logp is log pi(token t | prompt, tokens < t) of completion b, rows in group order,
    under the distribution that the sampler draws from: logits / temperature, no picture or special id.
    Entropy is that distribution's, without gradient. A group of 3 completions "a b EOS", "c EOS", "EOS":

        logp = [[a, b, EOS],      mask = [[1, 1, 1],
                [c, EOS, 0],              [1, 1, 0],
                [EOS, 0, 0]]              [1, 0, 0]]

    Cost: each prompt and its pictures once a *group*, not once a row, and no padding. Memory: at most
    HEAD_LOGITS logits at a time, recomputed in backward if there are more; no (tokens, V) tensor is ever kept.
    Without gradient checkpointing each layer keeps what attention gathered, a prompt's keys once a row.
    `policy` is a Policy, or one that accelerate has wrapped.
    """
    return policy(groups, temperature)


def chunked_logps(policy: Policy, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """hidden (tokens, D), targets (tokens,) -> logp, entropy (tokens,), HEAD_LOGITS logits at a time."""

    def head(h: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = policy.logits(h, temperature)  # (chunk, V)
        logp = logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1)  # (chunk,)
        with torch.no_grad():
            entropy = torch.special.entr(logits.softmax(-1)).sum(-1)  # (chunk,)
        return logp, entropy

    size = max(1, HEAD_LOGITS // len(policy.banned))
    chunks = list(zip(hidden.split(size), targets.split(size)))
    if torch.is_grad_enabled() and len(chunks) > 1:
        parts = [checkpoint(head, h, target, use_reentrant=False) for h, target in chunks]
    else:
        parts = [head(h, target) for h, target in chunks]
    return torch.cat([logp for logp, _ in parts]), torch.cat([entropy for _, entropy in parts])


def micro_batches(groups: list[Group], max_tokens: int, split: bool = True) -> list[list[Group]]:
    """Cut groups into micro-batches of at most `max_tokens` tokens, prompts counted once a group.

    Groups keep their order. One too large alone is split into parts that share its prompt, down to one
    row: a group never has to fit whole, unless `split` is False. Every completion lands in exactly one part."""

    def size(group: Group) -> int:
        return len(group.prompt.ids) + sum(map(len, group.completions))

    parts, queue = [], list(groups)
    while queue:
        group = queue.pop(0)
        if split and size(group) > max_tokens and len(group.completions) > 1:
            half = len(group.completions) // 2
            queue[:0] = [Group(group.prompt, group.completions[:half]), Group(group.prompt, group.completions[half:])]
        elif parts and sum(map(size, [*parts[-1], group])) <= max_tokens:
            parts[-1].append(group)
        else:
            parts.append([group])
    return parts


def with_rows(parts: list[list[Group]]) -> list[tuple[list[Group], slice]]:
    """Micro-batches, each with the rows of the step's (B, ...) tensors that it holds."""
    placed, start = [], 0
    for part in parts:
        end = start + sum(len(g.completions) for g in part)
        placed.append((part, slice(start, end)))
        start = end
    return placed


# --- 4. Loading and saving -----------------------------------------------------------------------


def load_model(name: str, *, flag: str = "--model", freeze_vision: bool = False, recompute: bool = False,
               max_pixels: int | None = None) -> tuple[Policy, Codec]:
    """Load a Qwen2.5-VL folder (or hub name): fp32 weights, tokenizer and image processor.

    Raises ValueError naming `flag` when it is missing, half written or of another architecture.
    Trap: from_pretrained fills missing weights with random ones and only warns
    (test_half_written_model_folder_is_refused). Dropout stays off for good: `eval` here, and no
    `train()` anywhere, so that logp, logp_old and logp_ref are the same function.
    """
    folder = Path(name)
    if folder.exists() or name.startswith((".", "/")) or name.count("/") > 1:  # a hub name is OWNER/NAME
        for needed in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
            if not (folder / needed).is_file():
                raise ValueError(f"{flag} {name}: not a model folder, {needed} is missing")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        # Stages sample and train on stills, so only the picture half of Qwen's processor is loaded.
        image_processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        vlm, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            name, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{flag} {name}: cannot be loaded: {error}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(f"{flag} {name}: weights are incomplete, first missing: "
                         f"{sorted(map(str, [*info['missing_keys'], *info['mismatched_keys']]))[0]}")
    if max_pixels is not None:
        image_processor.size = {**dict(image_processor.size), "longest_edge": max_pixels}
    vlm.eval()
    vlm.model.visual.requires_grad_(not freeze_vision)
    eos_ids = end_ids(vlm, tokenizer)
    policy = Policy(vlm, eos_ids, banned_ids(vlm, tokenizer, eos_ids), recompute)
    return policy, Codec(tokenizer, image_processor, vlm.config.image_token_id, image_processor.merge_size)


def end_ids(vlm, tokenizer) -> list[int]:
    """Every id that ends a completion, the tokenizer's own first (it is the one we append to pairs).

    Trap: Qwen stops on two ids; with the tokenizer's alone, half of the completions would run on past
    their end into junk that is then trained on (test_every_eos_id_ends_a_completion)."""
    listed = vlm.generation_config.eos_token_id
    listed = listed if isinstance(listed, list) else [listed]
    return list(dict.fromkeys(i for i in [tokenizer.eos_token_id, *listed] if i is not None))


def banned_ids(vlm, tokenizer, eos_ids: list[int]) -> Tensor:
    """(V,) bool: special ids other than EOS, and vocabulary rows beyond the tokenizer (Qwen pads them).

    Trap: a sampled picture token makes the next forward look for a picture that is not there
    (test_picture_tokens_are_never_sampled_nor_scored)."""
    banned = torch.zeros(vlm.config.text_config.vocab_size, dtype=torch.bool)
    banned[len(tokenizer):] = True
    special = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    banned[[i for i in {*special, *tokenizer.all_special_ids} if i < len(banned)]] = True
    banned[eos_ids] = False
    return banned


def save_model(policy: Policy, codec: Codec, folder: Path) -> None:
    """Write a plain Hugging Face folder that `from_pretrained` opens, complete or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    policy.vlm.save_pretrained(partial)
    codec.tokenizer.save_pretrained(partial)
    codec.image_processor.save_pretrained(partial)
    if folder.exists():
        for old in folder.iterdir():
            old.unlink()
        folder.rmdir()
    partial.rename(folder)
