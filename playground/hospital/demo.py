"""A hospital on one machine: reports and pictures are taken in, made safe, taught to LLaVA-Ultra, and asked about.

    bash scripts/hospital_demo.sh      (it makes the environment and switches LLaVA-Ultra on, then calls this)

Everything but the hospital itself goes to one folder, which is emptied first; every step's output is in its `logs/`.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import hospital_checks as checks
from dicom_frames import collect_sources, local_files
from hospital_fill import fill, hospital
from hospital_plan import COLUMNS, FILES, FRAMES_PER_CINE, TABLE, YEAR, Plan, make_plan
from hospital_training import STAGE2, Training, pick_questions, told
from llava_ultra_ext.data.deidentify.keys import load_secret
from processes import ROOT, StepFailed, python, step, stop_on_signals

OUT = ROOT / "playground" / "out" / "hospital"
MARK = ".hospital_demo"  # says that a folder is ours to empty
WAYS = {"web": "DICOMweb", "get": "DIMSE C-GET", "move": "DIMSE C-MOVE"}
QUESTIONS = 4


class HospitalDemo:
    """Paths and steps of one run.

    Args:
        out: absolute folder that holds everything.
        workers: exams at once.
    """

    def __init__(self, out: Path, workers: int) -> None:
        self.out, self.logs, self.workers = out, out / "logs", workers
        self.secret, self.mapping = out / "hospital.secret", out / "mapping.yaml"
        self.exams = {way: out / f"exams_{way}" for way in WAYS}
        self.instructions, self.imported = out / "instructions", out / "import"
        self.frames: dict[str, int] = {}

    def prepare(self) -> None:
        """Empties the folder, makes the secret and the mapping.

        Raises:
            StepFailed: it holds files of somebody else.
        """
        if self.out.exists() and any(self.out.iterdir()) and not (self.out / MARK).exists():
            raise StepFailed(f"--out {self.out}: is not empty and not of an earlier demo; choose another folder")
        shutil.rmtree(self.out, ignore_errors=True)
        self.logs.mkdir(parents=True)
        (self.out / MARK).touch()
        self._command("secret", self.secret)
        mapping = {"table": TABLE, "columns": COLUMNS}
        self.mapping.write_text(yaml.safe_dump(mapping, allow_unicode=True, sort_keys=False), encoding="utf-8")

    def plan(self) -> Plan:
        """The hospital, from the real files.

        Raises:
            StepFailed: pydicom-data is not installed.
        """
        known = [(package, path) for package, path in local_files() if path.name in FILES]
        sources = {source.name: source for source in collect_sources(known)[0]}
        if missing := sorted(FILES.keys() - sources.keys()):
            raise StepFailed(f"pydicom-data does not hold {', '.join(missing)}; it comes with the environment")
        self.frames = {name: len(source.frames) for name, source in sources.items()}
        return make_plan(sources)

    def take_in(self, plan: Plan) -> None:
        """The hospital's parts, filled; ingest by each way; then they are gone."""
        started = time.monotonic()
        with hospital() as (addresses, own):
            self._told("PostgreSQL and Orthanc started", started)
            started = time.monotonic()
            sent = fill(plan, addresses, own)
            self._told(f"filled: {sent} files, {len(plan.rows)} reports", started)
            for way in WAYS:
                self._ingest(way, addresses)
            originals = checks.identifiers_in(plan.identifiers, [own])
            if lost := len(plan.identifiers - originals.keys()):
                raise StepFailed(
                    f"{lost} planted identifiers are not in the hospital's own data; the check would be void"
                )

    def _ingest(self, way: str, addresses: Mapping[str, str]) -> None:
        dimse = f"dimse://{addresses['ORTHANC_TITLE']}@127.0.0.1:{addresses['ORTHANC_PORT']}"
        ways: dict[str, list[str]] = {
            "web": ["--images", addresses["ORTHANC_WEB"]],
            "get": ["--images", dimse, "--retrieve", "get"],
            "move": ["--images", dimse, "--retrieve", "move", "--receive", f"127.0.0.1:{addresses['RECEIVE_PORT']}"],
        }
        common = ["--mapping", self.mapping, "--secret", self.secret, "--out", self.exams[way], "--dates", *YEAR]
        common += ["--frames-per-cine", FRAMES_PER_CINE, "--workers", self.workers, "--ocr", "off"]
        env = {"PACS_USER": addresses["ORTHANC_USER"], "PACS_PASSWORD": addresses["ORTHANC_PASSWORD"]}
        env["REPORTS_URL"] = addresses["POSTGRES_URL"]
        title = f"ingest, SQL + {WAYS[way]}"
        self._command(
            *("ingest", *common, *ways[way], "--calling", addresses["RECEIVE_TITLE"]),
            title=title,
            log=f"ingest_{way}",
            env=env,
        )

    def check(self, plan: Plan) -> dict[str, Any]:
        """The data card, when everything is as planted.

        Raises:
            StepFailed: the first thing that is not.
        """
        started = time.monotonic()
        first, *others = self.exams.values()
        exams = json.loads((first / "exams.json").read_text(encoding="utf-8"))
        card: dict[str, Any] = json.loads((first / "ingest.json").read_text(encoding="utf-8"))
        secret = load_secret(self.secret)
        parts: list[Callable[[], list[str]]] = [
            lambda: checks.miscounted(plan, card, first / "audit.jsonl", self.frames),
            lambda: [fault for other in others for fault in checks.unlike(first, other)],
            lambda: checks.parquet_differs(first),
            lambda: checks.dates_left(plan, secret, exams),
            lambda: checks.banner_left(plan, secret, first, exams, self.frames),
            lambda: [f"the spool of {path.name} is still there" for path in self.out.glob("*.spool")],
        ]
        for part in parts:
            if found := part():
                raise StepFailed("; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else ""))
        self._told("counts as planted, ways equal", started)
        return card

    def search(self, plan: Plan) -> int:
        """How many identifiers were looked for in every file of the run, its logs and models too.

        Raises:
            StepFailed: one was found; it is not shown.
        """
        started = time.monotonic()
        found = checks.identifiers_in(plan.identifiers, [self.out])
        if found:
            places = sorted({name for names in found.values() for name in names})
            raise StepFailed(f"{len(found)} planted identifiers stand in {', '.join(places[:4])}")
        self._told(f"{len(plan.identifiers)} identifiers looked for, none left", started)
        return len(plan.identifiers)

    def instruct(self) -> Training:
        """Instructions of both versions, and question files."""
        manifest = self.exams["web"] / "exams.json"
        self._command("instruct", manifest, "--site-cue", "both", "--out", self.instructions, title="instructions")
        self._command("import", "exams", manifest, "--split", "0,0,1", "--out", self.imported, title="questions")
        return Training(self.out, self.exams["web"], self.instructions / "with_site")

    def answer(self, training: Training) -> list[str]:
        """A few questions asked; lines for the terminal."""
        asked, answers = self.out / "questions.jsonl", self.out / "answers.jsonl"
        questions = pick_questions(self.imported / "test_questions.jsonl", asked, QUESTIONS)
        training.ask(asked, answers)
        return told(questions, self.imported / "test_gold.jsonl", answers)

    def _command(
        self, name: object, *arguments: object, title: str = "", log: str = "", env: Mapping[str, str] | None = None
    ) -> None:
        """One `llava-ultra` command."""
        title = title or str(name)
        command = python("-m", "llava_ultra_ext.cli", name, *arguments)
        step(title, command, self.logs / f"{log or name}.log", env)

    @staticmethod
    def _told(title: str, started: float) -> None:
        print(f"{title:34}{time.monotonic() - started:4.0f} s", flush=True)


def summary(
    demo: HospitalDemo, card: Mapping[str, Any], losses: Mapping[str, tuple[float, float, int]], searched: int
) -> str:
    """The end of the run for a terminal."""
    made = json.loads((demo.instructions / "instruct.json").read_text(encoding="utf-8"))
    kept = ", ".join(f"{reason} {count}" for reason, count in card["kept_back"].items())
    rows, unmatched = card["reports"], card["unmatched"]
    lines = [
        f"exams         {card['exams']} of {card['patients']} patients, {card['frames']} frames "
        f"from {card['files']} files",
        f"kept back     {kept}",
        f"reports       {rows['rows']} rows, {rows['usable']} usable, {unmatched['exam']} without pictures; "
        f"{unmatched['study']} studies without a usable report",
        f"equal         {', '.join(WAYS.values())}: every file but the ledger, byte for byte",
        f"identifiers   {searched} planted, 0 found in {demo.out}",
        f"instructions  {made['exams']} exams, both versions; questions of stage 2: {sum(made['questions'].values())}",
    ]
    for title, (before, after, steps) in losses.items():
        lines.append(f"{title.split(',')[0]:14}loss {before:.3f} -> {after:.3f} in {steps} steps")
    return "\n".join([*lines, f"data card     {demo.exams['web'] / 'card.png'} (and ingest.json)"])


def run(demo: HospitalDemo) -> None:
    """All steps.

    Raises:
        StepFailed, OSError, ValueError, KeyError: one of them failed.
    """
    demo.prepare()
    plan = demo.plan()
    demo.take_in(plan)
    card = demo.check(plan)
    training = demo.instruct()
    training.make_models()
    training.train()
    answers = demo.answer(training)
    searched = demo.search(plan)
    losses = training.losses()
    print("\n" + summary(demo, card, losses, searched))
    print("\nanswers; these exams were trained on, so they show that the way works and not what the model can do")
    print("\n".join(answers))
    # Stage 1 learns the projector alone, which a few steps hardly show.
    if not losses[STAGE2][1] < losses[STAGE2][0] or not all(math.isfinite(after) for _, after, _ in losses.values()):
        raise StepFailed(f"the loss did not fall; logs: {demo.logs}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0 when everything went well."""
    parser = argparse.ArgumentParser(prog="bash scripts/hospital_demo.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder to empty and to write (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=1, help="exams at once; a new process takes longer than these (1)"
    )
    options = parser.parse_args(argv)
    start = time.monotonic()
    try:
        run(HospitalDemo(options.out.resolve(), options.workers))
    except (StepFailed, OSError, ValueError, KeyError) as error:
        print(f"hospital demo: FAILED: {error or type(error).__name__}", file=sys.stderr)
        return 1
    print(f"\n{time.monotonic() - start:.0f} s after the installation\nhospital demo: OK")
    return 0


if __name__ == "__main__":
    stop_on_signals("hospital demo")
    raise SystemExit(main())
