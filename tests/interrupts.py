"""For child processes that a test interrupts."""

from __future__ import annotations

import signal


def hear_ctrl_c() -> None:
    """As `preexec_fn` of a child: a shell lets its background jobs ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
