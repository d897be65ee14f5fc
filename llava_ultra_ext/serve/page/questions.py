"""Template questions by site, in the phrasing that models are trained with (`data.instructions.template`)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import yaml

from llava_ultra_ext.data.sites import load_sites

FILE = Path(__file__).with_name("questions.yaml")
EVERY = "every"
ANY_SITE = ""


@functools.cache
def _read() -> Mapping[str, list[str]]:
    read: Mapping[str, list[str]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return read


def listed() -> list[dict[str, object]]:
    """Name and questions of no site in particular, then of each, as the page's script takes them."""
    return [{"name": name, "questions": questions(key)} for name, key in (("部位：不限", ANY_SITE), *sites())]


def sites() -> list[tuple[str, str]]:
    """Name and key of every site that has questions of its own, in the order of ``sites.yaml``."""
    known = load_sites()
    return [(known.name(key), key) for key in known.sites if key in _read()]


def questions(site: str = ANY_SITE) -> list[str]:
    """Questions about a site, those of every site first.

    Args:
        site: its key; empty: no site is named.
    """
    this = f"该{load_sites().name(site)}超声图像" if site else "该超声图像"
    return [text.replace("{this}", this) for text in (*_read()[EVERY], *(_read()[site] if site else ()))]
