"""Which source ``--images`` names: a folder, a DICOMweb server, or an archive that speaks DIMSE.

Passwords and tokens come from the environment, where no list of processes shows them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from urllib.parse import urlsplit

from llava_ultra_ext.data.pacs.folder import FolderSource
from llava_ultra_ext.data.pacs.source import Source

USER, PASSWORD, TOKEN = "PACS_USER", "PACS_PASSWORD", "PACS_TOKEN"
"""Environment variables of a DICOMweb login: basic, or bearer."""

FORMS = "a folder, https://pacs.example/dicom-web, or dimse://TITLE@host:port"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a source."""
    group = parser.add_argument_group("images", f"a DICOMweb login is read from ${USER} and ${PASSWORD}, or ${TOKEN}")
    add = group.add_argument
    add("--images", required=True, help=f"{FORMS}; TITLE is the archive's")
    add("--ca-file", type=Path, help="certificates that the server's is checked against; with DIMSE: speak TLS")
    add("--client-certificate", type=Path, help="ours, where the server asks for one")
    add("--client-key", type=Path, help="its key")
    add("--calling", default="ULTRA", help="DIMSE: our title, which the archive knows (ULTRA)")
    add("--retrieve", choices=("get", "move"), default="get", help="DIMSE: C-GET, or C-MOVE to --receive (get)")
    add("--receive", default="127.0.0.1:11113", help="DIMSE: HOST:PORT that the archive moves to for our title")


def open_source(options: argparse.Namespace) -> Source:
    """The source of the flags; nothing is asked of it yet.

    Raises:
        ValueError: an address of another form, or flags that do not fit.
    """
    given = str(options.images)
    if given.startswith(("http://", "https://")):
        from llava_ultra_ext.data.pacs.dicomweb import DicomWebSource

        return DicomWebSource(
            given,
            user=os.environ.get(USER, ""),
            password=os.environ.get(PASSWORD, ""),
            token=os.environ.get(TOKEN, ""),
            ca_file=options.ca_file,
            client_certificate=options.client_certificate,
            client_key=options.client_key,
        )
    if given.startswith("dimse://"):
        return _dimse(options)
    if "://" in given:
        raise ValueError(f"--images {given.split('://')[0]}://…: unknown kind of source. Give {FORMS}.")
    if not Path(given).expanduser().exists():
        raise ValueError(f"--images {given}: no such folder. Give {FORMS}.")
    return FolderSource(Path(given).expanduser())


def _dimse(options: argparse.Namespace) -> Source:
    from llava_ultra_ext.data.pacs.dimse import DimseSource

    try:
        address, ours = urlsplit(options.images), urlsplit(f"//{options.receive}")
        host, port, receive_host, receive_port = address.hostname, address.port, ours.hostname, ours.port
    except ValueError:
        host = port = receive_host = receive_port = None
    title = address.netloc.rpartition("@")[0] if host else ""  # urlsplit's username keeps case, hostname does not
    if not host or not port or not title:
        raise ValueError("--images dimse://…: give dimse://TITLE@host:port, with the title of the archive.")
    if options.retrieve == "move" and (not receive_host or not receive_port):
        raise ValueError(f"--receive {options.receive}: give HOST:PORT, where the archive sends to.")
    return DimseSource(
        host,
        port,
        title,
        calling=options.calling,
        retrieve=options.retrieve,
        receive_host=receive_host or "",
        receive_port=receive_port or 0,
        ca_file=options.ca_file,
        certificate=options.client_certificate,
        key=options.client_key,
    )
