"""Examples that a run does not train on, and its accuracy on them while it trains.

They are not those of `evaluate.py`: what is chosen by looking at this accuracy is not chosen on the
questions of a table that is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Subset

from harness.metrics import Means
from harness.randomness import random_of, seed_of
from model.qwen import Policy
from model.records import Prompt
from model.sampling import sample_groups
from rewards.groups import Rewarder
from sources.toy import toy_examples

PURPOSE = "held out during training"


def split_held_out(examples: Sequence[dict], cfg) -> tuple[Sequence[dict], Sequence[dict]]:
    """What to train on, and --eval_items examples that are kept apart.

    The embedded world draws new, held-out scenes. From a table examples are taken out, the same
    ones for the same --seed. Raises ValueError naming --eval_items if nothing would be left.
    """
    if cfg.data == "toy":
        seed = seed_of(cfg.seed, PURPOSE)
        return examples, toy_examples(
            cfg.eval_items, seed, held_out=True, instruction=cfg.instruction
        )

    if len(examples) <= cfg.eval_items:
        raise ValueError(
            f"--eval_items {cfg.eval_items}: --data {cfg.data} has only {len(examples)} examples"
        )
    order = list(range(len(examples)))
    random_of(cfg.seed, PURPOSE).shuffle(order)
    kept_apart, trained_on = order[: cfg.eval_items], order[cfg.eval_items :]
    return Subset(examples, sorted(trained_on)), Subset(examples, kept_apart)


@dataclass(frozen=True)
class HeldOut:
    """This rank's held-out prompts; none if --eval_every is 0."""

    prompts: list[Prompt]

    def accuracy(
        self,
        step: int,
        sampler: Policy,
        rewarder: Rewarder,
        accelerator,
        cfg,
    ) -> dict[str, float]:
        """`eval_accuracy` of greedy answers, over all ranks, every --eval_every steps; else {}.

        It is measured before the update of the step, on the weights that sample its rollout, and
        draws no random number, so the run is the same with it and without
        (test_held_out_accuracy_changes_nothing).
        """
        if not cfg.eval_every or (step - 1) % cfg.eval_every:
            return {}
        with accelerator.autocast():
            groups = sample_groups(
                sampler,
                self.prompts,
                group_size=1,
                max_new_tokens=cfg.max_new_tokens,
                temperature=0.0,
                sample_batch=cfg.sample_batch,
                compile_decode=cfg.compile_decode,
            )

        means = Means()
        # As strict as at the end of training: the overlap that boxes must reach rises until then.
        for rewarded in rewarder.reward_groups(groups, progress=1.0):
            known = rewarded.known("accuracy")
            means.add("eval_accuracy", sum(known), len(known))
        return means.over_ranks(accelerator)
