"""Model folders: what is saved opens again, and what is half written is refused."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from common import token_logps
from conftest import fresh_policy, make_groups
from model.loading import load_model, save_model


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_give_equal_logps(tiny, tmp_path, tied):
    """Heads like 3B's (tied) and 7B's (untied): the folder opens, and the tie survives a step."""
    policy, encoder = tiny
    if not tied:
        policy.vlm.config.tie_word_embeddings = False
        policy.vlm.lm_head.weight = nn.Parameter(torch.randn_like(policy.vlm.lm_head.weight))
    save_model(policy, encoder, tmp_path / "model")

    loaded, loaded_encoder = load_model(str(tmp_path / "model"))
    groups = make_groups(loaded_encoder)
    with torch.no_grad():
        assert torch.equal(token_logps(policy, groups), token_logps(loaded, groups))

    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    token_logps(loaded, groups).sum().backward()
    optimizer.step()

    embedding = loaded.vlm.model.language_model.embed_tokens.weight
    assert (loaded.vlm.lm_head.weight is embedding) == tied


def test_weights_load_as_fp32_in_eval_mode(tmp_path):
    """bf16 folders too (as Qwen's are): trained weights are fp32, and dropout stays off."""
    policy, encoder = fresh_policy()
    half = copy.deepcopy(policy)
    half.vlm.bfloat16()
    save_model(half, encoder, tmp_path / "half")

    loaded, _ = load_model(str(tmp_path / "half"))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not loaded.vlm.training


def without_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_image_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def with_weights_cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    "damage, words",
    [
        (without_weights, "model"),
        (without_config, "config.json"),
        (without_image_processor, "preprocessor_config.json"),
        (with_weights_cut_off, "cannot be loaded"),
    ],
)
def test_half_written_model_folder_is_refused(start, damage, words):
    """Missing or cut files: --model is named, with what is wrong."""
    damage(Path(start))
    with pytest.raises(ValueError, match="--model") as error:
        load_model(start)
    assert words in str(error.value)


def test_a_folder_that_is_not_there_is_no_hub_name():
    """runs/zero/model before stage 1 has run: what is missing is a file, not a login at the hub."""
    message = "--zero runs/no/model: no such folder"
    with pytest.raises(ValueError, match=message):
        load_model("runs/no/model", flag="--zero")
    with pytest.raises(ValueError, match="--model toy/nope: no such folder"):
        load_model("toy/nope")  # there is a folder toy, so it is no owner on the hub


def test_names_that_are_none_of_the_hub(monkeypatch):
    """One word is no OWNER/NAME, and `toy/base` is ours: no hub is asked, which takes a minute."""
    for name in ("nope", "toy/base"):
        monkeypatch.chdir("/")
        with pytest.raises(ValueError, match=f"--model {name}: no such folder in /"):
            load_model(name)


def test_the_folder_of_a_run_names_its_model(tmp_path):
    """Its config.json is that of the run: the family would seem to be wrong."""
    (tmp_path / "config.json").write_text('{"run_dir": "runs/zero", "stage": "grpo"}')
    with pytest.raises(ValueError, match=f"its model is {tmp_path}/model"):
        load_model(str(tmp_path))


def test_missing_weights_are_refused(start):
    """from_pretrained would fill them in with random ones and only warn."""
    file = f"{start}/model.safetensors"
    tensors = load_file(file)
    del tensors[next(name for name in tensors if "q_proj.weight" in name)]
    save_file(tensors, file, metadata={"format": "pt"})

    with pytest.raises(ValueError, match="incomplete.*q_proj"):
        load_model(start)
