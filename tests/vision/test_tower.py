"""The tower: one grid for all encoders, frozen, with LLaVA's vision-tower contract."""

from __future__ import annotations

import types

import pytest
import torch
from tiny import SAM, clip_folder, lively, picture, sam_folder, save_pth, their_sam

from llava_ultra_ext.vision.image_processor import SquareImageProcessor
from llava_ultra_ext.vision.sam_weights import load_sam
from llava_ultra_ext.vision.tower import FusedVisionTower, resize, to_tokens


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    """CLIP 32 px, grid 4 x 4, 16 channels; SAM 128 px, grid 8 x 8, 6 channels after the neck."""
    root = tmp_path_factory.mktemp("encoders")
    return {"clip": clip_folder(root / "clip"), "sam": sam_folder(root / "sam", 128)}


def tower_of(sources, **options) -> FusedVisionTower:
    tower = FusedVisionTower(sources, name="sam_clip_fused", **options)
    tower.load_model()
    return tower


def pixels_of(tower: FusedVisionTower, frames: int = 2) -> torch.Tensor:
    return tower.image_processor.preprocess([picture(60, 60, seed) for seed in range(frames)])["pixel_values"]


def llava_clip(folder: str):
    module = pytest.importorskip("llava.model.multimodal_encoder.clip_encoder", reason="LLaVA is not installed")
    args = types.SimpleNamespace(mm_vision_select_layer=-2, mm_vision_select_feature="patch")
    return module.CLIPVisionTower(folder, args)


def test_description_needs_no_weights(sources, monkeypatch):
    monkeypatch.setattr("llava_ultra_ext.vision.encoders.load_sam", lambda *_: pytest.fail("weights were read"))
    tower = FusedVisionTower(sources, name="sam_clip_fused")
    described = tower.describe()
    assert described.widths == {"clip": 16, "sam": 6 * 4} and list(described.widths) == ["clip", "sam"]
    assert (described.grid, described.tokens, described.image_size) == (4, 16, 128)
    assert not tower.is_loaded and not list(tower.parameters())
    assert tower.image_processor.crop_size == {"height": 128, "width": 128}


@pytest.mark.parametrize(
    "options, width, size",
    [
        ({"sam_image_size": 192}, 6 * 9, 192),
        ({"sam_image_size": 64}, 6, 64),
        ({"sam_select_feature": "last_hidden"}, 24 * 4, 128),
        ({"sam_token_merge": "pool"}, 6, 128),
        ({"sam_token_merge": "pool", "sam_image_size": 80}, 6, 80),
        ({"sam_token_merge": "pool", "sam_image_size": 48}, 6, 48),
        ({"sam_trainable": "neck"}, 6 * 4, 128),
    ],
)
def test_what_is_described_is_what_comes(sources, options, width, size):
    tower = tower_of(sources, **options)
    assert (tower.describe().widths["sam"], tower.describe().image_size) == (width, size)
    features = tower(pixels_of(tower))
    sam = features["sam"]
    if "sam_trainable" in options:
        assert sam.shape == (2, SAM["hidden"], 8, 8)
        sam = tower.merge_sam(tower.build_neck()(sam))
    assert sam.shape == (2, 16, width) and features["clip"].shape == (2, 16, 16)


def test_clip_part_equals_llava_on_a_square_picture(sources):
    theirs = llava_clip(sources["clip"])
    tower = tower_of(sources, sam_image_size=64)
    square = picture(32, 32)
    want = theirs(theirs.image_processor(square, return_tensors="pt")["pixel_values"])
    small = FusedVisionTower({"clip": sources["clip"]}, name="fused:clip")
    small.load_model()
    got = small(small.image_processor.preprocess(square)["pixel_values"])["clip"]
    assert small.describe().image_size == 32
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    large = tower(tower.image_processor.preprocess(picture(64, 64))["pixel_values"])["clip"]
    want = theirs(theirs.image_processor(picture(64, 64), return_tensors="pt")["pixel_values"])
    assert torch.cosine_similarity(large, want, dim=-1).min() > 0.99


def test_sam_part_is_sam_on_normalised_pixels(sources):
    tower = tower_of(sources)
    pixels = pixels_of(tower)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = load_sam(sources["sam"])((pixels / 255 - mean) / std)  # (2, 6, 8, 8)
    got = tower(pixels)["sam"]
    row, column, channel = 2, 1, 5
    cells = features[:, channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)  # (2, 4)
    torch.testing.assert_close(got[:, row * 4 + column, 4 * channel : 4 * channel + 4], cells, atol=1e-5, rtol=1e-5)


def test_merging_by_values():
    cells = torch.arange(16.0).view(1, 1, 4, 4)
    assert to_tokens(cells, 2, "unshuffle")[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    assert to_tokens(cells, 2, "pool")[0].tolist() == [[2.5], [4.5], [10.5], [12.5]]
    assert to_tokens(cells, 4, "pool").flatten().tolist() == list(range(16))
    assert to_tokens(cells[..., :2, :2], 4, "pool")[0, :8, 0].tolist() == [0, 0.25, 0.75, 1, 1, 1.25, 1.75, 2]
    two = torch.stack([cells[0, 0], 100 + cells[0, 0]]).unsqueeze(0)  # channels stay together: c * f * f + i * f + j
    assert to_tokens(two, 2, "unshuffle")[0, 1].tolist() == [2, 3, 6, 7, 102, 103, 106, 107]


@pytest.mark.parametrize("options", [{}, {"sam_token_merge": "pool", "sam_image_size": 96}])
def test_a_place_in_the_picture_is_the_same_token_in_every_encoder(sources, options, tmp_path):
    """A bright square moves; in both encoders the token that changes most is the one under it."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=112, patch_size=14
    )
    lively(Dinov2Model(config), scale=0.1).save_pretrained(tmp_path / "dinov2")
    theirs = their_sam(128, layers=1, whole=())
    sources = {**sources, "sam": save_pth(lively(theirs, scale=0.15), tmp_path / "flat.pth")}
    tower = tower_of({**sources, "dinov2": str(tmp_path / "dinov2")}, clip_select_layer=1, **options)
    side = tower.describe().image_size
    step = side // 4
    dark = torch.full((1, 3, side, side), 30, dtype=torch.uint8)
    for row, column in ((0, 0), (0, 3), (3, 0), (1, 2)):
        bright = dark.clone()
        bright[:, :, row * step : (row + 1) * step, column * step : (column + 1) * step] = 230
        changed = {kind: (tower(bright)[kind] - found).norm(dim=-1)[0] for kind, found in tower(dark).items()}
        assert {kind: int(change.argmax()) for kind, change in changed.items()} == dict.fromkeys(
            tower.describe().widths, row * 4 + column
        )


@pytest.mark.parametrize("size", [1, 3, 8])
def test_chunks_do_not_change_the_features(sources, size):
    whole, parts = tower_of(sources, encoder_batch_size=7), tower_of(sources, encoder_batch_size=size)
    pixels = pixels_of(whole, 7)
    seen = []
    parts._encoders["sam"].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    for kind, want in whole(pixels).items():
        torch.testing.assert_close(parts(pixels)[kind], want, atol=1e-5, rtol=1e-5)
    assert sum(seen) == 14 and max(seen) == min(size, 7)


def test_equal_frames_of_a_batch_are_encoded_once(sources):
    tower = tower_of(sources, encoder_batch_size=8)
    three = pixels_of(tower, 3)
    mirrored = three[1].flip(-1)  # the same sum as frame 1, another picture
    frames = (*three, mirrored)
    alone = [tower(frame[None]) for frame in frames]
    seen = []
    for encoder in tower._encoders.values():
        encoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    order = [2, 0, 2, 1, 3, 0, 1]
    for kind, found in tower(torch.stack(frames)[order]).items():
        want = torch.stack([alone[number][kind][0] for number in order])
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)
    assert seen == [4, 4]


def test_pixels_may_come_in_the_types_llava_casts_to(sources):
    tower = tower_of(sources)
    pixels = pixels_of(tower)
    want = tower(pixels)["sam"]
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert torch.equal(tower(pixels.to(dtype))["sam"], want)


def test_mixed_precision_around_the_tower(sources):
    tower = tower_of(sources)
    pixels = pixels_of(tower)
    want = tower(pixels)["sam"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = tower(pixels)["sam"]
    assert got.dtype == torch.float32
    assert (got - want).norm() / want.norm() < 0.06


def test_encoders_are_frozen(sources):
    tower = tower_of(sources)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert len(list(tower.parameters())) > 50
    assert not any(module.training for encoder in tower._encoders.values() for module in encoder.modules())
    found = tower(pixels_of(tower).float().requires_grad_())
    assert not any(features.requires_grad for features in found.values())
    assert not any(features.is_inference() for features in found.values())  # the projector must learn from them


def test_the_neck_to_train_is_sams(sources):
    tower = tower_of(sources, sam_trainable="neck")
    pixels = pixels_of(tower)
    neck = tower.build_neck()
    assert all(parameter.requires_grad for parameter in neck.parameters())
    frozen = tower_of(sources)(pixels)["sam"]
    torch.testing.assert_close(tower.merge_sam(neck(tower(pixels)["sam"])), frozen, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        neck[0].weight.zero_()
    assert tower._encoders["sam"].neck[0].weight.abs().sum() > 0  # a copy: training does not change the tower
    unloaded = FusedVisionTower(sources, name="x", sam_trainable="neck").build_neck()
    assert [p.shape for p in unloaded.parameters()] == [p.shape for p in neck.parameters()]
    with pytest.raises(ValueError, match="has no trainable neck: build it with sam_trainable='neck'"):
        tower_of(sources).build_neck()


def test_types_and_places(sources):
    tower = FusedVisionTower(sources, name="sam_clip_fused").to(dtype=torch.bfloat16)
    tower.load_model()
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.bfloat16}
    assert {features.dtype for features in tower(pixels_of(tower)).values()} == {torch.bfloat16}
    assert tower.to(device="cpu", dtype=torch.float16) is tower  # what LLaVA's builder asks for
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32} == {tower.dtype}
    assert tower.to(torch.bfloat16).dtype == torch.bfloat16 and tower.device == torch.device("cpu")


@pytest.mark.parametrize("device_map", [None, "auto", "cpu", {"": "cpu"}])
def test_loading_twice_reads_once(sources, device_map):
    tower = FusedVisionTower(sources, name="sam_clip_fused")
    tower.load_model(device_map=device_map)
    before = tower._encoders["clip"]
    tower.load_model(device_map=device_map)
    assert tower._encoders["clip"] is before and tower.is_loaded


def test_llavas_attributes(sources):
    tower = tower_of(sources)
    assert (tower.hidden_size, tower.num_patches, tower.num_patches_per_side) == (16, 16, 4)
    assert (tower.config.image_size, tower.config.patch_size, tower.config.hidden_size) == (32, 8, 16)
    assert tower.dummy_feature.shape == (1, 16) and isinstance(tower.image_processor, SquareImageProcessor)
    assert tower.image_processor.image_mean == [0.48145466, 0.4578275, 0.40821073]


def test_without_clip_the_first_encoder_gives_the_grid(sources):
    tower = tower_of({"sam": sources["sam"]})
    assert (tower.describe().widths, tower.num_patches) == ({"sam": 6}, 64)
    assert tower.image_processor.image_mean == [0.485, 0.456, 0.406]
    behind = FusedVisionTower({"sam": sources["sam"], "clip": sources["clip"]}, name="x").describe()
    assert (behind.grid, list(behind.widths)) == (4, ["sam", "clip"])


def test_grids_that_cannot_be_merged_name_what_would_work(sources):
    with pytest.raises(
        ValueError,
        match=r"sam at 80 px has 5 x 5 cells, .* grid of 4 x 4\. Use --sam_image_size with one of 64, 128, .*1536, "
        r"or --sam_token_merge pool",
    ):
        FusedVisionTower(sources, name="x", sam_image_size=80)
    with pytest.raises(ValueError, match="sam at 48 px"):  # smaller than the reference grid
        FusedVisionTower(sources, name="x", sam_image_size=48)


def test_wrong_use_is_explained(sources):
    with pytest.raises(ValueError, match="'x' names no encoder"):
        FusedVisionTower({}, name="x")
    with pytest.raises(ValueError, match="encoder_batch_size 0: must be 1 or more"):
        FusedVisionTower(sources, name="x", encoder_batch_size=0)
    with pytest.raises(RuntimeError, match=r"no weights yet: call load_model\(\) first"):
        FusedVisionTower(sources, name="x")(torch.zeros(1, 3, 128, 128))
    for shape in ((1, 3, 64, 64), (3, 128, 128), (0, 3, 128, 128)):
        with pytest.raises(ValueError, match=r"needed is \(N, 3, 128, 128\) with N of 1 or more"):
            tower_of(sources)(torch.zeros(shape))


def test_resizing_is_antialiased_and_clipped():
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::4] = 1
    assert resize(stripes, 64) is stripes
    small = resize(stripes, 16)
    torch.testing.assert_close(small[..., 2:-2], torch.full((1, 3, 16, 12), 0.25), atol=0.02, rtol=0)
    edge = torch.zeros(1, 3, 64, 64)
    edge[..., 32:] = 1
    assert resize(edge, 16).min() == 0 and resize(edge, 16).max() == 1


def test_loading_draws_no_random_numbers_of_the_run(sources):
    """So a training that needs no encoder (a feature cache) starts from the same projector."""
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    tower_of(sources)
    assert torch.equal(torch.rand(4), want)
