"""Our SAM encoder gives what segment-anything and transformers give, for the same weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from tiny import SAM, clip_folder, huggingface_sam, save_pth, segment_anything, their_sam
from torch.nn import functional as F

from llava_ultra_ext.vision.sam import SamEncoder, SamShape, attend_folded, attend_masked
from llava_ultra_ext.vision.sam_weights import load_sam, read_shape

NATIVE = 112  # 7 x 7 patches: windows of 4 need padding


@pytest.fixture(scope="module")
def theirs():
    return their_sam(NATIVE)


@pytest.fixture(scope="module")
def pth(theirs, tmp_path_factory) -> str:
    return save_pth(theirs, tmp_path_factory.mktemp("sam") / "sam_tiny.pth")


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("sam_folder")
    huggingface_sam(theirs, NATIVE).save_pretrained(path)
    return str(path)


def pixels(size: int, frames: int = 2) -> torch.Tensor:
    return torch.randn(frames, 3, size, size, generator=torch.Generator().manual_seed(3))


def resized_positions(theirs, grid: int) -> torch.nn.Parameter:
    old = theirs.pos_embed.permute(0, 3, 1, 2)
    new = F.interpolate(old, (grid, grid), mode="bicubic").permute(0, 2, 3, 1)
    return torch.nn.Parameter(new, requires_grad=False)


def test_equals_segment_anything_at_its_own_size(theirs, pth):
    want = theirs(pixels(NATIVE))
    got = load_sam(pth)(pixels(NATIVE))
    assert want.shape == (2, SAM["out"], 7, 7) and want.std() > 0.1
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_bfloat16_costs_no_more_than_segment_anything_s(theirs, pth):
    exact, half = theirs(pixels(NATIVE)), pixels(NATIVE).bfloat16()
    original = copy.deepcopy(theirs).to(torch.bfloat16)(half)
    own, reference = (
        (output.float() - exact).square().mean().sqrt() for output in (load_sam(pth).to(torch.bfloat16)(half), original)
    )
    assert 0 < own <= 1.1 * reference < 0.05 * exact.std()


def test_equals_transformers_at_its_own_size(theirs, folder):
    reference = huggingface_sam(theirs, NATIVE).vision_encoder
    output = reference(pixels(NATIVE), output_hidden_states=True)
    torch.testing.assert_close(load_sam(folder)(pixels(NATIVE)), output.last_hidden_state, atol=1e-5, rtol=1e-5)
    before_neck = load_sam(folder, select_feature="last_hidden")(pixels(NATIVE))
    torch.testing.assert_close(before_neck, output.hidden_states[-1].permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [64, 192])  # smaller and larger; 12 patches fill windows of 4 exactly
def test_other_sizes_equal_both_references(size, pth, folder):
    theirs = their_sam(NATIVE)
    reference = huggingface_sam(theirs, NATIVE).vision_encoder
    theirs.pos_embed = resized_positions(theirs, size // 16)
    reference.pos_embed = theirs.pos_embed
    reference.patch_embed.image_size = (size, size)
    want = theirs(pixels(size))
    torch.testing.assert_close(load_sam(pth, size)(pixels(size)), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reference(pixels(size)).last_hidden_state, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(load_sam(folder, size)(pixels(size)), want, atol=1e-5, rtol=1e-5)


def test_published_input_size(tmp_path):
    """1024 px, windows of 14: the grid of 64 is padded to 70, as in the published models."""
    changes = {"hidden": 8, "layers": 2, "heads": 1, "mlp": 8, "window": 14}
    theirs = their_sam(1024, **changes)
    encoder = load_sam(save_pth(theirs, tmp_path / "wide.pth"))
    torch.testing.assert_close(encoder(pixels(1024, 1)), theirs(pixels(1024, 1)), atol=1e-5, rtol=1e-5)


def test_window_larger_than_the_grid(tmp_path):
    theirs = their_sam(48, window=5)
    encoder = load_sam(save_pth(theirs, tmp_path / "small.pth"))
    torch.testing.assert_close(encoder(pixels(48)), theirs(pixels(48)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attend", [attend_folded, attend_masked])
@pytest.mark.parametrize("side, depth", [(4, 8), (7, 12)])  # 12 + 2 * 7 is no multiple of 8
def test_attention_against_its_formula(attend, side, depth):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, side**2, depth, generator=generator) for _ in range(3))
    row, col = (3 * torch.randn(2, 3, side**2, side, generator=generator) for _ in range(2))
    scores = q @ k.transpose(-2, -1) / depth**0.5
    for key in range(side**2):
        scores[..., key] += row[..., key // side] + col[..., key % side]
    torch.testing.assert_close(attend(q, k, v, row, col), scores.softmax(-1) @ v, atol=1e-5, rtol=1e-5)


def test_folded_attention_in_the_whole_encoder(monkeypatch, theirs, pth):
    monkeypatch.setattr("llava_ultra_ext.vision.sam.attend_masked", attend_folded)
    torch.testing.assert_close(load_sam(pth)(pixels(NATIVE)), theirs(pixels(NATIVE)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
@pytest.mark.parametrize("attend", [attend_folded, attend_masked])
def test_half_precision_stays_close(dtype, error, attend, monkeypatch, theirs, pth):
    monkeypatch.setattr("llava_ultra_ext.vision.sam.attend_masked", attend)
    got = load_sam(pth).to(dtype)(pixels(NATIVE).to(dtype))
    want = theirs(pixels(NATIVE))
    assert got.dtype == dtype
    assert (got.float() - want).norm() / want.norm() < error


def test_every_file_format_gives_the_same(theirs, pth, folder, tmp_path):
    want = load_sam(pth)(pixels(NATIVE))
    torch.save(theirs.state_dict(), tmp_path / "bare.pth")
    torch.save({"model": torch.load(pth)}, tmp_path / "wrapped.pth")
    torch.save(torch.load(pth), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    huggingface_sam(theirs, NATIVE).save_pretrained(tmp_path / "bin", safe_serialization=False)
    assert (tmp_path / "bin" / "pytorch_model.bin").is_file() and (Path(folder) / "model.safetensors").is_file()
    for name in ("bare.pth", "wrapped.pth", "legacy.pth", "bin"):
        assert torch.equal(load_sam(str(tmp_path / name))(pixels(NATIVE)), want), name
    assert torch.equal(load_sam(folder)(pixels(NATIVE)), want)


def test_a_folder_of_the_vision_part_alone(folder, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(Path(folder) / "model.safetensors")
    vision = json.loads((Path(folder) / "config.json").read_text())["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps({**vision, "model_type": "sam_vision_model"}))
    assert torch.equal(load_sam(str(tmp_path))(pixels(NATIVE)), load_sam(folder)(pixels(NATIVE)))


def test_shape_is_the_same_from_config_and_from_tensors(pth, folder):
    want = SamShape(24, 3, 2, 40, 6, NATIVE, 16, 4, (1,))
    assert read_shape(pth) == want
    assert read_shape(folder) == want


PUBLISHED = {  # segment-anything's build_sam.py
    "b": SamShape(768, 12, 12, 3072, 256, 1024, 16, 14, (2, 5, 8, 11)),
    "l": SamShape(1024, 24, 16, 4096, 256, 1024, 16, 14, (5, 11, 17, 23)),
    "h": SamShape(1280, 32, 16, 5120, 256, 1024, 16, 14, (7, 15, 23, 31)),
}


def published_file(letter: str, path: Path) -> str:
    """A file with every shape of a published model, each tensor one stored number."""
    shape = PUBLISHED[letter]
    with torch.device("meta"):
        model = segment_anything().ImageEncoderViT(
            embed_dim=shape.hidden_size,
            depth=shape.layers,
            num_heads=shape.heads,
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=shape.global_layers,
        )
    state = {f"image_encoder.{k}": torch.zeros(1).expand(v.shape) for k, v in model.state_dict().items()}
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("letter, name", [("b", "sam_vit_b_01ec64"), ("l", "sam_vit_l_0b3195"), ("h", "sam_vit_h")])
def test_published_models_are_recognised(letter, name, tmp_path):
    assert read_shape(published_file(letter, tmp_path / f"{name}.pth")) == PUBLISHED[letter]


def test_a_name_that_claims_another_size_is_refused(theirs, tmp_path):
    message = (
        r"sam_vit_b_01ec64\.pth: the name says ViT-B \(width 768, 12 blocks\), the file holds width 24, 3 blocks "
        r"\(none of SAM's models\)\. Give the right file, or rename it"
    )
    with pytest.raises(ValueError, match=message):
        load_sam(save_pth(theirs, tmp_path / "sam_vit_b_01ec64.pth"))
    with pytest.raises(ValueError, match=r"says ViT-H .* width 1024, 24 blocks \(ViT-L\)"):
        read_shape(published_file("l", tmp_path / "sam_vit_h_4b8939.pth"))


def test_missing_and_unexpected_weights_are_named(theirs, tmp_path):
    state = theirs.state_dict()
    state["blocks.2.attn.extra"] = state.pop("blocks.2.norm2.bias")
    state["neck.0.weight"] = state["neck.0.weight"][:, :5]
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(
        ValueError,
        match=r"missing: blocks\.2\.norm2\.bias; unexpected: blocks\.2\.attn\.extra; "
        r"shape: neck\.0\.weight \(6, 5, 1, 1\) instead of \(6, 24, 1, 1\)",
    ):
        load_sam(str(tmp_path / "broken.pth"))


def test_missing_positions_are_reported_at_another_size_too(theirs, folder, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(Path(folder) / "model.safetensors")
    del state["vision_encoder.pos_embed"], state["vision_encoder.layers.1.attn.rel_pos_h"]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((Path(folder) / "config.json").read_text())
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.attn\.rel_pos_h, pos_embed"):
        load_sam(str(tmp_path), 64)


def test_files_that_are_no_sam_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no such file\. Needed: a \.pth of segment-anything, or a SAM folder"):
        read_shape(str(tmp_path / "absent.pth"))
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="not a file of tensors"):
        read_shape(str(tmp_path / "text.pth"))
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no SAM image encoder in other\.pth .* found layer\.weight"):
        read_shape(str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match=r"model_type 'clip_vision_model'\. Needed: a SAM folder"):
        read_shape(clip_folder(tmp_path / "clip"))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text(json.dumps({"model_type": "sam", "vision_config": {}}))
    with pytest.raises(ValueError, match=r"Needed beside it: model\.safetensors or pytorch_model\.bin"):
        load_sam(str(tmp_path / "half"), 64)


def test_pickled_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"image_encoder.pos_embed": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="not a file of tensors"):
        read_shape(str(tmp_path / "bomb.pth"))
    assert not (tmp_path / "ran").exists()


def test_sizes_that_do_not_fit_are_refused(pth):
    with pytest.raises(ValueError, match=r"image size 100: it must be a multiple of 16, .* such as 96 or 112"):
        load_sam(pth, 100)
    with pytest.raises(ValueError, match=r"built for 112 px was given \(2, 3, 64, 64\)"):
        load_sam(pth)(pixels(64))
    with pytest.raises(ValueError, match="'middle': allowed are neck, last_hidden"):
        SamEncoder(read_shape(pth), NATIVE, "middle")
