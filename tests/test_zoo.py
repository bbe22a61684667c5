"""A zoo of odd and broken images and rows: each is read right, or refused by its name.

None stops a run, and none changes its neighbours.
"""

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from conftest import blank, png_of_size
from model.images import MAX_PIXELS, load_image
from model.prompts import THINK_INSTRUCTION
from model.records import ExampleError
from sources import load_evaluation_sets, load_examples
from sources.columns import to_example
from sources.stream import encode_all

ROOT = Path(__file__).parent.parent
GREY = (128, 128, 128)


def encoded(image: Image.Image, kind: str = "PNG", **more) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def stripes(mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue, 40 x 20."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    return image.convert(mode)


def rotated() -> bytes:
    """Stored on its side, with the mark that says so: upright it is 40 x 20 again."""
    image = stripes().rotate(90, expand=True)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    return encoded(image, "PNG", exif=exif)


def animated(kind: str) -> bytes:
    other = Image.new("RGB", (40, 20), "green")
    return encoded(stripes(), kind, save_all=True, append_images=[other], lossless=True)


def clear(mode: str) -> bytes:
    """Transparent all over: white, whatever colour lies below."""
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    return encoded(image.convert(mode))


def sixteen_bits(value: int) -> bytes:
    return encoded(Image.fromarray(np.full((4, 4), value, np.uint16)))


def floats(value: float) -> bytes:
    return encoded(Image.fromarray(np.full((4, 4), value, np.float32)), "TIFF")


def integers(value: int) -> bytes:
    return encoded(Image.fromarray(np.full((4, 4), value, np.int32)), "TIFF")


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
READ_RIGHT = {  # name -> file, size, colour of the first and of the last pixel
    "1x1": (encoded(Image.new("RGB", (1, 1), "red")), (1, 1), RED, RED),
    "27x400": (encoded(Image.new("RGB", (27, 400), "red")), (27, 400), RED, RED),
    "jpeg": (encoded(stripes(), "JPEG", quality=100, subsampling=0), (40, 20), RED, BLUE),
    "bmp": (encoded(stripes(), "BMP"), (40, 20), RED, BLUE),
    "webp": (encoded(stripes(), "WEBP", lossless=True), (40, 20), RED, BLUE),
    "ppm": (encoded(stripes(), "PPM"), (40, 20), RED, BLUE),
    "palette": (encoded(stripes("P")), (40, 20), RED, BLUE),
    "palette, transparent": (encoded(stripes("P"), transparency=0), (40, 20), None, None),
    "black and white": (encoded(Image.new("1", (4, 4), 1)), (4, 4), WHITE, WHITE),
    "grey": (encoded(Image.new("L", (4, 4), 128)), (4, 4), GREY, GREY),
    "grey and alpha": (clear("LA"), (4, 4), WHITE, WHITE),
    "alpha": (clear("RGBA"), (4, 4), WHITE, WHITE),
    "RGB, one colour transparent": (
        encoded(stripes(), transparency=(255, 0, 0)), (40, 20), WHITE, BLUE),
    "CMYK": (encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 127)), "TIFF"), (4, 4), GREY, GREY),
    "16 bits": (sixteen_bits(128 * 256 + 7), (4, 4), GREY, GREY),
    "16 bits, white": (sixteen_bits(65535), (4, 4), WHITE, WHITE),
    "32 bits": (integers(128 * 256), (4, 4), GREY, GREY),
    "floats to 1": (floats(128 / 255), (4, 4), GREY, GREY),
    "floats to 255": (floats(128.0), (4, 4), GREY, GREY),
    "EXIF-rotated": (rotated(), (40, 20), RED, BLUE),
    "animated gif": (animated("GIF"), (40, 20), RED, BLUE),
    "animated webp": (animated("WEBP"), (40, 20), RED, BLUE),
    "animated png": (animated("PNG"), (40, 20), RED, BLUE),
}


@pytest.mark.parametrize("name", READ_RIGHT)
def test_images_are_read_right(name):
    """Size and two pixels. Of a file and of its bytes alike."""
    content, size, first, last = READ_RIGHT[name]
    image = load_image({"bytes": content, "path": None}, "x")
    assert image.mode == "RGB"
    assert image.size == size
    if first is not None:
        assert image.getpixel((0, 0)) == pytest.approx(first, abs=2)
        assert image.getpixel((size[0] - 1, size[1] - 1)) == pytest.approx(last, abs=2)


def test_plain_convert_gets_16_bits_wrong():
    """The classic mistake: all but the darkest of 65,536 shades of grey become white."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    content = encoded(Image.fromarray(values))
    read = np.asarray(load_image({"bytes": content}, "x"))[..., 0]
    assert read.tolist() == (values // 256).tolist()

    plain = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[..., 0]
    assert (plain == 255).mean() > 0.99


HALF = encoded(Image.effect_noise((64, 64), 50))
BROKEN = {  # name -> image, a word of the refusal
    "a gigapixel": ({"bytes": png_of_size(40_000, 25_000)}, "1000000000 pixels"),
    "144 megapixels": ({"bytes": png_of_size(12_000, 12_000)}, "144 million"),
    "just over the limit": ({"bytes": png_of_size(MAX_PIXELS + 1, 1)}, "million"),
    "no pixels behind the header": ({"bytes": png_of_size(500, 500)}, "image"),
    "truncated png": ({"bytes": HALF[: len(HALF) // 2]}, "truncated"),
    "truncated jpeg": ({"bytes": encoded(stripes(), "JPEG")[:-60]}, "truncated"),
    "truncated header": ({"bytes": HALF[:20]}, "image"),
    "zero bytes": ({"bytes": b""}, "cannot identify"),
    "text as .png": ({"bytes": b"no image at all"}, "cannot identify"),
    "html as .jpg": ({"bytes": b"<html>404</html>"}, "cannot identify"),
    "svg": ({"bytes": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, "cannot identify"),
    "postscript": ({"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "identify"),
    "missing": ("nowhere/a.png", "No such file"),
    "a folder": (str(ROOT), "directory"),
    "a path with a zero": ("a\0.png", "null"),
    "null": (None, "NoneType, wanted"),
    "a number": (7, "int, wanted"),
    "a list": ([1, 2], "list, wanted"),
    "an empty dictionary": ({}, "neither bytes nor a path"),
    "bytes as text": ({"bytes": "abc"}, "bytes-like"),
    "floats beyond 255": ({"bytes": floats(1e6)}, "grey values"),
    "not a number": ({"bytes": floats(float("nan"))}, "grey values"),
    "negative": ({"bytes": integers(-1)}, "grey values"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_refused_by_name(tiny, name):
    """An ExampleError with the id and the reason; the examples beside it stay what they are."""
    _, encoder = tiny
    image, word = BROKEN[name]
    good = [{"id": f"good{i}", "images": [blank()], "question": "count", "instruction": ""}
            for i in range(2)]
    bad = {**good[0], "id": "bad7", "images": [image]}

    warnings = []
    prompts = encode_all([good[0], bad, good[1]], encoder, warn=warnings.append)
    assert len(warnings) == 1
    assert "example bad7: image cannot be read" in warnings[0]
    assert word in warnings[0]

    alone = encode_all(good, encoder)
    assert [p.example["id"] for p in prompts] == ["good0", "good1"]
    assert all((a.pixel_values == b.pixel_values).all() for a, b in zip(prompts, alone))


def test_odd_shapes_meet_the_processor(tiny):
    """1 x 1 and 27 x 400 are scaled up; a ratio over 200 is refused; order does not matter."""
    _, encoder = tiny

    def example(width, height):
        image = Image.new("RGB", (width, height), "red")
        return {"id": f"{width}x{height}", "images": [image], "question": "q", "instruction": ""}

    warnings = []
    sizes = [(1, 1), (27, 400), (10, 3000), (3000, 10), (84, 84)]
    examples = [example(*size) for size in sizes]
    grids = {p.example["id"]: p.image_grid_thw.tolist()
             for p in encode_all(examples, encoder, warn=warnings.append)}
    assert set(grids) == {"1x1", "27x400", "84x84"}
    assert ["10x3000" in warnings[0], "3000x10" in warnings[1]] == [True, True]

    again = encode_all(examples[::-1], encoder, warn=warnings.append)
    assert {p.example["id"]: p.image_grid_thw.tolist() for p in again} == grids


def test_flipped_bytes_never_stop_a_run():
    """Files of every kind with random bytes changed: an image or an ExampleError, nothing else."""
    draw = random.Random(0)
    files = [encoded(stripes(), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")]
    files += [rotated(), sixteen_bits(5), encoded(stripes("P")), floats(0.5)]
    outcomes = set()
    for _ in range(600):
        content = bytearray(draw.choice(files))
        for _ in range(draw.choice([1, 3, 20])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        try:
            outcomes.add(load_image({"bytes": bytes(content)}, "x").mode)
        except ExampleError:
            outcomes.add("refused")
    assert outcomes == {"RGB", "refused"}


MEASURE = """
import resource, sys
from model.images import load_image
from model.records import ExampleError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = peak()
for name in sys.argv[1:]:
    try:
        said = load_image(name, "x").size
    except ExampleError:
        said = "refused"
    print(said, "|", peak() - start)
"""


def test_memory_is_bounded(tmp_path):
    """Peaks of another process: a gigapixel costs nothing, a tenth of the limit 13 bytes a pixel.

    The most is asked by transparency. 5 MB are left for the process itself.
    """
    side = int((MAX_PIXELS / 10) ** 0.5)
    (tmp_path / "bomb.png").write_bytes(png_of_size(40_000, 25_000))
    deep = Image.fromarray(np.zeros((side, side), np.uint16))
    deep.save(tmp_path / "deep.png", compress_level=1)
    Image.new("RGBA", (side, side)).save(tmp_path / "alpha.png", compress_level=1)

    files = [str(tmp_path / f"{name}.png") for name in ("bomb", "deep", "alpha")]
    command = [sys.executable, "-c", MEASURE, *files]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    said, peaks_mb = zip(*[line.split(" | ") for line in out.strip().split("\n")])
    assert said == ("refused", f"({side}, {side})", f"({side}, {side})")
    assert float(peaks_mb[0]) < 5
    assert max(float(peak) for peak in peaks_mb) < 13 * side**2 / 1e6 + 5


# --- Rows ----------------------------------------------------------------------------------------

PLAIN = {"id": "r", "question": "how many ?", "answer": "2", "images": []}
ROWS = {  # name -> what is odd about the row, a word of the refusal (None: it is used)
    "plain": ({}, None),
    "null question": ({"question": None}, "no question"),
    "empty question": ({"question": ""}, "no question"),
    "question is a number": ({"question": 5}, "int as question"),
    "question is a list": ({"question": ["a"]}, "list as question"),
    "null answer": ({"answer": None}, "no answer"),
    "empty answer": ({"answer": "  "}, "no answer"),
    "answer is a number": ({"answer": 2}, None),
    "unbalanced box": ({"answer": "\\boxed{2"}, None),
    "unbalanced fraction": ({"answer": "\\boxed{\\frac{1}{2}"}, None),
    "empty choices": ({"choices": []}, None),
    "null choices": ({"choices": None}, None),
    "choices are numbers": ({"choices": [1, 2], "answer": "A"}, None),
    "choices are text": ({"choices": "cat, dog"}, "str as choices"),
    "eleven choices": ({"choices": list("abcdefghijk")}, "more than 10 choices"),
    "unknown answer type": ({"answer_type": "poem"}, "answer_type"),
    "null images": ({"images": None}, None),
    "images are a path": ({"images": "a.png"}, None),
    "an image is null": ({"images": [None]}, "NoneType, wanted"),
    "an image is missing": ({"images": ["nowhere.png"]}, "No such file"),
    "an image too many": ({"images": ["a.png"] * 2, "question": "<image> q"}, "placeholders"),
    "an image too few": ({"question": "<image> q"}, "placeholders"),
    "five images": ({"images": ["a.png"] * 5, "question": "<image>" * 5 + "q"}, None),
    "an image token in words": ({"question": "<|image_pad|> what ?"}, "image tokens"),
    "a million characters": ({"question": "how many ? " * 100_000}, "max_prompt_tokens"),
    "odd line breaks": ({"question": "how\u2028many\x00 ?"}, None),
    "half a character": ({"question": "how \ud800 many ?"}, "characters"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_used_or_refused_by_name(tiny, tmp_path, name):
    """Each odd row stands in a jsonl file of its own, between two plain ones."""
    _, encoder = tiny
    odd, word = ROWS[name]
    blank().save(tmp_path / "a.png")
    rows = [{**PLAIN, "id": "first"}, {**PLAIN, **odd, "id": "odd"}, {**PLAIN, "id": "last"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    class Examples(list):
        """The rows as they come, without the types that a column of a table would force on them."""

        def __getitem__(self, i):
            return to_example(super().__getitem__(i), i, THINK_INSTRUCTION, str(file))

    warnings = []
    prompts = encode_all(Examples(rows), encoder, 3000, warnings.append)
    ids = [prompt.example["id"] for prompt in prompts]
    if word is None:
        assert warnings == []
        assert ids == ["first", "odd", "last"]
    else:
        assert ids == ["first", "last"]
        assert len(warnings) == 1
        assert "example odd" in warnings[0]
        assert word in warnings[0]


def test_text_only_and_five_images_in_one_table(tiny, tmp_path):
    """Embedded images, none and five in turn: each row has its own."""
    _, encoder = tiny
    rows = []
    for i, count in enumerate((0, 5, 0, 1)):
        images = [{"bytes": encoded(Image.new("RGB", (28 * (j + 1), 28), "red")), "path": None}
                  for j in range(count)]
        rows.append({**PLAIN, "id": str(i), "images": images})
    table = datasets.Dataset.from_list(rows)
    table = table.cast_column("images", datasets.List(datasets.Image()))
    table.to_parquet(str(tmp_path / "t.parquet"))

    prompts = encode_all(load_examples(str(tmp_path / "t.parquet")), encoder)
    grids = [p.image_grid_thw for p in prompts]
    assert [0 if grid is None else len(grid) for grid in grids] == [0, 5, 0, 1]


def test_ids_that_come_twice_are_told_apart(tmp_path):
    """pass@k groups responses by id: two questions of one id would become one question."""
    rows = [{**PLAIN, "question": question} for question in ("one ?", "two ?", "three ?")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = []
    sets = load_evaluation_sets(
        str(file), split="test", count=9, seed=0, instruction="", warn=said.append)
    assert [example["id"] for example in sets["id"]] == ["r", "r (2)", "r (3)"]
    assert said == ["2 examples have the id of another; they are counted on, as in 'r (2)'"]
