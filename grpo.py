"""GRPO with DAPO-style clipping: stages 1 and 3 of SPECS.

For each prompt q, sample G completions o_1..o_G from the current policy, reward each, and compare
it with its own group. A token's log-probability is then raised if its completion did better than
the group's mean, and lowered if it did worse, until its ratio to the sampling policy leaves a band:

    A_i     = (R_i - mean(R)) / (std(R) + eps)                     one advantage per completion
    r_it    = exp(logp_it - logp_old_it)                           one ratio per token
    J       = 1/M sum_i sum_t min(r_it A_i, clip(r_it, 1 - low, 1 + high) A_i)      M = all tokens
    loss    = -J  (+ beta * KL to the reference, off by default)

As a loop:

    repeat
        1. sample a group for each prompt, and reward it                       collect_rollout
        2. turn rewards into advantages, keep logp_old                         prepare_updates
        3. for each optimizer step: the clipped loss over its micro-batches    update

Three log-probabilities, never to be confused: `logp` of the policy that is being trained;
`logp_old` of the same weights before the first update on this rollout, fixed until the next
rollout; `logp_ref` of the frozen start model, for the KL term only, which is not even loaded if
--kl_beta is 0.

Where this departs from the paper, or fills in what it leaves open:
  1. Clip band 0.2 / 0.28: the paper says "similar to DAPO", these are DAPO's.
  2. M counts the tokens of the whole optimizer step, over prompts, micro-batches and processes
     (DAPO eq. 8 is printed for one prompt).
  3. A rollout is consumed in --updates_per_rollout optimizer steps. With one, every ratio is 1 and
     the clip never acts; the paper's 128 prompts x 8 in batches of 128 completions make 8.
  4. Dynamic sampling, overlong shaping, masking of truncated completions, Dr. GRPO: built, off.

Dimension key: N prompts, G completions per prompt, B = N*G completions, T longest completion. Small
letters (n, b, t): the same counts in a micro-batch or in one optimizer step.

    accelerate launch grpo.py                                   the embedded world, 16 steps, 15 s
    accelerate launch grpo.py --model runs/warmup/model         stage 3: another start
    accelerate launch --config_file configs/one_gpu.yaml grpo.py @configs/grpo_3b.args
"""

import time
from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from common import (
    MicroBatch,
    Policies,
    build_policies,
    micro_batches,
    set_learning_rate,
    token_logps,
    training_step,
)
from harness import settings
from harness.cli import flag, parse_cli, run_stage
from harness.metrics import Means
from harness.randomness import torch_generator
from harness.ranks import make_accelerator, sum_over_ranks
from harness.run import Run
from model.loading import load_model
from model.qwen import Policy
from model.records import Group, completion_mask
from model.sampling import refresh, sample_groups
from rewards import make_judge, make_rewards
from rewards.groups import RewardedGroup, parse_weights, reward_groups, sample_record
from rewards.judge import take_counts
from sources import build_stream
from sources.stream import PromptStream


@dataclass(frozen=True)
class Config(settings.Data, settings.Sampling, settings.Training, settings.Judge):
    model: str = flag("toy/base", "folder or hub name of the start model; paper: Qwen2.5-VL-7B")
    # sampling
    steps: int = flag(16, "rollouts; paper: not stated for stage 1, its plot of stage 3 has 800")
    prompts_per_step: int = flag(16, "prompts per rollout, over all processes; paper: 128")
    group_size: int = flag(8, "completions per prompt (G); paper: 8")
    temperature: float = flag(1.0, "of sampling and of scoring alike; MM-EUREKA")
    dynamic_sampling: bool = flag(False, "draw again for groups all right or all wrong; DAPO")
    max_draws: int = flag(10, "rollouts that --dynamic_sampling may draw for one step; verl")
    # reward and advantage
    reward_weights: str = flag("format=0.5,accuracy=1", "NAME=WEIGHT,...; 1 if not named; paper")
    overlong_buffer: int = flag(0, "tokens before the limit with a penalty, 0: off; DAPO: 4096")
    mask_truncated: bool = flag(False, "leave completions without EOS out of the loss; DAPO")
    dr_grpo: bool = flag(False, "no division by std, constant normaliser; arXiv 2503.20783")
    # loss
    clip_low: float = flag(0.2, "ratio stops at 1 - this where the advantage is negative; DAPO")
    clip_high: float = flag(0.28, "ratio stops at 1 + this where the advantage is positive; DAPO")
    kl_beta: float = flag(0.0, "weight of the KL to the start model (k3), nats; paper: 0")
    updates_per_rollout: int = flag(2, "optimizer steps per rollout; paper, as MM-EUREKA counts: 8")
    # record
    sample_every: int = flag(10, "rollouts between records in samples.jsonl")

    def __post_init__(self):
        super().__post_init__()
        parse_weights(self.reward_weights)
        arithmetic(self, ranks=1)
        if self.group_size < 2:
            raise ValueError("--group_size must be at least 2, to have something to compare with")
        if self.temperature <= 0:
            raise ValueError("--temperature must be positive, or all samples are the same")


# Columns of the terminal's table, after the reward and its parts, and panels of curves.png.
COLUMNS = ["length", "trunc%", "zero_std%", "loss", "ratio", "clip%", "entropy", "grad_norm",
           "gen%", "step_s"]
PANELS = {"length, tokens": ["length"], "ratio and clip": ["ratio", "clip%"],
          "entropy, nats": ["entropy"]}


# --- 1. Sample a group for each prompt, and reward it ------------------------------------------


def collect_rollout(sampler: Policy, stream: PromptStream, count: int, reward, generator,
                    cfg: Config) -> list[RewardedGroup]:
    """Sample `count` groups and reward each; `reward` is a function of groups.

    With dynamic sampling, draw on until that many groups are informative; a surplus is thrown away.
    Reward and accuracy are then logged for the kept groups only.
    """
    kept: list[RewardedGroup] = []

    for _ in range(cfg.max_draws if cfg.dynamic_sampling else 1):
        groups, _ = sample_groups(
            sampler, stream.take(count), cfg.group_size, max_new_tokens=cfg.max_new_tokens,
            temperature=cfg.temperature, generator=generator, sample_batch=cfg.sample_batch,
            compile_decode=cfg.compile_decode)
        rewarded = reward(groups)
        kept += [r for r in rewarded if r.is_informative() or not cfg.dynamic_sampling]
        if len(kept) >= count:
            return kept[:count]

    raise ValueError(f"--dynamic_sampling: {cfg.max_draws} draws of {count} prompts gave only "
                     f"{len(kept)} groups with right and wrong answers; raise --max_draws?")


# --- 2. Advantages -----------------------------------------------------------------------------


def group_advantages(rewards: Tensor, divide_by_std: bool = True, eps: float = 1e-6) -> Tensor:
    """How much better than its own group each completion did.

    rewards        (N, G); nan (could not be scored) is left out of mean and std, and gets 0
    divide_by_std  False is Dr. GRPO: its authors object that the division gives very easy and very
                   hard prompts more weight
    returns        (N, G); exactly 0 for a group of equal rewards

    std is the unbiased one, over G - 1: one success in four is 0.5, not 0.433.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]]), eps=0.0)
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    known = ~rewards.isnan()  # (N, G)
    count = known.sum(-1, keepdim=True)  # (N, 1)
    mean = rewards.nansum(-1, keepdim=True) / count  # (N, 1)
    advantages = torch.where(known, rewards - mean, 0.0)  # (N, G)

    if divide_by_std:
        variance = advantages.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)  # (N, 1)
        advantages = advantages / (variance.sqrt() + eps)

    # Trap: whether all are equal is decided by comparing rewards, not by std > 0. In fp32 the mean
    # of eight 0.1 is not quite 0.1; that rounding error, divided by its own std, would become an
    # advantage of almost 1 (test_equal_rewards_zero_advantage).
    lowest = rewards.masked_fill(~known, float("inf")).amin(-1, keepdim=True)  # (N, 1)
    highest = rewards.masked_fill(~known, float("-inf")).amax(-1, keepdim=True)  # (N, 1)
    return torch.where((lowest < highest) & known, advantages, 0.0)


# --- 3. Loss -----------------------------------------------------------------------------------


def policy_loss(logp: Tensor, logp_old: Tensor, advantages: Tensor, mask: Tensor, clip_low: float,
                clip_high: float) -> dict[str, Tensor]:
    """The clipped surrogate of each token.

    logp, logp_old  (B, T)
    advantages      (B,)
    mask            (B, T); not used here, kept so that a variant such as GSPO changes a few lines
    returns         `loss`, `ratio`, `clipped`, (B, T) each; unmasked and not reduced: the caller
                    sums over the mask and divides by the tokens of the step

    On which side the gradient stops depends on the sign of the advantage:

                      ratio < 1 - low          in the band       ratio > 1 + high
        A > 0         gradient                 gradient          stopped
        A < 0         stopped                  gradient          gradient

    At ratio 1 the loss of a token is -A. If all completions are equally long, these add up to 0,
    but their gradients do not: a healthy first update prints a loss of 0, or below 0 if the better
    completions are longer (test_zero_loss_nonzero_gradient).

    Source: PPO eq. 7, with DAPO's two bounds (eq. 10). The upper one is higher for the sake of rare
    tokens: with 0.2, a token of p = 0.01 may only reach 0.012.
    """
    assert logp.shape == logp_old.shape, (logp.shape, logp_old.shape)
    assert advantages.shape == logp.shape[:1], (advantages.shape, logp.shape)

    # One ratio a token: the product over a sequence would explode with its length.
    ratio = (logp - logp_old).exp()  # (B, T)
    unclipped_objective = ratio * advantages[:, None]
    clipped_objective = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages[:, None]

    # Trap: `min` is right for both signs. With `max` for negative advantages, the clip would act on
    # the wrong side (test_clip_quadrants).
    objective = torch.min(unclipped_objective, clipped_objective)
    is_clipped = clipped_objective < unclipped_objective  # here the gradient stops
    return {"loss": -objective, "ratio": ratio.detach(), "clipped": is_clipped.float()}


def kl_k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """(B, T) estimate of KL(policy || reference), never below 0: e^d - d - 1, d = logp_ref - logp.

    `expm1` keeps it accurate near 0. In fp32 the plain form gives 0 at d = 1e-4, and is negative at
    1e-6 (test_k3_nonnegative_for_small_d). Source: Schulman, "Approximating KL divergence" (k3).
    """
    d = logp_ref - logp
    return torch.expm1(d) - d


# --- 4. Update ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class UpdateBatch:
    """What one optimizer step learns from, this rank's share."""

    groups: list[Group]
    advantages: Tensor  # (B,)
    mask: Tensor  # (B, T) 1 where a token counts in the loss
    logp_old: Tensor | None  # (B, T); None before the first step, where it equals logp


def prepare_updates(rollout: list[RewardedGroup], policies: Policies,
                    cfg: Config) -> list[UpdateBatch]:
    """Cut a rollout into optimizer steps; compute what depends on the policy that sampled it."""
    size = len(rollout) // cfg.updates_per_rollout
    batches = []

    for u in range(cfg.updates_per_rollout):
        # Sorted, so that similar lengths share a micro-batch. Each group keeps its own rewards: the
        # order changes the speed and nothing else.
        part = rollout[u * size : (u + 1) * size]
        part = sorted(part, key=lambda r: max(len(c) for c in r.group.completions))
        groups = [rewarded.group for rewarded in part]

        rewards = torch.tensor([rewarded.totals for rewarded in part])  # (n, G)
        advantages = group_advantages(rewards, divide_by_std=not cfg.dr_grpo)  # (n, G)

        left_out = rewards.isnan().flatten()  # (B,) in group order
        if cfg.mask_truncated:
            left_out |= torch.tensor([rewarded.truncated for rewarded in part]).flatten()
        mask = completion_mask(groups) * ~left_out[:, None]  # (B, T)

        # In the first step logp_old is logp itself. For the later ones it is computed now, before
        # any step, and with the function that computes logp: the sampler's own log-probabilities
        # come from other kernels, or bf16 weights, and the first ratio would not be exactly 1
        # (test_first_update_ratio_is_one). That difference is not corrected for; LOG.md has its
        # size.
        logp_old = None if u == 0 else recompute_logps(policies, groups, cfg)
        batches.append(UpdateBatch(groups, advantages.flatten(), mask, logp_old))
    return batches


@torch.no_grad()
def recompute_logps(policies: Policies, groups: list[Group], cfg) -> Tensor:
    """logp (B, T) of all completions without gradient, in the micro-batches of the update."""
    result = torch.zeros_like(completion_mask(groups))
    for batch in micro_batches(groups, cfg.max_tokens_per_micro_batch):
        logp, _ = token_logps(policies.trained, batch.groups, cfg.temperature)
        result[batch.span, : logp.shape[1]] = logp.cpu()
    return result


def update(batch: UpdateBatch, policies: Policies, accelerator, cfg: Config) -> dict[str, float]:
    """One optimizer step. Returns sums over this rank's tokens, to be divided later."""
    # M of the docstring: the tokens of the step, over micro-batches and ranks. Groups of equal
    # rewards count too, although they have no gradient: the more of them there are, the smaller is
    # the gradient. Dynamic sampling avoids that.
    tokens = float(batch.mask.sum())
    counted = len(batch.mask) * cfg.max_new_tokens if cfg.dr_grpo else tokens
    normalizer = max(1.0, sum_over_ranks({"tokens": counted}, accelerator)["tokens"])

    def loss_and_metrics(micro: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logp, entropy = token_logps(policies.trained, micro.groups, cfg.temperature)  # (b, t)
        device, length = logp.device, logp.shape[1]
        mask = batch.mask[micro.span, :length].to(device)  # (b, t)
        advantages = batch.advantages[micro.span].to(device)  # (b,)

        logp_old = logp.detach()  # first step: the ratio is 1, and its gradient that of logp
        if batch.logp_old is not None:
            logp_old = batch.logp_old[micro.span, :length].to(device)
        terms = policy_loss(logp, logp_old, advantages, mask, cfg.clip_low, cfg.clip_high)

        if policies.reference is not None:
            with torch.no_grad(), accelerator.autocast():  # `prepare` did not wrap it
                logp_ref, _ = token_logps(policies.reference, micro.groups, cfg.temperature)
            terms["kl_ref"] = kl_k3(logp, logp_ref)
            terms["loss"] = terms["loss"] + cfg.kl_beta * terms["kl_ref"]

        terms["entropy"] = entropy
        sums = {name: (values * mask).sum() for name, values in terms.items()}
        return sums["loss"], sums

    sums = training_step(
        policies, accelerator, micro_batches(batch.groups, cfg.max_tokens_per_micro_batch),
        loss_and_metrics, normalizer=normalizer, filler=batch.groups[0], cfg=cfg)
    return {**sums, "tokens": tokens}


# --- 5. The loop -------------------------------------------------------------------------------


def train_on(rollout: list[RewardedGroup], policies: Policies, accelerator, cfg) -> Counter:
    """Consume a rollout in --updates_per_rollout optimizer steps; sums over all of them."""
    # a) Freeze everything that depends on the sampling policy.
    batches = prepare_updates(rollout, policies, cfg)

    # b) Optimise.
    sums = Counter()
    for batch in batches:
        for name, value in update(batch, policies, accelerator, cfg).items():
            sums[name] += value
    return sums


def summarize(rollout: list[RewardedGroup], sums: Counter, counts: dict[str, int], accelerator,
              cfg: Config) -> dict[str, float]:
    """Metrics of a step, over all ranks; `counts` are numbers of this rank, to be added up."""
    means = Means()
    for name, count in counts.items():
        means.add_number(name, count)
    for rewarded in rollout:
        rewards = rewarded.known_totals()
        means.add("reward", sum(rewards), len(rewards))
        for name in rewarded.rewards[0]:
            known = rewarded.known(name)
            means.add(name, sum(known), len(known))

        lengths = [len(completion) for completion in rewarded.group.completions]
        means.add("length", sum(lengths), len(lengths))
        means.add("trunc%", 100 * sum(rewarded.truncated), len(lengths))
        means.add("zero_std%", 100 * (len(set(rewards)) < 2))
        means.add_number("unscored", len(lengths) - len(rewards))

    for name in ("loss", "ratio", "entropy", "kl_ref"):
        if name in sums:  # without a reference there is no kl_ref
            means.add(name, sums[name], sums["tokens"])
    means.add("clip%", 100 * sums["clipped"], sums["tokens"])

    # These two are equal on all ranks; a skipped update has no norm.
    steps_taken = max(1, cfg.updates_per_rollout - sums["skipped_updates"])
    return {**means.over_ranks(accelerator), "skipped_updates": sums["skipped_updates"],
            "grad_norm": sums["grad_norm"] / steps_taken}


def arithmetic(cfg: Config, ranks: int) -> str:
    """What a rollout is made of, in words. Raises ValueError if it cannot be shared out evenly."""
    if cfg.prompts_per_step % (ranks * cfg.updates_per_rollout):
        raise ValueError(f"--prompts_per_step {cfg.prompts_per_step} must be a multiple of "
                         f"processes ({ranks}) x --updates_per_rollout ({cfg.updates_per_rollout})")
    return (f"{cfg.prompts_per_step} prompts x {cfg.group_size} samples = "
            f"{cfg.prompts_per_step * cfg.group_size} completions a rollout -> "
            f"{cfg.updates_per_rollout} optimizer steps, {ranks} process(es)")


def main(cfg: Config) -> None:
    accelerator = make_accelerator(cfg)
    ranks = accelerator.num_processes
    rollout_in_words = arithmetic(cfg, ranks)
    run = Run(cfg, "grpo", accelerator)
    policy, encoder = load_model(
        run.latest_model() or cfg.model, freeze_vision=cfg.freeze_vision,
        gradient_checkpointing=cfg.gradient_checkpointing, max_pixels=cfg.max_pixels)
    policies = build_policies(policy, cfg, accelerator, samples=True, kl_beta=cfg.kl_beta,
                              resumed=run.has_state())
    stream = build_stream(cfg, encoder, accelerator, run.warn)
    judge = make_judge(cfg, run.warn)
    rewards = make_rewards(cfg, judge)
    weights = parse_weights(cfg.reward_weights, rewards)
    run.columns = ["reward", *rewards, *COLUMNS]
    # Each rank has its own generator; with one seed, all would draw the same numbers.
    generator = torch_generator(cfg.seed, "rollout", accelerator.process_index, accelerator.device)

    state = run.load_state(policies.optimizer)
    if state is not None:
        stream.restore(state["stream"])
        generator.set_state(state["generator"])
    run.say(f"{rollout_in_words}, {run.folder}")

    for step in range(run.start_step + 1, cfg.steps + 1):
        began = time.perf_counter()
        rate = set_learning_rate(policies.optimizer, step - 1, cfg, cfg.steps)
        reward = partial(reward_groups, encoder=encoder, eos_ids=policy.eos_ids, rewards=rewards,
                         weights=weights, progress=step / cfg.steps, judge=judge)

        refresh(policies.sampler, policies.bare)
        with accelerator.autocast():  # 1. sample and reward
            rollout = collect_rollout(policies.sampler, stream, cfg.prompts_per_step // ranks,
                                      reward, generator, cfg)
        sampled = time.perf_counter()
        recorded = [rollout[0].group] if step == 1 or step % cfg.sample_every == 0 else []
        logp_old = recompute_logps(policies, recorded, cfg) if recorded else None
        sums = train_on(rollout, policies, accelerator, cfg)  # 2. and 3.
        ended = time.perf_counter()

        counts = {"skipped_examples": stream.skipped, **take_counts(judge)}
        run.log(step, cfg.steps, {
            **summarize(rollout, sums, counts, accelerator, cfg), "lr": rate,
            "gen%": 100 * (sampled - began) / (ended - began), "step_s": ended - began})
        if recorded:  # scored before and after the update, by every rank, as any forward pass
            logp = recompute_logps(policies, recorded, cfg)
            if run.writes:
                record = sample_record(rollout[0], encoder, judge, logp_old, logp)
                run.sample({"step": step, **record}, rollout[0].group.prompt.example["images"])
        if step == cfg.steps or step % cfg.save_every == 0:
            extra = {"stream": stream.state(), "generator": generator.get_state()}
            run.save_checkpoint(step, policies, encoder, extra)

    panels = {"reward": ["reward", *rewards], **PANELS}
    run.finish_training(policies, encoder, panels, f"GRPO from {cfg.model}")


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
