"""Ours against TRL on the same work: `python benchmarks/against_trl.py` (needs benchmarks/requirements.txt).

The same tiny model, pictures, prompts, group size, lengths, losses and optimizer go through TRL's GRPOTrainer and
DPOTrainer and through our stages, in turn (ours, TRL, ours, TRL, ...), each time from the same start. Reported are
medians and spread over the steps of all rounds, wall clock and process CPU, and the ratio of each round.

So that the comparison is fair:
    loss      TRL's own first batch (ids, pixels, advantages) is put through our loss: the two values are printed;
              in DPO both see the same pairs in the same order, so whole runs print the same losses
    curve     reward over 30 GRPO steps of each
    reference ours scores it once before training, TRL in each step: our DPO times include that pass
    banned    TRL's sampler draws from all ids; its head gets the same ids masked as ours, or it would draw pictures

    python benchmarks/against_trl.py                     everything, about 12 minutes on two cores
    python benchmarks/against_trl.py --only grpo84       one of grpo84, grpo280, dpo84, dpo280, curve
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import ProcessorMixin, TrainerCallback  # noqa: E402
from models import pair_groups, pairs_at, rows_at  # noqa: E402
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer  # noqa: E402

import dpo_sft  # noqa: E402
import grpo  # noqa: E402
from common import Group, completion_mask, load_model, token_logps  # noqa: E402
from data import PromptStream  # noqa: E402
from prompts import Prompt, mrope_positions  # noqa: E402
from rewards import format_reward, grade  # noqa: E402

BASE = str(ROOT / "toy" / "base")
SETTINGS = replace(grpo.Config(), model=BASE, precision="no")  # 16 prompts x 8, 2 updates a rollout, lr 2e-4
DPO_SETTINGS = replace(dpo_sft.Config(), model=BASE, loss="dpo", batch_pairs=32, lr=1e-4, precision="no")


# --- The work ------------------------------------------------------------------------------------


def user_turn(row: dict) -> list[dict]:
    return [{"role": "user", "content": f"{row['question']}\n{row['instruction']}"}]


class PictureProcessor(ProcessorMixin):
    """Qwen2.5-VL's processor without its video half, which wants torchvision."""

    return_mm_token_type_ids = True

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.image_token_ids = [self.image_token_id]
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        # The words of the tiny vocabulary are apart: Qwen's own processor joins them without blanks.
        count = int(image_inputs["image_grid_thw"][image_idx].prod()) // self.image_processor.merge_size**2
        return self.image_token * count


class MaskedHead(torch.nn.Module):
    """lm_head with the ids masked that our sampler and scorer leave out."""

    def __init__(self, head: torch.nn.Linear, banned: torch.Tensor):
        super().__init__()
        self.weight = head.weight
        self.register_buffer("bias", torch.zeros(len(banned)).masked_fill(banned, -1e4), persistent=False)

    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, self.weight, self.bias)


def start_model():
    """(policy, codec, TRL's model, TRL's processor), the last two around the same weights."""
    policy, codec = load_model(BASE, freeze_vision=True)
    other, _ = load_model(BASE, freeze_vision=True)
    other.vlm.lm_head = MaskedHead(other.vlm.lm_head, other.banned)
    tokenizer = load_model(BASE)[1].tokenizer
    tokenizer.padding_side = "left"  # as GRPOTrainer loads its own
    processor = PictureProcessor(codec.image_processor, tokenizer, chat_template=tokenizer.chat_template)
    return policy, codec, other.vlm, processor


# --- Clocks --------------------------------------------------------------------------------------


class Clock:
    """Wall and process-CPU seconds, by name of a phase."""

    def __init__(self):
        self.phases: dict[str, list[tuple[float, float]]] = {}

    def wrap(self, name: str, function):
        def timed(*args, **kwargs):
            began = time.perf_counter(), time.process_time()
            result = function(*args, **kwargs)
            self.add(name, began)
            return result

        return timed

    def add(self, name: str, began: tuple[float, float]) -> None:
        self.phases.setdefault(name, []).append((time.perf_counter() - began[0], time.process_time() - began[1]))


class StepClock(TrainerCallback):
    """A tick at the end of each optimizer step of a TRL trainer."""

    def __init__(self):
        self.ticks = []

    def on_train_begin(self, *args, **kwargs):
        self.ticks.append((time.perf_counter(), time.process_time()))

    on_step_end = on_train_begin


def differences(ticks, every: int = 1) -> list[tuple[float, float]]:
    ticks = ticks[::every]
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(ticks, ticks[1:])]


# --- GRPO ----------------------------------------------------------------------------------------


def ours_grpo(rows, steps: int) -> dict:
    policy, codec, _, _ = start_model()
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=SETTINGS.lr, betas=(0.9, 0.95), weight_decay=0.0)
    stream = PromptStream(rows, codec, seed=0)
    generator = torch.Generator().manual_seed(0)
    clock, ticks, rewards, lengths = Clock(), [(time.perf_counter(), time.process_time())], [], []
    for _ in range(steps):
        began = time.perf_counter(), time.process_time()
        scored = grpo.rollout(policy, stream, SETTINGS.prompts_per_step, SETTINGS, codec, None, generator)
        clock.add("rollout", began)
        began = time.perf_counter(), time.process_time()
        grpo.train_on(scored, policy, None, optimizer, accelerator, SETTINGS)
        clock.add("update", began)
        ticks.append((time.perf_counter(), time.process_time()))
        rewards.append(statistics.mean(r for s in scored for r in s.rewards))
        lengths.append(statistics.mean(len(c) for s in scored for c in s.group.completions))
    return {"steps": differences(ticks), "phases": clock.phases, "rewards": rewards, "lengths": lengths}


def trl_grpo(rows, steps: int, check_loss: bool = False) -> dict:
    policy, codec, model, processor = start_model()
    per_row = {row["id"]: row for row in rows}
    table = Dataset.from_list([{"prompt": user_turn(row), "image": row["images"][0], "id": row["id"]} for row in rows])
    rewards, lengths, clock, ticks = [], [], Clock(), StepClock()

    def reward(completions, completion_ids, id, **kwargs):
        texts = [turn[0]["content"] for turn in completions]
        values = [format_reward(text) + (grade(per_row[i], text).score or 0.0) for text, i in zip(texts, id)]
        rewards.append(statistics.mean(values))
        lengths.append(statistics.mean(map(len, completion_ids)))
        return values

    size = SETTINGS.prompts_per_step * SETTINGS.group_size
    config = GRPOConfig(
        output_dir="/tmp/trl", use_cpu=True, bf16=False, report_to=[], save_strategy="no", logging_steps=10**6, disable_tqdm=True,
        per_device_train_batch_size=size // SETTINGS.updates_per_rollout, steps_per_generation=SETTINGS.updates_per_rollout,
        gradient_accumulation_steps=1, num_generations=SETTINGS.group_size, max_completion_length=SETTINGS.max_new_tokens,
        temperature=1.0, top_k=0, beta=0.0, epsilon=SETTINGS.clip_low, epsilon_high=SETTINGS.clip_high, loss_type="dapo",
        learning_rate=SETTINGS.lr, lr_scheduler_type="constant", adam_beta2=0.95, weight_decay=0.0, max_grad_norm=1.0,
        gradient_checkpointing=False, max_steps=steps * SETTINGS.updates_per_rollout, seed=0)
    trainer = GRPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=table, processing_class=processor, callbacks=[ticks])
    trainer._generate = clock.wrap("generate", trainer._generate)
    trainer._generate_and_score_completions = clock.wrap("rollout", trainer._generate_and_score_completions)
    losses = []
    if check_loss:
        compute = trainer._compute_loss

        def both(model, inputs):
            value = compute(model, inputs)
            if not losses:
                losses.extend([value.item(), our_loss_of(policy, codec, inputs)])
            return value

        trainer._compute_loss = both
    trainer.train()
    return {"steps": differences(ticks.ticks, SETTINGS.updates_per_rollout), "phases": clock.phases, "rewards": rewards,
            "lengths": lengths, "losses": losses}


def our_loss_of(policy, codec, inputs) -> float:
    """Our clipped loss of TRL's batch: the same ids, pixels, advantages and (on the first update) old log-probs."""
    groups, patches, advantages = [], inputs["image_grid_thw"].prod(-1).tolist(), inputs["advantages"]
    pixels = inputs["pixel_values"].split(patches)
    for i in range(len(advantages)):
        ids = inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()]
        grid = inputs["image_grid_thw"][i : i + 1]
        prompt = Prompt({}, ids, mrope_positions(ids.tolist(), grid, codec.image_token_id, codec.merge), pixels[i], grid)
        groups.append(Group(prompt, [inputs["completion_ids"][i][inputs["completion_mask"][i].bool()]]))
    mask = completion_mask(groups)
    with torch.no_grad():
        logp, _ = token_logps(policy, groups)
    old = inputs.get("old_per_token_logps")
    old = logp if old is None else old[:, : logp.shape[1]]
    terms = grpo.policy_loss(logp, old, advantages, SETTINGS.clip_low, SETTINGS.clip_high)
    return float((terms["loss"] * mask).sum() / inputs["num_items_in_batch"] * SETTINGS.updates_per_rollout)


# --- DPO -----------------------------------------------------------------------------------------


def ours_dpo(pairs, steps: int) -> dict:
    """Whole runs: pictures and text are encoded and the reference is scored inside the measured time, as in TRL's."""
    policy, codec, _, _ = start_model()
    cfg, accelerator = DPO_SETTINGS, Accelerator(cpu=True)
    began = time.perf_counter(), time.process_time()
    clock, part = Clock(), began
    groups = pair_groups(pairs, codec, policy.eos_ids[0])
    clock.add("encode, all pairs", part)
    part = time.perf_counter(), time.process_time()
    reference = dpo_sft.reference_logps(policy, groups, cfg, accelerator, show=False)
    clock.add("reference, all pairs", part)
    once = time.perf_counter() - began[0], time.process_time() - began[1]
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=cfg.lr, weight_decay=0.0)
    ticks, losses = [(time.perf_counter(), time.process_time())], []
    for step in range(steps):
        rows = slice(step * cfg.batch_pairs, (step + 1) * cfg.batch_pairs)
        part = time.perf_counter(), time.process_time()
        sums = dpo_sft.update(policy, optimizer, accelerator, groups[rows], reference[2 * rows.start : 2 * rows.stop], cfg.batch_pairs, cfg)
        clock.add("update", part)
        losses.append(sums["dpo"] / cfg.batch_pairs)
        ticks.append((time.perf_counter(), time.process_time()))
    return {"steps": [(w + once[0] / steps, c + once[1] / steps) for w, c in differences(ticks)], "losses": losses,
            "phases": clock.phases}


class InOrder(DPOTrainer):
    """TRL's trainer, pairs in the order of the data set."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trl_dpo(pairs, steps: int) -> dict:
    _, _, model, processor = start_model()
    table = Dataset.from_list([{
        "prompt": user_turn(p), "images": p["images"], "chosen": [{"role": "assistant", "content": p["chosen"]}],
        "rejected": [{"role": "assistant", "content": p["rejected"]}]} for p in pairs])
    ticks, losses = StepClock(), []
    config = DPOConfig(
        output_dir="/tmp/trl", use_cpu=True, bf16=False, report_to=[], save_strategy="no", logging_steps=10**6, disable_tqdm=True,
        per_device_train_batch_size=DPO_SETTINGS.batch_pairs, gradient_accumulation_steps=1, learning_rate=DPO_SETTINGS.lr,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing=False, max_steps=steps,
        max_length=None, beta=DPO_SETTINGS.beta, loss_type=["sigmoid"], seed=0)
    trainer = InOrder(model=model, ref_model=start_model()[2], args=config, train_dataset=table, processing_class=processor, callbacks=[ticks])
    compute = trainer.compute_loss

    def kept(*args, **kwargs):
        result = compute(*args, **kwargs)
        losses.append(float(result[0] if isinstance(result, tuple) else result))
        return result

    clock = Clock()
    trainer.compute_loss = kept
    trainer.data_collator = clock.wrap("encode", trainer.data_collator)
    trainer.training_step = clock.wrap("forward and backward", trainer.training_step)
    trainer.train()
    return {"steps": differences(ticks.ticks), "losses": losses, "phases": clock.phases}


# --- Report --------------------------------------------------------------------------------------


def summary(rounds: list[dict], skip: int) -> dict:
    """Median and range over all steps of all rounds but each round's first `skip`."""
    walls = [w for r in rounds for w, _ in r["steps"][skip:]]
    cpus = [c for r in rounds for _, c in r["steps"][skip:]]
    phases = {}
    for name in rounds[0]["phases"]:
        calls = [call for r in rounds for call in (r["phases"][name][skip:] or r["phases"][name])]
        for kind, values in (("wall", [w for w, _ in calls]), ("cpu", [c for _, c in calls])):
            phases[f"{name} {kind}_s"] = {"median": statistics.median(values), "range": [min(values), max(values)]}
    return {"wall_s": statistics.median(walls), "wall_range": [min(walls), max(walls)], "cpu_s": statistics.median(cpus),
            "cpu_range": [min(cpus), max(cpus)], "phases": phases, "by_round": [statistics.median(w for w, _ in r["steps"][skip:]) for r in rounds]}


def compare(name: str, ours, trl, rounds: int, skip: int) -> dict:
    """Interleaved rounds of both; prints as it goes."""
    a, b = [], []
    for i in range(rounds):
        a.append(ours())
        b.append(trl())
        print(f"{name} round {i + 1}: ours {statistics.median(w for w, _ in a[-1]['steps'][skip:]):.3f} s a step, "
              f"TRL {statistics.median(w for w, _ in b[-1]['steps'][skip:]):.3f} s", flush=True)
    result = {"ours": summary(a, skip), "trl": summary(b, skip)}
    ratios = [t / o for o, t in zip(result["ours"]["by_round"], result["trl"]["by_round"])]
    result["ratio"] = {"median": statistics.median(ratios), "rounds": ratios,
                       "cpu": result["trl"]["cpu_s"] / result["ours"]["cpu_s"]}
    for key in ("losses", "lengths"):
        if a[0].get(key):
            result[key] = {"ours": a[0][key], "trl": b[0][key]}
    print(f"{name}: {result['ratio']['median']:.2f}x by wall clock ({min(ratios):.2f}-{max(ratios):.2f}), "
          f"{result['ratio']['cpu']:.2f}x by process CPU", flush=True)
    return result


def curve(steps: int = 30) -> dict:
    """Reward over the same number of steps, and the loss of one and the same batch."""
    rows = rows_at(84, 512)
    ours, trl = ours_grpo(rows, steps), trl_grpo(rows, steps, check_loss=True)
    print(f"loss of TRL's first batch: TRL {trl['losses'][0]:.6f}, ours {trl['losses'][1]:.6f}")
    for i in range(4, steps, 5):
        print(f"step {i + 1:>3}: reward ours {statistics.mean(ours['rewards'][i - 4 : i + 1]):.3f}, "
              f"TRL {statistics.mean(trl['rewards'][i - 4 : i + 1]):.3f}")
    return {"same_batch_loss": trl["losses"], "rewards": {"ours": ours["rewards"], "trl": trl["rewards"]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="grpo84, grpo280, dpo84, dpo280 or curve; empty: all")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of each")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; one: two cores waiting for each other are noise")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "against_trl.json"), help="file of the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    work = {"curve": curve}
    for side, steps in ((84, 6), (280, 3)):
        rows = rows_at(side, 128)
        work[f"grpo{side}"] = lambda rows=rows, steps=steps, side=side: compare(
            f"grpo{side}", lambda: ours_grpo(rows, steps), lambda: trl_grpo(rows, steps), args.rounds, skip=1)
        pairs = pairs_at(side, 6 * DPO_SETTINGS.batch_pairs)
        work[f"dpo{side}"] = lambda pairs=pairs, side=side: compare(
            f"dpo{side}", lambda: ours_dpo(pairs, 6), lambda: trl_dpo(pairs, 6), args.rounds, skip=1)
    out = Path(args.out)
    results = json.loads(out.read_text()) if out.exists() else {}
    for name, run in work.items():
        if args.only in ("", name):
            results[name] = run()
            results[name]["date"], results[name]["threads"] = time.strftime("%Y-%m-%d"), args.threads
            out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
