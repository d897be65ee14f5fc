"""What the ablation compares: one `Row` a line of the table, and how large a run is.

The paper's Table 3 has `full`, `func_a`, `no_sampler`, `no_sam` and `no_site`. The other rows say what the sampler is
worth beside simpler choices, and which setting of an open question is the better one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STAGE1: dict[str, dict[str, str]] = {
    "base": {},
    "no_sam": {"VISION_TOWER": "fused:clip={clip}"},
    "concat": {"FUSION_ALPHA": "concat"},
    "channel_alpha": {"FUSION_ALPHA": "channel"},
    "pool": {"SAM_TOKEN_MERGE": "pool"},
}
"""Name -> what its stage 1, and every stage 2 that starts from it, sets for scripts/train.sh. Rows share them."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        title: how the table calls it.
        strategy: `--adr_strategy` of stage 2.
        stage1: a key of `STAGE1`.
        questions: "with_site" or "without_site", the paper's two versions of the exam data.
        data: "exam", one sample an exam; "frame", every frame is a sample of its own with the exam's text (previous
            works); "swapped", the findings that the teacher reads are another exam's (control).
        cached: the teacher's scores are made once after stage 1; else it runs in every step.
        settings: further variables of scripts/train.sh, for stage 2.
        group: "paper", "baseline", "ours" or "default" (a setting beside the default one).
    """

    title: str
    strategy: str
    stage1: str = "base"
    questions: str = "with_site"
    data: str = "exam"
    cached: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    group: str = "ours"


def _best(title: str, stage1: str = "base", **more: str) -> Row:
    """One change from `best`."""
    return Row(title, "likelihood", stage1, cached=True, settings=more, group="default")


ROWS: dict[str, Row] = {
    "full": Row("SAM + CLIP, Func.b (the paper)", "attention", settings={"ADR_LAYERS": "1"}, group="paper"),
    "func_a": Row("Func.a instead", "feature", settings={"ADR_WEIGHTS": "token_channel"}, group="paper"),
    "no_sampler": Row("no sampler, text for every frame", "none", data="frame", group="paper"),
    "best": Row("SAM + CLIP, likelihood teacher (ours)", "likelihood", cached=True),
    "no_sam": Row("ours without SAM", "likelihood", "no_sam", cached=True),
    "concat": Row("ours, channels concatenated", "likelihood", "concat", cached=True),
    "no_site": Row("ours, no site in questions", "likelihood", questions="without_site", cached=True),
    "all_frames": Row("all frames", "all", group="baseline"),
    "first": Row("first frame", "first", group="baseline"),
    "random": Row("random frame", "random", group="baseline"),
    "oracle": Row("a valid frame (oracle)", "oracle", group="baseline"),
    "best_swapped": Row("ours, findings of another exam", "likelihood", data="swapped", cached=True),
    "full_swapped": Row(
        "Func.b, findings of another exam", "attention", data="swapped", settings={"ADR_LAYERS": "1"}, group="paper"
    ),
}
"""The table, in its order."""

DEFAULTS: dict[str, Row] = {
    "weights_token_channel": _best("weights token_channel", ADR_WEIGHTS="token_channel"),
    "weights_token": _best("weights token", ADR_WEIGHTS="token"),
    "alpha_channel": _best("alpha a channel", "channel_alpha"),
    "merge_pool": _best("SAM cells pooled", "pool"),
    "temperature_0.1": _best("temperature 0.1", ADR_TEMPERATURE="0.1"),
    "temperature_2": _best("temperature 2", ADR_TEMPERATURE="2"),
    "lambda_0.1": _best("lambda 0.1", ADR_LOSS_WEIGHT="0.1"),
    "lambda_10": _best("lambda 10", ADR_LOSS_WEIGHT="10"),
    "select_by_teacher": _best("training picks by the teacher", ADR_SELECT_BY="teacher"),
    "likelihood_n2": _best("likelihood after 2 layers", ADR_LAYERS="2"),
    "attention_n2": Row("Func.b, N = 2", "attention", settings={"ADR_LAYERS": "2"}, group="default"),
    "attention_n2_swapped": Row(
        "Func.b, N = 2, findings of another exam",
        "attention",
        data="swapped",
        settings={"ADR_LAYERS": "2"},
        group="default",
    ),
    "attention_n4": Row("Func.b, N = 4 (all)", "attention", settings={"ADR_LAYERS": "4"}, group="default"),
    "func_a_channel": Row("Func.a, weights channel", "feature", group="default"),
}
"""Settings beside the defaults: `--rows defaults`."""

BEYOND: dict[str, Row] = {
    "answer_teacher": Row("teacher reads the answer", "likelihood", settings={"ADR_TEACHER_TEXT": "answer"}),
    "question_aware": Row(
        "score knows the question",
        "likelihood",
        settings={"ADR_TEACHER_TEXT": "answer", "ADR_QUESTION_RANK": "16"},
    ),
    "top_2": _best("two frames", ADR_TOP_K="2"),
    "top_2_coverage": _best("two frames that cover", ADR_TOP_K="2", ADR_COVERAGE="1"),
}
"""What goes beyond the paper's sampler: `--rows beyond`."""

ALL = {**ROWS, **DEFAULTS, **BEYOND}


PHANTOM = {
    "sites": "thyroid,breast,liver",
    "lesion-scale": "1.45",
    "detail-scale": "1.6",
    "doppler-exams": "0.5",
    "edge-frames": "0.15",
    "plain": "",
}
"""What encoders and a language model of a few processor minutes can learn; the generator's own defaults are harder.

Our choice: with all six sites, usual sizes and free wording, a linear probe on frozen features found the valid frame
in two of three exams, so that no sampler could have done better.
"""


@dataclass(frozen=True)
class Scale:
    """How large a run is.

    Args:
        size: side of a frame in pixels.
        phantom: further settings of the phantom, as flags of `llava-ultra phantom`.
        exams, held_out: training and held-out exams.
        pairs: exams of one frame, for stage 1.
        frames: fewest and most frames of an exam.
        reading_exams: exams of other seeds that the small foundation models learn from.
        clip_steps, sam_steps, llama_steps: their training.
        stage1_steps, stage2_steps, batch: of every row.
    """

    exams: int
    held_out: int
    pairs: int
    reading_exams: int
    clip_steps: int
    sam_steps: int
    llama_steps: int
    stage1_steps: int
    stage2_steps: int
    size: int = 192
    frames: tuple[int, int] = (2, 8)
    batch: int = 16
    phantom: Mapping[str, str] = field(default_factory=lambda: dict(PHANTOM))


SCALES = {
    "smoke": Scale(24, 30, 8, 24, 4, 4, 4, 2, 2, batch=4, frames=(2, 4)),
    "quick": Scale(480, 42, 700, 1000, 80, 700, 400, 130, 40, batch=8),
    "full": Scale(1000, 120, 1500, 1500, 120, 1400, 1000, 250, 110, batch=8),
}
"""smoke: for the tests; it shows that every step runs, its numbers mean nothing."""
