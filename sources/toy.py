"""The embedded world as a source: examples to train on, sets to evaluate on, formats to check.

    id           held-out images, everything else as in training
    tags, brackets, last_line, answer_first      formats that stages 1 to 3 never ask for
    wording      questions in words that stages 1 to 3 never use
    look         images in paler colours, of smaller things, which no training shows
    easy         a kind of question that stages 1 to 3 never ask, easier than theirs
    task         a kind of question that no training asks

Each set differs from `id` in one thing, so that a fall in a rate has one possible cause. The base
was taught these formats and words, and the easy kind (`toy/train_base.py`): what is measured is
what it keeps.
"""

from rewards import is_in_format
from toy import world

DEFAULT_COUNT = 2048  # examples, where nobody says how many

OOD_FORMATS = {}  # instruction -> format
for forms in world.OOD_FORMATS.values():
    OOD_FORMATS.update({form.instruction: form for form in forms})


def toy_examples(
    count: int | None, seed: int, *, held_out: bool = False, instruction: str | None = None
) -> list[dict]:
    """Examples as in training.

    count: None for 2048.
    seed: chooses the questions and their images.
    instruction: replaces the one that asks for the think format.
    """
    if count is None:
        count = DEFAULT_COUNT
    examples = world.examples(count, seed, held_out=held_out)
    if instruction is not None:
        examples = [{**example, "instruction": instruction} for example in examples]
    return examples


def evaluation_sets(
    count: int, seed: int, *, formats_only: bool = False
) -> dict[str, list[dict]]:
    """Held-out examples by name of the set, `count` in each.

    formats_only: leave `wording` and what follows it out, where only the format is measured.
    """
    sets = {"id": world.examples(count, seed, held_out=True)}
    for name, formats in world.OOD_FORMATS.items():
        sets[name] = world.examples(count, seed, held_out=True, formats=formats)
    if not formats_only:
        sets["wording"] = world.examples(count, seed, held_out=True, unseen_wording=True)
        sets["look"] = world.examples(count, seed, held_out=True, look=world.SHIFTED_LOOK)
        sets["easy"] = world.examples(count, seed, held_out=True, kinds=(world.EASY_KIND,))
        sets["task"] = world.examples(count, seed, held_out=True, kinds=(world.OOD_KIND,))
    return sets


def is_in_asked_format(example: dict, response: str) -> bool:
    """True if a response has exactly the format that its example asks for.

    Only the toy world has other formats that can be checked. Anything else is held to the think
    format, whatever its instruction says, and also without any instruction.
    """
    if example["instruction"] in OOD_FORMATS:
        return OOD_FORMATS[example["instruction"]].obeyed_by(response)
    return is_in_format(response)
