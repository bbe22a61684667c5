"""A sampled group and the rewards of its completions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from model.prompts import PromptEncoder
from model.records import SampledGroup, is_truncated
from rewards import (
    Completion,
    Judge,
    Reward,
    ask_judge,
    grade,
    make_judge,
    make_rewards,
)


@dataclass(frozen=True)
class RewardedGroup:
    """A sampled group. Each list has one entry for each of its G completions."""

    group: SampledGroup  # its stats are entropies, nats
    responses: list[str]  # the text of each completion
    truncated: list[bool]  # it ran into the limit of tokens
    rewards: list[dict[str, float | None]]  # by name; None: could not be scored
    totals: list[float]  # the weighted sum, which is trained on; nan if a part could not be scored

    def known(self, name: str) -> list[float]:
        """One reward of all completions that could be scored."""
        return [by_name[name] for by_name in self.rewards if by_name[name] is not None]

    def is_informative(self) -> bool:
        """Some completions right, some wrong: it says what to prefer (DAPO's 0 < #correct < G).

        Trap: this looks at accuracy, never at the sum. An all-wrong group with unequal format would
        be kept, and train on the format alone (test_dynamic_sampling_looks_at_accuracy).
        """
        return len(set(self.known("accuracy"))) > 1

    def known_totals(self) -> list[float]:
        """The weighted sums of all completions that could be scored."""
        return [total for total in self.totals if not math.isnan(total)]


class GroupRewards:
    """The rewards of a run, their weights, and the judge that answers of type `text` need."""

    def __init__(self, cfg, encoder: PromptEncoder, eos_ids: list[int], warn: Callable):
        self.judge = make_judge(cfg, warn)
        self.by_name = make_rewards(cfg, self.judge)
        self.weights = parse_weights(cfg.reward_weights, self.by_name)
        self.encoder = encoder
        self.eos_ids = eos_ids

    def at(self, progress: float) -> Callable[[list[SampledGroup]], list[RewardedGroup]]:
        """What rewards sampled groups at this point of the training, 0 to 1; see `Completion`."""
        return partial(
            reward_groups,
            encoder=self.encoder,
            eos_ids=self.eos_ids,
            rewards=self.by_name,
            weights=self.weights,
            progress=progress,
            judge=self.judge,
        )


def reward_groups(
    groups: list[SampledGroup],
    encoder: PromptEncoder,
    eos_ids: list[int],
    rewards: dict[str, Reward],
    weights: dict[str, float],
    progress: float,
    judge: Judge | None = None,
) -> list[RewardedGroup]:
    """The rewards of a rollout. A judge is asked about all completions at the same time."""
    responses = [[encoder.decode(ids) for ids in group.completions] for group in groups]

    questions = []  # (example, response)
    for group, texts in zip(groups, responses):
        questions += [(group.prompt.example, text) for text in texts]
    ask_judge(questions, judge)

    return [
        reward_group(group, texts, eos_ids, rewards, weights, progress)
        for group, texts in zip(groups, responses)
    ]


def reward_group(
    group: SampledGroup,
    responses: list[str],
    eos_ids: list[int],
    rewards: dict[str, Reward],
    weights: dict[str, float],
    progress: float,
) -> RewardedGroup:
    """Compute each reward of each completion, by name, and their weighted sum.

    responses  the text of each completion
    weights    by name, 1 for a reward that is not named
    progress   of the training, 0 to 1; see `Completion`
    """
    example = group.prompt.example
    truncated = [is_truncated(ids, eos_ids) for ids in group.completions]

    by_completion, totals = [], []
    for ids, text, cut in zip(group.completions, responses, truncated):
        completion = Completion(text, len(ids), cut, progress)
        by_name = {name: reward(example, completion) for name, reward in rewards.items()}
        by_completion.append(by_name)
        totals.append(weighted_sum(by_name, weights))
    return RewardedGroup(group, responses, truncated, by_completion, totals)


def weighted_sum(by_name: dict[str, float | None], weights: dict[str, float]) -> float:
    """The reward that is trained on; nan if one of its parts could not be scored."""
    total = 0.0
    for name, reward in by_name.items():
        total += float("nan") if reward is None else weights.get(name, 1.0) * reward
    return total


def parse_weights(text: str, rewards: dict[str, Reward] | None = None) -> dict[str, float]:
    """`format=0.5,accuracy=1` -> weights by name.

    rewards  of the run; with them, a weight for a reward that the run lacks is refused too
    Raises ValueError naming --reward_weights.
    """
    weights = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError as error:
            raise ValueError(f"--reward_weights {text}: wanted NAME=WEIGHT,NAME=WEIGHT") from error
        if rewards is not None and name.strip() not in rewards:
            raise ValueError(
                f"--reward_weights: no reward {name.strip()} in this run; it has "
                f"{', '.join(rewards)} (overlong needs --overlong_buffer)"
            )
    return weights


def sample_record(
    rewarded: RewardedGroup, logp: Tensor, encoder: PromptEncoder, judge: Judge | None
) -> dict:
    """What samples.jsonl holds of a group: everything the page shows, so that it computes nothing
    itself.

    logp  (G, T) log-probabilities of the tokens after the update

    In the record:

    logp          after the update
    logp_sampler  as sampled, before it
    reasons       from grading once more, since a reward is only a number, without its reason
    """
    group, example = rewarded.group, rewarded.group.prompt.example
    return {
        "images": example["images"],
        **{key: example[key] for key in ("id", "question", "instruction", "format", "kind")},
        "prompt": encoder.tokenizer.decode(group.prompt.ids.tolist()),
        "gold": example["answer"],
        "completions": rewarded.responses,
        "truncated": rewarded.truncated,
        "rewards": rewarded.rewards,
        "totals": rewarded.totals,
        "reasons": [grade(example, text, judge).reason for text in rewarded.responses],
        "tokens": [encoder.tokenizer.batch_decode(ids[:, None]) for ids in group.completions],
        "logp_sampler": token_numbers(group.logps),
        "logp": token_numbers([line[: len(ids)] for line, ids in zip(logp, group.completions)]),
    }


def token_numbers(values: list[Tensor]) -> list[list[float]]:
    """A number for each token of each completion, (t,) each, to four digits behind the point."""
    return [[round(value, 4) for value in line.tolist()] for line in values]
