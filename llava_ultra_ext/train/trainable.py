"""Which parameters are ours, and how they get to disk and back. Freeze, optimizer, save, load and merge all ask here.

All learnable additions live under ``mm_projector``: LLaVA keys its own freezing, learning rate and saving on that name.
Stage 1 writes them to ``mm_projector.bin``, LoRA runs to ``non_lora_trainables.bin``, as LLaVA does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
NAME = "mm_projector"


def learned_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Names as in the model -> parameters of projector, alpha, feature score (and SAM's neck where it learns)."""
    return {name: parameter for name, parameter in model.named_parameters() if NAME in name}


@contextlib.contextmanager
def gathered(parameters: Iterable[nn.Parameter], modifier_rank: Any = None) -> Iterator[None]:
    """Whole parameters under ZeRO-3; does nothing otherwise."""
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(partitioned, modifier_rank=modifier_rank):
        yield


def gather_state(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """CPU copies, whole also under ZeRO-3; every rank must call it."""
    state = {}
    for name, parameter in parameters.items():
        with gathered([parameter]):
            state[name] = parameter.detach().cpu().clone()
    return state


def projector_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries under ``mm_projector``, named from there on, whatever LLaVA or PEFT put before."""
    return {name.split(f"{NAME}.", 1)[1]: tensor for name, tensor in state.items() if f"{NAME}." in name}


def _from_llava(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LLaVA's or LLaVA-Med's projector (``weight`` or ``0.weight`` …) is P1: the projection of the first encoder."""
    if not all(name.split(".")[0].isdigit() or name in ("weight", "bias") for name in state):
        return dict(state)
    first = next(name for name in own if name.startswith("projections.")).split(".")[1]
    return {f"projections.{first}.{name}": tensor for name, tensor in state.items()}


def load_projector(projector: nn.Module, state: Mapping[str, torch.Tensor], source: str, strict: bool) -> None:
    """Fill the projector from a saved state, one of ours or LLaVA's own.

    Args:
        projector: of :class:`~llava_ultra_ext.vision.projector.UltraProjector`.
        state: as saved, with any prefix before ``mm_projector.``.
        source: where it came from, for messages.
        strict: a complete state of ours, or a whole projector of LLaVA's, is required, whatever its frame sampler is;
            otherwise what fits is taken. The rest is named in the log.

    Raises:
        ValueError: ``strict`` and something is missing, surplus or of another shape.
    """
    own = dict(projector.named_parameters())
    found = projector_state(state)
    theirs = bool(found) and not set(own) & set(found)
    given = _from_llava(own, found) if theirs else found
    missing, surplus = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    shapes = {name: getattr(own[name], "ds_shape", own[name].shape) for name in own}
    unlike = sorted(name for name in set(own) & set(given) if tuple(shapes[name]) != tuple(given[name].shape))
    # Samplers are compared from one stage 1: another --adr_weights starts its w afresh and keeps P1, P2 and alpha.
    wrong = [[name for name in names if not name.startswith("sampler.")] for names in (missing, surplus, unlike)]
    if strict and ((wrong[0] and not theirs) or wrong[1] or wrong[2]):
        raise ValueError(
            f"{source} does not fit this projector: missing {wrong[0]}, surplus {wrong[1]}, other shape {wrong[2]}. "
            "Use the flags it was trained with (--vision_tower, --sam_image_size, --sam_token_merge, "
            "--sam_select_feature, --mm_projector_type, --mm_fusion_alpha)."
        )
    taken = [name for name in own if name in given and name not in unlike]
    if any(own[name].is_meta for name in taken):
        raise ValueError(
            f"{source}: the model does not fit on the GPU, and the projector was left in main memory, where its "
            "weights cannot be set. Merge the folder first (llava-ultra merge), load in 8 bits, or use a larger GPU."
        )
    for name in taken:
        with gathered([own[name]], modifier_rank=0), torch.no_grad():
            own[name].copy_(given[name])
    if missing or surplus or unlike:
        logger.warning(
            "projector: %d of %d tensors start from %s, new: %s, not used: %s",
            len(taken), len(own), source, missing, surplus + unlike,
        )  # fmt: skip


def state_fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """A short name for a saved projector, whatever prefix and file it was saved under."""
    digest = hashlib.sha256()
    for name, tensor in sorted(projector_state(state).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_tensors(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """``torch.save`` under a temporary name, then rename: a reader never sees half a file.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        torch.save(dict(state), temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def lora_state(model: nn.Module, bias: str = "none") -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """LoRA's own tensors, and every other tensor that is trained; LLaVA's two files of a LoRA run.

    Args:
        bias: LLaVA's ``--lora_bias``: ``none``, ``all`` or ``lora_only``.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with_bias = bias in ("all", "lora_only")
    lora = {n: p for n, p in trained.items() if "lora_" in n or (with_bias and "bias" in n and NAME not in n)}
    rest = {name: parameter for name, parameter in trained.items() if name not in lora}
    return gather_state(lora), gather_state(rest)


def is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether a failed save means a full disk: torch and safetensors hide the errno in exceptions of their own.

    torch reports "file write failed", or "unexpected pos" in inline_container.cc when it closes the torn file.
    """
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error).lower()
    failed = any(sign in text for sign in ("write", "writing", "inline_container", "iostream"))
    full = "no space left" in text or (failed and shutil.disk_usage(folder).free < 1 << 20)
    return full or is_full(error.__cause__ or error.__context__, folder)
