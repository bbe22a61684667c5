"""The embedded world: pictures, questions and format instructions that a 0.3 M parameter model can learn.

A picture is a 3x3 grid of coloured shapes, 84x84 pixels, so that Qwen2.5-VL (patch 14, merge 2) sees
one picture token a cell. Questions are CLEVR-Math in miniature:

    count      how many red things are there ?
    subtract   subtract all circles . how many things are left ?
    add        add the red things and the blue things . how many ?
    subtract2  subtract all circles . subtract all squares . how many ...    only evaluation sees this one

Reasoning lists the things it talks about before it counts them, so that it is grounded in the picture:

    red things : red circle , red square . that is 2 .

An instruction asks for a format. The ID one is SPECS' `<think> </think> <answer> </answer>`; the OOD
ones are other tag names, brackets, and a last line. A response obeys it, or is in plain words.

Everything is seeded, and train and held-out pictures are disjoint by construction: a picture belongs to
the held-out split if and only if a checksum of its cells says so, whatever seed drew it.
"""

import random
import re
import zlib
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 200, 30)}
SHAPES = ("circle", "square", "triangle", "diamond")
CELL, SIDE, MAX_THINGS = 28, 3, 7

KINDS = ("count", "subtract", "add")
OOD_KIND = "subtract2"
WORDINGS = {  # the last wording of each kind is kept for evaluation
    "count": ("how many {x} are there ?", "count the {x} .", "what is the number of {x} ?"),
    "subtract": ("subtract all {x} . how many things are left ?",
                 "take away all {x} . how many things are left ?",
                 "without the {x} , how many things are there ?"),
    "add": ("add the {x} and the {y} . how many ?", "how many {x} and {y} are there ?",
            "what is the number of {x} and {y} ?"),
    "subtract2": ("subtract all {x} . subtract all {y} . how many things are left ?",),
}

THINK_NAMES, ANSWER_NAMES = ("think", "reason", "plan", "work"), ("answer", "result", "final", "reply")


# --- Formats: an instruction, how to obey it, how to check that it was obeyed ------------------------


@dataclass(frozen=True)
class Format:
    """What an instruction asks for: the text of the request and the shape of a response that obeys it."""

    name: str
    instruction: str
    template: str  # with {reasoning} and {answer}

    def obeyed_by(self, response: str) -> bool:
        """True if the response is exactly the template with two non-empty fillings without its marks."""
        pattern, marks = "", []
        for piece in re.split(r"(\{reasoning\}|\{answer\})", self.template):
            if piece.startswith("{"):
                pattern += r"\s*(\S.*?)\s*"
            else:
                pattern += r"\s*".join(re.escape(word) for word in piece.split())
                marks += piece.split()
        match = re.fullmatch(rf"\s*{pattern}\s*", response, re.DOTALL)
        return match is not None and not any(mark in filling for filling in match.groups() for mark in marks)


def tag_format(think: str, answer: str, name: str) -> Format:
    return Format(name, f"first think between <{think}> and </{think}> , "
                        f"then answer between <{answer}> and </{answer}> .",
                  f"<{think}> {{reasoning}} </{think}> <{answer}> {{answer}} </{answer}>")


THINK = tag_format("think", "answer", "think")
TAGS = [tag_format(t, a, "tags") for t in THINK_NAMES for a in ANSWER_NAMES if t != "think" and a != "answer"]
BRACKETS = Format("brackets", "first think in [ and ] , then answer in ( and ) .", "[ {reasoning} ] ( {answer} )")
LAST_LINE = Format("last_line", "end with a line that says answer : and your answer .",
                   "{reasoning} answer : {answer}")
PLAIN = Format("plain", "", "{reasoning} the answer is {answer} .")
OOD_FORMATS = {"tags": TAGS, "brackets": [BRACKETS], "last_line": [LAST_LINE]}


# --- Pictures ------------------------------------------------------------------------------------

Thing = tuple[str, str]  # (colour, shape)
Scene = tuple[Thing | None, ...]  # nine cells in reading order


def draw(scene: Scene) -> Image.Image:
    """The 84x84 picture of a scene."""
    image = Image.new("RGB", (CELL * SIDE, CELL * SIDE), "white")
    pen = ImageDraw.Draw(image)
    for i, thing in enumerate(scene):
        if thing is None:
            continue
        colour, shape = thing
        left, top = (i % SIDE) * CELL, (i // SIDE) * CELL
        box = (left + 4, top + 4, left + CELL - 5, top + CELL - 5)
        if shape == "circle":
            pen.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            pen.rectangle(box, fill=COLOURS[colour])
        else:
            middle, right, bottom = CELL // 2, left + CELL - 4, top + CELL - 4
            corners = [(left + middle, top + 3), (right, bottom), (left + 3, bottom)] if shape == "triangle" else \
                [(left + middle, top + 2), (right + 1, top + middle), (left + middle, bottom + 1),
                 (left + 2, top + middle)]
            pen.polygon(corners, fill=COLOURS[colour])
    return image


def is_held_out(scene: Scene) -> bool:
    """One scene in five, by content alone."""
    return zlib.crc32(repr(scene).encode()) % 5 == 0


# --- Questions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """One question on one scene, with the reasoning and the answer that are right."""

    kind: str
    scene: Scene
    text: str
    reasoning: str
    answer: int


def plural(attribute: str) -> str:
    return f"{attribute} things" if attribute in COLOURS else f"{attribute}s"


def ask(rng: random.Random, kind: str, *, held_out: bool, wording: int) -> Question:
    """Draw a question whose picture lies in the asked split.

    Answers are balanced, not natural: small numbers would otherwise be so common that guessing pays. No
    two things of a picture are alike, so that a listing shows which of them it has come to."""
    while True:
        family = rng.choice((tuple(COLOURS), SHAPES))  # attributes of one family exclude each other
        x, y = rng.sample(family, 2)
        named = (x, y) if kind in ("add", "subtract2") else (x,)
        most = 4 if kind == "count" else 3 if kind == "add" else 2
        counts = [rng.randint(1 if kind.startswith("subtract") else 0, most) for _ in named]
        rest = rng.randint(0, 5)
        if not 1 <= sum(counts) + rest <= MAX_THINGS:
            continue
        things = [(colour, shape) for colour in COLOURS for shape in SHAPES]
        rng.shuffle(things)
        picked = [t for name, count in zip(named, counts) for t in [t for t in things if name in t][:count]]
        picked += [t for t in things if not set(t) & set(named)][:rest]
        cells = picked + [None] * (SIDE * SIDE - len(picked))
        rng.shuffle(cells)
        scene = tuple(cells)
        if is_held_out(scene) == held_out:
            break
    if kind == "count":
        reasoning, answer = listing(scene, plural(x), lambda t: x in t)
    elif kind == "add":
        (first, a), (second, b) = (listing(scene, plural(n), lambda t, n=n: n in t) for n in named)
        reasoning, answer = f"{first} {second} {a} + {b} = {a + b} .", a + b
    else:
        reasoning, answer = listing(scene, "left", lambda t: not any(n in t for n in named))
    text = WORDINGS[kind][wording].format(x=plural(x), y=plural(y))
    return Question(kind, scene, text, reasoning, answer)


def listing(scene: Scene, title: str, wanted) -> tuple[str, int]:
    """`red things : red circle , red square . that is 2 .` and 2; in alphabetical order, which a small
    model learns far sooner than reading order: it needs to know what is there, not where."""
    found = sorted(" ".join(thing) for thing in scene if thing is not None and wanted(thing))
    return f"{title} : {' , '.join(found) or 'none'} . that is {len(found)} .", len(found)


def rows(count: int, seed: int, *, held_out: bool = False, kinds: tuple[str, ...] = KINDS,
         formats: tuple[Format, ...] | list[Format] = (THINK,), unseen_wording: bool = False) -> list[dict]:
    """Questions in the row format of `data.py`, one in turn of each kind, pictures as PIL images."""
    rng = random.Random(f"{seed} {held_out}")
    result = []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        wording = len(WORDINGS[kind]) - 1 if unseen_wording else rng.randrange(max(1, len(WORDINGS[kind]) - 1))
        question, form = ask(rng, kind, held_out=held_out, wording=wording), rng.choice(formats)
        result.append({"id": f"toy-{'heldout' if held_out else 'train'}-{seed}-{i}", "images": [draw(question.scene)],
                       "question": question.text, "instruction": form.instruction, "format": form.name,
                       "answer": str(question.answer), "answer_type": "number", "choices": [], "kind": kind})
    return result
