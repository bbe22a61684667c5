"""The embedded world: images, questions and formats that a model of 0.3 M parameters can learn.

An image is a 4x4 grid of coloured shapes, 112x112 pixels, so that Qwen2.5-VL (patch 14, merge 2)
sees one image token a cell. Up to 12 cells are filled, and no two things of an image are alike.
Questions are CLEVR-Math in miniature:

    subtract      subtract all circles . how many things are left ?
    add           add the red things and the blue things . how many ?
    subtract2     subtract all red things . subtract all circles . how many things are left ?

Two kinds are for evaluation, an easy one, of which only the base had some, and an unseen one:

    count         how many red things are there ?
    add_subtract  add the red things and the blue things . subtract all circles . how many ...

Reasoning lists the things it talks about before it counts them: it is grounded in the image.

    left : blue circle , red circle , red square . that is 3 .

An instruction asks for a format. The ID one is SPECS' `<think> </think> <answer> </answer>`; the
OOD ones are other tag names, brackets, a last line, and the answer before its reasons. A response
obeys it, or is in plain words. Two of the OOD formats, `brackets` and `answer_first`, look like
none of the five corruptions of `build_prefs.py`.

Everything is seeded. Train and held-out images are disjoint by construction: an image belongs to
the held-out split if and only if a checksum of its cells says so, whatever seed drew it.
"""

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from harness.randomness import random_of

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "diamond")
CELL, SIDE = 28, 4  # pixels of a cell; cells of a side
MAX_THINGS = 12  # of an image
MAX_ANSWER = 9  # a number is one word, of one digit

KINDS = ("subtract", "add", "subtract2")  # what stages 1 to 3 ask
EASY_KIND = "count"
OOD_KIND = "add_subtract"
WORDINGS = {  # stages 1 to 3 never use the last one of a kind: it is kept for evaluation
    "count": ("how many {x} are there ?", "count the {x} .", "what is the number of {x} ?"),
    "subtract": ("subtract all {x} . how many things are left ?",
                 "take away all {x} . how many things are left ?",
                 "without the {x} , how many things are there ?"),
    "add": ("add the {x} and the {y} . how many ?",
            "how many {x} and {y} are there ?",
            "what is the number of {x} and {y} ?"),
    "subtract2": ("subtract all {x} . subtract all {y} . how many things are left ?",
                  "take away all {x} . take away all {y} . how many things are left ?",
                  "without the {x} and the {y} , how many things are there ?"),
    "add_subtract": ("add the {x} and the {y} . subtract all {z} . how many are left ?",),
}

THINK_NAMES = ("reason", "plan", "work")  # of the OOD tags, for `think`
ANSWER_NAMES = ("result", "final", "reply")  # for `answer`


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
TAGS = [tag_format(think, answer, "tags") for think in THINK_NAMES for answer in ANSWER_NAMES]
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
ANSWER_FIRST = Format(
    "answer_first",
    instruction="first answer in ( and ) , then say because and why .",
    template="( {answer} ) because {reasoning}",
    marks=("(", ")"),  # not "because": a reason may have a reason
)
PLAIN = Format("plain", "", "{reasoning} the answer is {answer} .", marks=("the answer is",))

OOD_FORMATS = {
    "tags": TAGS,
    "brackets": [BRACKETS],
    "last_line": [LAST_LINE],
    "answer_first": [ANSWER_FIRST],
}
FORMATS = [THINK, *TAGS, BRACKETS, LAST_LINE, ANSWER_FIRST, PLAIN]


# --- Images ------------------------------------------------------------------------------------

Thing = tuple[str, str]  # (colour, shape)
Scene = tuple[Thing | None, ...]  # SIDE * SIDE cells in reading order
ALL_THINGS = [(colour, shape) for colour in COLOURS for shape in SHAPES]


@dataclass(frozen=True)
class Look:
    """How things are drawn."""

    paints: dict[str, tuple[int, int, int]]  # word of a colour -> red, green, blue
    radius: int  # half the width of a thing, pixels


TRAINED_LOOK = Look(
    paints={
        "red": (220, 40, 40),
        "green": (40, 170, 60),
        "blue": (50, 80, 220),
        "yellow": (235, 200, 30),
    },
    radius=10,
)
SHIFTED_LOOK = Look(  # for evaluation: paler, and a pixel smaller on each side
    paints={
        "red": (222, 70, 65),
        "green": (65, 180, 85),
        "blue": (75, 102, 225),
        "yellow": (237, 207, 65),
    },
    radius=9,
)

CORNERS = {  # of the shapes that have some: (x, y) from the middle of the cell, in radii
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1.1), (1.1, 1), (-1.1, 1)),
    "diamond": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
}


def draw(scene: Scene, look: Look = TRAINED_LOOK) -> Image.Image:
    """The 112x112 image of a scene."""
    image = Image.new("RGB", (CELL * SIDE, CELL * SIDE), "white")
    pen = ImageDraw.Draw(image)
    for i, thing in enumerate(scene):
        if thing is not None:
            row, column = divmod(i, SIDE)
            draw_thing(pen, thing, look, x=(column + 0.5) * CELL, y=(row + 0.5) * CELL)
    return image


def draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, look: Look, x: float, y: float) -> None:
    """One coloured shape around (x, y), the middle of its cell, pixels."""
    colour, shape = thing
    radius = look.radius

    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=look.paints[colour])
    else:
        corners = [(x + dx * radius, y + dy * radius) for dx, dy in CORNERS[shape]]
        pen.polygon(corners, fill=look.paints[colour])


def is_held_out(scene: Scene) -> bool:
    """One scene in five, by content.

    Trap: Python's own `hash` of a string differs between runs, and a scene would change sides. A
    checksum does not (test_splits_are_the_same_in_every_process).
    """
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


def ask(
    rng: random.Random,
    kind: str,
    *,
    held_out: bool,
    wording: int,
    most_things: int = MAX_THINGS,
) -> Question:
    """Draw a question whose scene lies in the asked split and has at most `most_things` things.

    By rejection: draw until one fits, so that what fits keeps its share of the draws.
    """
    while True:
        named = name_attributes(rng, kind)
        scene = draw_scene(rng, kind, named, most_things)
        if is_held_out(scene) == held_out and subtractions_take_something(kind, named, scene):
            return write_question(kind, named, scene, wording)


def name_attributes(rng: random.Random, kind: str) -> list[str]:
    """The colours or shapes that a question of this kind talks about: x, y, z of its wording."""
    families = [COLOURS, SHAPES]
    rng.shuffle(families)
    x, y = rng.sample(families[0], 2)  # of one family, so that no thing has both
    z = rng.choice(families[1])

    if kind in ("count", "subtract"):
        return [x]
    if kind == "add":
        return [x, y]
    if kind == "subtract2":  # half of them over two families: a red circle is taken away once
        return [x, rng.choice((y, z))]
    return [x, y, z]


def is_counted(kind: str, named: Sequence[str], thing: Thing) -> bool:
    """True if this thing counts for the answer."""
    if kind in ("count", "add"):
        return has_any(thing, named)
    if kind in ("subtract", "subtract2"):
        return not has_any(thing, named)
    x, y, z = named  # add_subtract
    return has_any(thing, (x, y)) and z not in thing


def has_any(thing: Thing, attributes: Sequence[str]) -> bool:
    """True if the thing has one of these colours and shapes."""
    return any(attribute in thing for attribute in attributes)


def draw_scene(
    rng: random.Random, kind: str, named: Sequence[str], most_things: int
) -> Scene:
    """Things for a question, in cells drawn at random.

    Answers are balanced, not natural: the number of counted things is drawn first, evenly. Small
    numbers would otherwise be so common that guessing pays. No two things of an image are equal, so
    that a listing shows which of them it has come to.
    """
    counted = [thing for thing in ALL_THINGS if is_counted(kind, named, thing)]
    others = [thing for thing in ALL_THINGS if thing not in counted]

    num_counted = rng.randint(0, min(len(counted), MAX_ANSWER, most_things - 1))
    num_others = rng.randint(1, min(len(others), most_things - num_counted))
    things = rng.sample(counted, num_counted) + rng.sample(others, num_others)

    cells = things + [None] * (SIDE * SIDE - len(things))
    rng.shuffle(cells)
    return tuple(cells)


def subtractions_take_something(kind: str, named: Sequence[str], scene: Scene) -> bool:
    """False if a question asks to take away what the image does not hold."""
    if kind in ("subtract", "subtract2"):
        taken = named
    elif kind == "add_subtract":
        taken = named[2:]
    else:
        taken = []

    shown = set()  # every colour and shape of the image
    for thing in scene:
        if thing is not None:
            shown |= set(thing)
    return set(taken) <= shown


def write_question(kind: str, named: Sequence[str], scene: Scene, wording: int) -> Question:
    """The question in words, its reasoning and its answer."""
    things = [thing for thing in scene if thing is not None]

    if kind == "add":
        x, y = named
        first, a = listing(plural(x), [thing for thing in things if x in thing])
        second, b = listing(plural(y), [thing for thing in things if y in thing])
        reasoning, answer = f"{first} {second} {a} + {b} = {a + b} .", a + b
    else:
        title = plural(named[0]) if kind == "count" else "left"
        counted = [thing for thing in things if is_counted(kind, named, thing)]
        reasoning, answer = listing(title, counted)

    names = dict(zip("xyz", map(plural, named)))
    text = WORDINGS[kind][wording].format(**names)
    return Question(kind, scene, text, reasoning, answer)


def plural(attribute: str) -> str:
    """`red things`, `circles`."""
    return f"{attribute} things" if attribute in COLOURS else f"{attribute}s"


def listing(title: str, things: list[Thing]) -> tuple[str, int]:
    """`red things : red circle , red square . that is 2 .` and 2.

    In alphabetical order, which a small model learns far sooner than reading order: it needs to
    know what is there, not where.
    """
    names = " , ".join(sorted(" ".join(thing) for thing in things)) or "none"
    return f"{title} : {names} . that is {len(things)} .", len(things)


# --- Examples ----------------------------------------------------------------------------------


def examples(
    count: int,
    seed: int,
    *,
    held_out: bool = False,
    kinds: Sequence[str] = KINDS,
    formats: Sequence[Format] = (THINK,),
    unseen_wording: bool = False,
    look: Look = TRAINED_LOOK,
) -> list[dict]:
    """Questions as examples (see `sources`), one in turn of each kind, with PIL images."""
    split = "heldout" if held_out else "train"
    rng = random_of(seed, f"toy {split}")
    result = []

    for i in range(count):
        kind = kinds[i % len(kinds)]
        last = len(WORDINGS[kind]) - 1  # kept for evaluation
        wording = last if unseen_wording else rng.randrange(max(1, last))
        question = ask(rng, kind, held_out=held_out, wording=wording)
        form = rng.choice(formats)
        result.append({
            "id": f"toy-{split}-{seed}-{i}",
            "images": [draw(question.scene, look)],
            "question": question.text,
            "instruction": form.instruction,
            "format": form.name,
            "answer": str(question.answer),
            "answer_type": "number",
            "choices": [],
            "kind": kind,
        })  # fmt: skip
    return result
