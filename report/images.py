"""Images as data inside the page, each once, and none larger than it is shown."""

import base64
import io

from PIL import Image

LONGEST = 360  # pixels of the longer side


class ImageStore:
    """The images of a page; `add` returns an image's number in it."""

    def __init__(self):
        self.urls: list[str] = []
        self.number_of: dict[str, int] = {}

    def add(self, image: Image.Image) -> int:
        return self.add_url(data_url(image))

    def add_url(self, url: str) -> int:
        if url not in self.number_of:
            self.number_of[url] = len(self.urls)
            self.urls.append(url)
        return self.number_of[url]


def data_url(image: Image.Image) -> str:
    """The image as a `data:` address: PNG, or JPEG where that is smaller (photographs)."""
    image = image.convert("RGB")
    image.thumbnail((LONGEST, LONGEST))
    encoded = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 80})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"
