"""What lies in the memory of one GPU, by arithmetic: `harness/plan.py` prints it before a run.

    the model's config    -> Sizes        numbers of weights, widths; no weight is loaded
    the flags of a stage  -> Work         how many sequences, prompts and tokens at a time
    both                  -> list[Part]   bytes, and the phases of a run in which they are there

Weights are there always, the cache only while tokens are sampled, activations only while weights
are updated. What is needed is the sum in the fullest of five phases. With --shard each of R ranks
keeps 1/R of what is trained and of the reference, and beside it, while weights are updated, what is
gathered for use (`sharding.py`).

A *pass* is the forward and backward of one micro-batch. Lengths are the limits of the flags: the
longest prompt, and as many of the longest completions as fit beside it. Shorter completions can
fill the limit better, and each repeats its prompt's keys. With seven of 1,792 tokens in place of
one of 10,240, beside a prompt of 3,000 (configs/grpo_7b_lora.args), a layer keeps 25 % more.

Left out: what the vision tower computes. Frozen, it keeps nothing for the backward pass. Trained
(--no_freeze_vision), it keeps its activations, with checkpointing too: by the same arithmetic some
6 GB for each image of 640 tokens. Its weights, gradients and moments are counted.

The arithmetic is compared with the live tensors of a small model's passes on a CPU, without images,
to 10 % (test_update_is_as_planned, test_sampling_is_as_planned,
test_a_sharded_update_is_as_planned).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from model.decoding import GROWTH
from model.lora import target_names
from model.qwen import model_class

FP32, BF16 = 4, 2  # bytes of a number
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


# --- 1. The model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """What a model is made of; numbers of weights, and widths."""

    weights: int  # all of them
    vision: int  # of these, the tower and its projector
    layers: int
    layer_weights: int  # of one decoder layer
    hidden: int  # D
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int  # V
    tied: bool  # the head's weights are the embedding table
    linears: dict[str, tuple[int, int]]  # name -> (out, in) of each linear of one decoder layer

    @classmethod
    def of(cls, name: str, flag: str = "--model") -> "Sizes":
        """From the config.json of a folder, or of a hub name that `configs/` knows.

        Raises ValueError naming the flag if there is none.
        """
        config = read_config(name, flag)
        with torch.device("meta"):  # the shapes of all weights, and no memory
            vlm = model_class(config)(config)

        text = config.text_config
        linears = {}
        for path, module in vlm.model.language_model.layers[0].named_modules():
            if isinstance(module, torch.nn.Linear):
                linears[path.rpartition(".")[2]] = (module.out_features, module.in_features)

        return cls(
            weights=sum(p.numel() for p in vlm.parameters()),
            vision=sum(p.numel() for p in vlm.model.visual.parameters()),
            layers=text.num_hidden_layers,
            layer_weights=sum(p.numel() for p in vlm.model.language_model.layers[0].parameters()),
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
            tied=bool(config.tie_word_embeddings),
            linears=linears,
        )

    def cache_bytes(self, tokens: int, bytes_each: int) -> int:
        """Keys and values of so many tokens, in all layers."""
        return 2 * tokens * self.layers * self.kv_heads * self.head_dim * bytes_each


def read_config(name: str, flag: str = "--model") -> "transformers.PreTrainedConfig":
    """The config.json of a folder, or of a hub name that `configs/` knows.

    Raises ValueError naming the flag if there is none.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file():
        folder = CONFIGS / folder.name
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in CONFIGS.glob("*/config.json")))
        raise ValueError(
            f"{flag} {name}: --plan needs its config.json; give a folder that has one. "
            f"Known by name: {known}"
        )
    return transformers.AutoConfig.from_pretrained(folder)


# --- 2. What a stage does with it --------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What is in memory at the same time, from the flags of a stage."""

    trains: bool
    bf16: bool  # autocast in training, bf16 weights in sampling
    ranks: int
    prompt_tokens: int  # of the longest prompt
    completion_tokens: int  # of the longest completion
    image_tokens: int = 0  # the most image tokens in a prompt
    sequences: int = 0  # decoded at the same time; 0: this stage does not sample
    group_size: int = 1  # completions that share a prompt: G, or the 2 of a pair
    max_pass_tokens: int = 0  # limit of a micro-batch, --max_tokens_per_micro_batch
    never_split: int = 1  # completions that must be in one micro-batch: 2 for a pair
    freeze_vision: bool = True
    checkpointing: bool = False
    reference: bool = False  # a second, frozen model
    lora_rank: int = 0  # 0: all weights are trained
    lora_targets: str = ""  # linears of a decoder layer that have an adapter, with commas
    lora_merge: bool = True  # a copy with merged adapters samples
    shard: bool = False  # over all ranks
    max_logits: int = 2**27

    @property
    def bytes_each(self) -> int:
        """Bytes of one number in the activations and in the cache."""
        return BF16 if self.bf16 else FP32

    @property
    def has_sampling_copy(self) -> bool:
        """Whether a copy of the policy samples; with LoRA see `lora_parts`."""
        return self.trains and self.sequences > 0 and (self.bf16 or self.shard)

    @property
    def completions_per_pass(self) -> int:
        """How many longest completions fit beside one longest prompt, at least `never_split`.

        It may be more than a group has. The others then have prompts of their own, which are
        counted as if they took no room. For what is typical see `plan.typical_micro_batch`.
        """
        free = self.max_pass_tokens - self.prompt_tokens
        return max(self.never_split, free // self.completion_tokens)

    @property
    def tokens_per_pass(self) -> int:
        """Tokens of a pass: one longest prompt, and `completions_per_pass` longest completions.

        The last token of a completion is no input: nothing is predicted from it.
        """
        return self.prompt_tokens + self.completions_per_pass * (self.completion_tokens - 1)

    @property
    def flops_per_weight_and_token(self) -> int:
        """Floating-point operations of an update, for each weight and each token.

        2 in the forward pass, 2 for the input's gradient, 2 for the weight's gradient if it is
        trained, and 2 more if checkpointing repeats the forward pass: 6 or 8, with LoRA 4 or 6.
        """
        return 2 + 2 + (0 if self.lora_rank else 2) + (2 if self.checkpointing else 0)


# --- 3. What lies in the memory of one GPU -----------------------------------------------------

# Phases in which memory may be fullest. Sampling: the prompts are passed through the model, or the
# last tokens are sampled. Updating: the backward pass is in the head, in a decoder layer, or at its
# end, where a sharded model averages the gradients of its *root*: FSDP's word for the weights that
# are in no decoder layer.
PREFILL, LAST_TOKEN, HEAD, LAYER, ROOT = "prefill", "last token", "head", "layer", "root"
BACKWARD = (HEAD, LAYER)  # activations are there; by ROOT they are gone
PHASES = (PREFILL, LAST_TOKEN, HEAD, LAYER, ROOT)
ALWAYS = PHASES

# Flags that make a micro-batch smaller. `--plan` names those that the stage has.
PASS_FLAGS = ("--max_tokens_per_micro_batch", "--max_response_tokens", "--max_new_tokens")


@dataclass(frozen=True)
class Part:
    """Bytes on one GPU, and the phases in which they are there."""

    name: str
    bytes: float
    phases: tuple[str, ...]
    smaller_by: tuple[str, ...] = ()  # flags that make it smaller


def parts(sizes: Sizes, work: Work) -> list[Part]:
    """All parts of one GPU's memory."""
    all_parts = weight_parts(sizes, work)
    if work.sequences:
        all_parts += sampling_parts(sizes, work)
    if work.trains:
        all_parts += update_parts(sizes, work)
    if work.trains and work.shard:
        all_parts += gathered_parts(sizes, work)
    return [part for part in all_parts if part.bytes]


def total(all_parts: list[Part], phase: str) -> float:
    """Bytes in one phase."""
    return sum(part.bytes for part in all_parts if phase in part.phases)


def peak(all_parts: list[Part]) -> float:
    """The most bytes in any phase."""
    return max(total(all_parts, phase) for phase in PHASES)


def weight_parts(sizes: Sizes, work: Work) -> list[Part]:
    """Weights, and what an optimizer keeps for each of them."""
    if not work.trains:
        return [Part("weights", work.bytes_each * sizes.weights, ALWAYS)]
    if work.lora_rank:
        return lora_parts(sizes, work)

    frozen = sizes.vision if work.freeze_vision else 0  # whole on each rank
    trained = sizes.weights - frozen
    shards = work.ranks if work.shard else 1
    # From the second micro-batch of a step on, all gradients are there from the start. Alone or
    # sharded, a process frees them after the step; DDP keeps the buckets that hold them.
    gradient_phases, smaller_by = BACKWARD, ("--lora_rank",)
    if work.shard:
        gradient_phases = (*BACKWARD, ROOT)
    elif work.ranks > 1:  # DDP
        gradient_phases, smaller_by = ALWAYS, ("--shard", "--lora_rank")

    kept = [
        Part("weights, fp32", FP32 * (trained / shards + frozen), ALWAYS, smaller_by),
        Part("AdamW's two moments", 2 * FP32 * trained / shards, ALWAYS, smaller_by),
        Part("gradients", FP32 * trained / shards, gradient_phases, smaller_by),
    ]
    if work.has_sampling_copy:
        # The copy has no tower: it asks the policy's. Only a sharded tower, which is one that is
        # trained, cannot be asked by one rank alone, and is copied as well.
        not_copied = frozen if work.shard else sizes.vision
        copied = sizes.weights - not_copied
        name = "bf16 copy that samples" if work.bf16 else "fp32 copy that samples"
        kept.append(Part(name, work.bytes_each * copied, ALWAYS))
    if work.reference:  # its tower is frozen in any case
        reference = (sizes.weights - sizes.vision) / shards + sizes.vision
        kept.append(Part("reference, fp32", FP32 * reference, ALWAYS, ("--kl_beta 0",)))
    return kept


def lora_parts(sizes: Sizes, work: Work) -> list[Part]:
    """With LoRA: a frozen base, which is its own reference, and the adapters that are trained."""
    bytes_each = work.bytes_each
    shapes = [sizes.linears[name] for name in target_names(work.lora_targets, sizes.linears)]
    adapters = sizes.layers * sum(work.lora_rank * (out + inner) for out, inner in shapes)
    gradient_phases = ALWAYS if work.ranks > 1 else BACKWARD

    kept = [
        Part("weights, frozen", bytes_each * sizes.weights, ALWAYS),
        Part("adapters, fp32", FP32 * adapters, ALWAYS),
        Part("AdamW's two moments", 2 * FP32 * adapters, ALWAYS),
        Part("gradients", FP32 * adapters, gradient_phases),
    ]
    if work.sequences and work.lora_merge:  # the rest of its weights is the base's own
        merged = sizes.layers * sum(out * inner for out, inner in shapes)
        copy = bytes_each * merged
        kept.append(Part("merged copy that samples", copy, ALWAYS, ("--no_lora_merge",)))
    return kept


def gathered_parts(sizes: Sizes, work: Work) -> list[Part]:
    """What a sharded model holds whole while it is used, and for the averaging of gradients.

    While a layer is in use, the weights of the next one are on their way: two whole layers. The
    whole gradient of a layer is counted beside its activations: too much, as most of them are freed
    by the time it is complete. Too little: NCCL's own buffers on a GPU, which were not measured.
    """
    layer = FP32 * sizes.layer_weights
    root = sizes.weights - sizes.vision - sizes.layers * sizes.layer_weights
    if not work.freeze_vision:
        root += sizes.vision
    return [
        Part("root, gathered", FP32 * root, (*BACKWARD, ROOT)),
        Part("last layer, on its way", layer, (HEAD,)),
        Part("this layer and the next, gathered", 2 * layer, (LAYER,)),
        Part("gradient of a layer, whole", layer, (LAYER,)),
        Part("gradient of the root, and its buffer", 2 * FP32 * root, (ROOT,)),
    ]


def sampling_parts(sizes: Sizes, work: Work) -> list[Part]:
    """The prompts on their way through the model, and the cache at its full length."""
    bytes_each = work.bytes_each
    prompts = math.ceil(work.sequences / work.group_size)
    prompt_tokens = prompts * work.prompt_tokens

    # A layer without gradients is fullest in its MLP: residual stream, norm and output of width D;
    # gate, up and their product of the intermediate width.
    in_layer = bytes_each * prompt_tokens * (3 * sizes.hidden + 3 * sizes.intermediate)

    slots = work.sequences * (work.prompt_tokens + work.completion_tokens)
    cache = sizes.cache_bytes(slots, bytes_each)
    if work.completion_tokens > GROWTH:
        cache += cache / (2 * sizes.layers)  # growing copies the keys, or the values, of one layer
    return [
        Part("prompts, keys and values", sizes.cache_bytes(prompt_tokens, bytes_each), (PREFILL,),
             ("--sample_batch",)),
        Part("prompts, in a layer", in_layer, (PREFILL,), ("--sample_batch",)),
        Part("cache of all sequences", cache, (LAST_TOKEN,),
             ("--sample_batch", "--max_new_tokens")),
        # The logits, and two tensors of their size for log-probabilities and entropy.
        Part("logits of one token", 3 * FP32 * work.sequences * sizes.vocabulary, (LAST_TOKEN,),
             ("--sample_batch",)),
    ]  # fmt: skip


def update_parts(sizes: Sizes, work: Work) -> list[Part]:
    """A micro-batch of the longest prompt and completions, forward and backward."""
    predicted = work.completions_per_pass * work.completion_tokens  # what the head is asked about
    chunk = min(predicted, max(1, work.max_logits // sizes.vocabulary))
    head_weights = sizes.vocabulary * sizes.hidden
    tokens = work.tokens_per_pass

    in_layer = layer_bytes(sizes, work)
    activations, recomputed = sizes.layers * in_layer, 0.0
    if work.checkpointing:  # the input of each layer, and one layer computed again
        activations, recomputed = sizes.layers * FP32 * tokens * sizes.hidden, in_layer

    # With tied embeddings the head's gradient waits until the embedding table adds its part.
    waiting = FP32 * head_weights if sizes.tied and not work.lora_rank else 0
    # Two gradients of the intermediate width, two of the residual stream.
    bytes_each = work.bytes_each
    gradients = tokens * (2 * bytes_each * sizes.intermediate + 2 * FP32 * sizes.hidden)

    checkpointing = () if work.checkpointing else ("--gradient_checkpointing",)
    return [
        Part("activations of a micro-batch", activations + mask_bytes(work), BACKWARD,
             (*checkpointing, *PASS_FLAGS)),
        Part("one layer, computed again", recomputed, (LAYER,), PASS_FLAGS),
        Part("gradients inside a layer", gradients, (LAYER,), PASS_FLAGS),
        # The logits, their softmax, and the gradients of both.
        Part("logits of one chunk", 4 * FP32 * chunk * sizes.vocabulary, (HEAD,)),
        Part("gradient of the head, chunk by chunk",
             head_bytes(head_weights, chunk < predicted, work), (HEAD,)),
        Part("gradient of the head, summed", waiting, (LAYER,)),
    ]  # fmt: skip


def head_bytes(head_weights: int, in_chunks: bool, work: Work) -> float:
    """Bytes for the gradient of the head's weights, while the backward pass is in the head.

        one chunk         the gradient, fp32
        several chunks    this chunk's gradient and the sum of the earlier ones, fp32; under
                          autocast also the weights and this chunk's gradient, bf16
        LoRA              0: the head is frozen
    """
    if work.lora_rank:
        return 0
    needed = FP32 * head_weights
    if in_chunks:
        needed += FP32 * head_weights
        if work.bf16:
            needed += 2 * BF16 * head_weights
    return needed


def layer_bytes(sizes: Sizes, work: Work) -> float:
    """What one decoder layer keeps for the backward pass.

        norms              4 x (tokens, D), with LoRA 2                  fp32
        linears, inputs    6 x (tokens, D) in bf16, 3 in fp32
        MLP                4 x (tokens, intermediate): gate, up, silu(gate), the product
        queries, outputs   2 x (tokens, query_width)
        keys, values       2 x (keys_seen, query_width), repeated to all query heads, and
                           2 x (prompt_tokens, key_width), those of the prompt itself
        weights            a bf16 copy of the layer under autocast, with LoRA none
        adapters           with LoRA x A^T, (tokens, lora_rank) for each target, for B's gradient
    """
    bytes_each = work.bytes_each
    tokens = work.tokens_per_pass
    query_width = sizes.heads * sizes.head_dim  # of all heads
    key_width = sizes.kv_heads * sizes.head_dim
    # Keys that the completions attend to, each to those of its prompt as well.
    keys_seen = work.completions_per_pass * (work.prompt_tokens + work.completion_tokens - 1)

    # Two RMS norms. Each keeps its input and, if its weight is trained, the normalised input too.
    norms = (2 if work.lora_rank else 4) * FP32 * tokens * sizes.hidden
    # Inputs of linears. Autocast casts anew for q, k, v, o, gate and up; in fp32 q, k and v share
    # one input, and gate and up another.
    linears = (6 * BF16 if work.bf16 else 3 * FP32) * tokens * sizes.hidden
    mlp = 4 * bytes_each * tokens * sizes.intermediate

    queries_and_outputs = 2 * bytes_each * tokens * query_width
    keys_of_completions = keys_seen * query_width
    keys_of_prompt = work.prompt_tokens * key_width
    keys_and_values = 2 * bytes_each * (keys_of_completions + keys_of_prompt)

    # With LoRA the weights are frozen, and in bf16 already.
    casts = BF16 * sizes.layer_weights if work.bf16 and not work.lora_rank else 0
    adapters = 0
    if work.lora_rank:
        num_targets = len(work.lora_targets.split(","))
        adapters = bytes_each * work.lora_rank * tokens * num_targets
    return norms + linears + mlp + queries_and_outputs + keys_and_values + casts + adapters


def mask_bytes(work: Work) -> float:
    """The mask of all completions, as bool and as numbers, once for all layers."""
    query_tokens = work.completion_tokens - 1
    key_tokens = work.prompt_tokens + query_tokens
    return work.completions_per_pass * query_tokens * key_tokens * (1 + work.bytes_each)
