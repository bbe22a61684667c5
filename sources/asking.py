"""A question of one's own to each model, the answers side by side on the terminal.

    ask_models      each model's likeliest response, greedy
    side_by_side    a column for each
"""

import shutil
import textwrap
from itertools import zip_longest

from harness.randomness import torch_generator
from model.loading import load_model
from model.prompts import THINK_INSTRUCTION, PromptEncoder
from model.records import ExampleError
from model.sampling import sample_groups
from sources.understood import prompt_in_words, unknown_words
from toy.world import THINK

NARROWEST = 20  # columns of text; with more models than fit, they stand in several rows


def ask_models(cfg, folders: dict[str, str]) -> dict[str, str]:
    """Name of a model -> its response to --ask, with its --image.

    cfg       the settings of evaluate.py
    folders   name of a model -> its folder

    Raises ValueError naming --image if it cannot be read, or --ask if no word of it is known.
    """
    answers = {}
    for name, folder in folders.items():
        policy, encoder = load_model(folder, flag="--models", max_pixels=cfg.max_pixels)
        prompt = encode_question(cfg, encoder)
        if not answers:
            if not cfg.image:
                print("without --image: the models see the question alone")
            print(f"{prompt_in_words(prompt, encoder)}\n")
        groups = sample_groups(
            policy, [prompt], 1, max_new_tokens=cfg.max_new_tokens, temperature=0.0,
            generator=torch_generator(cfg.seed, "ask"),
        )  # fmt: skip
        answers[name] = encoder.decode(groups[0].completions[0])
    return answers


def encode_question(cfg, encoder: PromptEncoder):
    """The question as a prompt, with an instruction that the model can read."""
    images = [file for file in cfg.image.split(",") if file]
    example = {"id": "--image", "images": images, "question": cfg.ask, "instruction": ""}
    try:
        plain = encoder.encode(example)
        unknown = unknown_words([plain], encoder)
        if unknown.words and not cfg.allow_unknown:
            raise ValueError(unknown.message(encoder, "--ask"))

        instruction = cfg.instruction
        if instruction is None:
            long_one = encoder.encode({**example, "instruction": THINK_INSTRUCTION})
            is_known = not unknown_words([long_one], encoder).words
            instruction = THINK_INSTRUCTION if is_known else THINK.instruction
        return encoder.encode({**example, "instruction": instruction})
    except ExampleError as error:
        raise ValueError(str(error).removeprefix("example ")) from error


def side_by_side(answers: dict[str, str]) -> str:
    """The answers as columns, each under the name of its model.

    >>> print(side_by_side({"base": "that is 5 .", "zero": "red circle , and one more"}))
    base                                    zero
    that is 5 .                             red circle , and one more
    """
    width = shutil.get_terminal_size((80, 24)).columns
    at_a_time = max(1, min(len(answers), width // NARROWEST))
    each = width // at_a_time

    lines, names = [], list(answers)
    for start in range(0, len(names), at_a_time):
        columns = []
        for name in names[start : start + at_a_time]:
            text = [textwrap.wrap(line, each - 2) or [""] for line in answers[name].split("\n")]
            columns.append([name, *sum(text, [])])
        for cells in zip_longest(*columns, fillvalue=""):
            lines.append("".join(cell.ljust(each) for cell in cells).rstrip())
        lines.append("")
    return "\n".join(lines).rstrip()
