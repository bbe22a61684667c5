"""The embedded world: images, questions and formats that a model of 0.3 M parameters can learn.

An image is a 3x3 grid of coloured shapes, 84x84 pixels, so that Qwen2.5-VL (patch 14, merge 2)
sees one image token a cell. Questions are CLEVR-Math in miniature:

    count      how many red things are there ?
    subtract   subtract all circles . how many things are left ?
    add        add the red things and the blue things . how many ?
    subtract2  subtract all circles . subtract all squares . how many ...    only in evaluation

Reasoning lists the things it talks about before it counts them: it is grounded in the image.

    red things : red circle , red square . that is 2 .

An instruction asks for a format. The ID one is SPECS' `<think> </think> <answer> </answer>`; the
OOD ones are other tag names, brackets, and a last line. A response obeys it, or is in plain words.

Everything is seeded. Train and held-out images are disjoint by construction: an image belongs to
the held-out split if and only if a checksum of its cells says so, whatever seed drew it.
"""

import random
import re
import zlib
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 200, 30),
}
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

THINK_NAMES = ("think", "reason", "plan", "work")
ANSWER_NAMES = ("answer", "result", "final", "reply")


# --- Formats: an instruction, how to obey it, how to check that it was obeyed ------------------


@dataclass(frozen=True)
class Format:
    """What an instruction asks for: its text, and the shape of a response that obeys it."""

    name: str
    instruction: str
    template: str  # with {reasoning} and {answer}
    marks: tuple[str, ...]  # what neither reasoning nor answer may hold

    def obeyed_by(self, response: str) -> bool:
        """True if the response is the template, filled in, and no filling holds a mark.

        Trap: single words of the template are no marks. "answer :" is one, ":" is not: every
        listing has a colon, and only guesses would obey (test_reasoned_answers_obey_every_format).
        """
        pattern = ""
        for piece in re.split(r"(\{reasoning\}|\{answer\})", self.template):
            pattern += r"\s*(\S.*?)\s*" if piece.startswith("{") else words_pattern(piece)

        match = re.fullmatch(rf"\s*{pattern}\s*", response, re.DOTALL)
        if match is None:
            return False
        fillings = " ".join(match.groups())
        return not any(re.search(words_pattern(mark), fillings) for mark in self.marks)


def words_pattern(text: str) -> str:
    """A regular expression for these words in a row, with any white space between them."""
    return r"\s*".join(re.escape(word) for word in text.split())


def tag_format(think: str, answer: str, name: str) -> Format:
    """Two blocks of tags with these names."""
    instruction = (
        f"first think between <{think}> and </{think}> , "
        f"then answer between <{answer}> and </{answer}> ."
    )
    template = f"<{think}> {{reasoning}} </{think}> <{answer}> {{answer}} </{answer}>"
    marks = (f"<{think}>", f"</{think}>", f"<{answer}>", f"</{answer}>")
    return Format(name, instruction, template, marks)


THINK = tag_format("think", "answer", "think")
TAGS = [
    tag_format(think, answer, "tags")
    for think in THINK_NAMES
    for answer in ANSWER_NAMES
    if think != "think" and answer != "answer"
]
BRACKETS = Format(
    "brackets",
    instruction="first think in [ and ] , then answer in ( and ) .",
    template="[ {reasoning} ] ( {answer} )",
    marks=("[", "]", "(", ")"),
)
LAST_LINE = Format(
    "last_line",
    instruction="end with a line that says answer : and your answer .",
    template="{reasoning} answer : {answer}",
    marks=("answer :",),
)
PLAIN = Format("plain", "", "{reasoning} the answer is {answer} .", marks=("the answer is",))
OOD_FORMATS = {"tags": TAGS, "brackets": [BRACKETS], "last_line": [LAST_LINE]}


# --- Images ------------------------------------------------------------------------------------

Thing = tuple[str, str]  # (colour, shape)
Scene = tuple[Thing | None, ...]  # nine cells in reading order


def draw(scene: Scene) -> Image.Image:
    """The 84x84 image of a scene."""
    image = Image.new("RGB", (CELL * SIDE, CELL * SIDE), "white")
    pen = ImageDraw.Draw(image)
    for i, thing in enumerate(scene):
        if thing is not None:
            y, x = divmod(i, SIDE)
            draw_thing(pen, thing, left=x * CELL, top=y * CELL)
    return image


def draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, left: int, top: int) -> None:
    """One coloured shape in the cell whose upper left corner is given, pixels."""
    colour, shape = COLOURS[thing[0]], thing[1]
    right, bottom = left + CELL, top + CELL
    x, y = left + CELL // 2, top + CELL // 2  # the middle

    if shape == "circle":
        pen.ellipse((left + 4, top + 4, right - 5, bottom - 5), fill=colour)
    elif shape == "square":
        pen.rectangle((left + 4, top + 4, right - 5, bottom - 5), fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, top + 3), (right - 4, bottom - 4), (left + 3, bottom - 4)], fill=colour)
    else:
        pen.polygon([(x, top + 2), (right - 3, y), (x, bottom - 3), (left + 2, y)], fill=colour)


def is_held_out(scene: Scene) -> bool:
    """One scene in five, by content. (Python's own `hash` of a string differs between runs.)"""
    return zlib.crc32(repr(scene).encode()) % 5 == 0


# --- Questions ---------------------------------------------------------------------------------


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
    """Draw a question whose scene lies in the asked split, by rejection: draw until one does.

    Answers are balanced, not natural: small numbers would otherwise be so common that guessing
    pays. No two things of an image are equal, so that a listing shows which of them it has come to.
    """
    while True:
        family = rng.choice((tuple(COLOURS), SHAPES))  # a thing has one attribute of each family
        x, y = rng.sample(family, 2)
        named = (x, y) if kind in ("add", "subtract2") else (x,)
        scene = draw_scene(rng, kind, named)
        if scene is not None and is_held_out(scene) == held_out:
            break

    if kind == "count":
        reasoning, answer = listing(scene, plural(x), {x})
    elif kind == "add":
        first, a = listing(scene, plural(x), {x})
        second, b = listing(scene, plural(y), {y})
        reasoning, answer = f"{first} {second} {a} + {b} = {a + b} .", a + b
    else:
        left = (set(COLOURS) | set(SHAPES)) - set(named)
        reasoning, answer = listing(scene, "left", left, both=True)

    text = WORDINGS[kind][wording].format(x=plural(x), y=plural(y))
    return Question(kind, scene, text, reasoning, answer)


def draw_scene(rng: random.Random, kind: str, named: tuple[str, ...]) -> Scene | None:
    """A scene with some things of each named attribute and some others; None if they do not fit."""
    fewest = 1 if kind.startswith("subtract") else 0
    most = {"count": 4, "add": 3}.get(kind, 2)
    counts = [rng.randint(fewest, most) for _ in named]
    others = rng.randint(0, 5)
    if not 1 <= sum(counts) + others <= MAX_THINGS:
        return None

    things = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    rng.shuffle(things)
    chosen = []
    for attribute, count in zip(named, counts):
        chosen += [thing for thing in things if attribute in thing][:count]
    chosen += [thing for thing in things if not set(thing) & set(named)][:others]

    cells = chosen + [None] * (SIDE * SIDE - len(chosen))
    rng.shuffle(cells)
    return tuple(cells)


def listing(scene: Scene, title: str, attributes: set[str], both: bool = False) -> tuple[str, int]:
    """List the things of a scene that have one of the attributes (with `both`: only such ones).

    Returns `red things : red circle , red square . that is 2 .` and 2. In alphabetical order, which
    a small model learns far sooner than reading order: it needs to know what is there, not where.
    """
    found = []
    for thing in scene:
        if thing is None:
            continue
        matches = [attribute in attributes for attribute in thing]
        if all(matches) if both else any(matches):
            found.append(" ".join(thing))
    names = " , ".join(sorted(found)) or "none"
    return f"{title} : {names} . that is {len(found)} .", len(found)


def examples(
    count: int,
    seed: int,
    *,
    held_out: bool = False,
    kinds: tuple[str, ...] = KINDS,
    formats: tuple[Format, ...] | list[Format] = (THINK,),
    unseen_wording: bool = False,
) -> list[dict]:
    """Questions as examples (see `sources`), one in turn of each kind, with PIL images."""
    rng = random.Random(f"{seed} {held_out}")
    split = "heldout" if held_out else "train"
    result = []

    for i in range(count):
        kind = kinds[i % len(kinds)]
        last = len(WORDINGS[kind]) - 1  # kept for evaluation
        wording = last if unseen_wording else rng.randrange(max(1, last))
        question = ask(rng, kind, held_out=held_out, wording=wording)
        form = rng.choice(formats)
        result.append({
            "id": f"toy-{split}-{seed}-{i}",
            "images": [draw(question.scene)],
            "question": question.text,
            "instruction": form.instruction,
            "format": form.name,
            "answer": str(question.answer),
            "answer_type": "number",
            "choices": [],
            "kind": kind,
        })  # fmt: skip
    return result
