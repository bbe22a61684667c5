"""The model family: positions against HF, images and their prompts, suppressed ids."""

import torch

from common import token_logps
from conftest import make_example, make_groups
from model.qwen import mrope_positions, next_positions
from model.records import Group, Prompt

# --- Images --------------------------------------------------------------------------------------


def test_images_follow_their_prompts(tiny):
    """1, 3, 0 and 2 images a prompt, permuted and put back. Pixels of another prompt must show."""
    policy, encoder = tiny
    groups = make_groups(encoder, sizes=(1, 1, 1, 1), images=(1, 3, 0, 2))
    order = [3, 1, 0, 2]

    with torch.no_grad():
        straight = token_logps(policy, groups)
        permuted = token_logps(policy, [groups[i] for i in order])
        assert torch.allclose(straight[order], permuted, atol=1e-5)

        other = make_groups(encoder, seed=5, sizes=(1,), images=(1,))[0].prompt.pixel_values
        swapped = Prompt(**{**vars(groups[0].prompt), "pixel_values": other})
        wrong = token_logps(policy, [Group(swapped, groups[0].completions)])
        right = token_logps(policy, groups[:1])
        assert not torch.allclose(wrong, right, atol=1e-3)


def test_text_only_prompts_still_reach_the_vision_tower(tiny):
    """A gradient of zero, not no gradient: DDP waits for every trained weight."""
    policy, encoder = tiny
    groups = make_groups(encoder, sizes=(2,), images=(0,))
    token_logps(policy, groups).sum().backward()

    grads = [p.grad for p in policy.vlm.model.visual.parameters()]
    assert all(g is not None and g.abs().max() == 0 for g in grads)


def test_frozen_tower_encodes_an_image_once(tiny, monkeypatch):
    """Frozen: one pass an image, the same values each time, forgotten with its prompt.

    Trained: a pass each time, or later steps and gradients would see features of older weights.
    """
    policy, encoder = tiny
    groups = make_groups(encoder)  # two of its three prompts have images
    encode_images = policy.encode_images

    passes = []

    def counted(prompts):
        passes.append(len(prompts))
        return encode_images(prompts)

    monkeypatch.setattr(policy, "encode_images", counted)

    fresh = token_logps(policy, groups)
    policy.vlm.model.visual.requires_grad_(False)
    first = token_logps(policy, groups)
    again = token_logps(policy, groups[::-1])

    assert passes == [2, 2]
    assert torch.equal(fresh, first)
    assert torch.allclose(again[:2, : first.shape[1]], first[4:6, : again.shape[1]], atol=1e-5)

    del groups
    assert len(policy.feature_cache) == 0

    policy.vlm.model.visual.requires_grad_(True)
    token_logps(policy, make_groups(encoder))
    assert passes == [2, 2, 2]
    assert len(policy.feature_cache) == 0


# --- Positions -----------------------------------------------------------------------------------


def test_golden_positions_of_text_and_images():
    """Text, an image of 2x3 merged patches, two words, an image of 1x1, a word; written by hand."""
    image, text = 5, 9
    ids = [text, *[image] * 6, text, text, image, text]
    image_grid_thw = torch.tensor([[1, 4, 6], [1, 2, 2]])

    assert mrope_positions(ids, image_grid_thw, image, merge_size=2).tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5, 6, 7],
        [0, 1, 1, 1, 2, 2, 2, 4, 5, 6, 7],
        [0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7],
    ]


def test_positions_equal_hf(tiny):
    """Ours against `get_rope_index`, 0 to 3 images."""
    policy, encoder = tiny
    for num_images in range(4):
        prompt = encoder.encode(make_example(num_images))
        wanted, _ = policy.vlm.model.get_rope_index(
            prompt.ids[None],
            mm_token_type_ids=(prompt.ids == encoder.image_token_id).int()[None],
            image_grid_thw=prompt.image_grid_thw,
        )
        assert torch.equal(prompt.positions, wanted[:, 0])


def test_completion_positions_after_an_image(tiny):
    """A prompt that ends in an image: go on from the largest axis, not from the token count."""
    _, encoder = tiny
    prompt = encoder.encode(make_example(1))
    end = int((prompt.ids == encoder.image_token_id).nonzero().max()) + 1
    cut = Prompt(
        prompt.example,
        prompt.ids[:end],
        prompt.positions[:, :end],
        prompt.pixel_values,
        prompt.image_grid_thw,
    )

    largest = int(cut.positions.max())
    positions = next_positions([cut], 2)
    assert positions.tolist() == [[largest + 1, largest + 2]]
    assert positions[0, 0] != len(cut.ids), "the token count would be a classic mistake"


# --- Head and weights ----------------------------------------------------------------------------


def test_suppressed_ids_get_no_probability(tiny):
    """Entropy and log-probs are of the distribution without image and special ids."""
    policy, encoder = tiny
    config = policy.vlm.config
    logits = policy.logits(torch.randn(3, config.text_config.hidden_size), 1.0)

    assert logits.softmax(-1)[:, policy.suppressed].abs().max() == 0
    suppressed = set(policy.suppressed.nonzero()[:, 0].tolist())
    assert {encoder.image_token_id, config.video_token_id} <= suppressed
    assert not policy.suppressed[policy.eos_ids].any()


def test_small_steps_move_fp32_weights_only():
    """A step of 1e-6 reaches every fp32 weight of size 0.02, and only about 2 % of bf16 ones."""
    weights = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 0.02
    moved32 = ((weights + 1e-6) != weights).float().mean()

    half = weights.bfloat16()
    moved16 = ((half + torch.tensor(1e-6).bfloat16()) != half).float().mean()

    assert moved32 == 1
    assert moved16 < 0.05
