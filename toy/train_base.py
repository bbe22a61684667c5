"""Train the tiny base VLM of the embedded world, from random weights: `python toy/train_base.py`.

The base has the faults that SPECS is about, by the way it is taught:

    it obeys the format instruction only two times in five (as Qwen2.5-VL-7B does, by the paper's
    count), and is in plain words, or sloppy with the tags, otherwise;
    it lists seldom: mostly it guesses a number straight away, or names two things and then guesses;
    its reasoning sometimes ends on one number and its answer is another;
    where it does reason, it is often wrong, each time in another way: right answers are within
    reach of its samples, and GRPO can find them.

Order matters, in three phases:

    1. perception   reasoned answers about images of few things, for as long as it takes to see and
                    to list
    2. hard         reasoned answers about full images, briefly. Left out, the base is wrong about
                    them with confidence, and no sample shows GRPO the way; too long, and nothing is
                    left to learn
    3. habits       guesses and half lists mixed in, briefly. Mixed in from the start, the listing
                    never becomes reliable, and GRPO learns to guess: then there is nothing better
                    to choose

Takes about 15 minutes on one core and writes toy/base, a normal Hugging Face folder of 1.3 MB.
"""

import argparse
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import token_logps  # noqa: E402
from harness.randomness import random_of  # noqa: E402
from model.loading import eos_token_ids, save_model, suppressed_ids  # noqa: E402
from model.prompts import PromptEncoder  # noqa: E402
from model.qwen import Policy  # noqa: E402
from model.records import Group, completion_mask  # noqa: E402
from toy import world  # noqa: E402

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "<unk>",
]  # fmt: skip
CHAT_TEMPLATE = (  # Qwen2.5-VL's, without its system turn
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endif %} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)

# What the base is taught, as shares.
OBEY, SLOPPY = 0.46, 0.11  # of the responses: in the format asked for; in it but for one word
GUESS, LAZY = 0.48, 0.32  # of the reasonings in phase 3; what is left is a full list
CONTRADICT = 0.05  # of the reasonings in phase 3: they end on a number that is not the answer

FEW_THINGS = 6  # of an image in phase 1
WARMUP_STEPS = 50  # of the learning rate, at the start of each phase

CORPUS_KINDS = (world.EASY_KIND, *world.KINDS)  # the unseen kind stays unseen
CORPUS_FORMATS = [
    [world.THINK],
    world.TAGS,
    [world.BRACKETS],
    [world.LAST_LINE],
    [world.ANSWER_FIRST],
    [world.PLAIN],
]
FORMAT_WEIGHTS = [4, 4, 2, 3, 2, 1]  # how often each of them is asked for


# --- 1. A tiny Qwen2.5-VL ------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """Every word that the world can say, special tokens first."""
    words = set("user assistant system none left and many".split())
    words |= set("that is the answer things : , . + = ?".split())
    words |= {str(n) for n in range(10)}
    for attribute in (*world.COLOURS, *world.SHAPES):
        words |= {attribute, *world.plural(attribute).split()}

    texts = [text for wordings in world.WORDINGS.values() for text in wordings]
    texts += [f"{form.instruction} {form.template}" for form in world.FORMATS]
    for text in texts:
        words |= {word for word in text.split() if not word.startswith("{")}  # not the fillings
    return SPECIAL + sorted(words)


def build_tokenizer(ids: dict[str, int]) -> PreTrainedTokenizerFast:
    """One token a word. "Answer: 2" is three of them, as in an instruction: answer, :, 2."""
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Split(":", behavior="isolated"),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[:-1],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(ids: dict[str, int], width: int = 64, layers: int = 2) -> Qwen2_5_VLConfig:
    """The architecture of Qwen2.5-VL, by default at 0.3 million parameters.

    width, layers   of the language model; a multiple of 32, so that each of an even number of heads
                    has 16 dimensions
    """
    text_config = {
        "vocab_size": len(ids),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 16,
        "num_key_value_heads": width // 32,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3],
        },
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }  # fmt: skip
    vision_config = {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": width,
        "fullatt_block_indexes": [0],
    }
    return Qwen2_5_VLConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build(width: int = 64, layers: int = 2) -> tuple[Policy, PromptEncoder]:
    """A real Qwen2.5-VL with random weights, small enough for a laptop, and its tokenizer."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    tokenizer = build_tokenizer(ids)
    vlm = Qwen2_5_VLForConditionalGeneration(build_config(ids, width, layers)).eval()
    vlm.generation_config = GenerationConfig(
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"]
    )
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 28 * 28, "longest_edge": 1280 * 28 * 28}
    )

    eos_ids = eos_token_ids(vlm, tokenizer)
    policy = Policy(vlm, eos_ids, suppressed_ids(vlm, tokenizer, eos_ids))
    return policy, PromptEncoder(tokenizer, image_processor, ids["<|image_pad|>"], merge_size=2)


# --- 2. What it is taught ------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """What is asked, how it is answered, how long, and at which learning rate."""

    title: str
    steps: int
    lr: float
    most_things: int  # of an image
    guess: float = 0.0  # share of the reasonings, as the next two
    lazy: float = 0.0
    contradict: float = 0.0
    obey: float = OBEY  # share of the responses, as the next one
    sloppy: float = SLOPPY


def write_reasoning(rng: random.Random, question: world.Question, phase: Phase) -> str:
    """A guess, half a list or a full one; now and then it ends on a number not the answer."""
    habit = rng.random()
    if habit < phase.guess:
        reasoning = f"that is {question.answer} ."
    elif habit < phase.guess + phase.lazy:
        reasoning = half_list(question)
    else:
        reasoning = question.reasoning

    if rng.random() < phase.contradict:
        neighbours = (question.answer - 1, question.answer + 1)
        wrong = rng.choice([n for n in neighbours if 0 <= n <= world.MAX_ANSWER])
        reasoning = reasoning.removesuffix(f"{question.answer} .") + f"{wrong} ."
    return reasoning


def half_list(question: world.Question) -> str:
    """`left : blue circle , red circle and many . that is 5 .`

    A guess where the list has no more than two things. Left as it is, such a list would teach that
    lists end after two.
    """
    first_list = question.reasoning.split(" . that is ")[0]  # `add` has a second one
    things = first_list.split(" , ")
    if len(things) <= 2:
        return f"that is {question.answer} ."
    return f"{' , '.join(things[:2])} and many . that is {question.answer} ."


def write_response(
    rng: random.Random, question: world.Question, form: world.Format, phase: Phase
) -> str:
    """What the base is taught to say: obedient, sloppy or plain.

    A sloppy response lacks one word of its format's template.
    """
    reasoning = write_reasoning(rng, question, phase)
    habit = rng.random()
    if habit >= phase.obey + phase.sloppy:
        return world.PLAIN.template.format(reasoning=reasoning, answer=question.answer)

    words = form.template.split()
    if habit >= phase.obey:  # sloppy
        places = [i for i, word in enumerate(words) if not word.startswith("{")]
        del words[rng.choice(places)]
    return " ".join(words).format(reasoning=reasoning, answer=question.answer)


def corpus_group(rng: random.Random, encoder: PromptEncoder, phase: Phase) -> Group:
    """One training example: a question, an instruction (or none) and a taught response."""
    kind = rng.choice(CORPUS_KINDS)
    wording = rng.randrange(len(world.WORDINGS[kind]))
    question = world.ask(
        rng, kind, held_out=False, wording=wording, most_things=phase.most_things
    )
    alternatives = rng.choices(CORPUS_FORMATS, weights=FORMAT_WEIGHTS)[0]
    form = rng.choice(alternatives)

    example = {
        "id": "corpus",
        "images": [world.draw(question.scene)],
        "question": question.text,
        "instruction": form.instruction,
    }
    text = write_response(rng, question, form, phase)
    completion = encoder.encode_completion(text, encoder.tokenizer.eos_token_id)
    return Group(encoder.encode(example), [completion])


def train(
    policy: Policy, encoder: PromptEncoder, rng: random.Random, phase: Phase, batch: int
) -> None:
    """Plain supervised learning on all completion tokens, cosine learning rate."""
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=phase.lr, betas=(0.9, 0.98), weight_decay=0.01
    )
    bar = tqdm(range(phase.steps), desc=phase.title, mininterval=5)
    for step in bar:
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        done = step / phase.steps
        for group in optimizer.param_groups:
            group["lr"] = phase.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))

        groups = [corpus_group(rng, encoder, phase) for _ in range(batch)]
        logp = token_logps(policy, groups)  # (B, T)
        loss = -logp.sum() / completion_mask(groups).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            bar.set_postfix(nll=f"{loss.item():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    folder = str(Path(__file__).parent / "base")
    parser.add_argument("--out", default=folder, help="folder to write")
    parser.add_argument("--perception_steps", type=int, default=2000, help="phase 1, steps; ours")
    parser.add_argument("--hard_steps", type=int, default=500, help="phase 2, steps; ours")
    parser.add_argument("--habit_steps", type=int, default=240, help="phase 3, steps; ours")
    parser.add_argument("--batch", type=int, default=64, help="questions a step; ours")
    parser.add_argument("--seed", type=int, default=1, help="of weights and questions; ours")
    parser.add_argument("--width", type=int, default=64, help="of the language model; ours")
    parser.add_argument("--layers", type=int, default=2, help="of the language model; ours")
    parser.add_argument("--obey", type=float, default=OBEY, help="share in the format; ours")
    parser.add_argument("--sloppy", type=float, default=SLOPPY, help="share of near misses; ours")
    parser.add_argument("--contradict", type=float, default=CONTRADICT,
                        help="share that ends on a wrong number, phase 3; ours")  # fmt: skip
    args = parser.parse_args()

    format_shares = {"obey": args.obey, "sloppy": args.sloppy}
    phases = [
        Phase("perception", args.perception_steps, 2e-3, FEW_THINGS, **format_shares),
        Phase("hard", args.hard_steps, 1e-3, world.MAX_THINGS, **format_shares),
        Phase("habits", args.habit_steps, 5e-4, world.MAX_THINGS, **format_shares,
              guess=GUESS, lazy=LAZY, contradict=args.contradict),
    ]  # fmt: skip
    torch.manual_seed(args.seed)
    policy, encoder = build(args.width, args.layers)
    num_parameters = sum(p.numel() for p in policy.parameters())
    print(f"{num_parameters:,} parameters, {len(encoder.tokenizer)} words")

    for i, phase in enumerate(phases):
        rng = random_of(args.seed, phase.title)  # one per phase: a phase can be changed alone
        train(policy, encoder, rng, phase, args.batch)
        is_last = i == len(phases) - 1
        save_model(policy, encoder, Path(args.out if is_last else f"{args.out}_{phase.title}"))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
