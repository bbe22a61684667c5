"""Settings that several stages share.

A stage's `Config` inherits the classes it needs, adds the settings of its own algorithm, and
overrides a default where the stage differs:

    @dataclass(frozen=True)
    class Config(settings.Inputs, settings.Training):
        beta: float = flag(0.1, "DPO's beta; LLaMA-Factory")
        lr: float = flag(1e-4, "AdamW learning rate; paper: 1e-6")

`--help` prints the first line of each class' docstring as the title of its flags.

A `__post_init__` checks values and raises ValueError naming the flag. It first calls
`super().__post_init__()`, so that the checks of every class run.
"""

from dataclasses import dataclass

from harness.cli import flag, split_names


@dataclass(frozen=True)
class Settings:
    """The base of all: it ends the chain of `super().__post_init__()` calls.

    It is needed because Python's own base class, `object`, has no `__post_init__` to call.
    """

    def __post_init__(self):
        pass

    def check_at_least(self, least: int, *names: str) -> None:
        """Raise ValueError naming the flag if one of these settings is smaller."""
        for name in names:
            if not getattr(self, name) >= least:  # also refuses nan
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least {least}")

    def check_positive(self, name: str, why: str = "") -> None:
        """Raise ValueError naming the flag if this setting is not above 0, and say why."""
        if not getattr(self, name) > 0:  # also refuses nan
            reason = f": {why}" if why else ""
            raise ValueError(f"--{name} {getattr(self, name)}: must be positive{reason}")


@dataclass(frozen=True)
class Inputs(Settings):
    """Prompt and image limits."""

    max_prompt_tokens: int = flag(3000, "longer prompts are skipped and counted, tokens; MM-EUREKA")
    max_pixels: int | None = flag(
        None, "larger images are scaled down to this many pixels, None: the limit of the model"
    )
    allow_unknown: bool = flag(
        False, "go on where over 1 % of the prompts' tokens are words the model does not know; ours"
    )
    revision: str = flag(
        "", "of a hub data set: branch, tag or commit; empty: the newest. config.json keeps it"
    )


@dataclass(frozen=True)
class Columns(Inputs):
    """Columns of the data."""

    columns: str = flag(
        "", "OURS=THEIRS,... as in question=problem,image=picture (see sources/columns.py); ours"
    )


@dataclass(frozen=True)
class Data(Columns):
    """Questions."""

    data: str = flag(
        "toy",
        "`toy`, a folder, a file or a hub name, or several: a.jsonl,b.parquet or with shares "
        "a.jsonl:3,b.parquet:1; paper: Orsta-47k + ViRL39K",
    )
    max_examples: int | None = flag(
        None, "examples of --data to use, None for all (toy: 2048); ours", alias="rows"
    )
    instruction: str | None = flag(
        None, "format instruction after each question, None for the built-in; ours"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_examples is not None:
            self.check_at_least(1, "max_examples")
        if self.columns and self.data == "toy":
            raise ValueError(f"--columns {self.columns}: --data toy has no columns to name; say "
                             "which --data they are of")


@dataclass(frozen=True)
class Sampling(Settings):
    """Sampling."""

    max_new_tokens: int = flag(64, "limit of a completion, tokens; paper: 10240")
    sample_batch: int = flag(
        512, "completions decoded at the same time in each process; ours", alias="sample_rows",
        changeable=True,
    )  # fmt: skip
    compile_decode: bool = flag(
        False, "static cache and a compiled decoding step: for a GPU and many tokens; ours",
        changeable=True,
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "max_new_tokens", "sample_batch")


@dataclass(frozen=True)
class Benchmark(Settings):
    """Public benchmarks (see scoring/)."""

    benchmark: str = flag(
        "",
        "mathvista, mathverse, mathvision, mmmu, mmmu_pro, megabench or toy, in the place of "
        "--data, graded by its authors' rule",
    )
    benchmark_dir: str = flag(
        "", "local copy of its data set, a folder or a file; empty: the one on the hub"
    )
    score: str = flag("", "JSON lines of id and response: score them by --benchmark and stop")
    gold: str = flag("", "golds for --score, rows of the benchmark's data set in a file")
    extraction: str = flag(
        "own", "of --score: `own`, or `official`, the extraction that the file holds"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.score and not self.benchmark:
            raise ValueError("--score: by which rule? --benchmark NAME says it")
        if self.extraction not in ("own", "official"):
            raise ValueError(f"--extraction {self.extraction}: wanted own or official")


@dataclass(frozen=True)
class Generalization(Settings):
    """Generalisation factor."""

    gf_runs: str = flag("", "NAME=RUN_FOLDER, ... of the runs to measure GF over; empty: none")
    gf_id: str = flag(
        "",
        "in-distribution set, by accuracy: what --data takes, or BENCHMARK:FOLDER; empty: the "
        "formats of the embedded world; paper: not stated",
    )
    gf_ood: str = flag("", "NAME=SET, ... the out-of-distribution sets that go with --gf_id")
    gf_items: int = flag(255, "questions per set and checkpoint; paper: not stated")
    gf_beta: float = flag(2.0, "weight of OOD against ID in GF; paper")

    def __post_init__(self):
        super().__post_init__()
        split_names(self.gf_runs, "--gf_runs")
        ood_sets = split_names(self.gf_ood, "--gf_ood")
        taken = {"id", "step", "ood", "gf"} & ood_sets.keys()
        if taken:
            raise ValueError(f"--gf_ood {min(taken)}=...: that name has a meaning of its own in GF")
        if bool(self.gf_id) != bool(self.gf_ood):
            raise ValueError("--gf_id and --gf_ood: GF needs both")


@dataclass(frozen=True)
class OtherModes(Settings):
    """Instead of an evaluation."""

    rescore: str = flag("", "a completions.jsonl: grade it again, print its table and stop")
    ask: str = flag("", "a question: print what each of --models answers, side by side, and stop")
    image: str = flag("", "image file for --ask, or several: a.png,b.png")

    def __post_init__(self):
        super().__post_init__()
        if self.image and not self.ask:
            raise ValueError("--image goes with --ask; a data set names its own images")

@dataclass(frozen=True)
class Evaluation(Columns, Benchmark, Generalization, OtherModes):
    """Questions to measure models on."""

    data: str = flag("toy", "`toy` with its OOD sets, or a folder, file or hub name (see sources/)")
    split: str = flag("test", "split of --data (toy: always held out, a file: all of it)")
    items: int | None = flag(None, "questions per set, the first ones; None for all (toy: 510)")
    instruction: str | None = flag(
        None, "format instruction per question, None for the built-in, `official` for the words of "
        "a benchmark's authors",
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "gf_items")
        if self.items is not None:
            self.check_at_least(1, "items")
        if self.data != "toy":
            if self.gf_runs and not self.gf_id:
                raise ValueError(
                    f"--gf_runs: for --data {self.data} say --gf_id and --gf_ood as well"
                )
            return
        if self.instruction is not None and not (self.benchmark or self.ask):
            raise ValueError("--instruction: each set of --data toy comes with its own")
        if self.columns and not (self.gf_id or self.benchmark):
            raise ValueError(f"--columns {self.columns}: --data toy has no columns to name")

    def has_other_job(self) -> bool:
        """True if one of the flags replaces the evaluation (`scoring/other_jobs.py`)."""
        return bool(self.rescore or self.score or self.ask)


@dataclass(frozen=True)
class Optimizer(Settings):
    """Optimizer and memory."""

    lr: float = flag(2e-4, "AdamW learning rate; paper: 1e-6")
    schedule: str = flag(
        "constant",
        "`constant` or `cosine` after the warm-up; MM-EUREKA: cosine, paper: not stated",
    )
    warmup_steps: int = flag(
        2, "steps (GRPO: rollouts) of linear warm-up; MM-EUREKA: 3 % of the run, paper: not stated"
    )
    weight_decay: float = flag(0.0, "AdamW weight decay; MM-EUREKA, paper: not stated")
    adam_beta1: float = flag(0.9, "AdamW beta1 (decay of the mean gradient); MM-EUREKA")
    adam_beta2: float = flag(0.95, "AdamW beta2 (decay of the mean squared gradient); MM-EUREKA")
    grad_clip: float = flag(1.0, "largest gradient norm; MM-EUREKA, LLaMA-Factory")
    max_skipped: int = flag(
        5, "stop after this many updates in a row without a finite gradient, 0: never; ours",
        changeable=True,
    )  # fmt: skip
    max_tokens_per_micro_batch: int = flag(
        3072, "tokens per forward pass at most, prompts counted once; ours", changeable=True
    )
    gradient_checkpointing: bool = flag(
        False, "recompute layers in backward: less memory, about a third slower; ours",
        changeable=True,
    )  # fmt: skip
    shard: bool = flag(
        False, "each process keeps a part of weights, gradients and optimizer (FSDP2); ours"
    )
    freeze_vision: bool = flag(
        True,
        "leave the vision tower and its projector untrained; MM-EUREKA, LLaMA-Factory, "
        "paper: not stated",
    )
    save_every: int = flag(
        20,
        "steps (GRPO: rollouts) between checkpoints, for --resume and `evaluate.py --gf_runs`",
        changeable=True,
    )
    keep_last: int = flag(
        0, "checkpoints to keep, the newest ones; 0: all, as `--gf_runs` needs them; ours",
        changeable=True,
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "save_every")
        self.check_at_least(0, "keep_last", "max_skipped", "warmup_steps")
        self.check_at_least(0, "weight_decay", "adam_beta1", "adam_beta2")
        self.check_positive("lr")
        self.check_positive("grad_clip")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"--schedule {self.schedule}: wanted constant or cosine")
        if self.shard and getattr(self, "lora_rank", 0):
            raise ValueError(
                "--shard with --lora_rank: not built; LoRA's optimizer is small, and the frozen "
                "base fits one card"
            )


@dataclass(frozen=True)
class Watching(Settings):
    """Watching a run of GRPO."""

    eval_every: int = flag(0, "rollouts between accuracies on held-out questions, 0: off; ours")
    eval_items: int = flag(128, "held-out questions, answered greedily, not trained on; ours")
    sample_every: int = flag(10, "rollouts between records in samples.jsonl", changeable=True)

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "sample_every")
        self.check_at_least(0, "eval_every")


@dataclass(frozen=True)
class Judge(Settings):
    """The judge."""

    judge_url: str = flag(
        "", "OpenAI-compatible endpoint that grades `text` answers; paper: GPT-4o", changeable=True
    )
    judge_model: str = flag("", "model name at --judge_url")
    judge_max_tokens: int = flag(4096, "limit of a reply, tokens: a judge may reason first; ours")
    judge_in_flight: int = flag(
        16, "questions that are asked at the same time; ours", changeable=True
    )
    judge_call_s: float = flag(60.0, "limit of one call, seconds; ours", changeable=True)
    judge_rollout_s: float = flag(
        300.0, "limit of all calls of a rollout (or of a draw of --dynamic_sampling), seconds; "
        "what has no verdict then is left out; ours", changeable=True,
    )  # fmt: skip
    judge_cache: str = flag(
        "runs/judge", "folder of the replies, shared by ranks and runs; ours", changeable=True
    )

    def __post_init__(self):
        super().__post_init__()
        if self.judge_url and not self.judge_model:
            raise ValueError("--judge_url needs --judge_model, the name of the model there")
        if min(self.judge_in_flight, self.judge_call_s, self.judge_rollout_s) <= 0:
            raise ValueError(
                "--judge_in_flight, --judge_call_s and --judge_rollout_s must be positive"
            )


@dataclass(frozen=True)
class RunFolder(Settings):
    """The run and its folder."""

    precision: str = flag(
        "auto", "`no` (fp32), `bf16`, or `auto`: bf16 on a GPU; trained weights are always fp32"
    )
    seed: int = flag(0, "seed of toy questions, order of the data, and sampling; ours")
    run_dir: str = flag("", "folder of the run; empty: runs/STAGE_DATE_TIME")
    resume: bool = flag(
        False, "continue the run in --run_dir with its own settings (on a CPU: to the last bit)"
    )
    overwrite: bool = flag(False, "empty --run_dir first")
    plan: str = flag(
        "", "print memory and time on this device and stop: rtx4090, a100, h100, h200, cpu, h100x8"
    )
    log_with: str = flag(
        "", "`tensorboard` (in the run's folder), `wandb` or `trackio`; empty: none",
        changeable=True,
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if self.precision not in ("no", "bf16", "auto"):
            raise ValueError(
                f"--precision {self.precision}: wanted no, bf16 or auto. fp16 is not supported: "
                "a skipped step would leave its loss scaler in a wrong state"
            )


@dataclass(frozen=True)
class Lora(Settings):
    """LoRA: small matrices beside a frozen base are trained (see model/lora.py)."""

    lora_rank: int = flag(
        0, "rank of the adapters, 0: off, all weights are trained; adapters want a higher --lr: "
        "5e-4 for rank 8 on the embedded world; ours",
    )  # fmt: skip
    lora_alpha: int = flag(32, "what the adapters add is multiplied by alpha / rank; ours")
    lora_targets: str = flag(
        "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        "linears of each decoder layer that get an adapter; ours: all of them",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.lora_rank < 0 or self.lora_alpha <= 0:
            raise ValueError("--lora_rank must not be negative, and --lora_alpha must be positive")
        if self.lora_rank and not self.freeze_vision:
            raise ValueError(
                "--lora_rank freezes all weights, the tower too: leave --no_freeze_vision out"
            )


@dataclass(frozen=True)
class Training(Optimizer, Lora, RunFolder):
    """The run of a stage that trains a model."""
