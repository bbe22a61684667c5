"""The model family: Qwen2.5-VL and Qwen2-VL. What another family does differently is here, but for
its folders (`loading.py`).

    image_features   pixels -> vision tower -> one vector for each image token
    embed_prompts    words from the embedding table, image tokens from the vision tower
    positions        M-RoPE: time, height and width of each token
    run_layers       the decoder layers, over any attention (`attention.py` or a cache)
    logits           the head: logits / temperature, suppressed ids at -inf

The layers, the tower and the weights are Hugging Face's. This file only calls them in a new order:
one pass for whole groups in training, one token at a time in sampling.

The two models differ inside of HF's vision tower only: Qwen2.5-VL's attends within windows in most
of its layers, and has other norms and another MLP.
"""

from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model import attention
from model.attention import Layout
from model.records import Prompt

# --- 1. The model -------------------------------------------------------------------------------


class Policy(nn.Module):
    """A Qwen2.5-VL or Qwen2-VL that can be scored, sampled from and trained.

    Weights stay fp32. At a learning rate of 1e-6, nearly every update of a bf16 weight rounds back
    to nothing (test_small_steps_move_fp32_weights_only). On a GPU autocast computes in bf16.
    """

    residual_dtype = torch.bfloat16  # of the residual stream at least; adapters want fp32

    def __init__(
        self,
        vlm: "transformers.PreTrainedModel",
        eos_ids: list[int],
        suppressed: Tensor,
        gradient_checkpointing: bool = False,
    ):
        """
        vlm                     HF's model, in eval mode
        eos_ids                 every id that ends a completion; Qwen2.5-VL has two
        suppressed              (V,) bool, ids that are no text: never sampled, probability 0
        gradient_checkpointing  keep one hidden state a layer, compute the rest again in backward
        """
        super().__init__()
        self.vlm = vlm
        self.eos_ids = eos_ids
        self.gradient_checkpointing = gradient_checkpointing
        self.feature_cache: WeakKeyDictionary[Prompt, Tensor] = WeakKeyDictionary()
        self.register_buffer("suppressed", suppressed, persistent=False)
        attention.register()
        vlm.set_attn_implementation({"text_config": attention.NAME})

    @property
    def device(self) -> torch.device:
        return self.suppressed.device

    @property
    def vocab_size(self) -> int:
        """V: `suppressed` has an entry for each token id."""
        return len(self.suppressed)

    def forward(self, function, *args):
        """Call back: run function(self, *args).

        DDP and autocast wrap `forward` and nothing else, so code that needs gradients must run
        inside of it. `common.token_logps` therefore calls policy(score_groups, ...).

        Trap: autocast keeps the bf16 copy of each weight until the end of the pass. A pass uses a
        weight once, so these copies are a waste, 6 GB for Qwen2.5-VL-3B; but for the head, which is
        used in chunks: their gradients would be added up in that copy, in bf16. Without the cache
        each becomes fp32 first (test_head_gradient_is_summed_in_fp32).
        """
        device = self.device.type
        with torch.autocast(
            device,
            torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        ):
            return function(self, *args)

    def plain_logits(self, prompt: Prompt, completion: Tensor) -> Tensor:
        """(S + L, V) HF's own forward of one prompt and one completion (L,), alone and unmodified.

        Entry i is about token i + 1. The plain version of scoring is made of it (`common.py`).
        """
        ids = torch.cat([prompt.ids, completion])[None].to(self.device)  # (1, S + L); L may be 0
        images = {}
        if prompt.pixel_values is not None:
            images["pixel_values"] = prompt.pixel_values.to(self.device)
            images["image_grid_thw"] = prompt.image_grid_thw.to(self.device)

        # Trap: without these, HF silently gives a prompt with images the positions of plain text
        # (test_token_logps_equal_the_plain_version).
        is_image = (ids == self.vlm.config.image_token_id).int()
        return self.vlm(input_ids=ids, mm_token_type_ids=is_image, **images).logits[0]

    # --- embeddings -----------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., D), from the embedding table."""
        return self.vlm.model.language_model.embed_tokens(ids.to(self.device))

    def embed_prompts(self, prompts: list[Prompt]) -> Tensor:
        """(tokens, D): words from the embedding table, image tokens from the vision tower."""
        ids = torch.cat([p.ids for p in prompts]).to(self.device)  # (tokens,)
        embeds = self.embed(ids)  # (tokens, D)

        if any(p.pixel_values is not None for p in prompts):
            features = self.image_features(prompts)  # (image tokens, D)
            is_image = (ids == self.vlm.config.image_token_id)[:, None]  # (tokens, 1)
            return embeds.masked_scatter(is_image, features.to(embeds.device, embeds.dtype))

        # Trap: DDP waits for a gradient of every trained weight. A rank that happens to hold
        # text-only prompts would leave the vision tower out, and the others would wait. So it
        # encodes a dummy image and adds zero times its features
        # (test_text_only_prompts_still_reach_the_vision_tower).
        if torch.is_grad_enabled() and not self.vision_is_frozen():
            embeds = embeds + 0.0 * self.dummy_image_features().to(embeds.dtype).sum()
        return embeds

    # --- vision ---------------------------------------------------------------------------------

    def image_features(self, prompts: list[Prompt]) -> Tensor:
        """(image tokens, D) the vision tower's output for all images of all prompts, in order.

        A frozen tower gives the same features every time, so sampling, scoring and each update of a
        prompt share one pass (test_frozen_tower_encodes_an_image_once). The cache is on the CPU and
        has weak keys: an entry disappears with its prompt.
        """
        prompts = [p for p in prompts if p.pixel_values is not None]
        if not self.vision_is_frozen():
            return self.encode_images(prompts)

        missing = [p for p in prompts if p not in self.feature_cache]
        if missing:
            patches_per_token = self.vlm.model.visual.spatial_merge_size**2
            num_tokens = [len(p.pixel_values) // patches_per_token for p in missing]
            features = self.encode_images(missing).cpu().split(num_tokens)
            for prompt, prompt_features in zip(missing, features):
                self.feature_cache[prompt] = prompt_features
        return torch.cat([self.feature_cache[p] for p in prompts])

    def encode_images(self, prompts: list[Prompt]) -> Tensor:
        """One pass of the vision tower: (image tokens, D).

        Trap: `pixel_values` is one flat list of patches over all prompts and images. What keeps an
        image and its prompt together is that both lists are in prompt order
        (test_images_follow_their_prompts).
        """
        visual = self.vlm.model.visual
        pixel_values = torch.cat([p.pixel_values for p in prompts])  # (patches, patch_dim)
        grid_thw = torch.cat([p.image_grid_thw for p in prompts])  # (images, 3)
        pixel_values = pixel_values.to(self.device, visual.dtype)
        return visual(pixel_values, grid_thw=grid_thw.to(self.device)).pooler_output

    def dummy_image_features(self) -> Tensor:
        """(1, D) features of one blank image, of one token."""
        visual = self.vlm.model.visual
        merge, patch = visual.spatial_merge_size, visual.patch_embed
        patch_dim = patch.in_channels * patch.temporal_patch_size * patch.patch_size**2

        pixel_values = torch.zeros(merge**2, patch_dim).to(self.device, visual.dtype)
        grid_thw = torch.tensor([[1, merge, merge]], device=self.device)
        return visual(pixel_values, grid_thw=grid_thw).pooler_output

    def vision_is_frozen(self) -> bool:
        """True if the vision tower is not trained. Its projector (`merger`) is a part of it."""
        return not self.vlm.model.visual.patch_embed.proj.weight.requires_grad

    # --- layers and head ------------------------------------------------------------------------

    def run_layers(
        self, hidden: Tensor, positions: Tensor, layout: Layout | Tensor, cache=None
    ) -> Tensor:
        """HF's decoder layers, in order.

        hidden     (n, tokens, D): n = 1 for a pass over groups, n = B for a decoding step
        positions  (3, n, tokens)
        layout     a Layout for a pass over groups, a mask for a decoding step. HF calls this
                   argument `attention_mask` and passes it to `attention.attend`, untouched
        cache      keys and values of earlier tokens, updated by each layer (`decoding.py`)
        returns    (n, tokens, D)

        Gradient checkpointing is done here: HF's own switch acts in `train` mode only, and we never
        leave `eval` (test_gradient_checkpointing_changes_nothing).
        """
        text = self.vlm.model.language_model
        hidden = hidden.to(torch.promote_types(hidden.dtype, self.residual_dtype))
        rope = text.rotary_emb(hidden, positions.to(self.device))  # cosines and sines

        for layer in text.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(
                    layer, hidden, layout, position_embeddings=rope, use_reentrant=False
                )
            else:
                hidden = layer(hidden, layout, position_embeddings=rope, past_key_values=cache)
        return text.norm(hidden)

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """hidden (..., D) -> (..., V) logits of the distribution that is sampled *and* scored.

        Trap: temperature and suppressed ids belong to both. If only sampling or only scoring
        applied them, the ratio would compare two distributions (test_sampled_equals_scored). At
        least fp32.
        """
        # The head is linear: hidden / temperature gives logits / temperature, and is smaller.
        logits = self.vlm.lm_head(hidden / temperature)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.masked_fill_(self.suppressed, float("-inf"))


def max_logits(device: str) -> int:
    """Logits that exist at a time, 4 bytes each: 67 MB on a CPU, 537 MB on a GPU.

    With Qwen's vocabulary these are 110 and 880 tokens. A GPU wants large chunks: each one's
    backward pass writes a gradient of the size of the head.
    """
    return 2**24 if device == "cpu" else 2**27


# --- 2. Image tokens and positions -------------------------------------------------------------


def expand_image_tokens(
    ids: list[int], image_grid_thw: Tensor | None, image_token_id: int, merge_size: int
) -> list[int]:
    """Repeat the k-th image token as often as image k has merged patches.

    ids             with one image token an image, as the chat template writes them
    image_grid_thw  (images, 3) patches in time, height, width; None without images
    merge_size      an image token stands for merge_size x merge_size patches
    """
    expanded = []
    image = 0
    for token in ids:
        if token != image_token_id:
            expanded.append(token)
            continue
        patches = int(image_grid_thw[image].prod())
        expanded += [token] * (patches // merge_size**2)
        image += 1
    return expanded


def mrope_positions(
    ids: list[int], image_grid_thw: Tensor | None, image_token_id: int, merge_size: int
) -> Tensor:
    """(3, S) positions (time, height, width) for the rotary embedding.

    Text counts up on all three axes together. An image of h x w merged patches that starts at s has
    time s, height s + y, width s + x, and the text after it goes on at s + max(h, w). Arguments as
    in `expand_image_tokens`, the ids expanded.

    Source: Qwen2-VL (arXiv 2409.12191) section 2.1. Equal to HF's `get_rope_index` for images.
    """
    columns = []  # each (3, a few tokens)
    start, index, image = 0, 0, 0

    while index < len(ids):
        if ids[index] != image_token_id:
            columns.append(torch.full((3, 1), start))
            start += 1
            index += 1
            continue

        h, w = (image_grid_thw[image, 1:] // merge_size).tolist()
        y = torch.arange(h).repeat_interleave(w)  # (h * w,) 0 0 0 1 1 1
        x = torch.arange(w).repeat(h)  # (h * w,) 0 1 2 0 1 2
        columns.append(start + torch.stack([torch.zeros_like(y), y, x]))
        start += max(h, w)
        index += h * w
        image += 1
    return torch.cat(columns, dim=1)


def next_positions(prompts: list[Prompt], count: int) -> Tensor:
    """(N, count) positions of the first `count` tokens after each prompt, equal on all three axes.

    Trap: they continue from the largest of the three axes, not from the end of each axis and not
    from the number of tokens: an image takes h * w tokens but only max(h, w) positions
    (test_completion_positions_after_an_image).
    """
    first = torch.tensor([int(p.positions.max()) + 1 for p in prompts])  # (N,)
    return first[:, None] + torch.arange(count)


# --- 3. Weights --------------------------------------------------------------------------------

FAMILY = {  # `model_type` in config.json -> name of HF's class
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
}


def check_family(model_type: str) -> None:
    """Raise ValueError if this is not the `model_type` of a model of the family."""
    if model_type not in FAMILY:
        raise ValueError(
            f"a model of type {model_type}; what runs here is Qwen2.5-VL and Qwen2-VL, of type "
            f"{' or '.join(FAMILY)} (model/qwen.py)"
        )


def model_class(config: "transformers.PreTrainedConfig") -> "type[transformers.PreTrainedModel]":
    """HF's class for a config. Raises ValueError for another family, or for sliding windows.

    `attention.py` knows of no window; no public model of the family uses one.
    """
    check_family(config.model_type)
    if "sliding_attention" in config.text_config.layer_types:
        raise ValueError("use_sliding_window is true in config.json, which is not supported")
    return getattr(transformers, FAMILY[config.model_type])


def load_weights(
    name: str, dtype: torch.dtype, device: torch.device | str
) -> "tuple[transformers.PreTrainedModel, list[str]]":
    """HF's model of a folder or hub name, and the names of weights that the files lack.

    Each weight is read once, straight into its dtype and onto its device. The rotary frequencies
    are no weights, and stay fp32. Raises ValueError for another family.
    """
    config = transformers.AutoConfig.from_pretrained(name)
    vlm, info = model_class(config).from_pretrained(
        name,
        dtype=dtype,
        device_map={"": torch.device(device)},
        attn_implementation="sdpa",
        output_loading_info=True,
    )
    lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    return vlm, lacking
