"""Starts the hospital's parts and fills them: DICOM files into Orthanc, the table of reports into PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import requests
from PIL import Image, ImageDraw
from sqlalchemy import text

from dicom_frames import local_files
from hospital_plan import BURNED, OTHER, TABLE, Plan, Study
from llava_ultra_ext.data.reports.sql import connect
from processes import ROOT, StepFailed

SCRIPT = ROOT / "scripts" / "hospital_parts.sh"
STOP_SECONDS = 180


@contextlib.contextmanager
def hospital() -> Iterator[tuple[dict[str, str], Path]]:
    """PostgreSQL and Orthanc in a temporary folder, stopped and removed at the end, however that comes.

    Yields:
        The addresses that the script prints, and a folder for the hospital's own files.

    Raises:
        StepFailed: they do not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="hospital_demo."))
    folder.chmod(0o711)  # PostgreSQL's user passes through it
    parts, own = folder / "parts", folder / "own"
    own.mkdir(mode=0o700)
    # A session of their own: Ctrl-C reaches us alone, and we stop them.
    starting = subprocess.Popen(
        ["bash", SCRIPT, "start", parts],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, said = starting.communicate()
        if starting.returncode:
            raise StepFailed(
                f"the hospital's parts do not start: {(said.strip().splitlines() or ['no reason given'])[-1]}"
            )
        yield dict(line.split("=", 1) for line in out.splitlines()), own
    finally:
        _stop(starting, parts, folder)


def _stop(starting: subprocess.Popen[str], parts: Path, folder: Path) -> None:
    """Nothing interrupts this; a start that is under way ends first, so that nothing starts behind our back."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(subprocess.TimeoutExpired):
        starting.wait(STOP_SECONDS)
    if parts.exists():
        subprocess.run(["bash", SCRIPT, "stop", parts], capture_output=True, check=False, start_new_session=True)
    subprocess.run(["rm", "-rf", folder], check=False)


def fill(plan: Plan, addresses: Mapping[str, str], own: Path) -> int:
    """Send every file of the plan to Orthanc, and the rows to PostgreSQL; copies of both stay in `own`.

    Returns:
        How many files Orthanc took.

    Raises:
        OSError: Orthanc does not take one.
    """
    known = {path.name: path for _, path in local_files()}
    session = requests.Session()
    session.trust_env = False  # a proxy would not reach this machine's ports
    session.auth = (addresses["ORTHANC_USER"], addresses["ORTHANC_PASSWORD"])
    sent = 0
    for study in plan.studies:
        for series, name in enumerate(study.files):
            path = own / f"{sent:04}.dcm"
            write_instance(known[name], study, series, path)
            answer = session.post(addresses["ORTHANC_REST"] + "/instances", path.read_bytes(), timeout=60)
            answer.raise_for_status()
            sent += 1
    (own / "rows.json").write_text(json.dumps(plan.rows, ensure_ascii=False), encoding="utf-8")
    _write_table(plan, addresses["POSTGRES_URL"])
    return sent


def write_instance(source: Path, study: Study, series: int, path: Path) -> None:
    """A real file with the headers of a made-up patient and exam."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values in these old files that break the standard
        dataset = pydicom.dcmread(source)
        dataset.SpecificCharacterSet = "ISO_IR 192"
        person = study.person
        dataset.PatientName = f"{person.spelled}={person.name[0]}^{person.name[1:]}"
        dataset.PatientID, dataset.PatientTelephoneNumbers = person.number, person.telephone
        dataset.AccessionNumber, dataset.StudyDate = study.accession, f"{study.day:%Y%m%d}"
        if source.name != OTHER:
            dataset.Modality = "US"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study.uid(), study.uid(series)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = study.uid(series, 0)
        dataset.SeriesNumber, dataset.InstanceNumber = series + 1, 1
        if study.burned and source.name == BURNED:
            _burn_in(dataset, f"{person.spelled.replace('^', ' ').upper()} {person.number}")
        dataset.save_as(path)


def _burn_in(dataset: Any, words: str) -> None:
    """Words in the banner above the scan, as a scanner draws them."""
    picture = Image.fromarray(np.ascontiguousarray(dataset.pixel_array))
    ImageDraw.Draw(picture).text((250, 80), words, fill=(255, 255, 255))
    dataset.PixelData, dataset.PlanarConfiguration = picture.tobytes(), 0


def _write_table(plan: Plan, url: str) -> None:
    columns = list(plan.rows[0])
    kinds = {"检查号": "varchar(32)", "检查时间": "timestamp"}
    wanted = ", ".join(f'"{name}" {kinds.get(name, "text")}' for name in columns)
    values = ", ".join(f"cast(:v{place} AS {kinds.get(name, 'text')})" for place, name in enumerate(columns))
    engine = connect(url)
    try:
        with engine.begin() as connection:
            connection.execute(text(f'CREATE TABLE "{TABLE}" ({wanted})'))
            rows = [{f"v{place}": row[name] for place, name in enumerate(columns)} for row in plan.rows]
            connection.execute(text(f'INSERT INTO "{TABLE}" VALUES ({values})'), rows)
    finally:
        engine.dispose()
