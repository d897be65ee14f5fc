"""What a request may hold, checked before anything of it is decoded: a small file can hold a very large picture.

Sizes come from the pictures' headers. `check_request` reads LLaVA's worker payload and leaves its pictures undecoded;
`decode` or `check_picture` decode them.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from llava_ultra_ext.data.exam import IMAGE_TOKEN
from llava_ultra_ext.serve.errors import ServeError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is read; the first picture of a file that holds several. Pillow's other readers are less looked after."""

ENVIRONMENT = "ULTRA_SERVE_"
"""``ULTRA_SERVE_FRAMES=16`` changes `Limits.frames`, and so on: LLaVA's worker has no flags of ours."""

_MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """The most that one request may hold. Our choice, each from what ultrasound exams are.

    Args:
        frames: pictures of all exams of a request together; an exam has 5 to 60 stills.
        picture_pixels: of one picture; machines write 0.3 to 2 million, a chest film has up to 16.
        picture_bytes: of one picture's file: an uncompressed one of 8 million pixels.
        request_pixels: of all pictures together, 64 of 1920 x 1080; decoded they take 400 MB.
        request_bytes: of all picture files together.
        prompt_characters: LLaVA's contexts hold 2,048 or 4,096 tokens, a token is one Chinese or about four Latin
            characters; twice that, so that a prompt that fits is never refused, and no tokenizer reads a book.
    """

    frames: int = 64
    picture_pixels: int = 2**24
    picture_bytes: int = 32 * _MIB
    request_pixels: int = 2**27
    request_bytes: int = 256 * _MIB
    prompt_characters: int = 32_768

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Limits:
        """The defaults, changed by variables such as ``ULTRA_SERVE_FRAMES``.

        Raises:
            ValueError: a variable is not a whole number of 1 or more.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        given = {name: whole_number(environment, name.upper()) for name in names}
        return cls(**{name: number for name, number in given.items() if number is not None})


def whole_number(environment: Mapping[str, str], name: str, least: int = 1) -> int | None:
    """The number in ``ULTRA_SERVE_<name>``; None where it is not set.

    Raises:
        ValueError: it is not a whole number of `least` or more.
    """
    text = environment.get(ENVIRONMENT + name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise ValueError(f"{ENVIRONMENT}{name} is {text!r}: give a whole number of {least} or more.")
    return int(text)


def check_picture(data: bytes, limits: Limits) -> Image.Image:
    """Decode a picture file whose header is within the limits.

    Raises:
        ServeError: ``request_too_large``, ``picture_too_large`` or ``bad_picture``.
        MemoryError: there is no room for its pixels.
    """
    return decode(open_header(data, limits))


def open_header(data: bytes, limits: Limits, which: str = "The picture") -> Image.Image:
    """A picture of which only the header was read.

    Args:
        which: how a message names it.

    Raises:
        ServeError: ``request_too_large``, ``picture_too_large`` or ``bad_picture``.
    """
    if len(data) > limits.picture_bytes:
        raise _too_many_bytes(which, len(data), limits.picture_bytes)
    if data[128:132] == b"DICM":
        raise ServeError("bad_picture", f"{which} is a DICOM file: send its frames as PNG, without identifying data.")
    most = f"allowed are {limits.picture_pixels:,} pixels. Send a smaller one"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ServeError("picture_too_large", f"{which} has far too many pixels: {most}.") from None
    except MemoryError:
        raise
    except Exception:  # Pillow raises anything: OSError, SyntaxError, struct.error, …
        known = ", ".join(FORMATS)
        raise ServeError("bad_picture", f"{which} is not a picture that can be read: send one of {known}.") from None
    width, height = picture.size
    if width * height > limits.picture_pixels:
        raise ServeError("picture_too_large", f"{which} has {width} x {height} pixels, {most}.")
    return picture


def decode(picture: Image.Image, which: str = "The picture") -> Image.Image:
    """Decode what `open_header` gave, completely; the same object.

    Raises:
        ServeError: ``bad_picture``: damaged or cut off.
        MemoryError: there is no room for its pixels.
    """
    try:
        picture.load()
    except MemoryError:
        raise
    except Exception:
        raise ServeError("bad_picture", f"{which} is damaged or cut off: export and send it again.") from None
    return picture


def check_request(params: Any, limits: Limits) -> list[Image.Image]:
    """Check LLaVA's worker payload.

    Args:
        params: what the request's JSON held: ``model``, ``prompt``, ``images`` (base64), ``temperature``, ``top_p``,
            ``max_new_tokens``, ``stop``, and our ``heat``.

    Returns:
        The pictures, whose headers were read; `decode` them.

    Raises:
        ServeError: the first thing that is wrong, the cheapest checks first.
    """
    if not isinstance(params, dict):
        raise ServeError("bad_request", f"The request is a JSON {type(params).__name__}: send an object {{…}}.")
    prompt = _check_prompt(params.get("prompt"), limits)
    _check_settings(params)
    images = params.get("images")
    images = [] if images is None else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ServeError("bad_request", "`images` must be a list of texts: each picture's file in base64.")
    _check_counts(len(images), prompt.count(IMAGE_TOKEN), limits)
    return _open_pictures(images, limits)


def _check_counts(images: int, tokens: int, limits: Limits) -> None:
    if images > limits.frames:
        raise ServeError(
            "too_many_frames",
            f"{images} frames were sent, {limits.frames} are allowed in a request. Send fewer, or ask about the exam "
            "in parts.",
        )
    if images != tokens:
        raise ServeError(
            "frames_mismatch",
            f"{images} images but {tokens} {IMAGE_TOKEN} in the prompt. Write one {IMAGE_TOKEN} for each image, "
            "adjacent ones for the frames of one exam.",
        )


def _open_pictures(images: Sequence[str], limits: Limits) -> list[Image.Image]:
    # Four letters of base64 are three bytes: the sizes are known before a byte is decoded.
    sizes = [len(image) // 4 * 3 - image[-2:].count("=") for image in images]
    for place, size in enumerate(sizes, start=1):
        if size > limits.picture_bytes:
            raise _too_many_bytes(f"Picture {place}", size, limits.picture_bytes)
    if sum(sizes) > limits.request_bytes:
        raise _too_many_bytes("All pictures together", sum(sizes), limits.request_bytes)
    pictures, pixels = [], 0
    for place, image in enumerate(images, start=1):
        which = f"Picture {place}"
        try:
            data = base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            message = f"{which} is not base64: send the file's bytes in base64, without a prefix or line breaks."
            raise ServeError("bad_picture", message) from None
        pictures.append(open_header(data, limits, which))
        pixels += math.prod(pictures[-1].size)
        if pixels > limits.request_pixels:
            raise ServeError(
                "picture_too_large",
                f"The pictures have more than {limits.request_pixels:,} pixels together, which is the most that is "
                "allowed. Send fewer or smaller ones.",
            )
    return pictures


def _check_prompt(prompt: Any, limits: Limits) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ServeError("bad_request", "`prompt` must be a text with a question in it.")
    if len(prompt) > limits.prompt_characters:
        raise ServeError(
            "context_too_long",
            f"The prompt has {len(prompt):,} characters, {limits.prompt_characters:,} are allowed. Shorten it, or "
            "start a new conversation.",
        )
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ServeError("bad_request", "`prompt` holds half of a surrogate pair: send valid Unicode.") from None
    return prompt


def _check_settings(params: dict[str, Any]) -> None:
    for name, most in (("temperature", 2.0), ("top_p", 1.0)):  # the ranges of OpenAI's API
        value = params.get(name)
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (known and 0 <= value <= most):
            raise ServeError("bad_request", f"`{name}` must be a number from 0 to {most:g}.")
    tokens = params.get("max_new_tokens")
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise ServeError("bad_request", "`max_new_tokens` must be a whole number of 1 or more.")
    for name in ("stop", "model"):
        if not isinstance(params.get(name), (str, type(None))):
            raise ServeError("bad_request", f"`{name}` must be a text.")
    if not isinstance(params.get("heat"), (bool, type(None))):
        raise ServeError("bad_request", "`heat` must be true or false.")


def _too_many_bytes(which: str, size: int, allowed: int) -> ServeError:
    given, most = (f"{number / _MIB:.1f} MiB" for number in (size, allowed))
    return ServeError("request_too_large", f"{which}: {given}, allowed are {most}. Send fewer or smaller pictures.")
