"""Ours against TRL on the same work: `python benchmarks/against_trl.py`.

It needs benchmarks/requirements.txt. The same tiny model, images, prompts, group size, lengths,
losses and optimizer go through TRL's GRPOTrainer and DPOTrainer and through our stages, in turn
(ours, TRL, ours, TRL, ...), each time from the same start. Reported are medians and spread over the
steps of all rounds, wall clock and process CPU, and the ratio of each round.

So that the comparison is fair:
    loss        TRL's own first batch (ids, pixels, advantages) is put through our loss, and the two
                values are printed; in DPO both see the same pairs in the same order, so runs print
                the same losses
    curve       reward over 30 GRPO steps of each
    reference   ours computes it once before training, TRL in each step: our DPO times include it
    suppressed  TRL's sampler draws from all ids; its head gets the same ids masked as ours, or it
                would draw image tokens

    python benchmarks/against_trl.py                    everything, about 12 minutes on two cores
    python benchmarks/against_trl.py --only grpo84      grpo84, grpo280, dpo84, dpo280 or curve
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import ProcessorMixin, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from workloads import ROOT, examples_at, pair_groups, pairs_at

import dpo_sft
import grpo
from common import no_grad_logps, token_logps
from harness.metrics import Stopwatch
from model.loading import load_model
from model.policies import Policies
from model.qwen import mrope_positions
from model.records import Group, Prompt, completion_mask
from rewards import grade, is_in_format
from rewards.groups import Rewarder
from sources.stream import PromptStream

BASE = str(ROOT / "toy" / "base")
SCRATCH = tempfile.mkdtemp(prefix="trl_")  # TRL wants a folder, and is told to save nothing

# 16 prompts x 8, 2 updates a rollout, lr 2e-4
SETTINGS = replace(grpo.Config(), model=BASE, precision="no")
DPO_SETTINGS = replace(
    dpo_sft.Config(), model=BASE, loss="dpo", batch_pairs=32, lr=1e-4, precision="no"
)
TRL_RUN = dict(  # of both of TRL's trainers: on a CPU, silent, nothing that ours does not do
    output_dir=SCRATCH,
    use_cpu=True,
    bf16=False,
    report_to=[],
    save_strategy="no",
    logging_steps=10**6,
    disable_tqdm=True,
    gradient_accumulation_steps=1,
    lr_scheduler_type="constant",
    weight_decay=0.0,
    max_grad_norm=1.0,
    gradient_checkpointing=False,
    seed=0,
)


# --- The work ------------------------------------------------------------------------------------


def user_turn(example: dict) -> list[dict]:
    return [{"role": "user", "content": f"{example['question']}\n{example['instruction']}"}]


class ImageProcessor(ProcessorMixin):
    """Qwen2.5-VL's processor without its video half, which wants torchvision."""

    return_mm_token_type_ids = True

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.image_token_ids = [self.image_token_id]
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        # The words of the tiny vocabulary are apart: Qwen's own processor joins them with no blank.
        patches = int(image_inputs["image_grid_thw"][image_idx].prod())
        return self.image_token * (patches // self.image_processor.merge_size**2)


class MaskedHead(torch.nn.Module):
    """lm_head with the ids masked that our sampler and our log-probs leave out."""

    def __init__(self, head: torch.nn.Linear, suppressed: torch.Tensor):
        super().__init__()
        self.weight = head.weight
        bias = torch.zeros(len(suppressed)).masked_fill(suppressed, -1e4)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, self.weight, self.bias)


def our_start():
    """(policy, encoder)."""
    return load_model(BASE, freeze_vision=True)


def trl_start():
    """(model, processor) around the same weights, for TRL."""
    policy, encoder = load_model(BASE, freeze_vision=True)
    policy.vlm.lm_head = MaskedHead(policy.vlm.lm_head, policy.suppressed)

    tokenizer = encoder.tokenizer
    tokenizer.padding_side = "left"  # as GRPOTrainer loads its own
    processor = ImageProcessor(
        encoder.image_processor, tokenizer, chat_template=tokenizer.chat_template
    )
    return policy.vlm, processor


def our_policies(policy, lr: float, betas: tuple[float, float]) -> Policies:
    """As `build_policies` makes them in one process without mixed precision."""
    trainable = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, betas=betas, weight_decay=0.0)
    return Policies(trained=policy, bare=policy, sampler=policy, optimizer=optimizer)


# --- Clocks --------------------------------------------------------------------------------------


def now() -> tuple[float, float]:
    """Wall and process-CPU seconds."""
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = now()
    return wall - began[0], cpu - began[1]


class Clock:
    """Wall and process-CPU seconds of each call, by name of a phase."""

    def __init__(self):
        self.phases: dict[str, list[tuple[float, float]]] = {}

    def add(self, name: str, began: tuple[float, float]) -> None:
        self.phases.setdefault(name, []).append(since(began))

    def wrap(self, name: str, function):
        """The function, timed."""

        def timed(*args, **kwargs):
            began = now()
            result = function(*args, **kwargs)
            self.add(name, began)
            return result

        return timed


class StepClock(TrainerCallback):
    """A tick at the end of each optimizer step of a TRL trainer."""

    def __init__(self):
        self.ticks = []

    def on_train_begin(self, *args, **kwargs):
        self.ticks.append(now())

    on_step_end = on_train_begin


def differences(ticks, every: int = 1) -> list[tuple[float, float]]:
    """Wall and CPU seconds between ticks."""
    ticks = ticks[::every]
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(ticks, ticks[1:])]


# --- GRPO ----------------------------------------------------------------------------------------


def ours_grpo(examples: list[dict], steps: int) -> dict:
    policy, encoder = our_start()
    policies = our_policies(policy, SETTINGS.lr, betas=(0.9, 0.95))
    accelerator = Accelerator(cpu=True)
    stream = PromptStream(examples, encoder, seed=0)
    generator = torch.Generator().manual_seed(0)
    rewarder = Rewarder(SETTINGS, encoder, policy.eos_ids, judge=None)

    clock, ticks, rewards, lengths = Clock(), [now()], [], []
    for _ in range(steps):
        began = now()
        rollout = grpo.collect_rollout(
            policy, stream, rewarder, generator, accelerator, SETTINGS, progress=0.0,
            sampling_time=Stopwatch(),
        )
        clock.add("rollout", began)

        began = now()
        for batch in grpo.prepare_mini_batches(rollout, policies, accelerator, SETTINGS):
            grpo.update(batch, policies, accelerator, SETTINGS)
        clock.add("update", began)

        ticks.append(now())
        rewards.append(statistics.mean(total for r in rollout for total in r.totals))
        lengths.append(statistics.mean(len(c) for r in rollout for c in r.group.completions))
    return {
        "steps": differences(ticks),
        "phases": clock.phases,
        "rewards": rewards,
        "lengths": lengths,
    }


def trl_grpo_config(steps: int) -> GRPOConfig:
    """SETTINGS in TRL's names."""
    completions = SETTINGS.prompts_per_step * SETTINGS.group_size
    return GRPOConfig(
        **TRL_RUN,
        per_device_train_batch_size=completions // SETTINGS.updates_per_rollout,
        steps_per_generation=SETTINGS.updates_per_rollout,
        num_generations=SETTINGS.group_size,
        max_completion_length=SETTINGS.max_new_tokens,
        temperature=1.0,
        top_k=0,
        beta=0.0,
        epsilon=SETTINGS.clip_low,
        epsilon_high=SETTINGS.clip_high,
        loss_type="dapo",
        learning_rate=SETTINGS.lr,
        adam_beta2=0.95,
        max_steps=steps * SETTINGS.updates_per_rollout,
    )


def trl_grpo(examples: list[dict], steps: int, check_loss: bool = False) -> dict:
    model, processor = trl_start()
    by_id = {example["id"]: example for example in examples}
    table = Dataset.from_list(
        [{"prompt": user_turn(e), "image": e["images"][0], "id": e["id"]} for e in examples]
    )
    rewards, lengths = [], []

    def reward(completions, completion_ids, id, **kwargs):
        totals = []
        for turn, example_id in zip(completions, id):
            text = turn[0]["content"]
            accuracy = grade(by_id[example_id], text).score or 0.0
            totals.append(0.5 * is_in_format(text) + accuracy)
        rewards.append(statistics.mean(totals))
        lengths.append(statistics.mean(map(len, completion_ids)))
        return totals

    clock, ticks = Clock(), StepClock()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=trl_grpo_config(steps),
        train_dataset=table,
        processing_class=processor,
        callbacks=[ticks],
    )
    trainer._generate = clock.wrap("generate", trainer._generate)
    trainer._generate_and_score_completions = clock.wrap(
        "rollout", trainer._generate_and_score_completions
    )
    losses = compare_first_loss(trainer) if check_loss else []
    trainer.train()
    return {
        "steps": differences(ticks.ticks, SETTINGS.updates_per_rollout),
        "phases": clock.phases,
        "rewards": rewards,
        "lengths": lengths,
        "losses": losses,
    }


def compare_first_loss(trainer) -> list[float]:
    """A list that will hold the loss of the trainer's first batch: TRL's, then ours."""
    policy, encoder = our_start()
    compute_loss = trainer._compute_loss
    losses = []

    def both(model, inputs):
        value = compute_loss(model, inputs)
        if not losses:
            losses.extend([value.item(), our_loss_of(policy, encoder, inputs)])
        return value

    trainer._compute_loss = both
    return losses


def our_loss_of(policy, encoder, inputs) -> float:
    """Our clipped loss of TRL's batch.

    The same ids, pixels, advantages and (on the first update) old log-probs.
    """
    advantages, grids = inputs["advantages"], inputs["image_grid_thw"]
    pixel_values = inputs["pixel_values"].split(grids.prod(-1).tolist())

    groups = []
    for i in range(len(advantages)):
        ids = inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()]
        completion = inputs["completion_ids"][i][inputs["completion_mask"][i].bool()]
        grid = grids[i : i + 1]
        positions = mrope_positions(
            ids.tolist(), grid, encoder.image_token_id, encoder.merge_size
        )
        groups.append(Group(Prompt({}, ids, positions, pixel_values[i], grid), [completion]))

    with torch.no_grad():
        logp = token_logps(policy, groups)
    logp_old = inputs.get("old_per_token_logps")
    logp_old = logp if logp_old is None else logp_old[:, : logp.shape[1]]

    mask = completion_mask(groups)
    terms = grpo.policy_loss(
        logp, logp_old, advantages, mask, SETTINGS.clip_low, SETTINGS.clip_high
    )
    tokens = inputs["num_items_in_batch"] / SETTINGS.updates_per_rollout
    return float((terms["loss"] * mask).sum() / tokens)


# --- DPO -----------------------------------------------------------------------------------------


def ours_dpo(pairs: list[dict], steps: int) -> dict:
    """Encoding and the reference are inside the measured time, as in TRL's."""
    policy, encoder = our_start()
    policies = our_policies(policy, DPO_SETTINGS.lr, betas=(0.9, 0.999))
    cfg, accelerator, clock = DPO_SETTINGS, Accelerator(cpu=True), Clock()

    started = began = now()
    groups = pair_groups(pairs, encoder, policy.eos_ids[0])
    clock.add("encode, all pairs", began)
    began = now()
    logp_ref = no_grad_logps(policy, groups, accelerator, cfg).sum(-1).view(-1, 2)
    clock.add("reference, all pairs", began)
    once_wall, once_cpu = since(started)

    ticks, losses = [now()], []
    for step in range(steps):
        part = slice(step * cfg.batch_pairs, (step + 1) * cfg.batch_pairs)
        began = now()
        sums = dpo_sft.update(
            groups[part], logp_ref[part].flatten(), groups[0], policies, accelerator, cfg
        )
        clock.add("update", began)
        losses.append(sums["dpo"] / cfg.batch_pairs)
        ticks.append(now())

    seconds = []
    for wall, cpu in differences(ticks):
        seconds.append((wall + once_wall / steps, cpu + once_cpu / steps))
    return {"steps": seconds, "losses": losses, "phases": clock.phases}


class InOrder(DPOTrainer):
    """TRL's trainer, pairs in the order of the data set."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trl_pair(pair: dict) -> dict:
    """A pair in TRL's columns."""
    return {
        "prompt": user_turn(pair),
        "images": pair["images"],
        "chosen": [{"role": "assistant", "content": pair["chosen"]}],
        "rejected": [{"role": "assistant", "content": pair["rejected"]}],
    }


def trl_dpo_config(steps: int) -> DPOConfig:
    """DPO_SETTINGS in TRL's names."""
    return DPOConfig(
        **TRL_RUN,
        per_device_train_batch_size=DPO_SETTINGS.batch_pairs,
        learning_rate=DPO_SETTINGS.lr,
        max_steps=steps,
        max_length=None,
        beta=DPO_SETTINGS.beta,
        loss_type=["sigmoid"],
    )


def trl_dpo(pairs: list[dict], steps: int) -> dict:
    model, processor = trl_start()
    reference, _ = trl_start()
    ticks, clock, losses = StepClock(), Clock(), []
    trainer = InOrder(
        model=model,
        ref_model=reference,
        args=trl_dpo_config(steps),
        train_dataset=Dataset.from_list([trl_pair(pair) for pair in pairs]),
        processing_class=processor,
        callbacks=[ticks],
    )
    compute_loss = trainer.compute_loss

    def kept(*args, **kwargs):
        result = compute_loss(*args, **kwargs)
        losses.append(float(result[0] if isinstance(result, tuple) else result))
        return result

    trainer.compute_loss = kept
    trainer.data_collator = clock.wrap("encode", trainer.data_collator)
    trainer.training_step = clock.wrap("forward and backward", trainer.training_step)
    trainer.train()
    return {"steps": differences(ticks.ticks), "losses": losses, "phases": clock.phases}


# --- Report --------------------------------------------------------------------------------------


def median_wall(steps: list[tuple[float, float]]) -> float:
    return statistics.median(wall for wall, _ in steps)


def median_and_range(values: list[float]) -> dict:
    return {"median": statistics.median(values), "range": [min(values), max(values)]}


def summary(rounds: list[dict], skip: int) -> dict:
    """Median and range over all steps of all rounds but each round's first `skip`."""
    steps = [step for r in rounds for step in r["steps"][skip:]]
    walls, cpus = [wall for wall, _ in steps], [cpu for _, cpu in steps]

    phases = {}
    for name in rounds[0]["phases"]:
        calls = [call for r in rounds for call in (r["phases"][name][skip:] or r["phases"][name])]
        phases[f"{name} wall_s"] = median_and_range([wall for wall, _ in calls])
        phases[f"{name} cpu_s"] = median_and_range([cpu for _, cpu in calls])
    return {
        "wall_s": statistics.median(walls),
        "wall_range": [min(walls), max(walls)],
        "cpu_s": statistics.median(cpus),
        "cpu_range": [min(cpus), max(cpus)],
        "phases": phases,
        "by_round": [median_wall(r["steps"][skip:]) for r in rounds],
    }


def compare(name: str, ours, trl, rounds: int, skip: int) -> dict:
    """Rounds of both in turn; prints as it goes."""
    our_rounds, trl_rounds = [], []
    for i in range(rounds):
        our_rounds.append(ours())
        trl_rounds.append(trl())
        our_s = median_wall(our_rounds[-1]["steps"][skip:])
        trl_s = median_wall(trl_rounds[-1]["steps"][skip:])
        print(f"{name} round {i + 1}: ours {our_s:.3f} s a step, TRL {trl_s:.3f} s", flush=True)

    result = {"ours": summary(our_rounds, skip), "trl": summary(trl_rounds, skip)}
    by_round = zip(result["ours"]["by_round"], result["trl"]["by_round"])
    ratios = [trl_s / our_s for our_s, trl_s in by_round]
    result["ratio"] = {
        "median": statistics.median(ratios),
        "rounds": ratios,
        "cpu": result["trl"]["cpu_s"] / result["ours"]["cpu_s"],
    }
    for key in ("losses", "lengths"):
        if our_rounds[0].get(key):
            result[key] = {"ours": our_rounds[0][key], "trl": trl_rounds[0][key]}
    print(
        f"{name}: {result['ratio']['median']:.2f}x by wall clock "
        f"({min(ratios):.2f}-{max(ratios):.2f}), {result['ratio']['cpu']:.2f}x by process CPU",
        flush=True,
    )
    return result


def curve(steps: int = 30) -> dict:
    """Reward over the same number of steps, and the loss of one and the same batch."""
    examples = examples_at(84, 512)
    ours, trl = ours_grpo(examples, steps), trl_grpo(examples, steps, check_loss=True)
    trl_loss, our_loss = trl["losses"]
    print(f"loss of TRL's first batch: TRL {trl_loss:.6f}, ours {our_loss:.6f}")

    for end in range(5, steps + 1, 5):
        our_mean = statistics.mean(ours["rewards"][end - 5 : end])
        trl_mean = statistics.mean(trl["rewards"][end - 5 : end])
        print(f"step {end:>3}: reward ours {our_mean:.3f}, TRL {trl_mean:.3f}")
    return {
        "same_batch_loss": trl["losses"],
        "rewards": {"ours": ours["rewards"], "trl": trl["rewards"]},
    }


def compare_grpo(side: int, steps: int, rounds: int) -> dict:
    examples = examples_at(side, 128)
    ours, trl = partial(ours_grpo, examples, steps), partial(trl_grpo, examples, steps)
    return compare(f"grpo{side}", ours, trl, rounds, skip=1)


def compare_dpo(side: int, steps: int, rounds: int) -> dict:
    pairs = pairs_at(side, steps * DPO_SETTINGS.batch_pairs)
    ours, trl = partial(ours_dpo, pairs, steps), partial(trl_dpo, pairs, steps)
    return compare(f"dpo{side}", ours, trl, rounds, skip=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="one part of the work; empty: all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each, in turn")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads; two that wait are noise"
    )
    out = str(ROOT / "benchmarks" / "against_trl.json")
    parser.add_argument("--out", default=out, help="file of the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    work = {
        "curve": curve,
        "grpo84": partial(compare_grpo, 84, 6, args.rounds),
        "dpo84": partial(compare_dpo, 84, 6, args.rounds),
        "grpo280": partial(compare_grpo, 280, 3, args.rounds),
        "dpo280": partial(compare_dpo, 280, 6, args.rounds),
    }
    out = Path(args.out)
    results = json.loads(out.read_text()) if out.exists() else {}
    for name, run in work.items():
        if args.only not in ("", name):
            continue
        measured = {"date": time.strftime("%Y-%m-%d"), "threads": args.threads}
        results[name] = {**run(), **measured}
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
