"""What a training step costs: stock LLaVA on one picture, ours on exams of 1 to 16 frames, with and without a cache.

    python scripts/bench/train_step.py [--json FILE] [--plot FILE.png] [--device cuda] [--llm 7b --lora 128] [--quick]

A step is loading a batch, forward, backward and AdamW. CLIP-L/14-336 and SAM-L at --size pixels, a LLaMA of 1.1B;
random weights, equal text, the same LLM. Stock is LLaVA's unedited class, dataset and collator; ours are the package's.
In every run all sides follow one another; medians. `ultra_k8_s` and `ultra_cached_k8_s` take the teacher's scores from
a file, as recommended; in `ultra_cached_k8_teacher_s` the likelihood teacher runs inside the step. The cache holds, in
its real format, what the encoders said in the first uncached step.

`shares`: of a side's step, forward and backward. `tower` is unpacking records, or finding equal frames; `projections`
P1 and P2 on all k frames; `fusion` their mixture; `sampler` score, choice and L_adr; `loading` the wait for the batch.

On a GPU --workers processes load ahead, as in LLaVA's scripts; steps are counted once what was loaded before the run is
used up, and shares come from a run of their own, since asking for the time there costs some.

On a CPU the defaults are for about 15 minutes on 2 processors of 20 GFLOP/s: the first 2 layers of the LLM; the steps
with encoders, 47 s a frame, only for k = 1 and 8, and these and the teacher's step once and without warming up
(`measured_once`); those for k = 4 and 16 follow from them, as encoders take equally long for each frame (`derived`);
and the cached exam of 16 frames shows each of 8 pictures twice. Seconds between ours and stock's do not depend on the
LLM's size, but shares of a step and the ratio do: --layers takes more of it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from making import LLMS, TEMPLATE, build, keeping_features, make_encoders, make_llm, make_pictures, write_exams
from measuring import Parts, add_flags, fill, line_from, medians, tell
from step_plot import draw
from stepping import Side, Trainee

from llava_ultra_ext.data.exam_dataset import ExamCollator, ExamDataset
from llava_ultra_ext.data.manifest import load_manifest
from llava_ultra_ext.vision.feature_cache import FeatureCache

FRAMES = (1, 4, 8, 16)
AT = 8
"""The k of the targets."""
MOST = 0.05
"""Of a cached step, for sampler and fusion, and for loading."""


class Bench:
    """Models, exams and sides in a folder."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.host: Any = importlib.import_module("llava.train.train")
        conversations = self.host.conversation_lib
        conversations.default_conversation = self.template = conversations.conv_templates[TEMPLATE]
        dtype, sources = getattr(torch, args.dtype), make_encoders(work, args.size, args.quick)
        self.pictures = max(args.uncached)  # of an exam
        self.names = make_pictures(work, args.batch * self.pictures)
        llm = make_llm(work / "llm", args.llm, args.layers, dtype, args.device)
        self.parts = Parts(args.device)
        common = {"dtype": dtype, "device": args.device, "lora": args.lora}
        self.stock, self.ultra = (
            Trainee(build(llm, sources, ours, **common, **more), self.parts, ours, args.gradient_checkpointing)
            for ours, more in ((False, {}), (True, {"sam_image_size": args.size}))
        )

    def exams(self, k: int) -> Path:
        """The training file of a batch of exams of k frames."""
        each = [self.names[one * self.pictures : (one + 1) * self.pictures] for one in range(self.args.batch)]
        repeated = [(own * math.ceil(k / self.pictures))[:k] for own in each]
        return write_exams(self.work / f"exams-{k}.json", repeated)

    def stock_side(self) -> Side:
        """LLaVA's dataset and collator."""
        data_args = self.host.DataArguments(data_path=str(self.exams(1)), image_folder=str(self.work))
        data_args.image_aspect_ratio, data_args.is_multimodal, data_args.mm_use_im_start_end = "pad", True, False
        data_args.image_processor = self.stock.built.image_processor
        made = self.host.make_supervised_data_module(tokenizer=self.stock.built.tokenizer, data_args=data_args)
        return Side(self.stock, (made["train_dataset"], made["data_collator"]), self.args, online=False)

    def ultra_side(self, k: int, cache: FeatureCache | None, online: bool = False) -> Side:
        """Ours; `online`: the teacher runs in the step."""
        exams, _ = load_manifest(str(self.exams(k)), image_folder=str(self.work), strategy="likelihood")
        dice, tower = random.Random(0), self.ultra.model.get_vision_tower()
        dataset = ExamDataset(
            exams,
            tokenizer=self.ultra.built.tokenizer,
            template=self.template,
            image_folder=str(self.work),
            image_processor=tower.image_processor,
            frame_tokens=tower.num_patches,
            strategy="likelihood",
            frame_scores={exam.score_key: {name: dice.random() for name in exam.images} for exam in exams},
            feature_cache=cache,
        )
        return Side(self.ultra, (dataset, ExamCollator(0)), self.args, online)

    def fill_cache(self, side: Side) -> FeatureCache:
        """From a first step without one; on a CPU it counts."""
        with keeping_features(self.ultra.model) as kept:
            side.run(measured=self.args.device == "cpu")
        frames = len(self.names)
        while sum(len(one["clip"]) for one in kept) > frames:  # of several steps the last
            kept.pop(0)
        paths = [str(self.work / name) for name in self.names]
        return kept.write(self.work / "cache", self.ultra.model.get_vision_tower(), paths)


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All sides, `args.runs` times; on a CPU the slow ones once."""
    bench = Bench(args, work)
    stock = bench.stock_side()
    uncached = {f"ultra_k{k}": bench.ultra_side(k, None) for k in args.uncached}
    words = [side.dataset[0]["input_ids"] for side in (stock, uncached[f"ultra_k{min(args.uncached)}"])]
    if not torch.equal(*words):
        raise RuntimeError("Stock LLaVA and ours do not see the same text.")
    cache = bench.fill_cache(uncached[f"ultra_k{bench.pictures}"])
    cached = {f"ultra_cached_k{k}": bench.ultra_side(k, cache) for k in FRAMES}
    teacher = {f"ultra_cached_k{AT}_teacher": bench.ultra_side(AT, cache, online=True)}
    often, once = {"stock_k1": stock, **cached}, {**uncached, **teacher}
    if args.device != "cpu":
        often, once = {**often, **once}, {}
    for name, side in once.items():
        if not side.seconds:
            side.run()
        print(f"{name} {side.seconds[0]:.2f} s")
    bench.parts.active = args.device == "cpu"
    for name in often if args.device != "cpu" else ("stock_k1", f"ultra_cached_k{AT}"):
        often[name].run(measured=False)
    for run in range(args.runs):
        for side in often.values():
            side.run()
        print(f"run {run + 1}: " + "  ".join(f"{name} {side.seconds[-1]:.3f} s" for name, side in often.items()))
    if args.device != "cpu":
        bench.parts.active = True
        for side in often.values():
            side.run()
    return figures({**often, **once}, list(once), len(words[0]))


def figures(sides: dict[str, Side], once: list[str], text_tokens: int) -> dict[str, Any]:
    """Medians, shares, and what was not measured: linear in k."""
    told: dict[str, Any] = medians({f"{name}_s": side.seconds for name, side in sides.items()})
    derived = line_from(told, "ultra_k", FRAMES)
    shares = {name: side.shares() for name, side in sides.items()}
    at = shares[f"ultra_cached_k{AT}"]
    return {
        **dict(sorted({**told, **derived}.items())),
        "cached_over_stock": told[f"ultra_cached_k{AT}_s"] / told["stock_k1_s"],
        "sampler_fusion_share": at["sampler"] + at["fusion"],
        "loading_share": at["loading"],
        "shares": shares,
        "text_tokens": text_tokens,
        "measured_once": [f"{name}_s" for name in once],
        "derived": list(derived),
    }


def verdict(result: dict[str, Any]) -> dict[str, bool]:
    """Target -> whether it is met."""
    return {
        f"ultra_cached_k{AT}_s < stock_k1_s": result["cached_over_stock"] < 1,
        f"sampler_fusion_share < {MOST}": result["sampler_fusion_share"] < MOST,
        f"loading_share < {MOST}": result["loading_share"] < MOST,
    }


def settle(args: argparse.Namespace) -> None:
    """Defaults that depend on the device and on --quick."""
    cpu = args.device == "cpu"
    room = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else 0
    usual: dict[str, Any] = {
        "dtype": "float32" if cpu else "bfloat16",
        "batch": 1 if cpu else 4,
        "layers": 2 if cpu else None,
        "uncached": [1, AT] if cpu else list(FRAMES),
        "runs": 3,
        "workers": 0 if cpu or room < 4e9 else 4,  # loaded batches wait in shared memory
        "steps": 1 if cpu else 8,
        "size": 768,
        "llm": "1b",
    }
    if args.quick:
        usual |= {"size": 128, "llm": "small", "layers": None, "runs": 1, "steps": 1, "batch": 1, "workers": 0}
    fill(args, usual, AT, FRAMES)


def main() -> int:
    """Command line; exit status 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_flags(parser, runs="3; --quick 1")
    add = parser.add_argument
    add("--size", type=int, help="side of SAM's input in pixels, a multiple of 32 (default: 768; --quick 128)")
    add("--llm", choices=list(LLMS), help="size of the LLaMA (default: 1b; --quick small)")
    add("--layers", type=int, help="only its first layers (default: on a CPU 2, on a GPU all)")
    add("--dtype", choices=("float32", "bfloat16"), help="of everything (default: on a CPU float32, else bfloat16)")
    add("--batch", type=int, help="exams a step (default: on a CPU 1, on a GPU 4)")
    add("--steps", type=int, help="steps of a side in a run (default: on a CPU 1, on a GPU 8)")
    add("--workers", type=int, help="processes that load (default: on a CPU 0, on a GPU 4)")
    add("--uncached", type=int, nargs="+", help="k of steps with encoders (default: on a CPU 1 8, on a GPU all)")
    add("--lora", type=int, default=0, help="rank of a LoRA; 0: all weights learn (default: %(default)s)")
    add("--gradient-checkpointing", action="store_true", help="as LLaVA's scripts do: less memory, more time")
    args = parser.parse_args()
    settle(args)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="bench-step-") as work:
        result = measure(args, Path(work))
    for side in ("stock_k1", f"ultra_k{AT}", f"ultra_cached_k{AT}"):
        print(f"{side}: " + ", ".join(f"{part} {share:.1%}" for part, share in result["shares"][side].items()))
    return tell(result, verdict(result), args, draw)


if __name__ == "__main__":
    raise SystemExit(main())
