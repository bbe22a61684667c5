"""Examples to prompts: text and images become token ids, pixel values and positions.

    example      ->  question + instruction in the chat template, images where `<image>` stands
                 ->  ids, the one token of each image repeated for each merged patch
                 ->  M-RoPE positions (time, height, width)
    completion   ->  ids of its own, never tokenized together with the prompt

An example that cannot be used raises ExampleError with its id; loaders skip and count it.
"""

from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from model.images import load_image
from model.qwen import expand_image_tokens, mrope_positions
from model.records import ExampleError, Prompt

# The instruction for data sets without one of their own. It asks for the same as the 7B prompt of
# MM-EUREKA: the two blocks, and the answer in a box.
THINK_INSTRUCTION = (
    "First think step by step inside <think> </think>, then give the final answer inside "
    "<answer> </answer>, with the answer itself in \\boxed{}. Write nothing outside of these two "
    "blocks."
)


@dataclass(frozen=True)
class PromptEncoder:
    """Text and images to a Prompt, and ids back to text: the tokenizer and the image processor."""

    tokenizer: object
    image_processor: object
    image_token_id: int
    merge_size: int  # an image token stands for merge_size x merge_size patches
    other_files: dict[str, str] = field(default_factory=dict)  # name -> text, saved with a model

    def encode(self, example: dict, max_prompt_tokens: int | None = None) -> Prompt:
        """Encode the prompt of an example: its question, then its instruction, as one user turn.

        Images stand where `<image>` does, else in front. Raises ExampleError for a prompt over the
        limit, an image that cannot be read, or `<image>` placeholders that do not match the images.

        Trap: a prompt over the limit is refused, never cut. Cutting would lose placeholder tokens
        while their pixels stay (test_prompt_over_the_limit_is_refused).
        """
        example_id = example["id"]
        images = [load_image(image, example_id) for image in example["images"]]
        messages = chat_messages(full_question(example), len(images), example_id)

        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can hold one half of a character
            raise ExampleError(f"example {example_id}: no valid characters: {error}") from error
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        pixel_values, image_grid_thw = self.encode_images(images, example_id)
        num_image_tokens = ids.count(self.image_token_id)
        if num_image_tokens != len(images):  # the question itself may write an image token
            raise ExampleError(
                f"example {example_id}: {num_image_tokens} image tokens in its text, "
                f"{len(images)} images"
            )

        ids = expand_image_tokens(ids, image_grid_thw, self.image_token_id, self.merge_size)
        if max_prompt_tokens is not None and len(ids) > max_prompt_tokens:
            raise ExampleError(
                f"example {example_id}: prompt of {len(ids)} tokens is over --max_prompt_tokens "
                f"{max_prompt_tokens}"
            )
        positions = mrope_positions(ids, image_grid_thw, self.image_token_id, self.merge_size)
        return Prompt(example, torch.tensor(ids), positions, pixel_values, image_grid_thw)

    def encode_images(
        self, images: list[Image.Image], example_id: str
    ) -> tuple[Tensor | None, Tensor | None]:
        """pixel_values (patches, patch_dim) and image_grid_thw (images, 3); None without images."""
        if not images:
            return None, None
        try:
            batch = self.image_processor(images=images, return_tensors="pt")
        except ValueError as error:  # an aspect ratio over 200, for example
            raise ExampleError(f"example {example_id}: image refused: {error}") from error
        return batch["pixel_values"], batch["image_grid_thw"]

    def encode_completion(self, text: str, eos_id: int) -> Tensor:
        """(L,) ids of a given response, its EOS appended: for pairs, which are not sampled here.

        Trap: it is tokenized separately from the prompt. If both were tokenized together, a merge
        across the border could change the prompt, and the two sides would no longer share it
        (test_prompt_ids_are_a_prefix).
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor([*ids, eos_id])

    def decode(self, ids: Tensor) -> str:
        """The text of a completion (L,), without special tokens."""
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def full_question(example: dict) -> str:
    """The question of an example, and its instruction on a line of its own, if there is one."""
    return "\n".join(part for part in (example["question"], example["instruction"]) if part)


def chat_messages(question: str, num_images: int, example_id: str) -> list[dict]:
    """One user turn. The i-th `<image>` of the question becomes image i; without any, all lead."""
    if "<image>" not in question:
        question = "<image>" * num_images + question

    texts = question.split("<image>")  # one more than there are placeholders
    if len(texts) - 1 != num_images:
        raise ExampleError(
            f"example {example_id}: {len(texts) - 1} <image> placeholders, {num_images} images"
        )

    content = []
    for i, text in enumerate(texts):
        if i > 0:
            content.append({"type": "image"})
        if text:
            content.append({"type": "text", "text": text})
    return [{"role": "user", "content": content}]
