"""Cold start by preference: DPO + lambda * SFT on format pairs, stage 2b of SPECS.

Each pair is one prompt with two continuations, chosen (w) and rejected (l). DPO raises the margin by
which the policy prefers chosen, measured against the frozen start model; SFT keeps chosen likely:

    h       = beta * [(logp(w) - logp_ref(w)) - (logp(l) - logp_ref(l))]     margin, logp of whole responses
    L_DPO   = -log sigmoid(h)
    L_SFT   = -(1 / |w|) sum_t logp(w_t)                                     mean per token, then over pairs
    L       = L_DPO + lambda * L_SFT

DPO sums log-probabilities over a response (its derivation is about sequences); SFT takes the mean over
the response's tokens, as LLaMA-Factory does, which the paper used. So lambda weighs a loss per pair
against a loss per token: the ratio of the two at the start is printed.

Policy and reference both start at the *base* model, not at the one that wrote chosen. The reference never
changes, nor do the pairs: its log-probabilities are computed once, before training, and kept in a file.

Where this departs from the paper, or fills in what it leaves open:
  1. beta 0.1: LLaMA-Factory's default; the paper does not state it.
  2. Chosen and rejected share one encoding of prompt and pictures (`common.token_logps`).
  3. One epoch, constant learning rate after a warm-up; the paper's plot has 140 steps of 64, one epoch of 9k.

Dimension key: N pairs in a step, B = 2N rows, chosen before rejected in each pair, T longest response.

    accelerate launch dpo_sft.py --pairs runs/prefs           ~20 seconds on two cores
    accelerate launch dpo_sft.py --loss sft ...               ablation: sft or dpo alone
"""

import hashlib
import random
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from common import Group, Policy, completion_mask, load_model, micro_batches, save_model, token_logps, with_rows
from data import open_table, read_record
from prompts import RowError
from runs import (Run, flag, gather_objects, learning_rate, make_accelerator, parse_cli, plot_curves, run_stage,
                  sum_over_ranks)


@dataclass(frozen=True)
class Config:
    # data
    model: str = flag("toy/base", "folder or hub name of the base model: policy and reference start here")
    pairs: str = flag("runs/prefs", "folder that build_prefs.py wrote, or a data set with its columns")
    max_prompt_tokens: int = flag(3000, "pairs with a longer prompt are skipped and counted, tokens; MM-EUREKA")
    max_response_tokens: int = flag(16384, "pairs with a longer response are skipped and counted, tokens; paper: 16384")
    max_pixels: int | None = flag(None, "pictures are scaled down to this many pixels, None: as the model says")
    # loss
    loss: str = flag("hybrid", "`hybrid` (paper), `dpo` or `sft` alone")
    sft_weight: float = flag(1.0, "lambda, weight of SFT beside DPO; paper: 1, ablation 0 and 0.5")
    beta: float = flag(0.1, "DPO's beta; LLaMA-Factory, paper: not stated")
    # optimizer
    batch_pairs: int = flag(64, "pairs an optimizer step, over all processes; paper: 64")
    epochs: int = flag(1, "passes over the pairs; paper: 1 by its plot")
    max_steps: int = flag(0, "stop after so many steps, 0: --epochs says")
    lr: float = flag(1e-4, "AdamW step; paper: 1e-6")
    schedule: str = flag("constant", "`constant` or `cosine` after the warm-up; paper: not stated")
    warmup_steps: int = flag(3, "steps of linear warm-up; paper: not stated")
    weight_decay: float = flag(0.0, "AdamW weight decay; paper: not stated")
    grad_clip: float = flag(1.0, "largest gradient norm; LLaMA-Factory")
    max_tokens_per_micro_batch: int = flag(3072, "tokens a forward pass may hold, prompts counted once; ours")
    gradient_checkpointing: bool = flag(False, "recompute layers in backward: less memory, about a third slower")
    freeze_vision: bool = flag(True, "do not train the vision tower; LLaMA-Factory")
    precision: str = flag("auto", "`no` (fp32), `bf16`, or `auto`: bf16 on a GPU; weights are fp32 always")
    # bookkeeping
    seed: int = flag(0, "of the order of pairs")
    run_dir: str = flag("", "folder of the run; empty: runs/dpo_sft_DATE_TIME")
    resume: bool = flag(False, "go on with the run in --run_dir, bit-exactly on a CPU")
    overwrite: bool = flag(False, "empty --run_dir first")
    save_every: int = flag(8, "steps between checkpoints (for --resume, and `evaluate.py --gf_runs`)")
    log_with: str = flag("", "a tracker that accelerate knows, `tensorboard` or `wandb`; empty: none")

    def __post_init__(self):
        if self.loss not in ("hybrid", "dpo", "sft"):
            raise ValueError(f"--loss {self.loss}: wanted hybrid, dpo or sft")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"--schedule {self.schedule}: wanted constant or cosine")


COLUMNS = ["loss", "dpo", "sft", "chosen_reward", "rejected_reward", "margin", "accuracy", "chosen_logp", "grad_norm",
           "step_s"]
PANELS = {"loss": ["loss", "dpo", "sft"],
          "reward: beta (logp - logp_ref)": ["chosen_reward", "rejected_reward", "margin"],
          "chosen logp, nats a response": ["chosen_logp"], "share of pairs with margin > 0": ["accuracy"]}


# --- 1. Pairs ------------------------------------------------------------------------------------


def load_pairs(cfg: Config, codec, policy: Policy, warn) -> list[Group]:
    """Each pair as a Group [chosen, rejected]; SFT alone has no use for the second, so there it is [chosen].

    Pairs that cannot be used are named to `warn` and skipped, the same ones whatever the loss."""
    table, groups = open_table(cfg.pairs, "train", "--pairs"), []
    missing = {"images", "question", "instruction", "chosen", "rejected"} - set(table.column_names)
    if missing:
        raise ValueError(f"--pairs {cfg.pairs}: columns {sorted(missing)} are missing; build_prefs.py writes them")
    for i in range(len(table)):
        try:
            record = read_record(table, i, f"--pairs {cfg.pairs}")
            row = {**record, "id": str(record.get("id") or i)}
            prompt = codec.encode(row, cfg.max_prompt_tokens)
            texts = [record[side][-1]["content"] for side in ("chosen", "rejected")]
            completions = [codec.encode_completion(text, policy.eos_ids[0]) for text in texts]
            longest = max(map(len, completions))
            if longest > cfg.max_response_tokens:
                # Cut off, it would lose the EOS and teach the model not to stop.
                raise RowError(f"row {row['id']}: response of {longest} tokens is over --max_response_tokens")
            if not all(text.strip() for text in texts):
                raise RowError(f"row {row['id']}: empty response")
            if any(policy.banned.cpu()[c].any() for c in completions):  # its log-probability would be -inf
                raise RowError(f"row {row['id']}: response holds a picture, special or unknown token")
            groups.append(Group(prompt, completions[:1] if cfg.loss == "sft" else completions))
        except RowError as error:
            warn(f"skipped: {error}")
    if not groups:
        raise ValueError(f"--pairs {cfg.pairs}: none of its {len(table)} pairs can be used")
    return groups


# --- 2. Loss -------------------------------------------------------------------------------------


def dpo_loss(chosen: Tensor, rejected: Tensor, chosen_ref: Tensor, rejected_ref: Tensor,
             beta: float) -> tuple[Tensor, Tensor]:
    """-log sigmoid of the margin, and the two rewards stacked: (N,) and (2, N).

    All inputs (N,): summed log-probabilities of a response, nats. At the start policy and reference are
    the same, the margin is 0 and the loss log 2 = 0.6931 (test_dpo_starts_at_log2). Only the margin is
    pushed: chosen may well become *less* likely, as long as rejected falls faster; that is what the SFT
    term is there to prevent (test_margin_up_chosen_may_fall).
    Source: DPO (arXiv 2305.18290) eq. 7. `logsigmoid`, since log(sigmoid(h)) is -inf from h = -104 on.
    """
    rewards = beta * torch.stack([chosen - chosen_ref, rejected - rejected_ref])  # (2, N)
    return -F.logsigmoid(rewards[0] - rewards[1]), rewards


def sft_loss(logp: Tensor, mask: Tensor) -> Tensor:
    """(N, T) chosen log-probs -> (N,) mean negative log-probability per token of each response.

    Trap: over its own tokens, EOS included, not over the padded width
    (test_sft_term_equals_hf_loss)."""
    return -(logp * mask).sum(-1) / mask.sum(-1)


def hybrid_loss(logp: Tensor, logp_ref: Tensor | None, mask: Tensor, cfg: Config) -> dict[str, Tensor]:
    """One entry a pair, (N,) each: `loss` to be averaged over the step's pairs, and what is logged.

    logp, mask (2N, T), rows chosen, rejected, chosen, ...; logp_ref (2N,) summed. SPECS: L_DPO + lambda * L_SFT.
    SFT alone: logp, mask (N, T), chosen only.
    """
    sums = (logp * mask).sum(-1)  # (2N,)
    if cfg.loss == "sft":
        return {"loss": (sft := sft_loss(logp, mask)), "sft": sft, "chosen_logp": sums}
    dpo, rewards = dpo_loss(sums[0::2], sums[1::2], logp_ref[0::2], logp_ref[1::2], cfg.beta)
    sft = sft_loss(logp[0::2], mask[0::2])
    weight = cfg.sft_weight if cfg.loss == "hybrid" else 0.0  # lambda
    return {"loss": dpo + weight * sft, "dpo": dpo, "sft": sft, "chosen_reward": rewards[0],
            "rejected_reward": rewards[1], "margin": rewards[0] - rewards[1],
            "accuracy": (rewards[0] > rewards[1]).float(), "chosen_logp": sums[0::2]}


# --- 3. Reference --------------------------------------------------------------------------------


@torch.no_grad()
def reference_logps(policy: Policy, groups: list[Group], cfg: Config, accelerator, show: bool) -> Tensor:
    """(2N,) summed log-probabilities of every response under the start model, N = all pairs."""
    sums = []
    for part in tqdm(micro_batches(groups, cfg.max_tokens_per_micro_batch), desc="reference", disable=not show):
        with accelerator.autocast():
            logp, _ = token_logps(policy, part)
        sums.append(logp.sum(-1).cpu())
    return torch.cat(sums)


def reference_key(policy: Policy, groups: list[Group], precision: str) -> str:
    """Names everything the reference log-probs depend on: weights, token ids, pixels, precision.

    Trap: keyed by less, a later run would silently read the numbers of other weights
    (test_reference_cache_key)."""
    digest = hashlib.sha256(precision.encode())
    for name, tensor in sorted(policy.vlm.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for group in groups:
        pixels = [] if group.prompt.pixels is None else [group.prompt.pixels]
        for tensor in [group.prompt.ids, *group.completions, *pixels]:
            digest.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def cached_reference(policy: Policy, groups: list[Group], cfg: Config, accelerator, run: Run) -> Tensor:
    """Reference log-probs from the cache beside the run folders, or computed and put there."""
    key = reference_key(policy, groups, str(accelerator.mixed_precision))
    file = run.folder.parent / "reference_logps" / f"{key}.safetensors"
    if file.exists():
        run.say(f"reference log-probs: {file}")
        return load_file(file)["logp_ref"]
    logp_ref = reference_logps(policy, groups, cfg, accelerator, run.writes)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"logp_ref": logp_ref}, file.with_suffix(f".{accelerator.process_index}"))
    file.with_suffix(f".{accelerator.process_index}").replace(file)
    return logp_ref


# --- 4. Update -----------------------------------------------------------------------------------


def update(policy, optimizer, accelerator, groups: list[Group], logp_ref: Tensor | None, own: int,
           cfg: Config) -> dict[str, float]:
    """One optimizer step over this rank's first `own` groups; returns sums over them. logp_ref (2N,), None for SFT.

    A rank without a pair in the last, small step passes some group all the same, and own = 0."""
    pairs = sum_over_ranks({"pairs": own}, accelerator)["pairs"]  # of the whole step
    # A pair is never split: the sigmoid needs both of its log-probs at once.
    whole = micro_batches(groups[:own], cfg.max_tokens_per_micro_batch, split=False)
    parts = [(part, rows, 1.0) for part, rows in with_rows(whole)]
    # Every rank runs the same number of passes (a dead wait otherwise): short ones add some of weight 0.
    idle = (groups[:1], slice(0, len(groups[0].completions)), 0.0)
    parts += [idle] * (max(gather_objects(len(parts), accelerator)) - len(parts))

    sums: dict[str, float] = {}
    for i, (part, rows, weight) in enumerate(parts):
        with nullcontext() if i == len(parts) - 1 else accelerator.no_sync(policy):
            logp, _ = token_logps(policy, part)  # (2n, T)
            ref = None if logp_ref is None else logp_ref[rows].to(logp.device)
            terms = hybrid_loss(logp, ref, completion_mask(part).to(logp.device), cfg)
            # Divided by the pairs of the step, not of the micro-batch; times ranks, since DDP averages.
            accelerator.backward(weight * terms["loss"].sum() / pairs * accelerator.num_processes)
        for name, values in terms.items():
            sums[name] = sums.get(name, 0.0) + weight * float(values.detach().sum())
    grad_norm = float(accelerator.clip_grad_norm_(policy.parameters(), cfg.grad_clip))
    finite = torch.isfinite(torch.tensor(grad_norm)).item()
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return {**sums, "pairs": float(own), "grad_norm": grad_norm if finite else 0.0,
            "skipped_updates": float(not finite)}


# --- 5. The loop ---------------------------------------------------------------------------------


def step_order(count: int, epoch: int, cfg: Config) -> list[list[int]]:
    """Which pairs each step of an epoch takes; the last, smaller step is kept."""
    order = list(range(count))
    random.Random(f"{cfg.seed} {epoch}").shuffle(order)
    return [order[i : i + cfg.batch_pairs] for i in range(0, count, cfg.batch_pairs)]


def main(cfg: Config) -> None:
    accelerator = make_accelerator(cfg)
    run = Run(cfg, "dpo_sft", accelerator, COLUMNS)
    start, codec = load_model(cfg.model, freeze_vision=cfg.freeze_vision, max_pixels=cfg.max_pixels)
    groups = load_pairs(cfg, codec, start, run.warn)
    ranks, rank = accelerator.num_processes, accelerator.process_index
    if len(groups) < ranks:
        raise ValueError(f"--pairs {cfg.pairs}: {len(groups)} pairs for {ranks} processes, each needs one")
    logp_ref = None  # (2 * all pairs,), SFT alone needs none
    if cfg.loss != "sft":
        logp_ref = cached_reference(start.to(accelerator.device), groups, cfg, accelerator, run)

    policy = start if run.latest_model() is None else load_model(run.latest_model(), freeze_vision=cfg.freeze_vision)[0]
    policy.recompute = cfg.gradient_checkpointing
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=cfg.lr, betas=(0.9, 0.999),
                                  weight_decay=cfg.weight_decay)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    run.load_state(optimizer)
    schedule = [batch for epoch in range(cfg.epochs) for batch in step_order(len(groups), epoch, cfg)]
    schedule = schedule[: cfg.max_steps or None]
    run.say(f"{len(groups)} pairs in {len(schedule)} steps of {cfg.batch_pairs}, loss {cfg.loss}, "
            f"{ranks} process(es), {run.folder}")

    for step in range(run.start + 1, len(schedule) + 1):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, cfg, len(schedule))
        mine = schedule[step - 1][rank::ranks]
        mine.sort(key=lambda i: max(len(c) for c in groups[i].completions))  # like lengths share a micro-batch
        taken = mine or [0]
        rows = torch.tensor([2 * i + side for i in taken for side in (0, 1)])
        totals = update(policy, optimizer, accelerator, [groups[i] for i in taken],
                        None if logp_ref is None else logp_ref[rows], len(mine), cfg)
        same = {k: totals.pop(k) for k in ("grad_norm", "skipped_updates")}  # the same on every rank: not summed
        sums = sum_over_ranks(totals, accelerator)
        metrics = {k: v / sums["pairs"] for k, v in sums.items() if k != "pairs"}
        run.log(step, len(schedule), {**metrics, **same, "lr": learning_rate(step - 1, cfg, len(schedule)),
                                      "step_s": time.perf_counter() - began})
        if step == 1 and cfg.loss == "hybrid":
            weighed = cfg.sft_weight * metrics["sft"] / metrics["dpo"]
            run.say(f"        lambda * SFT : DPO is {weighed:.2f} : 1 at the start")
        if step % cfg.save_every == 0 or step == len(schedule):
            if run.writes:
                save_model(accelerator.unwrap_model(policy), codec, run.model_folder(step))
            run.save_state(step, optimizer, {})
    if run.writes:
        save_model(accelerator.unwrap_model(policy), codec, run.folder / "model")
        plot_curves(run.records(), PANELS, run.folder / "curves.png", f"{cfg.loss} from {cfg.model}")
    run.say(f"wrote {run.folder}/model, metrics.jsonl, curves.png")
    run.finish()


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
