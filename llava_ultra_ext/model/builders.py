"""Configs stop here: from LLaVA's config or arguments to plain numbers, a tower and a projector."""

from __future__ import annotations

from typing import Any

from llava_ultra_ext.arguments import UltraSettings
from llava_ultra_ext.vision.encoders import parse_tower_name
from llava_ultra_ext.vision.projector import UltraProjector
from llava_ultra_ext.vision.sampler import FrameScorer
from llava_ultra_ext.vision.tower import FusedVisionTower


def tower_name(config: Any) -> str | None:
    """The vision tower that a config (``mm_vision_tower``) or LLaVA's arguments (``vision_tower``) name."""
    return getattr(config, "mm_vision_tower", getattr(config, "vision_tower", None))


def is_ultra(config: Any) -> bool:
    """Whether this config or these arguments name a tower of ours; everything else is LLaVA's own business."""
    name = tower_name(config)
    return isinstance(name, str) and parse_tower_name(name) is not None


def build_tower(settings: UltraSettings, name: str) -> FusedVisionTower:
    """The frozen encoders of ``settings``; no weights are read before ``load_model``."""
    return FusedVisionTower(
        settings.sources,
        name=name,
        clip_select_layer=settings.clip_select_layer,
        clip_select_feature=settings.clip_select_feature,
        sam_image_size=settings.sam_image_size,
        sam_token_merge=settings.sam_token_merge,
        sam_select_feature=settings.sam_select_feature,
        sam_trainable=settings.sam_trainable,
        encoder_batch_size=settings.encoder_batch_size,
    )


def tower_from_config(config: Any) -> FusedVisionTower:
    """LLaVA's ``build_vision_tower`` for a saved model of ours (always built without weights: delay_load).

    Raises:
        ValueError: an encoder is not where ``config.json`` says.
    """
    settings = UltraSettings.from_config(config)
    try:
        return build_tower(settings, config.mm_vision_tower)
    except ValueError as error:
        raise ValueError(
            f"{error} The model's config.json names its encoders under ultra_sources ({dict(settings.sources)}): if "
            "the model came from another machine, write their folders or hub names there."
        ) from None


def build_projector(
    settings: UltraSettings, hidden_size: int, projector_type: str, tower: FusedVisionTower
) -> UltraProjector:
    """P1, P2, alpha and the feature score: everything that learns, under the one name that LLaVA saves."""
    neck = tower.build_neck() if settings.sam_trainable == "neck" else None
    return UltraProjector(
        settings.widths,
        hidden_size=hidden_size,
        tokens=settings.tokens,
        projector_type=projector_type,
        alpha_mode=settings.fusion_alpha,
        neck=neck,
        merge=tower.merge_sam if neck is not None else None,
        sampler=FrameScorer(hidden_size, settings.tokens, settings.adr_weights, settings.adr_question_rank),
    )


def projector_from_config(config: Any) -> UltraProjector:
    """LLaVA's ``build_vision_projector`` for a saved model of ours."""
    settings = UltraSettings.from_config(config)
    return build_projector(settings, config.hidden_size, config.mm_projector_type, tower_from_config(config))
