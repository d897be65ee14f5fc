"""Studies of a DICOMweb server: QIDO-RS to list, WADO-RS to fetch (PS3.18 10.6, 10.4), through dicomweb-client.

An instance is fetched in the transfer syntax that the server stores, so that nothing is compressed a second time. One
instance at a time is in memory.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.dicom.refusal import Refused, refusing
from llava_ultra_ext.data.pacs.retries import Passing, Retries
from llava_ultra_ext.data.pacs.source import Failure, Fetched, Query, SourceError, Study, once
from llava_ultra_ext.data.pacs.spool import Spool

_TAGS = {"study": "0020000D", "series": "0020000E", "instance": "00080018", "number": "00080050", "date": "00080020"}
_BUSY = frozenset((408, 425, 429, 500, 502, 503, 504))  # HTTP status that may pass
_PAGE = 200  # rows a search
_MISSING = "a PACS needs `pip install llava_ultra_ext[hospital]`"


@dataclass
class DicomWebSource:
    """A DICOMweb server.

    Args:
        url: of the service, ``https://pacs.example/dicom-web``.
        user, password: of basic authentication; empty: none.
        token: of bearer authentication, without the word Bearer; empty: none.
        ca_file: certificates that the server's is checked against; None: those of the system.
        client_certificate, client_key: our own, for servers that ask for one.
        timeout: seconds to wait for an answer.
        retries: how often to try.

    Raises:
        ValueError: user and token together, or a password that would travel without TLS to another machine.
    """

    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca_file: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: Retries = field(default_factory=Retries)

    def __post_init__(self) -> None:
        from urllib.parse import urlsplit

        if self.user and self.token:
            raise ValueError("user and token together. Give one way to log in.")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError("url: give http(s)://host[:port]/path; a user and password have flags of their own.")
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if (self.user or self.token) and parts.scheme != "https" and not local:
            raise ValueError("url: a password or token would travel unencrypted. Give an https:// address.")

    @cached_property
    def _client(self) -> Any:
        try:
            import requests
            from dicomweb_client import DICOMwebClient
        except ImportError as error:
            raise SourceError(f"{_MISSING} ({error.name} is absent).") from None
        for told in ("dicomweb_client", "urllib3.connectionpool"):  # they tell UIDs, within addresses
            logging.getLogger(told).setLevel(logging.CRITICAL)
        session = requests.Session()
        if self.user:
            session.auth = (self.user, self.password)
        if self.ca_file is not None:
            session.verify = str(self.ca_file)
        if self.client_certificate is not None:
            key = self.client_key or self.client_certificate
            session.cert = (str(self.client_certificate), str(key))
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else None
        client = DICOMwebClient(self.url, session=session, headers=headers, timeout=self.timeout, permissive_uid=True)
        client.set_http_retry_params(retry=False)  # `Retries` does it, lost connections included
        return client

    def studies(self, query: Query) -> Iterator[Study]:
        """Studies that match.

        Raises:
            SourceError: no answer, or a refusal.
        """
        return once(study for matching in query.matchings() for study in self._found(matching, query.modality))

    def _found(self, matching: Mapping[str, str], modality: str) -> Iterator[Study]:
        filters = {keyword: value for keyword, value in matching.items() if value}
        client = self._client
        for row in self._pages("study", lambda **page: client.search_for_studies(search_filters=filters, **page)):
            yield Study(_value(row, "study"), _value(row, "number"), _value(row, "date"), modality)

    def fetch(self, study: Study, folder: Path) -> Fetched:
        """Fetch what is missing, one instance after the other."""
        spool, failed = Spool(folder, study), []
        try:
            places = self._instances(study)
        except SourceError as error:
            return spool.fetched([Failure("", str(error))])
        for uid in spool.missing(places):
            try:
                spool.store(uid, self._instance(study.uid, places[uid], uid))
            except (SourceError, Refused, OSError) as error:
                reason = f"cannot be stored ({error.strerror})" if isinstance(error, OSError) else str(error)
                failed.append(Failure(spool.path(uid).stem, reason))
        return spool.fetched(failed)

    def _instances(self, study: Study) -> dict[str, str]:
        """Instance UID -> series UID, of the series of the study's modality."""
        client = self._client
        places: dict[str, str] = {}
        filters = {"Modality": study.modality}

        def series(**page: int) -> Any:
            return client.search_for_series(study.uid, search_filters=filters, **page)

        for uid in [_value(row, "series") for row in self._pages("series", series)]:
            instances = partial(client.search_for_instances, study.uid, uid)
            places |= {_value(row, "instance"): uid for row in self._pages("instance", instances)}
        return places

    def _pages(self, name: str, search: Callable[..., Any]) -> Iterator[Mapping[str, Any]]:
        """Rows of a search, each once. A server that ignores `offset` (Orthanc's does at times) gives nothing new."""
        seen: set[str] = set()
        while True:
            offset = len(seen)
            rows = self._ask(lambda offset=offset: search(limit=_PAGE, offset=offset))
            fresh = [row for row in rows if _value(row, name) not in seen]
            seen.update(_value(row, name) for row in fresh)
            yield from fresh
            if not fresh or len(rows) < _PAGE:
                return

    def _instance(self, study: str, series: str, uid: str) -> bytes:
        client, stored = self._client, (("application/dicom", "*"),)
        dataset = self._ask(lambda: client.retrieve_instance(study, series, uid, media_types=stored))
        with refusing("broken_header", "what the server sent cannot be written."):
            if str(dataset.SOPInstanceUID) != uid:
                raise Refused("broken_header", "the server sent another instance.")
            written = io.BytesIO()
            dataset.save_as(written, enforce_file_format=True)
            return written.getvalue()

    def _ask(self, action: Any) -> Any:
        """With retries; an answer that does not name a patient takes the place of what requests would say."""
        try:
            return self.retries.run(lambda: _answer(action))
        except Passing as error:
            raise SourceError(f"{error}, {self.retries.attempts} times. Check the address and try again.") from None


def _answer(action: Any) -> Any:
    import requests

    try:
        return action()
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in _BUSY:
            raise Passing(f"the server answers HTTP {status}") from None
        hint = "Check user, password or token." if status in (401, 403) else "Check the address."
        raise SourceError(f"the server answers HTTP {status}. {hint}") from None
    except requests.exceptions.SSLError:
        raise SourceError("the TLS connection is refused. Check ca_file and the server's certificate.") from None
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise Passing(f"the server does not answer ({type(error).__name__})") from None
    except Exception as error:  # a body that is neither JSON nor multipart, a data set that is none
        raise Passing(f"the answer cannot be read ({type(error).__name__})") from None


def _value(row: Mapping[str, Any], name: str) -> str:
    values = row.get(_TAGS[name], {}).get("Value") or [""]
    return str(values[0] or "").strip()
