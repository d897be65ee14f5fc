"""What an ingest costs: `llava-ultra ingest` of small DICOM files, beside bare pydicom decoding and picture encoding.

    python scripts/bench/ingest.py [--json FILE] [--sizes 2500 5000 10000 20000]

Each size runs as a process of its own with its workers. Throughput is frames a processor second, so that it says the
same on any number of processors; the bare side decodes the same files with pydicom, encodes the same format with Pillow
and writes it, in one process, in the same run. An exam has 6 stills and a cine of 5 frames; half of the files name
their scan region in the header. The pictures are speckle in a black frame with a line of text above.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from score import ORGANS, report, timed

TARGET_RATIO, TARGET_MB = 0.8, 1500.0
STILLS, CINE = 6, 5
KINDS = 24  # pictures that are drawn; files differ in their header
SOP = {1: "1.2.840.10008.5.1.4.1.1.6.1", CINE: "1.2.840.10008.5.1.4.1.1.3.1"}
UID = "2.25.{:012}.{:04}"


def picture(random_: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Speckle with a border and a banner; (H, W) grey."""
    grey = np.zeros((height, width), dtype=np.uint8)
    inner = grey[height // 8 : -height // 16, width // 8 : -width // 8]
    inner[:] = np.clip(random_.rayleigh(45, inner.shape), 0, 255)
    canvas = Image.fromarray(grey)
    ImageDraw.Draw(canvas).text((2, 1), "EXAM 0000", fill=220)
    return np.asarray(canvas)


def template(frames: np.ndarray, regions: bool) -> bytes:
    """A file whose numbers are placeholders of a fixed length."""
    count, height, width = frames.shape
    data = FileDataset("", {}, preamble=b"\0" * 128)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SOP[count]
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = UID.format(999999999999, 9999)
    data.StudyInstanceUID, data.SeriesInstanceUID = UID.format(999999999999, 9998), UID.format(999999999999, 9997)
    data.Modality, data.AccessionNumber, data.PatientID = "US", "ACC999999999", "PID999999999"
    data.PatientName, data.StudyDate, data.InstanceNumber = "Synthetic^Name", "20240131", 1
    data.Rows, data.Columns, data.SamplesPerPixel = height, width, 1
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    if count > 1:
        data.NumberOfFrames = count
    if regions:
        region = Dataset()
        region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
        region.RegionLocationMinX0, region.RegionLocationMinY0 = width // 8, height // 8
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = width - width // 8 - 1, height - height // 16 - 1
        data.SequenceOfUltrasoundRegions = [region]
    data.PixelData = frames.tobytes()
    data["PixelData"].VR = "OB"
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def make(folder: Path, exams: int, size: tuple[int, int], seed: int = 0) -> None:
    """DICOM files, reports and their mapping."""
    choice, drawn = random.Random(seed), np.random.default_rng(seed)
    stills = [template(picture(drawn, *size)[None], bool(kind % 2)) for kind in range(KINDS)]
    cines = [template(np.stack([picture(drawn, *size) for _ in range(CINE)]), bool(kind % 2)) for kind in range(KINDS)]
    lines = ["number,patient,site,findings,diagnosis,date"]
    for exam in range(exams):
        place = folder / "dicom" / f"{exam // 1000:03}" / f"{exam:08}"
        place.mkdir(parents=True)
        for number in range(STILLS + 1):
            content = choice.choice(stills if number < STILLS else cines)
            for old, new in ((9999, number + 10), (9998, 1), (9997, 2)):
                content = content.replace(UID.format(999999999999, old).encode(), UID.format(exam, new).encode())
            content = content.replace(b"ACC999999999", b"ACC%09d" % exam).replace(b"PID999999999", b"PID%09d" % exam)
            (place / f"{number:02}.dcm").write_bytes(content)
        site = choice.choice(ORGANS)
        lines.append(f"ACC{exam:09},PID{exam:09},{site},{report(choice)},{site}结节。,2024-01-31")
    (folder / "reports.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = {"accession_number": "number", "patient_id": "patient", "exam_date": "date"}
    named = {**columns, **{name: name for name in ("site", "findings", "diagnosis")}}
    (folder / "mapping.yaml").write_text("columns:\n" + "".join(f"  {a}: {b}\n" for a, b in named.items()))


def bare(files: Iterator[Path], folder: Path) -> float:
    """Frames a processor second of decoding and encoding alone."""
    start, frames = time.process_time(), 0
    for file in files:
        pixels = pydicom.dcmread(file).pixel_array
        for frame in pixels if pixels.ndim == 3 else pixels[None]:
            out = io.BytesIO()
            Image.fromarray(frame).save(out, "PNG", compress_level=3)
            (folder / f"bare{frames % 64}.png").write_bytes(out.getvalue())
            frames += 1
    return frames / (time.process_time() - start)


def measure(exams: int, size: tuple[int, int], workers: int, bare_exams: int) -> dict[str, Any]:
    """One size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, exams, size)
        llava_ultra = [sys.executable, "-m", "llava_ultra_ext.cli"]
        timed([*llava_ultra, "secret", "secret"], folder)
        files = sorted((folder / "dicom").rglob("*.dcm"))[: bare_exams * (STILLS + 1)]
        rates = [bare(iter(files), folder)]
        command = [*llava_ultra, "ingest", "--reports", "reports.csv", "--mapping", "mapping.yaml", "--images", "dicom"]
        command += ["--secret", "secret", "--out", "out", "--ocr", "off", "--workers", str(workers)]
        seconds, cpu_seconds, peak_mb = timed(command, folder)
        rates.append(bare(iter(files), folder))  # before and after: a machine is not always as fast
        card = json.loads((folder / "out" / "ingest.json").read_text(encoding="utf-8"))
        frames = exams * (STILLS + CINE)
        if (card["exams"], card["frames"]) != (exams, frames):
            raise RuntimeError(f"wrote {card['exams']} exams and {card['frames']} frames of {exams} and {frames}")
    rate, alone = frames / cpu_seconds, sum(rates) / len(rates)
    return {
        "exams": exams,
        "frames": frames,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_mb": round(peak_mb, 1),
        "frames_a_cpu_second": round(rate, 1),
        "bare_frames_a_cpu_second": round(alone, 1),
        "ratio": round(rate / alone, 3),
    }


def main() -> int:
    """Command line; exit status 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2500, 5000, 10_000, 20_000], help="numbers of exams")
    parser.add_argument("--pixels", type=int, nargs=2, default=(144, 192), help="height and width of a frame (144 192)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="(processors)")
    parser.add_argument("--bare-exams", type=int, default=200, help="whose files the bare side reads, twice (200)")
    args = parser.parse_args()
    rows = []
    for exams in args.sizes:
        rows.append(measure(exams, tuple(args.pixels), args.workers, min(args.bare_exams, exams)))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    first, last = rows[0], rows[-1]
    steps = math.log(last["exams"] / first["exams"]) if len(rows) > 1 else 0.0
    growth = math.log(last["cpu_seconds"] / first["cpu_seconds"]) / steps if steps else None
    machine = (
        f"{os.cpu_count()} processors, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )
    met = last["ratio"] >= TARGET_RATIO and last["peak_mb"] < TARGET_MB
    result = {"machine": machine, "pixels": list(args.pixels), "workers": args.workers, "rows": rows}
    result |= {"growth_exponent": growth and round(growth, 2), "target_ratio": TARGET_RATIO, "target_met": met}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"growth {growth and round(growth, 2)}; target: {TARGET_RATIO} of bare, under {TARGET_MB:.0f} MB: {met}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
