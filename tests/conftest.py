"""A real Qwen2.5-VL with random weights, small enough for thousands of passes, and prompts."""

import os
import struct
import zlib
from collections import Counter
from weakref import WeakSet, finalize

# On the CPU, unless `benchmarks/gpu.py` asks for the card.
DEVICE = os.environ.get("SPECS_TEST_DEVICE") or "cpu"
if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = "1"  # also of the commands that tests start

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as hf

import grpo
from model.loading import save_model
from model.policies import Policies
from model.records import SampledGroup, padded
from toy import world
from toy.train_base import build

# The model is tiny: threads that wait for each other cost more than they bring.
torch.set_num_threads(1)


def fresh_policy(seed: int = 0):
    """(policy, encoder), weights larger than HF's 0.02: predictions are then far from uniform."""
    torch.manual_seed(seed)
    policy, encoder = build()

    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.15)

    return policy.to(DEVICE), encoder


@pytest.fixture
def tiny():
    """(policy, encoder) in fp32."""
    return fresh_policy()


def keep_fp64(setattr=setattr):
    """Keep fp64 where HF goes through fp32, which would bury differences below 1e-7.

    It does so in two places: its norm, and the rotary embedding of the vision tower.
    """

    def norm(self, x):
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(mean_square + self.variance_epsilon))

    def rotate(q, k, cos, sin):
        cos, sin = cos.unsqueeze(-2).to(q.dtype), sin.unsqueeze(-2).to(q.dtype)
        return q * cos + hf.rotate_half(q) * sin, k * cos + hf.rotate_half(k) * sin

    setattr(hf.Qwen2_5_VLRMSNorm, "forward", norm)
    setattr(hf, "apply_rotary_pos_emb_vision", rotate)


@pytest.fixture
def tiny64(monkeypatch):
    """(policy, encoder) in fp64."""
    keep_fp64(monkeypatch.setattr)
    policy, encoder = fresh_policy()
    return policy.double(), encoder


@pytest.fixture
def start(tmp_path):
    """The folder of a model with random weights, for a stage to start from."""
    policy, encoder = fresh_policy()
    save_model(policy, encoder, tmp_path / "start")
    return str(tmp_path / "start")


def loss_gradients(policy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of a loss by the name of each weight that has one: for a plain oracle."""
    policy.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def small_grpo(start: str, folder, **more) -> grpo.Config:
    """The settings of a run of `grpo.py` that takes seconds; `more` adds to them or replaces."""
    settings = dict(
        model=start,
        run_dir=str(folder),
        max_examples=12,
        steps=4,
        prompts_per_step=4,
        group_size=3,
        max_new_tokens=6,
        save_every=1,
        lr=1e-3,
    )
    return grpo.Config(**{**settings, **more})


def make_example(
    images: int = 1, question: str = "count the red things .", seed: int = 0, **more
) -> dict:
    """An example with 0, 1 or more images of unequal size."""
    sizes = [(84, 84), (56, 112), (28, 28)]
    drawn = world.examples(max(1, images), seed)
    scenes = [example["images"][0].resize(sizes[i % 3]) for i, example in enumerate(drawn)]

    return {
        "id": f"example{seed}-{images}",
        "images": scenes[:images],
        "question": question,
        "instruction": "",
        "format": "think",
        "answer": "2",
        "answer_type": "number",
        "choices": [],
        "kind": "count",
        **more,
    }


def make_groups(
    encoder, seed: int = 0, sizes=(3, 1, 2), images=(1, 0, 2), longest: int = 7
) -> list[SampledGroup]:
    """Groups of unequal sizes, prompts, images and completion lengths; ids are ordinary words."""
    g = torch.Generator().manual_seed(seed)
    eos = torch.tensor([encoder.tokenizer.eos_token_id])
    vocabulary = len(encoder.tokenizer)

    groups = []
    for i, (size, num_images) in enumerate(zip(sizes, images)):
        question = "how many red things are there ?" if i % 2 else "count the circles ."
        prompt = encoder.encode(make_example(num_images, question, seed=seed + i))

        completions = []
        for _ in range(size):
            length = int(torch.randint(1, longest, (1,), generator=g))
            words = torch.randint(10, vocabulary - 1, (length,), generator=g)
            completions.append(torch.cat([words, eos]))
        groups.append(sampled(prompt, completions))

    return groups


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size; its pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + name + body
        chunks += struct.pack(">I", zlib.crc32(name + body))
    return chunks


def sampled(prompt, completions: list) -> SampledGroup:
    """A group as if it had been sampled, every token with probability 1 and stat 0."""
    zeros = [torch.zeros(len(completion)) for completion in completions]
    return SampledGroup(prompt, completions, logps=zeros, stats=zeros)


def mini_batch(groups, advantages, mask) -> grpo.MiniBatch:
    """What the first step of a rollout learns from, if all of its groups have a gradient."""
    logps = padded([logp for group in groups for logp in group.logps])
    normalizer_share = float(mask.sum())
    return grpo.MiniBatch(groups, advantages, mask, logps, None, normalizer_share, filler=groups[0])


def train_on(rollout, policies, accelerator, cfg) -> Counter:
    """Steps 2 and 3 of the loop of `grpo.main`; the sums over all updates."""
    sums = Counter()
    for batch in grpo.prepare_mini_batches(rollout, policies, accelerator, cfg):
        sums.update(grpo.update(batch, policies, accelerator, cfg))
    return sums


def blank(size=(84, 84), mode="RGB") -> Image.Image:
    """A black image."""
    return Image.new(mode, size)


def policies_of(policy, optimizer) -> Policies:
    """One policy without any wrapper that trains and samples."""
    return Policies(trained=policy, bare=policy, sampler=policy, optimizer=optimizer)


class KeepGradients(torch.optim.SGD):
    """An optimizer that keeps the gradients, by name of the weight, and leaves the weights."""

    def __init__(self, policy):
        super().__init__(policy.parameters(), lr=0.0)
        self.policy = policy
        self.grads = {}

    def step(self, closure=None):
        named = self.policy.named_parameters()
        self.grads = {name: p.grad.clone() for name, p in named if p.grad is not None}


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made inside and still live, and the most there ever were.

    An oracle for memory without a GPU: it watches storages, so a view costs nothing, and what
    autograd keeps for the backward pass counts as long as it is kept.

    made_before   tensors that do not count, such as weights; they must live on
    resized       storages are filled and emptied in place, as FSDP does: ask each of them for its
                  bytes after every operation
    """

    def __init__(self, made_before=(), resized: bool = False):
        super().__init__()
        self.live = 0
        self.peak = 0
        self.known = WeakSet(tensor.untyped_storage() for tensor in made_before)
        self.watched = WeakSet() if resized else None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.watch(getattr(x, "_local_tensor", x).untyped_storage())
        if self.watched is not None:
            self.peak = max(self.peak, sum(storage.nbytes() for storage in self.watched))
        return out

    def watch(self, storage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        if self.watched is not None:
            self.watched.add(storage)
            return
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        finalize(storage, self.forget, size)

    def forget(self, size: int) -> None:
        self.live -= size
