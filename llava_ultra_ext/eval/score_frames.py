"""Teacher scores of every frame after stage 1, for stage 2's ``--frame_scores``: ``llava-ultra score-frames``.

The scores are those that training would compute online, made once. Several processes share the exams
(torchrun), and a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from llava_ultra_ext.arguments import TAUGHT, UltraSettings
from llava_ultra_ext.data.exam import BadSample, Exam
from llava_ultra_ext.data.frame_scores import FrameScoreWriter, Header, data_fingerprint, merge_parts
from llava_ultra_ext.data.manifest import load_manifest, read_records
from llava_ultra_ext.eval.frame_reader import FrameReader, Teacher
from llava_ultra_ext.eval.frames import open_feature_cache
from llava_ultra_ext.model.builders import is_ultra
from llava_ultra_ext.model.opening import folder_config, open_model
from llava_ultra_ext.model.vision_modules import read_projector
from llava_ultra_ext.train.ranks import Ranks
from llava_ultra_ext.train.trainable import NAME, NON_LORA_FILE, PROJECTOR_FILE, state_fingerprint
from llava_ultra_ext.vision.feature_cache import FeatureCache

logger = logging.getLogger(__name__)


def load_exams(path: str, image_folder: str, strategy: str, on_bad_sample: str) -> list[Exam]:
    """The exams that stage 2 will see with the finished file, so that both agree on the data's fingerprint.

    Raises:
        ValueError: as `load_manifest`.
    """
    promised: dict[str, dict[str, float]] = {}
    for position, record in enumerate(read_records(path)):
        with contextlib.suppress(BadSample):
            exam = Exam.from_record(record, position)
            if exam.findings:
                promised.setdefault(exam.score_key, {}).update(dict.fromkeys(exam.images, math.nan))
    return load_manifest(
        path, image_folder=image_folder, strategy=strategy, frame_scores=promised, on_bad_sample=on_bad_sample
    )[0]


def to_score(exams: Sequence[Exam]) -> list[Exam]:
    """Exams with frames to choose from and findings to compare them with, each picture list of an exam once."""
    found: dict[tuple[str, tuple[str, ...]], Exam] = {}
    for exam in exams:
        if exam.findings and any(len(group) > 1 for group in exam.groups):
            found.setdefault((exam.score_key, exam.images), exam)
    return list(found.values())


def model_fingerprint(folder: Path) -> str:
    """Of the projector in a folder, as ``train/program.py`` names the one that stage 2 starts from.

    Raises:
        ValueError: the folder holds no projector.
    """
    for name in (PROJECTOR_FILE, NON_LORA_FILE):
        if (folder / name).is_file():
            return state_fingerprint(torch.load(folder / name, map_location="cpu", weights_only=True))
    state = {f"{NAME}.{name.split(f'{NAME}.')[-1]}": tensor for name, tensor in read_projector(folder).items()}
    if not state:
        raise ValueError(
            f"--model-path {folder}: has no projector ({PROJECTOR_FILE}). Give the folder that stage 1 wrote."
        )
    return state_fingerprint(state)


def main(argv: Sequence[str] | None = None) -> int:
    """Score a training file's frames.

    Raises:
        ValueError: a flag, the data or the model folder is unusable; nothing was loaded or written.
    """
    args = _parser().parse_args(argv)
    for name in ("batch_size", "adr_layers", "findings_max_length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be 1 or more.")
    config = folder_config(args.model_path)
    if not is_ultra(config):
        raise ValueError(f"--model-path {args.model_path}: is not a LLaVA-Ultra model. Give the folder of stage 1.")
    teacher = Teacher.choose(args.adr_strategy, args.adr_layers, UltraSettings.from_config(config))
    exams = load_exams(args.data_path, args.image_folder, teacher.strategy, args.on_bad_sample)
    model = model_fingerprint(Path(os.path.expanduser(args.model_path)))
    header = Header(model=model, data=data_fingerprint(exams), strategy=teacher.title)
    scored = to_score(exams)
    names = [name for exam in scored for name in exam.images]
    cache = open_feature_cache(args.feature_cache, config, names, args.image_folder)
    with Ranks.join() as ranks:
        _score(args, ranks, teacher, header, scored, cache)
    return 0


def _score(
    args: argparse.Namespace,
    ranks: Ranks,
    teacher: Teacher,
    header: Header,
    exams: Sequence[Exam],
    cache: FeatureCache | None,
) -> None:
    if not exams:
        raise ValueError(f"--data-path {args.data_path}: no exam has several frames and findings: nothing to score.")
    with FrameScoreWriter(args.output, header, ranks.rank) as writer:
        ranks.wait()  # all have read what is there before anyone adds to it
        missing = [exam for exam in exams if not writer.has(exam.score_key, exam.images)]
        logger.info("%d exams to score, %d are there already.", len(exams), len(exams) - len(missing))
        own = missing[ranks.rank :: ranks.size]
        measure = ranks.rank == 0 and bool(missing) and args.gap_exams > 0
        if own or measure:
            opened = open_model(args.model_path, args.model_base, ranks.device(args.device))
            limit, size = args.findings_max_length, args.batch_size
            reader = FrameReader(opened, teacher, args.image_folder, limit, size, cache)
            for exam in tqdm(own, unit="exam", disable=ranks.rank > 0):
                scores = reader.scores(exam, reader.features(exam), exam.findings)
                writer.write(exam.score_key, exam.images, scores.tolist())
            if measure:
                _say_gap(reader.gap(exams, args.gap_exams), min(args.gap_exams, len(exams)))
    ranks.wait()
    if ranks.rank == 0:
        merged = merge_parts(args.output)
        logger.info("%s: %s scores of %d exams.", args.output, teacher.title, len(merged.scores))
    ranks.wait()


def _say_gap(gap: float, count: int) -> None:
    logger.info(
        "teacher gap %.3f over %d exams: how far the preferred frames move when the findings are another exam's "
        "(0 to 1). A teacher whose gap is zero reads no text.",
        gap,
        count,
    )
    if gap < 0.01:
        logger.warning("This teacher hardly reads the findings: what it teaches is visual saliency.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-ultra score-frames",
        description="Teacher scores of every frame, once, for stage 2's --frame_scores.",
    )
    add = parser.add_argument
    add("--model-path", required=True, help="folder of stage 1 (mm_projector.bin)")
    add("--model-base", help="the language model it was trained on")
    add("--data-path", "--data_path", required=True, help="the training file of stage 2")
    add("--image-folder", "--image_folder", required=True, help="where picture names start")
    add("--output", required=True, help="scores file to write; parts of an unfinished run are continued")
    add("--adr-strategy", "--adr_strategy", choices=TAUGHT, help="default: the model's, else likelihood")
    add("--adr-layers", "--adr_layers", type=int, help="first N layers of the LLM; default as in training")
    add("--batch-size", type=int, help="frames at once; default: the model's --encoder_batch_size")
    add("--findings-max-length", "--findings_max_length", type=int, default=512, help="findings tokens; as in training")
    add("--on-bad-sample", "--on_bad_sample", choices=("error", "skip"), default="error", help="as in training")
    add("--gap-exams", type=int, default=32, help="exams on which to measure whether the teacher reads; 0: none")
    add("--feature-cache", "--feature_cache", help="folder of `llava-ultra cache build`: no encoder runs")
    add("--device", help="for example cuda:1 or cpu; default: a GPU for each process, else the CPU")
    return parser


if __name__ == "__main__":
    from llava_ultra_ext.cli import main as command

    raise SystemExit(command(["score-frames", *sys.argv[1:]]))
