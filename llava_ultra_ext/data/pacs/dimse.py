"""Studies of an archive that speaks DIMSE: C-FIND to list, C-GET or C-MOVE to fetch (PS3.4 C.4), through pynetdicom.

Instances are asked for one by one within their series, so that a fetch goes on where an earlier one stopped. What comes
is written as it came, in the transfer syntax of the archive; one instance at a time is in memory.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.pacs.retries import Passing, Retries
from llava_ultra_ext.data.pacs.source import Failure, Fetched, Query, SourceError, Study, chunks, once
from llava_ultra_ext.data.pacs.spool import Spool
from llava_ultra_ext.data.pacs.storage import receiver, storage_contexts, storage_roles

_LOGGER = logging.getLogger(__name__)
_SUCCESS, _PENDING, _PARTLY = 0x0000, (0xFF00, 0xFF01), 0xB000
_BUSY = (0xA700, 0xA701, 0xA702)  # out of resources, PS3.4 C.4.1.1.4 to C.4.3.1.4
_UNKNOWN_DESTINATION = 0xA801
_AT_ONCE = 50  # instances a request; a list of UIDs must stay below what archives accept


@dataclass
class DimseSource:
    """An archive.

    Args:
        host, port: where it listens.
        called: its application entity title.
        calling: ours; the archive has to know it, for C-MOVE with our address and `receive_port`.
        retrieve: ``get``, over the connection that asks; or ``move``, to a port of ours.
        receive_host, receive_port: where C-MOVE's instances come in.
        ca_file: certificates of the archive; given, TLS is spoken, also by our port.
        certificate, key: ours, for TLS in which both show one, and for our port.
        timeout: seconds to wait for an answer.
        retries: how often to try.

    Raises:
        ValueError: an unknown way to retrieve, ``move`` without a port, or a title longer than DICOM allows.
    """

    host: str
    port: int
    called: str
    calling: str = "ULTRA"
    retrieve: str = "get"
    receive_host: str = "127.0.0.1"
    receive_port: int = 0
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: Retries = field(default_factory=Retries)

    def __post_init__(self) -> None:
        if self.retrieve not in ("get", "move"):
            raise ValueError(f"retrieve {self.retrieve!r}: allowed are get and move.")
        if self.retrieve == "move" and not self.receive_port:
            raise ValueError("retrieve by move needs receive_port, the port that the archive has for our title.")
        for title in (self.called, self.calling):
            if not 0 < len(title) <= 16 or not title.isascii():
                raise ValueError(f"application entity title {title!r}: 1 to 16 ASCII characters are allowed.")

    def studies(self, query: Query) -> Iterator[Study]:
        """Studies that match.

        Raises:
            SourceError: no answer, or a refusal.
        """
        return once(study for matching in query.matchings() for study in self._studies(matching, query.modality))

    def _studies(self, matching: Mapping[str, str], modality: str) -> Iterator[Study]:
        for row in self._find("STUDY", {**matching, "StudyInstanceUID": ""}):
            uid, number, day = (_text(row, key) for key in ("StudyInstanceUID", "AccessionNumber", "StudyDate"))
            yield Study(uid, number, day, modality)

    def fetch(self, study: Study, folder: Path) -> Fetched:
        """Fetch what is missing; what does not come after all retries is listed."""
        spool = Spool(folder, study)
        try:
            series = self._series(study)
            reason = self._retrieved(study, series, spool)
        except SourceError as error:
            return spool.fetched([Failure("", str(error))])
        missing = spool.missing(uid for uids in series.values() for uid in uids)
        return spool.fetched(Failure(spool.path(uid).stem, reason) for uid in missing)

    def _series(self, study: Study) -> dict[str, list[str]]:
        """Series UID -> instance UIDs, of the study's modality."""
        asked = {"StudyInstanceUID": study.uid, "Modality": study.modality, "SeriesInstanceUID": ""}
        found = [_text(row, "SeriesInstanceUID") for row in self._find("SERIES", asked) if _is(row, study.modality)]
        return {uid: self._instances(study.uid, uid) for uid in found}

    def _instances(self, study: str, series: str) -> list[str]:
        asked = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": ""}
        return [_text(row, "SOPInstanceUID") for row in self._find("IMAGE", asked)]

    def _retrieved(self, study: Study, series: Mapping[str, list[str]], spool: Spool) -> str:
        """Ask for what is missing until all is there or tries are out; then why not."""

        def attempt() -> None:
            for uid, instances in series.items():
                for asked in chunks(spool.missing(instances), _AT_ONCE):
                    self._retrieve(study.uid, uid, asked, spool)
            left = len(spool.missing(uid for uids in series.values() for uid in uids))
            if left:
                raise Passing(f"{left} instances did not come")

        try:
            self.retries.run(attempt)
        except Passing as error:
            return f"{error}, after {self.retries.attempts} attempts"
        return ""

    def _find(self, level: str, asked: Mapping[str, str]) -> list[Any]:
        from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Model

        def ask() -> list[Any]:
            with self._association([Model]) as association:
                answers = association.send_c_find(_identifier(level, asked), Model)
                return [row for _, row in _checked(answers, "C-FIND") if row is not None]

        try:
            return self.retries.run(ask)
        except Passing as error:
            raise SourceError(f"{error}, {self.retries.attempts} times. Check host, port and titles.") from None

    def _retrieve(self, study: str, series: str, instances: Collection[str], spool: Spool) -> None:
        from pynetdicom import sop_class

        asked = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": "\\".join(instances)}
        handlers = receiver(spool, frozenset(instances))
        identifier = _identifier("IMAGE", asked)
        if self.retrieve == "get":
            model = sop_class.StudyRootQueryRetrieveInformationModelGet
            with self._association([model], handlers, storage=True) as association:
                _through(association.send_c_get(identifier, model), "C-GET")
            return
        move = sop_class.StudyRootQueryRetrieveInformationModelMove
        with self._listening(handlers), self._association([move]) as association:
            _through(association.send_c_move(identifier, self.calling, move), "C-MOVE")

    def _entity(self) -> Any:
        try:
            from pynetdicom import AE, _config
        except ImportError:
            raise SourceError("a PACS needs `pip install llava_ultra_ext[hospital]` (pynetdicom is absent).") from None
        _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False  # they name patients
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # so do its errors; ours say what failed
        entity = AE(self.calling)
        entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.timeout
        return entity

    @contextmanager
    def _association(self, models: list[str], handlers: Any = (), storage: bool = False) -> Iterator[Any]:
        entity = self._entity()
        for model in models:
            entity.add_requested_context(model)
        if storage:
            for context in storage_contexts():
                entity.add_requested_context(*context)
        tls = (self._client_tls(), self.host) if self.ca_file is not None else None
        roles = storage_roles() if storage else None
        try:
            association = entity.associate(
                self.host, self.port, ae_title=self.called, ext_neg=roles, tls_args=tls, evt_handlers=list(handlers)
            )
        except (OSError, RuntimeError) as error:
            raise Passing(f"the archive does not answer ({type(error).__name__})") from None
        if not association.is_established:
            said = "rejects the connection" if association.is_rejected else "does not answer"
            raise Passing(f"the archive {said}")
        try:
            yield association
        finally:
            association.release() if association.is_established else association.abort()

    @contextmanager
    def _listening(self, handlers: Any) -> Iterator[None]:
        """Our port, open for one request only."""
        entity = self._entity()
        for context in storage_contexts():
            entity.add_supported_context(*context)
        entity.require_called_aet = True
        with ExitStack() as closing:
            try:
                tls = self._server_tls() if self.ca_file is not None else None
                address = (self.receive_host, self.receive_port)
                server = entity.start_server(address, block=False, ssl_context=tls, evt_handlers=list(handlers))
            except OSError as error:
                raise SourceError(f"receive_port {self.receive_port} cannot be opened ({error.strerror}).") from None
            closing.callback(server.shutdown)
            yield

    def _client_tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context

    def _server_tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.ca_file))
        context.verify_mode = ssl.CERT_REQUIRED
        if self.certificate is None:
            raise SourceError("C-MOVE over TLS needs a certificate and key of ours.")
        context.load_cert_chain(self.certificate, self.key)
        return context


def _identifier(level: str, asked: Mapping[str, str]) -> Any:
    from pydicom.dataset import Dataset

    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in asked.items():
        setattr(identifier, keyword, value)
    return identifier


def _checked(answers: Iterator[Any], service: str) -> Iterator[tuple[int, Any]]:
    """Status and data set of every answer, up to the last one.

    Raises:
        Passing: the connection is lost, or the archive is busy.
        SourceError: it refuses.
    """
    for status, row in answers:
        code = status.get("Status")
        if code is None:
            raise Passing(f"the connection is lost during {service}")
        if code in _BUSY:
            raise Passing(f"the archive is busy ({service}, status {code:04X})")
        if code == _UNKNOWN_DESTINATION:
            raise SourceError("the archive does not know our title for C-MOVE. Have it added, with our address.")
        if code not in (_SUCCESS, _PARTLY, *_PENDING):
            raise SourceError(f"the archive refuses {service} (status {code:04X}). Ask its administrator.")
        yield code, row if code in _PENDING else None


def _through(answers: Iterator[Any], service: str) -> None:
    """To the end; what did not come is missing in the spool and is asked for again."""
    for code, _ in _checked(answers, service):
        if code == _PARTLY:
            _LOGGER.warning("%s: the archive could not send all instances", service)


def _text(row: Any, keyword: str) -> str:
    return str(row.get(keyword) or "").strip()


def _is(row: Any, modality: str) -> bool:
    """Modality is no key that every archive matches, so it is looked at again."""
    return _text(row, "Modality") in ("", modality)
