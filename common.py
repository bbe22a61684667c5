"""What GRPO and DPO share: one way to score completions, and one training step.

Both losses are functions of log-probabilities, and both get them from `token_logps` below. It
encodes a prompt and its images once a *group*, however many completions the group has:

    embed      every prompt once, images included, then every completion: one list, no padding
    layers     on that list; a completion attends to its prompt and to itself (`model/attention.py`)
    head       the hidden states that predict a completion's tokens -> log-probabilities, in chunks
    unfold     one number a token -> (B, T)

Both are then minimised by `training_step`: micro-batch by micro-batch, one optimizer step.

One alignment holds for every per-token tensor of the project: shape (B, T), entry (b, t) is about
token t of completion b. The mask is 1 where such a token exists; a sampled EOS is one.

Dimension key: N prompts, B completions in group order, T longest completion, V vocabulary, D hidden
width (`model/records.py`); `tokens` of the list, in all.
"""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from harness.ranks import gather_objects
from model.attention import Layout
from model.loading import load_model
from model.qwen import Policy, next_positions
from model.records import Group
from model.sampling import sampling_copy

MAX_LOGITS = 2**24  # logits that exist at a time; of Qwen's vocabulary these are 110 tokens, 67 MB

# --- 1. Log-probabilities, the one function that both losses share ------------------------------


def token_logps(
    policy: nn.Module, groups: list[Group], temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Score every token of every completion.

    policy    a Policy, or one that accelerate has wrapped
    returns   logp (B, T), nats, 0 where there is no token: log pi(token t | prompt, tokens < t) of
              completion b, under the distribution that the sampler draws from (logits /
              temperature, suppressed ids left out)
              entropy (B, T), nats, of that distribution, without gradient

    For a group of the three completions "a b EOS", "c EOS", "EOS":

        logp = [[a, b, EOS],      mask = [[1, 1, 1],
                [c, EOS, 0],              [1, 1, 0],
                [EOS, 0, 0]]              [1, 0, 0]]

    Cost: each prompt and its images once a group, no padding. Memory: at most MAX_LOGITS logits at
    a time, computed again in backward if there are more chunks than one.
    """
    return policy(score_groups, groups, temperature)  # through `forward`, which DDP wraps


def score_groups(
    policy: Policy, groups: list[Group], temperature: float
) -> tuple[Tensor, Tensor]:
    """The body of `token_logps`, on the bare policy."""
    prompts = [group.prompt for group in groups]
    prompt_of = [n for n, group in enumerate(groups) for _ in group.completions]  # (B,)
    completions = [c for group in groups for c in group.completions]
    inputs = [c[:-1] for c in completions]  # from the last token nothing is predicted

    # 1. One list of tokens: all prompts, then the inputs of all completions.
    layout = Layout.of(
        [len(p.ids) for p in prompts], [len(i) for i in inputs], prompt_of, policy.device
    )
    embeds = torch.cat([policy.embed_prompts(prompts), policy.embed(torch.cat(inputs))])
    positions = list_positions(prompts, inputs, prompt_of)

    # 2. The layers. HF wants a batch dimension: the list is a batch of one.
    hidden = policy.run_layers(embeds[None], positions[:, None], layout)[0]  # (tokens, D)

    # 3. The head, on the hidden states that predict a completion's token.
    predictor = predicting_tokens(layout, completions, prompt_of).to(policy.device)
    targets = torch.cat(completions).to(policy.device)  # the same length: tokens of completions
    logp, entropy = chunked_logps(policy, hidden.index_select(0, predictor), targets, temperature)

    # 4. Back to one line for each completion.
    lengths = [len(c) for c in completions]
    return unfold(logp, lengths), unfold(entropy, lengths)  # (B, T) each


def list_positions(prompts, inputs: list[Tensor], prompt_of: list[int]) -> Tensor:
    """(3, tokens) M-RoPE positions of the list: every prompt's own, then those of the inputs."""
    longest = max(len(i) for i in inputs)
    following = next_positions(prompts, longest)  # (N, longest)

    after_prompts = [following[n, : len(i)] for n, i in zip(prompt_of, inputs)]
    text = torch.cat(after_prompts).expand(3, -1)  # all three axes agree after the prompt
    return torch.cat([*[p.positions for p in prompts], text], dim=1)


def predicting_tokens(layout: Layout, completions: list[Tensor], prompt_of: list[int]) -> Tensor:
    """Which hidden state predicts which token? (tokens of all completions,) indices into the list.

    Trap: token 0 of a completion is predicted by the last token of its *prompt*, token t by token
    t - 1. Off by one, every logit would be compared with the token that it was given
    (test_perfect_predictor_has_logp_zero).
    """
    num_prompts = len(layout.last_of_prompt)
    predictors = []
    for b, completion in enumerate(completions):
        first_input = layout.offsets[num_prompts + b]
        last_of_prompt = layout.last_of_prompt[prompt_of[b]]
        predictors.append(last_of_prompt[None])
        predictors.append(first_input + torch.arange(len(completion) - 1))
    return torch.cat(predictors)


def unfold(values: Tensor, lengths: list[int]) -> Tensor:
    """(tokens,) -> (B, T): one line for each completion, 0 behind its end."""
    return pad_sequence(values.split(lengths), batch_first=True)


def chunked_logps(
    policy: Policy, hidden: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """hidden (tokens, D), targets (tokens,) ids -> logp (tokens,), entropy (tokens,).

    MAX_LOGITS logits at a time. No (tokens, V) tensor is ever kept: more chunks than one are
    computed again in the backward pass.
    """

    def head(h: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = policy.logits(h, temperature)  # (chunk, V)
        logp = logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1)  # (chunk,)
        with torch.no_grad():
            entropy = torch.special.entr(logits.softmax(-1)).sum(-1)  # (chunk,)
        return logp, entropy

    chunk_size = max(1, MAX_LOGITS // len(policy.suppressed))
    chunks = list(zip(hidden.split(chunk_size), targets.split(chunk_size)))

    logps, entropies = [], []
    for h, target in chunks:
        if torch.is_grad_enabled() and len(chunks) > 1:
            logp, entropy = checkpoint(head, h, target, use_reentrant=False)
        else:
            logp, entropy = head(h, target)
        logps.append(logp)
        entropies.append(entropy)
    return torch.cat(logps), torch.cat(entropies)


# --- 2. Micro-batches --------------------------------------------------------------------------


@dataclass(frozen=True)
class MicroBatch:
    """The groups of one forward pass, and which completions of the step they hold."""

    groups: list[Group]
    span: slice  # of the first dimension of the step's (B, ...) tensors


def micro_batches(groups: list[Group], max_tokens: int, split: bool = True) -> list[MicroBatch]:
    """Cut the groups of a step into micro-batches of at most `max_tokens` tokens.

    A prompt counts once a group. Groups keep their order, and every completion is in exactly one
    micro-batch. With `split`, a group that is too large alone is cut into parts that share its
    prompt, down to one completion, so that a group never has to fit as a whole.
    """
    batches: list[list[Group]] = []
    waiting = list(groups)

    while waiting:
        group = waiting.pop(0)
        size = len(group.completions)

        if split and num_tokens([group]) > max_tokens and size > 1:
            halves = group.completions[: size // 2], group.completions[size // 2 :]
            waiting = [Group(group.prompt, half) for half in halves] + waiting
        elif batches and num_tokens([*batches[-1], group]) <= max_tokens:
            batches[-1].append(group)
        else:
            batches.append([group])
    return with_spans(batches)


def num_tokens(groups: list[Group]) -> int:
    """Tokens of a forward pass over these groups."""
    return sum(len(g.prompt.ids) + sum(len(c) for c in g.completions) for g in groups)


def with_spans(batches: list[list[Group]]) -> list[MicroBatch]:
    """Count through the completions of consecutive batches."""
    result = []
    start = 0
    for groups in batches:
        end = start + sum(len(g.completions) for g in groups)
        result.append(MicroBatch(groups, slice(start, end)))
        start = end
    return result


# --- 3. What trains, and what samples ----------------------------------------------------------


@dataclass
class Policies:
    """The one set of weights that is trained, seen from its three sides, and its optimizer."""

    trained: nn.Module  # wrapped by accelerate (DDP, autocast): every forward with a gradient
    bare: Policy  # the same weights, unwrapped: to save, and to refresh the sampler
    sampler: Policy  # draws the tokens: `bare` itself, or its bf16 copy
    optimizer: torch.optim.Optimizer


def build_policies(policy: Policy, cfg, accelerator, betas: tuple[float, float]) -> Policies:
    """Decide once what trains and what samples; the stages' loops know nothing of machines.

    In mixed precision a bf16 copy samples. The sampler is never wrapped: it needs no gradient, and
    no collective may run while tokens are drawn, since ranks sample for unequally long.
    `accelerator.prepare` also makes the wrapped forward run under autocast.
    """
    sampler = policy
    if accelerator.mixed_precision == "bf16":
        sampler = sampling_copy(policy).to(accelerator.device)

    trainable = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=cfg.lr, betas=betas, weight_decay=cfg.weight_decay)
    trained, optimizer = accelerator.prepare(policy, optimizer)
    return Policies(trained, accelerator.unwrap_model(trained), sampler, optimizer)


def build_reference(policy: Policy, cfg, accelerator, resumed: bool) -> Policy | None:
    """The frozen start model, for GRPO's KL term; None without that term.

    resumed  the run goes on, so `policy` is no longer the start, and --model is loaded again
    """
    if cfg.kl_beta == 0:
        return None
    if resumed:
        reference, _ = load_model(cfg.model, freeze_vision=cfg.freeze_vision)
    else:
        reference = copy.deepcopy(policy)
    reference.feature_cache = policy.feature_cache  # a frozen tower is the same in both
    return reference.to(accelerator.device)


# --- 4. One training step ----------------------------------------------------------------------


def training_step(
    policies: Policies,
    accelerator,
    batches: list[MicroBatch],
    loss_and_metrics: Callable[[MicroBatch], tuple[Tensor, dict[str, Tensor]]],
    *,
    normalizer: float,
    padding: list[Group],
    grad_clip: float,
) -> dict[str, float]:
    """One optimizer step over all micro-batches of all ranks.

    batches           this rank's; ranks may have unequally many, one may have none
    loss_and_metrics  for a micro-batch: its loss, *summed* over tokens (GRPO) or pairs (DPO), and
                      sums of what is logged
    normalizer        what the summed loss of the whole step, over all ranks, is divided by
    padding           any groups, for the padding passes of a rank with fewer micro-batches
    returns           this rank's sums of metrics; `grad_norm` before clipping and `skipped_updates`
                      (1 if the norm was not finite and no step was taken), equal on all ranks

    Trap: dividing each micro-batch by its own count would give a token in a short micro-batch more
    weight than one in a long one (test_micro_batch_split_does_not_change_gradient).
    """
    num_passes = max(gather_objects(len(batches), accelerator))  # the longest rank decides
    sums: dict[str, Tensor] = {}

    for i in range(num_passes):
        is_padding = i >= len(batches)
        is_last = i == num_passes - 1

        # DDP adds gradients up over ranks in the last pass only.
        with nullcontext() if is_last else accelerator.no_sync(policies.trained):
            if is_padding:
                # Every rank runs the same number of passes, or the others would wait for it for
                # ever (test_uneven_ranks_do_not_hang). This one sends gradients of zero.
                loss = 0.0 * token_logps(policies.trained, padding)[0].sum()
                metrics = {}
            else:
                loss, metrics = loss_and_metrics(batches[i])

            # DDP averages gradients over ranks; times the number of ranks, they add up.
            accelerator.backward(loss / normalizer * accelerator.num_processes)

        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + value.detach().double()

    grad_norm = float(accelerator.clip_grad_norm_(policies.trained.parameters(), grad_clip))
    skip = not math.isfinite(grad_norm)  # the same on all ranks: gradients are summed by now
    if not skip:  # a nan would spread to every weight and never leave
        policies.optimizer.step()
    policies.optimizer.zero_grad()

    result = {name: float(value) for name, value in sums.items()}
    result["grad_norm"] = 0.0 if skip else grad_norm
    result["skipped_updates"] = float(skip)
    return result


def learning_rate(step: int, cfg, steps: int) -> float:
    """The rate of step 0, 1, ...: linear warm-up, then constant, or cosine down to a tenth.

    Source: MM-EUREKA (cosine with a minimum of a tenth).
    """
    rate = cfg.lr * min(1.0, (step + 1) / max(1, cfg.warmup_steps))
    if cfg.schedule == "cosine":
        done = max(0, step - cfg.warmup_steps) / max(1, steps - cfg.warmup_steps)
        rate *= 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
