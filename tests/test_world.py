"""The embedded world: its answers are right, and its two splits share no image."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from evaluate import guessing_rate
from toy import world
from toy.train_base import Phase, write_response

ROOT = Path(__file__).parent.parent


def test_train_and_held_out_images_are_disjoint():
    """By content, not by luck: no image of one split can be drawn in the other."""
    drawn = {}
    for held_out in (False, True):
        examples = [e for seed in range(3) for e in world.examples(300, seed, held_out=held_out)]
        drawn[held_out] = {example["images"][0].tobytes() for example in examples}

    assert not drawn[False] & drawn[True]
    assert len(drawn[True]) > 500


def named_in(text: str) -> list[str]:
    """The colours and shapes of a question, in its order."""
    words = [word.rstrip("s") for word in text.split()]
    return [word for word in words if word in (*world.SHAPES, *world.COLOURS)]


def answer_by_hand(kind: str, named: list[str], things: list) -> int:
    """By sets of things, one for each name."""
    sets = [{thing for thing in things if name in thing} for name in named]
    if kind == "count":
        return len(sets[0])
    if kind == "add":
        return len(sets[0]) + len(sets[1])
    if kind == "add_subtract":
        return len((sets[0] | sets[1]) - sets[2])
    return len(set(things) - set().union(*sets))


def test_world_is_right():
    """Every kind: counting the drawn things gives the answer, and the reasoning ends on it.

    The classic mistake counts hits instead of things: in half of subtract2 a thing can have both
    names, and is taken away once.
    """
    rng = random.Random(0)
    taken_twice = 0

    for kind, wordings in world.WORDINGS.items():
        for i in range(300):
            question = world.ask(rng, kind, held_out=False, wording=i % len(wordings))
            things = [thing for thing in question.scene if thing]
            assert len(set(things)) == len(things) <= world.MAX_THINGS

            named = named_in(question.text)
            assert question.answer == answer_by_hand(kind, named, things)
            assert question.answer <= world.MAX_ANSWER
            assert question.reasoning.replace(" .", "").split()[-1] == str(question.answer)

            if kind == "subtract2":
                hits = sum(name in thing for thing in things for name in named)
                taken_twice += len(things) - hits != question.answer
    assert taken_twice > 30

    again = [world.examples(4, 5)[3]["question"] for _ in range(2)]
    assert again[0] == again[1]


def test_splits_are_the_same_in_every_process():
    """The side of a scene does not depend on the salt that Python's `hash` gets in each process."""
    program = """
from toy import world
scenes = [((colour, shape),) for colour, shape in world.ALL_THINGS]
print([world.is_held_out(scene) for scene in scenes], hash(scenes[0]))
"""
    said = []
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt}
        command = [sys.executable, "-c", program]
        said.append(subprocess.check_output(command, cwd=ROOT, env=environment, text=True))

    sides, hashes = zip(*(line.rsplit("]", 1) for line in said))
    assert sides[0] == sides[1]
    assert hashes[0] != hashes[1], "the classic mistake"


def test_subtractions_take_something():
    """What a question takes away is in the image, or the words would not matter."""
    rng = random.Random(0)
    for kind in ("subtract", "subtract2", "add_subtract"):
        for _ in range(100):
            question = world.ask(rng, kind, held_out=False, wording=0)
            named = named_in(question.text)
            for name in named[2:] if kind == "add_subtract" else named:
                assert any(name in thing for thing in question.scene if thing), question.text


def test_answers_are_balanced():
    """The most common answer to each kind of question is no better a guess than one in seven."""
    examples = world.examples(3000, 0, held_out=True)
    records = [{"kind": e["kind"], "gold": e["answer"]} for e in examples]
    assert guessing_rate(records) < 1 / 7


def test_half_of_subtract2_is_over_two_families():
    """`subtract all red things . subtract all circles`: a red circle has both names."""
    mixed = 0
    for example in world.examples(600, 0, kinds=("subtract2",)):
        x, y = named_in(example["question"])
        mixed += (x in world.COLOURS) != (y in world.COLOURS)
    assert 0.4 < mixed / 600 < 0.6


def test_look_changes_the_image_and_nothing_else():
    """The same questions on the same scenes, in other pixels."""
    trained = world.examples(20, 0, held_out=True)
    shifted = world.examples(20, 0, held_out=True, look=world.SHIFTED_LOOK)
    for a, b in zip(trained, shifted, strict=True):
        assert a["images"][0].size == b["images"][0].size
        assert a["images"][0].tobytes() != b["images"][0].tobytes()
        assert {**a, "images": []} == {**b, "images": []}


# --- Formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", world.FORMATS, ids=lambda form: form.instruction or form.name)
def test_reasoned_answers_obey_every_format(form):
    """The reasoning of each kind of question, in each format: obeyed, and not without a mark.

    The classic mistake takes every word of a template for a mark. In `last_line` the words are
    "answer" and ":", and a listing ("red things : red circle") would break the format.
    """
    words = form.template.split()
    rng = random.Random(0)

    for kind in world.WORDINGS:
        question = world.ask(rng, kind, held_out=False, wording=0)
        filling = {"reasoning": question.reasoning, "answer": question.answer}
        assert " : " in question.reasoning
        assert form.obeyed_by(form.template.format(**filling))

        for i, word in enumerate(words):
            if not word.startswith("{"):
                incomplete = " ".join(words[:i] + words[i + 1 :])
                assert not form.obeyed_by(incomplete.format(**filling)), word

        for mark in form.marks:
            filling["reasoning"] = f"{question.reasoning} {mark} {question.reasoning}"
            assert not form.obeyed_by(form.template.format(**filling)), mark


def test_sloppy_responses_keep_their_reasoning():
    """What the base is taught lacks a word of the format at most, never one of the listing."""
    rng = random.Random(0)
    question = world.ask(rng, "add", held_out=False, wording=0)
    phase = Phase("full lists", steps=1, lr=1e-3, most_things=world.MAX_THINGS)

    for form in (world.THINK, world.BRACKETS, world.LAST_LINE, world.ANSWER_FIRST):
        responses = [write_response(rng, question, form, phase) for _ in range(300)]
        assert all(question.reasoning in response for response in responses)

        plain = world.PLAIN.template.format(reasoning=question.reasoning, answer=question.answer)
        sloppy = [r for r in responses if r != plain and not form.obeyed_by(r)]
        assert 0.05 < len(sloppy) / 300 < 0.2
