"""``llava-ultra cache build | info | verify | prune``: frozen features of every picture, computed once for all runs.

llava-ultra cache build --data_path exams.json --image_folder images --feature_cache features --sam_tower …

Several processes (torchrun, DeepSpeed's launcher) share the pictures; a build that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from llava_ultra_ext.arguments import UltraModelArguments
from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.manifest import read_records
from llava_ultra_ext.data.pictures import open_picture
from llava_ultra_ext.data.whole_file import write_whole
from llava_ultra_ext.eval.questions import read_questions
from llava_ultra_ext.model.opening import check_device
from llava_ultra_ext.train.cache_care import info, prune, verify
from llava_ultra_ext.vision.encoders import parse_tower_name
from llava_ultra_ext.vision.feature_cache import HEADER, CacheHeader, FeatureCache, ShardWriter, picture_key
from llava_ultra_ext.vision.feature_record import DTYPES, pack, record_size
from llava_ultra_ext.vision.tower import FusedVisionTower

logger = logging.getLogger(__name__)

AHEAD = 4
"""Batches that are decoded while one is encoded; bounds the memory whatever the number of pictures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Build a cache, or look after one; exit status 1 when something is missing or damaged.

    Raises:
        ValueError: a flag, the data or an encoder is unusable; nothing was written.
        OSError: the disk is full; what was written before is kept.
    """
    args = _parser().parse_args(argv)
    folder = Path(args.feature_cache).expanduser()
    if args.action == "build":
        return build(args, folder)
    image_folder = os.path.expanduser(args.image_folder)
    paths = [os.path.join(image_folder, name) for name in picture_names(args.data_path, image_folder)]
    if args.action == "info":
        sys.stdout.write(info(folder) + "\n")
        return 0
    return verify(folder, paths) if args.action == "verify" else prune(folder, paths)


def picture_names(files: Sequence[str], folder: str) -> list[str]:
    """Every picture of training files (JSON lists) and question files (JSON lines, in `folder`), each once.

    Raises:
        ValueError: a file is unusable.
    """
    names: dict[str, None] = {}
    for file in files:
        if file.endswith(".jsonl"):
            names.update(dict.fromkeys(name for asked in read_questions(file, folder) for name in asked.images))
        else:
            exams = (Exam.from_record(record, place) for place, record in enumerate(read_records(file)))
            names.update(dict.fromkeys(name for exam in exams for name in exam.images))
    return list(names)


def build(args: argparse.Namespace, folder: Path) -> int:
    """Compute what is missing; this process's share of it."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    image_folder = os.path.expanduser(args.image_folder)
    names = sorted(picture_names(args.data_path, image_folder))
    device = _device(args.device)
    tower = _tower(args).to(device, getattr(torch, args.compute_dtype) if args.compute_dtype else None)
    header = CacheHeader(tower.identity(), tower.feature_shapes, args.dtype, str(tower.dtype).removeprefix("torch."))
    cache = _open(folder, header)
    _say_size(folder, header, len(names), len(cache))
    own = names[rank::world]
    unreadable = 0
    with (
        ThreadPoolExecutor(max(1, args.workers)) as pool,
        ShardWriter(folder) as writer,
        tqdm(total=len(own), desc="features", unit="frame", disable=rank > 0) as bar,
    ):
        for keys, pixels, failed, looked in _decoded(pool, own, image_folder, cache, tower, args.encoder_batch_size):
            if len(keys):
                tower.load_model()
                writer.add(keys, pack(tower(pixels), DTYPES[args.dtype]))
            unreadable += failed
            bar.update(looked)
    if unreadable:
        logger.warning("%d pictures could not be decoded and have no features. Export them again.", unreadable)
    return 1 if unreadable else 0


def _decoded(
    pool: ThreadPoolExecutor, names: Sequence[str], folder: str, cache: FeatureCache, tower: Any, size: int
) -> Iterator[tuple[list[str], Tensor, int, int]]:
    """Batches of new pictures, decoded while others are encoded: keys, pixels, undecodable ones, pictures looked at."""

    def load(name: str) -> tuple[str, Tensor | None] | None:
        path = os.path.join(folder, name)
        try:
            key = picture_key(path)
            if key in cache:
                return None
            return key, tower.image_processor.preprocess([open_picture(path)], return_tensors="pt")["pixel_values"]
        except (OSError, ValueError) as error:
            logger.debug("a picture was left out: %s", error)
            return "", None

    waiting: deque[Future[Any]] = deque()
    left, seen = iter(names), set[str]()
    done = looked = failed = 0
    batch: list[tuple[str, Tensor]] = []
    while done < len(names):
        while len(waiting) < size * AHEAD and (name := next(left, None)) is not None:
            waiting.append(pool.submit(load, name))
        found = waiting.popleft().result()
        done, looked = done + 1, looked + 1
        if found is not None and found[1] is None:
            failed += 1
        elif found is not None and found[0] not in seen:
            seen.add(found[0])
            batch.append(found)
        if len(batch) == size or done == len(names):
            pixels = torch.cat([picture for _, picture in batch]) if batch else torch.empty(0)
            yield [key for key, _ in batch], pixels, failed, looked
            batch, looked, failed = [], 0, 0


def _open(folder: Path, header: CacheHeader) -> FeatureCache:
    """The cache in a folder, made where there is none.

    Raises:
        ValueError: it holds features of other encoders, or in another dtype.
    """
    if (folder / HEADER).exists():
        found = CacheHeader.read(folder)
        unlike = found.difference(header.encoders, header.shapes)
        if not unlike and (found.dtype, found.computed_in) != (header.dtype, header.computed_in):
            unlike = f"stored {found.dtype}, computed in {found.computed_in}; now {header.dtype}, {header.computed_in}"
        if unlike:
            raise ValueError(
                f"--feature_cache {folder}: holds other features ({unlike}). Give another folder, or the same flags."
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / HEADER, header.as_json())
    return FeatureCache(folder)


def _say_size(folder: Path, header: CacheHeader, pictures: int, there: int) -> None:
    dtype = DTYPES[header.dtype]
    one = record_size(header.shapes, dtype) * dtype.itemsize
    needed, free = max(0, pictures - there) * one, shutil.disk_usage(folder).free
    logger.info(
        "%d pictures, %d in the cache; %.1f KB a frame, about %.2f GB to write, %.2f GB free.",
        *(pictures, there, one / 1e3, needed / 1e9, free / 1e9),
    )
    if needed > free:
        raise ValueError(
            f"--feature_cache {folder}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. Give a "
            "folder on a larger disk, or --dtype int8, which takes half of float16."
        )


def _tower(args: argparse.Namespace) -> FusedVisionTower:
    from llava_ultra_ext.train.program import encoder_sources

    if parse_tower_name(args.vision_tower) is None:
        raise ValueError(f"--vision_tower {args.vision_tower}: is no tower of ours. Use sam_clip_fused or fused:….")
    if args.encoder_batch_size < 1:
        raise ValueError(f"--encoder_batch_size {args.encoder_batch_size}: must be 1 or more.")
    return FusedVisionTower(
        encoder_sources(args),
        name=args.vision_tower,
        clip_select_layer=args.mm_vision_select_layer,
        **{name: getattr(args, name) for name in (*_TOWER_FLAGS, "encoder_batch_size")},
    )


def _device(wanted: str | None) -> str:
    """A GPU for each process of a machine, unless a device is named."""
    if wanted is None and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return check_device(wanted)


_TOWER_FLAGS = ("sam_image_size", "sam_token_merge", "sam_select_feature", "sam_trainable")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava-ultra cache", description="Frozen features, computed once.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="build | info | verify | prune")
    said = {
        "build": "compute what is missing; several processes share the work",
        "info": "whose features, how many, how large",
        "verify": "read every record; with --data_path also whether every picture is there",
        "prune": "drop damaged shards, doubled records, and pictures that --data_path does not name",
    }
    for action, text in said.items():
        sub = actions.add_parser(action, help=text, description=text)
        sub.add_argument("--feature_cache", "--feature-cache", required=True, help="folder of the cache")
        needed = action in ("build", "prune")
        sub.add_argument(
            *("--data_path", "--data-path"),
            action="append",
            required=needed,
            default=None if needed else [],
            help="training file (.json) or question file (.jsonl); again for each further one",
        )
        sub.add_argument("--image_folder", "--image-folder", default="", help="where picture names start")
        if action == "build":
            _add_build_flags(sub)
    return parser


def _add_build_flags(parser: argparse.ArgumentParser) -> None:
    own = UltraModelArguments()
    add = parser.add_argument
    add("--vision_tower", default="sam_clip_fused", help="as in training (default: %(default)s)")
    for name in ("clip_tower", "sam_tower", *_TOWER_FLAGS):
        kind = int if name == "sam_image_size" else str
        add(f"--{name}", type=kind, default=getattr(own, name), help="as in training (default: %(default)s)")
    add("--mm_vision_select_layer", type=int, default=-2, help="as in training (default: %(default)s)")
    add("--encoder_batch_size", type=int, default=own.encoder_batch_size, help="frames at once (default: %(default)s)")
    add("--dtype", choices=list(DTYPES), default="float16", help="how features are stored (default: %(default)s)")
    add("--compute_dtype", choices=("float32", "bfloat16", "float16"), help="of the encoders (default: float32)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="threads that decode pictures (default: %(default)s)")
    add("--device", help="for example cuda:1 or cpu; default: a GPU for each process, else the CPU")
