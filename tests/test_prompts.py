"""Images and prompts: what cannot be used is named, and nothing is cut or swapped silently."""

import io

import pytest
from PIL import Image

from conftest import blank, make_example
from model.prompts import chat_messages, load_image
from model.records import ExampleError


def with_image(image, **more) -> dict:
    """An example with this one image."""
    return {**make_example(0), "images": [image], **more}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "CMYK", "1"])
@pytest.mark.parametrize("size", [(1, 1), (27, 40), (300, 20), (84, 84)])
def test_any_image_becomes_rgb_and_is_encoded(tiny, mode, size):
    """Palettes, transparency, single pixels: upright RGB, and as many tokens as the grid says."""
    _, encoder = tiny
    prompt = encoder.encode(with_image(blank(size, mode)))

    patches = int(prompt.image_grid_thw.prod(-1).sum())
    assert int((prompt.ids == encoder.image_token_id).sum()) == patches // 4
    assert len(prompt.pixel_values) == patches


def test_transparency_is_white_and_exif_is_upright(tmp_path):
    """A transparent red pixel is white; a photo that is to be turned by a quarter is turned.

    Also where a palette says which colour is transparent, as in a GIF or a small PNG.
    """
    white = (255, 255, 255)
    for mode, clear in (("RGBA", (255, 0, 0, 0)), ("LA", (100, 0)), ("PA", (0, 0))):
        assert load_image(Image.new(mode, (4, 4), clear), "r").getpixel((0, 0)) == white

    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])  # 0 is red, 1 is blue
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 0
    for suffix in ("gif", "png"):
        palette.save(tmp_path / f"palette.{suffix}")
        assert Image.open(tmp_path / f"palette.{suffix}").mode == "P"

        image = load_image(str(tmp_path / f"palette.{suffix}"), "r")
        assert image.getpixel((0, 0)) == white
        assert image.getpixel((1, 0)) == (0, 0, 255)

    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by a quarter
    file = tmp_path / "turned.jpg"
    Image.new("RGB", (60, 30)).save(file, exif=exif.tobytes())
    assert load_image(str(file), "r").size == (30, 60)


def write_nothing(file) -> None:
    pass


def write_half_a_jpeg(file) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    file.write_bytes(buffer.getvalue()[:200])


def write_text(file) -> None:
    file.write_text("not an image")


def write_a_stripe(file) -> None:
    blank((3000, 10)).save(file)  # sides 300 : 1, the image processor refuses more than 200


@pytest.mark.parametrize(
    "write", [write_nothing, write_half_a_jpeg, write_text, write_a_stripe]
)
def test_unreadable_images_name_their_example(tiny, tmp_path, write):
    """Each is an ExampleError with the id, so that loaders can skip and count the example."""
    _, encoder = tiny
    file = tmp_path / "p.jpg"
    write(file)
    with pytest.raises(ExampleError, match="example r7"):
        encoder.encode(with_image(str(file), id="r7"))


def test_loader_has_no_memory(tiny):
    """An image's pixels do not depend on the image before it."""
    _, encoder = tiny
    small, large = with_image(blank((20, 20))), with_image(blank((140, 84)))

    alone = encoder.encode(large).pixel_values
    encoder.encode(small)
    assert encoder.encode(large).pixel_values.equal(alone)


def test_prompt_over_the_limit_is_refused(tiny):
    """Named, never cut: cutting would lose image tokens while the pixels stay."""
    _, encoder = tiny
    length = len(encoder.encode(make_example(1)).ids)

    assert len(encoder.encode(make_example(1), max_prompt_tokens=length).ids) == length
    with pytest.raises(ExampleError, match="--max_prompt_tokens"):
        encoder.encode(make_example(1), max_prompt_tokens=length - 1)


def test_image_marks_place_images():
    """The i-th `<image>` is image i; without any, all images lead; a wrong number is refused."""

    def types(question):
        return [part["type"] for part in chat_messages(question, 2, "r")[0]["content"]]

    assert types("compare <image> with <image> .") == ["text", "image", "text", "image", "text"]
    assert types("count") == ["image", "image", "text"]
    with pytest.raises(ExampleError, match="2 <image> placeholders, 1 images"):
        chat_messages("<image> <image>", 1, "r")


def test_question_that_writes_an_image_token_is_refused(tiny):
    """The template's image token in a question would count as an image that is not there."""
    _, encoder = tiny
    with pytest.raises(ExampleError, match="image tokens in its text"):
        encoder.encode(make_example(1, "count <|image_pad|> ."))


def test_prompt_ids_are_a_prefix(tiny):
    """Chosen and rejected share the very same prompt ids, images expanded, and end in EOS."""
    _, encoder = tiny
    tokenizer = encoder.tokenizer
    prompt = encoder.encode(make_example(2))
    prompt_text = tokenizer.decode(prompt.ids.tolist())

    for text in ("<think> that is 2 . </think> <answer> 2 </answer>", "answer : 2"):
        completion = encoder.encode_completion(text, tokenizer.eos_token_id)
        together = tokenizer(f"{prompt_text} {text}", add_special_tokens=False)["input_ids"]
        assert [*prompt.ids.tolist(), *completion[:-1].tolist()] == together
        assert completion[-1] == tokenizer.eos_token_id


def test_example_error_is_a_value_error():
    """So a stage prints it as one line, like every other error that the user can mend."""
    assert issubclass(ExampleError, ValueError)
