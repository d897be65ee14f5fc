"""From encoder features to LLM tokens: one projection an encoder, mixed by a learnt weight (paper equation 2).

``H_v = alpha * P1(F1(X)) + (1 - alpha) * P2(F2(X))``

Everything that this extension trains outside the LLM lives in :class:`UltraProjector`, because LLaVA freezes, saves,
loads and merges its additions by the one name ``mm_projector``.

ZeRO-3 gathers a parameter only while its own module's ``forward`` runs; so each parameter here is touched there and
nowhere else, and none is 0-dimensional.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from llava_ultra_ext.arguments import FUSIONS
from llava_ultra_ext.vision.sampler import FrameScorer

NECK_OWNER = "sam"  # the encoder whose features pass the optional trainable neck


def build_projection(width: int, hidden_size: int, projector_type: str = "linear") -> nn.Module:
    """One projection module, named as LLaVA names them (``llava.model.multimodal_projector.builder``).

    Args:
        width: C, channels of an encoder token.
        hidden_size: D.
        projector_type: ``linear`` (the paper) or ``mlpNx_gelu``: N linear layers with GELU between.

    Raises:
        ValueError: for another name.
    """
    if projector_type == "linear":
        return nn.Linear(width, hidden_size)
    match = re.fullmatch(r"mlp([1-9]\d*)x_gelu", projector_type)
    if match is None:
        raise ValueError(f"Projector type {projector_type!r} is unknown: choose 'linear' or 'mlpNx_gelu' (mlp2x_gelu).")
    layers: list[nn.Module] = [nn.Linear(width, hidden_size)]
    for _ in range(1, int(match.group(1))):
        layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
    return nn.Sequential(*layers)


class Fusion(nn.Module):
    """The mixture of equation 2.

    Our choice: alpha is a sigmoid of a learnt logit, so that it stays in (0, 1) and the sum stays an average; with more
    than two encoders the weights are a softmax. All encoders start equal (alpha .5). One encoder needs no parameter.

    Args:
        encoders: how many projections are mixed.
        hidden_size: D.
        mode: ``scalar`` (one weight an encoder, the paper), ``channel`` (one for each of the D channels) or ``concat``
            (no weight: the plain sum of linear projections is one projection of the concatenated channels, which is
            what other two-encoder models learn; for comparison).

    Raises:
        ValueError: for another mode.
    """

    def __init__(self, encoders: int, hidden_size: int, mode: str = "scalar") -> None:
        super().__init__()
        if mode not in FUSIONS:
            raise ValueError(f"alpha_mode {mode!r} is unknown: choose one of {', '.join(FUSIONS)}.")
        self.encoders = encoders
        columns = 1 if mode == "scalar" else hidden_size
        shape = (columns,) if encoders == 2 else (encoders, columns)
        self.logits = nn.Parameter(torch.zeros(shape)) if encoders > 1 and mode != "concat" else None
        self._last_weights: Tensor | None = None

    def reset_parameters(self) -> None:
        """Back to equal weights."""
        if self.logits is not None:
            nn.init.zeros_(self.logits)

    def forward(self, *projected: Tensor) -> Tensor:
        """Mixes the encoders' projections, each (N, T, D), into H_v (N, T, D) in their dtype."""
        if self.logits is None:
            self._last_weights = torch.ones(self.encoders, 1)
            return sum(projected[1:], start=projected[0])
        logits = self.logits.float()
        if self.encoders == 2:
            alpha = logits.sigmoid()
            weights = torch.stack([alpha, 1 - alpha])  # (2, 1) or (2, D)
        else:
            weights = logits.softmax(0)  # (encoders, 1) or (encoders, D)
        self._last_weights = weights.detach()
        weights = weights.to(projected[0].dtype)
        mixed = weights[0] * projected[0]
        for weight, features in zip(weights[1:], projected[1:], strict=True):
            mixed = mixed + weight * features
        return mixed

    def alpha(self) -> Tensor:
        """The weights used by the last forward, detached; safe to read at any time, also under ZeRO-3.

        Returns:
            float32 (encoders,), or (encoders, D) for ``channel``, summing to 1 over the encoders, all 1 for
            ``concat``. The first encoder's is the paper's alpha.

        Raises:
            RuntimeError: before the first forward.
        """
        if self._last_weights is None:
            raise RuntimeError("alpha is known after the first forward: run a batch through the projector first.")
        return self._last_weights.squeeze(1)


class UltraProjector(nn.Module):
    """P1, P2, alpha and the frame scorer; becomes LLaVA's ``model.mm_projector``.

    Args:
        widths: channels of each encoder's tokens, by kind, in the order of the mixture.
        hidden_size: D.
        tokens: T, what the encoders' grids have in common.
        projector_type: see :func:`build_projection`.
        alpha_mode: see :class:`Fusion`.
        sampler: the frame scorer; it is called by the model, after this module's forward.
        neck: trainable copy of SAM's neck. ``features["sam"]`` is then (N, C', g, g), before the neck; it passes neck,
            ``merge`` and P2. ``widths["sam"]`` stays the width after ``merge``.
        merge: brings the neck's (N, C'', g, g) to the reference grid, (N, T, C). Needed with ``neck`` only.

    Raises:
        ValueError: without encoders, for a neck without ``merge`` or without a ``sam`` encoder.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        hidden_size: int,
        tokens: int,
        *,
        sampler: FrameScorer,
        projector_type: str = "linear",
        alpha_mode: str = "scalar",
        neck: nn.Module | None = None,
        merge: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("The projector needs at least one encoder, got none: name one in --vision_tower.")
        if neck is not None and (merge is None or NECK_OWNER not in widths):
            raise ValueError(
                f"A trainable neck needs a merge function and a {NECK_OWNER!r} encoder; got merge={merge}, "
                f"encoders {list(widths)}. Give both, or keep the neck frozen in the tower."
            )
        # An MLP on concatenated channels: its first layer is a sum of linear ones, the rest of it comes behind the sum.
        concat = alpha_mode == "concat"
        own = "linear" if concat else projector_type
        self.projections = nn.ModuleDict(
            {kind: build_projection(width, hidden_size, own) for kind, width in widths.items()}
        )
        whole = build_projection(1, hidden_size, projector_type) if concat else None
        rest = list(whole)[1:] if isinstance(whole, nn.Sequential) else []
        self.behind = nn.Sequential(*rest)
        self.fusion = Fusion(len(widths), hidden_size, alpha_mode)
        self.sampler = sampler
        self.tokens = tokens
        self.neck = neck
        self.merge = merge

    def alpha(self) -> Tensor:
        """The mixing weights of the last forward, see :meth:`Fusion.alpha`."""
        return self.fusion.alpha()

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Equation 2.

        Args:
            features: one (N, T, C) tensor an encoder (with a neck, ``sam`` is (N, C', g, g)); cast to the parameters'
                dtype, since the frozen encoders may run in another one.

        Returns:
            H_v (N, T, D).

        Raises:
            ValueError: if the encoders or their token counts are not the ones the projector was built for.
        """
        if set(features) != set(self.projections):
            raise ValueError(
                f"The projector was built for encoders {list(self.projections)}, but got features of {list(features)}: "
                "load it with the --vision_tower it was trained with."
            )
        dtype = next(self.projections.parameters()).dtype  # the dtype is known also while ZeRO-3 keeps the values away
        projected = []
        for kind, projection in self.projections.items():
            tokens = features[kind].to(dtype)
            if kind == NECK_OWNER and self.neck is not None and self.merge is not None:
                tokens = self.merge(self.neck(tokens))
            if tokens.shape[1] != self.tokens:
                raise ValueError(
                    f"Encoder {kind!r} gave {tokens.shape[1]} tokens a frame, the projector knows {self.tokens}: "
                    "use the image size and token merge that it was trained with."
                )
            projected.append(projection(tokens))
        return self.behind(self.fusion(*projected))
