"""Model folders in and out: weights, tokenizer and image processor, as Hugging Face keeps them."""

import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from model.lora import FOLDER, lora_linears, merged_state_dict, save_adapters
from model.prompts import PromptEncoder
from model.qwen import Policy, check_family, load_weights
from model.sharding import is_sharded, whole_weights

# A progress bar for each saved file would tear the table of steps on the terminal apart.
transformers_logging.disable_progress_bar()


def load_model(
    name: str,
    *,
    flag: str = "--model",
    freeze_vision: bool = False,
    gradient_checkpointing: bool = False,
    max_pixels: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Policy, PromptEncoder]:
    """Load a Qwen2.5-VL or Qwen2-VL folder or hub name: weights, tokenizer and image processor.

    name                    a folder, or a hub name (OWNER/NAME)
    flag                    the command-line flag to name in error messages
    freeze_vision           do not train the vision tower
    gradient_checkpointing  see `Policy`
    max_pixels              images are scaled down to this many pixels; None: as the folder says
    dtype                   fp32 to train; `sampling_dtype` for a model that only answers
    device                  where the weights are read to
    Raises ValueError if it is missing, half written or of another family.

    Trap: from_pretrained fills weights that are missing with random ones and only warns
    (test_half_written_model_folder_is_refused).
    """
    check_folder(name, flag)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        tokenizer.chat_template = tokenizer.chat_template or legacy_chat_template(name)
        # The joint processor class wants a video reader (torchvision); still images do not need
        # one.
        image_processor = transformers.AutoImageProcessor.from_pretrained(name, backend="pil")
        vlm, lacking = load_weights(name, dtype, device)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{flag} {name}: cannot be loaded: {error}") from error
    if lacking:
        raise ValueError(f"{flag} {name}: weights are incomplete, first missing: {lacking[0]}")

    if max_pixels is not None:
        image_processor.size = {**dict(image_processor.size), "longest_edge": max_pixels}
    vlm.eval()  # for good: logp, logp_old and logp_ref must be one function, without dropout
    vlm.model.visual.requires_grad_(not freeze_vision)

    eos_ids = eos_token_ids(vlm, tokenizer)
    suppressed = suppressed_ids(vlm, tokenizer, eos_ids)
    policy = Policy(vlm, eos_ids, suppressed.to(device), gradient_checkpointing)
    encoder = PromptEncoder(
        tokenizer,
        image_processor,
        vlm.config.image_token_id,
        image_processor.merge_size,
        read_other_files(name),
    )
    return policy, encoder


def read_if_there(name: str, file: str) -> dict | None:
    """A JSON file of a folder or hub name, None if it has none."""
    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None


def legacy_chat_template(name: str) -> str | None:
    """The chat template of chat_template.json, where older folders keep it for their processor."""
    return (read_if_there(name, "chat_template.json") or {}).get("chat_template")


def read_other_files(name: str) -> dict[str, str]:
    """What a stock `AutoProcessor` wants beside tokenizer and image processor: name -> text.

    Trap: newer folders keep the image processor's settings in processor_config.json as well, and HF
    lets these win. Copied as they are, they would undo --max_pixels in the next stage
    (test_processor_files_travel_along).
    """
    texts = {}
    for file in ("processor_config.json", "video_preprocessor_config.json"):
        settings = read_if_there(name, file)
        if settings is not None:
            settings.pop("image_processor", None)
            texts[file] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    return texts


def smallest_max_pixels(names: list[str]) -> int:
    """The smallest limit of pixels an image among some models.

    A limit is saved with every model that was trained under one, and the public base has none: it
    would be shown larger images than its successors (test_models_are_shown_the_same_images).
    """
    limits = []
    for name in names:
        processor = transformers.AutoImageProcessor.from_pretrained(name, backend="pil")
        limits.append(dict(processor.size)["longest_edge"])
    return min(limits)


def check_folder(name: str, flag: str) -> None:
    """Raise ValueError if `name` is a path and not a whole model folder. A hub name passes."""
    # OWNER/NAME has one slash, so a folder of that form that is missing is tried on the hub.
    # Where OWNER is a folder here, it is no owner.
    is_in_a_folder = "/" in name and Path(name).parent.is_dir()
    is_no_owner = is_in_a_folder or name.count("/") != 1 or name.startswith("toy/")
    looks_like_path = name.startswith((".", "/")) or is_no_owner
    if not Path(name).exists() and not looks_like_path:
        return

    def must_have(*files: str) -> None:
        """At least one of them."""
        if not Path(name).exists():
            raise ValueError(f"{flag} {name}: no such folder in {Path.cwd()}")
        if not any((Path(name) / file).is_file() for file in files):
            raise ValueError(f"{flag} {name}: not a model folder, {files[0]} is missing")

    must_have("config.json")
    config = json.loads((Path(name) / "config.json").read_text())
    if "run_dir" in config:
        raise ValueError(f"{flag} {name}: that is the folder of a run, its model is {name}/model")
    try:  # before the other files: a model without images does not have them
        check_family(config.get("model_type"))
    except ValueError as error:
        raise ValueError(f"{flag} {name}: {error}") from error
    must_have("tokenizer_config.json")
    # Since transformers 5 the image processor's settings may be a part of processor_config.json.
    must_have("preprocessor_config.json", "processor_config.json")


def eos_token_ids(vlm, tokenizer) -> list[int]:
    """Every id that ends a completion. The tokenizer's own comes first: it ends each pair.

    Trap: Qwen stops on two ids. With only the tokenizer's, half of the completions would run past
    their end, into junk that is then trained on (test_every_eos_id_ends_a_completion).
    """
    listed = vlm.generation_config.eos_token_id
    if not isinstance(listed, list):
        listed = [listed]

    ids = []
    for i in [tokenizer.eos_token_id, *listed]:
        if i is not None and i not in ids:
            ids.append(i)
    return ids


def suppressed_ids(vlm, tokenizer, eos_ids: list[int]) -> Tensor:
    """(V,) bool: special ids but EOS, and ids beyond the tokenizer (Qwen pads its table).

    Trap: a sampled image token makes the next pass look for an image that is not there
    (test_image_tokens_are_never_sampled_nor_scored).
    """
    vocabulary = vlm.config.text_config.vocab_size
    suppressed = torch.zeros(vocabulary, dtype=torch.bool)
    suppressed[len(tokenizer) :] = True

    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    suppressed[[i for i in special if i < vocabulary]] = True

    suppressed[eos_ids] = False
    return suppressed


def save_model(
    policy: Policy, encoder: PromptEncoder, folder: Path, writes: bool = True
) -> None:
    """Write a plain Hugging Face folder that `from_pretrained` opens, in files of at most 5 GB.

    A policy with adapters is written merged, and its adapters beside that (`lora.py`). It is
    written beside its place and then renamed, so a crash never leaves half a model there.

    writes   False on the ranks that only help to gather the weights of a sharded policy
    """
    state_dict = None  # HF's own
    if is_sharded(policy):
        state_dict = {}
        for name, weight in whole_weights(policy):
            if writes:
                state_dict[name] = weight.cpu()
    if not writes:
        return

    has_adapters = bool(lora_linears(policy))
    if has_adapters:
        state_dict = merged_state_dict(policy.vlm)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an earlier crash
    policy.vlm.save_pretrained(partial, state_dict=state_dict, max_shard_size="5GB")
    if has_adapters:
        save_adapters(policy, partial / FOLDER)
    encoder.tokenizer.save_pretrained(partial)
    encoder.image_processor.save_pretrained(partial)
    for name, text in encoder.other_files.items():
        (partial / name).write_text(text, encoding="utf-8")

    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
