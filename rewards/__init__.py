r"""Reward functions, by name.

A reward is one function of an example and a completion, and one entry in the dictionary of
`make_rewards` below. A run sums them with the weights of --reward_weights:

    R = 0.5 * format + 1 * accuracy (+ 1 * overlong)       SPECS section 3: independent, and summed

    format     1 if the response is one think block, then one answer block, and nothing else
    accuracy   1 if the answer in the response equals the gold answer (`grading.py`)
    overlong   0 to -1 in the last tokens before the limit (DAPO eq. 13), with --overlong_buffer

None means "could not be scored", as when a judge does not answer. Such a completion is left out of
its group: a reward of 0 would teach that it is wrong.

    groups.py        the rewards of a sampled group, and their weights
    format.py        the format
    grading.py       the accuracy of a response: find its answer, compare it with the gold answer
    consistency.py   does the reasoning lead to the answer, for the chosen side of pairs
    bounding_boxes.py   overlap of boxes in an image, for detection
    judge.py         a language model that answers yes or no; judge_prompts.py: what it is asked

Finding the answer, from the outside in:

    extract.py       tries the rules in order
    rules.py         the rules: tables of patterns, an example each
    views.py         the parts of a response that they search; boxes.py: what is in \boxed{...}
    reading.py       what a match is worth, by tables of steps: piece.py, read_values.py,
                     read_options.py, leading.py

Comparing it with the gold:

    choice.py        options, on options.py (letter, text, value) and letters.py
    number.py        plain numbers
    expression.py    everything else of mathematics, on lists.py; the last word has math-verify,
                     in processes of its own (math_worker.py)

How things are written:

    digits.py        numbers
    units.py         units of measurement; unit_names.py: which there are
    typesetting.py   LaTeX, Unicode, Markdown

`python -m rewards FILE` grades responses from anywhere (`__main__.py`).

To add a reward, write the function and enter it in `make_rewards`. It is then logged, plotted and
recorded under its name.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rewards.bounding_boxes import box_reward
from rewards.expression import MATH_VERIFY
from rewards.format import is_in_format
from rewards.grading import Grade, ask_judge, grade
from rewards.judge import Judge, make_judge

__all__ = [
    "Completion", "Grade", "Judge", "Reward", "ask_judge", "grade", "is_in_format",
    "make_judge",
]  # fmt: skip


@dataclass(frozen=True)
class Completion:
    """What a reward may look at, beside the example."""

    text: str  # the response, up to its EOS and without special tokens
    length: int  # tokens, EOS included
    truncated: bool  # it ran into the limit of tokens
    progress: float  # share of the training that this step completes, 1 at the last step


Reward = Callable[[dict, Completion], float | None]


def make_rewards(cfg, judge: Judge | None) -> dict[str, Reward]:
    """The rewards of a run by name, from the settings of `grpo.py`."""
    # The processes of math-verify take seconds to import sympy. Started here, they do so while the
    # run goes on; started by the first expression, they would hold up the first rollout. Golds of
    # the toy world are numbers and letters, which never need them.
    if cfg.data != "toy":
        MATH_VERIFY.start()

    def in_format(example: dict, completion: Completion) -> float:
        return float(is_in_format(completion.text))

    def accuracy(example: dict, completion: Completion) -> float | None:
        if example["answer_type"] == "boxes":
            return box_reward(example["answer"], completion.text, completion.progress)
        return grade(example, completion.text, judge).score

    def overlong(example: dict, completion: Completion) -> float:
        return overlong_penalty(completion.length, cfg.max_new_tokens, cfg.overlong_buffer)

    rewards = {"format": in_format, "accuracy": accuracy}
    if cfg.overlong_buffer:
        rewards["overlong"] = overlong
    return rewards


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """0 up to limit - buffer tokens, then down to -1 at the limit. Source: DAPO eq. 13."""
    if buffer == 0:
        return 0.0
    return min(0.0, (limit - buffer - length) / buffer)
