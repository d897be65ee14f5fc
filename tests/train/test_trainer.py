"""What `UltraTrainer` does to a batch and when it measures; the whole of it runs in test_resume.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer

from llava_ultra_ext.activate import arm

arm()

from llava_ultra_ext.train.trainer import GAP_EVERY, UltraTrainer  # noqa: E402


def bare_trainer(**state: Any) -> Any:
    trainer = UltraTrainer.__new__(UltraTrainer)
    trainer.args = SimpleNamespace(device=torch.device("cpu"))
    trainer.state = SimpleNamespace(**state)
    trainer._gap_measured = -1
    return trainer


def test_scores_of_the_file_are_not_rounded_to_the_training_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near-identical frames differ in the third digit, which bf16 does not have."""

    def as_deepspeed_does(self: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}

    monkeypatch.setattr(Trainer, "_prepare_inputs", as_deepspeed_does)
    scores = torch.tensor([-2.31, -2.312, -2.318, -2.305])
    prepared = bare_trainer()._prepare_inputs({"frame_scores": scores.clone(), "other": torch.ones(1)})
    assert prepared["frame_scores"].tolist() == scores.tolist()
    assert prepared["other"].dtype == torch.bfloat16


@pytest.mark.parametrize("max_steps, expected", [(1000, [49, 99, 149]), (20, [1, 3, 5]), (3, [0, 1, 2])])
def test_the_gap_is_measured_on_one_micro_batch_now_and_then(max_steps: int, expected: list[int]) -> None:
    trainer = bare_trainer(global_step=0, max_steps=max_steps)
    measured = []
    for step in range(min(max_steps, 3 * GAP_EVERY)):
        trainer.state.global_step = step
        measured += [step for _ in range(4) if trainer._measures_gap()]
    assert measured[:3] == expected
