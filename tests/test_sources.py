"""Sources and the stream of prompts: what cannot be used is named, and nothing is lost silently."""

import io
import json

import datasets
import pytest
from accelerate import Accelerator

import dpo_sft
from conftest import blank, make_example, png_of_size
from harness.randomness import random_of
from model.records import ExampleError
from sources import load_examples
from sources.read_pairs import load_pairs
from sources.stream import PromptStream, encode_all

# --- Tables --------------------------------------------------------------------------------------


def write_jsonl(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_examples_of_a_file(tmp_path, tiny):
    """A jsonl file with relative image paths: optional columns are filled in."""
    _, encoder = tiny
    blank().save(tmp_path / "a.png")
    boxed = {"id": "a", "question": "how many ?", "answer": "\\boxed{2}", "images": ["a.png"]}
    choice = {"id": "b", "question": "which ?", "answer": "B", "choices": ["x", "y"], "images": []}
    file = write_jsonl(tmp_path / "examples.jsonl", [boxed, choice])

    examples = load_examples(file, instruction="")
    assert examples[0]["answer_type"] == "math"
    assert examples[1]["answer_type"] == "choice"
    assert examples[0]["instruction"] == ""
    assert load_examples(file)[0]["instruction"].startswith("First think")
    assert len(encode_all([examples[0]], encoder)[0].pixel_values) == 36
    assert len(load_examples(file, count=1)) == 1


def test_examples_are_read_when_asked_for(tmp_path):
    """A table of embedded images is not read as a whole, and none is decoded on the way."""
    table = datasets.Dataset.from_list([{"question": "q", "answer": "1", "images": [blank()]}] * 3)
    table = table.cast_column("images", datasets.List(datasets.Image()))
    table.to_parquet(tmp_path / "t.parquet")

    examples = load_examples(str(tmp_path / "t.parquet"))
    assert not isinstance(examples, list)
    assert examples[1]["images"][0]["bytes"].startswith(b"\x89PNG")


CARD = "---\nconfigs:\n- config_name: default\n  data_files: rows.parquet\n---\n"


@pytest.mark.parametrize("card", ["", CARD])
def test_folders_of_one_name_are_not_confused(tmp_path, card):
    """Another folder of the same name, and a folder written anew, give their own examples.

    With a card that names the data file, and without.
    """
    for count, parent in ((3, "a"), (4, "b"), (5, "a")):
        folder = tmp_path / parent / "rows"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(card + "rows\n")
        table = datasets.Dataset.from_list([{"question": "q", "answer": "1"}] * count)
        table.to_parquet(folder / "rows.parquet")
        assert len(load_examples(str(folder))) == count


def test_bad_sources_name_the_flag(tmp_path):
    """Of an unknown kind, and empty."""
    (tmp_path / "examples.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    for source in ("examples.txt", "empty.jsonl"):
        with pytest.raises(ValueError, match="--data"):
            load_examples(str(tmp_path / source))


@pytest.mark.parametrize(
    "bad, word",
    [
        ({"answer": ""}, "answer"),
        ({"answer": None}, "answer"),
        ({"question": ""}, "question"),
        ({"answer_type": "poem"}, "answer_type"),
    ],
)
def test_examples_that_cannot_be_graded_are_named(tmp_path, bad, word):
    """The error says which example lacks what."""
    record = {"id": "r1", "question": "q", "answer": "1", "answer_type": "number", **bad}
    file = write_jsonl(tmp_path / "r.jsonl", [record])
    with pytest.raises(ExampleError, match=f"example r1 has .*{word}"):
        load_examples(file)[0]


def test_broken_image_inside_a_table_is_skipped(tiny, tmp_path):
    """Embedded images that cannot be opened or are gigantic: their examples are named and skipped.

    In training and in pairs alike.
    """
    policy, encoder = tiny
    whole = io.BytesIO()
    blank().save(whole, "PNG")

    records = []
    for image in (whole.getvalue(), b"no image at all", png_of_size(40_000, 25_000)):
        records.append(
            {
                "question": "count the circles .",
                "instruction": "",
                "answer": "2",
                "images": [{"bytes": image, "path": None}],
                "chosen": [{"role": "assistant", "content": "2"}],
                "rejected": [{"role": "assistant", "content": "3"}],
            }
        )
    file = str(tmp_path / "t.parquet")
    table = datasets.Dataset.from_list(records)
    table.cast_column("images", datasets.List(datasets.Image())).to_parquet(file)

    warnings = []
    prompts = encode_all(load_examples(file), encoder, warn=warnings.append)
    cfg = dpo_sft.Config(pairs=file)
    pairs = load_pairs(cfg, encoder, policy, warnings.append, Accelerator(cpu=True))

    assert len(prompts) == len(pairs) == 1
    assert ["image cannot be read" in warning for warning in warnings] == [True] * 4
    assert [warning.split()[2] for warning in warnings] == ["1:", "2:"] * 2


# --- The stream ----------------------------------------------------------------------------------


def ids_of(prompts) -> list[str]:
    return [prompt.example["id"] for prompt in prompts]


def test_stream_skips_counts_and_goes_on(tiny):
    """Broken examples are warned about and counted; each good one comes once an epoch.

    Where all are broken, it is an error.
    """
    _, encoder = tiny
    examples = []
    for i, shape in enumerate(("circles", "squares", "triangles")):
        examples.append(make_example(0, f"count the {shape} .", seed=i, id=f"r{i}"))
    broken = {**make_example(0), "id": "broken", "images": ["nowhere.png"]}
    examples.insert(1, broken)

    warnings = []
    stream = PromptStream(examples, encoder, seed=0, warn=warnings.append)
    ids = ids_of(stream.take(9))
    assert all(sorted(ids[i : i + 3]) == ["r0", "r1", "r2"] for i in (0, 3, 6))
    assert stream.position - 9 == stream.skipped >= 2
    assert all("broken" in warning for warning in warnings)

    with pytest.raises(ValueError, match="--data: none of 1 examples"):
        PromptStream([broken], encoder, seed=0, warn=warnings.append).take(1)
    with pytest.raises(ValueError, match="--data: none of 1 examples"):
        encode_all([broken], encoder, warn=warnings.append)


def test_stream_goes_on_where_it_stopped(tiny):
    """`position` is all it takes, across the edge of an epoch."""
    _, encoder = tiny
    examples = [make_example(0, id=f"r{i}") for i in range(5)]
    ids = ids_of(PromptStream(examples, encoder, seed=3).take(12))

    for cut in (1, 4, 5, 7):
        first = PromptStream(examples, encoder, seed=3)
        first.take(cut)
        second = PromptStream(examples, encoder, seed=3)
        second.position = first.position
        assert ids_of(second.take(12 - cut)) == ids[cut:]

    assert ids[:5] != ids[5:10], "each epoch has an order of its own"


def test_ranks_get_disjoint_prompts(tiny):
    """Two ranks share an epoch between them."""
    _, encoder = tiny
    examples = [make_example(0, id=f"r{i}") for i in range(6)]

    ids = []
    for rank in (0, 1):
        ids += ids_of(PromptStream(examples, encoder, seed=0, rank=rank, world_size=2).take(3))
    assert sorted(ids) == [example["id"] for example in examples]


def test_ranks_go_from_epoch_to_epoch_together(tiny):
    """Three ranks, seven examples: an epoch is two examples per rank, on every rank.

    No example comes twice within it, the one that is left out is not always the same, and a single
    rank leaves none out. Shares of 3, 2 and 2 would soon give an example twice in one rollout.
    """
    _, encoder = tiny
    examples = [make_example(0, id=f"r{i}") for i in range(7)]
    ranks = [PromptStream(examples, encoder, seed=0, rank=r, world_size=3) for r in range(3)]

    left_out = []
    for epoch in range(12):
        ids = []
        for _ in range(2):
            for rank in ranks:
                ids += ids_of(rank.take(1))
            assert [(rank.position - 1) // len(rank.places) for rank in ranks] == [epoch] * 3
        assert len(set(ids)) == 6
        left_out += {example["id"] for example in examples} - set(ids)
    assert len(set(left_out)) > 3

    alone = ids_of(PromptStream(examples, encoder, seed=0).take(14))
    for epoch in range(2):
        order = [f"r{i}" for i in range(7)]
        random_of(0, f"order of epoch {epoch}").shuffle(order)
        assert alone[7 * epoch : 7 * epoch + 7] == order

    resumed = PromptStream(examples, encoder, seed=0, rank=1, world_size=3)
    resumed.position = 5  # in the middle of an epoch
    again = PromptStream(examples, encoder, seed=0, rank=1, world_size=3).take(9)
    assert ids_of(resumed.take(4)) == ids_of(again[5:])
