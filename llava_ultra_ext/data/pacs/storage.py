"""Receiving instances: which storage classes and transfer syntaxes are taken, and what is done with one that comes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from llava_ultra_ext.data.pacs.spool import Spool

_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.6.1",  # ultrasound image
    "1.2.840.10008.5.1.4.1.1.3.1",  # ultrasound multi-frame
    "1.2.840.10008.5.1.4.1.1.6",  # the same two, retired
    "1.2.840.10008.5.1.4.1.1.3",
    "1.2.840.10008.5.1.4.1.1.6.2",  # enhanced ultrasound volume
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture, single and multi-frame
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.4",
)
_RETIRED = {
    "1.2.840.10008.5.1.4.1.1.6": "RetiredUltrasoundImageStorage",
    "1.2.840.10008.5.1.4.1.1.3": "RetiredUltrasoundMultiframeImageStorage",
}
"""Old files have them, pynetdicom does not know them: as the receiver of C-MOVE it would break off the connection."""
_SYNTAXES = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.50",  # JPEG baseline, extended, lossless
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",  # JPEG 2000
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.5",  # RLE
)
_STORED, _NO_ROOM, _NOT_ASKED_FOR = 0x0000, 0xA700, 0x0124


def storage_contexts() -> list[tuple[str, str]]:
    """(storage class, transfer syntax): a context of its own for each, so that the sender takes the one it stores.

    With the class that asks they stay below the 128 contexts of an association (PS3.8 9.3.2).
    """
    return [(storage, syntax) for storage in _CLASSES for syntax in _SYNTAXES]


def storage_roles() -> list[Any]:
    """C-GET: we ask, and are the one who stores (PS3.7 D.3.3.4)."""
    from pynetdicom import build_role

    return [build_role(storage, scp_role=True) for storage in _CLASSES]


def receiver(spool: Spool, asked: Collection[str]) -> list[tuple[Any, Any]]:
    """Event handlers that write the instances asked for into the spool and refuse any other.

    Args:
        spool: of the study.
        asked: instance UIDs.
    """
    from pynetdicom import evt

    _make_known()

    def store(event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid not in asked:
            return _NOT_ASKED_FOR
        try:
            spool.store(uid, event.encoded_dataset())
        except OSError:
            return _NO_ROOM
        return _STORED

    return [(evt.EVT_C_STORE, store)]


def _make_known() -> None:
    from pynetdicom.service_class import StorageServiceClass
    from pynetdicom.sop_class import register_uid, uid_to_service_class

    for uid, keyword in _RETIRED.items():
        if uid_to_service_class(uid) is not StorageServiceClass:
            register_uid(uid, keyword, StorageServiceClass)
