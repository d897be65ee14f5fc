"""Several frozen encoders that look at the same pictures and answer on one token grid (paper section 3.2).

A plain class, not an ``nn.Module``: encoders that are no submodules of the language model are not cut up by ZeRO-3
(ranks may encode different numbers of frames), are not in checkpoints and not in ``state_dict``. It has the attributes
that LLaVA asks of a vision tower (``CLIPVisionTower``, LLaVA ``multimodal_encoder/clip_encoder.py``).

One grid: the reference is CLIP's, or the first encoder's without CLIP. Another map comes to it by merging whole cells
(space-to-depth: 48x48x256 -> 24x24x1024), by area pooling, or by bilinear enlarging, so token (r, c) is the same place
in every encoder.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoders import EncoderOptions, EncoderSpec, describe_encoder
from .feature_record import unpack
from .image_processor import SquareImageProcessor
from .sources import weights_hash

logger = logging.getLogger(__name__)

FEATURES_VERSION = 1
"""Rises when the code of an encoder or of the image processor comes to give other features: caches are refused then."""


@dataclass(frozen=True)
class TowerDescription:
    """What the rest of the model needs to know of a tower.

    Args:
        widths: kind -> channels of a token, as they reach the projector's linear layers.
        grid: tokens along a side.
        tokens: T = grid * grid.
        image_size: side S of the pixels that enter.
    """

    widths: dict[str, int]
    grid: int
    tokens: int
    image_size: int


class FusedVisionTower:
    """Frozen encoders behind LLaVA's vision-tower contract. Building one reads small files, not the weights.

    Args:
        sources: kind (see ``ENCODERS``) -> folder, hub name or, for sam, a ``.pth``; in the order of the fusion.
        name: what ``--vision_tower`` said; for messages.
        clip_select_layer: index into CLIP's hidden states.
        clip_select_feature: ``patch``; nothing else is allowed.
        sam_image_size: side of SAM's input in pixels; None: what SAM's folder says.
        sam_token_merge: ``unshuffle`` (merge whole cells, keeps detail) or ``pool`` (area mean).
        sam_select_feature: ``neck`` or ``last_hidden``.
        sam_trainable: ``none``, or ``neck``: the tower stops before SAM's neck and gives its map unmerged, the
            projector trains a copy of the neck (`build_neck`) and merges behind it (`merge_sam`).
        encoder_batch_size: frames in one pass.

    Raises:
        ValueError: no or unknown encoders, a missing folder, a wrong ``.pth``, grids that cannot be merged.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        *,
        name: str,
        clip_select_layer: int = -2,
        clip_select_feature: str = "patch",
        sam_image_size: int | None = None,
        sam_token_merge: str = "unshuffle",
        sam_select_feature: str = "neck",
        sam_trainable: str = "none",
        encoder_batch_size: int = 8,
    ) -> None:
        if not sources:
            raise ValueError(f"Vision tower {name!r} names no encoder. Needed: at least one kind=source pair.")
        if encoder_batch_size < 1:
            raise ValueError(f"--encoder_batch_size {encoder_batch_size}: must be 1 or more.")
        options = EncoderOptions(
            clip_select_layer, clip_select_feature, sam_image_size, sam_token_merge, sam_select_feature, sam_trainable
        )
        self.name = name
        self.encoder_batch_size = encoder_batch_size
        self._sources, self._options = dict(sources), options
        self._specs = {kind: describe_encoder(kind, source, options) for kind, source in sources.items()}
        self._encoders: dict[str, nn.Module] = {}
        self._device = torch.device("cpu")
        self._dtype = torch.float32
        self._reference = self._specs["clip"] if "clip" in self._specs else next(iter(self._specs.values()))
        self._description = _describe(self._specs, self._reference)
        self.image_processor = SquareImageProcessor(
            self._description.image_size, self._reference.image_mean, self._reference.image_std
        )

    def describe(self) -> TowerDescription:
        """Widths, grid and input size; known before the weights are loaded."""
        return self._description

    @property
    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Kind -> shape of one frame's features, as `__call__` gives them."""
        grid_tokens, widths = self._description.tokens, self._description.widths
        return {
            kind: (grid_tokens, widths[kind]) if spec.neck is None else (spec.inner_width, spec.grid, spec.grid)
            for kind, spec in self._specs.items()
        }

    def identity(self) -> dict[str, dict[str, Any]]:
        """Kind -> everything that its features depend on, besides the picture: the key of a feature cache.

        Reads the weight files, to hash them. Nobody knows here which options other encoders than CLIP and SAM read, so
        for them all options count.

        Raises:
            ValueError: an encoder has no weight files.
        """
        shared = {
            "version": FEATURES_VERSION,
            "input_size": self._description.image_size,
            "padding": list(self._reference.image_mean),
            "grid": self._description.grid,
        }
        found = {}
        for kind, spec in self._specs.items():
            read = f"{kind}_" if kind in ("clip", "sam") else ""
            own = {name: value for name, value in asdict(self._options).items() if name.startswith(read)}
            if "sam_image_size" in own:  # left out, or given as what the folder says anyway: the same features
                own["sam_image_size"] = spec.image_size
            numbers = {"image_size": spec.image_size, "mean": list(spec.image_mean), "std": list(spec.image_std)}
            found[kind] = {"weights": weights_hash(self._sources[kind]), **numbers, **own, **shared}
        return found

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return bool(self._encoders)

    def load_model(self, device_map: Any = None) -> None:
        """Reads the weights and freezes them; does nothing the second time.

        Args:
            device_map: LLaVA's: a device, ``{"": device}``, or ``auto``. With ``auto`` LLaVA's builder does not call
                `to`, so the tower goes to the first GPU in float16 itself, as the language model does.
        """
        if self.is_loaded:
            return
        # Modules draw first weights before they are filled; a run that reads a cache and loads none shall not differ.
        with torch.random.fork_rng(devices=[]):
            self._encoders = {kind: spec.load().eval().requires_grad_(False) for kind, spec in self._specs.items()}
        place = device_map.get("", "auto") if isinstance(device_map, dict) else device_map
        if place == "auto" and torch.cuda.is_available():
            self.to("cuda", torch.float16)
        else:
            self.to(None if place == "auto" else place)
        logger.info("Vision tower %s: %s", self.name, self._description)

    def unload(self) -> None:
        """Lets the weights go: a run that reads a feature cache needs none."""
        self._encoders = {}

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> FusedVisionTower:
        """Moves every encoder, now or when they are loaded. float16 on a CPU is refused in favour of float32.

        Our choice: LLaVA's entry points ask for float16 everywhere; on a CPU that is slower and less exact.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if device is not None:
            self._device = torch.empty(0, device=device).device  # with its index: "cuda" is cuda:0
        self._dtype = dtype or self._dtype
        if self._device.type == "cpu" and self._dtype == torch.float16:
            self._dtype = torch.float32
        for encoder in self._encoders.values():
            encoder.to(device=self._device, dtype=self._dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where the encoders are."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """In what the encoders compute, and what the features come in."""
        return self._dtype

    @property
    def config(self) -> SimpleNamespace:
        """Of the reference encoder, as LLaVA reads it: image_size // patch_size is the token grid."""
        spec = self._reference
        return SimpleNamespace(image_size=spec.image_size, patch_size=spec.patch_size, hidden_size=spec.width)

    @property
    def hidden_size(self) -> int:
        """Channels of the reference encoder."""
        return self._reference.width

    @property
    def num_patches_per_side(self) -> int:
        """Tokens along a side of the grid."""
        return self._description.grid

    @property
    def num_patches(self) -> int:
        """T, tokens of a frame."""
        return self._description.tokens

    @property
    def dummy_feature(self) -> Tensor:
        """Zeros (1, hidden_size)."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def encoders(self) -> list[nn.Module]:
        """The encoders, once their weights are in memory."""
        return list(self._encoders.values())

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter of every encoder; all frozen."""
        for encoder in self._encoders.values():
            yield from encoder.parameters()

    def build_neck(self) -> nn.Module:
        """A trainable copy of SAM's neck, (N, C, g, g) -> (N, out_channels, g, g).

        Filled with SAM's weights once the tower is loaded. Before that (a model that is restored, whose checkpoint
        brings the neck's weights) it is built as it comes.

        Raises:
            ValueError: the tower was not built with ``sam_trainable="neck"``.
        """
        kind, spec = next(((k, s) for k, s in self._specs.items() if s.neck is not None), (None, None))
        if kind is None or spec is None or spec.neck is None:
            raise ValueError(f"Vision tower {self.name!r} has no trainable neck: build it with sam_trainable='neck'.")
        neck = spec.neck()
        if self.is_loaded:
            neck.load_state_dict(self._encoders[kind].neck.state_dict())  # type: ignore[union-attr]
        return neck

    @property
    def merge_sam(self) -> Callable[[Tensor], Tensor]:
        """What brings the neck's map (N, C, g, g) to the token grid, (N, T, widths["sam"]). Holds no weights."""
        return functools.partial(to_tokens, grid=self._description.grid, merge=self._specs["sam"].merge)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """Looks at pictures, or takes what a feature cache has kept of them.

        Args:
            pixels: (N, 3, S, S), uint8 or float, values 0..255, not normalised; or records (N, R) of a cache, for which
                no weights are needed.

        Returns:
            kind -> (N, T, C) in `dtype`; with ``sam_trainable="neck"`` sam is (N, C, g, g), before its neck.

        Raises:
            RuntimeError: `load_model` has not been called.
            ValueError: pixels of another shape.
        """
        if pixels.ndim == 2:
            return unpack(pixels, self.feature_shapes, self._dtype)
        side = self._description.image_size
        if not self.is_loaded:
            raise RuntimeError(f"Vision tower {self.name!r} has no weights yet: call load_model() first.")
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side) or not len(pixels):
            raise ValueError(
                f"Pixels of shape {tuple(pixels.shape)} were given; needed is (N, 3, {side}, {side}) with N of 1 or "
                "more, as this tower's image_processor makes them."
            )
        firsts, which = equal_frames(pixels)
        features: dict[str, list[Tensor]] = {kind: [] for kind in self._specs}
        for chunk in (pixels if len(firsts) == len(pixels) else pixels[firsts]).split(self.encoder_batch_size):
            colours = chunk.to(self.device).float() / 255
            for kind, spec in self._specs.items():
                features[kind].append(self._encode(kind, spec, colours))
        joined = {kind: torch.cat(parts) for kind, parts in features.items()}
        return joined if len(firsts) == len(pixels) else {kind: found[which] for kind, found in joined.items()}

    def _encode(self, kind: str, spec: EncoderSpec, colours: Tensor) -> Tensor:
        fitted = resize(colours, spec.image_size)
        mean, std = (colours.new_tensor(value).view(3, 1, 1) for value in (spec.image_mean, spec.image_std))
        found = self._encoders[kind](((fitted - mean) / std).to(self.dtype)).to(self.dtype)
        return found if spec.neck is not None else to_tokens(found, self._description.grid, spec.merge)


def equal_frames(pixels: Tensor) -> tuple[list[int], list[int]]:
    """Several questions about one exam bring the same frames into a batch; encoders need to see them once.

    Args:
        pixels: (N, …).

    Returns:
        The places of the frames that differ, each the first of its equals; and for each of the N frames its number
        among those.
    """
    sums = pixels.flatten(1).sum(1, dtype=torch.float64).tolist()
    firsts: list[int] = []
    which = []
    for place, total in enumerate(sums):
        alike = (n for n, first in enumerate(firsts) if sums[first] == total and pixels[first].equal(pixels[place]))
        number = next(alike, len(firsts))
        if number == len(firsts):
            firsts.append(place)
        which.append(number)
    return firsts, which


def resize(colours: Tensor, side: int) -> Tensor:
    """(N, 3, S, S) in 0..1 -> (N, 3, side, side): antialiased bicubic, clipped as an 8-bit resize would be."""
    if colours.shape[-1] == side:
        return colours
    return F.interpolate(colours, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)


def to_tokens(features: Tensor, grid: int, merge: str) -> Tensor:
    """A feature map on the reference grid, as tokens in reading order.

    Args:
        features: (N, C, g, g).
        grid: side of the reference grid.
        merge: ``unshuffle``: the (g / grid)^2 cells under a token are laid side by side (channel c of sub-row i and
            sub-column j becomes c * f * f + i * f + j, f = g / grid); ``pool``: their mean, or bilinear where g < grid.

    Returns:
        (N, grid * grid, C), with ``unshuffle`` C * (g / grid)^2 channels.
    """
    side = features.shape[-1]
    if merge == "unshuffle":
        features = F.pixel_unshuffle(features, side // grid)
    elif side > grid:
        features = F.adaptive_avg_pool2d(features, grid)
    elif side < grid:
        features = F.interpolate(features, size=(grid, grid), mode="bilinear", align_corners=False)
    return features.flatten(2).transpose(1, 2)


def _describe(specs: Mapping[str, EncoderSpec], reference: EncoderSpec) -> TowerDescription:
    grid, widths = reference.grid, {}
    for kind, spec in specs.items():
        if spec.merge == "unshuffle" and spec.grid % grid:
            step = spec.patch_size * grid
            sizes = ", ".join(str(step * factor) for factor in range(1, max(1536 // step, 2) + 1))
            raise ValueError(
                f"{kind} at {spec.image_size} px has {spec.grid} x {spec.grid} cells, which cannot be merged whole "
                f"into the token grid of {grid} x {grid}. Use --sam_image_size with one of {sizes}, "
                "or --sam_token_merge pool."
            )
        widths[kind] = spec.width * ((spec.grid // grid) ** 2 if spec.merge == "unshuffle" else 1)
    return TowerDescription(widths, grid, grid * grid, max(spec.image_size for spec in specs.values()))
