"""Measure any of the models: accuracy, format, generalisation, pass@k, branching.

The table comes from completions.jsonl, which holds each response with its extracted answer, gold, score
and reason; `--rescore FILE` computes it again from that file, with nothing else.

    format      share of responses in exactly the format that was asked for
    accuracy    share of right answers; sampled at temperature 1 as in training, and greedy
    shuffled    accuracy when each question comes with the picture of another: what guessing earns
    OOD         the same for other formats, other wordings and another task than training saw
    pass@k      chance that one of k samples is right, unbiased: 1 - C(n-c, k) / C(n, k)
    branching   tokens in the 0.95 nucleus at a sampled step, on average (arXiv 2508.07534)
    GF          generalisation factor over a run's checkpoints (SPECS section 3.1):
                (1 + b^2) G_ID G_OOD / (b^2 G_ID + G_OOD), b = 2, G = format now - format at the start

Where this departs from the paper, or fills in what it leaves open:
  1. GF is 0 where a gain is not positive (the formula is undefined there); each OOD format is shown
     beside their mean, since a format that was *rejected* in training can be lost behind a good mean.
  2. Intervals are Wilson's, 95 %, over items.

    accelerate launch evaluate.py --models base=toy/base,zero=runs/zero/model
    accelerate launch evaluate.py --gf_runs hybrid=runs/warmup,sft=runs/sft
"""

import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common import Policy, load_model
from data import encode_all, load_rows, read_all
from prompts import Codec, Prompt
from rewards import Judge, format_reward, grade
from rollout import is_truncated, sample_groups
from runs import Run, flag, gather_objects, make_accelerator, parse_cli, read_jsonl, run_stage
from toy import world


@dataclass(frozen=True)
class Config:
    models: str = flag("base=toy/base", "NAME=FOLDER, ... of the models to compare; the first is the one to beat")
    gf_runs: str = flag("", "NAME=RUN_FOLDER, ... whose checkpoints are measured for GF; empty: none")
    data: str = flag("toy", "`toy` with its OOD sets, or a folder, file or hub name in the format of data.py")
    split: str = flag("test", "split of --data (toy: always held out)")
    items: int = flag(510, "questions of each set, the first ones of a file; ours")
    gf_items: int = flag(255, "questions of each set for each checkpoint; paper: not stated")
    instruction: str | None = flag(None, "format instruction after each question, None for the built-in; ours")
    temperature: float = flag(1.0, "of sampled accuracy, pass@k and branching; paper: not stated")
    pass_items: int = flag(120, "questions for pass@k, 0: leave it out")
    pass_samples: int = flag(16, "samples a question for pass@k (n); paper: not stated, k up to 64")
    max_new_tokens: int = flag(64, "limit of a response, tokens; paper: 10240")
    max_prompt_tokens: int = flag(3000, "longer prompts are skipped and counted, tokens")
    max_pixels: int | None = flag(None, "pictures are scaled down to this many pixels, None: as the model says")
    sample_rows: int = flag(512, "rows decoded at a time in each process; ours")
    compile_decode: bool = flag(False, "static cache and a compiled decoding step: for a GPU and many tokens; ours")
    gf_beta: float = flag(2.0, "weight of OOD against ID in GF; paper")
    judge_url: str = flag("", "OpenAI-compatible endpoint that grades `text` answers; paper: GPT-4o")
    judge_model: str = flag("", "model name at --judge_url")
    rescore: str = flag("", "a completions.jsonl: print its table and stop")
    precision: str = flag("auto", "`no` (fp32), `bf16`, or `auto`: bf16 on a GPU")
    seed: int = flag(7, "of questions and sampling; ours")
    run_dir: str = flag("", "folder to write; empty: runs/evaluate_DATE_TIME")
    resume: bool = flag(False, "not used here: this stage starts over")
    overwrite: bool = flag(False, "empty --run_dir first")
    log_with: str = flag("", "a tracker that accelerate knows; empty: none")

    def __post_init__(self):
        if self.resume:
            raise ValueError("--resume: evaluate.py starts over, use --overwrite")
        if self.gf_runs and self.data != "toy":
            raise ValueError(f"--gf_runs: GF needs the OOD formats of --data toy, not {self.data}")
        if self.instruction is not None and self.data == "toy":
            raise ValueError("--instruction: each set of --data toy comes with its own")
        for name in ("models", "gf_runs"):
            if any("=" not in part for part in filter(None, getattr(self, name).split(","))):
                raise ValueError(f"--{name} {getattr(self, name)}: wanted NAME=FOLDER,NAME=FOLDER")


# --- 1. Metrics: pure functions --------------------------------------------------------------------


def wilson(successes: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share. Unlike mean +- 2 sd it stays inside [0, 1] and is not empty at 0 or 1.

    >>> [round(x, 3) for x in wilson(10, 10)]
    [0.722, 1.0]
    """
    if count == 0:
        return 0.0, 1.0
    p, d = successes / count, 1 + z * z / count
    middle = (p + z * z / (2 * count)) / d
    half = z / d * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, drawn without putting back, hold one of the c right ones.

    Trap: 1 - (1 - c/n)^k is biased, too low (test_pass_at_k_unbiased). Source: Codex (arXiv 2107.03374) eq. 1."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def nucleus_size(logits: Tensor, p: float = 0.95) -> Tensor:
    """(rows, V) -> (rows,) how many of the likeliest tokens it takes to reach probability p; at least 1."""
    probs = logits.softmax(-1).sort(-1, descending=True).values
    return ((probs.cumsum(-1) - probs) < p).sum(-1)


def generalization_factor(gain_id: float, gain_ood: float, beta: float = 2.0) -> float:
    """F-beta of the two gains; 0 where one is not positive. SPECS section 3.1."""
    if gain_id <= 0 or gain_ood <= 0:
        return 0.0
    return (1 + beta**2) * gain_id * gain_ood / (beta**2 * gain_id + gain_ood)


# --- 2. Sets -------------------------------------------------------------------------------------

TOY_FORMATS = {f.instruction: f for f in [world.THINK, *world.TAGS, world.BRACKETS, world.LAST_LINE, world.PLAIN]}


def evaluation_sets(cfg: Config, items: int, formats_only: bool = False, warn=print) -> dict[str, list[dict]]:
    """Held-out rows: `id` as in training, and what differs from it in format, wording or task."""
    if cfg.data != "toy":
        rows = load_rows(cfg.data, split=cfg.split, count=items, instruction=cfg.instruction)
        return {"id": read_all(rows, warn)}
    sets = {"id": world.rows(items, cfg.seed, held_out=True)}
    for name, formats in world.OOD_FORMATS.items():
        sets[name] = world.rows(items, cfg.seed, held_out=True, formats=formats)
    if not formats_only:
        sets["wording"] = world.rows(items, cfg.seed, held_out=True, unseen_wording=True)
        sets["task"] = world.rows(items, cfg.seed, held_out=True, kinds=(world.OOD_KIND,))
    return sets


def is_in_format(row: dict, response: str) -> bool:
    """The response has exactly the format that its row asks for."""
    form = TOY_FORMATS.get(row["instruction"])
    return format_reward(response) > 0 if form is None or row["format"] == "think" else form.obeyed_by(response)


def with_wrong_pictures(rows: list[dict]) -> list[dict]:
    """Each question with the pictures of another, a third of the list away."""
    shift = max(1, len(rows) // 3)
    return [{**row, "images": rows[(i + shift) % len(rows)]["images"]} for i, row in enumerate(rows)]


# --- 3. Responses to records -----------------------------------------------------------------------


def respond(policy: Policy, codec: Codec, prompts: list[Prompt], cfg: Config, judge, label: dict, *, temperature: float,
            samples: int = 1, branching: bool = False, title: str = "") -> list[dict]:
    """Sample and grade; one record a response, complete enough to score it again."""
    generator = torch.Generator(policy.device).manual_seed(cfg.seed)
    records, at_a_time = [], max(1, cfg.sample_rows // samples)
    for i in tqdm(range(0, len(prompts), at_a_time), desc=title, leave=False, disable=not title):
        groups, observed = sample_groups(
            policy, prompts[i : i + at_a_time], samples, max_new_tokens=cfg.max_new_tokens, temperature=temperature,
            generator=generator, max_rows=cfg.sample_rows, observe=nucleus_size if branching else None,
            static=cfg.compile_decode)
        rows = [(g.prompt.row, c) for g in groups for c in g.completions]
        for (row, completion), sizes in zip(rows, observed):
            text = codec.decode(completion)
            verdict = grade(row, text, judge)
            records.append({**label, "id": row["id"], "kind": row["kind"], "question": row["question"],
                            "instruction": row["instruction"], "format": row["format"], "gold": row["answer"],
                            "answer_type": row["answer_type"], "choices": row["choices"], "response": text,
                            "extracted": verdict.extracted, "score": verdict.score, "reason": verdict.reason,
                            "in_format": is_in_format(row, text), "tokens": len(completion),
                            "truncated": is_truncated(completion, policy.eos_ids), "nucleus_sum": sum(sizes)})
    return records


def measure(name: str, policy, codec, sets: dict[str, list[Prompt]], cfg: Config, judge, show: bool,
            ranks: int = 1) -> list[dict]:
    """All records of one model, over this rank's share of each set."""
    records = []
    for set_name, prompts in sets.items():
        for mode, temperature in (("sampled", cfg.temperature), ("greedy", 0.0)):
            if mode == "greedy" and set_name != "id":
                continue
            records += respond(policy, codec, prompts, cfg, judge, {"model": name, "set": set_name, "mode": mode},
                               temperature=temperature, branching=(set_name, mode) == ("id", "sampled"),
                               title=f"{name}: {set_name} {mode}" if show else "")
    if cfg.pass_items:
        share_of_rank = -(-cfg.pass_items // ranks)
        records += respond(policy, codec, sets["id"][:share_of_rank], cfg, judge,
                           {"model": name, "set": "id", "mode": "pass"}, temperature=cfg.temperature,
                           samples=cfg.pass_samples, title=f"{name}: pass@k" if show else "")
    return records


# --- 4. Records to a report ------------------------------------------------------------------------


def share(records: list[dict], key: str) -> dict:
    """Mean and interval of a 0/1 field; records that could not be scored (None) are left out and counted."""
    values = [float(r[key]) for r in records if r[key] is not None]
    low, high = wilson(sum(values), len(values))
    return {"mean": sum(values) / max(1, len(values)), "low": low, "high": high, "count": len(values),
            "unscored": len(records) - len(values)}


def guessing_rate(records: list[dict]) -> float:
    """Accuracy of the best blind guess: for each kind of question its most common answer."""
    answers = defaultdict(Counter)
    for r in records:
        answers[r["kind"]][r["gold"]] += 1
    return sum(max(c.values()) for c in answers.values()) / max(1, sum(c.total() for c in answers.values()))


def summarise(records: list[dict]) -> dict:
    """The report of one model, from its records alone."""
    report, by = {}, defaultdict(list)
    for r in records:
        by[r["set"], r["mode"]].append(r)
    for (name, mode), rows in by.items():
        if mode != "pass":
            report[f"{name} {mode}"] = {
                "format": share(rows, "in_format"), "accuracy": share(rows, "score"),
                "length": sum(r["tokens"] for r in rows) / len(rows),
                "truncated": sum(r["truncated"] for r in rows) / len(rows)}
    sampled = by["id", "sampled"]
    if sampled and any(r["nucleus_sum"] for r in sampled):
        report["branching"] = sum(r["nucleus_sum"] for r in sampled) / sum(r["tokens"] for r in sampled)
    if sampled:
        report["guessing"] = guessing_rate(sampled)
    tries = defaultdict(list)
    for r in by["id", "pass"]:
        tries[r["id"]].append(r["score"] == 1.0)
    if tries:
        n = min(map(len, tries.values()))
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= n]
        report["pass@k"] = {str(k): sum(pass_at_k(len(t), sum(t), k) for t in tries.values()) / len(tries) for k in ks}
    return report


def format_table(reports: dict[str, dict]) -> str:
    """The reports as lines of text, one model a line, percentages with their interval."""

    def cell(report: dict, key: str, field: str) -> str:
        if key not in report:
            return "-"
        s = report[key][field]
        return f"{100 * s['mean']:.1f} [{100 * s['low']:.0f},{100 * s['high']:.0f}]"

    columns = [("format", "id sampled", "format"), ("accuracy", "id sampled", "accuracy"),
               ("greedy acc.", "id greedy", "accuracy"), ("shuffled acc.", "shuffled sampled", "accuracy"),
               ("other words", "wording sampled", "accuracy"), ("other task", "task sampled", "accuracy")]
    ood = [(name, f"{name} sampled", "format") for name in world.OOD_FORMATS]
    lines = []
    for title, chosen in (("", columns), ("format obeyed, OOD", ood)):
        chosen = [c for c in chosen if any(c[1] in r for r in reports.values())]
        if chosen:
            lines.append(f"{title:<20}" + "".join(f"{c[0]:>15}" for c in chosen) + ("" if title else f"{'length':>8}"))
        for name, report in reports.items():
            if chosen:
                length = f"{report['id sampled']['length']:>8.1f}" if not title and "id sampled" in report else ""
                lines.append(f"  {name:<18}" + "".join(f"{cell(report, *c[1:]):>15}" for c in chosen) + length)
    for name, report in reports.items():
        if "pass@k" in report:
            passes = "  ".join(f"@{k} {100 * v:.1f}" for k, v in report["pass@k"].items())
            lines.append(f"  {name:<18}pass {passes}    branching {report['branching']:.2f} tokens")
    guess = next((r["guessing"] for r in reports.values() if "guessing" in r), None)
    if guess is not None:
        lines.append(f"  best blind guess: {100 * guess:.1f} % (the most common answer to each kind of question)")
    return "\n".join(lines)


# --- 5. Generalisation over a run -------------------------------------------------------------------


def measure_gf(run_folder: Path, cfg: Config, sets_of, show: bool, device) -> list[dict]:
    """One entry a checkpoint of a run, the start model first: format on ID and each OOD format, gains, GF."""
    config = run_folder / "config.json"
    if not config.is_file():
        raise ValueError(f"--gf_runs {run_folder}: no config.json, not a run folder")
    folders = [Path(json.loads(config.read_text())["model"]), *sorted(run_folder.glob("step_*"))]
    curve = []
    for step, folder in enumerate(tqdm(folders, desc=f"GF of {run_folder.name}", leave=False, disable=not show)):
        policy, codec = load_model(str(folder), flag="--gf_runs", freeze_vision=True, max_pixels=cfg.max_pixels)
        policy.to(device)
        scores = {}
        for name, prompts in sets_of(codec).items():
            records = respond(policy, codec, prompts, cfg, None, {}, temperature=cfg.temperature)
            scores[name] = share(records, "in_format")["mean"]
        ood = [v for k, v in scores.items() if k != "id"]
        entry = {"step": 0 if step == 0 else int(folder.name.split("_")[1]), **scores,
                 "ood": sum(ood) / max(1, len(ood))}
        first = curve[0] if curve else entry
        entry["gf"] = generalization_factor(entry["id"] - first["id"], entry["ood"] - first["ood"], cfg.gf_beta)
        curve.append(entry)
    return curve


# --- 6. Pictures ---------------------------------------------------------------------------------


def plot_report(reports: dict[str, dict], curves: dict[str, list[dict]], file: Path) -> None:
    """What each stage did: shares with intervals, pass@k, and GF over the checkpoints."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = [("format", "id sampled", "format"), ("accuracy", "id sampled", "accuracy"),
            ("accuracy,\nshuffled pictures", "shuffled sampled", "accuracy"),
            ("other tags\n(format)", "tags sampled", "format"), ("brackets\n(format)", "brackets sampled", "format"),
            ("last line\n(format)", "last_line sampled", "format"),
            ("other task\n(accuracy)", "task sampled", "accuracy")]
    bars = [b for b in bars if any(b[1] in r for r in reports.values())]
    panels = 1 + any("pass@k" in r for r in reports.values()) + bool(curves)
    figure, axes = plt.subplots(1, panels, figsize=(6 + 3.4 * (panels - 1), 3.4), layout="constrained", squeeze=False,
                                width_ratios=[2.0] + [1.0] * (panels - 1))
    axes, width = list(axes[0]), 0.8 / max(1, len(reports))
    for i, (name, report) in enumerate(reports.items()):
        cells = [report.get(key, {}).get(field) for _, key, field in bars]
        x = [j + (i - (len(reports) - 1) / 2) * width for j, c in enumerate(cells) if c]
        cells = [c for c in cells if c]
        errors = [[100 * (c["mean"] - c["low"]) for c in cells], [100 * (c["high"] - c["mean"]) for c in cells]]
        axes[0].bar(x, [100 * c["mean"] for c in cells], width, label=name, yerr=errors, error_kw={"lw": 0.7})
    axes[0].set(xticks=range(len(bars)), title="held-out questions, sampled, 95 % intervals", ylabel="%", ylim=(0, 105))
    axes[0].set_xticklabels([b[0] for b in bars], fontsize=7)
    axes[0].legend(fontsize=8)
    if any("pass@k" in r for r in reports.values()):
        for name, report in reports.items():
            ks = report.get("pass@k", {})
            axes[1].plot([int(k) for k in ks], [100 * v for v in ks.values()], marker="o", ms=3, label=name)
        axes[1].set(title="pass@k", xlabel="k", ylabel="%")
        axes[1].set_xscale("log", base=2)
        axes[1].xaxis.set_major_formatter(lambda k, _: f"{k:g}")
        axes[1].legend(fontsize=8)
    if curves:
        for name, curve in curves.items():
            steps = [e["step"] for e in curve]
            line = axes[-1].plot(steps, [100 * e["gf"] for e in curve], marker="o", ms=3, label=f"{name}: GF")
            axes[-1].plot(steps, [100 * e["ood"] for e in curve], ls=":", color=line[0].get_color(), label="OOD format")
        axes[-1].set(title="generalisation factor", xlabel="step of the cold start", ylabel="%")
        axes[-1].legend(fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


# --- 7. Main -------------------------------------------------------------------------------------


def named(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in filter(None, text.split(",")))


def read_records(file: str) -> dict[str, list[dict]]:
    """Records of a completions.jsonl by model."""
    models = defaultdict(list)
    for record in read_jsonl(Path(file)):
        models[record["model"]].append(record)
    return models


def main(cfg: Config) -> None:
    if cfg.rescore:
        if not Path(cfg.rescore).is_file():
            raise ValueError(f"--rescore {cfg.rescore}: no such file")
        print(format_table({name: summarise(records) for name, records in read_records(cfg.rescore).items()}))
        return
    accelerator = make_accelerator(cfg)
    run = Run(cfg, "evaluate", accelerator, [])
    ranks, rank = accelerator.num_processes, accelerator.process_index
    judge = Judge(cfg.judge_url, cfg.judge_model, run.folder / "judge") if cfg.judge_url else None
    rows = evaluation_sets(cfg, cfg.items, warn=run.warn)
    if any(row["images"] for row in rows["id"]):
        rows["shuffled"] = with_wrong_pictures(rows["id"])
    gf_rows = evaluation_sets(cfg, cfg.gf_items, formats_only=True) if cfg.gf_runs else {}
    encoded: dict[str, dict[str, list[Prompt]]] = {}

    def prompts_of(codec: Codec, sets: dict[str, list[dict]], part: slice) -> dict[str, list[Prompt]]:
        """Encoded once for all models that share tokenizer and image processor."""
        tokenizer = codec.tokenizer
        key = f"{id(sets)} {tokenizer.backend_tokenizer.to_str()} {tokenizer.chat_template} {codec.image_processor}"
        if key not in encoded:
            encoded[key] = {name: encode_all(rows[part], codec, cfg.max_prompt_tokens, run.warn)
                            for name, rows in sets.items()}
        return encoded[key]

    with open(run.folder / "completions.jsonl", "w") if run.writes else open("/dev/null", "w") as file:
        for name, folder in named(cfg.models).items():
            policy, codec = load_model(folder, flag="--models", freeze_vision=True, max_pixels=cfg.max_pixels)
            with accelerator.autocast():
                prompts = prompts_of(codec, rows, slice(rank, None, ranks))
                records = measure(name, policy.to(accelerator.device), codec, prompts, cfg, judge, run.writes, ranks)
            for record in [r for part in gather_objects(records, accelerator) for r in part]:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    curves = {}
    if run.writes:  # small: one process does it
        for name, folder in named(cfg.gf_runs).items():
            with accelerator.autocast():
                curves[name] = measure_gf(Path(folder), cfg, lambda codec: prompts_of(codec, gf_rows, slice(None)), True,
                                          accelerator.device)
        # Scored from the file, so that the file is known to suffice.
        reports = {name: summarise(records) for name, records in read_records(run.folder / "completions.jsonl").items()}
        (run.folder / "report.json").write_text(json.dumps({"models": reports, "gf": curves}, indent=2) + "\n")
        plot_report(reports, curves, run.folder / "report.png")
        print(format_table(reports))
        for name, curve in curves.items():
            for e in curve:
                shares = "  ".join(f"{k} {100 * v:5.1f}" for k, v in e.items() if k != "step")
                print(f"  {name:<18}step {e['step']:>4}  {shares}")
        print(f"wrote {run.folder}/report.json, completions.jsonl, report.png")
    run.finish()


if __name__ == "__main__":
    run_stage(main, parse_cli(Config, __doc__))
