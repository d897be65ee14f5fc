"""Flags say what they allow; settings survive config.json."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from pathlib import Path

import pytest
from transformers import PretrainedConfig

from llava_ultra_ext.arguments import (
    ATTENTION_LAYERS,
    STRATEGIES,
    UltraDataArguments,
    UltraModelArguments,
    UltraSettings,
)


def model_args(**flags):
    """The flags with LLaVA's own that the settings read."""
    args = UltraModelArguments(**flags)
    args.mm_vision_select_layer, args.mm_vision_select_feature, args.version = -2, "patch", "ultra_v1_zh"
    return args


def test_every_flag_has_a_help_text() -> None:
    for table in (UltraModelArguments, UltraDataArguments):
        assert all(item.metadata.get("help") for item in dataclasses.fields(table))


BAD_MODEL_FLAGS = [
    ({"adr_strategy": "best"}, "--adr_strategy best: not a known value. Allowed: none, feature, attention, likelihood"),
    ({"adr_select_by": "me"}, "--adr_select_by me: not a known value. Allowed: student, teacher."),
    ({"adr_weights": "w"}, "--adr_weights w: not a known value. Allowed: channel, token, token_channel."),
    ({"sam_token_merge": "max"}, "--sam_token_merge max: not a known value. Allowed: unshuffle, pool."),
    ({"sam_select_feature": "x"}, "--sam_select_feature x: not a known value. Allowed: neck, last_hidden."),
    ({"sam_trainable": "all"}, "--sam_trainable all: not a known value. Allowed: none, neck."),
    ({"mm_fusion_alpha": "token"}, "--mm_fusion_alpha token: not a known value. Allowed: scalar, channel, concat."),
    (
        {"sam_trainable": "neck", "sam_select_feature": "last_hidden"},
        "that feature does not pass the neck. Use --sam_select_feature neck",
    ),
    ({"encoder_batch_size": 0}, "--encoder_batch_size 0: must be 1 or more."),
    ({"adr_top_k": 0}, "--adr_top_k 0: must be 1 or more."),
    ({"adr_layers": 0}, "--adr_layers 0: must be 1 or more."),
    ({"adr_temperature": 0.0}, "--adr_temperature 0.0: must be above 0"),
    ({"adr_loss_weight": -1.0}, "--adr_loss_weight -1.0: must be 0 or more."),
    ({"adr_warmup": -0.1}, "--adr_warmup -0.1: must be 0 or more."),
]


@pytest.mark.parametrize(
    ("flags", "message"), BAD_MODEL_FLAGS, ids=lambda value: "" if isinstance(value, str) else "-".join(value)
)
def test_a_bad_model_flag_says_what_is_allowed(flags: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        UltraModelArguments(**flags)
    assert message in str(error.value)


@pytest.mark.parametrize("count", [0, -3])
def test_max_frames_below_one(count: int) -> None:
    with pytest.raises(ValueError, match=rf"--max_frames {count}: an exam keeps at least one frame. Give 1 or more"):
        UltraDataArguments(max_frames=count)


def test_on_bad_sample_knows_two_values() -> None:
    with pytest.raises(ValueError, match=r"--on_bad_sample ignore: not a known value\. Allowed: error, skip\."):
        UltraDataArguments(on_bad_sample="ignore")


def test_llavas_own_checks_still_run() -> None:
    @dataclasses.dataclass
    class Host:
        checked: bool = False

        def __post_init__(self) -> None:
            self.checked = True

    @dataclasses.dataclass
    class Mixed(UltraModelArguments, UltraDataArguments, Host):
        pass

    assert Mixed().checked
    with pytest.raises(ValueError, match="--max_frames 0"):
        Mixed(max_frames=0)


class TestSettings:
    def test_defaults_that_depend_on_the_strategy(self) -> None:
        found = {}
        for strategy in STRATEGIES:
            settings = UltraSettings.from_arguments(model_args(adr_strategy=strategy), {"clip": "a"})
            found[strategy] = (settings.adr_layers, settings.adr_weights)
        assert found.pop("attention") == (ATTENTION_LAYERS, "channel")
        assert found.pop("feature") == (None, "token_channel")
        assert set(found.values()) == {(None, "channel")}

    def test_given_values_win_over_those_defaults(self) -> None:
        args = model_args(adr_strategy="attention", adr_layers=4, adr_weights="token")
        settings = UltraSettings.from_arguments(args, {"clip": "a"})
        assert (settings.adr_layers, settings.adr_weights) == (4, "token")

    def test_every_model_flag_reaches_the_settings(self) -> None:
        other = {
            "sam_image_size": 64, "sam_token_merge": "pool", "sam_select_feature": "neck", "sam_trainable": "neck",
            "encoder_batch_size": 3, "mm_fusion_alpha": "channel", "adr_strategy": "likelihood", "adr_top_k": 2,
            "adr_layers": 5, "adr_temperature": 0.7, "adr_loss_weight": 0.3, "adr_warmup": 7.0,
            "adr_select_by": "teacher", "adr_weights": "token_channel", "adr_seed": 9, "adr_question_rank": 4,
            "adr_teacher_text": "answer", "adr_coverage": 0.5,
        }  # fmt: skip
        settings = UltraSettings.from_arguments(model_args(**other), {"clip": "a", "sam": "b"})
        for name, value in other.items():
            assert getattr(settings, "fusion_alpha" if name == "mm_fusion_alpha" else name) == value
        own = {item.name for item in dataclasses.fields(UltraModelArguments)}
        where_from = {"clip_tower", "sam_tower", "feature_cache"}
        assert own - set(other) == where_from, "a new flag must be added here and to from_arguments"
        assert dict(settings.sources) == {"clip": "a", "sam": "b"}
        assert (settings.clip_select_layer, settings.clip_select_feature) == (-2, "patch")

    def test_an_older_checkpoint_has_the_later_settings_at_their_defaults(self) -> None:
        from transformers import PretrainedConfig

        settings = UltraSettings.from_arguments(model_args(adr_coverage=0.5), {"clip": "a", "sam": "b"})
        config = PretrainedConfig()
        settings.to_config(config)
        for name in ("ultra_adr_question_rank", "ultra_adr_teacher_text", "ultra_adr_coverage"):
            delattr(config, name)
        assert UltraSettings.from_config(config) == settings.replace(adr_coverage=0.0)

    def test_they_come_back_from_config_json(self, tmp_path: Path) -> None:
        from transformers import PretrainedConfig

        settings = UltraSettings.from_arguments(model_args(adr_top_k=2), {"clip": "a", "sam": "b"}).replace(
            widths={"clip": 32, "sam": 64}, tokens=16, backbone="mistral", separator_ids=(13, 29871)
        )
        config = PretrainedConfig()
        settings.to_config(config)
        config.save_pretrained(tmp_path)
        restored = UltraSettings.from_config(PretrainedConfig.from_pretrained(tmp_path))
        assert restored == settings
        assert list(restored.sources) == ["clip", "sam"], "the order of the fusion"

    def test_a_missing_key_is_named(self) -> None:
        config = types.SimpleNamespace()
        UltraSettings.from_arguments(model_args(), {"clip": "a"}).to_config(config)
        del config.ultra_adr_top_k
        with pytest.raises(
            ValueError, match=r"config.json has no ultra_adr_top_k: .* Load the folder that training wrote"
        ):
            UltraSettings.from_config(config)


def test_the_order_of_the_encoders_survives_a_config_json_with_sorted_keys() -> None:
    """Transformers writes ``config.json`` with ``sort_keys``; the first encoder's weight is alpha."""
    sources = {"sam": "s", "clip": "c", "dinov2": "d", "aaa": "a"}
    settings = UltraSettings(sources=sources, widths={"sam": 4, "clip": 3, "dinov2": 2, "aaa": 1})
    config = PretrainedConfig()
    settings.to_config(config)
    restored = UltraSettings.from_config(PretrainedConfig(**json.loads(config.to_json_string())))
    assert list(restored.sources.items()) == list(sources.items())
    assert list(restored.widths) == list(sources)


@pytest.mark.parametrize("name", ["adr_temperature", "adr_loss_weight", "adr_warmup"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_must_be_finite(name: str, value: float) -> None:
    """NaN is neither above nor below anything, and would train a projector of NaN to the end."""
    with pytest.raises(ValueError, match=f"--{name} {value}: must be a finite number"):
        UltraModelArguments(**{name: value})


def test_the_teacher_reads_something() -> None:
    with pytest.raises(ValueError, match="--findings_max_length 0: the teacher reads 1 token or more"):
        UltraDataArguments(findings_max_length=0)
