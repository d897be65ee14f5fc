"""What the page says of answers: Chinese sentences, the chat, marks for the strip; plain values, no HTML.

The page puts texts in as texts, never as markup, so nothing here is escaped.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from llava_ultra_ext.serve.client import Piece
from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.page.asking import DONE, FAILED, RUNNING, STOPPED, Turn
from llava_ultra_ext.serve.page.heat import data_url, overlay
from llava_ultra_ext.serve.page.store import Exam

SENTENCES = {
    "bad_request": "请求有误。",
    "frames_mismatch": "图像数量与问题不符。",
    "bad_picture": "图像无法读取。",
    "context_too_long": "对话太长，请清空对话后再问。",
    "address_not_allowed": "不允许使用这个图像地址。",
    "unauthorized": "没有权限，请检查密码。",
    "wrong_model": "没有这个模型，请重新选择。",
    "too_many_frames": "图像太多，请减少帧数。",
    "picture_too_large": "图像的像素太多，请缩小后再试。",
    "request_too_large": "数据太大，请减少文件。",
    "cancelled": "已停止。",
    "internal_error": "服务出错，请重试；若仍不行，请联系管理员。",
    "worker_lost": "模型服务中断，请再问一次。",
    "busy": "当前请求太多，请稍后再试。",
    "out_of_memory": "显存不足，请减少帧数或稍后再试。",
    "no_worker": "模型服务没有启动或暂时不可用，请稍后再试。",
}
"""Code of `errors.CODES` -> what a reader of Chinese is told to do."""


def error_text(error: ServeError) -> str:
    """A sentence in Chinese, then what exactly was wrong; messages that are Chinese already stay as they are."""
    message = str(error)
    chinese = any("\u4e00" <= letter <= "\u9fff" for letter in message)
    return message if chinese else f"{SENTENCES[error.code]} {message}"


def marks(exam: Exam, lanes: int) -> dict[str, Any]:
    """What the page shows of an exam's conversations.

    Args:
        exam: which.
        lanes: how many of its lanes take part now; those that did before are shown too.

    Returns:
        ``exam``: its key; ``lanes``: for each the ``turns``, see `turn_view`.
    """
    told = max([lanes, *(number for number, lane in enumerate(exam.lanes, start=1) if lane.turns)])
    return {
        "exam": exam.key,
        "lanes": [{"turns": [turn_view(turn, exam) for turn in lane.turns]} for lane in exam.lanes[:told]],
    }


def turn_view(turn: Turn, exam: Exam) -> dict[str, Any]:
    """A question and its answer: texts, the state, and for the strip the scores, the chosen frames, their overlays."""
    piece = turn.piece or Piece()
    return {
        "question": turn.text,
        "model": turn.model,
        "answer": turn.answer,
        "state": turn.state,
        "error": error_text(turn.error) if turn.error is not None else "",
        "status": status(turn, exam.labels),
        "chosen": list(piece.chosen),
        "scores": [round(score, 4) for score in piece.scores],
        "heat": _heat(piece, exam.sizes),
    }


def status(turn: Turn, labels: Sequence[str]) -> str:
    """One line below an answer: what is happening, or times, alpha and the chosen frames."""
    piece = turn.piece or Piece()
    if turn.state == RUNNING and piece.waiting:
        return f"排队中，前面还有 {piece.waiting} 个请求"
    parts = [{RUNNING: "正在回答", DONE: "完成", STOPPED: "已停止", FAILED: "失败"}[turn.state]]
    if turn.first_seconds is not None:
        parts.append(f"首字 {turn.first_seconds:.1f} 秒")
    if turn.total_seconds is not None:
        parts.append(f"共 {turn.total_seconds:.1f} 秒")
    if piece.alpha is not None:
        parts.append(f"α {piece.alpha:.3f}")
    if piece.chosen:
        parts.append("依据" + "、".join(f"「{labels[frame]}」" for frame in piece.chosen if frame < len(labels)))
    return " · ".join(parts)


def _heat(piece: Piece, sizes: Sequence[tuple[int, int]]) -> dict[str, str]:
    """Frame number -> overlay; one scale for all chosen frames of the answer. What does not fit is left out."""
    largest = max((abs(score) for one in piece.heat for score in one["scores"]), default=0.0)
    urls = {}
    for one in piece.heat:
        rows, columns = one["grid"]
        if 0 <= one["frame"] < len(sizes) and len(one["scores"]) == rows * columns:
            urls[str(one["frame"])] = _overlay((rows, columns), tuple(one["scores"]), sizes[one["frame"]], largest)
    return urls


@functools.lru_cache(maxsize=256)
def _overlay(grid: tuple[int, int], scores: tuple[float, ...], size: tuple[int, int], largest: float) -> str:
    """Drawn once: the same one goes out with every piece of a streaming answer."""
    return data_url(overlay(grid, scores, size, largest))
