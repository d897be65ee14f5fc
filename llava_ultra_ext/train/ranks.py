"""Processes that share work which needs no common optimizer: scoring frames, building a feature cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed

from llava_ultra_ext.model.opening import check_device


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun or DeepSpeed's launcher started."""

    rank: int
    size: int

    @classmethod
    @contextlib.contextmanager
    def join(cls, *, must_meet: bool = True) -> Iterator[Ranks]:
        """Meet the other processes (gloo: also without a GPU); alone when none were started.

        Args:
            must_meet: False: processes of which each was started by hand with ``RANK`` and ``WORLD_SIZE`` (jobs of an
                array, say) and which have no ``MASTER_ADDR`` to meet at share the work and never wait.
        """
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if size <= 1 or not (must_meet or "MASTER_ADDR" in os.environ):
            yield cls(rank if size > 1 else 0, max(1, size))
            return
        # A rank may be hours behind another one: its exams have more frames, or its GPU is slower.
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
        try:
            yield cls(torch.distributed.get_rank(), size)
        finally:
            torch.distributed.destroy_process_group()

    def device(self, wanted: str | None) -> str:
        """A GPU for each process of a machine, unless a device is named."""
        if wanted is not None or self.size == 1 or not torch.cuda.is_available():
            return check_device(wanted)
        return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.barrier()
