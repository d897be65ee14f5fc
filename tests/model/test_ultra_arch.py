"""From frames to the LLM's input: what enters it, which frame it is, and what is answered. Real small models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_ultra import EXAM, FINDINGS, QUESTION, SINGLE, TEXT, TWO_GROUPS, T, batch_of, pictures, prompt_ids, watching

pytest.importorskip("llava")
from llava_ultra_ext.model.ultra_arch import ExamInputs


@pytest.fixture(scope="module")
def feature(build: Any) -> Any:
    """A model that tests leave as it is; most run in eval mode."""
    made = build(adr_strategy="feature")
    made.model.eval()
    return made


def embed(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.get_model().embed_tokens(ids)


class TestWhatEnters:
    @pytest.mark.parametrize("mode", ["training", "generate"])
    def test_as_many_tokens_for_1_4_and_12_frames(self, feature: Any, mode: str) -> None:
        model, entered = feature.model, {}
        for k in (1, 4, 12):
            with watching(model) as seen:
                if mode == "generate":
                    ids = prompt_ids(feature.tokenizer, "<image>\n" * k + QUESTION)[None]
                    model.generate(ids, images=pictures(k), do_sample=False, max_new_tokens=2)
                else:
                    batch = batch_of(feature.tokenizer, [("<image>\n" * k + QUESTION, "结节。", FINDINGS)])
                    model.train()
                    model(images=pictures(k), **batch)
                    model.eval()
            entered[k] = seen[0]
        assert entered[1].shape == entered[4].shape == entered[12].shape
        text = torch.ones(entered[1].shape[1], dtype=torch.bool)
        start = entered[1].shape[1] - T - (prompt_ids(feature.tokenizer, "<image>\n" + QUESTION).shape[0] - 2)
        if mode == "training":
            start -= len(feature.tokenizer("结节。", add_special_tokens=False).input_ids)
        text[start : start + T] = False
        assert torch.equal(entered[1][:, text], entered[12][:, text]), "and the words are the same"
        assert not torch.equal(entered[1][:, ~text], entered[12][:, ~text])

    def test_the_chosen_frames_features_are_spliced_in_place(self, feature: Any) -> None:
        model, frames = feature.model, pictures(5)
        h = model.encode_images(frames)
        best = int(model.get_model().mm_projector.sampler(h).argmax())
        ids = prompt_ids(feature.tokenizer, "请看\n" + "<image>\n" * 5 + QUESTION)
        with watching(model) as seen:
            model.generate(ids[None], images=frames, do_sample=False, max_new_tokens=1)
        first = ids.tolist().index(-200)
        last = len(ids) - ids.tolist()[::-1].index(-200)
        expected = torch.cat([embed(model, ids[:first]), h[best], embed(model, ids[last:])])
        assert torch.equal(seen[0][0], expected)
        (choice,) = model.last_choices
        assert (choice.row, choice.frames) == (0, [best])
        assert choice.scores == model.get_model().mm_projector.sampler(h).tolist()

    def test_h_v_is_equation_2(self, feature: Any) -> None:
        model, frames = feature.model, pictures(2)
        features = model.get_vision_tower()(frames)
        projector = model.get_model().mm_projector
        alpha = torch.sigmoid(projector.fusion.logits)
        expected = alpha * projector.projections["clip"](features["clip"])
        expected = expected + (1 - alpha) * projector.projections["sam"](features["sam"])
        assert torch.allclose(model.encode_images(frames), expected, atol=1e-6)

    def test_top_k_keeps_the_best_in_frame_order(self, build: Any) -> None:
        made = build(adr_strategy="feature", adr_top_k=2)
        model, frames = made.model.eval(), pictures(5)
        h = model.encode_images(frames)
        best = sorted(model.get_model().mm_projector.sampler(h).topk(2).indices.tolist())
        ids = prompt_ids(made.tokenizer, "<image>\n" * 5 + QUESTION)
        with watching(model) as seen:
            model.generate(ids[None], images=frames, do_sample=False, max_new_tokens=1)
        first, second = [place for place, token in enumerate(ids.tolist()) if token == -200][:2]
        last = len(ids) - ids.tolist()[::-1].index(-200)
        between = embed(model, ids[first + 1 : second])
        expected = torch.cat([embed(model, ids[:1]), h[best[0]], between, h[best[1]], embed(model, ids[last:])])
        assert torch.equal(seen[0][0], expected)
        assert model.last_choices[0].frames == best

    def test_all_keeps_everything_and_none_the_first(self, build: Any) -> None:
        for strategy, kept in (("all", [0, 1, 2]), ("none", [0]), ("first", [0])):
            made = build(adr_strategy=strategy)
            ids = prompt_ids(made.tokenizer, "<image>\n" * 3 + QUESTION)
            with watching(made.model.eval()) as seen:
                made.model.generate(ids[None], images=pictures(3), do_sample=False, max_new_tokens=1)
            assert made.model.last_choices[0].frames == kept
            first, second = [place for place, token in enumerate(ids.tolist()) if token == -200][:2]
            separators = (second - first - 1) * (3 - len(kept))
            assert seen[0].shape[1] == len(ids) - 3 - separators + len(kept) * T

    def test_one_token_for_k_images_is_the_same_as_k_tokens(self, feature: Any) -> None:
        frames, entered = pictures(4), []
        for text in ("<image>\n" + QUESTION, "<image>\n" * 4 + QUESTION):
            with watching(feature.model) as seen:
                feature.model.generate(
                    prompt_ids(feature.tokenizer, text)[None], images=frames, do_sample=False, max_new_tokens=1
                )
            entered.append(seen[0])
        assert torch.equal(*entered)

    def test_images_as_lists_and_five_dimensions(self, feature: Any) -> None:
        ids, frames, entered = prompt_ids(feature.tokenizer, "<image>\n" * 3 + QUESTION)[None], pictures(3), []
        for images in (frames, [frames], frames[None], list(frames)):
            with watching(feature.model) as seen:
                feature.model.generate(ids, images=images, do_sample=False, max_new_tokens=1)
            entered.append(seen[0])
        assert all(torch.equal(entered[0], other) for other in entered[1:])

    def test_images_in_different_turns_are_chosen_apart(self, feature: Any) -> None:
        model, frames = feature.model, pictures(4)
        scores = model.get_model().mm_projector.sampler(model.encode_images(frames))
        ids = prompt_ids(feature.tokenizer, TWO_GROUPS[0])[None]
        model.generate(ids, images=frames, do_sample=False, max_new_tokens=1)
        expected = [int(scores[:2].argmax()), int(scores[2:].argmax())]
        assert [choice.frames for choice in model.last_choices] == [[expected[0]], [expected[1]]]

    @pytest.mark.parametrize("images", [1, 3])
    def test_a_mismatch_is_refused_in_training_and_inference(self, feature: Any, images: int) -> None:
        batch = batch_of(feature.tokenizer, [("<image>\n<image>\n" + QUESTION, "结节。", FINDINGS)])
        message = f"Row 0 has {images} images but 2 <image> tokens"
        with pytest.raises(ValueError, match=message):
            feature.model(images=pictures(images), **batch)
        with pytest.raises(ValueError, match=message):
            feature.model.generate(batch["input_ids"], images=pictures(images), max_new_tokens=1)


class TestAgainstStock:
    def test_strategy_first_is_llavas_splice_on_the_first_frame(self, build: Any, tiny_llama: Path) -> None:
        """The reference is spliced by hand and run through transformers' own class."""
        from transformers import LlamaForCausalLM

        reference = LlamaForCausalLM.from_pretrained(tiny_llama)
        made = build(adr_strategy="first")
        model, rows = made.model.eval(), [EXAM, SINGLE, TEXT, TWO_GROUPS]
        frames = pictures(3 + 1 + 1 + 4)
        batch = batch_of(made.tokenizer, rows)
        loss = model(images=frames, **batch).loss
        h = model.encode_images(frames)
        firsts, total, count = {0: [0], 1: [3], 2: [], 3: [5, 7]}, 0.0, 0
        for row, (question, answer, _) in enumerate(rows):
            for tokens in ("<image>\n" * 3, "<image>\n<image>\n"):
                question = question.replace(tokens, "<image>\n")
            head = prompt_ids(made.tokenizer, question)
            tail = torch.tensor(made.tokenizer(answer, add_special_tokens=False).input_ids)
            parts, labels, chosen = [], [], list(firsts[row])
            for token in head.tolist():
                parts.append(h[chosen.pop(0)] if token == -200 else embed(model, torch.tensor([token])))
                labels += [-100] * len(parts[-1])
            parts.append(embed(model, tail))
            labels = torch.tensor(labels + tail.tolist())
            output = reference(inputs_embeds=torch.cat(parts)[None], labels=labels[None])
            total, count = total + output.loss * len(tail), count + len(tail)
        assert loss.item() == pytest.approx((total / count).item(), abs=1e-5)

    def test_a_mixed_batch_gives_each_row_the_loss_it_has_alone(self, build: Any) -> None:
        made = build(adr_strategy="likelihood", adr_loss_weight=1.0)
        model, rows = made.model.train(), [EXAM, TEXT, SINGLE, TWO_GROUPS]
        frames = pictures(3 + 1 + 1 + 4)
        parts = frames.split([3, 1, 1, 4])
        batch = batch_of(made.tokenizer, rows)
        model(images=frames, **batch)
        together = model.exam_statistics
        answers = [len(made.tokenizer(answer, add_special_tokens=False).input_ids) for _, answer, _ in rows]
        alone, distilled = [], []
        for row, images in zip(rows, parts, strict=True):
            model(images=images, **batch_of(made.tokenizer, [row]))
            alone.append(model.exam_statistics["lm_loss"].item())
            distilled.append(model.exam_statistics["adr_loss"].item())
        mean = sum(loss * n for loss, n in zip(alone, answers, strict=True)) / sum(answers)
        assert together["lm_loss"].item() == pytest.approx(mean, abs=1e-5)
        assert len({round(loss, 4) for loss in alone}) == 4
        # One group of EXAM, none of TEXT and SINGLE, two of TWO_GROUPS.
        assert distilled[1:3] == [0.0, 0.0] and min(distilled[0], distilled[3]) > 0.1
        assert together["adr_loss"].item() == pytest.approx((distilled[0] + 2 * distilled[3]) / 3, abs=1e-5)

    def test_a_text_only_row_may_come_without_a_picture(self, feature: Any) -> None:
        losses = []
        for rows, images in (([EXAM, TEXT], pictures(4)), ([EXAM, TEXT], pictures(3)), ([TEXT, EXAM], pictures(3))):
            batch = batch_of(feature.tokenizer, rows)
            losses.append(feature.model(images=images, **batch).loss.item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
        assert losses[0] == pytest.approx(losses[2], abs=1e-6)


def test_oracle_reads_the_valid_frames(build: Any) -> None:
    made = build(adr_strategy="oracle")
    model = made.model.eval()
    ids = prompt_ids(made.tokenizer, TWO_GROUPS[0])[None]
    valid = torch.tensor([False, True, True, True])
    model.generate(ids, images=pictures(4), valid_frames=valid, do_sample=False, max_new_tokens=1)
    assert [choice.frames for choice in model.last_choices] == [[1], [0]]
    with pytest.raises(ValueError, match="valid_frames"):
        model.generate(ids, images=pictures(4), do_sample=False, max_new_tokens=1)


def test_what_came_with_a_batch_stays_in_its_thread_and_ends_with_it(build: Any) -> None:
    """The worker answers in threads; an oracle without its own `valid_frames` must not use another request's."""
    model_and = build(adr_strategy="oracle")
    model, ids = model_and.model.eval(), prompt_ids(model_and.tokenizer, TWO_GROUPS[0])[None]

    def refused(_: Any = None) -> bool:
        with pytest.raises(ValueError, match="valid_frames"):
            model.prepare_inputs_labels_for_multimodal(ids, None, None, None, None, pictures(4))
        return True

    with model.exam_inputs(ExamInputs(valid_frames=torch.ones(4, dtype=torch.bool))) as inputs:
        with ThreadPoolExecutor(1) as other:
            assert list(other.map(refused, [0])) == [True]
        model.prepare_inputs_labels_for_multimodal(ids, None, None, None, None, pictures(4))
        assert [choice.frames for choice in inputs.choices()] == [[0], [0]]
    assert refused()


@pytest.mark.parametrize("base", ["llama", "mistral"])
def test_a_left_padded_batch_answers_as_each_row_alone(build: Any, base: str) -> None:
    made = build(base=base, adr_strategy="feature")
    model = made.model.eval()
    model.config.tokenizer_padding_side = "left"
    rows = [EXAM, TEXT, SINGLE, TWO_GROUPS]
    parts = pictures(9).split([3, 1, 1, 4])
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": -1}
    alone, chosen = [], []
    for (question, _, _), images in zip(rows, parts, strict=True):
        alone.append(model.generate(prompt_ids(made.tokenizer, question)[None], images=images, **options)[0].tolist())
        chosen += [(choice.frames, choice.scores) for choice in model.last_choices]
    ids = [prompt_ids(made.tokenizer, question) for question, _, _ in rows]
    longest = max(map(len, ids))
    padded = torch.stack([torch.cat([row.new_zeros(longest - len(row)), row]) for row in ids])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in ids])
    together = model.generate(padded, images=torch.cat(parts), attention_mask=mask, **options)
    assert together.tolist() == alone
    assert len({tuple(tokens) for tokens in alone}) == 4
    assert [choice.row for choice in model.last_choices] == [0, 2, 3, 3]
    for found, (frames, scores) in zip(model.last_choices, chosen, strict=True):
        assert found.frames == frames and found.scores == pytest.approx(scores, abs=1e-6)


class TestStreamer:
    class Listener:
        def __init__(self) -> None:
            self.told: list[Any] = []

        def put(self, tokens: torch.Tensor) -> None:
            self.told.append("token")

        def end(self) -> None:
            self.told.append("end")

        def on_choice(self, choices: list[Any]) -> None:
            self.told.append(choices)

    def test_it_hears_of_the_choice_before_the_first_token(self, feature: Any) -> None:
        listener = self.Listener()
        ids = prompt_ids(feature.tokenizer, "<image>\n" * 4 + QUESTION)[None]
        feature.model.generate(ids, images=pictures(4), do_sample=False, max_new_tokens=2, streamer=listener)
        assert listener.told[0] == list(feature.model.last_choices)
        assert listener.told[-1] == "end" and "token" in listener.told

    def test_it_may_ask_where_the_scores_come_from(self, feature: Any) -> None:
        listener = self.Listener()
        listener.explain = True
        ids = prompt_ids(feature.tokenizer, "<image>\n" * 4 + QUESTION)[None]
        images = pictures(4)
        feature.model.generate(ids, images=images, do_sample=False, max_new_tokens=1, streamer=listener)
        [choice] = listener.told[0]
        [chosen] = choice.frames
        with torch.no_grad():
            parts = feature.model.get_model().mm_projector.sampler.contributions(feature.model.encode_images(images))
        [heat] = choice.heat
        assert len(heat) == T
        torch.testing.assert_close(torch.tensor(heat), parts[chosen] - parts.mean(0))
        assert sum(heat) == pytest.approx(choice.scores[chosen] - sum(choice.scores) / 4, abs=1e-5)

    def test_nobody_computes_what_was_not_asked_for(self, feature: Any) -> None:
        listener = self.Listener()
        ids = prompt_ids(feature.tokenizer, "<image>\n" * 4 + QUESTION)[None]
        feature.model.generate(ids, images=pictures(4), do_sample=False, max_new_tokens=1, streamer=listener)
        assert listener.told[0][0].heat == []

    def test_a_text_question_leaves_no_choice_behind(self, feature: Any) -> None:
        ids = prompt_ids(feature.tokenizer, "<image>\n" * 2 + QUESTION)[None]
        feature.model.generate(ids, images=pictures(2), do_sample=False, max_new_tokens=1)
        assert feature.model.last_choices
        feature.model.generate(prompt_ids(feature.tokenizer, QUESTION)[None], do_sample=False, max_new_tokens=1)
        assert not feature.model.last_choices
