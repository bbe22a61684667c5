"""Cold start by preference: DPO + lambda * SFT on format pairs, stage 2b of SPECS.

Each pair is one prompt with two responses, chosen (w) and rejected (l). The *reference* is the base
model as it was before training. DPO looks at how much more likely each response has become since,
and raises the margin of chosen over rejected in that; SFT keeps chosen likely:

    h       = beta * [(logp(w) - logp_ref(w)) - (logp(l) - logp_ref(l))]          the margin
    L_DPO   = -log sigmoid(h)
    L_SFT   = -(1 / |w|) sum_t logp(w_t)
    L       = L_DPO + lambda * L_SFT

Here logp(w) = sum_t logp(w_t), and logp(w_t) is the log-probability of token t after the prompt and
the tokens before it. L is averaged over pairs. DPO takes the sum over a response, since its
derivation is about sequences; SFT takes the mean, as LLaMA-Factory, the paper's trainer, does.

What lambda balances is seen in how hard the loss of a pair pulls at the log-probability of one
token, -dL / d logp:

    a token of chosen      + beta sigmoid(-h) (DPO) + lambda / |w| (SFT)      pulled up
    a token of rejected    - beta sigmoid(-h) (DPO)                           pushed down

At the start h = 0: with beta 0.1, lambda 1 and |w| = 27 these are 0.05 + 0.037 and -0.05. As the
margin grows, DPO's pull fades; that of SFT stays.

As a program:

    0. logp_ref: score every response once by the reference       cached_reference, in set_up
    1. shuffle the pairs of each epoch, cut them into steps,      shuffled_steps
       and each step into the shares of the ranks                 main
    for each step
        2. take this rank's pairs, encoded, and their logp_ref    Pairs.batches (sources/read_pairs)
        3. the hybrid loss over micro-batches, one update         update

Policy and reference are both the *base* model at the start, not the model that wrote chosen.
Neither the reference nor the pairs ever change, so logp_ref is computed once, before the base is
trained, and kept in a file. No second model is needed.

Where this departs from the paper, or fills in what it leaves open:
  1. beta 0.1: LLaMA-Factory's default; the paper does not state it.
  2. One epoch. The paper's plot says so: its 140 steps of 64 pairs are its 9k pairs once.
  3. The paper does not state its schedule. By default the learning rate is constant after a
     warm-up; the configs of the 3B and 7B models take a cosine.
  4. SFT alone keeps the mean per response, so that it differs from DPO+SFT by the DPO term only. A
     usual SFT trainer takes one mean over the tokens of a batch: long responses weigh more there.

Dimension key: P pairs of the data set; N pairs that a function is given, one `Group` each; T tokens
of the longest response. Log-probabilities are (2N, T), rows alternate: chosen, rejected, chosen,
...; for SFT alone (N, T), chosen. (2n, t) is the part of it that one chunk or micro-batch holds.

    accelerate launch dpo_sft.py --pairs runs/prefs          about 20 seconds on one core
    accelerate launch dpo_sft.py --loss sft ...              ablation: sft or dpo alone
"""

import math
import time
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common import MicroBatch, micro_batches_of, no_grad_logps, optimizer_step, token_logps
from harness import settings
from harness.cli import flag, parse_cli, run_stage
from harness.metrics import Means
from harness.progress import progress
from harness.randomness import random_of
from harness.ranks import gather_objects, make_accelerator, sum_over_ranks
from harness.reference_cache import load_or_compute, reference_key
from harness.run import Run
from harness.schedule import set_lr
from model.lora import adapters_off
from model.policies import Policies, build_policies, load_policy
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import Group, completion_mask
from model.sharding import shard
from sources.lazily import AT_A_TIME
from sources.read_pairs import Pairs, load_pairs
from sources.understood import LOOKED_AT, say_what_was_understood


@dataclass(frozen=True)
class Config(settings.Inputs, settings.Training):
    # data
    model: str = flag("toy/base", "folder or hub name of the base: policy and reference start here")
    pairs: str = flag("runs/prefs", "folder of build_prefs.py, or a data set with its columns")
    max_response_tokens: int = flag(16384, "pairs with a longer response are skipped; paper: 16384")
    # loss
    loss: str = flag("hybrid", "`hybrid` (paper), `dpo` or `sft` alone")
    sft_weight: float = flag(1.0, "lambda, weight of SFT beside DPO; paper: 1, ablation 0 and 0.5")
    beta: float = flag(0.1, "DPO's beta; LLaMA-Factory, paper: not stated")
    # steps
    batch_pairs: int = flag(16, "pairs per optimizer step, over all processes; paper: 64")
    epochs: int = flag(1, "passes over the pairs; paper: 1 by its plot", changeable=True)
    max_steps: int = flag(0, "stop after so many steps, 0: --epochs says", changeable=True)
    warmup_steps: int = flag(3, "steps of linear warm-up; paper: not stated")
    adam_beta2: float = flag(0.999, "AdamW's decay of the squared gradient; LLaMA-Factory")
    save_every: int = flag(16, "steps between checkpoints (--resume, evaluate.py --gf_runs)",
                           changeable=True)

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "batch_pairs", "epochs")
        self.check_at_least(0, "max_steps", "sft_weight")
        self.check_positive("beta", "at 0 DPO does nothing, below it pulls the wrong way")
        if self.loss not in ("hybrid", "dpo", "sft"):
            raise ValueError(f"--loss {self.loss}: wanted hybrid, dpo or sft")


# Columns of the terminal's table, and panels of curves.png.
COLUMNS = ["loss", "dpo", "sft", "chosen_reward", "rejected_reward", "margin",
           "reward_accuracy", "chosen_logp", "grad_norm", "step_s"]
PANELS = {"loss": ["loss", "dpo", "sft"],
          "reward: beta (logp - logp_ref)": ["chosen_reward", "rejected_reward", "margin"],
          "chosen logp, nats per response": ["chosen_logp"],
          "share of pairs with margin > 0": ["reward_accuracy"],
          "gradient norm": ["grad_norm"], "learning rate": ["lr"]}


# --- 0. The reference: logp_ref ----------------------------------------------------------------


def cached_reference(policy: Policy, pairs: Pairs, cfg: Config, accelerator,
                     run: Run) -> Tensor | None:
    """(P, 2) reference log-probs of all pairs, from the cache beside the run folder, or computed.

    None for SFT alone, which has no reference.
    """
    if cfg.loss == "sft":
        return None
    key = reference_key(policy, pairs.digest, accelerator)
    file = run.folder.parent / "reference_logps" / f"{key}.safetensors"
    compute = partial(reference_logps, policy, pairs, cfg, accelerator, show=run.writes)
    return load_or_compute(file, compute, accelerator)


def reference_logps(policy: Policy, pairs: Pairs, cfg: Config, accelerator, show: bool) -> Tensor:
    """(P, 2) the log-probabilities of chosen and of rejected under the reference, summed.

    Each rank scores its share of the P pairs, and all ranks get all of them.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    share = range(rank, len(pairs), world_size)
    # All ranks make equally many chunks, the last perhaps empty: with --shard each call below
    # gathers weights from all ranks, and would wait for ever for a rank that has no more.
    largest_share = math.ceil(len(pairs) / world_size)
    chunks = [share[i : i + AT_A_TIME] for i in range(0, largest_share, AT_A_TIME)]
    filler = pairs.first()

    response_logps = []
    for groups in progress(pairs.batches(chunks), "reference log-probs", show, len(chunks)):
        # Chosen and rejected of a pair may come into two micro-batches. Here that is fine: each is
        # scored by itself, and no loss of a pair is computed.
        logp = no_grad_logps(policy, groups, accelerator, cfg, filler=filler)  # (2n, t)
        # No mask is needed for the sum: logp is 0 where there is no token.
        response_logps.append(logp.sum(-1).view(-1, 2))  # (n, 2) chosen, rejected

    # Rank r scored the pairs r, r + world_size, r + 2 world_size, ...
    logp_ref = torch.zeros(len(pairs), 2)
    for r, logp_of_rank in enumerate(gather_objects(torch.cat(response_logps), accelerator)):
        logp_ref[r::world_size] = logp_of_rank
    return logp_ref


# --- 1. The order of the pairs ------------------------------------------------------------------


def shuffled_steps(num_pairs: int, cfg: Config) -> list[list[int]]:
    """The indices of the pairs of each step, over all epochs; at most --max_steps steps, if set.

    The last step of an epoch may have fewer pairs: its loss is the mean of these.
    """
    steps = []
    for epoch in range(cfg.epochs):
        order = list(range(num_pairs))
        random_of(cfg.seed, f"order of epoch {epoch}").shuffle(order)  # the same on all ranks
        steps += [order[i : i + cfg.batch_pairs] for i in range(0, num_pairs, cfg.batch_pairs)]
    return steps[: cfg.max_steps] if cfg.max_steps else steps


# --- 2. The pairs of a step, encoded: `Pairs.batches`, in sources/read_pairs.py -----------------


# --- 3. The hybrid loss, and the update ---------------------------------------------------------


def dpo_loss(chosen_logp: Tensor, rejected_logp: Tensor, chosen_logp_ref: Tensor,
             rejected_logp_ref: Tensor, beta: float) -> dict[str, Tensor]:
    """The DPO term of each pair, and beside it the margin and its two rewards: (N,) each.

    inputs   (N,) each, the log-probability of a response, summed over its tokens, nats
    returns  `dpo` = -log sigmoid(margin), `margin` = h, `chosen_reward`, `rejected_reward`

    At the start policy and reference are the same, and the margin is 0.
    The loss is then log 2 = 0.6931 (test_dpo_starts_at_log2).

    A sum over more tokens moves further for the same change per token, so a longer response has
    more influence. In the pairs of the embedded world chosen has 27 tokens on average, rejected 18.

    The implicit reward of a response is beta (logp - logp_ref). It is not the reward of stages 1
    and 3, which grade format and answer.

    Only the margin is pushed. Chosen may well become *less* likely, as long as rejected falls
    faster; that is what the SFT term is there to prevent (test_margin_up_chosen_may_fall).

    Source: DPO (arXiv 2305.18290) eq. 7. Not log(sigmoid(h)): in fp32 sigmoid(-89) is already 0,
    and its log -inf (test_dpo_gradient_signs_and_far_tails).
    """
    chosen_reward = beta * (chosen_logp - chosen_logp_ref)  # (N,)
    rejected_reward = beta * (rejected_logp - rejected_logp_ref)  # (N,)
    margin = chosen_reward - rejected_reward  # (N,) h
    loss = -F.logsigmoid(margin)  # (N,)
    return {"dpo": loss, "chosen_reward": chosen_reward, "rejected_reward": rejected_reward,
            "margin": margin}


def sft_loss(logp: Tensor, mask: Tensor) -> Tensor:
    """(N, T) log-probs of chosen -> (N,) each response's negative log-probability per token.

    Trap: the mean is over the response's own tokens, EOS included, not over the padded width
    (test_sft_term_equals_hf_loss).
    """
    return -(logp * mask).sum(-1) / mask.sum(-1)


def hybrid_loss(logp: Tensor, logp_ref: Tensor | None, mask: Tensor,
                cfg: Config) -> dict[str, Tensor]:
    """The loss of each pair, L_DPO + lambda * L_SFT or one of them, and what is logged: (N,) each.

    logp, mask  (2N, T), chosen, rejected, chosen, ...; for SFT alone (N, T), chosen
    logp_ref    (N, 2) summed, chosen and rejected; None for SFT alone
    returns     `loss`, to be averaged over the pairs of the step, and its parts
    """
    response_logp = (logp * mask).sum(-1)  # (2N,) over the tokens; for SFT alone (N,)
    if cfg.loss == "sft":  # all rows are chosen
        sft = sft_loss(logp, mask)  # (N,)
        return {"loss": sft, "sft": sft, "chosen_logp": response_logp}

    chosen_logp, rejected_logp = response_logp[0::2], response_logp[1::2]  # (N,) each
    chosen_logp_ref, rejected_logp_ref = logp_ref.unbind(-1)  # (N,) each
    terms = dpo_loss(chosen_logp, rejected_logp, chosen_logp_ref, rejected_logp_ref, cfg.beta)

    sft = sft_loss(logp[0::2], mask[0::2])  # (N,) of chosen alone; logged with --loss dpo too
    if cfg.loss == "hybrid":
        loss = terms["dpo"] + cfg.sft_weight * sft  # (N,) L_DPO + lambda * L_SFT
    else:
        loss = terms["dpo"]  # (N,)
    return {
        **terms,
        "loss": loss,
        "sft": sft,
        # Its mean is the fraction of pairs with a positive margin. In the first step it means
        # nothing: policy and reference are equal, and margins are 0 but for rounding.
        "reward_accuracy": (terms["margin"] > 0).float(),
        "chosen_logp": chosen_logp,
    }


def update(groups: list[Group], logp_ref: Tensor | None, filler: Group, policies: Policies,
           accelerator, cfg: Config) -> dict[str, float]:
    """One update by the pairs of a step: each rank passes its share through the model.

    groups    this rank's share, [chosen, rejected] each; for SFT alone [chosen]
    logp_ref  (N, 2) of these pairs, None for SFT alone
    filler    any pair, for filler passes (see `common.py`)
    returns   sums over this rank's pairs; `grad_norm` and `skipped_updates`, equal on all ranks
    """
    num_pairs = sum_over_ranks({"pairs": len(groups)}, accelerator)["pairs"]  # of all ranks

    def loss_and_metrics(micro: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logp = token_logps(policies.trained, micro.groups)  # (2n, t), for SFT alone (n, t)
        mask = completion_mask(micro.groups).to(logp.device)  # of the same shape

        logp_ref_of_micro = None
        if logp_ref is not None:
            # The span counts responses, two for each pair.
            pair_span = slice(micro.span.start // 2, micro.span.stop // 2)
            logp_ref_of_micro = logp_ref[pair_span].to(logp.device)  # (n, 2)

        terms = hybrid_loss(logp, logp_ref_of_micro, mask, cfg)
        micro_sums = {name: values.sum() for name, values in terms.items()}
        return micro_sums["loss"], micro_sums

    # A pair is never split: its loss needs the log-probabilities of both responses.
    micro_batches = micro_batches_of(groups, cfg.max_tokens_per_micro_batch, split=False)
    return optimizer_step(policies, accelerator, micro_batches, loss_and_metrics,
                          normalizer=num_pairs, filler=filler, cfg=cfg)


# --- The loop ----------------------------------------------------------------------------------


def summarize(sums: dict[str, float], pairs_of_rank: int, accelerator) -> dict[str, float]:
    """Metrics of a step: means over the pairs of all ranks; `sums` are over this rank's."""
    equal_on_ranks = {name: sums[name] for name in ("grad_norm", "skipped_updates")}
    means = Means()
    for name, total in sums.items():
        if name not in equal_on_ranks:
            means.add(name, total, pairs_of_rank)
    return {**means.over_ranks(accelerator), **equal_on_ranks}


def set_up(cfg: Config) -> tuple[Run, Policies, PromptEncoder, Pairs, Tensor | None]:
    """All that the loop works with, from a new start or from where --resume found it.

    The last is logp_ref (P, 2), None for SFT alone.
    """
    accelerator = make_accelerator(cfg)
    run = Run(cfg, "dpo_sft", accelerator, COLUMNS)

    # Also when resumed, the reference is the base before any training.
    base, encoder = load_policy(cfg, checkpoint=None, accelerator=accelerator)
    pairs = load_pairs(cfg, encoder, base, run.warn, accelerator)
    first_pairs = range(min(LOOKED_AT, len(pairs)))
    looked_at = next(pairs.batches([first_pairs]))
    say_what_was_understood(run, encoder, [group.prompt for group in looked_at])
    if cfg.shard:  # before it scores: a whole model may not fit on one card
        shard(base)

    # 0. The base as it is now is the reference.
    with adapters_off(base):
        logp_ref = cached_reference(base, pairs, cfg, accelerator, run)

    if run.latest_model() is None:
        policy = base  # it starts where the reference is
    else:  # resumed: base was needed for the reference only, and there is room for one model
        del base
        policy, _ = load_policy(cfg, run.latest_model(), accelerator)
    policies = build_policies(policy, cfg, accelerator)
    state = run.load_state(policies.optimizer)
    if state is not None and state["pairs_digest"] != pairs.digest:
        raise ValueError(f"--resume {run.folder}: --pairs are not those that the run began with")
    return run, policies, encoder, pairs, logp_ref


def main(cfg: Config) -> None:
    # 0. logp_ref (P, 2): score every response once by the reference, before anything is trained.
    run, policies, encoder, pairs, logp_ref = set_up(cfg)
    accelerator = run.accelerator
    rank, world_size = accelerator.process_index, accelerator.num_processes

    # 1. Shuffle the pairs of each epoch, cut them into steps, and each step into the shares of the
    # ranks. The order within a share does not matter: sorted, a micro-batch holds similar lengths,
    # and attention pads little.
    steps = shuffled_steps(len(pairs), cfg)  # for each step, the indices of its pairs
    shares = [sorted(indices[rank::world_size], key=lambda i: pairs.lengths[i])
              for indices in steps]
    num_steps = len(steps)
    run.say(f"{len(pairs)} pairs in {num_steps} steps of {cfg.batch_pairs}, "
            f"loss {cfg.loss}, {world_size} process(es), {run.folder}")

    upcoming_groups = pairs.batches(shares[run.start_step :])  # encodes one step ahead
    filler = pairs.first()

    for step in range(run.start_step + 1, num_steps + 1):
        began = time.perf_counter()
        lr = set_lr(policies.optimizer, step - 1, cfg, num_steps)
        # 2. Take this rank's pairs, encoded, and their logp_ref.
        share = shares[step - 1]  # N indices
        groups = next(upcoming_groups)  # of these pairs, in this order
        logp_ref_of_share = None if logp_ref is None else logp_ref[share]  # (N, 2)
        # 3. The hybrid loss over micro-batches, one update.
        sums = update(groups, logp_ref_of_share, filler, policies, accelerator, cfg)

        run.log(step, num_steps, {**summarize(sums, len(groups), accelerator), "lr": lr,
                                  "step_s": time.perf_counter() - began})
        if run.is_time_to_save(step, num_steps):  # also after Ctrl-C
            run.save_checkpoint(step, policies, encoder, extra={"pairs_digest": pairs.digest})
        run.stop_if_asked()

    run.finish_training(policies, encoder, PANELS, f"{cfg.loss} from {cfg.model}")


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
