"""Equation 2 by hand: projections, alpha, neck, dtypes and what a checkpoint holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llava_ultra_ext.vision.projector import Fusion, UltraProjector, build_projection
from llava_ultra_ext.vision.sampler import FrameScorer

N, T, D = 3, 4, 8
WIDTHS = {"clip": 5, "sam": 6}


def make(widths: dict[str, int] = WIDTHS, **kwargs: object) -> UltraProjector:
    torch.manual_seed(0)
    return UltraProjector(widths, D, T, sampler=FrameScorer(D, T), **kwargs)


def features(widths: dict[str, int] = WIDTHS) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {kind: torch.randn(N, T, width) for kind, width in widths.items()}


def linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x @ module.weight.T + module.bias


def test_two_encoders_follow_equation_2() -> None:
    projector, x = make(), features()
    projector.fusion.logits.data.fill_(1.0)
    alpha = 1 / (1 + torch.exp(torch.tensor(-1.0)))
    clip, sam = projector.projections["clip"], projector.projections["sam"]
    expected = alpha * linear(clip, x["clip"]) + (1 - alpha) * linear(sam, x["sam"])
    torch.testing.assert_close(projector(x), expected)
    torch.testing.assert_close(projector.alpha(), torch.stack([alpha, 1 - alpha]))


def test_the_order_of_the_features_does_not_matter() -> None:
    projector, x = make(), features()
    projector.fusion.logits.data.fill_(2.0)
    assert torch.equal(projector(x), projector(dict(reversed(x.items()))))


def test_starts_in_the_middle_and_stays_inside_the_unit_interval() -> None:
    projector = make()
    projector(features())
    assert projector.alpha().tolist() == [0.5, 0.5]
    projector.fusion.logits.data.fill_(8.0)
    projector(features())
    assert 0.99 < projector.alpha()[0] < 1
    projector.fusion.reset_parameters()
    projector(features())
    assert projector.alpha().tolist() == [0.5, 0.5]


def test_channel_mode_has_one_alpha_a_channel() -> None:
    projector, x = make(alpha_mode="channel"), features()
    projector.fusion.logits.data.copy_(torch.linspace(-3, 3, D))
    alpha = torch.linspace(-3, 3, D).sigmoid()
    clip, sam = projector.projections["clip"], projector.projections["sam"]
    expected = alpha * linear(clip, x["clip"]) + (1 - alpha) * linear(sam, x["sam"])
    torch.testing.assert_close(projector(x), expected)
    assert projector.alpha().shape == (2, D)
    torch.testing.assert_close(projector.alpha().sum(0), torch.ones(D))


@pytest.mark.parametrize("mode", ["scalar", "channel"])
def test_three_encoders_mix_by_softmax(mode: str) -> None:
    widths = {"clip": 5, "sam": 6, "dinov2": 7}
    projector, x = make(widths, alpha_mode=mode), features(widths)
    projector(x)
    torch.testing.assert_close(projector.alpha(), torch.full_like(projector.alpha(), 1 / 3))
    projector.fusion.logits.data.copy_(torch.randn_like(projector.fusion.logits))
    weights = projector.fusion.logits.detach().exp()
    weights = weights / weights.sum(0)
    expected = sum(w * linear(projector.projections[kind], x[kind]) for w, kind in zip(weights, widths, strict=True))
    torch.testing.assert_close(projector(x), expected)
    torch.testing.assert_close(projector.alpha().sum(0), torch.ones(projector.alpha().shape[1:]))


def test_concat_is_one_projection_of_the_concatenated_channels() -> None:
    projector, x = make(alpha_mode="concat"), features()
    clip, sam = projector.projections["clip"], projector.projections["sam"]
    weight, bias = torch.cat([clip.weight, sam.weight], dim=1), clip.bias + sam.bias
    torch.testing.assert_close(projector(x), torch.cat([x["clip"], x["sam"]], dim=-1) @ weight.T + bias)
    assert projector.alpha().tolist() == [1.0, 1.0]
    assert not any("logits" in name for name in projector.state_dict())


def test_concat_with_an_mlp_is_the_mlp_of_the_concatenated_channels() -> None:
    projector, x = make(alpha_mode="concat", projector_type="mlp2x_gelu"), features()
    clip, sam = projector.projections["clip"], projector.projections["sam"]
    mlp = build_projection(clip.in_features + sam.in_features, D, "mlp2x_gelu")
    mlp[0].weight.data = torch.cat([clip.weight, sam.weight], dim=1)
    mlp[0].bias.data = clip.bias + sam.bias
    mlp[2].load_state_dict(projector.behind[1].state_dict())
    torch.testing.assert_close(projector(x), mlp(torch.cat([x["clip"], x["sam"]], dim=-1)))
    assert len(make(alpha_mode="scalar", projector_type="mlp2x_gelu").behind) == 0


def test_one_encoder_is_a_plain_projection() -> None:
    projector, x = make({"clip": 5}), features({"clip": 5})
    torch.testing.assert_close(projector(x), linear(projector.projections["clip"], x["clip"]), rtol=0, atol=1e-6)
    assert list(projector.fusion.parameters()) == []
    assert projector.alpha().tolist() == [1.0]


def test_alpha_before_the_first_forward_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="first forward"):
        make().alpha()


def test_alpha_is_detached_and_not_part_of_the_state() -> None:
    projector = make()
    projector(features())
    assert not projector.alpha().requires_grad
    assert not any("last" in name for name in projector.state_dict())


def test_gradients_reach_every_projection_and_alpha() -> None:
    projector, x = make(), features()
    weights = torch.randn(N, T, D)
    (projector(x) * weights).sum().backward()
    clip, sam = (linear(projector.projections[k], x[k]).detach() for k in WIDTHS)
    expected = (weights * (clip - sam)).sum() * 0.25  # d sigmoid(0) = 1/4
    torch.testing.assert_close(projector.fusion.logits.grad, expected[None])
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.projections.parameters())


def test_the_mixture_runs_in_the_parameter_dtype() -> None:
    projector = make().to(torch.bfloat16)
    out = projector(features())  # float32 features of a CPU tower
    assert out.dtype == torch.bfloat16
    exact = make()(features())
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)


def test_no_parameter_is_zero_dimensional_or_named_like_lora() -> None:
    for widths in ({"clip": 5}, WIDTHS, {"clip": 5, "sam": 6, "dinov2": 7}):
        for mode in ("scalar", "channel"):
            named = dict(make(widths, alpha_mode=mode).named_parameters())
            assert all(p.dim() > 0 for p in named.values()) and not any("lora_" in name for name in named)
    assert set(dict(make().named_parameters())) == {
        *(f"projections.{kind}.{part}" for kind in WIDTHS for part in ("weight", "bias")),
        "fusion.logits",
        "sampler.channel_weights",
    }


def test_parameters_are_touched_only_in_their_own_modules_forward() -> None:
    """As ZeRO-3 does: outside its module's forward a parameter is empty."""
    projector, x = make(), features()
    expected = projector(x)
    owners = [m for m in projector.modules() if list(m.parameters(recurse=False))]
    for owner in owners:
        full = {name: p.data for name, p in owner.named_parameters(recurse=False)}

        def gather(module: nn.Module, _: object, full: dict[str, torch.Tensor] = full) -> None:
            for name, value in full.items():
                getattr(module, name).data = value

        def partition(module: nn.Module, *_: object, full: dict[str, torch.Tensor] = full) -> None:
            for name, value in full.items():
                getattr(module, name).data = value.new_empty(0)

        owner.register_forward_pre_hook(gather)
        owner.register_forward_hook(partition)
        partition(owner)
    assert torch.equal(projector(x), expected)
    assert projector.alpha().tolist() == [0.5, 0.5]
    assert projector.sampler(expected).shape == (N,)


def test_mlp_has_the_named_depth() -> None:
    mlp = build_projection(5, D, "mlp3x_gelu")
    assert [type(m).__name__ for m in mlp] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    x = torch.randn(2, 5)
    h = linear(mlp[4], nn.functional.gelu(linear(mlp[2], nn.functional.gelu(linear(mlp[0], x)))))
    torch.testing.assert_close(mlp(x), h)
    assert isinstance(build_projection(5, D, "mlp1x_gelu")[0], nn.Linear)


def test_neck_features_pass_neck_then_merge_then_projection() -> None:
    torch.manual_seed(0)
    neck = nn.Conv2d(6, 2, 1)

    def merge(x: torch.Tensor) -> torch.Tensor:  # (N, 2, 4, 4) -> (N, 4, 8)
        return x.reshape(N, 2, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(N, T, 8)

    projector = make({"clip": 5, "sam": 8}, neck=neck, merge=merge)
    x = {"clip": torch.randn(N, T, 5), "sam": torch.randn(N, 6, 4, 4)}
    out = projector(x)
    sam = linear(projector.projections["sam"], merge(neck(x["sam"])))
    torch.testing.assert_close(out, 0.5 * linear(projector.projections["clip"], x["clip"]) + 0.5 * sam)
    out.sum().backward()
    assert neck.weight.grad.abs().sum() > 0
    assert "neck.weight" in projector.state_dict()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"projector_type": "mlp_gelu"}, "mlpNx_gelu"),
        ({"projector_type": "mlp0x_gelu"}, "mlpNx_gelu"),
        ({"alpha_mode": "token"}, "scalar, channel, concat"),
        ({"widths": {}}, "at least one encoder"),
        ({"neck": nn.Identity()}, "merge"),
        ({"widths": {"clip": 5}, "neck": nn.Identity(), "merge": nn.Identity()}, "sam"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_features_that_do_not_fit_are_refused() -> None:
    projector, x = make(), features()
    with pytest.raises(ValueError, match="clip"):
        projector({"clip": x["clip"]})
    with pytest.raises(ValueError, match="'sam' gave 9 tokens"):
        projector({"clip": x["clip"], "sam": torch.randn(N, 9, 6)})


def test_fusion_of_more_encoders_keeps_the_dtype() -> None:
    fusion = Fusion(3, D).to(torch.float16)
    assert fusion(*(torch.ones(1, 1, D, dtype=torch.float16) for _ in range(3))).dtype == torch.float16
