"""What a stage has understood of its data, said once before its first step.

    columns used and ignored, examples by type of answer, images an example, lengths of prompts, and
    one whole prompt as the model sees it

A misspelt column or a word that the model does not know changes no line of a loss curve, so it has
to be seen here.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import groupby
from statistics import median

from model.prompts import PromptEncoder, full_question
from model.records import Prompt
from sources.mixture import labels_of
from toy.world import THINK

LOOKED_AT = 64  # examples that are encoded to be looked at
MOST_UNKNOWN = 0.01  # share of a prompt's tokens
SMALL_VOCABULARY = 1000  # a model with fewer words is the embedded one, or one like it


def say_what_was_understood(
    run,
    encoder: PromptEncoder,
    prompts: list[Prompt],
    *,
    examples: Sequence[dict] = (),
    judge=None,
    judge_is_asked: bool = False,
    per_step: int = 0,
) -> None:
    """Print what was understood, and refuse prompts that the model cannot read.

    run             prints it, on one rank
    prompts         some of the examples, encoded
    examples        all of them
    judge           of the run, None without --judge_url
    judge_is_asked  the stage asks it about more than answers of type `text`
    per_step        prompts of a rollout, 0 if the stage has none

    Raises ValueError naming --data if more than 1 % of the tokens are unknown to the model, unless
    --allow_unknown is given. What was said already in this run is not said again.
    """
    unknown = unknown_words(prompts, encoder)
    if unknown.share > MOST_UNKNOWN and not run.config.allow_unknown:
        raise ValueError(unknown.message(encoder))
    if run.understood or not prompts:
        return
    run.understood = True

    whole = getattr(examples, "dataset", examples)  # with those that are held out
    lines = whole.understood() if hasattr(whole, "understood") else []
    lines += about_prompts(prompts)
    lines += about_judge(prompts, judge, judge_is_asked)
    if 0 < len(examples) < per_step:
        lines.append(f"  {len(examples)} examples, {per_step} prompts a rollout: some come twice")
    if unknown.words:
        lines.append(f"  words that the model does not know: {' '.join(unknown.words)}")
    lines += ["one prompt, as the model sees it:", *indented(prompt_in_words(prompts[0], encoder))]
    run.say("\n".join(lines))


# --- Examples and prompts ------------------------------------------------------------------------


def about_prompts(prompts: list[Prompt]) -> list[str]:
    """Types of answers, numbers of images, lengths of prompts."""
    types = Counter(p.example["answer_type"] for p in prompts if "answer_type" in p.example)
    images = Counter(len(p.example["images"]) for p in prompts)
    lengths = sorted(len(p.ids) for p in prompts)

    by_type = ", ".join(f"{count} {name}" for name, count in types.most_common())
    by_images = ", ".join(f"{count} with {number}" for number, count in sorted(images.items()))
    if images[0] and len(images) > 1:
        by_images += f"; {images[0]} of {len(prompts)} have none, and are questions about a text"
    lines = [f"looked at {len(prompts)} examples"]
    if types:
        lines.append(f"  type of answer: {by_type}")
    lines.append(f"  images: {by_images}")
    lines.append(f"  prompt: {lengths[0]} to {lengths[-1]} tokens, median {median(lengths):g}")
    return lines


def about_judge(prompts: list[Prompt], judge, judge_is_asked: bool) -> list[str]:
    """A judge that is given and never asked, or needed and not given."""
    texts = sum(p.example.get("answer_type") == "text" for p in prompts)
    if judge is None and texts:
        return [
            f"  {texts} of {len(prompts)} answers are of type text: without --judge_url only the "
            "gold answer's own words are right"
        ]
    if judge is not None and not texts and not judge_is_asked:
        return ["  --judge_url is given, but no answer is of type text: it will not be asked"]
    return []


def prompt_in_words(prompt: Prompt, encoder: PromptEncoder) -> str:
    """The text of a prompt, special tokens included, each image as `[image 84x84, 9 tokens]`."""
    sizes = []
    if prompt.image_grid_thw is not None:
        patch = encoder.image_processor.patch_size
        sizes = [f"{w * patch}x{h * patch}" for _, h, w in prompt.image_grid_thw.tolist()]

    text, sizes = "", iter(sizes)
    for is_image, run_of_ids in groupby(prompt.ids.tolist(), encoder.image_token_id.__eq__):
        ids = list(run_of_ids)
        if is_image:
            text += f"[image {next(sizes)}, {len(ids)} tokens]"
        else:
            text += encoder.tokenizer.decode(ids)
    return text


def indented(text: str) -> list[str]:
    return [f"  | {line}" for line in text.split("\n")]


def best_blind_guess(examples: Sequence[dict], count: int = 2000) -> float:
    """Accuracy of the best guess that does not look: to each kind of question its most common
    answer. Of the first `count` examples; 0 if they cannot be read."""
    answers = defaultdict(Counter)
    total = 0
    for kind, answer in labels_of(examples, count):
        answers[kind][answer] += 1
        total += 1
    return sum(max(counts.values()) for counts in answers.values()) / max(1, total)


# --- Words that the model does not know ----------------------------------------------------------


class Unknown:
    """The words of some prompts that the tokenizer has no token for."""

    def __init__(self, share: float, words: list[str], in_instruction: bool = False):
        self.share = share  # of all tokens
        self.words = words
        self.in_instruction = in_instruction  # some of them are words of the instruction

    def message(self, encoder: PromptEncoder, flag: str = "--data") -> str:
        """What to do about them. A model with few words has them listed."""
        shown = " ".join(self.words[:12]) + (" ..." if len(self.words) > 12 else "")
        text = (
            f"{flag}: {100 * self.share:.0f} % of the prompts' tokens are words that the model "
            f"does not know, and all of these look the same to it: {shown}. "
        )
        vocabulary = encoder.tokenizer.get_vocab()
        if len(vocabulary) < SMALL_VOCABULARY:
            special = set(encoder.tokenizer.all_special_tokens)
            known = sorted(word for word in vocabulary if word not in special)
            if self.in_instruction:
                text += (
                    "An instruction in words of the embedded model: --instruction "
                    f"'{THINK.instruction}'. "
                )
            return text + (
                f"--allow_unknown goes on all the same. The embedded model knows {len(known)} "
                f"words, and no letters of choices: {' '.join(known)}"
            )
        return text + "--allow_unknown goes on all the same"


def unknown_words(prompts: list[Prompt], encoder: PromptEncoder) -> Unknown:
    """Which words of the prompts are unknown, the most frequent first, and their share."""
    unknown_id = encoder.tokenizer.unk_token_id
    if unknown_id is None:  # Qwen's tokenizer: bytes, it knows everything
        return Unknown(0.0, [])

    tokens, unknown, words, in_instruction = 0, 0, Counter(), False
    for prompt in prompts:
        ids = prompt.ids[prompt.ids != encoder.image_token_id]
        tokens += len(ids)
        if not (ids == unknown_id).any():
            continue
        unknown += int((ids == unknown_id).sum())
        for word in full_question(prompt.example).split():
            if unknown_id in encoder.tokenizer(word, add_special_tokens=False)["input_ids"]:
                words[word] += 1
                in_instruction |= word in prompt.example.get("instruction", "").split()
    by_count = [word for word, _ in words.most_common()]
    return Unknown(unknown / max(1, tokens), by_count, in_instruction)
