"""GRPO with DAPO-style clipping: stages 1 and 3 of SPECS.

For each prompt q, sample G completions o_1..o_G from the current policy, reward each, and compare it
with its own group. A token's log-probability is then raised if its completion did better than the
group's mean, lowered if worse, and no further once its ratio to the sampling policy leaves a band:

    A_i     = (R_i - mean(R)) / (std(R) + eps)                       group advantage, one a completion
    r_it    = exp(logp_it - logp_old_it)                             ratio, one a token
    J       = 1/M sum_i sum_t min(r_it A_i, clip(r_it, 1 - low, 1 + high) A_i)     M = all tokens
    loss    = -J  (+ beta * KL to the reference, off by default)

Three policies, never to be confused: `logp` is the one being trained; `logp_old` is the one that
sampled this rollout (fixed while the rollout is consumed, replaced by the next); `logp_ref` is the
frozen start, used by the KL term alone and not even loaded when --kl_beta is 0.

Where this departs from the paper, or fills in what it leaves open:
  1. Clip band 0.2 / 0.28: the paper says "similar to DAPO", these are DAPO's.
  2. M counts the tokens of the whole optimizer step, over micro-batches and processes (DAPO eq. 8).
  3. A rollout is consumed in --updates_per_rollout optimizer steps. With one, every ratio is 1 and
     the clip never acts; the paper's 128 prompts x 8 in batches of 128 completions make 8.
  4. Dynamic sampling, overlong shaping, masking of truncated completions, Dr. GRPO: built, off.

Dimension key: P prompts, G completions a prompt, B = P*G rows, T longest completion. Per-token tensors
are (B, T), entry (b, t) about token t of completion b (see `common.token_logps`).

    accelerate launch grpo.py                                     the embedded world, 40 steps, 20 seconds
    accelerate launch grpo.py --model runs/warmup/model           stage 3: the same file, another start
    accelerate launch --config_file configs/one_gpu.yaml grpo.py @configs/grpo_3b.args
"""

import copy
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from common import Group, Policy, completion_mask, load_model, micro_batches, save_model, token_logps, with_rows
from data import PromptStream, load_rows
from rewards import Grade, Judge, format_reward, grade
from rollout import is_truncated, refresh, sample_groups, sampling_copy
from runs import (Run, flag, gather_objects, learning_rate, make_accelerator, parse_cli, plot_curves, run_stage,
                  sum_over_ranks)


@dataclass(frozen=True)
class Config:
    # data
    model: str = flag("toy/base", "folder or hub name of the start model; paper: Qwen2.5-VL-7B-Instruct")
    data: str = flag("toy", "`toy`, a folder, a file or a hub name; paper: Orsta-47k + ViRL39K")
    rows: int | None = flag(None, "rows of --data to use, None for all (toy: 2048); ours")
    instruction: str | None = flag(None, "format instruction after each question, None for the built-in; ours")
    max_prompt_tokens: int = flag(3000, "longer prompts are skipped and counted, tokens; MM-EUREKA")
    max_pixels: int | None = flag(None, "pictures are scaled down to this many pixels, None: as the model says")
    # sampling
    steps: int = flag(40, "rollouts; paper: not stated for stage 1, 800 plotted for stage 3")
    prompts_per_step: int = flag(16, "prompts a rollout, over all processes; paper: 128")
    group_size: int = flag(8, "completions a prompt (G); paper: 8")
    max_new_tokens: int = flag(64, "completion limit, tokens; paper: 10240")
    temperature: float = flag(1.0, "of sampling and of scoring alike; MM-EUREKA")
    sample_rows: int = flag(512, "rows decoded at a time in each process; ours")
    compile_decode: bool = flag(False, "static cache and a compiled decoding step: for a GPU and many tokens; ours")
    dynamic_sampling: bool = flag(False, "draw again for groups all right or all wrong; DAPO, paper: silent")
    max_draws: int = flag(10, "rollouts that dynamic sampling may draw to fill one step; verl")
    # reward and advantage
    overlong_buffer: int = flag(0, "soft penalty in the last so many tokens before the limit, 0: off; DAPO: 4096")
    mask_truncated: bool = flag(False, "leave completions without EOS out of the loss; DAPO ablation, paper: silent")
    dr_grpo: bool = flag(False, "no division by std, constant normaliser; Dr. GRPO (arXiv 2503.20783)")
    judge_url: str = flag("", "OpenAI-compatible endpoint that grades `text` answers; paper: GPT-4o")
    judge_model: str = flag("", "model name at --judge_url")
    # loss
    clip_low: float = flag(0.2, "ratio stops at 1 - this where the advantage is negative; DAPO")
    clip_high: float = flag(0.28, "ratio stops at 1 + this where the advantage is positive; DAPO")
    kl_beta: float = flag(0.0, "weight of the KL to the start model (k3), nats; paper: 0")
    # optimizer
    updates_per_rollout: int = flag(2, "optimizer steps a rollout is cut into; paper (by MM-EUREKA's counting): 8")
    lr: float = flag(2e-4, "AdamW step; paper: 1e-6")
    schedule: str = flag("constant", "`constant` or `cosine` after the warm-up; MM-EUREKA: cosine")
    warmup_steps: int = flag(2, "rollouts of linear warm-up; MM-EUREKA: 3 % of the run")
    weight_decay: float = flag(0.0, "AdamW weight decay; MM-EUREKA")
    grad_clip: float = flag(1.0, "largest gradient norm; MM-EUREKA")
    max_tokens_per_micro_batch: int = flag(3072, "tokens a forward pass may hold, prompts counted once; ours")
    gradient_checkpointing: bool = flag(False, "recompute layers in backward: less memory, about a third slower")
    freeze_vision: bool = flag(True, "do not train the vision tower; MM-EUREKA, paper: silent")
    precision: str = flag("auto", "`no` (fp32), `bf16`, or `auto`: bf16 on a GPU; weights are fp32 always")
    # bookkeeping
    seed: int = flag(0, "of data order and sampling")
    run_dir: str = flag("", "folder of the run; empty: runs/grpo_DATE_TIME")
    resume: bool = flag(False, "go on with the run in --run_dir, bit-exactly on a CPU")
    overwrite: bool = flag(False, "empty --run_dir first")
    save_every: int = flag(20, "rollouts between checkpoints (for --resume, and `evaluate.py --gf_runs`)")
    sample_every: int = flag(10, "rollouts between records in samples.jsonl")
    log_with: str = flag("", "a tracker that accelerate knows, `tensorboard` or `wandb`; empty: none")

    def __post_init__(self):
        if self.prompts_per_step % self.updates_per_rollout:
            raise ValueError(f"--prompts_per_step {self.prompts_per_step} must be a multiple of "
                             f"--updates_per_rollout {self.updates_per_rollout}")
        if self.group_size < 2:
            raise ValueError("--group_size must be at least 2: a group of one has nothing to compare with")
        if self.temperature <= 0:
            raise ValueError("--temperature must be positive: greedy samples of a group are all alike")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"--schedule {self.schedule}: wanted constant or cosine")


COLUMNS = ["reward", "format", "accuracy", "length", "trunc%", "dead%", "loss", "ratio", "clip%", "entropy",
           "grad_norm", "gen%", "step_s"]
PANELS = {"reward": ["reward", "format", "accuracy"], "length, tokens": ["length"],
          "ratio and clip": ["ratio", "clip%"],
          "entropy, nats": ["entropy"]}


# --- 1. Sample a group per prompt, and reward it ---------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """A sampled group with what became of each completion; lists are over its G completions."""

    group: Group
    texts: list[str]
    formats: list[float]  # 0 or 0.5
    grades: list[Grade]  # accuracy and why
    truncated: list[bool]
    rewards: list[float]  # the sum that is trained on; nan where the accuracy could not be scored


def score(group: Group, codec, eos_ids: list[int], cfg: Config, judge: Judge | None) -> Scored:
    """Reward = format + accuracy (+ the overlong penalty). The text ends at EOS: what would follow is not read."""
    texts = [codec.decode(c) for c in group.completions]
    formats = [format_reward(text) for text in texts]
    grades = [grade(group.prompt.row, text, judge) for text in texts]
    penalties = [overlong_penalty(len(c), cfg.max_new_tokens, cfg.overlong_buffer) for c in group.completions]
    rewards = [float("nan") if g.score is None else f + g.score + p for f, g, p in zip(formats, grades, penalties)]
    return Scored(group, texts, formats, grades, [is_truncated(c, eos_ids) for c in group.completions], rewards)


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """0 up to limit - buffer tokens, then down in a line to -1 at the limit. Source: DAPO eq. 13."""
    return 0.0 if buffer == 0 else min(0.0, (limit - buffer - length) / buffer)


def is_informative(scored: Scored) -> bool:
    """Some completion right, some wrong: the group says what to prefer (DAPO's 0 < #correct < G).

    Trap: on accuracy, never on the reward: an all-wrong group with unequal format would be kept, and
    train on the shaping alone (test_dynamic_sampling_looks_at_accuracy)."""
    return len({g.score for g in scored.grades if g.score is not None}) > 1


def rollout(policy: Policy, stream: PromptStream, count: int, cfg: Config, codec, judge, generator) -> list[Scored]:
    """Sample and score `count` groups; with dynamic sampling, draw on until that many are informative."""
    kept: list[Scored] = []
    for _ in range(cfg.max_draws if cfg.dynamic_sampling else 1):
        groups, _ = sample_groups(policy, stream.take(count), cfg.group_size, max_new_tokens=cfg.max_new_tokens,
                                  temperature=cfg.temperature, generator=generator, max_rows=cfg.sample_rows,
                                  static=cfg.compile_decode)
        scored = [score(group, codec, policy.eos_ids, cfg, judge) for group in groups]
        kept += [s for s in scored if is_informative(s)] if cfg.dynamic_sampling else scored
        if len(kept) >= count:
            return kept[:count]
    raise ValueError(f"--dynamic_sampling: {cfg.max_draws} draws of {count} prompts gave only {len(kept)} groups with "
                     "right and wrong answers; the data are too easy or too hard (or raise --max_draws)")


# --- 2. Advantages -------------------------------------------------------------------------------


def group_advantages(rewards: Tensor, divide_by_std: bool = True, eps: float = 1e-6) -> Tensor:
    """rewards (P, G) -> advantages (P, G): how much better than its own group each completion did.

    A group of equal rewards gets exactly 0. nan (could not be scored) is left out of mean and std and
    gets 0 itself. std is the unbiased one, over G - 1: one success in four is 0.5, not 0.433.
    `divide_by_std=False` is Dr. GRPO, which objects that dividing favours very easy and very hard prompts.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]]), eps=0.0)
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    known = ~rewards.isnan()  # (P, G)
    count = known.sum(-1, keepdim=True)  # (P, 1)
    mean = rewards.nansum(-1, keepdim=True) / count
    centred = torch.where(known, rewards - mean, 0.0)
    if divide_by_std:
        std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        centred = centred / (std + eps)
    # Trap: "all equal" is decided by comparing rewards, not by std > 0: the mean of eight 0.1 is not
    # quite 0.1 in fp32, and residue divided by a residue is an advantage of 1 (test_equal_rewards_zero_advantage).
    lowest = rewards.masked_fill(~known, float("inf")).amin(-1, keepdim=True)
    highest = rewards.masked_fill(~known, float("-inf")).amax(-1, keepdim=True)
    return torch.where((lowest < highest) & known, centred, 0.0)


# --- 3. Loss -------------------------------------------------------------------------------------


def policy_loss(logp: Tensor, logp_old: Tensor, advantages: Tensor, clip_low: float,
                clip_high: float) -> dict[str, Tensor]:
    """Clipped surrogate of each token: logp, logp_old (B, T) and advantages (B,) -> `loss`, `ratio`, `clipped` (B, T).

    Unmasked and unreduced; the caller sums over the mask and divides by the step's tokens. Which side
    clips is a matter of the advantage's sign; the other two corners keep their gradient:

                      ratio < 1 - low          in the band       ratio > 1 + high
        A > 0         gradient                 gradient          stopped
        A < 0         stopped                  gradient          gradient

    Its value at ratio 1 is -A, so over completions of equal length its mean is 0 while the gradient is not; a
    healthy first update prints 0, or less if the better ones are longer (test_zero_loss_nonzero_gradient).
    Source: PPO eq. 7, with DAPO's two bounds (eq. 10). The higher upper one lets rare tokens grow: from
    p = 0.01, a bound of 0.2 stops at 0.012.
    """
    assert logp.shape == logp_old.shape and advantages.shape == logp.shape[:1], (logp.shape, advantages.shape)
    ratio = (logp - logp_old).exp()  # (B, T); one a token: the product over a sequence would explode with length
    a = advantages[:, None]
    unclipped, clipped = ratio * a, ratio.clamp(1 - clip_low, 1 + clip_high) * a
    # Trap: `min` serves both signs; a `max` for negative advantages turns the clip round (test_clip_quadrants).
    return {"loss": -torch.min(unclipped, clipped), "ratio": ratio.detach(), "clipped": (clipped < unclipped).float()}


def kl_k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """(B, T) estimate of KL(policy || reference), never negative: e^d - d - 1 with d = logp_ref - logp.

    `expm1` keeps it exact near 0: in fp32 the plain form gives 0 at d = 1e-4 and is negative at 1e-6
    (test_k3_nonnegative_for_small_d). Source: Schulman, "Approximating KL divergence" (k3)."""
    d = logp_ref - logp
    return torch.expm1(d) - d


# --- 4. Update -----------------------------------------------------------------------------------


@torch.no_grad()
def score_tokens(policy, groups: list[Group], cfg: Config) -> Tensor:
    """logp (B, T) of all groups without gradient, in the micro-batches of the update."""
    wide = torch.zeros_like(completion_mask(groups))
    for part, rows in in_micro_batches(groups, cfg):
        logp, _ = token_logps(policy, part, cfg.temperature)
        wide[rows, : logp.shape[1]] = logp.cpu()
    return wide


def in_micro_batches(groups: list[Group], cfg: Config) -> list[tuple[list[Group], slice]]:
    return with_rows(micro_batches(groups, cfg.max_tokens_per_micro_batch))


def update(policy, reference: Policy | None, optimizer, accelerator, groups: list[Group], advantages: Tensor,
           mask: Tensor, logp_old: Tensor | None, cfg: Config) -> dict[str, float]:
    """One optimizer step over this rank's groups. Returns sums over this rank's tokens, to be divided later.

    advantages (B,), mask (B, T), logp_old (B, T) or None: the first update of a rollout, where the weights
    still are those that sampled and the ratio is 1 by construction.
    """
    # Trap: the normaliser counts tokens of the whole step, over micro-batches and ranks. A mean of
    # micro-batch means would weigh tokens by the company they keep (test_micro_batch_split_does_not_change_gradient).
    tokens = len(mask) * cfg.max_new_tokens if cfg.dr_grpo else float(mask.sum())
    normalizer = max(1.0, sum_over_ranks({"tokens": tokens}, accelerator)["tokens"])
    # Every rank runs the same number of passes, or the others would wait for it for ever: short ones
    # repeat their first micro-batch with weight 0 (test_uneven_ranks_do_not_hang).
    parts = [(*part, 1.0) for part in in_micro_batches(groups, cfg)]
    most = max(gather_objects(len(parts), accelerator))
    parts += [(*parts[0][:2], 0.0)] * (most - len(parts))

    sums = {"loss": 0.0, "ratio": 0.0, "clipped": 0.0, "entropy": 0.0, "kl_ref": 0.0}
    for i, (part, rows, weight) in enumerate(parts):
        with nullcontext() if i == len(parts) - 1 else accelerator.no_sync(policy):
            logp, entropy = token_logps(policy, part, cfg.temperature)  # (b, t)
            real = mask[rows, : logp.shape[1]].to(logp.device) * weight  # (b, t)
            old = logp.detach() if logp_old is None else logp_old[rows, : logp.shape[1]].to(logp.device)
            terms = policy_loss(logp, old, advantages[rows].to(logp.device), cfg.clip_low, cfg.clip_high)
            if reference is not None:
                with torch.no_grad(), accelerator.autocast():
                    logp_ref, _ = token_logps(reference, part, cfg.temperature)
                terms["kl_ref"] = kl_k3(logp, logp_ref)
                terms["loss"] = terms["loss"] + cfg.kl_beta * terms["kl_ref"]
            loss = (terms["loss"] * real).sum() / normalizer
            # DDP and FSDP average gradients over ranks; times the number of ranks, they add up.
            accelerator.backward(loss * accelerator.num_processes)
        for name, values in {**terms, "entropy": entropy}.items():
            sums[name] += float((values.detach() * real).sum())

    grad_norm = float(accelerator.clip_grad_norm_(policy.parameters(), cfg.grad_clip))
    finite = torch.isfinite(torch.tensor(grad_norm)).item()  # the same on all ranks: gradients are summed by now
    if finite:  # a nan would spread to every weight and never leave
        optimizer.step()
    optimizer.zero_grad()
    return {**sums, "tokens": float(mask.sum()), "grad_norm": grad_norm if finite else 0.0,
            "skipped_updates": float(not finite)}


# --- 5. The loop ---------------------------------------------------------------------------------


def train_on(scored: list[Scored], policy, reference, optimizer, accelerator, cfg: Config) -> dict[str, float]:
    """Consume a rollout in --updates_per_rollout optimizer steps of whole groups; sums over all of them."""
    size = len(scored) // cfg.updates_per_rollout
    batches = []
    for u in range(cfg.updates_per_rollout):
        batch = sorted(scored[u * size : (u + 1) * size], key=lambda s: max(len(c) for c in s.group.completions))
        rewards = torch.tensor([s.rewards for s in batch])  # (p, G)
        advantages = group_advantages(rewards, divide_by_std=not cfg.dr_grpo).flatten()  # (b,) rows in group order
        left_out = rewards.isnan().flatten()  # (b,)
        if cfg.mask_truncated:
            left_out |= torch.tensor([t for s in batch for t in s.truncated])
        groups = [s.group for s in batch]
        mask = completion_mask(groups) * ~left_out[:, None]  # (b, t)
        # logp_old of the later batches is scored now, before the first step changes the policy, and by the
        # same function as logp: the sampler's own numbers differ in rounding (test_first_update_ratio_is_one).
        batches.append((groups, advantages, mask, None if u == 0 else score_tokens(policy, groups, cfg)))
    totals: dict[str, float] = {}
    for groups, advantages, mask, logp_old in batches:
        sums = update(policy, reference, optimizer, accelerator, groups, advantages, mask, logp_old, cfg)
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def summarise(scored: list[Scored], totals: dict[str, float], seconds: dict[str, float], accelerator,
              cfg: Config) -> dict:
    """Metrics of a step: sums and counts over all ranks, divided once."""
    rows = [(s.rewards[i], s.formats[i], s.grades[i].score, len(s.group.completions[i]), s.truncated[i])
            for s in scored for i in range(len(s.texts))]
    known = [r for r in rows if r[2] is not None]
    s = sum_over_ranks({
        **{k: v for k, v in totals.items() if k not in ("grad_norm", "skipped_updates")},
        "rows": len(rows), "known": len(known),
        "reward": sum(r[0] for r in known), "accuracy": sum(r[2] for r in known),
        "format": sum(r[1] > 0 for r in rows), "length": sum(r[3] for r in rows), "trunc": sum(r[4] for r in rows),
        "groups": len(scored), "dead": sum(len({r for r in g.rewards if r == r}) < 2 for g in scored)}, accelerator)
    tokens, known_count = max(1.0, s["tokens"]), max(1.0, s["known"])
    return {"reward": s["reward"] / known_count, "format": s["format"] / s["rows"],
            "accuracy": s["accuracy"] / known_count, "length": s["length"] / s["rows"],
            "trunc%": 100 * s["trunc"] / s["rows"], "dead%": 100 * s["dead"] / s["groups"],
            "loss": s["loss"] / tokens, "ratio": s["ratio"] / tokens, "clip%": 100 * s["clipped"] / tokens,
            "entropy": s["entropy"] / tokens, "kl_ref": s["kl_ref"] / tokens,
            "grad_norm": totals["grad_norm"] / cfg.updates_per_rollout, "skipped_updates": totals["skipped_updates"],
            "unscored": s["rows"] - s["known"], "gen%": 100 * seconds["generate"] / seconds["step"],
            "step_s": seconds["step"]}


def main(cfg: Config) -> None:
    accelerator = make_accelerator(cfg)
    run = Run(cfg, "grpo", accelerator, COLUMNS)
    policy, codec = load_model(run.latest_model() or cfg.model, freeze_vision=cfg.freeze_vision,
                               recompute=cfg.gradient_checkpointing, max_pixels=cfg.max_pixels)
    # What samples. It is never wrapped: no gradient, and no collective while tokens are drawn.
    sampler = sampling_copy(policy).to(accelerator.device) if accelerator.mixed_precision == "bf16" else policy
    reference = None
    if cfg.kl_beta > 0:
        resumed = run.latest_model() is not None  # then `policy` is no longer the start
        reference = load_model(cfg.model, freeze_vision=cfg.freeze_vision)[0] if resumed else copy.deepcopy(policy)
        reference = reference.to(accelerator.device)
        reference.seen = policy.seen  # a frozen tower is the same in both
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=cfg.lr, betas=(0.9, 0.95),
                                  weight_decay=cfg.weight_decay)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    bare: Policy = accelerator.unwrap_model(policy)

    ranks, rank = accelerator.num_processes, accelerator.process_index
    if cfg.prompts_per_step % (ranks * cfg.updates_per_rollout):
        raise ValueError(f"--prompts_per_step {cfg.prompts_per_step} must be a multiple of processes ({ranks}) x "
                         f"--updates_per_rollout ({cfg.updates_per_rollout})")
    share = cfg.prompts_per_step // ranks
    stream = PromptStream(load_rows(cfg.data, count=cfg.rows, seed=cfg.seed, instruction=cfg.instruction), codec,
                          seed=cfg.seed, max_prompt_tokens=cfg.max_prompt_tokens, rank=rank, world_size=ranks,
                          warn=run.warn)
    judge = Judge(cfg.judge_url, cfg.judge_model, run.folder / "judge") if cfg.judge_url else None
    # Each rank draws from a stream of its own, or all ranks would sample the same completions.
    generator = torch.Generator(bare.device).manual_seed(cfg.seed * 1000 + rank)
    state = run.load_state(optimizer)
    if state is not None:
        stream.position, stream.skipped = state["position"], state["skipped"]
        generator.set_state(state["generator"])
    rows = cfg.prompts_per_step * cfg.group_size
    run.say(f"{cfg.prompts_per_step} prompts x {cfg.group_size} samples = {rows} completions a rollout -> "
            f"{cfg.updates_per_rollout} optimizer steps, {ranks} process(es), {run.folder}")

    for step in range(run.start + 1, cfg.steps + 1):
        began = time.perf_counter()
        refresh(sampler, bare)
        with accelerator.autocast():
            scored = rollout(sampler, stream, share, cfg, codec, judge, generator)  # 1. sample, reward
        generated = time.perf_counter() - began
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, cfg, cfg.steps)
        totals = train_on(scored, policy, reference, optimizer, accelerator, cfg)  # 2-4. advantages, loss, update
        seconds = {"generate": generated, "step": time.perf_counter() - began}
        metrics = summarise(scored, totals, seconds, accelerator, cfg)
        run.log(step, cfg.steps, {**metrics, "lr": learning_rate(step - 1, cfg, cfg.steps),
                                  "skipped_rows": sum(gather_objects(stream.skipped, accelerator))})
        if step % cfg.sample_every == 0 or step == 1:
            record_samples(run, step, scored[0], codec)
        if step % cfg.save_every == 0 or step == cfg.steps:
            if run.writes:
                save_model(bare, codec, run.model_folder(step))
            run.save_state(step, optimizer, {"position": stream.position, "skipped": stream.skipped,
                                             "generator": generator.get_state()})
    if run.writes:
        save_model(bare, codec, run.folder / "model")
        plot_curves(run.records(), PANELS, run.folder / "curves.png", f"GRPO from {cfg.model}")
    run.say(f"wrote {run.folder}/model, metrics.jsonl, samples.jsonl, curves.png")
    run.finish()


def record_samples(run: Run, step: int, scored: Scored, codec) -> None:
    """One group into samples.jsonl."""
    row = scored.group.prompt.row
    run.sample({"step": step, "id": row["id"], "prompt": codec.tokenizer.decode(scored.group.prompt.ids.tolist()),
                "gold": row["answer"], "completions": scored.texts, "rewards": scored.rewards, "format": scored.formats,
                "accuracy": [g.score for g in scored.grades], "reasons": [g.reason for g in scored.grades],
                "truncated": scored.truncated}, row["images"])


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
