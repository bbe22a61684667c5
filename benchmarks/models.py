"""What the benchmarks here measure: Qwen2.5-VL of any size with random weights, and rows and pairs of the embedded world."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration  # noqa: E402

from common import Group, Policy  # noqa: E402
from data import encode_all  # noqa: E402
from prompts import Prompt, mrope_positions  # noqa: E402
from toy import world  # noqa: E402

PATCH, MERGE, IMAGE_ID, EOS_ID = 14, 2, 5, 2
VISION = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, fullatt_block_indexes=[7, 15, 23, 31])
SIZES = {  # text: hidden, intermediate, layers, heads, kv heads, vocabulary, tied head; then the vision tower
    "tiny": ((64, 192, 2, 4, 2, 1000, True), dict(depth=1, hidden_size=64, intermediate_size=128, num_heads=4, fullatt_block_indexes=[0])),
    "small": ((256, 768, 4, 8, 4, 1000, True), dict(depth=2, hidden_size=128, intermediate_size=256, num_heads=4, fullatt_block_indexes=[0, 1])),
    "wide_head": ((256, 768, 2, 8, 4, 151936, True), dict(depth=1, hidden_size=64, intermediate_size=128, num_heads=4, fullatt_block_indexes=[0])),
    "3b": ((2048, 11008, 36, 16, 2, 151936, True), VISION),
    "7b": ((3584, 18944, 28, 28, 4, 152064, False), VISION),
}


def random_policy(size: str, device: str = "cpu", dtype=torch.float32, frozen_vision: bool = True) -> Policy:
    (hidden, inner, layers, heads, kv_heads, vocabulary, tied), vision = SIZES[size]
    eighth = hidden // heads // 2 // 8  # of the rotary pairs of a head: 2/8 for time, 3/8 for height and for width
    config = Qwen2_5_VLConfig(
        text_config=dict(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                         num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=32768,
                         rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2 * eighth, 3 * eighth, 3 * eighth]},
                         bos_token_id=None, eos_token_id=EOS_ID, pad_token_id=0),
        vision_config={**vision, "out_hidden_size": hidden}, image_token_id=IMAGE_ID, video_token_id=6,
        vision_start_token_id=3, vision_end_token_id=4, tie_word_embeddings=tied)
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        vlm = Qwen2_5_VLForConditionalGeneration(config).eval()
        torch.set_default_dtype(torch.float32)
    vlm.generation_config = GenerationConfig(eos_token_id=EOS_ID, pad_token_id=0)
    vlm.model.visual.requires_grad_(not frozen_vision)
    banned = torch.zeros(vocabulary, dtype=torch.bool, device=device)
    banned[:2], banned[3:7] = True, True
    return Policy(vlm, [EOS_ID], banned)


def random_prompt(side: int, text_tokens: int, seed: int = 0) -> Prompt:
    """One picture of side x side pixels (0: none), then `text_tokens` words."""
    g = torch.Generator().manual_seed(seed)
    n = side // PATCH
    grids = torch.tensor([[1, n, n]]) if side else None
    ids = [IMAGE_ID] * (n * n // MERGE**2) + torch.randint(10, 900, (text_tokens,), generator=g).tolist()
    pixels = torch.randn(n * n, 3 * 2 * PATCH**2, generator=g) if side else None
    return Prompt({"id": str(seed)}, torch.tensor(ids), mrope_positions(ids, grids, IMAGE_ID, MERGE), pixels, grids)


def random_group(side: int, text_tokens: int, response_tokens: int, size: int, seed: int = 0, longest: int = 0) -> Group:
    """`size` responses of `response_tokens`; with `longest` one is that long, and the others share what it leaves of them all."""
    g = torch.Generator().manual_seed(1000 + seed)
    lengths = [longest, *[(size * response_tokens - longest) // (size - 1)] * (size - 1)] if longest else [response_tokens] * size
    return Group(random_prompt(side, text_tokens, seed), [torch.randint(10, 900, (n,), generator=g) for n in lengths])


def rows_at(side: int, count: int) -> list[dict]:
    """Rows of the embedded world with pictures of side x side pixels: 9 picture tokens at 84, 100 at 280."""
    return [{**row, "images": [row["images"][0].resize((side, side))]} for row in world.rows(count, seed=0)]


def pairs_at(side: int, count: int) -> list[dict]:
    """Each row with a formatted and a plain answer of about 25 tokens."""
    rng, pairs = random.Random(0), []
    for row in rows_at(side, count):
        question = world.ask(rng, row["kind"], held_out=False, wording=0)
        texts = [form.template.format(reasoning=question.reasoning, answer=question.answer) for form in (world.THINK, world.PLAIN)]
        pairs.append({**row, "chosen": texts[0], "rejected": texts[1]})
    return pairs


def pair_groups(pairs: list[dict], codec, eos: int) -> list[Group]:
    """The pairs of `pairs_at`, encoded, as groups [chosen, rejected]."""
    return [Group(prompt, [codec.encode_completion(prompt.row[side], eos) for side in ("chosen", "rejected")])
            for prompt in encode_all(pairs, codec)]
