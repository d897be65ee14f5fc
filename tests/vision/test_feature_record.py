"""Records of a feature cache: what is packed comes back, as exactly as the module's table says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_ultra_ext.vision.feature_record import DTYPES, pack, record_size, unpack

SHAPES = {"clip": (9, 5), "sam": (9, 8)}
NECK = {"clip": (4, 6), "sam": (3, 4, 4)}
"""With a trained neck SAM's features are a map (C, g, g)."""


def features_of(
    shapes: dict[str, tuple[int, ...]], frames: int, seed: int = 0, size: float = 1.0
) -> dict[str, torch.Tensor]:
    """Normal numbers, with a token of zeros in the first frame."""
    generator = torch.Generator().manual_seed(seed)
    found = {kind: torch.randn(frames, *shape, generator=generator) * size for kind, shape in shapes.items()}
    for feature in found.values():
        feature[0, 0] = 0
    return found


def there_and_back(features: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    shapes = {kind: tuple(feature.shape[1:]) for kind, feature in features.items()}
    records = pack(features, dtype)
    assert records.dtype == dtype and tuple(records.shape) == (len(features["clip"]), record_size(shapes, dtype))
    return unpack(records, shapes, torch.float32)


def allowed(feature: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The error that the module's docstring states, for each value."""
    if dtype == torch.int8:
        largest = feature.flatten(2).abs().amax(2).view(*feature.shape[:2], *[1] * (feature.ndim - 2))
        return (largest / 254 * (1 + 1e-5)).clamp_min(1e-38).expand_as(feature)
    if dtype == torch.float16:
        return (feature.abs() * 2**-11).clamp_min(2**-25)
    return (feature.abs() * 2**-8).clamp_min(2**-134) if dtype == torch.bfloat16 else torch.zeros_like(feature)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("shapes", [SHAPES, NECK], ids=["tokens", "neck"])
@pytest.mark.parametrize("name", list(DTYPES))
def test_what_comes_back_is_as_exact_as_stated(
    name: str, shapes: dict[str, tuple[int, ...]], frames: int, size: float
) -> None:
    dtype = DTYPES[name]
    features = features_of(shapes, frames, seed=frames, size=min(size, 1e4) if name == "float16" else size)
    found = there_and_back(features, dtype)
    assert list(found) == list(shapes)
    for kind, feature in features.items():
        assert found[kind].shape == feature.shape and found[kind].dtype == torch.float32
        assert bool(((found[kind] - feature).abs() <= allowed(feature, dtype)).all())
        assert not found[kind][0, 0].any(), "a token of zeros"


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["float16", "bfloat16", "int8"]),
    values=st.lists(st.floats(-60000, 60000, width=32), min_size=12, max_size=12),
)
def test_any_values_stay_within_the_stated_error(name: str, values: list[float]) -> None:
    feature = torch.tensor(values).view(1, 4, 3)
    found = there_and_back({"clip": feature}, DTYPES[name])["clip"]
    assert bool(((found - feature).abs() <= allowed(feature, DTYPES[name])).all())


def test_the_stated_errors_are_met_so_none_is_stated_too_large() -> None:
    """The worst of many values comes near each limit."""
    feature = torch.linspace(-1, 1, 4 * 5000).view(1, 4, 5000)
    for name in ("float16", "bfloat16", "int8"):
        error = (there_and_back({"clip": feature}, DTYPES[name])["clip"] - feature).abs()
        assert float((error / allowed(feature, DTYPES[name])).max()) > 0.9, name


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_what_was_computed_in_the_stored_dtype_is_kept_exactly(name: str) -> None:
    features = {kind: feature.to(DTYPES[name]) for kind, feature in features_of(SHAPES, 2).items()}
    records = pack(features, DTYPES[name])
    for kind, feature in unpack(records, SHAPES, DTYPES[name]).items():
        assert feature.dtype == DTYPES[name] and torch.equal(feature, features[kind])


def test_the_layout_by_hand() -> None:
    """Kinds in order, tokens in order; int8 with its scales behind, four bytes each, lowest first."""
    features = {"clip": torch.tensor([[[1.0, -2.0], [0.0, 4.0]]]), "sam": torch.tensor([[[127.0]]])}
    assert pack(features, torch.float32).tolist() == [[1, -2, 0, 4, 127]]
    record = pack(features, torch.int8)[0]
    assert record[:5].tolist() == [64, -127, 0, 127, 127]  # 63.5 goes to the even neighbour
    assert record[5:].view(torch.uint8).numpy().view("<f4").tolist() == pytest.approx([2 / 127, 4 / 127, 1.0])
    assert record_size({"clip": (2, 2), "sam": (1, 1)}, torch.int8) == 5 + 3 * 4
    empty = pack({"clip": torch.zeros(1, 1, 4)}, torch.int8)[0]
    assert empty[:4].tolist() == [0] * 4 and empty[4:].view(torch.float32) > 0, "0 / 0 as a whole number is anything"


def test_frames_keep_their_order_and_records_can_be_taken_apart() -> None:
    features = features_of(SHAPES, 4)
    for dtype in DTYPES.values():
        records = pack(features, dtype)
        whole = unpack(records, SHAPES, torch.float32)
        for frame in (0, 3):
            alone = unpack(records[frame : frame + 1], SHAPES, torch.float32)
            assert all(torch.equal(alone[kind][0], whole[kind][frame]) for kind in SHAPES)


def test_an_odd_record_in_odd_memory() -> None:
    """A single frame whose scales start at an address that no float32 may have."""
    shapes = {"clip": (1, 5)}
    feature = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
    memory = torch.zeros(1 + record_size(shapes, torch.int8), dtype=torch.int8)
    memory[1:] = pack({"clip": feature}, torch.int8)[0]
    found = unpack(memory[1:].unsqueeze(0), shapes, torch.float32)["clip"]
    torch.testing.assert_close(found, feature, atol=5 / 254, rtol=1e-5)


@pytest.mark.parametrize("name", list(DTYPES))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_refused(name: str, value: float) -> None:
    features = features_of(SHAPES, 2)
    features["sam"][1, 2, 3] = value
    with pytest.raises(ValueError, match=r"sam features are not finite.*--compute_dtype float32 or bfloat16"):
        pack(features, DTYPES[name])


def test_float16_refuses_what_it_cannot_hold() -> None:
    features = features_of(SHAPES, 2)
    features["clip"][1, 2, 3] = -65504.0
    assert float(there_and_back(features, torch.float16)["clip"][1, 2, 3]) == -65504.0
    features["clip"][1, 2, 3] = -70000.0
    with pytest.raises(ValueError, match=r"clip features reach 70000, which float16 cannot hold. Use --dtype bfloat16"):
        pack(features, torch.float16)
    for name in ("float32", "bfloat16", "int8"):
        assert float(there_and_back(features, DTYPES[name])["clip"][1, 2, 3]) == pytest.approx(-70000, rel=2**-8)


def test_records_of_other_shapes_are_refused() -> None:
    records = pack(features_of(SHAPES, 2), torch.float32)
    with pytest.raises(ValueError, match=r"hold 117 numbers of torch.float32 a frame, this tower needs 45"):
        unpack(records, {"clip": (9, 5)}, torch.float32)


def test_records_that_deepspeed_made_bfloat16_are_still_records() -> None:
    """DeepSpeed gives every floating tensor of a batch its own dtype; whole numbers it leaves alone."""
    features = features_of(SHAPES, 2)
    found = unpack(pack(features, torch.float32).to(torch.bfloat16), SHAPES, torch.bfloat16)
    assert all(torch.equal(found[kind], feature.to(torch.bfloat16)) for kind, feature in features.items())
