"""Rows, pictures and the stream of prompts: what cannot be used is named, and nothing is lost silently."""

import io
import json

import datasets
import pytest
from conftest import blank, make_row
from PIL import Image

import dpo_sft
from prompts import RowError, chat_messages, load_picture
from data import PromptStream, encode_all, load_rows
from toy import world


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def picture_file(path, image, **options):
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "CMYK", "1"])
@pytest.mark.parametrize("size", [(1, 1), (27, 40), (300, 20), (84, 84)])
def test_any_picture_becomes_rgb_and_is_encoded(tiny, mode, size):
    """Palettes, transparency, single pixels: upright RGB, and as many tokens as the grid says."""
    _, codec = tiny
    prompt = codec.encode({**make_row(0), "images": [blank(size, mode)]})
    assert int((prompt.ids == codec.image_token_id).sum()) == int(prompt.grids.prod(-1).sum()) // 4
    assert len(prompt.pixels) == int(prompt.grids.prod(-1).sum())


def test_transparency_is_white_and_exif_is_upright(tmp_path):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert load_picture(clear, "r").getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    file = picture_file(tmp_path / "turned.jpg", Image.new("RGB", (60, 30)), exif=exif.tobytes())
    assert load_picture(file, "r").size == (30, 60)


@pytest.mark.parametrize("break_it", ["missing", "truncated", "text", "stripe"])
def test_unreadable_pictures_name_their_row(tiny, tmp_path, break_it):
    """Each is a RowError with the row's id, so that loaders can skip and count it."""
    _, codec = tiny
    file = tmp_path / "p.jpg"
    if break_it == "truncated":
        buffer = io.BytesIO()
        Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
        file.write_bytes(buffer.getvalue()[:200])
    elif break_it == "text":
        file.write_text("not a picture")
    elif break_it == "stripe":
        picture_file(file, blank((3000, 10)))  # sides 300 : 1, the image processor refuses more than 200
    with pytest.raises(RowError, match="row r7"):
        codec.encode({**make_row(0), "id": "r7", "images": [str(file)]})


def test_loader_has_no_memory(tiny):
    """A picture's pixels do not depend on the one before it."""
    _, codec = tiny
    small, large = {**make_row(0), "images": [blank((20, 20))]}, {**make_row(0), "images": [blank((140, 84))]}
    alone = codec.encode(large).pixels
    codec.encode(small)
    assert codec.encode(large).pixels.equal(alone)


def test_prompt_over_the_limit_is_refused(tiny):
    """Named, never cut: cutting would lose picture tokens while the pixels stay."""
    _, codec = tiny
    length = len(codec.encode(make_row(1)).ids)
    assert len(codec.encode(make_row(1), max_prompt_tokens=length).ids) == length
    with pytest.raises(RowError, match="--max_prompt_tokens"):
        codec.encode(make_row(1), max_prompt_tokens=length - 1)


def test_image_marks_place_pictures():
    """The i-th mark is picture i; without marks all come first; a wrong number is refused."""
    content = chat_messages("compare <image> with <image> .", 2, "r")[0]["content"]
    assert [c["type"] for c in content] == ["text", "image", "text", "image", "text"]
    assert [c["type"] for c in chat_messages("count", 2, "r")[0]["content"]] == ["image", "image", "text"]
    with pytest.raises(RowError, match="2 <image> marks, 1 pictures"):
        chat_messages("<image> <image>", 1, "r")


def test_question_that_writes_a_picture_token_is_refused(tiny):
    _, codec = tiny
    with pytest.raises(RowError, match="picture tokens in its text"):
        codec.encode(make_row(1, "count <|image_pad|> ."))


def test_rows_of_a_file(tmp_path, tiny):
    """jsonl with relative pictures: optional columns are filled in, rows are read when asked for."""
    picture_file(tmp_path / "a.png", blank())
    file = write_jsonl(tmp_path / "rows.jsonl", [
        {"id": "a", "question": "how many ?", "answer": "\\boxed{2}", "images": ["a.png"]},
        {"id": "b", "question": "which ?", "answer": "B", "choices": ["x", "y"], "images": []}])
    rows = load_rows(file, instruction="")
    assert [r["answer_type"] for r in (rows[0], rows[1])] == ["math", "choice"] and rows[0]["instruction"] == ""
    assert load_rows(file)[0]["instruction"].startswith("First think")
    assert len(encode_all([rows[0]], tiny[1])[0].pixels) == 36
    assert len(load_rows(file, count=1)) == 1


def test_rows_are_read_when_asked_for(tmp_path):
    """A table of embedded pictures is not decoded as a whole."""
    table = datasets.Dataset.from_list([{"question": "q", "answer": "1", "images": [blank()]} for _ in range(3)])
    table.cast_column("images", datasets.List(datasets.Image())).to_parquet(tmp_path / "t.parquet")
    rows = load_rows(str(tmp_path / "t.parquet"))
    assert not isinstance(rows, list) and isinstance(rows[1]["images"][0], Image.Image)


@pytest.mark.parametrize("card", ["", "---\nconfigs:\n- config_name: default\n  data_files: rows.parquet\n---\n"])
def test_folders_of_one_name_are_not_confused(tmp_path, card):
    """Another folder of the same name, and a folder written anew, give their own rows, with and without a card."""
    for count, parent in ((3, "a"), (4, "b"), (5, "a")):
        folder = tmp_path / parent / "rows"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(card + "rows\n")
        datasets.Dataset.from_list([{"question": "q", "answer": "1"}] * count).to_parquet(folder / "rows.parquet")
        assert len(load_rows(str(folder))) == count


def test_bad_sources_name_the_flag(tmp_path):
    """Missing, empty, of an unknown kind."""
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    for source in ("rows.txt", "empty.jsonl"):
        with pytest.raises(ValueError, match="--data"):
            load_rows(str(tmp_path / source))


@pytest.mark.parametrize("bad, word", [({"answer": ""}, "answer"), ({"answer": None}, "answer"), ({"question": ""}, "question"),
                                       ({"answer_type": "poem"}, "answer_type")])
def test_rows_that_cannot_be_graded_are_named(tmp_path, bad, word):
    file = write_jsonl(tmp_path / "r.jsonl", [{"id": "r1", "question": "q", "answer": "1", "answer_type": "number", **bad}])
    with pytest.raises(RowError, match=f"row r1 has .*{word}"):
        load_rows(file)[0]


def test_stream_skips_counts_and_goes_on(tiny):
    """Broken rows are warned about and counted; every good row comes once an epoch; all broken is an error."""
    _, codec = tiny
    rows = [make_row(0, f"count the {w} .", seed=i, id=f"r{i}") for i, w in enumerate(("circles", "squares", "triangles"))]
    rows.insert(1, {**make_row(0), "id": "broken", "images": ["nowhere.png"]})
    said = []
    stream = PromptStream(rows, codec, seed=0, warn=said.append)
    seen = [p.row["id"] for p in stream.take(9)]
    assert all(sorted(seen[i : i + 3]) == ["r0", "r1", "r2"] for i in (0, 3, 6)) and stream.position - 9 == stream.skipped >= 2
    assert all("broken" in s for s in said)
    with pytest.raises(ValueError, match="--data: none of 1 rows"):
        PromptStream([rows[1]], codec, seed=0, warn=said.append).take(1)
    with pytest.raises(ValueError, match="--data: none of 1 rows"):
        encode_all([rows[1]], codec, warn=said.append)


def test_stream_goes_on_where_it_stopped(tiny):
    """position is all it takes, across the edge of an epoch."""
    _, codec = tiny
    rows = [make_row(0, id=f"r{i}") for i in range(5)]
    whole = PromptStream(rows, codec, seed=3)
    ids = [p.row["id"] for p in whole.take(12)]
    for cut in (1, 4, 5, 7):
        first, second = PromptStream(rows, codec, seed=3), PromptStream(rows, codec, seed=3)
        first.take(cut)
        second.position = first.position
        assert [p.row["id"] for p in second.take(12 - cut)] == ids[cut:]
    assert ids[:5] != ids[5:10], "each epoch has an order of its own"


def test_ranks_get_disjoint_prompts(tiny):
    """Two ranks share an epoch between them."""
    _, codec = tiny
    rows = [make_row(0, id=f"r{i}") for i in range(6)]
    shares = [[p.row["id"] for p in PromptStream(rows, codec, seed=0, rank=r, world_size=2).take(3)] for r in (0, 1)]
    assert sorted(shares[0] + shares[1]) == [r["id"] for r in rows]


def test_train_and_held_out_pictures_are_disjoint():
    """By content, not by luck: no picture of one split can be drawn in the other."""
    drawn = {h: {r["images"][0].tobytes() for s in range(3) for r in world.rows(300, s, held_out=h)} for h in (False, True)}
    assert not drawn[False] & drawn[True] and len(drawn[True]) > 500


def test_world_is_right():
    """Every kind and wording: counting the drawn things again gives the answer; the reasoning ends on it."""
    import random

    rng = random.Random(0)
    for kind in (*world.KINDS, world.OOD_KIND):
        for _ in range(200):
            q = world.ask(rng, kind, held_out=False, wording=0)
            things = [t for t in q.scene if t]
            assert len(set(things)) == len(things) <= world.MAX_THINGS
            names = [w.rstrip("s") for w in q.text.split() if w.rstrip("s") in (*world.SHAPES, *world.COLOURS)]
            hits = [sum(n in t for t in things) for n in names]
            assert q.answer == (sum(hits) if kind in ("count", "add") else len(things) - sum(hits))
            assert q.reasoning.replace(" .", "").split()[-1] == str(q.answer)
    assert world.rows(4, 5)[3]["question"] == world.rows(4, 5)[3]["question"]


def test_row_error_is_a_value_error():
    assert issubclass(RowError, ValueError)


def test_broken_picture_inside_a_table_is_skipped(tiny, tmp_path):
    """A picture embedded in parquet that cannot be opened: its row is named and skipped, in training and in pairs alike."""
    policy, codec = tiny
    whole = io.BytesIO()
    blank().save(whole, "PNG")
    rows = [{"question": "count the circles .", "instruction": "", "answer": "2", "images": [{"bytes": picture, "path": None}],
             "chosen": [{"role": "assistant", "content": "2"}], "rejected": [{"role": "assistant", "content": "3"}]}
            for picture in (whole.getvalue(), b"no picture at all")]
    table = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    table.to_parquet(tmp_path / "rows.parquet")
    warned = []
    assert len(encode_all(load_rows(str(tmp_path / "rows.parquet")), codec, warn=warned.append)) == 1
    pairs = dpo_sft.load_pairs(dpo_sft.Config(pairs=str(tmp_path / "rows.parquet")), codec, policy, warned.append)
    assert len(pairs) == 1 and ["picture cannot be read" in w for w in warned] == [True, True]
    assert "--data" in warned[0] and "--pairs" in warned[1] and all("row number 1" in w for w in warned)
