"""The claims of `make paper-more`, judged by the same rule as the others."""

from collections.abc import Callable

from build_prefs import CORRUPTIONS
from experiments.claims import (
    STATED,
    Claim,
    Experiment,
    Outcome,
    Quantity,
    judge,
)
from experiments.more_grid import BRANCHING, GRPO_ARMS, VARIANTS, slug

DOUBT = "a question of ours"


def more(model: str, set_name: str = "id", metric: str = "accuracy") -> Callable[[dict], float]:
    """A rate of a model of eval_more, in percent."""
    return lambda seed: 100 * seed["more"][model][set_name][metric]


def inconsistent(model: str) -> Callable[[dict], float]:
    return lambda seed: 100 * seed["inconsistent"][model]["id"]["accuracy"]


def pass_at(model: str, k: int) -> Callable[[dict], float]:
    return lambda seed: 100 * seed["explore"][str(BRANCHING[0])][model]["pass@k"][str(k)]


def branching(model: str, questions: int) -> Callable[[dict], float]:
    return lambda seed: seed["explore"][str(questions)][model]["branching"]


def pairs_and_checks() -> Experiment:
    return Experiment(7, "Decoupled pairs, and verification", [
        Claim("decoupled pairs leave more for RL: final accuracy",
              Quantity("decoupled", more("rl_hybrid"), 50.02),
              Quantity("coupled", more("rl_coupled"), 48.68), STATED),
        Claim("coupled pairs give the better cold start",
              Quantity("coupled", more("cold_coupled"), 47.67),
              Quantity("decoupled", more("cold_hybrid"), 47.27), STATED),
        Claim("verification pays in a world that contradicts itself: final accuracy",
              Quantity("verified", inconsistent("rl_verified"), 50.02),
              Quantity("not verified", inconsistent("rl_unverified"), 48.13), STATED),
    ])  # fmt: skip


def exploration() -> Experiment:
    claims = [
        Claim(f"the cold start widens exploration: pass@{k}",
              Quantity("DPO+SFT", pass_at("hybrid", k), ours),
              Quantity("SFT", pass_at("sft", k), theirs),
              "read off a plot of the project page, of final models on MMMU")
        for k, ours, theirs in ((8, 77.55, 76.88), (64, 87.33, 86.88))
    ]  # fmt: skip
    claims += [
        Claim(f"and the branching factor, {questions} questions",
              Quantity("DPO+SFT", branching("hybrid", questions)),
              Quantity("SFT", branching("sft", questions)),
              "stated in words only") for questions in BRANCHING
    ]  # fmt: skip
    return Experiment(8, "Exploration after the cold start", claims)


def grpo_settings() -> Experiment:
    claims = [
        Claim(f"stage 3 as it is beats {name}: final accuracy",
              Quantity("as it is", more("rl_hybrid")), Quantity(name, more(f"rl_{name}")), DOUBT)
        for name in (*GRPO_ARMS, *VARIANTS)
    ]  # fmt: skip
    return Experiment(9, "GRPO with one thing changed", claims)


def corruptions() -> Experiment:
    """Only "answer in words" looks like a format that is evaluated, but each is tried."""
    claims = []
    for name in CORRUPTIONS:
        model = f"cold_{slug(name)}"
        claims.append(
            Claim(f"without the corruption '{name}' the format last_line survives better",
                  Quantity(f"without '{name}'", more(model, "last_line", "format")),
                  Quantity("with all five", more("cold_hybrid", "last_line", "format")),
                  DOUBT))  # fmt: skip
    return Experiment(10, "Which corruption unteaches a format", claims)


MORE = [pairs_and_checks(), exploration(), grpo_settings(), corruptions()]


def more_outcomes(metrics: dict) -> list[tuple[str, list[Outcome]]]:
    """(title, outcomes) of the further experiments."""
    results = []
    for experiment in MORE:
        title = f"{experiment.number}. {experiment.title}"
        results.append((title, [judge(claim, metrics) for claim in experiment.claims]))
    return results
