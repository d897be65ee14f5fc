"""Time to the first token of an answer about an exam of 1 to 16 frames, against captioning every frame and choosing.

    python scripts/bench/answer_latency.py [--json FILE] [--plot FILE.png] [--device cuda --dtype bfloat16] [--quick]

What `llava-ultra answer` does with a question: prompt, pictures or cached features, projector, sampler, the LLM up to
one token. CLIP-L/14-336 and SAM-L at --size pixels, a LLaMA of 1.1B, random weights. In every run all k follow one
another; medians. `uncached_k8_s` decodes and encodes 8 pictures, `cached_k8_s` reads their features.

`uncached_over_encoders`: what 8 frames take more without a cache, over 8 times what one frame does.

`caption_k8_s` is the other way to answer from 8 frames: the same model writes a caption of --tokens tokens of each
frame, one after another, and then answers from one of them (what choosing by the captions takes is not counted).
`caption_batched_k8_s` has the 8 captions written at once. Frames come from the cache, so that the encoders, which
captions need for every frame too, are on neither side. Captions of k frames are timed within those of 16.

On a CPU the defaults are for about 15 minutes on 2 processors of 20 GFLOP/s: the first 4 layers of the LLM; answers
with encoders, 47 s a frame, only for k = 1 and 8, and these and the captions once (`measured_once`); those for k = 2, 4
and 16 follow from them (`derived`); and the cached exam of 16 frames shows each of 8 pictures twice. A smaller LLM
makes the first target harder to reach: what further frames take does not shrink with it.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from making import LLMS, QUESTION, TEMPLATE, build, keeping_features, make_encoders, make_llm, make_pictures
from measuring import (
    BLUE,
    GREY,
    RED,
    add_flags,
    fill,
    line_from,
    log_seconds,
    median_ratio,
    medians,
    new_figure,
    tell,
    timed,
)

from llava_ultra_ext.activate import arm
from llava_ultra_ext.eval.answerer import Answerer, Decoding
from llava_ultra_ext.eval.questions import Question
from llava_ultra_ext.model.opening import OpenedModel, open_model

FRAMES = (1, 2, 4, 8, 16)
AT = 8
"""The k of the targets."""
MOST_CACHED, LEAST_CAPTION = 1.15, 6.0
"""Times one frame's latency, at most; and captioning's times ours, at least."""


class Bench:
    """A model of ours in a folder, opened as `llava-ultra answer` does, and answerers of it."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.pictures = max(args.uncached)
        self.names = make_pictures(work, self.pictures)
        self.opened = self._opened()
        self.uncached = self._answerer(1)
        self.cached = self.caption = self.uncached

    def _opened(self) -> OpenedModel:
        args, dtype = self.args, getattr(torch, self.args.dtype)
        sources = make_encoders(self.work, args.size, args.quick)
        llm = make_llm(self.work / "llm", args.llm, args.layers, dtype, args.device)
        built = build(llm, sources, True, dtype, args.device, sam_image_size=args.size)
        folder = self.work / "llava-ultra"
        built.model.save_pretrained(folder)
        built.tokenizer.save_pretrained(folder)
        del built
        opened = open_model(str(folder), device=args.device)
        opened.model.to(dtype=dtype)  # LLaVA loads float16 on a GPU
        opened.model.get_vision_tower().to(dtype=dtype)
        opened.model.generation_config.eos_token_id = None  # captions have --tokens tokens, whatever random weights say
        return opened

    def _answerer(self, tokens: int, cache: Any = None) -> Answerer:
        from llava.conversation import conv_templates

        decoding = Decoding(max_new_tokens=tokens)
        return Answerer(self.opened, conv_templates[TEMPLATE], str(self.work), decoding, cache)

    def question(self, k: int, first: int = 0) -> Question:
        """About k frames."""
        repeated = self.names * math.ceil((first + k) / self.pictures)
        return Question(k, QUESTION, tuple(repeated[first : first + k]))

    def seconds(self, answerer: Answerer, *questions: Question) -> float:
        """To the end of the answers."""
        return timed(lambda: answerer.answer(questions), self.args.device)[0]

    def fill_cache(self) -> float:
        """A first answer with encoders, which gives the cache; seconds."""
        tower = self.opened.model.get_vision_tower()
        with keeping_features(self.opened.model) as kept:
            seconds = self.seconds(self.uncached, self.question(self.pictures))
        cache = kept.write(self.work / "cache", tower, [str(self.work / name) for name in self.names])
        self.cached, self.caption = self._answerer(1, cache), self._answerer(self.args.tokens, cache)
        tower.load_model()  # an answerer with a cache lets the encoders go
        return seconds

    def captions(self) -> dict[str, float]:
        """Seconds to the first token of an answer after captions of each k; all frames apart, and at once for AT."""
        spent = 0.0
        after: dict[str, float] = {}
        first_token = self.seconds(self.cached, self.question(1))
        for number in range(max(FRAMES)):
            spent += self.seconds(self.caption, self.question(1, number % self.pictures))
            if number + 1 in FRAMES:
                after[f"caption_k{number + 1}_s"] = spent + first_token
        at_once = self.seconds(self.caption, *(self.question(1, number) for number in range(AT)))
        return {**after, f"caption_batched_k{AT}_s": at_once + first_token}


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All sides, `args.runs` times; on a CPU the slow ones once."""
    bench, cpu = Bench(args, work), args.device == "cpu"
    filled = bench.fill_cache()
    runs: dict[str, list[float]] = {f"uncached_k{bench.pictures}_s": [filled] if cpu else []}
    bench.seconds(bench.cached, bench.question(1))  # to warm up
    bench.seconds(bench.caption, bench.question(1))
    for run in range(args.runs):
        for k in FRAMES:
            runs.setdefault(f"cached_k{k}_s", []).append(bench.seconds(bench.cached, bench.question(k)))
        print(f"run {run + 1}: " + "  ".join(f"cached k={k} {runs[f'cached_k{k}_s'][-1]:.3f} s" for k in FRAMES))
        if run and cpu:
            continue
        for k in args.uncached:
            if not (cpu and runs.get(f"uncached_k{k}_s")):
                runs.setdefault(f"uncached_k{k}_s", []).append(bench.seconds(bench.uncached, bench.question(k)))
        for name, seconds in bench.captions().items():
            runs.setdefault(name, []).append(seconds)
            print(f"{name} {seconds:.3f} s")
    return figures(runs, cpu)


def figures(runs: dict[str, list[float]], cpu: bool) -> dict[str, Any]:
    """Medians, their ratios, and what was not measured: linear in k."""
    told: dict[str, Any] = medians(runs)
    derived = line_from(told, "uncached_k", FRAMES)
    ours = runs[f"cached_k{AT}_s"]
    times = len(runs[f"caption_k{AT}_s"])
    ratios = {
        "cached_k8_over_k1": median_ratio(ours, runs["cached_k1_s"]),
        "caption_over_cached": median_ratio(runs[f"caption_k{AT}_s"], ours[:times]),
        "caption_batched_over_cached": median_ratio(runs[f"caption_batched_k{AT}_s"], ours[:times]),
    }
    encoder = told["uncached_k1_s"] - told["cached_k1_s"]
    ratios["uncached_over_encoders"] = (told[f"uncached_k{AT}_s"] - told[f"cached_k{AT}_s"]) / (AT * encoder)
    once = [name for name, seconds in runs.items() if cpu and not name.startswith("cached")]
    ordered = dict(sorted({**told, **derived}.items()))
    return {**ordered, **ratios, "measured_once": once, "derived": list(derived)}


def draw(result: dict[str, Any], path: Path) -> None:
    """Seconds to the first token over k."""
    figure = new_figure(6, 3.6)
    axes = figure.subplots()
    sides = (("caption", "captions of every frame, from the cache", RED, "--"),)
    sides += (("uncached", "ours, CLIP + SAM", GREY, "-"), ("cached", "ours, from the cache", BLUE, "-"))
    for name, label, colour, style in sides:
        axes.plot(FRAMES, [result[f"{name}_k{k}_s"] for k in FRAMES], f"o{style}", color=colour, label=label)
    axes.set_xscale("log", base=2)
    log_seconds(axes)
    axes.set_xticks(FRAMES, [str(k) for k in FRAMES])
    axes.set_xlabel("frames of an exam", fontsize=9)
    axes.set_title("seconds to the first token of the answer", fontsize=10)
    axes.legend(fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def settle(args: argparse.Namespace) -> None:
    """Defaults that depend on the device and on --quick."""
    cpu = args.device == "cpu"
    usual: dict[str, Any] = {"size": 768, "llm": "1b", "layers": 4 if cpu else None, "tokens": 32 if cpu else 64}
    usual |= {"dtype": "float32" if cpu else "float16", "runs": 3, "uncached": [1, AT] if cpu else list(FRAMES)}
    if args.quick:
        usual |= {"size": 128, "llm": "small", "layers": None, "tokens": 4, "runs": 1}
    fill(args, usual, AT, FRAMES)


def main() -> int:
    """Command line; exit status 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_flags(parser, runs="3; --quick 1")
    add = parser.add_argument
    add("--size", type=int, help="side of SAM's input in pixels, a multiple of 32 (default: 768; --quick 128)")
    add("--llm", choices=list(LLMS), help="size of the LLaMA (default: 1b; --quick small)")
    add("--layers", type=int, help="only its first layers (default: on a CPU 4, on a GPU all)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: on a CPU float32, else float16)")
    add("--tokens", type=int, help="tokens of a caption (default: on a CPU 32, on a GPU 64)")
    add("--uncached", type=int, nargs="+", help="k of answers with encoders (default: on a CPU 1 8, on a GPU all)")
    args = parser.parse_args()
    settle(args)
    logging.disable(logging.INFO)
    arm()
    with tempfile.TemporaryDirectory(prefix="bench-answer-") as work:
        result = measure(args, Path(work))
    targets = {
        f"cached_k8_over_k1 <= {MOST_CACHED}": result["cached_k8_over_k1"] <= MOST_CACHED,
        f"caption_over_cached >= {LEAST_CAPTION}": result["caption_over_cached"] >= LEAST_CAPTION,
    }
    return tell(result, targets, args, draw)


if __name__ == "__main__":
    raise SystemExit(main())
