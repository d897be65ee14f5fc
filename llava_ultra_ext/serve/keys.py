"""Who may ask: API keys, and the rule that a server reached from other machines has some."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

KEY_VARIABLE = "ULTRA_API_KEY"
LEAST_CHARACTERS = 8


class ApiKeys:
    """The keys that are accepted; false when there are none and everybody is.

    Args:
        keys: printable ASCII without blanks, of 8 characters or more.

    Raises:
        ValueError: another key; it is not quoted.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        for place, key in enumerate(keys, start=1):
            if len(key) < LEAST_CHARACTERS or not all("!" <= character <= "~" for character in key):
                raise ValueError(
                    f"API key {place} cannot be used: give {LEAST_CHARACTERS} or more ASCII characters without blanks, "
                    "such as `openssl rand -hex 24` makes."
                )
        self._keys = [key.encode() for key in keys]

    @classmethod
    def read(cls, file: Path | None, environment: Mapping[str, str] = os.environ) -> ApiKeys:
        """Keys of a file, one a line, and of the environment variable ``ULTRA_API_KEY``.

        Raises:
            ValueError: the file cannot be read or holds no key, or a key cannot be used.
        """
        keys = [environment.get(KEY_VARIABLE, "").strip()]
        if file is not None:
            try:
                lines = file.read_text(encoding="utf-8").split("\n")
            except (OSError, UnicodeDecodeError):
                raise ValueError("--api-keys-file cannot be read: give a text file with one key a line.") from None
            found = [line.strip() for line in lines if line.strip()]
            if not found:
                raise ValueError("--api-keys-file holds no key: write one a line.")
            keys += found
        return cls([key for key in keys if key])

    def __len__(self) -> int:
        return len(self._keys)

    def accept(self, authorization: str | None) -> bool:
        """Whether a header ``Authorization: Bearer KEY`` holds a key; every key is compared, in constant time."""
        scheme, _, given = (authorization or "").partition(" ")
        offered = given.strip().encode(errors="replace")
        matches = [hmac.compare_digest(offered, key) for key in self._keys]
        return not self._keys or (scheme.lower() == "bearer" and any(matches))


def is_loopback(host: str) -> bool:
    """Whether a server that binds to `host` can be reached from its own machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def hosts_of(host: str) -> tuple[str, ...]:
    """Names by which a browser reaches a loopback address; empty, any name, for another address."""
    return ("127.0.0.1", "localhost", "::1", host) if is_loopback(host) else ()


def check_host(host: str, keys: ApiKeys) -> None:
    """Refuse to serve other machines without a key.

    Raises:
        ValueError: no key, and `host` is not of this machine alone.
    """
    if not keys and not is_loopback(host):
        raise ValueError(
            f"--host {host} lets other machines in: give keys with --api-keys-file FILE or {KEY_VARIABLE}, "
            "or listen on 127.0.0.1."
        )
