"""The two records that every stage passes around: a Prompt, and a Group: one prompt with its
completions.

GRPO samples G completions of a prompt, DPO holds a chosen and a rejected one, pass@k wants k of
them. All three are groups, so all three are sampled and scored by the same functions.

Dimension key, used in every file of the project
    N  prompts (= groups)            S  prompt length; of the longest, where padded
    G  completions per prompt        T  tokens of the longest completion, EOS included
    B  completions                   L  tokens of one completion, EOS included
    D  hidden width                  V  size of the vocabulary

N and B count what the tensor at hand holds: a micro-batch, a step or a rollout.

The B completions of a batch lie in group order: all of group 0 first, then all of group 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class ExampleError(ValueError):
    """An example that cannot be used, and why. Loaders skip it, count it and name it."""


@dataclass(frozen=True, eq=False)  # compared by identity: a Prompt is a key of the feature cache
class Prompt:
    """One encoded prompt. Its tensors stay on the CPU until a batch needs them."""

    example: dict  # where it came from: question, answer, images, ... (see `sources`)
    ids: Tensor  # (S,) token ids, each image already expanded to its placeholder tokens
    positions: Tensor  # (3, S) M-RoPE positions: time, height, width
    pixel_values: Tensor | None  # (patches, patch_dim) of all its images, in order
    image_grid_thw: Tensor | None  # (images, 3) patches in time, height, width


@dataclass(frozen=True)
class Group:
    """One prompt and its completions."""

    prompt: Prompt
    completions: list[Tensor]  # each (L,) ids as sampled; never decoded and tokenized again


@dataclass(frozen=True)
class SampledGroup(Group):
    """A group with what the sampler knew of each token: a tensor (L,) for each completion."""

    logps: list[Tensor]  # log-probability that the sampler gave the token it drew, nats
    stats: list[Tensor]  # a number that `sample_groups` was asked for; 0 where it was not


def completion_mask(groups: list[Group]) -> Tensor:
    """Which entries of a (B, T) tensor are tokens and which are padding.

    Returns (B, T) float: 1 where completion i has a token t (its EOS is one), 0 elsewhere; (0, 0)
    without any group.

    Trap: lengths come from the records, never from `ids != pad`. Where padding and EOS share an id,
    that would mask the EOS out, and the model would never be taught to stop
    (test_mask_survives_pad_equals_eos).
    """
    lengths = torch.tensor([len(c) for group in groups for c in group.completions])  # (B,)
    token = torch.arange(max(lengths.tolist(), default=0))  # (T,)
    return (token < lengths[:, None]).float()


def padded(lines: list[Tensor]) -> Tensor:
    """B tensors (L,) as one (B, T), 0 behind their ends; (0, 0) if there are none."""
    return pad_sequence(lines, batch_first=True) if lines else torch.zeros(0, 0)


def is_truncated(completion: Tensor, eos_ids: list[int]) -> bool:
    """True if a completion (L,) ran into the length limit instead of ending by itself."""
    return int(completion[-1]) not in eos_ids
