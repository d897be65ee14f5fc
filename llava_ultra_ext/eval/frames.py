"""The pictures of one question or exam, decoded while a long run goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence

from PIL import Image

from llava_ultra_ext.data.pictures import open_picture


def open_frames(owner: str, names: Sequence[str], folder: str) -> list[Image.Image]:
    """Decode pictures that were checked before the run.

    Args:
        owner: whose they are, for the message.
        names: relative to `folder`.
        folder: the image folder.

    Raises:
        ValueError: one cannot be decoded (the check reads a file's ends only), or has gone.
    """
    pictures = []
    for number, name in enumerate(names, start=1):
        try:
            pictures.append(open_picture(os.path.join(folder, name)))
        except OSError as error:
            raise ValueError(
                f"{owner}: picture {number} of {len(names)} {error}. Repair it and run the same command again: it goes "
                "on from here."
            ) from None
    return pictures
