"""The arithmetic of `--plan` against the live tensors of real passes, and what it says."""

import math
import re
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

import build_prefs
import common
import dpo_sft
import evaluate
import grpo
from common import token_logps
from conftest import LiveBytes, fresh_policy
from harness.plan import parse_device, plan, typical_micro_batch, work_of
from model.lora import add_adapters
from model.memory import ALWAYS, HEAD, LAST_TOKEN, LAYER, PREFILL, Sizes, Work, parts, peak
from model.qwen import Policy
from model.records import Group, Prompt
from model.sampling import sample_groups, sampling_copy

ROOT = Path(__file__).resolve().parent.parent
V = 2000


def random_policy(tmp_path) -> Policy:
    """Widths in Qwen's proportions, several query heads per key head, a frozen tower."""
    policy, _ = fresh_policy()
    config = policy.vlm.config
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.vocab_size = 192, 640, V
    text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads = 4, 6, 2
    text.layer_types = ["full_attention"] * 4
    text.rope_parameters["mrope_section"] = [4, 6, 6]
    config.vision_config.out_hidden_size = 192
    config.save_pretrained(tmp_path)

    vlm = Qwen2_5_VLForConditionalGeneration(config).eval()
    vlm.model.visual.requires_grad_(False)
    return Policy(vlm, policy.eos_ids, torch.zeros(V, dtype=torch.bool))


TARGETS = grpo.Config().lora_targets


def adapt(policy: Policy, rank: int, bf16: bool) -> None:
    """Freeze it, in bf16 where that is asked for, and give it adapters."""
    if bf16:
        for weight in policy.parameters():
            weight.data = weight.data.bfloat16()
    add_adapters(policy, rank, 32, TARGETS, seed=0)


def text_prompt(tokens: int) -> Prompt:
    positions = torch.arange(tokens).expand(3, -1)
    return Prompt({}, torch.randint(10, V, (tokens,)), positions, None, None)


def at(found, moment: str) -> float:
    """Bytes at a moment of the parts that are not there always."""
    return sum(p.bytes for p in found if moment in p.phases and p.phases != ALWAYS)


@pytest.mark.parametrize("S, T, completions", [(100, 200, 5), (400, 60, 2)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("chunk", [60, 10_000])
@pytest.mark.parametrize("rank", [0, 16])
def test_update_is_as_planned(
    tmp_path, monkeypatch, S, T, completions, checkpointing, bf16, chunk, rank
):
    """Forward and backward of a micro-batch, within 10 % of what really lives.

    Gradients of weights are planned apart: here each is dropped as soon as it is there.
    """
    policy = random_policy(tmp_path)
    if rank:
        adapt(policy, rank, bf16)
    policy.gradient_checkpointing = checkpointing
    monkeypatch.setattr(common, "max_logits", lambda _: chunk * V)
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda w: setattr(w, "grad", None))

    group = Group(text_prompt(S), [torch.randint(10, V, (T,)) for _ in range(completions)])
    with LiveBytes(made_before=policy.parameters()) as watch:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            token_logps(policy, [group]).sum().backward()

    work = Work(
        trains=True,
        bf16=bf16,
        ranks=1,
        prompt_tokens=S,
        completion_tokens=T,
        max_pass_tokens=S + completions * T,
        checkpointing=checkpointing,
        max_logits=chunk * V,
        lora_rank=rank,
        lora_targets=TARGETS,
    )
    sizes = Sizes.of(str(tmp_path))
    found = [part for part in parts(sizes, work) if part.name != "gradients"]
    planned = max(at(found, HEAD), at(found, LAYER))
    assert planned == pytest.approx(watch.peak, rel=0.1)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("S, T, prompts", [(300, 40, 4), (50, 300, 2)])
def test_sampling_is_as_planned(tmp_path, S, T, prompts, bf16):
    """Prefill and decoding at full length, within 10 % of what really lives."""
    policy = random_policy(tmp_path)
    policy.eos_ids = [V + 1]  # nothing ends
    if bf16:
        for weight in policy.parameters():
            weight.data = weight.data.bfloat16()

    with LiveBytes(made_before=policy.parameters()) as watch:
        sample_groups(
            policy,
            [text_prompt(S) for _ in range(prompts)],
            8,
            max_new_tokens=T,
            temperature=1.0,
        )
    work = Work(
        trains=False,
        bf16=bf16,
        ranks=1,
        prompt_tokens=S,
        completion_tokens=T,
        sequences=8 * prompts,
        group_size=8,
    )
    found = parts(Sizes.of(str(tmp_path)), work)
    planned = max(at(found, PREFILL), at(found, LAST_TOKEN))
    assert planned == pytest.approx(watch.peak, rel=0.1)


def test_optimizer_is_as_planned(tmp_path):
    """AdamW keeps two numbers a trained weight; a second fp32 model is one number a weight."""
    policy = random_policy(tmp_path)
    trained = [p for p in policy.parameters() if p.requires_grad]
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    state = [x for s in optimizer.state.values() for x in s.values() if x.ndim]

    found = parts(Sizes.of(str(tmp_path)), Work(True, False, 1, 10, 10, max_pass_tokens=20))
    planned = {part.name: part.bytes for part in found}
    assert planned["AdamW's two moments"] == sum(x.nbytes for x in state)
    assert planned["gradients"] == sum(w.nbytes for w in trained)
    assert planned["weights, fp32"] == sum(w.nbytes for w in policy.parameters())


@pytest.mark.parametrize("bf16", [False, True])
def test_lora_weights_are_as_planned(tmp_path, bf16):
    """The frozen base, adapters, their optimizer, and what the copy that samples has of its own."""
    policy = random_policy(tmp_path)
    adapt(policy, 16, bf16)
    sampler = sampling_copy(policy, torch.bfloat16 if bf16 else torch.float32)
    base = {name: p for name, p in policy.named_parameters() if not p.requires_grad}
    places = {p.data_ptr() for p in base.values()}
    own = [p for p in sampler.parameters() if p.data_ptr() not in places]
    adapters = [p for p in policy.parameters() if p.requires_grad]

    more = dict(sequences=4, reference=True, lora_rank=16, lora_targets=TARGETS)
    work = Work(True, bf16, 1, 10, 10, max_pass_tokens=20, **more)
    planned = {part.name: part.bytes for part in parts(Sizes.of(str(tmp_path)), work)}
    assert planned["weights, frozen"] == sum(w.nbytes for w in base.values())
    assert planned["adapters, fp32"] == planned["gradients"] == sum(w.nbytes for w in adapters)
    assert planned["AdamW's two moments"] == 2 * planned["gradients"]
    assert planned["merged copy that samples"] == sum(w.nbytes for w in own)
    assert not any("reference" in name for name in planned), "the base is its own reference"


def test_public_models_are_known():
    """3.75 and 8.29 billion weights; the cache a token in bf16 is 36.9 and 57.3 kB."""
    small, large = (Sizes.of(f"Qwen/Qwen2.5-VL-{n}B-Instruct") for n in (3, 7))
    assert (small.weights / 1e9, large.weights / 1e9) == pytest.approx((3.75, 8.29), abs=0.01)
    assert (small.cache_bytes(1, 2), large.cache_bytes(1, 2)) == (36_864, 57_344)
    with pytest.raises(ValueError, match="--model a/b: --plan needs its config.json"):
        Sizes.of("a/b")


@pytest.mark.parametrize(
    "stage, file, device, needed",
    [
        (grpo, "grpo_3b", "h100", "fits: 69.7"),
        (grpo, "grpo_3b", "h100x8 --sample_batch 24", "fits: 70.1"),
        (dpo_sft, "dpo_sft_3b", "h100x8", "fits: 66.4"),
        (build_prefs, "build_prefs_3b", "h100", "fits: 39.3"),
        (build_prefs, "build_prefs_7b", "h100", "fits: 66.2"),
        (evaluate, "evaluate_3b", "h100", "fits: 39.3"),
        (evaluate, "evaluate_7b", "h100", "fits: 66.2"),
        (grpo, "grpo_7b", "h100", "DOES NOT FIT: 158.9"),
        (grpo, "grpo_7b", "h100x8", "DOES NOT FIT: 189.4"),
        (dpo_sft, "dpo_sft_7b", "h100", "DOES NOT FIT: 144.3"),
        (grpo, "grpo_3b_lora", "rtx4090", "fits: 22.0"),
        (grpo, "grpo_3b_lora", "rtx4090 --no_lora_merge --sample_batch 24", "fits: 20.9"),
        (grpo, "grpo_7b_lora", "h100", "fits: 68.8"),
        (dpo_sft, "dpo_sft_3b_lora", "rtx4090", "fits: 22.0"),
        (dpo_sft, "dpo_sft_7b_lora", "h100", "fits: 37.8"),
        (dpo_sft, "dpo_sft_3b", "h100", "fits: 66.4"),
        (grpo, "grpo_7b_sharded", "h100x8", "fits: 66.5"),
        (dpo_sft, "dpo_sft_7b_sharded", "h100x8", "fits: 44.9"),
    ],
)
def test_the_configs_need_what_readme_says(stage, file, device, needed):
    """Each figure of README's table."""
    flags = f"@configs/{file}.args --plan {device}".split()
    usable = "22.1" if "rtx4090" in device else "73.6"
    assert f"{needed} of {usable} GB" in plan(stage.parse_cli(stage.Config, "", flags))
    assert needed.split()[-1] in (ROOT / "README.md").read_text()


def test_the_replication_table_is_the_plan():
    """Memory and time of each line are what --plan says, and the head of its file says the memory.

    A rollout: minutes of sampling and of training. Pairs: hours of an epoch of 9,000. Stage 2a:
    tokens a second; evaluation needs what it does.
    """
    table = (ROOT / "README.md").read_text().split("planned / measured |")[1].split("\n\n")[0]
    machine, seen = "", 0
    for line in table.splitlines()[2:]:
        first, command, memory, time, *_ = [cell.strip() for cell in line.split("|")[1:]]
        machine = first or machine
        stage, file = re.search(r"(\w+)\.py @(configs/\w+\.args)", command).groups()
        device = "rtx4090" if "24 GB" in machine else "h100x8" if "eight" in machine else "h100"
        stage = {"grpo": grpo, "dpo_sft": dpo_sft, "build_prefs": build_prefs}[stage]
        text = plan(stage.parse_cli(stage.Config, "", [f"@{file}", "--plan", device]))

        needed = re.search(r"fits: ([\d.]+)", text)[1]
        assert memory.startswith(f"{needed} GB / "), line
        assert f"{needed} GB" in (ROOT / file).read_text().split("--model")[0].split("@")[0], file
        if stage is grpo:
            minutes = [float(m) for m in re.findall(r": ([\d.]+) minutes", text)]
            said = [float(m) for m in re.findall(r"[\d.]+", time)[:2]]
            assert said == pytest.approx(minutes, rel=0.03), line
        elif stage is build_prefs:
            rate = re.search(r"sampling: ([\d,]+) tokens a second", text)[1]
            assert time.startswith(f"{rate} tokens/s"), line
            flags = [f"@{file.replace('build_prefs', 'evaluate')}", "--plan", device]
            assert f"fits: {needed}" in plan(evaluate.parse_cli(evaluate.Config, "", flags))
        else:
            hours = 9000 / float(re.search(r"([\d.]+) pairs a second", text)[1]) / 3600
            assert float(re.match(r"[\d.]+", time)[0]) == pytest.approx(hours, rel=0.05), line
        seen += 1
    assert seen == 12


def test_a_pass_holds_whole_groups():
    """Every pair has a prompt of its own: three pairs in 16,384 tokens, not six beside one prompt.

    A group that does not fit as a whole is cut. And no more sequences are sampled at a time than a
    rollout has.
    """
    pairs = Work(True, True, 1, 3000, 1024, group_size=2, max_pass_tokens=16384, never_split=2)
    assert typical_micro_batch(pairs) == (3, 6)
    assert pairs.completions_per_pass == 13, "beside one prompt: the bound for memory"

    group = Work(True, True, 1, 3000, 1024, group_size=8, max_pass_tokens=8192)
    assert typical_micro_batch(group) == (1, 4), "halved, as micro_batches_of does; five fit"
    assert work_of(grpo.Config(sample_batch=512), "cpu", ranks=2).sequences == 16 * 8 // 2


def test_sft_alone_passes_one_response_a_pair():
    """Half of the completions, so twice the pairs a second, and a smaller micro-batch."""
    both = work_of(dpo_sft.Config(), "h100", ranks=1)
    alone = work_of(dpo_sft.Config(loss="sft"), "h100", ranks=1)
    assert (both.never_split, alone.never_split) == (2, 1)
    assert alone.completions_per_pass <= both.completions_per_pass


def number_in_plan(stage, flags: list[str], pattern: str) -> float:
    """The number that a pattern finds in the plan of a stage for an H100."""
    text = plan(stage.parse_cli(stage.Config, "", [*flags, "--plan", "h100"]))
    return float(re.search(pattern, text)[1])


def test_the_host_keeps_the_pairs_of_two_steps():
    """Wrong before: counted as sampled sequences, which this stage has none of: one pair."""
    host = []
    for pairs in ("64", "128"):
        flags = ["@configs/dpo_sft_3b.args", "--batch_pairs", pairs]
        host.append(number_in_plan(dpo_sft, flags, r"memory of the host: (\d+) GB"))
    assert host[1] > host[0] > 6, "Python and CUDA, and the pixels that are kept"


def test_a_reference_takes_time():
    """A KL term is one more forward pass: 2 operations beside the 8 of a recomputed update."""
    minutes = []
    for beta in ("0", "0.1"):
        flags = ["@configs/grpo_3b.args", "--kl_beta", beta]
        minutes.append(number_in_plan(grpo, flags, r"training: ([\d.]+) minutes"))
    without = 1 + 7 / 8 / 4  # logp_old, of seven updates in eight
    assert minutes[1] / minutes[0] == pytest.approx((without + 1 / 4) / without, rel=0.01)


@pytest.mark.parametrize("stage, flags", [
    (grpo, "@configs/grpo_3b.args --sample_batch 8 --max_tokens_per_micro_batch 65536"),
    (grpo, "@configs/grpo_7b.args --sample_batch 1 --max_new_tokens 1024"),
    (dpo_sft, "@configs/dpo_sft_7b.args --batch_pairs 64"),
])  # fmt: skip
def test_a_plan_names_flags_of_its_stage(stage, flags):
    """Wrong before: --max_response_tokens for grpo.py, and nothing where the weights do not fit."""
    text = plan(stage.parse_cli(stage.Config, "", [*flags.split(), "--plan", "h100"]))
    if "DOES NOT FIT" in text:
        helps = re.search(r"what helps: (.*)", text)[1].split(", ")
        assert helps and all(hasattr(stage.Config, flag.split()[0][2:]) for flag in helps)
        assert "--lora_rank" in helps or "3b" in flags


def test_a_plan_refuses_what_the_run_would_refuse():
    """A rollout that cannot be shared out; with 256 devices the plan divided by zero."""
    for devices in ("h100x64", "h100x256"):
        with pytest.raises(ValueError, match="must be a multiple of .* devices"):
            plan(grpo.parse_cli(grpo.Config, "", ["--plan", devices]))


def test_a_plan_names_what_helps(tmp_path):
    """The largest part of the fullest phase first; more processes share the work of a rollout."""
    model = "configs/Qwen2.5-VL-3B-Instruct"
    big = grpo.Config(model=model, prompts_per_step=512, sample_batch=4096, max_new_tokens=4096,
                      plan="a100")
    assert "DOES NOT FIT" in plan(big)
    assert "what helps: --sample_batch" in plan(big)
    with pytest.raises(ValueError, match="--lora_targets qkv: no such linear"):
        plan(grpo.Config(model=model, lora_rank=8, lora_targets="q_proj, qkv", plan="a100"))
    assert parse_device("h100x8") == ("h100", 8)
    for wrong in ("h10", "x8", "h100x", "h100x0"):
        with pytest.raises(ValueError, match=f"--plan {wrong}: wanted"):
            parse_device(wrong)
    assert math.isfinite(peak(parts(Sizes.of(model), Work(False, True, 1, 10, 10))))
