"""Prompts that are encoded when they are needed."""

import json
import threading
from concurrent.futures import wait

import torch

from conftest import blank, make_example
from model.loading import load_model, save_model, smallest_max_pixels
from sources.lazily import Prompts, Room
from sources.stream import PromptStream


def examples() -> list[dict]:
    found = [make_example(1, seed=i, id=f"e{i}") for i in range(7)]
    found[2]["images"] = ["nowhere.png"]
    return found


def ids(prompts) -> list[str]:
    return [prompt.example["id"] for prompt in prompts]


def test_prompts_are_a_sequence_without_what_cannot_be_used(tiny):
    """The broken example is named once; slices, indices and the first few are as of a list."""
    _, encoder = tiny
    warnings = []
    prompts = Prompts(examples(), encoder, None, warnings.append, range(7))

    usable = ["e0", "e1", "e3", "e4", "e5", "e6"]
    assert len(prompts) == 6 and len(warnings) == 1 and "e2" in warnings[0]
    assert ids(prompts) == ids(prompts[:]) == usable
    assert [example["id"] for example in prompts.examples] == usable
    assert ids(prompts[2:4]) == ["e3", "e4"] and prompts[3].example["id"] == "e4"
    assert ids(prompts.among_first(2)) == ["e0", "e1"] and len(prompts.among_first(7)) == 6
    assert ids(prompts.among_first(4)) == ["e0", "e1", "e3"], "e2 has no substitute"

    ranks = [Prompts(examples(), encoder, None, print, range(r, 7, 2)) for r in range(2)]
    assert sorted(ids(ranks[0]) + ids(ranks[1])) == usable


def test_without_room_two_batches_exist_at_most(tiny):
    """Nothing is kept, the batch behind is on its way, and the numbers are those of a kept one."""
    _, encoder = tiny
    kept = Prompts(examples(), encoder, None, print, range(7))
    room = Room(left=0)
    prompts = Prompts(examples(), encoder, None, print, range(7), room)
    assert len(prompts.lazily.kept) == len(prompts.lazily.started) == 0

    for start in range(0, 6, 2):
        batch = prompts[start : start + 2]
        assert len(prompts.lazily.started) <= 2
        for prompt, same in zip(batch, kept[start : start + 2]):
            assert torch.equal(prompt.pixel_values, same.pixel_values)
    assert len(prompts.lazily.kept) == 0
    assert len(kept.lazily.kept) == 6
    assert prompts[0] is not prompts[0] and kept[0] is kept[0]


def test_a_stream_is_encoded_ahead(tiny):
    """After a batch the next one is encoded in another thread; the order and the state are those of
    a stream that encodes one prompt at a time, over the ends of epochs and with a broken example.
    """
    _, encoder = tiny
    threads = []

    def watched(index: int):
        threads.append(threading.current_thread().name)
        return PromptStream.encode(ahead, index)

    ahead = PromptStream(examples(), encoder, seed=0, warn=lambda text: None)
    ahead.lazily.encode = watched
    one_by_one = PromptStream(examples(), encoder, seed=0, warn=lambda text: None)
    for _ in range(4):  # of 7 examples: more than three epochs
        batch = ahead.take(6)
        wait(ahead.lazily.started.values())
        waiting = len(ahead.lazily.started)

        plain = [one_by_one.take(1)[0] for _ in range(6)]
        assert ids(batch) == ids(plain)
        assert ahead.state() == one_by_one.state()
        for prompt, same in zip(batch, plain):
            assert torch.equal(prompt.pixel_values, same.pixel_values)
        assert 5 <= waiting <= 12 and not ahead.lazily.kept
    assert all(name.startswith("encode") for name in threads)


def test_models_are_shown_the_same_images(tiny, tmp_path):
    """A model that was trained under a limit keeps it; the base is then held to it as well."""
    policy, encoder = tiny
    for name, limit in (("base", 84 * 84), ("zero", 56 * 56)):
        save_model(policy, encoder, tmp_path / name)
        file = tmp_path / name / "preprocessor_config.json"
        settings = json.loads(file.read_text())
        settings["size"]["longest_edge"] = limit
        file.write_text(json.dumps(settings))

    folders = [str(tmp_path / name) for name in ("base", "zero")]
    assert smallest_max_pixels(folders) == 56 * 56
    example = {**make_example(0), "images": [blank((84, 84))]}
    shown = []
    for folder in folders:
        for max_pixels in (None, smallest_max_pixels(folders)):
            _, of_folder = load_model(folder, max_pixels=max_pixels)
            shown.append(len(of_folder.encode(example).pixel_values))
    assert shown == [36, 16, 16, 16], "left alone, base sees more than twice the patches"
