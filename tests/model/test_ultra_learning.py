"""What is learnt: where gradients go, what the teacher says, and what the loss is made of. Real small models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_ultra import (
    EXAM,
    FINDINGS,
    OTHER,
    QUESTION,
    SINGLE,
    TEXT,
    TWO_GROUPS,
    T,
    batch_of,
    pictures,
    prompt_ids,
    watching,
)

from llava_ultra_ext.model.groups import find_groups
from llava_ultra_ext.vision.distillation import adr_loss

pytest.importorskip("llava")


def gradients(made: Any, strategy: str) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients by name after one training step's backward."""
    model = made.wrapped.train()
    batch = batch_of(made.tokenizer, [EXAM, SINGLE, TEXT, TWO_GROUPS])
    torch.manual_seed(0)
    output = model(images=pictures(9), **batch)
    output.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found, output.loss.item()


class TestGradients:
    @pytest.mark.parametrize("strategy", ["feature", "likelihood", "attention"])
    @pytest.mark.parametrize("stage", [1, 2])
    def test_they_reach_p1_p2_alpha_and_w_and_no_encoder(self, build: Any, strategy: str, stage: int) -> None:
        made = build(adr_strategy=strategy, peft=stage == 2)
        model = made.model
        if stage == 1:  # as train() with --tune_mm_mlp_adapter
            model.requires_grad_(False)
            model.get_model().mm_projector.requires_grad_(True)
        encoders = {id(p) for p in model.get_vision_tower().parameters()}
        assert encoders and not encoders & {id(p) for p in made.wrapped.parameters()}
        plain, loss = gradients(made, strategy)
        weights = ["sampler.channel_weights"] + ["sampler.token_weights"] * (strategy == "feature")
        expected = {
            "projections.clip.weight",
            "projections.clip.bias",
            "projections.sam.weight",
            "projections.sam.bias",
        }
        expected |= {"fusion.logits", *weights}
        ours = {name.split("mm_projector.")[1]: value for name, value in plain.items() if "mm_projector." in name}
        assert set(ours) == expected
        assert all(value.abs().max() > 1e-7 for value in ours.values())
        others = [name for name in plain if "mm_projector." not in name]
        assert all("lora_" in name for name in others) and bool(others) == (stage == 2)
        assert all(p.grad is None and not p.requires_grad for p in model.get_vision_tower().parameters())

        made.wrapped.gradient_checkpointing_enable()
        made.wrapped.enable_input_require_grads()
        checkpointed, other = gradients(made, strategy)
        assert model.get_model().gradient_checkpointing
        assert other == pytest.approx(loss, abs=1e-6)
        assert set(checkpointed) == set(plain)
        for name, value in plain.items():
            assert torch.allclose(checkpointed[name], value, atol=1e-6), name

    @pytest.mark.parametrize("strategy", ["none", "first", "random", "all"])
    def test_w_takes_part_with_a_zero_when_nothing_teaches_it(self, build: Any, strategy: str) -> None:
        """So that the ranks of a ZeRO-3 run walk one graph."""
        made = build(adr_strategy=strategy)
        found, _ = gradients(made, strategy)
        assert found["model.mm_projector.sampler.channel_weights"].abs().max() == 0

    def test_the_answers_gradient_reaches_w_only_under_feature(self, build: Any) -> None:
        for strategy, reaches in (("feature", True), ("likelihood", False)):
            made = build(adr_strategy=strategy, adr_loss_weight=0.0)
            found, _ = gradients(made, strategy)
            assert (found["model.mm_projector.sampler.channel_weights"].abs().max() > 0) == reaches

    def test_a_trainable_neck_learns_too(self, build: Any) -> None:
        made = build(adr_strategy="feature", sam_trainable="neck")
        found, _ = gradients(made, "feature")
        neck = {name for name in found if "mm_projector.neck." in name}
        assert len(neck) == 6 and all(found[name].abs().max() > 0 for name in neck)


class TestTeacher:
    @pytest.mark.parametrize("strategy", ["attention", "likelihood"])
    def test_permuting_an_exams_frames_permutes_every_score(self, build: Any, strategy: str) -> None:
        made = build(adr_strategy=strategy)
        model, frames = made.model.eval(), pictures(7)
        order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
        ids = prompt_ids(made.tokenizer, "<image>\n" * 7 + QUESTION)
        batch = batch_of(made.tokenizer, [EXAM])
        groups = find_groups([ids.tolist()], set(model.settings.separator_ids), 7)
        scores = {}
        for name, images in (("plain", frames), ("permuted", frames[order])):
            with torch.no_grad():
                h = model.encode_images(images)
                teacher = model.score_frames(h, groups, batch["findings_ids"], batch["findings_mask"])
            model.generate(ids[None], images=images, do_sample=False, max_new_tokens=1)
            student = torch.tensor(model.last_choices[0].scores)
            scores[name] = (teacher, student, model.last_choices[0].frames[0])
        assert torch.equal(scores["plain"][0][order], scores["permuted"][0])
        assert torch.equal(scores["plain"][1][order], scores["permuted"][1])
        assert int(order[scores["permuted"][2]]) == scores["plain"][2]
        assert len(set(scores["plain"][0].tolist())) == 7

    def test_frames_without_rivals_or_findings_have_no_score(self, build: Any) -> None:
        model_and = build(adr_strategy="likelihood")
        model = model_and.model
        rows = [(*SINGLE[:2], FINDINGS), EXAM, ("<image>\n<image>\n" + QUESTION, "结节。", "")]
        batch = batch_of(model_and.tokenizer, [*rows, TEXT])
        ids = [row[mask].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        groups = find_groups(ids, set(model.settings.separator_ids), 7)
        scores = model.score_frames(
            model.encode_images(pictures(7)), groups, batch["findings_ids"], batch["findings_mask"]
        )
        assert torch.isfinite(scores).tolist() == [False, True, True, True, False, False, False]

    def test_the_loss_is_lm_plus_lambda_times_eq_5(self, build: Any) -> None:
        made = build(adr_strategy="likelihood", adr_loss_weight=0.25, adr_temperature=0.8)
        model, frames = made.model.train(), pictures(3)
        batch = batch_of(made.tokenizer, [EXAM])
        loss = model(images=frames, **batch).loss
        found = model.exam_statistics
        h = model.encode_images(frames)
        groups = find_groups([batch["input_ids"][0].tolist()], set(model.settings.separator_ids), 3)
        teacher = model.score_frames(h, groups, batch["findings_ids"], batch["findings_mask"])
        expected = adr_loss(teacher, model.get_model().mm_projector.sampler(h), [3], 0.8)
        assert found["adr_loss"].item() == pytest.approx(expected.item(), abs=1e-6)
        assert loss.item() == pytest.approx(found["lm_loss"].item() + 0.25 * expected.item(), abs=1e-6)
        assert model.eval()(images=frames, **batch).loss.item() == pytest.approx(found["lm_loss"].item(), abs=1e-6)

    def test_scores_from_a_file_replace_the_teacher(self, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        made = build(adr_strategy="likelihood", adr_select_by="teacher")
        model = made.model.train()
        model.scores_from_file = True
        monkeypatch.setattr(model, "score_frames", lambda *_: pytest.fail("the teacher ran"))
        batch = batch_of(made.tokenizer, [EXAM])
        h = model.encode_images(pictures(3))
        for given in ([-1.0, -3.0, -2.0], [-3.0, -2.0, -1.0]):
            scores = torch.tensor(given)
            with watching(model) as seen:
                model(images=pictures(3), frame_scores=scores, **batch)
            expected = adr_loss(scores, model.get_model().mm_projector.sampler(h), [3], 0.5)
            assert model.exam_statistics["adr_loss"].item() == pytest.approx(expected.item(), abs=1e-6)
            assert torch.equal(seen[0][0, 1 : 1 + T], h[scores.argmax()]), "select_by teacher"

    def test_the_gap_compares_with_another_exams_findings(self, build: Any) -> None:
        made = build(adr_strategy="likelihood")
        model = made.model.train()
        one, other = EXAM, (EXAM[0], EXAM[1], OTHER)
        batch = batch_of(made.tokenizer, [one, other])
        model(images=pictures(6), **batch)
        assert "adr_teacher_gap" not in model.exam_statistics
        model.measure_gap = True
        model(images=pictures(6), **batch)
        assert 0 < model.exam_statistics["adr_teacher_gap"].item() <= 1
        model(images=pictures(6), **batch_of(made.tokenizer, [one, one]))
        assert model.exam_statistics["adr_teacher_gap"].isnan(), "two questions about one exam say nothing of it"
        model(images=pictures(3), **batch_of(made.tokenizer, [other]))
        assert model.exam_statistics["adr_teacher_gap"].item() > 0, "a batch of one takes the batch before"

    def test_warmup_picks_at_random_in_training_only(self, build: Any) -> None:
        made = build(adr_strategy="likelihood")
        model, frames = made.model.train(), pictures(6)
        batch = batch_of(made.tokenizer, [("<image>\n" * 6 + QUESTION, "结节。", FINDINGS)])
        h = model.encode_images(frames)
        best = int(model.get_model().mm_projector.sampler(h).argmax())

        def picked(times: int) -> set[int]:
            found = set()
            for seed in range(times):
                torch.manual_seed(seed)
                with watching(model) as seen:
                    model(images=frames, **batch)
                found |= {frame for frame in range(6) if torch.equal(seen[0][0, 1 : 1 + T], h[frame])}
            return found

        model.warmup = True
        assert len(picked(12)) > 2
        model.warmup = False
        assert picked(4) == {best}
        model.warmup = True
        model.eval()
        assert picked(4) == {best}
