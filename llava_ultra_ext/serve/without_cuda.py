"""LLaVA's eval scripts on a machine without CUDA: they call ``.cuda()`` and ``.to(device="cuda")`` unasked.

Applied only inside such a program, only for a model of ours, and only where those calls could do nothing but fail.
"""

from __future__ import annotations

from typing import Any

import torch

from llava_ultra_ext import llava_seams


def _is_cuda(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and str(device).startswith("cuda")


def answer_without_cuda() -> None:
    """Let ``Tensor.cuda()`` and ``Tensor.to("cuda")`` leave the tensor on the CPU; `llava_seams.undo` takes it back."""
    original_to = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = ("cpu", *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return original_to(self, *args, **kwargs)

    def cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self

    llava_seams.rebind(torch.Tensor, "to", to)
    llava_seams.rebind(torch.Tensor, "cuda", cuda)
