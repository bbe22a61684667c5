"""A sampled group and the rewards of its completions.

    R_i = sum over rewards k of  w_k r_k(completion i),     nan if one of them could not be scored
"""

import math
import numbers
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from model.prompts import PromptEncoder
from model.records import SampledGroup, is_truncated
from rewards import Completion, Judge, Reward, ask_judge, grade, make_rewards

# Names of metrics: a reward is logged by its own name, and may have none of these.
TAKEN = {"step", "reward", "length", "trunc%", "zero_std%", "unscored", "entropy", "loss", "ratio",
         "clip%", "gap", "gap_k3", "gap_outside%", "kl_ref", "grad_norm", "lr", "gen%", "step_s",
         "eval_accuracy", "skipped_examples", "skipped_updates", "judge_calls", "judge_hits",
         "judge_tokens"}  # fmt: skip


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


class Rewarder:
    """What rewards the sampled groups of a run.

    cfg      the settings of grpo.py
    judge    what answers of type `text` need, None without --judge_url
    warn     is told which reward left completions out, once for each
    """

    def __init__(
        self,
        cfg,
        encoder: PromptEncoder,
        eos_ids: list[int],
        judge: Judge | None,
        warn: Callable[[str], None] = print,
    ):
        self.functions = make_rewards(cfg, judge)  # by name
        for name in self.functions:
            if name in TAKEN:  # its values would be added to those of the metric
                raise ValueError(f"a reward cannot be called {name}: a metric has that name")
        self.weights = parse_weights(cfg.reward_weights, self.functions)  # by name, 1 if not named
        if not any(self.weights.get(name, 1.0) for name in self.functions):
            raise ValueError(f"--reward_weights {cfg.reward_weights}: all are 0, nothing is learnt")
        self.encoder = encoder
        self.eos_ids = eos_ids
        self.judge = judge
        self.warn = warn
        self.warned_of: set[str] = set()  # names of rewards

    def formula(self) -> str:
        """The weights in force: "0.5 format + 1 accuracy"."""
        return " + ".join(f"{self.weights.get(name, 1.0):g} {name}" for name in self.functions)

    def reward_groups(self, groups: list[SampledGroup], progress: float) -> list[RewardedGroup]:
        """The rewards of a rollout. A judge is asked about all completions at the same time.

        progress   of the training, 0 to 1; see `Completion`
        """
        responses = [[self.encoder.decode(ids) for ids in group.completions] for group in groups]

        questions = []  # (example, response)
        for group, texts in zip(groups, responses):
            questions += [(group.prompt.example, text) for text in texts]
        ask_judge(questions, self.judge)

        rewarded = [self.reward_group(g, texts, progress) for g, texts in zip(groups, responses)]
        self.say_what_is_left_out(rewarded)
        return rewarded

    def say_what_is_left_out(self, rewarded: list[RewardedGroup]) -> None:
        """Warn of a reward that gave None. Raises ValueError if it did so for every completion.

        Trap: a function without its `return` gives None. Without a word the run would train on
        nothing, or, with a `return` in one branch only, on its best completions
        (test_a_reward_that_forgets_its_return_is_named). A judge may be silent for a rollout.
        """
        count = sum(len(group.totals) for group in rewarded)
        for name in self.functions:
            left_out = count - sum(len(group.known(name)) for group in rewarded)
            if left_out == count > 0 and self.judge is None:
                raise ValueError(
                    f"reward `{name}` gave None for each of {count} completions, so nothing can be "
                    "learnt from them: is a `return` missing?"
                )
            if left_out and name not in self.warned_of:
                self.warned_of.add(name)
                self.warn(
                    f"reward `{name}` gave None for {left_out} of {count} completions: they are "
                    "left out of the update (`unscored` in metrics.jsonl)"
                )

    def reward_group(
        self, group: SampledGroup, responses: list[str], progress: float
    ) -> RewardedGroup:
        """Each reward of each completion, by name, and their weighted sum."""
        example = group.prompt.example
        truncated = [is_truncated(ids, self.eos_ids) for ids in group.completions]

        rewards, totals = [], []
        for ids, text, is_cut in zip(group.completions, responses, truncated):
            completion = Completion(text, len(ids), is_cut, progress)
            by_name = {
                name: checked_reward(name, function, example, completion)
                for name, function in self.functions.items()
            }
            rewards.append(by_name)
            totals.append(weighted_sum(by_name, self.weights))
        return RewardedGroup(group, responses, truncated, rewards, totals)


def checked_reward(
    name: str, function: Reward, example: dict, completion: Completion
) -> float | None:
    """What a reward says of a completion: a finite number, or None if it could not be scored.

    Raises ValueError naming the reward, the example, and the line that failed. Trap: a nan is not
    None. Taken for "could not be scored", it would leave out every completion, and the run would
    train on nothing without a word (test_a_reward_that_is_no_number_is_an_error).
    """
    of = f"reward `{name}` of example {example['id']}"
    try:
        value = function(example, completion)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"{of}: {type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
        ) from error
    if value is None:
        return None
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, numbers.Real) and math.isfinite(value):  # numpy's numbers as well
        return float(value)
    raise ValueError(f"{of} is {value!r}: wanted a finite number, or None if it cannot be scored")


def weighted_sum(by_name: dict[str, float | None], weights: dict[str, float]) -> float:
    """The reward that is trained on; nan if one of its parts could not be scored."""
    total = 0.0
    for name, value in by_name.items():
        total += float("nan") if value is None else weights.get(name, 1.0) * value
    return total


def finite(text: str) -> float:
    """A number. Raises ValueError for `nan` and `inf` too: as a weight, they would end training."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def parse_weights(text: str, rewards: dict[str, Reward] | None = None) -> dict[str, float]:
    """`format=0.5,accuracy=1` -> weights by name.

    rewards  of the run; with them, a weight for a reward that the run lacks is refused too
    Raises ValueError naming --reward_weights.
    """
    weights = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        if name.strip() in weights:
            raise ValueError(f"--reward_weights {text}: {name.strip()} is given twice")
        try:
            weights[name.strip()] = finite(weight)
        except ValueError as error:
            raise ValueError(
                f"--reward_weights {text}: wanted NAME=WEIGHT,NAME=WEIGHT, and finite numbers"
            ) from error
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

    logp  (G, T) log-probabilities of the tokens after the update; in the record `logp`, beside
          `logp_sampler`, as sampled, before it

    `reasons` come from grading once more, since a reward is only a number, without its reason.
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
    """A number for each token of each completion, (L,) each, to four digits behind the point."""
    return [[round(value, 4) for value in line.tolist()] for line in values]
