"""Images in: whatever a data set holds becomes an upright RGB image, or is refused by name.

    image        a PIL image, a path, or an encoded file as the `datasets` library stores it,
                 {"bytes": b"...", "path": "..."}

No pixel is decoded before the size in the header is known to be below MAX_PIXELS. Reading then
takes at most 13 bytes a pixel, 650 MB at the limit (test_memory_is_bounded).
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from model.records import ExampleError

MAX_PIXELS = 50_000_000  # of the file; ours. Qwen2.5-VL scales down to 12.8 million or less
# Pillow knows more kinds of files. Some of these run other programs (EPS), none holds a data set.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")

EncodedImage = Image.Image | str | Path | dict


def load_image(image: EncodedImage, example_id: str) -> Image.Image:
    """An image as upright RGB: the first frame, transparent parts white.

    Raises ExampleError naming the example if it cannot be read or is larger than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `check_size` has its own limit, below Pillow's
            opened = open_image(image)
            check_size(opened)
            return to_rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # Pillow raises what it likes on a broken file
        if isinstance(error, MemoryError):
            raise
        kind = type(error).__name__
        is_path = isinstance(image, (str, Path))
        where = f" ({image})" if is_path and str(image) not in str(error) else ""
        message = f"example {example_id}: image cannot be read: {error or kind}{where}"
        raise ExampleError(message) from error


def open_image(image: EncodedImage) -> Image.Image:
    """Open it, its pixels still encoded."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, dict):
        content = image.get("bytes")
        if content is None and not image.get("path"):
            raise ValueError("neither bytes nor a path")
        image = image["path"] if content is None else io.BytesIO(content)
    elif not isinstance(image, (str, Path)):
        raise ValueError(f"{type(image).__name__}, wanted an image, a path or encoded bytes")
    return Image.open(image, formats=FORMATS)


def check_size(image: Image.Image) -> None:
    """Raise ValueError for an image that would take too much memory.

    Trap: a PNG of 2 MB can hold a gigapixel. Pillow's own error for it is no OSError, and up to
    178 million pixels it only warns (test_broken_images_are_refused_by_name).
    """
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width} x {height} pixels are {width * height / 1e6:.0f} million, "
            f"the limit is {MAX_PIXELS / 1e6:.0f} million"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = from_16_bits(image)
    elif image.mode == "F":
        image = from_floats(image)

    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def from_16_bits(image: Image.Image) -> Image.Image:
    """16 bits of grey as 8: the upper half of each value.

    Trap: Pillow's `convert` cuts at 255 instead of scaling, so that all but the darkest pixels
    become white (test_images_are_read_right).
    """
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"grey values from {values.min()} to {values.max()}, wanted 0 to 65535")
    return Image.fromarray((values >> 8).astype(np.uint8))


def from_floats(image: Image.Image) -> Image.Image:
    """Floats as 8 bits of grey: from 0 to 1 if all values are, else from 0 to 255."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (0 <= low and high <= 255):  # also if one is not a number
        raise ValueError(f"grey values from {low} to {high}, wanted 0 to 1, or 0 to 255")
    scale = 255 if high <= 1 else 1
    return Image.fromarray((values * scale).round().astype(np.uint8))
