"""Trying again: with waits that double and vary, as long as the fault may pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")


class Passing(Exception):
    """A fault that may pass: no connection, a time-out, a server that is busy. The message names no patient."""


@dataclass(frozen=True)
class Retries:
    """How often and how patiently.

    Args:
        attempts: tries in all, at least 1.
        first_wait: seconds before the second try; doubles from there, and up to half of it is added by chance.
        longest_wait: seconds.
    """

    attempts: int = 4
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def run(self, action: Callable[[], _T]) -> _T:
        """The action's result.

        Raises:
            Passing: the last one, when every try raised it; any other error at once.
        """
        import tenacity

        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_exponential(multiplier=self.first_wait, max=self.longest_wait)
            + tenacity.wait_random(0, self.first_wait / 2),
            retry=tenacity.retry_if_exception_type(Passing),
            before_sleep=_tell,
            reraise=True,
        )(action)


def _tell(state: object) -> None:
    _LOGGER.warning(
        "attempt %d failed (%s); next in %.1f s",
        state.attempt_number,  # type: ignore[attr-defined]
        state.outcome.exception(),  # type: ignore[attr-defined]
        state.next_action.sleep,  # type: ignore[attr-defined]
    )
