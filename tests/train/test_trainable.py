"""Which parameters are ours, and how they get to disk and back."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from llava_ultra_ext.train import trainable
from llava_ultra_ext.train.trainable import (
    gather_state,
    learned_parameters,
    load_projector,
    lora_state,
    projector_state,
    save_tensors,
    state_fingerprint,
)
from llava_ultra_ext.vision.projector import UltraProjector
from llava_ultra_ext.vision.sampler import FrameScorer


def projector(seed: int = 0, projector_type: str = "linear") -> UltraProjector:
    torch.manual_seed(seed)
    made = UltraProjector(
        {"clip": 3, "sam": 5}, hidden_size=4, tokens=2, projector_type=projector_type, sampler=FrameScorer(4, 2)
    )
    with torch.no_grad():
        assert made.fusion.logits is not None
        made.fusion.logits.fill_(float(seed))
    return made


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return set(left) == set(right) and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("prefix", ["", "mm_projector.", "model.mm_projector.", "base_model.model.model.mm_projector."])
def test_a_state_comes_back_whatever_was_put_before_its_names(prefix: str) -> None:
    source, target = projector(1), projector(2)
    state = {f"{prefix or 'mm_projector.'}{name}": value for name, value in values(source).items()}
    state["model.layers.0.weight"] = torch.zeros(1)
    load_projector(target, state, "file.bin", strict=True)
    assert same(values(target), values(source))


def test_strict_names_all_that_does_not_fit_and_changes_nothing() -> None:
    target = projector(2)
    before = values(target)
    state = {f"mm_projector.{name}": value for name, value in values(projector(1)).items()}
    del state["mm_projector.fusion.logits"]
    state["mm_projector.projections.dinov2.weight"] = torch.zeros(4, 7)
    state["mm_projector.projections.sam.weight"] = torch.zeros(4, 6)
    with pytest.raises(ValueError) as error:
        load_projector(target, state, "stage1.bin", strict=True)
    assert str(error.value).startswith(
        "stage1.bin does not fit this projector: missing ['fusion.logits'], surplus ['projections.dinov2.weight'], "
        "other shape ['projections.sam.weight']. Use the flags it was trained with"
    )
    assert same(values(target), before)


def test_another_sampler_starts_afresh_from_the_same_stage_1(caplog: pytest.LogCaptureFixture) -> None:
    target = projector(2)
    before, source = values(target), values(projector(1))
    state = {f"mm_projector.{name}": value for name, value in source.items() if name != "sampler.channel_weights"}
    state["mm_projector.sampler.token_weights"] = torch.zeros(9)
    load_projector(target, state, "stage1.bin", strict=True)
    after = values(target)
    assert torch.equal(after.pop("sampler.channel_weights"), before["sampler.channel_weights"])
    assert same(after, {name: source[name] for name in after})
    assert "new: ['sampler.channel_weights'], not used: ['sampler.token_weights']" in caplog.text


def test_lenient_takes_what_fits_and_names_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    target, source = projector(2), projector(1)
    before = values(target)
    state = {f"mm_projector.{name}": value for name, value in values(source).items() if "sampler" not in name}
    state["mm_projector.projections.sam.weight"] = torch.zeros(4, 6)
    load_projector(target, state, "base", strict=False)
    after = values(target)
    for name in before:
        kept = name in ("projections.sam.weight", "sampler.channel_weights")
        assert torch.equal(after[name], before[name] if kept else values(source)[name])
    assert "new: ['sampler.channel_weights'], not used: ['projections.sam.weight']" in caplog.text


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("projector_type", ["linear", "mlp2x_gelu"])
def test_llavas_projector_is_p1(strict: bool, projector_type: str) -> None:
    target = projector(2, projector_type)
    before = values(target)
    mlp = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4))
    theirs = nn.Linear(3, 4) if projector_type == "linear" else mlp
    load_projector(target, {f"model.mm_projector.{n}": v for n, v in values(theirs).items()}, "llava-med", strict)
    assert same(values(target.projections["clip"]), values(theirs))
    assert all(torch.equal(value, before[name]) for name, value in values(target).items() if "clip" not in name)


def test_a_file_without_a_projector_is_not_taken_for_one() -> None:
    with pytest.raises(ValueError, match=r"adapter.bin does not fit this projector: missing \['fusion.logits', "):
        load_projector(projector(), {"model.layers.0.weight": torch.zeros(1)}, "adapter.bin", strict=True)


def test_llavas_projector_of_another_width_is_refused_where_it_was_asked_for() -> None:
    state = {"mm_projector.weight": torch.zeros(4, 9), "mm_projector.bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"other shape \['projections.clip.weight'\]"):
        load_projector(projector(), state, "llava.bin", strict=True)
    state = {"mm_projector.weight": torch.zeros(4, 3)}
    with pytest.raises(ValueError, match=r"surplus \['projections.clip.weight'\]"):
        load_projector(projector(projector_type="mlp2x_gelu"), state, "llava.bin", strict=True)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mm_projector = projector(3)
        self.lora_a = nn.Linear(2, 2)
        self.lora_a.lora_A = nn.Parameter(torch.ones(2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.head = nn.Linear(2, 2)


def test_learned_parameters_are_all_of_mm_projector_and_nothing_else() -> None:
    model = Model()
    found = learned_parameters(model)
    assert set(found) == {f"mm_projector.{name}" for name, _ in model.mm_projector.named_parameters()}
    copies = gather_state(found)
    assert same(copies, {name: parameter.detach() for name, parameter in found.items()})
    with torch.no_grad():
        model.mm_projector.fusion.logits.add_(1)
    assert not torch.equal(copies["mm_projector.fusion.logits"], model.mm_projector.fusion.logits)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_lora_state_splits_what_is_trained_into_llavas_two_files(bias: str) -> None:
    model = Model()
    lora, rest = lora_state(model, bias)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(lora) | set(rest) == trained and not set(lora) & set(rest)
    assert {name for name in trained if "mm_projector" in name} <= set(rest), "its biases too"
    assert "lora_a.lora_A" in lora
    assert ("head.bias" in lora) == (bias != "none")
    assert not any("frozen" in name for name in (*lora, *rest))


def test_the_fingerprint_knows_values_and_no_prefix_or_order() -> None:
    state = {f"model.mm_projector.{name}": value for name, value in values(projector(1)).items()}
    again = {name.replace("model.", "base_model.model.model."): value for name, value in reversed(state.items())}
    assert state_fingerprint(state) == state_fingerprint({**again, "other": torch.zeros(1)})
    assert state_fingerprint({n: v.half().float() for n, v in state.items()}) != state_fingerprint(state)
    assert state_fingerprint({n: v.to(torch.bfloat16) for n, v in state.items()}) == state_fingerprint(
        {n: v.to(torch.bfloat16).float() for n, v in state.items()}
    )
    assert len(state_fingerprint(state)) == 16


def test_projector_state_strips_every_prefix() -> None:
    state = dict.fromkeys(("a.mm_projector.x", "mm_projector.y.z", "w"), torch.ones(1))
    assert set(projector_state(state)) == {"x", "y.z"}


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mm_projector.bin"
    save_tensors({"a": torch.ones(2)}, path)

    def full(tensors: dict, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainable.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_tensors({"a": torch.zeros(2)}, path)
    assert torch.load(path)["a"].tolist() == [1.0, 1.0]
    assert [item.name for item in tmp_path.iterdir()] == ["mm_projector.bin"]
