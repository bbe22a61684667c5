"""Rows to prompts: text and pictures become token ids, pixels and positions.

    row (data.py)  ->  question + instruction in the model's chat template, pictures where `<image>` stands
                   ->  ids, each picture's one token repeated once a merged patch
                   ->  M-RoPE positions (time, height, width), written out by hand
    completion     ->  ids of its own, never tokenised together with the prompt

A row that cannot be used raises RowError with its id; loaders skip and count it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor


class RowError(ValueError):
    """A row that cannot be used, and why. Loaders skip and count it; nothing is dropped silently."""


@dataclass(frozen=True, eq=False)  # compared by identity, so that what was computed for it can be kept
class Prompt:
    """One encoded prompt. Tensors live on the CPU until a batch needs them."""

    row: dict  # the row of `data.py` it came from: question, answer, images, ...
    ids: Tensor  # (P,) token ids, each picture already expanded to its placeholder tokens
    positions: Tensor  # (3, P) M-RoPE positions: time, height, width
    pixels: Tensor | None  # (patches, patch_dim) of all its pictures, in order
    grids: Tensor | None  # (pictures, 3) patches in time, height, width


@dataclass(frozen=True)
class Codec:
    """Text and pictures to ids and pixels, and ids back to text: the tokenizer and image processor.

    They are loaded apart, because the joint processor class wants a video reader (torchvision)."""

    tokenizer: object
    image_processor: object
    image_token_id: int
    merge: int  # a picture token stands for merge x merge patches

    def encode(self, row: dict, max_prompt_tokens: int | None = None) -> Prompt:
        """Build the prompt of a row: its question, then its instruction, in the model's chat template;
        pictures where `<image>` stands, else in front.

        Raises RowError where the row cannot be used: a prompt over the limit, a picture that cannot be
        read, `<image>` marks that do not match the pictures.
        Trap: an over-long prompt is refused, never cut: cutting it would lose placeholder tokens
        while their pixels stay (test_prompt_over_the_limit_is_refused).
        """
        pictures = [load_picture(picture, row["id"]) for picture in row["images"]]
        question = "\n".join(part for part in (row["question"], row["instruction"]) if part)
        messages = chat_messages(question, len(pictures), row["id"])
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        pixels = grids = None
        if pictures:
            try:
                pixel_batch = self.image_processor(images=pictures, return_tensors="pt")
            except ValueError as error:  # an aspect ratio over 200, say
                raise RowError(f"row {row['id']}: picture refused: {error}") from error
            pixels, grids = pixel_batch["pixel_values"], pixel_batch["image_grid_thw"]
        if ids.count(self.image_token_id) != len(pictures):
            raise RowError(f"row {row['id']}: {ids.count(self.image_token_id)} picture tokens in its text, "
                           f"{len(pictures)} pictures")
        ids = expand_picture_tokens(ids, grids, self.image_token_id, self.merge)
        if max_prompt_tokens is not None and len(ids) > max_prompt_tokens:
            raise RowError(f"row {row['id']}: prompt of {len(ids)} tokens is over --max_prompt_tokens "
                           f"{max_prompt_tokens}")
        positions = mrope_positions(ids, grids, self.image_token_id, self.merge)
        return Prompt(row, torch.tensor(ids), positions, pixels, grids)

    def encode_completion(self, text: str, eos_id: int) -> Tensor:
        """(t,) ids of a completion that was written, not sampled (a DPO pair), ending in EOS.

        Trap: it is tokenised apart from the prompt: tokenised together, a merge across the border
        could change the prompt, and chosen and rejected would not share it (test_prompt_ids_are_a_prefix)."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor([*ids, eos_id])

    def decode(self, ids: Tensor) -> str:
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def load_picture(picture: Image.Image | str | Path, row_id: str) -> Image.Image:
    """Return it as upright RGB, transparent parts white. Raises RowError if it cannot be read."""
    try:
        image = picture if isinstance(picture, Image.Image) else Image.open(picture)
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises SyntaxError on a broken PNG
        raise RowError(f"row {row_id}: picture cannot be read: {error}") from error


def chat_messages(question: str, picture_count: int, row_id: str) -> list[dict]:
    """One user turn; the i-th `<image>` of the question becomes picture i, without marks all come first."""
    if "<image>" not in question:
        question = "<image>" * picture_count + question
    pieces = question.split("<image>")
    if len(pieces) - 1 != picture_count:
        raise RowError(f"row {row_id}: {len(pieces) - 1} <image> marks, {picture_count} pictures")
    content = [{"type": "text", "text": pieces[0]}] if pieces[0] else []
    for piece in pieces[1:]:
        content.append({"type": "image"})
        if piece:
            content.append({"type": "text", "text": piece})
    return [{"role": "user", "content": content}]


def expand_picture_tokens(ids: list[int], grids: Tensor | None, image_id: int, merge: int) -> list[int]:
    """Repeat the k-th picture token as often as picture k has merged patches."""
    counts = iter([] if grids is None else (grids.prod(-1) // merge**2).tolist())
    return [i for token in ids for i in [token] * (next(counts) if token == image_id else 1)]


def mrope_positions(ids: list[int], grids: Tensor | None, image_id: int, merge: int) -> Tensor:
    """(3, P) positions (time, height, width) of Qwen2.5-VL's rotary embedding.

    Text counts up on all three axes together. A picture of h x w merged patches that starts at s has
    time s, height s + row, width s + column, and the text after it goes on at s + max(h, w).
    Source: Qwen2-VL (arXiv 2409.12191) section 2.1; equal to HF's `get_rope_index` for still pictures.
    """
    columns, start, i, picture = [], 0, 0, 0
    while i < len(ids):
        if ids[i] != image_id:
            columns.append(torch.full((3, 1), start))
            start, i = start + 1, i + 1
            continue
        _, h, w = (grids[picture] // torch.tensor([1, merge, merge])).tolist()
        row, column = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
        columns.append(start + torch.stack([torch.zeros_like(row), row, column]))  # (3, h*w)
        start, i, picture = start + max(h, w), i + h * w, picture + 1
    return torch.cat(columns, dim=1)
