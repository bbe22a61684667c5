"""Cold start by preference: DPO + lambda * SFT on format pairs, stage 2b of SPECS.

Each pair is one prompt with two responses, chosen (w) and rejected (l). The *reference* is the base
model as it was before training: logp - logp_ref is how far training has raised a response (below 0:
lowered). The margin h is beta times how much further chosen was raised than rejected. DPO widens
it, and does not care how: both may fall, if rejected falls faster. So SFT is added, which keeps
chosen itself likely:

    h       = beta * [(logp(w) - logp_ref(w)) - (logp(l) - logp_ref(l))]          the margin
    L_DPO   = -log sigmoid(h)
    L_SFT   = -(1 / |w|) sum_t logp(w_t)
    L       = L_DPO + lambda * L_SFT

Here logp(w) = sum_t logp(w_t), over the |w| tokens of the response, EOS included; logp(w_t) is the
log-probability of token t after the prompt and the tokens before it. lambda is --sft_weight. L is
averaged over the pairs of a step. DPO takes the sum over a response, since its derivation is about
sequences; SFT takes the mean, as LLaMA-Factory, the paper's trainer, does.

lambda balances two pulls. The loss of one pair pulls at the log-probability of one token by
-dL / d logp(w_t), or -dL / d logp(l_t):

    a token of chosen      + beta sigmoid(-h) (DPO) + lambda / |w| (SFT)      pulled up
    a token of rejected    - beta sigmoid(-h) (DPO)                           pushed down

At the start h = 0: with beta 0.1, lambda 1 and |w| = 27 these are 0.05 + 0.037 and -0.05. As the
margin grows, DPO's pull fades; that of SFT stays.

As a program:

    0. logp_ref: score every response once by the reference       cached_reference
    1. shuffle the pairs of each epoch, cut them into steps,      shuffled_steps
       and each step into the shares of the ranks                 shares_of_rank
    for each step
        2. take this rank's pairs, encoded, and their logp_ref    Pairs.batches (sources/read_pairs)
        3. the loss of each pair over micro-batches, one update   pair_loss, update

A pair is a `Group`: its prompt, in the chat template and with its images, and two completions,
chosen and rejected, each the tokens of its response and one EOS. A pair with a response over
--max_response_tokens is skipped, not cut: without its EOS it would teach the model not to stop.

Policy and reference are both the *base* model at the start, not the model that wrote chosen.
Neither the reference nor the pairs ever change, so logp_ref is computed once, before the base is
trained, and kept in a file. No second model is needed.

Where this departs from the paper, or fills in what it leaves open:
  1. beta 0.1: LLaMA-Factory's default; the paper does not state it.
  2. One epoch. The paper's plot says so: its 140 steps of 64 pairs are its 9k pairs once.
  3. The paper does not state its schedule. By default the learning rate is constant after a
     warm-up; the configs of the 3B and 7B models take a cosine.
  4. SFT alone (--loss sft) is L_SFT, without lambda. It keeps the mean per response, so at lambda 1
     it differs from DPO+SFT by the DPO term only. A usual SFT trainer takes one mean over a batch's
     tokens, where long responses weigh more.

Dimension key: P pairs of the data set; N pairs that a function is given, one `Group` each; T tokens
of the longest response. Log-probabilities are (2N, T), rows alternate: chosen, rejected, chosen,
...; (2n, T_b) is the part of it that one chunk or micro-batch holds. SFT alone has the rows of
chosen only: (N, T) and (n, T_b). `logp` has one entry per token. `logp_ref` has one per response,
summed over its tokens, and so has every name with chosen_, rejected_ or response_ before it.

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
from harness.pair_metrics import COLUMNS, PANELS, summarize
from harness.progress import progress
from harness.randomness import random_of
from harness.ranks import gather_shares, make_accelerator, sum_over_ranks
from harness.reference_cache import load_or_compute, reference_key
from harness.run import Run
from harness.schedule import set_lr
from model.lora import adapters_off
from model.policies import Policies, build_policies, load_policy
from model.prompts import PromptEncoder
from model.qwen import Policy
from model.records import Group, completion_mask
from model.sharding import shard
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


# --- The formulas above, pair by pair -----------------------------------------------------------


def plain_loss(policy: Policy, pairs: list[Group], logp_ref: Tensor, beta: float,
               sft_weight: float) -> Tensor:
    """The loss of one update as plainly as it can be said: on one process, --loss hybrid.

    logp_ref   (N, 2) of chosen and rejected

    Section 3 below is this, made fast: all pairs in one pass, micro-batches, several processes. The
    gradient is the same (test_dpo_update_equals_the_plain_loss).
    """
    L = 0.0
    for pair, (ref_w, ref_l) in zip(pairs, logp_ref):
        logp_w, logp_l = plain_token_logps(policy, [pair]).sum(-1)  # (2, T) -> two numbers
        h = beta * ((logp_w - ref_w) - (logp_l - ref_l))
        L_dpo = -F.logsigmoid(h)
        L_sft = -logp_w / len(pair.completions[0])
        L = L + L_dpo + sft_weight * L_sft
    return L / len(pairs)


# --- 0. The reference: logp_ref ----------------------------------------------------------------

PAIRS_PER_CHUNK = 64  # encoded together, while the reference scores those before them


def cached_reference(reference: Policy, pairs: Pairs, cfg: Config, run: Run) -> Tensor | None:
    """(P, 2) reference log-probs of all pairs, from the cache beside the run folder, or computed.

    None for SFT alone, which has no reference.
    """
    if cfg.loss == "sft":
        return None
    accelerator = run.accelerator
    key = reference_key(reference, pairs.digest, accelerator)
    file = run.folder.parent / "reference_logps" / f"{key}.safetensors"
    compute = partial(score_by_reference, reference, pairs, cfg, accelerator, show=run.writes)
    return load_or_compute(file, compute, accelerator)


def score_by_reference(reference: Policy, pairs: Pairs, cfg: Config, accelerator,
                       show: bool) -> Tensor:
    """(P, 2) the log-probabilities of chosen and of rejected under the reference, summed.

    Each rank scores its share of the P pairs, and all ranks get all of them.
    """
    share = range(accelerator.process_index, len(pairs), accelerator.num_processes)
    # All ranks make equally many chunks, the last perhaps empty: with --shard each call below
    # gathers weights from all ranks, and would wait for ever for a rank that has no more.
    largest_share = math.ceil(len(pairs) / accelerator.num_processes)
    chunks = [share[i : i + PAIRS_PER_CHUNK] for i in range(0, largest_share, PAIRS_PER_CHUNK)]
    filler = pairs.first()

    response_logps = []
    for groups in progress(pairs.batches(chunks), "reference log-probs", show, len(chunks)):
        # Chosen and rejected of a pair may come into two micro-batches. Here that is fine: each is
        # scored by itself, and no loss of a pair is computed.
        logp = no_grad_logps(reference, groups, accelerator, cfg, filler=filler)  # (2n, T_b)
        # logp is 0 where there is no token, so no mask is needed for the sum.
        response_logps.append(logp.sum(-1).view(-1, 2))  # (n, 2) chosen, rejected

    return gather_shares(torch.cat(response_logps), len(pairs), accelerator)  # (P, 2)


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


def shares_of_rank(steps: list[list[int]], lengths: list[int], accelerator) -> list[list[int]]:
    """This rank's share of each step: of R ranks it takes every R-th pair, sorted by length.

    lengths   of each pair, the tokens of its longer response

    The gradient is a sum over pairs, so their order within a share changes nothing. Sorted, a
    micro-batch holds similar lengths, and attention pads little.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    return [sorted(indices[rank::world_size], key=lambda i: lengths[i]) for indices in steps]


# --- 3. The loss of each pair, and the update (2 is `Pairs.batches`, sources/read_pairs.py) -------


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
    return -logp.sum(-1) / mask.sum(-1)


def pair_loss(logp: Tensor, logp_ref: Tensor, mask: Tensor, cfg: Config) -> dict[str, Tensor]:
    """The loss of each pair, and what is logged: (N,) each.

        --loss hybrid    L_DPO + lambda L_SFT
        --loss dpo       L_DPO                    lambda is 0; L_SFT is logged all the same

    logp, mask  (2N, T), chosen, rejected, chosen, ...; logp is 0 where there is no token
    logp_ref    (2N,) in the same order, summed over the tokens of a response
    returns     `loss`, to be averaged over the pairs of the step, and its parts
    """
    response_logp = logp.sum(-1)  # (2N,) summed over the tokens of a response
    assert logp_ref.shape == response_logp.shape, (logp_ref.shape, response_logp.shape)
    chosen_logp, rejected_logp = response_logp[0::2], response_logp[1::2]  # (N,) each
    chosen_logp_ref, rejected_logp_ref = logp_ref[0::2], logp_ref[1::2]  # (N,) each
    terms = dpo_loss(chosen_logp, rejected_logp, chosen_logp_ref, rejected_logp_ref, cfg.beta)

    sft = sft_loss(logp[0::2], mask[0::2])  # (N,) of chosen
    sft_weight = cfg.sft_weight if cfg.loss == "hybrid" else 0.0  # lambda
    return {
        **terms,
        "loss": terms["dpo"] + sft_weight * sft,
        "sft": sft,
        # 1 if the margin is positive. In the first step noise: margins are 0 but for rounding.
        "reward_accuracy": (terms["margin"] > 0).float(),
        "chosen_logp": chosen_logp,
    }


def sft_alone(logp: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """--loss sft, of chosen alone and without a reference: logp, mask (N, T) -> (N,) each."""
    sft = sft_loss(logp, mask)
    return {"loss": sft, "sft": sft, "chosen_logp": logp.sum(-1)}


def update(groups: list[Group], logp_ref: Tensor | None, filler: Group, policies: Policies,
           accelerator, cfg: Config) -> dict[str, float]:
    """One update by the pairs of a step: each rank passes its share through the model.

    groups    this rank's share, [chosen, rejected] each; for SFT alone [chosen]
    logp_ref  (2N,) of these responses, None for SFT alone
    filler    any pair, for filler passes (see `common.py`)
    returns   sums over this rank's pairs; `grad_norm` and `skipped_updates`, equal on all ranks
    """
    pairs_of_step = sum_over_ranks({"pairs": len(groups)}, accelerator)["pairs"]  # of all ranks

    def loss_and_sums(micro: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logp = token_logps(policies.trained, micro.groups)  # (2n, T_b), for SFT alone (n, T_b)
        mask = completion_mask(micro.groups).to(logp.device)  # of the same shape
        if cfg.loss == "sft":
            terms = sft_alone(logp, mask)
        else:
            logp_ref_of_micro = logp_ref[micro.span].to(logp.device)  # (2n,)
            terms = pair_loss(logp, logp_ref_of_micro, mask, cfg)
        micro_sums = {name: values.sum() for name, values in terms.items()}
        return micro_sums["loss"], micro_sums

    # A pair is never split: its loss needs the log-probabilities of both responses.
    micro_batches = micro_batches_of(groups, cfg.max_tokens_per_micro_batch, split=False)
    return optimizer_step(policies, accelerator, micro_batches, loss_and_sums,
                          normalizer=pairs_of_step, filler=filler, cfg=cfg)


# --- The loop ----------------------------------------------------------------------------------


def open_run(cfg: Config) -> tuple[Run, Policy, PromptEncoder, Pairs]:
    """The run, the base before any training (also when resumed: it is the reference), the pairs."""
    accelerator = make_accelerator(cfg)
    run = Run(cfg, "dpo_sft", accelerator, COLUMNS)
    base, encoder = load_policy(cfg, checkpoint=None, accelerator=accelerator)
    pairs = load_pairs(cfg, encoder, base, run.warn, accelerator)
    first_pairs = range(min(LOOKED_AT, len(pairs)))
    looked_at = next(pairs.batches([first_pairs]))
    say_what_was_understood(run, encoder, [group.prompt for group in looked_at])
    if cfg.shard:  # before it scores as the reference: whole, the base may not fit one card
        shard(base)
    return run, base, encoder, pairs


def build_or_resume(policy: Policy, run: Run, pairs: Pairs, cfg: Config) -> Policies:
    """The policy with its optimizer, whose state --resume reads back."""
    policies = build_policies(policy, cfg, run.accelerator)
    state = run.load_state(policies.optimizer)
    if state is not None and state["pairs_digest"] != pairs.digest:
        raise ValueError(f"--resume {run.folder}: --pairs are not those that the run began with")
    return policies


def main(cfg: Config) -> None:
    run, base, encoder, pairs = open_run(cfg)
    accelerator = run.accelerator

    # 0. logp_ref (P, 2): score every response once by the reference, the base as it is now.
    with adapters_off(base):  # those of --lora_rank
        logp_ref = cached_reference(base, pairs, cfg, run)
    if run.latest_model() is None:
        policy = base  # training starts where the reference is
    else:  # resumed: from the last checkpoint. The base is freed first, both may not fit
        del base
        policy, _ = load_policy(cfg, run.latest_model(), accelerator)
    policies = build_or_resume(policy, run, pairs, cfg)

    # 1. Shuffle the pairs of each epoch, cut them into steps, and each step into the shares of the
    # ranks.
    steps = shuffled_steps(len(pairs), cfg)
    shares = shares_of_rank(steps, pairs.lengths, accelerator)  # for each step, N indices
    num_steps = len(steps)
    run.say(f"{len(pairs)} pairs in {num_steps} steps of {cfg.batch_pairs}, loss {cfg.loss}, "
            f"{accelerator.num_processes} process(es), {run.folder}")

    remaining = shares[run.start_step :]
    upcoming = zip(remaining, pairs.batches(remaining))  # of each step; encodes one step ahead
    filler = pairs.first()

    for step in range(run.start_step + 1, num_steps + 1):
        began = time.perf_counter()
        lr = set_lr(policies.optimizer, step - 1, cfg, num_steps)
        # 2. Take this rank's pairs, encoded, and their logp_ref.
        share, groups = next(upcoming)  # N indices, and these pairs
        logp_ref_of_share = None if logp_ref is None else logp_ref[share].flatten()  # (2N,)
        # 3. The loss of each pair over micro-batches, one update.
        sums = update(groups, logp_ref_of_share, filler, policies, accelerator, cfg)

        run.log(step, num_steps, {**summarize(sums, len(groups), accelerator), "lr": lr,
                                  "step_s": time.perf_counter() - began})
        if run.is_time_to_save(step, num_steps):  # also after Ctrl-C
            run.save_checkpoint(step, policies, encoder, extra={"pairs_digest": pairs.digest})
        run.stop_if_asked()

    run.finish_training(policies, encoder, PANELS, f"{cfg.loss} from {cfg.model}")


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
