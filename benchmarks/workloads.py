"""What the benchmarks measure: Qwen2.5-VL of any size with random weights, and the work for it.

Importing this module puts the project on the path, so a benchmark imports it first.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from model.qwen import Policy, mrope_positions
from model.records import Group, Prompt
from sources.stream import encode_all
from toy import world

PATCH, MERGE = 14, 2
EOS_ID, IMAGE_ID, VIDEO_ID = 2, 5, 6


# --- Models --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """The text half of a model, and its vision tower."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied_head: bool
    vision: dict


def vision_tower(depth, hidden_size, intermediate_size, num_heads, fullatt_block_indexes) -> dict:
    """Settings of a vision tower, by HF's names."""
    return dict(
        depth=depth,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        fullatt_block_indexes=fullatt_block_indexes,
    )


TINY_VISION = vision_tower(1, 64, 128, 4, [0])
SMALL_VISION = vision_tower(2, 128, 256, 4, [0, 1])
QWEN_VISION = vision_tower(32, 1280, 3420, 16, [7, 15, 23, 31])

SIZES = {
    "tiny": Size(64, 192, 2, 4, 2, 1000, True, TINY_VISION),
    "small": Size(256, 768, 4, 8, 4, 1000, True, SMALL_VISION),
    "wide_head": Size(256, 768, 2, 8, 4, 151936, True, TINY_VISION),
    "3b": Size(2048, 11008, 36, 16, 2, 151936, True, QWEN_VISION),
    "7b": Size(3584, 18944, 28, 28, 4, 152064, False, QWEN_VISION),
}


def config_of(size: Size) -> Qwen2_5_VLConfig:
    """HF's configuration of a size."""
    # Of the rotary pairs of a head, 2/8 are for time, 3/8 for height and 3/8 for width.
    eighth = size.hidden // size.heads // 2 // 8
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [2 * eighth, 3 * eighth, 3 * eighth],
    }
    text = dict(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=32768,
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=0,
    )
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**size.vision, "out_hidden_size": size.hidden},
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        vision_start_token_id=3,
        vision_end_token_id=4,
        tie_word_embeddings=size.tied_head,
    )


def random_policy(
    name: str, device: str = "cpu", dtype=torch.float32, frozen_vision: bool = True
) -> Policy:
    """A policy of one of the SIZES with random weights."""
    size = SIZES[name]
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        vlm = Qwen2_5_VLForConditionalGeneration(config_of(size)).eval()
        torch.set_default_dtype(torch.float32)
    vlm.generation_config = GenerationConfig(eos_token_id=EOS_ID, pad_token_id=0)
    vlm.model.visual.requires_grad_(not frozen_vision)

    suppressed = torch.zeros(size.vocabulary, dtype=torch.bool, device=device)
    suppressed[:EOS_ID] = True
    suppressed[EOS_ID + 1 : VIDEO_ID + 1] = True
    return Policy(vlm, [EOS_ID], suppressed)


# --- Prompts and groups of random ids ------------------------------------------------------------


def random_prompt(side: int, text_tokens: int, seed: int = 0) -> Prompt:
    """One image of side x side pixels (0: none), then `text_tokens` words."""
    g = torch.Generator().manual_seed(seed)
    patches = side // PATCH  # on each side
    words = torch.randint(10, 900, (text_tokens,), generator=g).tolist()
    ids = [IMAGE_ID] * (patches**2 // MERGE**2) + words

    image_grid_thw = pixel_values = None
    if side:
        image_grid_thw = torch.tensor([[1, patches, patches]])
        pixel_values = torch.randn(patches**2, 3 * 2 * PATCH**2, generator=g)

    positions = mrope_positions(ids, image_grid_thw, IMAGE_ID, MERGE)
    example = {"id": str(seed)}
    return Prompt(example, torch.tensor(ids), positions, pixel_values, image_grid_thw)


def random_group(
    side: int, text_tokens: int, response_tokens: int, size: int, seed: int = 0, longest: int = 0
) -> Group:
    """`size` responses of `response_tokens` tokens.

    With `longest` one is that long, and the others share what it leaves of all tokens together.
    """
    lengths = [response_tokens] * size
    if longest:
        left = size * response_tokens - longest
        lengths = [longest] + [left // (size - 1)] * (size - 1)

    g = torch.Generator().manual_seed(1000 + seed)
    completions = [torch.randint(10, 900, (length,), generator=g) for length in lengths]
    return Group(random_prompt(side, text_tokens, seed), completions)


# --- Examples and pairs of the embedded world ----------------------------------------------------


def examples_at(side: int, count: int) -> list[dict]:
    """Examples with images of side x side pixels: 9 image tokens at 84, 100 at 280."""
    examples = []
    for example in world.examples(count, seed=0):
        image = example["images"][0].resize((side, side))
        examples.append({**example, "images": [image]})
    return examples


def pairs_at(side: int, count: int) -> list[dict]:
    """Each example with a formatted and a plain answer of about 29 tokens."""
    rng = random.Random(0)

    def response(form: world.Format, question: world.Question) -> str:
        return form.template.format(reasoning=question.reasoning, answer=question.answer)

    pairs = []
    for example in examples_at(side, count):
        question = world.ask(rng, example["kind"], held_out=False, wording=0)
        chosen = response(world.THINK, question)
        rejected = response(world.PLAIN, question)
        pairs.append({**example, "chosen": chosen, "rejected": rejected})
    return pairs


def pair_groups(pairs: list[dict], encoder, eos_id: int) -> list[Group]:
    """The pairs of `pairs_at`, encoded, as groups [chosen, rejected]."""
    groups = []
    for prompt in encode_all(pairs, encoder):
        texts = [prompt.example[side] for side in ("chosen", "rejected")]
        groups.append(Group(prompt, [encoder.encode_completion(text, eos_id) for text in texts]))
    return groups
