"""Flags that extend LLaVA's dataclasses, and the settings that travel with a checkpoint.

`UltraModelArguments` and `UltraDataArguments` are mixed into LLaVA's own ``ModelArguments`` and ``DataArguments``
(LLaVA ``train/train.py``), so LLaVA's parser shows and checks them. `UltraSettings` is the part that decides what the
model *is*: it is written into ``config.json`` as ``ultra_…`` and read back by ``load_pretrained_model``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STRATEGIES = ("none", "feature", "attention", "likelihood", "first", "random", "all", "oracle")
TAUGHT = ("attention", "likelihood")
"""Strategies whose feature score is distilled from a teacher that reads the findings (eq. 5)."""

TEACHER_TEXTS = ("findings", "answer")

_LATER = ("adr_question_rank", "adr_teacher_text", "adr_coverage")
"""Settings that config.json of older checkpoints does not have; their defaults are what those were trained with."""

FUSIONS = ("scalar", "channel", "concat")
"""How two encoders' projections become one: an alpha, an alpha a channel, or none (``vision/projector.py``)."""

ATTENTION_LAYERS = 1
"""Default N of eq. 4. Our choice: the paper does not give it. On phantom exams, three seeds each (playground/results),
N = 1 found a valid frame in 89 % at every seed, N = 2 in 48 to 81 %, all four layers in 63 to 85 %."""

MODEL_TYPES = {
    "llama": "llama",
    "llava_llama": "llama",
    "llava": "llama",
    "mistral": "mistral",
    "llava_mistral": "mistral",
}
"""``model_type`` of a base folder -> backbone; ``llava`` is what LLaVA-Med v1.0 and LLaVA 1.0 wrote."""


def _flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _choice(value: str, flag: str, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"--{flag} {value}: not a known value. Allowed: {', '.join(allowed)}.")


@dataclass
class UltraModelArguments:
    """Flags of the tower (section 3.2) and of the sampler (section 3.3)."""

    clip_tower: str | None = _flag(None, "CLIP encoder: a Hugging Face folder or hub name.")
    sam_tower: str | None = _flag(None, "SAM encoder: a Hugging Face folder, a hub name or segment-anything's .pth.")
    sam_image_size: int | None = _flag(
        None, "Side of SAM's input in pixels, a multiple of 16. Default: what the SAM folder says (1024)."
    )
    sam_token_merge: str = _flag("unshuffle", "SAM grid to CLIP grid: unshuffle (whole cells, keeps detail) | pool.")
    sam_select_feature: str = _flag("neck", "SAM features: neck (256 channels) | last_hidden (before it).")
    sam_trainable: str = _flag("none", "What of SAM learns: none | neck (a copy under mm_projector).")
    encoder_batch_size: int = _flag(8, "Frames that go through the encoders (and the teacher) at once.")
    feature_cache: str | None = _flag(
        None, "Folder of `llava-ultra cache build`: frozen features are read from it, no encoder runs."
    )
    mm_fusion_alpha: str = _flag(
        "scalar", "alpha of eq. 2: scalar | channel (one per hidden channel) | concat (none: concatenated channels)."
    )
    adr_strategy: str = _flag("likelihood", f"How one frame of an exam is chosen: {' | '.join(STRATEGIES)}.")
    adr_top_k: int = _flag(1, "Frames kept of an exam.")
    adr_layers: int | None = _flag(
        None, f"First N LLM layers that the teacher uses. Default: attention {ATTENTION_LAYERS}, likelihood all."
    )
    adr_temperature: float = _flag(0.5, "Softmax temperature of the teacher's z-scored scores in eq. 5.")
    adr_loss_weight: float = _flag(1.0, "Weight of L_adr (eq. 5) beside the language-model loss.")
    adr_warmup: float = _flag(
        0.1,
        "Random choice for this long: up to 1 a share of the steps (1: the whole run), above 1 a number of steps.",
    )
    adr_select_by: str = _flag("student", "Who picks the frame in training: student (s_fea) | teacher.")
    adr_weights: str | None = _flag(
        None, "Index of w in eq. 3: channel | token | token_channel. Default: token_channel for feature, else channel."
    )
    adr_question_rank: int = _flag(
        0, "Score frames by the question too: rank of what it adds to w (16 is plenty); 0: w alone, as the paper."
    )
    adr_teacher_text: str = _flag(
        "findings", "What the likelihood teacher reads: findings | answer (the sample's own; the question before it)."
    )
    adr_coverage: float = _flag(
        0.0, "With --adr_top_k above 1: how much a frame loses for showing what a kept one shows; 0: best scores only."
    )
    adr_seed: int = _flag(0, "Seed of the random baseline and of --max_frames.")

    def __post_init__(self) -> None:
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()
        _choice(self.sam_token_merge, "sam_token_merge", ("unshuffle", "pool"))
        _choice(self.sam_select_feature, "sam_select_feature", ("neck", "last_hidden"))
        _choice(self.sam_trainable, "sam_trainable", ("none", "neck"))
        _choice(self.mm_fusion_alpha, "mm_fusion_alpha", FUSIONS)
        _choice(self.adr_strategy, "adr_strategy", STRATEGIES)
        _choice(self.adr_select_by, "adr_select_by", ("student", "teacher"))
        if self.adr_weights is not None:
            _choice(self.adr_weights, "adr_weights", ("channel", "token", "token_channel"))
        _choice(self.adr_teacher_text, "adr_teacher_text", TEACHER_TEXTS)
        self._check_question()
        if self.sam_trainable == "neck" and self.sam_select_feature != "neck":
            raise ValueError(
                "--sam_trainable neck with --sam_select_feature last_hidden: that feature does not pass the neck. "
                "Use --sam_select_feature neck, or --sam_trainable none."
            )
        self._check_numbers()

    def _check_question(self) -> None:
        if self.adr_teacher_text == "answer" and self.adr_strategy != "likelihood":
            raise ValueError(
                f"--adr_teacher_text answer with --adr_strategy {self.adr_strategy}: only the likelihood teacher can "
                "read the answer. Use --adr_strategy likelihood, or leave the flag out."
            )
        if self.adr_question_rank and self.adr_weights == "token":
            raise ValueError(
                "--adr_question_rank with --adr_weights token: the question changes channel weights. Use channel or "
                "token_channel."
            )

    def _check_numbers(self) -> None:
        for name in ("encoder_batch_size", "adr_top_k", "adr_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: must be 1 or more.")
        for name in ("adr_temperature", "adr_loss_weight", "adr_warmup", "adr_coverage"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"--{name} {getattr(self, name)}: must be a finite number.")
        if self.adr_temperature <= 0:
            raise ValueError(f"--adr_temperature {self.adr_temperature}: must be above 0 (the prototype used .5).")
        for name in ("adr_loss_weight", "adr_warmup", "adr_coverage", "adr_question_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)}: must be 0 or more.")


@dataclass
class UltraDataArguments:
    """Flags of exam data (DESIGN section 4)."""

    max_frames: int | None = _flag(None, "At most this many frames an exam: a seeded uniform subset, in order.")
    on_bad_sample: str = _flag("error", "Bad picture or record: error (stop before the model loads) | skip (and list).")
    frame_scores: str | None = _flag(
        None, "Teacher scores that `llava-ultra score-frames` wrote after stage 1. Default: the teacher runs online."
    )
    findings_max_length: int = _flag(512, "Findings tokens that the teacher reads; the rest is cut.")

    def __post_init__(self) -> None:
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()
        _choice(self.on_bad_sample, "on_bad_sample", ("error", "skip"))
        if self.findings_max_length < 1:
            raise ValueError(f"--findings_max_length {self.findings_max_length}: the teacher reads 1 token or more.")
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(
                f"--max_frames {self.max_frames}: an exam keeps at least one frame. "
                "Give 1 or more, or leave the flag out to use every frame."
            )


@dataclass(frozen=True)
class UltraSettings:
    """What a LLaVA-Ultra model is, apart from LLaVA's own config keys.

    Args:
        sources: encoder kind -> folder, hub name or ``.pth``, in the order of the fusion.
        widths: encoder kind -> channels that reach the projector; known after the encoders were described.
        tokens: T, tokens of a frame; 0 until the encoders were described.
        backbone: ``llama`` or ``mistral``: which thin class loads the folder.
        template: LLaVA's ``--version`` of the training; answers are asked for in the same one.
        separator_ids: token ids that may stand between the ``<image>`` tokens of one redundancy group.
    """

    sources: Mapping[str, str]
    clip_select_layer: int = -2
    clip_select_feature: str = "patch"
    sam_image_size: int | None = None
    sam_token_merge: str = "unshuffle"
    sam_select_feature: str = "neck"
    sam_trainable: str = "none"
    encoder_batch_size: int = 8
    fusion_alpha: str = "scalar"
    adr_strategy: str = "likelihood"
    adr_top_k: int = 1
    adr_layers: int | None = None
    adr_temperature: float = 0.5
    adr_loss_weight: float = 1.0
    adr_warmup: float = 0.1
    adr_select_by: str = "student"
    adr_weights: str = "channel"
    adr_question_rank: int = 0
    adr_teacher_text: str = "findings"
    adr_coverage: float = 0.0
    adr_seed: int = 0
    widths: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0
    backbone: str = "llama"
    template: str = "ultra_v1_zh"
    separator_ids: tuple = ()

    @classmethod
    def from_arguments(cls, args: Any, sources: Mapping[str, str]) -> UltraSettings:
        """Settings of a training run, from LLaVA's ModelArguments with ours mixed in."""
        layers = args.adr_layers
        if layers is None and args.adr_strategy == "attention":
            layers = ATTENTION_LAYERS
        return cls(
            sources=dict(sources),
            clip_select_layer=args.mm_vision_select_layer,
            clip_select_feature=args.mm_vision_select_feature,
            fusion_alpha=args.mm_fusion_alpha,
            adr_layers=layers,
            template=args.version,
            # Our choice, from a prototype: a distilled score needs no token weights, Func.a is steadier with them.
            adr_weights=args.adr_weights or ("token_channel" if args.adr_strategy == "feature" else "channel"),
            **{
                name: getattr(args, name)
                for name in (
                    "sam_image_size",
                    "sam_token_merge",
                    "sam_select_feature",
                    "sam_trainable",
                    "encoder_batch_size",
                    "adr_strategy",
                    "adr_top_k",
                    "adr_temperature",
                    "adr_loss_weight",
                    "adr_warmup",
                    "adr_select_by",
                    *_LATER,
                    "adr_seed",
                )
            },
        )

    @classmethod
    def from_config(cls, config: Any) -> UltraSettings:
        """Settings of a saved model.

        Raises:
            ValueError: a key is missing, so the folder was not saved by this package or was edited.
        """
        values: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            key = f"ultra_{item.name}"
            if item.name in _LATER and not hasattr(config, key):
                continue
            if not hasattr(config, key):
                raise ValueError(
                    f"config.json has no {key}: it was not saved by llava_ultra_ext, or by another version. "
                    "Load the folder that training wrote, config.json included."
                )
            values[item.name] = getattr(config, key)
        values["separator_ids"] = tuple(values["separator_ids"])
        values["sources"], values["widths"] = dict(values["sources"]), dict(values["widths"])
        return cls(**values)

    def to_config(self, config: Any) -> None:
        """Write every setting into a Hugging Face config as ``ultra_<name>``.

        The encoders are written as pairs: Transformers sorts the keys of ``config.json``, and their order has a meaning
        (the first one's weight is alpha, and its grid the reference where there is no CLIP).
        """
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Mapping):
                value = [list(pair) for pair in value.items()]
            setattr(config, f"ultra_{item.name}", list(value) if isinstance(value, tuple) else value)

    def replace(self, **changes: Any) -> UltraSettings:
        """The same settings with some of them changed."""
        return dataclasses.replace(self, **changes)
