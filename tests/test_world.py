"""The embedded world: its answers are right, and its two splits share no image."""

import random

from toy import world


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
