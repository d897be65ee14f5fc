"""``llava-ultra cache build | info | verify | prune``: frozen features of every picture, computed once for all runs.

llava-ultra cache build --data_path exams.json --image_folder images --feature_cache features --sam_tower …

Several processes share the pictures: ``torchrun --nproc_per_node 4 -m llava_ultra_ext.cli cache build …``, or
``deepspeed --no_local_rank --module llava_ultra_ext.cli cache build …``, or each by hand with RANK and WORLD_SIZE in
its environment. A build that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from llava_ultra_ext.arguments import UltraModelArguments
from llava_ultra_ext.data.exam import BadSample, Exam
from llava_ultra_ext.data.manifest import read_records
from llava_ultra_ext.data.pictures import open_picture
from llava_ultra_ext.data.whole_file import write_whole
from llava_ultra_ext.eval.questions import read_questions
from llava_ultra_ext.train.cache_care import info, prune, verify
from llava_ultra_ext.train.ranks import Ranks
from llava_ultra_ext.vision.encoders import parse_tower_name
from llava_ultra_ext.vision.feature_cache import HEADER, SHARDS, CacheHeader, FeatureCache, ShardWriter, picture_key
from llava_ultra_ext.vision.feature_record import DTYPES, pack, record_size
from llava_ultra_ext.vision.tower import FusedVisionTower

logger = logging.getLogger(__name__)

AHEAD = 4
"""Batches that are decoded while one is encoded; bounds the memory whatever the number of pictures."""

LISTED = 20
"""How many undecodable pictures are named."""


def main(argv: Sequence[str] | None = None) -> int:
    """Build a cache, or look after one; exit status 1 when something is missing or damaged.

    Raises:
        ValueError: a flag, the data or an encoder is unusable; nothing was written.
        OSError: the disk is full; what was written before is kept.
    """
    args = _parser().parse_args(argv)
    folder = Path(args.feature_cache).expanduser()
    if args.action == "info":
        sys.stdout.write(info(folder) + "\n")
        return 0
    if args.action == "build":
        with Ranks.join(must_meet=False) as ranks:
            return build(args, folder, ranks)
    image_folder = os.path.expanduser(args.image_folder)
    paths = [os.path.join(image_folder, name) for name in picture_names(args.data_path, image_folder)]
    return verify(folder, paths) if args.action == "verify" else prune(folder, paths)


def picture_names(files: Sequence[str], folder: str) -> list[str]:
    """Every picture of training files (JSON lists) and question files (JSON lines, in `folder`), each once.

    Samples that no training could use (``--on_bad_sample skip``) are counted and left out.

    Raises:
        ValueError: a file is unusable.
    """
    names: dict[str, None] = {}
    for file in files:
        if file.endswith(".jsonl"):
            names.update(dict.fromkeys(name for asked in read_questions(file, folder) for name in asked.images))
            continue
        bad = 0
        for place, record in enumerate(read_records(file)):
            try:
                names.update(dict.fromkeys(Exam.from_record(record, place).images))
            except BadSample as fault:
                bad += 1
                logger.debug("%s", fault)
        if bad:
            logger.warning("--data_path %s: %d bad samples are left out; training lists them.", file, bad)
    return list(names)


class Picture(NamedTuple):
    """A picture file that was looked at.

    Args:
        name: as the training file has it.
        key: of its content; empty where it cannot be read.
        pixels: (1, 3, S, S) where it is not in the cache yet.
        fault: why it cannot be decoded.
    """

    name: str
    key: str = ""
    pixels: Tensor | None = None
    fault: str = ""


def build(args: argparse.Namespace, folder: Path, ranks: Ranks) -> int:
    """Compute what is missing, this process's share of it; 1 when a picture could not be decoded."""
    image_folder = os.path.expanduser(args.image_folder)
    names = sorted(picture_names(args.data_path, image_folder))
    device = ranks.device(args.device)
    tower = _tower(args).to(device, getattr(torch, args.compute_dtype) if args.compute_dtype else None)
    header = CacheHeader(tower.identity(), tower.feature_shapes, args.dtype, str(tower.dtype).removeprefix("torch."))
    cache = _open(folder, header, len(names), say=ranks.rank == 0)
    own = names[ranks.rank :: ranks.size]
    ahead = AHEAD * args.encoder_batch_size
    with (
        ThreadPoolExecutor(args.workers or _processors()) as pool,
        ShardWriter(folder) as writer,
        tqdm(total=len(own), desc="features", unit="frame", disable=ranks.rank > 0) as bar,
    ):
        found = _look_ahead(pool, lambda name: _look(name, image_folder, cache, tower), own, ahead)
        faults = _encode(found, tower, writer, args, bar)
    _say_faults(faults)
    ranks.wait()  # a launcher ends the others when one process ends with an error
    return 1 if faults else 0


def _look_ahead(
    pool: ThreadPoolExecutor, look: Callable[[str], Picture], names: Iterable[str], ahead: int
) -> Iterator[Picture]:
    """`map` in the threads of a pool, in order, with no more than `ahead` results waiting."""
    waiting: deque[Future[Picture]] = deque()
    for name in names:
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
        waiting.append(pool.submit(look, name))
    while waiting:
        yield waiting.popleft().result()


def _look(name: str, folder: str, cache: FeatureCache, tower: FusedVisionTower) -> Picture:
    """Key and pixels come from one reading of the file: it may change meanwhile."""
    try:
        content = Path(folder, name).read_bytes()
        key = picture_key(content)
        if key in cache:
            return Picture(name, key)
        picture = open_picture(io.BytesIO(content))
        return Picture(name, key, tower.image_processor.preprocess([picture], return_tensors="pt")["pixel_values"])
    except (OSError, ValueError) as error:
        return Picture(name, fault=(getattr(error, "strerror", None) or str(error)))


def _encode(
    pictures: Iterable[Picture], tower: FusedVisionTower, writer: ShardWriter, args: argparse.Namespace, bar: tqdm
) -> list[Picture]:
    """Features of the pictures that have pixels, each content once; the pictures that cannot be decoded."""
    faults: list[Picture] = []
    batch: dict[str, Tensor] = {}
    seen: set[str] = set()

    def write() -> None:
        if batch:
            tower.load_model()
            writer.add(list(batch), pack(tower(torch.cat(list(batch.values()))), DTYPES[args.dtype]))
            batch.clear()

    for picture in pictures:
        bar.update()
        if picture.fault:
            faults.append(picture)
        elif picture.pixels is not None and picture.key not in seen:
            seen.add(picture.key)
            batch[picture.key] = picture.pixels
        if len(batch) == args.encoder_batch_size:
            write()
    write()
    return faults


def _say_faults(faults: Sequence[Picture]) -> None:
    if faults:
        lines = [f"{picture.name}: {picture.fault}" for picture in faults[:LISTED]]
        more = [f"… and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        logger.warning(
            "%d pictures could not be decoded and have no features; all others have. Export them again:\n%s",
            *(len(faults), "\n".join([*lines, *more])),
        )


def _open(folder: Path, header: CacheHeader, pictures: int, say: bool) -> FeatureCache:
    """The cache in a folder; made where there is none, or an empty one.

    Raises:
        ValueError: it holds features of other encoders, or in another dtype, or there is no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = 0
    if (folder / HEADER).exists() and any(folder.glob(SHARDS)):
        cache = FeatureCache(folder)
        found, there = cache.header, len(cache)
        unlike = found.difference(header.encoders, header.shapes)
        if not unlike and (found.dtype, found.computed_in) != (header.dtype, header.computed_in):
            unlike = f"stored {found.dtype}, computed in {found.computed_in}; now {header.dtype}, {header.computed_in}"
        if unlike:
            raise ValueError(
                f"--feature_cache {folder}: holds other features ({unlike}). Give another folder, or the same flags."
            )
    _check_room(folder, header, pictures, there, say)
    if not there:
        write_whole(folder / HEADER, header.as_json())
    return FeatureCache(folder)


def _check_room(folder: Path, header: CacheHeader, pictures: int, there: int, say: bool) -> None:
    dtype = DTYPES[header.dtype]
    one = record_size(header.shapes, dtype) * dtype.itemsize
    needed, free = max(0, pictures - there) * one, shutil.disk_usage(folder).free
    if say:
        logger.info(
            "%d pictures, %d in the cache already%s; %.1f KB a frame, about %.2f GB to write, %.2f GB free.",
            *(pictures, there, " (if they are the same ones)" if there else "", one / 1e3, needed / 1e9, free / 1e9),
        )
    if needed > free:
        raise ValueError(
            f"--feature_cache {folder}: about {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free. Give a "
            "folder on a larger disk, or --dtype int8, which takes half of float16."
        )


def _tower(args: argparse.Namespace) -> FusedVisionTower:
    from llava_ultra_ext.train.program import encoder_sources

    if parse_tower_name(args.vision_tower) is None:
        raise ValueError(f"--vision_tower {args.vision_tower}: is no tower of ours. Use sam_clip_fused or fused:….")
    for name in ("encoder_batch_size", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: must be 1 or more.")
    return FusedVisionTower(
        encoder_sources(args),
        name=args.vision_tower,
        clip_select_layer=args.mm_vision_select_layer,
        **{name: getattr(args, name) for name in (*_TOWER_FLAGS, "encoder_batch_size")},
    )


def _processors() -> int:
    """This process's share of the machine's."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


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
    add("--workers", type=int, help="threads that decode pictures (default: this process's share of the processors)")
    add("--device", help="for example cuda:1 or cpu; default: a GPU for each process, else the CPU")
