"""Encoders: names, sources, and features equal to the libraries they come from."""

from __future__ import annotations

import json
import shutil
import types

import pytest
import torch
from tiny import clip_folder, lively, sam_folder

from llava_ultra_ext.vision import encoders
from llava_ultra_ext.vision.encoders import (
    DEFAULT_SOURCES,
    ENCODERS,
    EncoderOptions,
    describe_encoder,
    parse_tower_name,
    register_encoder,
)

OPTIONS = EncoderOptions()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return clip_folder(tmp_path_factory.mktemp("clip"))


def pixels(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def test_tower_names():
    assert parse_tower_name("sam_clip_fused") == DEFAULT_SOURCES
    assert list(DEFAULT_SOURCES) == ["clip", "sam"]
    got = parse_tower_name("fused:dinov2=facebook/dinov2-large, clip=/models/clip=a,sam=sam_vit_l_0b3195.pth")
    assert got == {"dinov2": "facebook/dinov2-large", "clip": "/models/clip=a", "sam": "sam_vit_l_0b3195.pth"}
    assert list(got) == ["dinov2", "clip", "sam"]


@pytest.mark.parametrize(
    "name",
    [None, "", "openai/clip-vit-large-patch14-336", "/models/sam_clip_fused", "sam_clip_fused_2", "my-fused:clip=a"],
)
def test_other_names_are_left_to_llava(name):
    assert parse_tower_name(name) is None


@pytest.mark.parametrize("name, pair", [("fused:", ""), ("fused:clip", "clip"), ("fused:clip=a,clip=b", "clip=b")])
def test_malformed_names_are_refused(name, pair):
    with pytest.raises(ValueError, match=f"'{pair}' is no new kind=source pair.*known kinds: clip, biomedclip, sam"):
        parse_tower_name(name)


def test_kinds_are_registered_once(monkeypatch):
    monkeypatch.setattr(encoders, "ENCODERS", dict(ENCODERS))
    register_encoder("mine")(encoders.build_dinov2)
    assert encoders.ENCODERS["mine"] is encoders.build_dinov2
    with pytest.raises(ValueError, match=r"'clip' is taken by .*encoders\.build_clip; .*encoders\.build_sam"):
        register_encoder("clip")(encoders.build_sam)
    assert encoders.ENCODERS["clip"] is encoders.build_clip


def test_unknown_kind_lists_the_known():
    with pytest.raises(ValueError, match=r"'resnet' is unknown\. Known: clip, biomedclip, sam, dinov2, siglip;"):
        describe_encoder("resnet", "anywhere", OPTIONS)


@pytest.mark.parametrize("kind", ["clip", "sam", "dinov2"])
def test_missing_sources_are_explained(kind, tmp_path):
    needed = "Needed: a folder that holds config.json and the weights, or a Hugging Face hub name"
    with pytest.raises(ValueError, match=f"{kind} encoder '{tmp_path}/absent': no such folder. {needed}"):
        describe_encoder(kind, f"{tmp_path}/absent", OPTIONS)
    with pytest.raises(ValueError, match=f"the folder has no config.json. {needed}"):
        describe_encoder(kind, str(tmp_path), OPTIONS)
    with pytest.raises(ValueError, match=f"no such folder here, and the hub gave no config.json .*offline.* {needed}"):
        describe_encoder(kind, "nobody/nothing", OPTIONS)


@pytest.mark.parametrize("layer", [-1, -2, 2])
def test_clip_equals_llavas_tower(clip, layer):
    tower = pytest.importorskip("llava.model.multimodal_encoder.clip_encoder", reason="LLaVA is not installed")
    args = types.SimpleNamespace(mm_vision_select_layer=layer, mm_vision_select_feature="patch")
    theirs = tower.CLIPVisionTower(clip, args)
    spec = describe_encoder("clip", clip, EncoderOptions(clip_select_layer=layer))
    got = spec.load()(pixels(32))
    assert got.shape == (2, 16, 4, 4) and got.std() > 0.1
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), theirs(pixels(32)), atol=1e-6, rtol=1e-6)
    assert (spec.image_size, spec.grid, spec.width) == (32, theirs.num_patches_per_side, theirs.hidden_size)


def test_clip_options_are_checked(clip):
    with pytest.raises(ValueError, match=r"mm_vision_select_feature cls_patch: .* square grid.* Allowed: patch"):
        describe_encoder("clip", clip, EncoderOptions(clip_select_feature="cls_patch"))
    with pytest.raises(ValueError, match=r"mm_vision_select_layer -5: .* has 3 layers, so -4 to 3 are allowed"):
        describe_encoder("clip", clip, EncoderOptions(clip_select_layer=-5))


def test_clip_inside_a_full_clip_model_and_as_biomedclip(tmp_path):
    """OpenAI's folders hold text and vision; LLaVA opens them with the vision class."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 9}, vision_config={**sizes, "image_size": 32, "patch_size": 8}
    )
    lively(CLIPModel(config)).save_pretrained(tmp_path)
    want = CLIPVisionModel.from_pretrained(tmp_path)(pixels(32), output_hidden_states=True).hidden_states[-2][:, 1:]
    got = describe_encoder("biomedclip", str(tmp_path), OPTIONS).load()(pixels(32))
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), want)


def test_dinov2_is_its_normed_patches_in_reading_order(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=42, patch_size=14
    )
    model = lively(Dinov2Model(config))
    model.save_pretrained(tmp_path)
    spec = describe_encoder("dinov2", str(tmp_path), OPTIONS)
    got = spec.load()(pixels(42))
    want = model(pixels(42)).last_hidden_state
    assert (spec.grid, spec.image_mean) == (3, (0.485, 0.456, 0.406))
    torch.testing.assert_close(got[:, :, 1, 2], want[:, 1 + 3 + 2])  # row 1, column 2, behind the class token


def test_siglip_has_no_class_token(tmp_path):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "SiglipVisionModel"):
        with pytest.raises(ValueError, match=r"has no SigLIP\. It came with 4\.37"):
            describe_encoder("siglip", str(tmp_path), OPTIONS)
        return
    config = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = lively(transformers.SiglipVisionModel(config))
    model.save_pretrained(tmp_path)
    spec = describe_encoder("siglip", str(tmp_path), OPTIONS)
    assert spec.image_mean == spec.image_std == (0.5, 0.5, 0.5)
    torch.testing.assert_close(spec.load()(pixels(32))[:, :, 2, 1], model(pixels(32)).last_hidden_state[:, 2 * 4 + 1])


def test_the_wrong_kind_of_folder_is_refused(clip, tmp_path):
    with pytest.raises(ValueError, match="model_type clip_vision_model, needed is dinov2"):
        describe_encoder("dinov2", clip, OPTIONS)
    with pytest.raises(ValueError, match="model_type sam, needed is clip_vision_model"):
        describe_encoder("clip", sam_folder(tmp_path / "sam"), OPTIONS)


def test_weights_that_would_stay_random_are_refused(clip, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(clip, tmp_path / "clip")
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    del weights["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights are missing \(vision_model\.encoder\.layers\.1\.mlp\.fc1\.weight"):
        describe_encoder("clip", str(tmp_path / "clip"), OPTIONS).load()


def test_mean_and_deviation_come_from_the_folder(clip, tmp_path):
    shutil.copytree(clip, tmp_path / "clip")
    where = tmp_path / "clip" / "preprocessor_config.json"
    where.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    spec = describe_encoder("clip", str(tmp_path / "clip"), OPTIONS)
    assert (spec.image_mean, spec.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    where.unlink()
    spec = describe_encoder("clip", str(tmp_path / "clip"), OPTIONS)
    assert spec.image_mean == (0.48145466, 0.4578275, 0.40821073)
    spec = describe_encoder("sam", sam_folder(tmp_path / "sam"), OPTIONS)
    assert (spec.image_mean, spec.image_std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_hub_names_come_from_the_cache_when_offline(clip, tmp_path, monkeypatch):
    repository = tmp_path / "models--someone--small-clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(clip, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path))
    got = describe_encoder("clip", "someone/small-clip", OPTIONS)
    want = describe_encoder("clip", clip, OPTIONS)
    assert torch.equal(got.load()(pixels(32)), want.load()(pixels(32)))


def test_a_hub_that_refuses_is_a_missing_source(monkeypatch):
    def refuse(*_, **__):
        raise OSError("401 Client Error: Unauthorized")

    monkeypatch.setattr("transformers.utils.cached_file", refuse)
    with pytest.raises(ValueError, match=r"encoder 'someone/private': no such folder here, and the hub gave no config"):
        describe_encoder("clip", "someone/private", OPTIONS)


def test_zero3_does_not_cut_the_encoders(clip, monkeypatch):
    """Under a ZeRO-3 run from_pretrained asks this object, and would hand the weights to DeepSpeed."""
    from transformers.integrations import deepspeed

    class ZeRO3:
        def is_zero3(self) -> bool:
            raise AssertionError("transformers looked whether to partition the encoder")

    running = ZeRO3()
    deepspeed.set_hf_deepspeed_config(running)
    try:
        encoder = describe_encoder("clip", clip, OPTIONS).load()
        assert deepspeed._hf_deepspeed_config_weak_ref() is running
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert all(parameter.numel() > 0 for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["sam_token_merge", "sam_select_feature", "sam_trainable"])
def test_sam_options_are_checked(name, tmp_path):
    with pytest.raises(ValueError, match=f"--{name} other: not a known value. Allowed: "):
        describe_encoder("sam", sam_folder(tmp_path), EncoderOptions(**{name: "other"}))
