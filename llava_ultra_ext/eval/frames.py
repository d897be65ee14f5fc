"""The pictures of one question or exam, decoded while a long run goes on; or the feature cache in their place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from PIL import Image
from transformers import PretrainedConfig

from llava_ultra_ext.data.cached_frames import check_all_cached, open_cache
from llava_ultra_ext.data.pictures import open_picture
from llava_ultra_ext.model.builders import is_ultra, tower_from_config
from llava_ultra_ext.vision.feature_cache import FeatureCache


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


def open_feature_cache(
    folder: str | None, config: PretrainedConfig, names: Iterable[str], image_folder: str
) -> FeatureCache | None:
    """The cache of ``--feature-cache``, checked to fit a model and to hold its pictures, before the model loads.

    Args:
        folder: None: the flag was left out.
        config: the model's ``config.json``.
        names: every picture of the run.
        image_folder: where their names start.

    Raises:
        ValueError: a stock LLaVA model, no cache, one of other encoders, or one that lacks a picture.
    """
    if folder is None:
        return None
    if not is_ultra(config):
        raise ValueError(f"--feature-cache {folder}: a stock LLaVA model takes pictures only. Leave the flag out.")
    cache = open_cache(folder, tower_from_config(config))
    if cache is not None:
        check_all_cached(cache, names, image_folder)
    return cache
