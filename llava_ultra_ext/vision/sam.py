"""SAM's image encoder (Kirillov et al. 2023, "Segment Anything", arXiv 2304.02643), made to run fast at any size.

Same weights, same numbers as segment-anything's ``ImageEncoderViT`` and transformers' ``SamVisionEncoder``:
a plain ViT (ViTDet, arXiv 2203.16527) whose blocks attend inside windows, a few of them over the whole grid, with
relative positions decomposed into rows and columns (MViTv2, arXiv 2112.01526):

    score(i, j) = q_i . k_j / sqrt(d)  +  q_i . R_h[row_i - row_j]  +  q_i . R_w[col_i - col_j]

We differ in how it is computed:

* One fused attention call. The bias is linear in indicator vectors of the key's row and column, so on a GPU it is
  folded into the vectors: q' = [q, q.R_h, q.R_w], k' = [k, row indicator, column indicator], and no matrix of
  tokens x tokens exists. On a CPU the bias is given as a mask, which is faster there.
* A block over the whole grid is a block with one window as large as the grid, so both kinds share the code.
* Padding of the last windows takes part in SAM's attention. A padded token is zero before ``qkv``, so its q, k, v are
  the bias of ``qkv``: only real tokens go through the linear layers.
* Positions are brought to the wanted size once, when the weights are loaded (`sam_weights`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = ("neck", "last_hidden")


@dataclass(frozen=True)
class SamShape:
    """Numbers that define a SAM image encoder.

    Args:
        hidden_size: width of the ViT.
        layers: blocks.
        heads: attention heads.
        mlp_size: width inside the MLP.
        out_channels: channels after the neck (256 in the published models).
        image_size: side of the input in pixels that the weights were trained at (1024).
        patch_size: side of a patch in pixels (16).
        window_size: side of an attention window in patches (14).
        global_layers: indices of the blocks that attend over the whole grid.
    """

    hidden_size: int
    layers: int
    heads: int
    mlp_size: int
    out_channels: int
    image_size: int
    patch_size: int
    window_size: int
    global_layers: tuple[int, ...]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, g, g)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, g, g) -> (N, C, g, g)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def build_neck(hidden_size: int, out_channels: int) -> nn.Sequential:
    """SAM's neck: (N, hidden_size, g, g) -> (N, out_channels, g, g)."""
    return nn.Sequential(
        nn.Conv2d(hidden_size, out_channels, 1, bias=False),
        ChannelNorm(out_channels, eps=1e-6),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        ChannelNorm(out_channels, eps=1e-6),
    )


def attend_folded(q: Tensor, k: Tensor, v: Tensor, bias_row: Tensor, bias_col: Tensor) -> Tensor:
    """Attention over s*s tokens whose bias is a part per key row plus a part per key column, in one fused call.

    Args:
        q: (B, heads, s*s, d), unscaled; k and v likewise.
        bias_row: (B, heads, s*s, s): what a query adds to every key of a row.
        bias_col: (B, heads, s*s, s): the same for columns.

    Returns:
        (B, heads, s*s, d).
    """
    batch, heads, tokens, depth = q.shape
    side = bias_row.shape[-1]
    width = -(-(depth + 2 * side) // 8) * 8  # fused kernels want multiples of 8 and equal depths of q, k and v
    eye = torch.eye(side, dtype=q.dtype, device=q.device)
    place = torch.cat([eye.repeat_interleave(side, 0), eye.repeat(side, 1)], dim=1)  # (s*s, 2s): row, column of a key
    # The fused call divides every product by sqrt(width): give q what turns that into sqrt(depth), the bias all of it.
    # (Its `scale` argument would say the same, but torch 2.0 has none.)
    q = torch.cat([q * (width / depth) ** 0.5, bias_row * width**0.5, bias_col * width**0.5], dim=-1)
    k = torch.cat([k, place.expand(batch, heads, tokens, 2 * side)], dim=-1)
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)[..., :depth]


def attend_masked(q: Tensor, k: Tensor, v: Tensor, bias_row: Tensor, bias_col: Tensor) -> Tensor:
    """The same as `attend_folded`, with the bias written out as a (B, heads, s*s, s*s) mask."""
    bias = bias_row.unsqueeze(-1) + bias_col.unsqueeze(-2)  # (B, heads, s*s, s, s)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(-2))


class WindowAttention(nn.Module):
    """Self-attention inside windows of `window` x `window` patches, with decomposed relative positions."""

    distance: Tensor

    def __init__(self, hidden_size: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * window - 1, hidden_size // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * window - 1, hidden_size // heads))
        place = torch.arange(window)
        self.register_buffer("distance", place[:, None] - place[None, :] + window - 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, g, g, C) -> (N, g, g, C)."""
        frames, grid, _, hidden = x.shape
        side, count = self.window, -(-grid // self.window)
        qkv = self._pad(self.qkv(x), side * count)
        qkv = qkv.reshape(frames, count, side, count, side, 3, self.heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = qkv.reshape(3, frames * count**2, self.heads, side**2, -1).unbind(0)  # each (B, heads, s*s, d)
        attend = attend_folded if x.is_cuda else attend_masked
        out = attend(q, k, v, *self._bias(q))
        out = out.reshape(frames, count, count, self.heads, side, side, -1).permute(0, 1, 4, 2, 5, 3, 6)
        out = out.reshape(frames, count * side, count * side, hidden)[:, :grid, :grid]
        return self.proj(out)

    def _pad(self, qkv: Tensor, side: int) -> Tensor:
        frames, grid, _, _ = qkv.shape
        if side == grid:
            return qkv
        padded = self.qkv.bias.to(qkv.dtype).expand(frames, side, side, -1).clone()
        padded[:, :grid, :grid] = qkv
        return padded

    def _bias(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What each query adds to the keys of every row and of every column, each (B, heads, s*s, s)."""
        grid = q.unflatten(2, (self.window, self.window))  # (B, heads, row, column, d)
        row = torch.einsum("bnrcd,rkd->bnrck", grid, self.rel_pos_h[self.distance])
        col = torch.einsum("bnrcd,ckd->bnrck", grid, self.rel_pos_w[self.distance])
        return row.flatten(2, 3), col.flatten(2, 3)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, hidden_size: int, heads: int, mlp_size: int, window: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.attn = WindowAttention(hidden_size, heads, window)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.mlp = nn.Sequential(
            OrderedDict(lin1=nn.Linear(hidden_size, mlp_size), act=nn.GELU(), lin2=nn.Linear(mlp_size, hidden_size))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, g, g, C) -> (N, g, g, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SamEncoder(nn.Module):
    """SAM's image encoder for pictures of one size; parameter names are segment-anything's.

    Args:
        shape: the numbers of the published model.
        image_size: side of the input in pixels, a multiple of the patch size.
        select_feature: ``neck`` (out_channels) or ``last_hidden`` (hidden_size, before the neck).

    Raises:
        ValueError: an image size or a feature that SAM cannot give.
    """

    def __init__(self, shape: SamShape, image_size: int, select_feature: str = "neck") -> None:
        super().__init__()
        if select_feature not in FEATURES:
            raise ValueError(f"SAM feature {select_feature!r}: allowed are {', '.join(FEATURES)}.")
        self.image_size = image_size
        self.grid = grid_of(image_size, shape.patch_size)
        self.select_feature = select_feature
        hidden = shape.hidden_size
        self.patch_embed = nn.Sequential(
            OrderedDict(proj=nn.Conv2d(3, hidden, shape.patch_size, stride=shape.patch_size))
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid, self.grid, hidden))
        self.blocks = nn.ModuleList(
            Block(hidden, shape.heads, shape.mlp_size, self.grid if i in shape.global_layers else shape.window_size)
            for i in range(shape.layers)
        )
        self.neck = build_neck(hidden, shape.out_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (N, 3, S, S) -> features (N, C, S / patch, S / patch).

        Raises:
            ValueError: pixels of another size than the encoder was built for.
        """
        if tuple(pixels.shape[-2:]) != (self.image_size, self.image_size):
            raise ValueError(
                f"SAM encoder built for {self.image_size} px was given {tuple(pixels.shape)}. "
                "Resize the pixels, or build the encoder with that image_size."
            )
        x = self.patch_embed(pixels).permute(0, 2, 3, 1) + self.pos_embed  # (N, g, g, C)
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2)  # (N, C, g, g)
        return self.neck(x) if self.select_feature == "neck" else x


def grid_of(image_size: int, patch_size: int) -> int:
    """Patches along a side.

    Raises:
        ValueError: the side is no positive multiple of the patch size.
    """
    if image_size < patch_size or image_size % patch_size:
        below = max(image_size // patch_size, 1) * patch_size
        raise ValueError(
            f"SAM image size {image_size}: it must be a multiple of {patch_size}, "
            f"the side of a patch, such as {below} or {below + patch_size}."
        )
    return image_size // patch_size
