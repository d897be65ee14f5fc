"""A small LLaMA tokenizer, trained on the spot from the texts it will meet."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CORPUS: list[str] = [
    "请描述这组超声图像。",
    "这是静态图还是动态序列？该检查是否为彩色多普勒超声图像？",
    "超声所见：甲状腺右叶中部见一低回声结节，大小约12mm×8mm，边界清晰，形态规则，内部回声均匀，未见明显血流信号。",
    "肝脏大小形态正常，包膜光滑，实质回声均匀，血管走行清晰，门静脉内径约1.1cm。胆囊壁不厚，腔内未见异常回声。",
    "左侧乳腺外上象限见一无回声区，后方回声增强，考虑囊肿。右侧乳腺未见占位性病变。",
    "超声提示：甲状腺右叶结节，建议随访复查。",
    "是的，图像为彩色多普勒，可见红蓝血流信号。不是，图像为灰阶超声。",
    "动态序列，共30帧，分辨率为640×480像素。静态图，共1帧，整体亮度较暗。",
    "Please describe the ultrasound images of this exam and give the diagnosis.",
    "The thyroid gland shows a hypoechoic nodule of 12.5 mm with clear margins, no abnormal blood flow is seen.",
    "Is it a colour Doppler picture? Yes. No. USER: ASSISTANT: 用户：助手： 0123456789 (BI-RADS 4a; TI-RADS 3)",
]

_TEXT_KEYS = frozenset({"value", "findings", "text", "answer"})
_SPECIAL_PIECES = 3 + 256  # <unk>, <s>, </s> and one piece for each byte


def make_tokenizer(
    folder: str | Path,
    corpus: Iterable[str] = CORPUS,
    vocab_size: int | None = None,
    legacy: bool = True,
    longest: int = 16,
) -> Path:
    """Trains a sentencepiece BPE with byte fallback on `corpus` and writes it as a slow LLaMA tokenizer.

    Args:
        folder: What to write; replaced when it exists.
        corpus: Text; each of its characters gets a piece of its own at least.
        vocab_size: Number of pieces, specials included. None: the characters and up to 200 merges.
        legacy: The `legacy` flag of `LlamaTokenizer` (how text after a special token is split).
        longest: Characters of a piece, at most.

    Raises:
        ValueError: `vocab_size` cannot hold the corpus's characters, or the corpus is empty.
    """
    from transformers import LlamaTokenizer

    with fresh_folder(folder) as target:
        model = target / "tokenizer.model"
        lines = [line for text in corpus for line in text.splitlines()]
        model.write_bytes(_train_sentencepiece(lines, vocab_size, longest))
        LlamaTokenizer(str(model), legacy=legacy, add_bos_token=True).save_pretrained(target)
    return Path(folder)


def read_corpus(paths: Iterable[str | Path]) -> list[str]:
    """Collects the texts of training, question and gold files (JSON, JSON lines) and of plain text files."""
    texts: list[str] = []
    for path in map(Path, paths):
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            texts += [text for line in content.splitlines() if line.strip() for text in _texts_of(json.loads(line))]
        elif path.suffix == ".json":
            texts += _texts_of(json.loads(content))
        else:
            texts += content.splitlines()
    return texts


def _texts_of(node: Any) -> list[str]:
    if isinstance(node, list):
        return [text for item in node for text in _texts_of(item)]
    if isinstance(node, dict):
        own = [value for key, value in node.items() if key in _TEXT_KEYS and isinstance(value, str)]
        return own + [text for value in node.values() if isinstance(value, (dict, list)) for text in _texts_of(value)]
    return []


def _train_sentencepiece(lines: list[str], vocab_size: int | None, longest: int) -> bytes:
    import sentencepiece

    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError("The tokenizer's corpus is empty: give at least one line of text.")
    smallest = len(set("".join(lines)) | {"▁"}) + _SPECIAL_PIECES
    if vocab_size is not None and vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size} is too small: this corpus needs at least {smallest} pieces.")
    # A writer, not a path: the trainer records its output path in the model, and equal corpora should give equal bytes.
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=writer,
        model_type="bpe",
        vocab_size=vocab_size or smallest + 200,
        max_sentencepiece_length=longest,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
    )
    return writer.getvalue()


@contextmanager
def fresh_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary sibling that replaces `folder` when everything in it has been written."""
    final = Path(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield partial
        partial.chmod(0o755)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
