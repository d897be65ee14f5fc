"""Answers to a question file, exams included: ``llava-ultra answer`` or ``python -m llava_ultra_ext.eval.generate``.

Flags and files as LLaVA's ``eval/model_vqa.py``. What is added: ``image`` may be a list (an exam) or absent, questions
are answered in batches, everything is checked before the model loads, and a run that was killed goes on where it
stopped. Stock LLaVA folders are answered too, one picture a question.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm
from transformers import PretrainedConfig

from llava_ultra_ext.activate import arm
from llava_ultra_ext.eval.answerer import Answerer, Decoding
from llava_ultra_ext.eval.answers import AnswerFile
from llava_ultra_ext.eval.frames import open_feature_cache
from llava_ultra_ext.eval.questions import Question, chunk, read_questions
from llava_ultra_ext.eval.run_record import describe_run
from llava_ultra_ext.model.builders import is_ultra
from llava_ultra_ext.model.opening import check_device, folder_config, model_name, open_model

logger = logging.getLogger(__name__)

LLAVA_TEMPLATE = "llava_v1"
"""``--conv-mode`` where it is left out, for a folder that is not ours (LLaVA's own default)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Answer a question file.

    Raises:
        ValueError: a flag, the question file, a picture or the model folder is unusable.
    """
    args = _parser().parse_args(argv)
    decoding = Decoding(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size}: must be 1 or more.")
    check_device(args.device)
    config = folder_config(args.model_path)
    folder = os.path.expanduser(args.image_folder)
    questions = read_questions(os.path.expanduser(args.question_file), folder)
    _check_fit(questions, config)
    part = chunk(questions, args.num_chunks, args.chunk_idx)
    conversation = args.conv_mode or getattr(config, "ultra_template", LLAVA_TEMPLATE)
    template = _template(conversation)
    cache = open_feature_cache(args.feature_cache, config, [name for one in part for name in one.images], folder)
    settings = {"conv-mode": conversation, **vars(decoding), "feature-cache": cache.header.dtype if cache else None}
    run = describe_run(args.model_path, args.model_base, args.question_file, folder, settings)
    with AnswerFile(args.answers_file, model_name(args.model_path), run) as answers:
        todo = answers.unanswered(part)
        logger.info("%d questions, %d of them are answered already.", len(part), len(part) - len(todo))
        if not todo:
            return 0
        opened = open_model(args.model_path, args.model_base, args.device)
        answerer = Answerer(opened, template, folder, decoding, cache)
        size = 1 if getattr(config, "ultra_adr_strategy", "") == "random" else args.batch_size
        with tqdm(total=len(todo), unit="question") as bar:
            for start in range(0, len(todo), size):
                batch = todo[start : start + size]
                for question, answer in zip(batch, answerer.answer(batch), strict=True):
                    answers.write(question, answer.text, answer.metadata)
                    bar.update()
    return 0


def _template(name: str) -> Any:
    """LLaVA's conversation of a name, the Chinese ones included.

    Raises:
        ValueError: there is none of that name.
    """
    arm()
    from llava.conversation import conv_templates

    if name not in conv_templates:
        raise ValueError(f"--conv-mode {name}: no such template. Known: {', '.join(conv_templates)}.")
    logger.info("Questions are put in the template %s (--conv-mode).", name)
    return conv_templates[name]


def _check_fit(questions: Sequence[Question], config: PretrainedConfig) -> None:
    """Whether this model can answer these questions.

    Raises:
        ValueError: an exam for a model of one picture, or no ``valid_frames`` for the oracle baseline.
    """
    exams = [question for question in questions if len(question.images) > 1]
    if exams and not is_ultra(config):
        raise ValueError(
            f"question {exams[0].id} has {len(exams[0].images)} pictures, but --model-path is a stock LLaVA model, "
            f"which takes one ({len(exams)} such questions). Ask about one picture, or use a LLaVA-Ultra model."
        )
    blind = [question for question in exams if not question.valid_frames]
    if blind and getattr(config, "ultra_adr_strategy", "") == "oracle":
        raise ValueError(
            f"question {blind[0].id} has no `valid_frames`, which this model's --adr_strategy oracle needs "
            f"({len(blind)} such questions). Add them, or use a model of another strategy."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-ultra answer", description="Answer a question file (LLaVA's JSON lines, exams included)."
    )
    add = parser.add_argument
    add("--model-path", required=True, help="model folder: LLaVA-Ultra (stage 1, LoRA, merged) or stock LLaVA")
    add("--model-base", help="the language model, for a stage 1 or LoRA folder")
    add("--image-folder", default="", help="where picture names start")
    add("--question-file", required=True, help="JSON lines: question_id, text, image (a name, a list, or absent)")
    add("--answers-file", required=True, help="JSON lines; an existing file is continued")
    add("--conv-mode", help="LLaVA's prompt template; default: the --version of training, stock llava_v1")
    add("--num-chunks", type=int, default=1, help="cut the file into this many parts")
    add("--chunk-idx", type=int, default=0, help="answer this part, counted from 0")
    add("--temperature", type=float, default=0.0, help="0: greedy (default)")
    add("--top_p", type=float, help="share of probability to draw from, with a temperature")
    add("--num_beams", type=int, default=1, help="beams of beam search")
    add("--max_new_tokens", type=int, default=1024, help="longest answer, in tokens")
    add("--batch-size", type=int, default=8, help="questions at once")
    add("--feature-cache", "--feature_cache", help="folder of `llava-ultra cache build`: no encoder runs")
    add("--device", help="for example cuda:1 or cpu; default: the first GPU, else the CPU")
    return parser


if __name__ == "__main__":
    from llava_ultra_ext.cli import main as command

    raise SystemExit(command(["answer", *sys.argv[1:]]))
