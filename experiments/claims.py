"""What the paper says, its own numbers, and the quantity of ours that each claim compares.

    Quantity     a name, and one number of a seed (see collect.py), None where the seed lacks it
    Claim        "larger is above smaller", with the paper's two numbers and how they are known
    Experiment   a title and its claims
    judge        Claim -> Outcome: the arms' means, the paired difference, the verdict

How the numbers are known matters: `stated` was stated by the paper, and is quoted second-hand;
`plot` was read off a plot on the project's page, by eye. A score of the paper is a mean over
benchmarks in percent and ours a share of right answers, so only their order is compared.

Which claims there are, and in which direction, was settled before any full run.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from evaluate import generalization_factor
from experiments.verdict import Interval, mean_interval, paired_differences, verdict

STATED = "stated by the paper, second-hand"
PLOT = "read off a plot of the project page"
NOT_STATED = "the paper gives no number"

OOD = {  # kind of OOD -> its evaluation sets; on each, the rate of the format that was asked for
    "format": ("tags", "brackets", "last_line", "answer_first"),
    "wording": ("wording",),
    "task": ("easy", "task"),
    "look": ("look",),
}
NAMES = {  # of the arms, for readers
    "sft": "SFT", "dpo": "DPO", "hybrid": "DPO+SFT", "base": "base", "zero": "zero",
    "source_base": "chosen by base", "source_teacher": "chosen by a larger teacher",
    "lambda_0": "lambda 0", "lambda_half": "lambda 0.5",
}  # fmt: skip
LOSS_ARMS = {"hybrid": "lambda 1", "lambda_half": "lambda 0.5", "lambda_0": "lambda 0"}


@dataclass(frozen=True)
class Quantity:
    """A number that each seed has."""

    name: str
    of: Callable[[dict], float | None]  # from the results of one seed
    paper: float | None = None


@dataclass(frozen=True)
class Claim:
    """The paper says that `larger` is above `smaller`."""

    text: str
    larger: Quantity
    smaller: Quantity
    known: str = NOT_STATED


@dataclass(frozen=True)
class Experiment:
    number: int
    title: str
    claims: list[Claim]


@dataclass(frozen=True)
class Outcome:
    """A claim, and what came of it here."""

    claim: Claim
    larger: Interval
    smaller: Interval
    difference: Interval
    verdict: str

    def sentence(self) -> str:
        """The outcome in one sentence."""
        gap = self.difference
        if gap.count == 0:
            return "Not measured yet."
        means = (f"{self.claim.larger.name} {self.larger.mean:.3g}, "
                 f"{self.claim.smaller.name} {self.smaller.mean:.3g}")  # fmt: skip
        if gap.count == 1:
            return f"One seed only: {means}; no verdict."
        return (
            f"{means} (means of {gap.count} seeds); the difference is {gap.mean:+.3g} "
            f"[{gap.low:.3g}, {gap.high:.3g}]: {self.verdict}."
        )


def judge(claim: Claim, metrics: dict) -> Outcome:
    """Compare the two quantities of a claim, paired by seed."""
    larger = values(claim.larger, metrics)
    smaller = values(claim.smaller, metrics)
    both = [seed for seed in larger if seed in smaller]
    differences = paired_differences(larger, smaller)
    return Outcome(
        claim,
        mean_interval([larger[seed] for seed in both]),
        mean_interval([smaller[seed] for seed in both]),
        mean_interval(differences),
        verdict(differences),
    )


def values(quantity: Quantity, metrics: dict) -> dict[str, float]:
    """Seed -> the quantity, of the seeds that have it."""
    found = {}
    for seed, results in metrics["seeds"].items():
        try:
            value = quantity.of(results)
        except (KeyError, IndexError):  # this arm has not ended, or this seed does not have it
            value = None
        if value is not None:
            found[seed] = value
    return found


# --- Numbers of one seed -------------------------------------------------------------------------


# Rates and GF are in percent, as the paper's.


def mean_format_of(sets: dict, names: tuple[str, ...]) -> float:
    return 100 * statistics.mean(sets[name]["format"] for name in names)


def gf_curve(checkpoints: list[dict], kind: str = "format") -> list[dict]:
    """Of each checkpoint: format on ID and on one kind of OOD, and GF, gains against step 0."""
    curve = []
    for checkpoint in checkpoints:
        sets = checkpoint["sets"]
        entry = {"step": checkpoint["step"], "id": mean_format_of(sets, ("id",)),
                 "ood": mean_format_of(sets, OOD[kind])}  # fmt: skip
        start = curve[0] if curve else entry
        entry["gf"] = generalization_factor(entry["id"] - start["id"], entry["ood"] - start["ood"])
        curve.append(entry)
    return curve


def last_gf(arm: str, kind: str = "format") -> Callable[[dict], float]:
    return lambda seed: gf_curve(seed["cold"][arm], kind)[-1]["gf"]


def last_ood(arm: str, kind: str = "format") -> Callable[[dict], float]:
    return lambda seed: gf_curve(seed["cold"][arm], kind)[-1]["ood"]


def first_id(arm: str) -> Callable[[dict], float]:
    """ID format at the first checkpoint after the start."""
    return lambda seed: gf_curve(seed["cold"][arm])[1]["id"]


def accuracy(model: str, set_name: str = "id") -> Callable[[dict], float]:
    return lambda seed: 100 * seed["models"][model][set_name]["accuracy"]


def slope(seed: dict) -> float | None:
    """How the final accuracy rises with GF over the three cold starts: least squares, a seed."""
    gf = [last_gf(arm)(seed) for arm in ("sft", "dpo", "hybrid")]
    final = [accuracy(f"rl_{arm}")(seed) for arm in ("sft", "dpo", "hybrid")]
    if len(set(gf)) == 1:
        return None
    return statistics.linear_regression(gf, final).slope


def jitter(arm: str) -> Callable[[dict], float]:
    """Variance of the step-to-step differences of the format reward in stage 3."""

    def of(seed: dict) -> float:
        curve = seed["curves"][arm]["format"]
        return statistics.pvariance([b - a for a, b in zip(curve, curve[1:])])

    return of


def mean_format(arm: str) -> Callable[[dict], float]:
    return lambda seed: 100 * statistics.mean(seed["curves"][arm]["format"])


def last_loss(arm: str, metric: str) -> Callable[[dict], float]:
    """A metric of stage 2b, mean over its last five steps."""
    return lambda seed: statistics.mean(seed["losses"][arm][metric][-5:])


def nothing(seed: dict) -> float:
    return 0.0


# --- The claims ----------------------------------------------------------------------------------


def generalization() -> Experiment:
    claims = [
        Claim("DPO+SFT generalises better than SFT: GF at the last step",
              Quantity("DPO+SFT", last_gf("hybrid"), 95.4), Quantity("SFT", last_gf("sft"), 73.6),
              PLOT),
        Claim("DPO generalises better than SFT: GF at the last step",
              Quantity("DPO", last_gf("dpo"), 91.5), Quantity("SFT", last_gf("sft"), 73.6), PLOT),
        Claim("DPO+SFT is better out of distribution at the last step",
              Quantity("DPO+SFT", last_ood("hybrid"), 94.6), Quantity("SFT", last_ood("sft"), 69.2),
              PLOT),
        Claim("SFT learns the trained format faster: ID at the first checkpoint",
              Quantity("SFT", first_id("sft"), 97), Quantity("DPO+SFT", first_id("hybrid"), 90),
              PLOT),
    ]  # fmt: skip
    for kind in ("wording", "task", "look"):
        claims.append(
            Claim(f"the same for another {kind}: GF of the format",
                  Quantity("DPO+SFT", last_gf("hybrid", kind)),
                  Quantity("SFT", last_gf("sft", kind))))  # fmt: skip
    return Experiment(1, "Generalisation of the cold start", claims)


def final_against_gf() -> Experiment:
    return Experiment(2, "The final score after GRPO against GF of the cold start", [
        Claim("the score rises with GF: slope over SFT, DPO, DPO+SFT",
              Quantity("slope", slope, 0.038), Quantity("no slope", nothing, 0),
              PLOT + ", R squared 0.86"),
        Claim("DPO+SFT ends higher than SFT",
              Quantity("DPO+SFT", accuracy("rl_hybrid"), 48.22),
              Quantity("SFT", accuracy("rl_sft"), 47.11), PLOT),
        Claim("DPO ends higher than SFT",
              Quantity("DPO", accuracy("rl_dpo"), 47.63),
              Quantity("SFT", accuracy("rl_sft"), 47.11), PLOT),
    ])  # fmt: skip


def stage_three() -> Experiment:
    return Experiment(3, "GRPO from the SFT start against GRPO from the DPO+SFT start", [
        Claim("the final model from DPO+SFT is right more often",
              Quantity("from DPO+SFT", accuracy("rl_hybrid"), 50.02),
              Quantity("from SFT", accuracy("rl_sft"), 47.65), STATED),
        Claim("the cold start brings something: final above the same GRPO from zero",
              Quantity("from DPO+SFT", accuracy("rl_hybrid"), 52.73),
              Quantity("from zero", accuracy("rl_zero"), 50.35),
              STATED + "; there zero itself, with no further GRPO"),
        Claim("and above the same GRPO from base",
              Quantity("from DPO+SFT", accuracy("rl_hybrid")),
              Quantity("from base", accuracy("rl_base"))),
        Claim("GRPO from DPO+SFT is steadier: variance of the step-to-step format reward",
              Quantity("from SFT", jitter("sft")), Quantity("from DPO+SFT", jitter("hybrid")),
              "curves of the project page, no number"),
        Claim("its format reward is higher all along",
              Quantity("from DPO+SFT", mean_format("hybrid"), 99.5),
              Quantity("from SFT", mean_format("sft"), 97.5), PLOT),
    ])  # fmt: skip


def sft_weight() -> Experiment:
    return Experiment(4, "lambda, the weight of SFT beside DPO", [
        Claim("with lambda 1 the reward of chosen rises above 0",
              Quantity("lambda 1", last_loss("hybrid", "chosen_reward"), 1.80),
              Quantity("0", nothing, 0), PLOT),
        Claim("without SFT it sinks below 0",
              Quantity("0", nothing, 0),
              Quantity("lambda 0", last_loss("lambda_0", "chosen_reward"), -0.4), PLOT),
        Claim("the reward of chosen is higher with lambda 1 than with 0",
              Quantity("lambda 1", last_loss("hybrid", "chosen_reward"), 1.80),
              Quantity("lambda 0", last_loss("lambda_0", "chosen_reward"), -0.4), PLOT),
        Claim("rejected is pushed down further without SFT",
              Quantity("lambda 1", last_loss("hybrid", "rejected_reward"), -9.35),
              Quantity("lambda 0", last_loss("lambda_0", "rejected_reward"), -17.3), PLOT),
        Claim("the margin is wider without SFT",
              Quantity("lambda 0", last_loss("lambda_0", "margin"), 16.9),
              Quantity("lambda 1", last_loss("hybrid", "margin"), 11.2), PLOT),
        Claim("and wider with lambda 0.5 than with 1",
              Quantity("lambda 0.5", last_loss("lambda_half", "margin"), 12.3),
              Quantity("lambda 1", last_loss("hybrid", "margin"), 11.2), PLOT),
    ])  # fmt: skip


def sources() -> Experiment:
    claims = []
    papers = {"source_base": (45.07, 48.79), "source_teacher": (44.90, 48.98)}
    for other, (after_cold, after_rl) in papers.items():
        for prefix, ours, theirs, when in (
            ("cold_", 47.27, after_cold, "after the cold start"),
            ("rl_", 50.02, after_rl, "after GRPO"),
        ):
            claims.append(
                Claim(f"chosen by zero beats {NAMES[other]}, {when}",
                      Quantity("chosen by zero", accuracy(f"{prefix}hybrid"), ours),
                      Quantity(NAMES[other], accuracy(f"{prefix}{other}"), theirs),
                      STATED))  # fmt: skip
    return Experiment(5, "Who writes chosen: zero, base, or a larger teacher", claims)


EXPERIMENTS = [generalization(), final_against_gf(), stage_three(), sft_weight(), sources()]

# --- 6. Cost, whose rounds are no seeds ----------------------------------------------------------

ALMOST_NOTHING = 1.10  # times the cost of SFT; ours, the paper says 1.057 and "almost no cost"


def judge_cost(metrics: dict) -> Outcome:
    """DPO+SFT costs almost nothing more than SFT on the same pairs: its ratio is below a bound."""
    claim = Claim(
        "DPO+SFT costs almost nothing more than SFT: seconds a pair, as a ratio",
        Quantity("bound", nothing),
        Quantity("DPO+SFT : SFT", nothing, 1.057),
        STATED + " (0.979 against 1.035 samples a second); the bound of 1.1 is ours",
    )
    ratios = metrics["cost"]
    differences = [ALMOST_NOTHING - ratio for ratio in ratios]
    bound = mean_interval([ALMOST_NOTHING] * len(ratios))
    return Outcome(
        claim, bound, mean_interval(ratios), mean_interval(differences), verdict(differences)
    )


def outcomes(metrics: dict) -> list[tuple[str, list[Outcome]]]:
    """(title, outcomes) of all six experiments."""
    results = []
    for experiment in EXPERIMENTS:
        title = f"{experiment.number}. {experiment.title}"
        results.append((title, [judge(claim, metrics) for claim in experiment.claims]))
    results.append(("6. The cost of DPO+SFT against SFT on the same pairs", [judge_cost(metrics)]))
    return results
