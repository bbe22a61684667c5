"""What GRPO and DPO share: one way to score completions, and one optimizer step.

    1. token_logps         log-probabilities with gradient, which both losses are functions of
    2. micro_batches_of    the groups of an update, cut to what one forward pass can hold
    3. optimizer_step      gradients added up over micro-batches and ranks, one step of AdamW
    4. no_grad_logps       log-probabilities as constants: logp_old of GRPO, the reference of DPO

1 and 3 come twice: first as plainly as they can be said, then as they run.

To *score* a completion is to compute the log-probability of each of its tokens. `token_logps` does
it with each prompt and its images encoded once per *group*, however many completions it has:

    pack       one sequence without padding: all prompts, with their images, then the inputs of all
               completions. The input of a completion is all of it but its last token, from which
               nothing is predicted. Prompts p and q, p with completions "a b EOS" and "c EOS":
                   p1 p2 p3  q1 q2  a b  c  ...
    layers     a completion attends to its prompt and to itself (`model/attention.py`)
    head       the hidden states that predict a completion's tokens -> log-probabilities, in chunks
    unpack     one number per token -> (B, T)

Both losses are then minimised by `optimizer_step`, which adds up the gradients of all micro-batches
of all ranks, and takes one step of AdamW. One such call is an *update*. A *step*, alone, is one
turn of a stage's loop: in DPO one update, in GRPO one rollout and the several updates that use it.

Several processes (*ranks*) wait for each other, so a rank with fewer micro-batches than another
adds *filler passes*, whose gradient is zero (`equally_many_passes`).

One alignment holds for every per-token tensor of the project: shape (B, T), entry [i, t] is about
token t of completion i. The mask is 1 where such a token exists; a sampled EOS is one.

Dimension key, beside that of `model/records.py` (N prompts, B completions, S, T, L, V, D):
    tokens     length of the packed sequence: prompts and inputs
    targets    tokens that are scored: all of each completion, also its last, which is no input
    (b, T_b)   the part of a (B, T) that one micro-batch holds: T_b is its longest completion
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.ranks import gather_objects
from model.attention import Layout
from model.policies import Policies
from model.qwen import Policy, max_logits, next_positions
from model.records import Group, Prompt, padded
from model.sharding import is_sharded, whole

# --- 1. Log-probabilities, the one function that both losses share ------------------------------


def plain_token_logps(policy: Policy, groups: list[Group], temperature: float = 1.0) -> Tensor:
    """What `token_logps` computes, as plainly as it can be said: logp (B, T).

    Every completion alone, with its whole prompt, through Hugging Face's own forward. The prompt
    and its images are encoded again for each completion, and all logits are kept.
    """
    logps = []
    for group in groups:
        for completion in group.completions:
            logits = policy.plain_logits(group.prompt, completion) / temperature  # (S + L, V)
            logits = logits.masked_fill(policy.suppressed, float("-inf"))

            # The logits at index i predict token i + 1. So those from the last prompt token on are
            # needed; the last ones, which would predict what follows the completion, are not.
            last_of_prompt = len(group.prompt.ids) - 1
            logp = logits[last_of_prompt:-1].log_softmax(-1)  # (L, V)
            logps.append(logp.gather(-1, completion[:, None].to(logp.device))[:, 0])  # (L,)
    return padded(logps)  # (B, T)


def token_logps(policy: nn.Module, groups: list[Group], temperature: float = 1.0) -> Tensor:
    """Score every token of every completion: `plain_token_logps`, made fast.

    policy    a Policy, or one that accelerate has wrapped
    returns   logp (B, T), nats, 0 where there is no token: log pi(token t | prompt, tokens before
              t) of completion i, under the distribution that the sampler draws from (logits /
              temperature, suppressed ids left out)

    For the three completions "a b EOS", "c EOS", "EOS" of a prompt p:

        logp = [[log pi(a|p),   log pi(b|p a),   log pi(EOS|p a b)],    mask = [[1, 1, 1],
                [log pi(c|p),   log pi(EOS|p c), 0                ],            [1, 1, 0],
                [log pi(EOS|p), 0,               0                ]]            [1, 0, 0]]

    Equal to the plain version (test_token_logps_equal_the_plain_version), and 17 to 20 times faster
    on a rollout of the embedded world (16 prompts x 8, forward and backward, one CPU thread).

    Cost: each prompt and its images once per group; no padding but inside of attention, among
    sequences of similar length (`model/attention.py`). Memory: at most `max_logits` logits at once.
    """
    # `Policy.forward(f, *args)` runs f(policy, *args). DDP and autocast wrap `forward` and nothing
    # else: whatever needs a gradient has to run inside of it.
    return policy(score_groups, groups, temperature)


def score_groups(policy: Policy, groups: list[Group], temperature: float) -> Tensor:
    """The body of `token_logps`, on the bare policy: groups -> logp (B, T)."""
    prompts = [group.prompt for group in groups]  # N
    # The index of the prompt of each completion, as in [0, 0, 0, 1, 1, 1].
    prompt_of = [n for n, group in enumerate(groups) for _ in group.completions]  # B
    completions = [c for group in groups for c in group.completions]
    inputs = [c[:-1] for c in completions]  # nothing is predicted from the last token

    # 1. Pack: all prompts, then the inputs of all completions, in one sequence.
    layout = Layout.of([len(p.ids) for p in prompts], [len(ids) for ids in inputs], prompt_of,
                       policy.device)
    prompt_embeds = policy.embed_prompts(prompts)  # (prompt tokens, D) images included
    input_embeds = policy.embed(torch.cat(inputs))  # (input tokens, D)
    embeds = torch.cat([prompt_embeds, input_embeds])  # (tokens, D)
    positions = packed_positions(prompts, inputs, prompt_of)  # (3, tokens)

    # 2. The layers. HF wants a batch dimension: the packed sequence is a batch of one.
    hidden = policy.run_layers(embeds[None], positions[:, None], layout)[0]  # (tokens, D)

    # 3. The head, on the hidden states that predict a completion's tokens.
    predictors = predictor_indices(layout, completions, prompt_of).to(policy.device)  # (targets,)
    target_ids = torch.cat(completions).to(policy.device)  # (targets,)
    target_hidden = hidden.index_select(0, predictors)  # (targets, D) what predicts each target
    logp = chunked_logps(policy, target_hidden, target_ids, temperature)  # (targets,)

    # 4. Unpack: one row for each completion, 0 after its end.
    return padded(logp.split([len(c) for c in completions]))  # (B, T)


def packed_positions(prompts: list[Prompt], inputs: list[Tensor], prompt_of: list[int]) -> Tensor:
    """(3, tokens) M-RoPE positions: those of every prompt, then those of the inputs."""
    longest = max(len(ids) for ids in inputs)
    after_prompt = next_positions(prompts, longest)  # (N, longest)

    per_input = [after_prompt[n, : len(ids)] for n, ids in zip(prompt_of, inputs)]  # (L - 1,) each
    input_positions = torch.cat(per_input).expand(3, -1)  # (3, input tokens) equal on all axes
    return torch.cat([*[p.positions for p in prompts], input_positions], dim=1)


def predictor_indices(layout: Layout, completions: list[Tensor], prompt_of: list[int]) -> Tensor:
    """(targets,) for each token of all completions, the index of the hidden state that predicts it.

    For a prompt p1 p2 p3 and its completions "a b EOS" and "c EOS" the packed sequence is

        index           0   1   2   3   4   5
        token           p1  p2  p3  a   b   c

        target          a   b   EOS   c   EOS       all tokens of both completions
        predicted by    p3  a   b     p3  c
        returns        [2,  3,  4,    2,  5]

    Trap: token 0 of a completion is predicted by the last token of its *prompt*, token t by token
    t - 1. Off by one, each token would be scored where it is the input, which is no prediction
    (test_perfect_predictor_has_logp_zero).
    """
    num_prompts = len(layout.last_of_prompt)  # N
    first_of_input = layout.offsets[num_prompts:]  # (B,) where the input of each completion begins
    predictors = []
    for i, completion in enumerate(completions):
        first_predictor = layout.last_of_prompt[prompt_of[i]][None]  # (1,) of token 0
        later_predictors = first_of_input[i] + torch.arange(len(completion) - 1)  # (L - 1,)
        predictors += [first_predictor, later_predictors]
    return torch.cat(predictors)  # (targets,)


def chunked_logps(policy: Policy, target_hidden: Tensor, target_ids: Tensor,
                  temperature: float) -> Tensor:
    """target_hidden (targets, D), target_ids (targets,) -> logp (targets,).

    At most `max_logits` logits exist at a time. If that takes several chunks, their logits are not
    kept for the backward pass, which computes them again, chunk by chunk (`checkpoint`).
    """

    def head(hidden_chunk: Tensor, id_chunk: Tensor) -> Tensor:
        logits = policy.logits(hidden_chunk, temperature)  # (chunk, V)
        target_logit = logits.gather(-1, id_chunk[:, None])[:, 0]  # (chunk,)
        # log_softmax at the target; the other V - 1 of it are not needed.
        return target_logit - logits.logsumexp(-1)  # (chunk,)

    chunk_size = max(1, max_logits(target_hidden.device.type) // policy.vocab_size)
    chunks = list(zip(target_hidden.split(chunk_size), target_ids.split(chunk_size)))

    logps = []
    for chunk in chunks:
        if torch.is_grad_enabled() and len(chunks) > 1:
            logps.append(checkpoint(head, *chunk, use_reentrant=False))
        else:
            logps.append(head(*chunk))
    return torch.cat(logps)


# --- 2. Micro-batches --------------------------------------------------------------------------


@dataclass(frozen=True)
class MicroBatch:
    """The groups of one forward pass, and which rows of a (B, ...) tensor are theirs."""

    groups: list[Group]
    span: slice  # its rows in a (B, ...) tensor; B counts the completions of all micro-batches

    def part_of(self, x: Tensor, like: Tensor) -> Tensor:
        """x (B, T) -> (b, T_b), this micro-batch's part of it.

        On the device of `like` (b, T_b), and as wide. The columns that are left out hold only
        padding here: no completion of this micro-batch is longer than T_b.
        """
        return x[self.span, : like.shape[1]].to(like.device)


def micro_batches_of(groups: list[Group], max_tokens: int, split: bool = True) -> list[MicroBatch]:
    """Distribute groups, in order, over micro-batches of at most `max_tokens` tokens.

    split   a group over the limit is halved, again and again if need be; each half has the prompt,
            which is then encoded once per half. A completion stays whole: alone it may be over the
            limit. Without `split` (DPO needs both of a pair) a group stays whole as well.

    A prompt counts once per group. Every completion is in exactly one micro-batch.
    """
    batches: list[list[Group]] = []
    waiting = list(groups)

    while waiting:
        group = waiting.pop(0)
        size = len(group.completions)

        if split and num_tokens([group]) > max_tokens and size > 1:  # too large: halve it
            halves = group.completions[: size // 2], group.completions[size // 2 :]
            waiting = [Group(group.prompt, half) for half in halves] + waiting
        elif batches and num_tokens([*batches[-1], group]) <= max_tokens:  # fits into the last
            batches[-1].append(group)
        else:  # begin another
            batches.append([group])
    return with_spans(batches)


def num_tokens(groups: list[Group]) -> int:
    """Tokens of these groups, each prompt once.

    A little more than the length of the packed sequence: the last token of each completion is
    counted here, and is no input there.
    """
    return sum(len(g.prompt.ids) + sum(len(c) for c in g.completions) for g in groups)


def with_spans(batches: list[list[Group]]) -> list[MicroBatch]:
    """Give each batch its span: the first has completions 0 to k - 1, and so on."""
    result = []
    start = 0
    for groups in batches:
        end = start + sum(len(g.completions) for g in groups)
        result.append(MicroBatch(groups, slice(start, end)))
        start = end
    return result


# --- 3. One optimizer step ---------------------------------------------------------------------

# What a stage gives, for a micro-batch: its loss, *summed* over tokens (GRPO) or pairs (DPO), and
# the sums of what is logged.
LossAndSums = Callable[[MicroBatch], tuple[Tensor, dict[str, Tensor]]]


def plain_optimizer_step(policies: Policies, micro_batches: list[MicroBatch],
                         loss_and_sums: LossAndSums, *, normalizer: float,
                         grad_clip: float) -> None:
    """What `optimizer_step` does in a single process, as plainly as it can be said.

        gradient = sum over micro-batches of grad(loss of the micro-batch) / normalizer

    normalizer   M of GRPO, or the number of pairs of DPO, counted over the whole update

    Trap: dividing each micro-batch by its own count would give a token in a short micro-batch more
    weight than one in a long one (test_micro_batch_split_does_not_change_gradient).
    """
    for micro in micro_batches:
        loss, _ = loss_and_sums(micro)
        (loss / normalizer).backward()  # gradients add up

    nn.utils.clip_grad_norm_(policies.trained.parameters(), grad_clip)
    policies.optimizer.step()
    policies.optimizer.zero_grad()


def optimizer_step(policies: Policies, accelerator, micro_batches: list[MicroBatch],
                   loss_and_sums: LossAndSums, *, normalizer: float, filler: Group,
                   cfg) -> dict[str, float]:
    """One update: `plain_optimizer_step` over all ranks, and what is logged of it.

    In a single process, given a micro-batch and a finite gradient, it equals the plain version
    (test_optimizer_step_equals_the_plain_version). Three things are added for all other cases:

        filler passes            a rank has fewer micro-batches than another, or no rank has any
        loss * num_processes     gradients are averaged over ranks, and a sum is wanted
        if is_finite             an update whose gradient has a nan or inf is skipped

    micro_batches  of this rank; ranks may have different numbers of them, also none
    normalizer     as above, over all ranks, and the same on each
    filler         any group, for the filler passes of a rank with fewer micro-batches
    cfg            --grad_clip and --max_skipped are read
    returns        this rank's sums of what is logged, and two numbers that are equal on all ranks:
                       grad_norm         before clipping; 0 if the update was skipped
                       skipped_updates   1 if the norm was not finite, and AdamW not run; else 0

    Raises ValueError after --max_skipped skipped updates in a row.
    """
    # 1. The passes over micro-batches, at least one. GRPO leaves out groups whose gradient is 0, so
    # an update may have no group at all. It must still act as if it had them: on a gradient of 0
    # AdamW moves the weights, by momentum and weight decay; on a gradient of None it does nothing
    # (test_without_any_gradient_adamw_still_steps).
    passes = equally_many_passes(micro_batches, accelerator, at_least=1)
    sums: dict[str, Tensor] = {}
    for i, micro in enumerate(passes):
        # DDP averages gradients over ranks in a backward pass. Once per update is enough, in the
        # last pass. (With --shard `no_sync` does nothing: every pass averages, since no rank has
        # room for a whole gradient.)
        is_last = i == len(passes) - 1
        maybe_no_sync = nullcontext() if is_last else accelerator.no_sync(policies.trained)
        with maybe_no_sync:
            if micro is not None:
                loss, micro_sums = loss_and_sums(micro)
            else:
                loss, micro_sums = filler_loss(policies, filler, accelerator), {}

            # The average over ranks, times their number, is the sum that we want.
            accelerator.backward(loss / normalizer * accelerator.num_processes)

        for name, value in micro_sums.items():
            sums[name] = sums.get(name, 0.0) + value.detach().double()

    # 2. Clip, and one step of AdamW; none if the gradient is not finite: a nan would spread to all
    # weights. The norm is that of the summed gradient, so all ranks decide alike.
    norm = accelerator.clip_grad_norm_(policies.trained.parameters(), cfg.grad_clip)
    grad_norm = float(whole(norm))  # `whole`: with --shard, `norm` is one rank's part of it
    is_finite = math.isfinite(grad_norm)
    if is_finite:
        policies.optimizer.step()
    policies.optimizer.zero_grad()
    count_skipped(policies, is_finite, cfg.max_skipped)

    # 3. Read the sums back only now: `float` waits for the device, in each pass it would cost time.
    result = {name: float(value) for name, value in sums.items()}
    result["skipped_updates"] = float(not is_finite)
    result["grad_norm"] = grad_norm if is_finite else 0.0
    return result


def equally_many_passes(micro_batches: list[MicroBatch], accelerator,
                        at_least: int = 0) -> list[MicroBatch | None]:
    """This rank's micro-batches, then None for each filler pass: as many as the rank with the most.

    Ranks wait for each other:

        FSDP   in every pass, to gather weights: all need equally many passes
        DDP    in the last pass of an update, to average gradients: each needs at least one

    Equally many serves both. Trap: a rank with too few makes the others wait for ever
    (test_all_ways_give_one_gradient, test_uneven_ranks_do_not_hang).
    """
    num_passes = max(at_least, *gather_objects(len(micro_batches), accelerator))
    return [*micro_batches, *[None] * (num_passes - len(micro_batches))]


def filler_loss(policies: Policies, filler: Group, accelerator) -> Tensor:
    """The loss of a filler pass: it runs the model forward and backward, and its gradient is 0.

    The update's own loss would not do: where it is infinite, zero times it is nan. Each logp is
    finite, since the sampler drew its token, or the pair was checked when it was read.
    """
    logp = token_logps(policies.trained, filler_groups(filler))
    if policies.reference is not None and is_sharded(policies.reference):
        # With --kl_beta GRPO's loss scores the reference after the policy. If it is sharded, this
        # too waits for all ranks: a filler pass does it as well, in the same order. It is not
        # wrapped, so autocast is entered by hand.
        with torch.no_grad(), accelerator.autocast():
            token_logps(policies.reference, filler_groups(filler))
    return 0.0 * logp.sum()


def filler_groups(filler: Group) -> list[Group]:
    """The groups of a filler pass: one completion, so that it is no larger than other passes."""
    return [Group(filler.prompt, filler.completions[:1])]


def count_skipped(policies: Policies, is_finite: bool, max_skipped: int) -> None:
    """Count the updates that were skipped in a row, this one included if `is_finite` is False.

    Raises ValueError after `max_skipped` of them; 0: never.
    """
    policies.skipped_in_a_row = 0 if is_finite else policies.skipped_in_a_row + 1
    if 0 < max_skipped <= policies.skipped_in_a_row:
        raise ValueError(
            f"{policies.skipped_in_a_row} updates in a row had a gradient that is not finite, so "
            "the run stops. None of them changed a weight: the checkpoints in its folder are good. "
            "Look at the data, or start another run with a lower --lr; --resume with a larger "
            "--max_skipped goes on past these updates"
        )


# --- 4. Log-probabilities without a gradient ---------------------------------------------------


@torch.no_grad()
def no_grad_logps(policy: nn.Module, groups: list[Group], accelerator, cfg,
                  temperature: float = 1.0, filler: Group | None = None) -> Tensor:
    """`token_logps` without a gradient, micro-batch by micro-batch. Returns (B, T) on the CPU.

    cfg      --max_tokens_per_micro_batch is read
    filler   any group, for the filler passes of a sharded policy; only a rank that may have no
             group of its own needs it

    Trap: a sharded policy gathers its weights from all ranks in every pass, also without gradient.
    A rank that stops earlier is missed, and the others wait for ever (test_scoring_does_not_hang).
    """
    micro_batches = micro_batches_of(groups, cfg.max_tokens_per_micro_batch)
    passes = micro_batches
    if is_sharded(policy):
        passes = equally_many_passes(micro_batches, accelerator)

    logps = []
    for micro in passes:
        # A wrapped policy enters autocast by itself; the bare one, DPO's reference, does not.
        with accelerator.autocast():
            if micro is not None:
                logp = token_logps(policy, micro.groups, temperature)  # (b, T_b)
                logps += list(logp.cpu())  # b rows (T_b,), already 0 after their ends
            else:  # a filler pass: it takes part in gathering the weights, its result is not used
                token_logps(policy, filler_groups(filler or groups[0]))
    return padded(logps)  # (B, T)
