"""The embedded world: its answers are right, and its two splits share no image."""

import random

import pytest

from toy import train_base, world


def test_train_and_held_out_images_are_disjoint():
    """By content, not by luck: no image of one split can be drawn in the other."""
    drawn = {}
    for held_out in (False, True):
        examples = [e for seed in range(3) for e in world.examples(300, seed, held_out=held_out)]
        drawn[held_out] = {example["images"][0].tobytes() for example in examples}

    assert not drawn[False] & drawn[True]
    assert len(drawn[True]) > 500


def test_world_is_right():
    """Every kind: counting the drawn things gives the answer, and the reasoning ends on it."""
    rng = random.Random(0)
    attributes = (*world.SHAPES, *world.COLOURS)

    for kind in (*world.KINDS, world.OOD_KIND):
        for _ in range(200):
            question = world.ask(rng, kind, held_out=False, wording=0)
            things = [thing for thing in question.scene if thing]
            assert len(set(things)) == len(things) <= world.MAX_THINGS

            words = [word.rstrip("s") for word in question.text.split()]
            named = [word for word in words if word in attributes]
            hits = sum(sum(name in thing for thing in things) for name in named)
            expected = hits if kind in ("count", "add") else len(things) - hits
            assert question.answer == expected
            assert question.reasoning.replace(" .", "").split()[-1] == str(question.answer)

    again = [world.examples(4, 5)[3]["question"] for _ in range(2)]
    assert again[0] == again[1]


FORMATS = [world.THINK, *world.TAGS, world.BRACKETS, world.LAST_LINE, world.PLAIN]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.instruction or form.name)
def test_reasoned_answers_obey_every_format(form):
    """The reasoning of each kind of question, in each format: obeyed, and not without a mark.

    The classic mistake takes every word of a template for a mark. In `last_line` the words are
    "answer" and ":", and a listing ("red things : red circle") would break the format.
    """
    words = form.template.split()
    rng = random.Random(0)

    for kind in (*world.KINDS, world.OOD_KIND):
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

    for form in (world.THINK, world.BRACKETS, world.LAST_LINE):
        responses = [train_base.write_response(rng, question, form, guess=0) for _ in range(300)]
        assert all(question.reasoning in response for response in responses)

        plain = world.PLAIN.template.format(reasoning=question.reasoning, answer=question.answer)
        sloppy = [r for r in responses if r != plain and not form.obeyed_by(r)]
        assert 0.05 < len(sloppy) / 300 < 0.2
