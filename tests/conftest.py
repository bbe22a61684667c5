"""A real Qwen2.5-VL with random weights, small enough for thousands of forwards, and prompts for it."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as hf  # noqa: E402

from common import Group  # noqa: E402
from toy import world  # noqa: E402
from toy.train_base import build  # noqa: E402

torch.set_num_threads(1)  # the model is tiny: threads that wait for each other cost more than they bring


def fresh_policy(seed: int = 0):
    """(policy, codec). Weights are drawn larger than HF's 0.02, so that predictions are far from uniform."""
    torch.manual_seed(seed)
    policy, codec = build()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if p.ndim > 1:
                p.normal_(0.0, 0.15)
    return policy, codec


@pytest.fixture
def tiny():
    return fresh_policy()


def keep_fp64(setattr=setattr):
    """HF's norm and the tower's rotary embedding go through fp32 inside, which would bury differences below
    1e-7; with this they stay in fp64."""

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotate(q, k, cos, sin):
        cos, sin = cos.unsqueeze(-2).double(), sin.unsqueeze(-2).double()
        return q * cos + hf.rotate_half(q) * sin, k * cos + hf.rotate_half(k) * sin

    setattr(hf.Qwen2_5_VLRMSNorm, "forward", norm)
    setattr(hf, "apply_rotary_pos_emb_vision", rotate)


@pytest.fixture
def tiny64(monkeypatch):
    """The same in fp64."""
    keep_fp64(monkeypatch.setattr)
    policy, codec = fresh_policy()
    return policy.double(), codec


def make_row(pictures: int = 1, question: str = "count the red things .", seed: int = 0, **more) -> dict:
    """A row with 0, 1 or more pictures of unequal size."""
    sizes = [(84, 84), (56, 112), (28, 28)]
    scenes = [row["images"][0].resize(sizes[i % 3]) for i, row in enumerate(world.rows(max(1, pictures), seed))]
    return {"id": f"row{seed}-{pictures}", "images": scenes[:pictures], "question": question, "instruction": "",
            "format": "think", "answer": "2", "answer_type": "number", "choices": [], "kind": "count", **more}


def make_groups(codec, seed: int = 0, sizes=(3, 1, 2), pictures=(1, 0, 2), longest: int = 7) -> list[Group]:
    """Groups of unequal sizes, prompts, pictures and completion lengths; ids are ordinary words."""
    g = torch.Generator().manual_seed(seed)
    groups = []
    for i, (size, count) in enumerate(zip(sizes, pictures)):
        question = "how many red things are there ?" if i % 2 else "count the circles ."
        prompt = codec.encode(make_row(count, question, seed=seed + i))
        words = [torch.randint(10, len(codec.tokenizer) - 1, (int(torch.randint(1, longest, (1,), generator=g)),), generator=g)
                 for _ in range(size)]
        groups.append(Group(prompt, [torch.cat([w, torch.tensor([codec.tokenizer.eos_token_id])]) for w in words]))
    return groups


def blank(size=(84, 84), mode="RGB") -> Image.Image:
    return Image.new(mode, size)
