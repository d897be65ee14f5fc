"""SAM weights from a Hugging Face folder (or hub name) or from segment-anything's ``.pth``, for any image size."""

from __future__ import annotations

import inspect
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .sam import SamEncoder, SamShape, grid_of
from .sources import find_file, read_config

# Width and blocks of the published models, by the letter in their file names (segment-anything's build_sam.py).
PUBLISHED = {"b": (768, 12), "l": (1024, 24), "h": (1280, 32)}

_PREFIXES = ("image_encoder.", "vision_encoder.")
_FIRST_KEYS = ("patch_embed.proj.weight", "patch_embed.projection.weight")
# transformers' names -> segment-anything's
_RENAMED = (
    ("patch_embed.projection.", "patch_embed.proj."),
    ("neck.conv1.", "neck.0."),
    ("neck.layer_norm1.", "neck.1."),
    ("neck.conv2.", "neck.2."),
    ("neck.layer_norm2.", "neck.3."),
    ("layers.", "blocks."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
)


def is_weight_file(source: str) -> bool:
    """Whether a source is one file in segment-anything's format (by its ending: .pth or .pt)."""
    return Path(source).suffix in (".pth", ".pt")


def read_shape(source: str) -> SamShape:
    """The numbers of a SAM source, without loading its weights.

    Args:
        source: a Hugging Face folder or hub name (``config.json`` is read), or a ``.pth`` (its tensors' shapes are).

    Raises:
        ValueError: nothing there, not a SAM image encoder, or a file name that claims another size than the file has.
    """
    if not is_weight_file(source):
        return _shape_from_config(source)
    shape = _shape_from_tensors(source, _read_tensors(Path(source), source))
    _check_name(Path(source), shape)
    return shape


def load_sam(source: str, image_size: int | None = None, select_feature: str = "neck") -> SamEncoder:
    """Builds the encoder and fills it, in float32 on the CPU.

    Absolute positions are resized bicubically and the relative positions of whole-grid blocks linearly (as
    segment-anything's ``get_rel_pos``); windows keep their size, so theirs stay as they are.

    Args:
        source: see `read_shape`.
        image_size: side of the input in pixels, a multiple of 16; None: the size the weights were trained at.
        select_feature: see `SamEncoder`.

    Raises:
        ValueError: as `read_shape`, or weights that are missing, unexpected or of another shape.
    """
    shape = read_shape(source)
    encoder = SamEncoder(shape, image_size or shape.image_size, select_feature)
    state = _fit_positions(_read_tensors(_weight_file(source), source), shape, encoder.grid)
    wanted = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != given:
        raise ValueError(f"SAM weights {source!r} do not fit their shape: {_difference(wanted, given)}")
    encoder.load_state_dict(state)
    return encoder


def _shape_from_config(source: str) -> SamShape:
    config = read_config(source, "sam")
    vision = config.get("vision_config", config)
    if "global_attn_indexes" not in vision and "sam" not in str(config.get("model_type", "")):
        raise ValueError(
            f"sam encoder {source!r}: its config.json is of model_type {config.get('model_type')!r}. Needed: a SAM "
            "folder (model_type sam, as facebook/sam-vit-large) or segment-anything's .pth file."
        )
    from transformers import SamVisionConfig

    full = SamVisionConfig(**vision)  # fills in what a config.json leaves to the defaults
    if full.hidden_act != "gelu":
        raise ValueError(f"sam encoder {source!r}: hidden_act {full.hidden_act!r}; SAM's image encoder uses gelu.")
    return SamShape(
        hidden_size=full.hidden_size,
        layers=full.num_hidden_layers,
        heads=full.num_attention_heads,
        mlp_size=full.mlp_dim,
        out_channels=full.output_channels,
        image_size=full.image_size,
        patch_size=full.patch_size,
        window_size=full.window_size,
        global_layers=tuple(full.global_attn_indexes),
    )


def _shape_from_tensors(source: str, state: Mapping[str, Tensor]) -> SamShape:
    try:
        hidden, _, patch, _ = state["patch_embed.proj.weight"].shape
        grid = state["pos_embed"].shape[1]
        layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        lengths = [state[f"blocks.{i}.attn.rel_pos_h"].shape[0] for i in range(layers)]
        depth = state["blocks.0.attn.rel_pos_h"].shape[1]
        mlp_size = state["blocks.0.mlp.lin1.weight"].shape[0]
        out_channels = state["neck.0.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"SAM weights {source!r}: no whole image encoder in it ({error}). Give an unchanged segment-anything file "
            "(sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth) or one saved from that model."
        ) from error
    windows = sorted({length for length in lengths if length != 2 * grid - 1})
    if len(windows) > 1:
        raise ValueError(
            f"SAM weights {source!r}: blocks with windows of different sizes "
            f"({', '.join(str((length + 1) // 2) for length in windows)}); SAM has one window size."
        )
    return SamShape(
        hidden_size=hidden,
        layers=layers,
        heads=hidden // depth,
        mlp_size=mlp_size,
        out_channels=out_channels,
        image_size=grid * patch,
        patch_size=patch,
        window_size=(windows[0] + 1) // 2 if windows else grid,
        global_layers=tuple(i for i, length in enumerate(lengths) if length == 2 * grid - 1),
    )


def _check_name(path: Path, shape: SamShape) -> None:
    claim = re.search(r"vit[_-]([blh])(?![a-z])", path.name.lower())
    has = (shape.hidden_size, shape.layers)
    if claim is None or PUBLISHED[claim.group(1)] == has:
        return
    real = next((f"ViT-{letter.upper()}" for letter, size in PUBLISHED.items() if size == has), "none of SAM's models")
    width, layers = PUBLISHED[claim.group(1)]
    raise ValueError(
        f"SAM weights {path}: the name says ViT-{claim.group(1).upper()} (width {width}, {layers} blocks), the file "
        f"holds width {has[0]}, {has[1]} blocks ({real}). Give the right file, or rename it to what it holds."
    )


def _weight_file(source: str) -> Path:
    if is_weight_file(source):
        return Path(source)
    path = find_file(source, "model.safetensors", "pytorch_model.bin")
    if path is None:
        raise ValueError(
            f"sam encoder {source!r}: config.json is there, weights are not. Needed beside it: model.safetensors or "
            "pytorch_model.bin in one piece. Download the model again, or save it with save_pretrained."
        )
    return path


def _read_tensors(path: Path, source: str) -> dict[str, Tensor]:
    """The image encoder's tensors under segment-anything's names; lazy where the file format allows it."""
    if not path.is_file():
        raise ValueError(f"SAM weights {source!r}: no such file. Needed: a .pth of segment-anything, or a SAM folder.")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in state)), "")
    state = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if not any(name in state for name in _FIRST_KEYS):
        raise ValueError(
            f"SAM weights {source!r}: no SAM image encoder in {path.name} (looked for image_encoder.* and "
            f"vision_encoder.*; found {', '.join(sorted(state)[:3])} …). Give a SAM checkpoint."
        )
    return {_rename(name): value for name, value in state.items()}


def _rename(name: str) -> str:
    for theirs, ours in _RENAMED:
        name = name.replace(theirs, ours)
    return name


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith(("mask_", "prompt_"))]  # noqa: SIM118 (no mapping)
        return {name: file.get_tensor(name) for name in names}


def _read_pickle(path: Path) -> dict[str, Tensor]:
    # mmap needs torch 2.1 and the zip format that torch.save has written since 1.6.
    mapped = "mmap" in inspect.signature(torch.load).parameters and zipfile.is_zipfile(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, **({"mmap": True} if mapped else {}))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"SAM weights {path}: not a file of tensors ({error}). Download it again, or save its state_dict alone."
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise ValueError(f"SAM weights {path}: holds a {type(state).__name__}, needed is a dict of tensors.")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _fit_positions(state: dict[str, Tensor], shape: SamShape, grid: int) -> dict[str, Tensor]:
    if grid == grid_of(shape.image_size, shape.patch_size):
        return state
    fitted = dict(state)
    for name in {"pos_embed"} & state.keys():  # a missing one is reported with all others
        absolute = state[name].float().permute(0, 3, 1, 2)  # (1, C, g, g)
        fitted[name] = F.interpolate(absolute, size=(grid, grid), mode="bicubic").permute(0, 2, 3, 1)
    whole_grid = {f"blocks.{layer}.attn.rel_pos_{axis}" for layer in shape.global_layers for axis in "hw"}
    for name in whole_grid & state.keys():
        relative = state[name].float().T.unsqueeze(0)  # (1, d, 2g - 1)
        fitted[name] = F.interpolate(relative, size=2 * grid - 1, mode="linear").squeeze(0).T
    return fitted


def _difference(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> str:
    missing = sorted(wanted.keys() - given.keys())
    unexpected = sorted(given.keys() - wanted.keys())
    both = sorted(wanted.keys() & given.keys())
    other = [f"{name} {given[name]} instead of {wanted[name]}" for name in both if wanted[name] != given[name]]
    parts = []
    for label, names in (("missing", missing), ("unexpected", unexpected), ("shape", other)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            parts.append(f"{label}: {', '.join(names[:4])}{more}")
    return "; ".join(parts) + ". Is config.json of this checkpoint, and the download complete?"
