"""The frozen encoders a tower can fuse: a registry from a kind (clip, sam, …) to its builder.

A builder reads small files only and returns an `EncoderSpec`: the numbers that the tower needs for its grid, and how to
load the weights later. Every loaded encoder maps normalised pixels (N, 3, s, s) to a feature map (N, C, g, g).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .sam import FEATURES, build_neck, grid_of
from .sam_weights import load_sam, read_shape
from .sources import read_config, read_normalisation

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class EncoderOptions:
    """Choices that builders may read; see `FusedVisionTower` for their meaning."""

    clip_select_layer: int = -2
    clip_select_feature: str = "patch"
    sam_image_size: int | None = None
    sam_token_merge: str = "unshuffle"
    sam_select_feature: str = "neck"
    sam_trainable: str = "none"


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder before its weights are loaded.

    Args:
        image_size: side of its input in pixels.
        patch_size: side of a patch in pixels; the grid is image_size // patch_size.
        width: channels of a cell of its map, after `neck` where that is set.
        image_mean: of pixels in 0..1, for each colour.
        image_std: likewise.
        load: builds the module and reads the weights (float32, CPU).
        merge: how a finer grid comes to the reference grid: ``unshuffle`` (whole cells) or ``pool``.
        neck: builds the part that the projector trains; None: the map needs no further module.
        inner_width: channels of a cell of its map before `neck`.
    """

    image_size: int
    patch_size: int
    width: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    load: Callable[[], nn.Module]
    merge: str = "pool"
    neck: Callable[[], nn.Module] | None = None
    inner_width: int = 0

    @property
    def grid(self) -> int:
        """Cells along a side of the feature map."""
        return self.image_size // self.patch_size


EncoderBuilder = Callable[[str, EncoderOptions], EncoderSpec]
ENCODERS: dict[str, EncoderBuilder] = {}

# Our choice for `sam_clip_fused` without sources: the encoders that the paper names (section 4), CLIP at 336 px.
DEFAULT_SOURCES = {"clip": "openai/clip-vit-large-patch14-336", "sam": "facebook/sam-vit-large"}


def register_encoder(kind: str) -> Callable[[EncoderBuilder], EncoderBuilder]:
    """Registers a builder under a kind, the word that stands before ``=`` in ``fused:kind=source``.

    Raises:
        ValueError: the kind is taken.
    """

    def register(builder: EncoderBuilder) -> EncoderBuilder:
        if kind in ENCODERS:
            taken = ENCODERS[kind]
            raise ValueError(
                f"Encoder kind {kind!r} is taken by {taken.__module__}.{taken.__qualname__}; "
                f"{builder.__module__}.{builder.__qualname__} needs another name."
            )
        ENCODERS[kind] = builder
        return builder

    return register


def describe_encoder(kind: str, source: str, options: EncoderOptions) -> EncoderSpec:
    """The spec of an encoder.

    Raises:
        ValueError: unknown kind, or what its builder refuses.
    """
    if kind not in ENCODERS:
        raise ValueError(f"Encoder kind {kind!r} is unknown. Known: {', '.join(ENCODERS)}; register_encoder adds one.")
    return ENCODERS[kind](source, options)


def parse_tower_name(name: str | None) -> dict[str, str] | None:
    """What a ``--vision_tower`` value means to us.

    ``sam_clip_fused`` is CLIP and SAM from `DEFAULT_SOURCES`;
    ``fused:clip=folder,sam=sam_vit_l_0b3195.pth,dinov2=facebook/dinov2-large`` names kinds and sources, in order.

    Returns:
        kind -> source, or None for a name that is not ours (LLaVA then handles it; nothing is guessed from substrings).

    Raises:
        ValueError: ``fused:`` with something else than ``kind=source`` pairs behind it.
    """
    if name == "sam_clip_fused":
        return dict(DEFAULT_SOURCES)
    if not name or not name.startswith("fused:"):
        return None
    sources: dict[str, str] = {}
    for pair in name[len("fused:") :].split(","):
        kind, _, source = (part.strip() for part in pair.partition("="))
        if not kind or not source or kind in sources:
            raise ValueError(
                f"--vision_tower {name}: {pair!r} is no new kind=source pair. Write "
                f"fused:clip=FOLDER,sam=FOLDER with each kind once; known kinds: {', '.join(ENCODERS)}."
            )
        sources[kind] = source
    return sources


class PatchMap(nn.Module):
    """A transformers vision model as (N, 3, s, s) -> (N, C, g, g).

    Args:
        model: returns `hidden_states` and `last_hidden_state` of (N, skip + g*g, C).
        grid: g.
        skip: tokens before the patches (1: the class token).
        layer: index into `hidden_states`; None: `last_hidden_state`, which has passed the model's final norm.
    """

    def __init__(self, model: nn.Module, grid: int, skip: int, layer: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.grid = grid
        self.skip = skip
        self.layer = layer

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (N, 3, s, s) -> (N, C, g, g)."""
        output = self.model(pixels, output_hidden_states=self.layer is not None)
        tokens = output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]
        return tokens[:, self.skip :].transpose(1, 2).unflatten(2, (self.grid, self.grid))


@register_encoder("clip")
def build_clip(source: str, options: EncoderOptions) -> EncoderSpec:
    """CLIP's vision model, features as LLaVA's ``CLIPVisionTower`` (hidden state `clip_select_layer`, patches only)."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if options.clip_select_feature != "patch":
        raise ValueError(
            f"--mm_vision_select_feature {options.clip_select_feature}: the encoders are fused cell by cell on a "
            "square grid, where a class token has no place. Allowed: patch. Leave the flag out or set it to patch."
        )
    config = _vision_config(source, "clip", CLIPVisionConfig)
    layers = config.num_hidden_layers
    if not -layers - 1 <= options.clip_select_layer <= layers:
        raise ValueError(
            f"--mm_vision_select_layer {options.clip_select_layer}: {source} has {layers} layers, so {-layers - 1} to "
            f"{layers} are allowed. LLaVA's usual choice is -2."
        )
    return _patch_spec(
        source, config, CLIPVisionModel, (OPENAI_MEAN, OPENAI_STD), skip=1, layer=options.clip_select_layer
    )


register_encoder("biomedclip")(build_clip)  # BiomedCLIP in Hugging Face's CLIP format


@register_encoder("sam")
def build_sam(source: str, options: EncoderOptions) -> EncoderSpec:
    """SAM's image encoder from a folder, a hub name or segment-anything's ``.pth``.

    Our choice: SAM's mean and deviation, but square padding around the picture as for CLIP, so that both encoders see
    the same field of view (SAM itself pads below and right).
    """
    for value, allowed, flag in (
        (options.sam_select_feature, FEATURES, "sam_select_feature"),
        (options.sam_token_merge, ("unshuffle", "pool"), "sam_token_merge"),
        (options.sam_trainable, ("none", "neck"), "sam_trainable"),
    ):
        if value not in allowed:
            raise ValueError(f"--{flag} {value}: not a known value. Allowed: {', '.join(allowed)}.")
    shape = read_shape(source)
    size = shape.image_size if options.sam_image_size is None else options.sam_image_size
    grid_of(size, shape.patch_size)
    train_neck = options.sam_trainable == "neck"
    inner = "last_hidden" if train_neck else options.sam_select_feature
    mean, std = read_normalisation(source, IMAGENET_MEAN, IMAGENET_STD)
    return EncoderSpec(
        image_size=size,
        patch_size=shape.patch_size,
        width=shape.out_channels if train_neck or inner == "neck" else shape.hidden_size,
        image_mean=mean,
        image_std=std,
        load=lambda: load_sam(source, size, inner),
        merge=options.sam_token_merge,
        neck=(lambda: build_neck(shape.hidden_size, shape.out_channels)) if train_neck else None,
        inner_width=shape.hidden_size,
    )


@register_encoder("dinov2")
def build_dinov2(source: str, options: EncoderOptions) -> EncoderSpec:
    """DINOv2's patch tokens after its final norm, as its authors use them for dense tasks."""
    from transformers import Dinov2Config, Dinov2Model

    config = _vision_config(source, "dinov2", Dinov2Config)
    return _patch_spec(source, config, Dinov2Model, (IMAGENET_MEAN, IMAGENET_STD), skip=1)


@register_encoder("siglip")
def build_siglip(source: str, options: EncoderOptions) -> EncoderSpec:
    """SigLIP's patch tokens after its final norm (it has no class token)."""
    try:
        from transformers import SiglipVisionConfig, SiglipVisionModel
    except ImportError as error:
        import transformers

        raise ValueError(
            f"siglip encoder {source!r}: transformers {transformers.__version__} has no SigLIP. It came with 4.37, "
            "which LLaVA's git head uses; install that, or choose clip."
        ) from error
    config = _vision_config(source, "siglip", SiglipVisionConfig)
    return _patch_spec(source, config, SiglipVisionModel, (HALF_MEAN, HALF_STD), skip=0)


def _vision_config(source: str, kind: str, config_class: Any) -> Any:
    """The vision part of a ``config.json``, checked to be of the wanted family."""
    values = read_config(source, kind)
    given, wanted = str(values.get("model_type", "none")), str(config_class.model_type)
    if given not in (wanted, wanted.removesuffix("_vision_model")):
        raise ValueError(
            f"{kind} encoder {source!r}: its config.json is of model_type {given}, needed is {wanted}. "
            "Give that kind of model, or name the right kind before it (fused:kind=source)."
        )
    return config_class(**values.get("vision_config", values))


def _patch_spec(
    source: str,
    config: Any,
    model_class: Any,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    *,
    skip: int,
    layer: int | None = None,
) -> EncoderSpec:
    mean, std = read_normalisation(source, *normalisation)
    grid = config.image_size // config.patch_size
    return EncoderSpec(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.hidden_size,
        image_mean=mean,
        image_std=std,
        load=lambda: PatchMap(_load_pretrained(model_class, source), grid, skip, layer),
    )


def _load_pretrained(model_class: Any, source: str) -> nn.Module:
    with _whole_tensors():
        model, report = model_class.from_pretrained(source, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(
            f"{model_class.__name__} from {source!r}: weights are missing ({', '.join(report['missing_keys'][:4])} …), "
            "they would stay random. Download the model again, or give a folder of this kind of model."
        )
    return model


@contextmanager
def _whole_tensors() -> Iterator[None]:
    """Keeps transformers from cutting a frozen encoder into ZeRO-3 shards.

    ``from_pretrained`` does so whenever a ZeRO-3 TrainingArguments is alive, and the tower lives outside the engine
    that would gather the pieces: the first convolution would then see an empty weight.
    """
    from transformers.integrations import deepspeed

    active = getattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = active
