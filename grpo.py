"""GRPO with DAPO-style clipping: stages 1 and 3 of SPECS.

For each prompt q, sample G completions o_1..o_G from the current policy, reward each, and compare
it with its own group. If a completion did better than the group's mean, the probability of each of
its tokens is raised; if worse, lowered. The ratio of a token is its probability under the policy
now, divided by its probability before the rollout's first update. The clip ends a push that has
gone far enough: a token that is raised has no gradient once its ratio is above 1 + high, one that
is lowered has none once it is below 1 - low. A token that has moved the wrong way keeps its
gradient, however far it went, so that it can come back. In formulas:

    R_i     = 0.5 format_i + 1 accuracy_i                          one reward per completion
    A_i     = (R_i - mean(R)) / (std(R) + 1e-6)                    mean and std over its group
    r_it    = exp(logp_it - logp_old_it)                           one ratio per token
    J       = 1/M sum_i sum_t min(r_it A_i, clip(r_it, 1 - low, 1 + high) A_i)
              over the completions i of all prompts of an update; M = the number of their tokens
              (a completion that could not be graded is left out of sums, means and M)
    loss    = -J                                                   see `plain_loss`

With --kl_beta, off by default, the KL to the reference is added, estimated per token:

    loss    = -J + kl_beta / M sum_i sum_t (e^d_it - d_it - 1),    d_it = logp_ref_it - logp_it

As a loop. A *step* is one turn of it; its *rollout* is all that it samples, a group for each of its
prompts; an *update* is one optimizer step, on a mini-batch of the rollout:

    repeat
        0. give the sampler the policy's weights                               refresh
        1. sample a group for each prompt, and reward it                       collect_rollout
        2. cut it into mini-batches: advantages, logp_old                      prepare_mini_batches
        3. for each of them one update by the clipped loss                     update

Four log-probabilities of the same tokens, never to be confused:

    logp            of the policy that is being trained
    logp_old        of the old policy: the trained one as it was before this rollout's first update
    logp_sampler    of the old policy as the sampler computes it, perhaps in bf16: only --tis and
                    the metric `gap` use it
    logp_ref        of the frozen start model, for the KL term only: not loaded if --kl_beta is 0

Where this departs from the paper, or fills in what it leaves open:
  1. Clip band 0.2 / 0.28: the paper says "similar to DAPO", these are DAPO's.
  2. M counts the tokens of a whole update, over prompts, micro-batches and processes (DAPO eq. 8 is
     printed for one prompt).
  3. A rollout is cut into --updates_per_rollout mini-batches: each completion is used once. In the
     first of them every ratio is 1, so the clip can only act in the later ones. The paper's rollout
     has 128 x 8 completions, and an update takes 128 of them: 8 updates.
  4. Off by default: dynamic sampling, overlong penalty, truncated completions left out of the loss
     (DAPO); no division by std, constant M (Dr. GRPO); truncated importance sampling (TIS); KL.

Dimension key, of one update on one process (*rank*): N prompts with G completions each. Only groups
with a gradient go through the model: B completions, the longest of T tokens. (b, T_b) is the part
of a (B, T) that one micro-batch holds.

    accelerate launch grpo.py                                   the embedded world, 16 steps, 20 s
    accelerate launch grpo.py --model runs/warmup/model         stage 3
    accelerate launch --config_file configs/one_gpu.yaml grpo.py @configs/grpo_3b.args
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from common import (
    MicroBatch,
    micro_batches_of,
    no_grad_logps,
    optimizer_step,
    plain_token_logps,
    token_logps,
)
from harness import settings
from harness.cli import flag, parse_cli, run_stage
from harness.metrics import Stopwatch, kl_k3, sampler_gap
from harness.randomness import torch_generator
from harness.ranks import check_shares, make_accelerator, sum_over_ranks
from harness.run import Run
from harness.schedule import set_lr
from model.lora import adapters_off
from model.policies import Policies, build_policies, load_policy
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import Group, completion_mask, padded
from model.sampling import refresh, sample_groups, token_entropy
from rewards import make_judge
from rewards.groups import RewardedGroup, Rewarder, parse_weights, sample_record
from rewards.judge import take_counts
from rewards.metrics import COLUMNS, PANELS, summarize
from sources import build_stream
from sources.held_out import HeldOut
from sources.stream import PromptStream
from sources.understood import LOOKED_AT, best_blind_guess, say_what_was_understood


@dataclass(frozen=True)
class Config(settings.Data, settings.Sampling, settings.Training, settings.Watching,
             settings.Judge):
    model: str = flag("toy/base", "folder or hub name of the start model; paper: Qwen2.5-VL-7B")
    # sampling
    steps: int = flag(16, "rollouts; paper: not stated for stage 1, its plot of stage 3 has 800",
                      changeable=True)
    prompts_per_step: int = flag(16, "prompts per rollout, over all processes; paper: 128")
    group_size: int = flag(8, "completions per prompt (G); paper: 8")
    temperature: float = flag(1.0, "of sampling and of all log-probabilities alike; MM-EUREKA")
    lora_merge: bool = flag(True, "with --lora_rank, sample from a copy with merged adapters; "
                            "--no_lora_merge: from base and adapters, slower, where no copy fits")
    dynamic_sampling: bool = flag(False, "only groups with right and wrong answers; DAPO")
    max_draws: int = flag(10, "batches of prompts that --dynamic_sampling may use for a step; verl")
    # reward and advantage
    reward_weights: str = flag("format=0.5,accuracy=1", "NAME=WEIGHT,...; 1 if not named; paper")
    overlong_buffer: int = flag(0, "tokens before the limit with a penalty, 0: off; DAPO: 4096")
    mask_truncated: bool = flag(False, "leave completions without EOS out of the loss; DAPO")
    divide_by_std: bool = flag(True, "divide advantages by the std of their group; Dr. GRPO "
                               "(arXiv 2503.20783): --no_divide_by_std --constant_normalizer")
    constant_normalizer: bool = flag(False, "M = completions x --max_new_tokens; Dr. GRPO")
    # loss
    clip_low: float = flag(0.2, "no gradient below ratio 1 - this, at negative advantage; DAPO")
    clip_high: float = flag(0.28, "no gradient above ratio 1 + this, at positive advantage; DAPO")
    kl_beta: float = flag(0.0, "weight of the KL to the start model (k3), nats; paper: 0")
    tis: float = flag(0.0, "truncated importance sampling: cap of a token's weight "
                      "exp(logp_old - logp_sampler), 0: off; its authors: 2")
    updates_per_rollout: int = flag(2, "mini-batches of a rollout; paper, as MM-EUREKA: 8")

    def __post_init__(self):
        super().__post_init__()
        parse_weights(self.reward_weights)
        self.check_at_least(1, "steps", "prompts_per_step", "updates_per_rollout", "max_draws")
        self.check_at_least(2, "group_size")  # or there is nothing to compare with
        self.check_at_least(0, "kl_beta", "tis", "overlong_buffer")
        check_shares(self)
        self.check_positive("temperature", "at 0 all samples of a prompt are the same")
        self.check_positive("clip_high")
        if not 0 < self.clip_low < 1:
            raise ValueError(f"--clip_low {self.clip_low}: must be between 0 and 1")


# --- The formulas above, in a loop over tokens --------------------------------------------------


def plain_loss(policy: Policy, mini_batch: list[RewardedGroup], logp_old: list[Tensor],
               clip_low: float, clip_high: float) -> Tensor:
    """The loss of one update as plainly as it can be said: on one process, every completion graded,
    temperature 1, all options off.

    logp_old   for each group (G, T)

    Sections 2 and 3 below are this, made fast: all prompts in one pass, micro-batches, several
    processes, options. The gradient is the same (test_update_equals_the_plain_loss).
    """
    objective_sum, M = 0.0, 0  # sum_i sum_t of the objective, and the number of tokens in it
    for rewarded, old in zip(mini_batch, logp_old):
        R = torch.tensor(rewarded.totals)  # (G,) of each completion the weighted sum of its rewards
        A = (R - R.mean()) / (R.std() + 1e-6)  # (G,)
        A = A * (R.min() < R.max())  # exactly 0 if all are equal: a trap, see `group_advantages`
        logp = plain_token_logps(policy, [rewarded.group])  # (G, T)
        for i, completion in enumerate(rewarded.group.completions):
            for t in range(len(completion)):
                r = (logp[i, t] - old[i, t]).exp()
                clipped_r = r.clamp(1 - clip_low, 1 + clip_high)
                objective_sum = objective_sum + torch.min(r * A[i], clipped_r * A[i])
                M = M + 1
    J = objective_sum / M
    return -J


# --- 1. Sample a group for each prompt, and reward it ------------------------------------------


def collect_rollout(sampler: Policy, stream: PromptStream, rewarder: Rewarder,
                    generator: torch.Generator, accelerator, cfg: Config, *, progress: float,
                    sampling_time: Stopwatch) -> list[RewardedGroup]:
    """Sample a group for each of this rank's prompts, and reward it.

    progress       of the run, 0 to 1: the overlap that bounding boxes must reach rises with it
    sampling_time  counts the seconds in which tokens are drawn
    """
    count = cfg.prompts_per_step // accelerator.num_processes  # of this rank

    def draw() -> list[RewardedGroup]:
        prompts = stream.take(count)
        with sampling_time, accelerator.autocast():
            groups = sample_groups(
                sampler, prompts, cfg.group_size, max_new_tokens=cfg.max_new_tokens,
                temperature=cfg.temperature, generator=generator, sample_batch=cfg.sample_batch,
                logits_stat=token_entropy, compile_decode=cfg.compile_decode)
        return rewarder.reward_groups(groups, progress)

    if not cfg.dynamic_sampling:
        return draw()

    # Dynamic sampling: only groups with right and wrong answers are kept, and prompts are drawn
    # until there are enough. A surplus is thrown away; what is not kept is not logged either.
    informative: list[RewardedGroup] = []
    for _ in range(cfg.max_draws):
        informative += [rewarded for rewarded in draw() if rewarded.is_informative()]
        if len(informative) >= count:
            return informative[:count]
    raise ValueError(f"--dynamic_sampling: {cfg.max_draws} draws of {count} prompts gave only "
                     f"{len(informative)} groups with right and wrong answers; raise --max_draws?")


# --- 2. Advantages, and what else is fixed before the updates ----------------------------------


def group_advantages(totals: Tensor, divide_by_std: bool = True, eps: float = 1e-6) -> Tensor:
    """How much better than its own group each completion did.

    totals         (N, G) R_i; nan (could not be graded) is left out of mean and std, and gets 0
    divide_by_std  False is Dr. GRPO: its authors object that the division gives very easy and very
                   hard prompts more weight
    returns        (N, G) A_i; exactly 0 for a group of equal rewards

    std divides by G - 1 (Bessel's correction): of the rewards 1, 0, 0, 0 it is 0.5, not 0.433.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]]), eps=0.0)
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    known = ~totals.isnan()  # (N, G)
    count = known.sum(-1, keepdim=True)  # (N, 1)
    mean = totals.nansum(-1, keepdim=True) / count  # (N, 1)
    advantages = torch.where(known, totals - mean, 0.0)  # (N, G)

    if divide_by_std:
        variance = advantages.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)  # (N, 1)
        advantages = advantages / (variance.sqrt() + eps)

    # Trap: whether all are equal is decided by comparing rewards, not by std > 0. In fp32 the mean
    # of eight 1.3 is off by 1e-7. Divided by its own std + 1e-6, that rounding error would be an
    # advantage of -0.1, and with a smaller eps almost -1 (test_equal_rewards_zero_advantage).
    lowest = totals.masked_fill(~known, float("inf")).amin(-1, keepdim=True)  # (N, 1)
    highest = totals.masked_fill(~known, float("-inf")).amax(-1, keepdim=True)  # (N, 1)
    all_equal = lowest >= highest  # (N, 1); also where none is known: inf >= -inf
    return advantages.masked_fill(all_equal, 0.0)


@dataclass(frozen=True)
class MiniBatch:
    """This rank's share of one update: the B completions of groups that have a gradient."""

    groups: list[Group]
    advantages: Tensor  # (B,)
    mask: Tensor  # (B, T) 1 where a token is in the loss
    logp_sampler: Tensor  # (B, T) what the sampler gave its tokens
    logp_old: Tensor | None  # (B, T); None in the first update, where it equals logp
    normalizer_share: float  # what this rank adds to M; groups without a gradient count too
    filler: Group  # any group, for filler passes (see `common.py`)


def prepare_mini_batches(rollout: list[RewardedGroup], policies: Policies, accelerator,
                         cfg: Config) -> list[MiniBatch]:
    """Cut a rollout into mini-batches, and fix what their updates must not change.

    All are prepared before the first update, so that each logp_old is of the old policy.
    """
    size = len(rollout) // cfg.updates_per_rollout  # no remainder: see `check_shares`
    batches = []
    for u in range(cfg.updates_per_rollout):
        part = rollout[u * size : (u + 1) * size]
        batches.append(prepare_mini_batch(part, policies, accelerator, cfg, is_first=(u == 0)))
    return batches


def prepare_mini_batch(part: list[RewardedGroup], policies: Policies, accelerator, cfg: Config,
                       is_first: bool) -> MiniBatch:
    """What one update learns from, of its part of the rollout: advantages, mask, M and logp_old."""
    # 2a. Advantages: each completion against its own group.
    totals = torch.tensor([rewarded.totals for rewarded in part])  # (N, G) R_i; nan: not graded
    advantages = group_advantages(totals, cfg.divide_by_std)  # (N, G)

    # 2b. Which completions are in the loss.
    in_loss = ~totals.isnan()  # (N, G)
    if cfg.mask_truncated:  # their rewards stay in the mean and std of the group
        in_loss &= ~torch.tensor([rewarded.truncated for rewarded in part])

    # 2c. This rank's share of M. The tokens of groups with equal rewards are counted, though they
    # add nothing to the sum: the more such groups, the smaller the gradient. --dynamic_sampling
    # leaves hardly any.
    lengths = torch.tensor([[len(c) for c in rewarded.group.completions] for rewarded in part])
    if cfg.constant_normalizer:  # every completion, in the loss or not, as if at full length
        normalizer_share = float(lengths.numel() * cfg.max_new_tokens)
    else:
        normalizer_share = float((lengths * in_loss).sum())

    # 2d. Only groups with a gradient go through the model. The gradient of a group of equal rewards
    # is exactly 0, unless the KL term pulls on it (test_groups_without_gradient_change_nothing).
    has_gradient = ((advantages != 0) & in_loss).any(-1)  # (N,)
    if cfg.kl_beta > 0:
        has_gradient = torch.ones_like(has_gradient)
    # By length, so that a micro-batch holds similar ones: attention pads them to one another.
    by_length = lengths.amax(-1).argsort(stable=True).tolist()  # N indices
    with_gradient = [i for i in by_length if has_gradient[i]]
    groups = [part[i].group for i in with_gradient]

    # 2e. logp_old. In the first update the policy has not moved yet: logp_old is logp. Before the
    # later ones it will have moved, so logp_old is computed now.
    # Trap: the sampler's log-probabilities cannot stand in. They come from other kernels, or bf16
    # weights, and the ratio of a policy that has not moved would not be exactly 1
    # (test_first_update_ratio_is_one). The metric `gap` is that difference.
    logp_old = None
    if not is_first:
        logp_old = no_grad_logps(policies.trained, groups, accelerator, cfg, cfg.temperature,
                                 filler=part[0].group)

    return MiniBatch(
        groups=groups,
        advantages=advantages[with_gradient].flatten(),  # (B,)
        mask=completion_mask(groups) * in_loss[with_gradient].flatten()[:, None],  # (B, T)
        logp_sampler=padded([logp for group in groups for logp in group.logps]),  # (B, T)
        logp_old=logp_old,
        normalizer_share=normalizer_share,
        filler=part[0].group,
    )


# --- 3. The clipped loss, and the update -------------------------------------------------------


def policy_loss(logp: Tensor, logp_old: Tensor, advantages: Tensor, mask: Tensor, clip_low: float,
                clip_high: float) -> dict[str, Tensor]:
    """The clipped surrogate of each token.

    logp, logp_old  (B, T)
    advantages      (B,)
    mask            (B, T) 1 where a token is in the loss. Read only by a variant that has one ratio
                    for a whole completion (variants/gspo.patch)
    returns         `loss`, `ratio`, `clipped`, (B, T) each; unmasked and not reduced: the caller
                    sums over the mask and divides by M

    On which side the gradient stops depends on the sign of the advantage:

                      ratio < 1 - low          in the band       ratio > 1 + high
        A > 0         gradient                 gradient          stopped
        A < 0         stopped                  gradient          gradient

    >>> ratio, A = torch.tensor([0.5, 1.5, 0.5, 1.5]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    >>> logp, logp_old, mask = ratio.log()[:, None], torch.zeros(4, 1), torch.ones(4, 1)
    >>> policy_loss(logp, logp_old, A, mask, clip_low=0.2, clip_high=0.28)["loss"][:, 0]
    tensor([-0.5000, -1.2800,  0.8000,  1.5000])

    At ratio 1 the loss of a token is -A. In a group the A add up to 0: a healthy first update of
    equally long completions has a loss of 0, and a gradient that is not 0. The loss is below 0 if
    the better ones are longer, above 0 if they are shorter (test_zero_loss_nonzero_gradient).

    Source: PPO eq. 7, with DAPO's two bounds (eq. 10). The upper one is higher for the sake of rare
    tokens: with 0.2, a token of p = 0.01 is no longer pushed once it has reached 0.012.
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


def update(batch: MiniBatch, policies: Policies, accelerator, cfg: Config) -> dict[str, float]:
    """One update. Returns the sums of `optimizer_step`, and what this rank adds to M."""
    # M, over all ranks. Where no token is in the loss it is 0: then the loss is 0 / 1, not 0 / 0.
    normalizer = max(1.0, sum_over_ranks({"M": batch.normalizer_share}, accelerator)["M"])

    def loss_and_sums(micro: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        # 3a. Score the completions: all gradients flow through this line.
        logp = token_logps(policies.trained, micro.groups, cfg.temperature)  # (b, T_b)
        mask = micro.part_of(batch.mask, like=logp)  # (b, T_b)
        advantages = batch.advantages[micro.span].to(logp.device)  # (b,)

        # 3b. logp_old. In the first update it is logp, and the ratio 1. Without `detach` the two
        # would cancel in the gradient as well, and nothing would be learnt.
        if batch.logp_old is None:
            logp_old = logp.detach()
        else:
            logp_old = micro.part_of(batch.logp_old, like=logp)  # (b, T_b)

        # 3c. The clipped loss of each token.
        terms = policy_loss(logp, logp_old, advantages, mask, cfg.clip_low, cfg.clip_high)
        loss = terms.pop("loss")  # (b, T_b)

        # 3d. Off by default, truncated importance sampling. The sampler's probabilities differ a
        # little from the old policy's (bf16, other kernels), so the loss of each token is weighted
        # by exp(logp_old - logp_sampler), at most --tis. No gradient flows through the weight.
        logp_sampler = micro.part_of(batch.logp_sampler, like=logp)  # (b, T_b)
        if cfg.tis > 0:
            loss = loss * (logp_old - logp_sampler).exp().clamp(max=cfg.tis)

        # 3e. Off by default, the KL to the reference. (After 3a: filler passes of other ranks score
        # policy and reference in this order, see `filler_loss`.)
        if cfg.kl_beta > 0:
            logp_ref = reference_logps(policies, micro.groups, accelerator, cfg)  # (b, T_b)
            terms["kl_ref"] = kl_k3(logp, logp_ref)  # e^d - d - 1, d = logp_ref - logp
            loss = loss + cfg.kl_beta * terms["kl_ref"]

        # 3f. For the log: beside the rest, how far the sampler is from the trainer.
        terms |= {"loss": loss, **sampler_gap(logp_old, logp_sampler, cfg.clip_low, cfg.clip_high)}

        # 3g. sum_i sum_t over this micro-batch. `optimizer_step` divides the loss by M and takes
        # its gradient. The sums are for the log: `summarize` divides `loss` by M, and all others
        # by `tokens_passed`.
        micro_sums = {name: (values * mask).sum() for name, values in terms.items()}
        micro_sums["tokens_passed"] = mask.sum()
        return micro_sums["loss"], micro_sums

    micro_batches = micro_batches_of(batch.groups, cfg.max_tokens_per_micro_batch)
    update_sums = optimizer_step(policies, accelerator, micro_batches, loss_and_sums,
                                 normalizer=normalizer, filler=batch.filler, cfg=cfg)
    return {**update_sums, "normalizer_share": batch.normalizer_share}


def reference_logps(policies: Policies, groups: list[Group], accelerator, cfg: Config) -> Tensor:
    """logp_ref (b, T_b). With LoRA the reference is the policy itself, with its adapters off.

    accelerate has not wrapped it, as it has the trained policy, so autocast is entered by hand.
    """
    with torch.no_grad(), accelerator.autocast(), adapters_off(policies.reference):
        return token_logps(policies.reference, groups, cfg.temperature)


# --- The loop ----------------------------------------------------------------------------------


class Setup(NamedTuple):
    """All that the loop works with."""

    run: Run  # the folder: metrics, checkpoints, samples
    policies: Policies  # what trains, what samples, the reference, the optimizer
    encoder: PromptEncoder  # texts and images to tokens, and back
    stream: PromptStream  # this rank's prompts, without end
    held_out: HeldOut  # questions that are not trained on
    rewarder: Rewarder
    generator: torch.Generator  # draws the tokens of this rank


def set_up(cfg: Config) -> Setup:
    """From a new start, or from where --resume found it."""
    accelerator = make_accelerator(cfg)
    check_shares(cfg, accelerator.num_processes)
    run = Run(cfg, "grpo", accelerator)

    policy, encoder = load_policy(cfg, run.latest_model(), accelerator)
    policies = build_policies(policy, cfg, accelerator, samples=True, kl_beta=cfg.kl_beta,
                              resumed=run.has_state())

    stream, held_out = build_stream(cfg, encoder, accelerator, run.warn)
    judge = make_judge(cfg, run.warn)
    rewarder = Rewarder(cfg, encoder, policy.eos_ids, judge, run.warn)
    run.columns = ["reward", *rewarder.functions, *COLUMNS]
    say_what_was_understood(run, encoder, stream.preview(LOOKED_AT), examples=stream.examples,
                            judge=judge, per_step=cfg.prompts_per_step)

    # Each rank has its own generator; with one seed, all would draw the same numbers.
    generator = torch_generator(cfg.seed, "rollout", accelerator.process_index, accelerator.device)
    state = run.load_state(policies.optimizer)
    if state is not None:
        stream.restore(state["stream"])
        generator.set_state(state["generator"])

    run.say(f"a rollout: {cfg.prompts_per_step} prompts x {cfg.group_size} completions -> "
            f"{cfg.updates_per_rollout} updates; {accelerator.num_processes} process(es); "
            f"{run.folder}; reward = {rewarder.formula()}")
    return Setup(run, policies, encoder, stream, held_out, rewarder, generator)


def save_sample(step: int, rewarded: RewardedGroup, run: Run, policies: Policies,
                encoder: PromptEncoder, rewarder: Rewarder, cfg: Config) -> None:
    """One group for samples.jsonl, with its log-probs after the updates.

    All ranks score one, though only the main process writes: with --shard a pass needs every rank.
    """
    logp = no_grad_logps(policies.trained, [rewarded.group], run.accelerator, cfg, cfg.temperature)
    run.sample(step, partial(sample_record, rewarded, logp, encoder, rewarder.judge))


def main(cfg: Config) -> None:
    run, policies, encoder, stream, held_out, rewarder, generator = set_up(cfg)
    accelerator = run.accelerator

    for step in range(run.start_step + 1, cfg.steps + 1):
        lr = set_lr(policies.optimizer, step - 1, cfg, cfg.steps)
        # 0. Give the sampler the policy's weights (`bare`: what trains, without its wrapper).
        refresh(policies.sampler, policies.bare)
        # Not training: the accuracy on held-out questions; {} where it is not due.
        evaluation = held_out.accuracy(step, policies.sampler, rewarder, accelerator, cfg)

        step_time, sampling_time = Stopwatch(), Stopwatch()
        with step_time:
            # 1. Sample a group for each prompt, and reward it.
            rollout = collect_rollout(policies.sampler, stream, rewarder, generator, accelerator,
                                      cfg, progress=step / cfg.steps, sampling_time=sampling_time)
            # 2. Cut it into mini-batches: advantages, logp_old.
            mini_batches = prepare_mini_batches(rollout, policies, accelerator, cfg)
            # 3. For each of them one update by the clipped loss.
            sums = Counter()  # over the updates of this rollout
            for batch in mini_batches:
                for name, value in update(batch, policies, accelerator, cfg).items():
                    sums[name] += value

        counts = {"skipped_examples": stream.skipped, **take_counts(rewarder.judge)}
        run.log(step, cfg.steps, {
            **summarize(rollout, sums, counts, accelerator, cfg), **evaluation, "lr": lr,
            "gen%": 100 * sampling_time.seconds / step_time.seconds, "step_s": step_time.seconds})
        if step == 1 or step % cfg.sample_every == 0:
            save_sample(step, rollout[0], run, policies, encoder, rewarder, cfg)
        if run.is_time_to_save(step, cfg.steps):  # also after Ctrl-C
            extra = {"stream": stream.state(), "generator": generator.get_state()}
            run.save_checkpoint(step, policies, encoder, extra)
        run.stop_if_asked()

    run.finish_training(
        policies, encoder, {"reward": ["reward", *rewarder.functions], **PANELS},
        f"GRPO from {cfg.model}", chance=best_blind_guess(stream.examples))


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
