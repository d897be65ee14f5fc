"""The sampler beyond the paper: scores that know the question, a teacher that reads the answer, picks that cover."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_ultra import EXAM, QUESTION, batch_of, pictures, prompt_ids

pytest.importorskip("llava")


def scores_of(model: Any, tokenizer: Any, question: str) -> list[float]:
    """Every frame's score as `generate` reports it."""
    ids = prompt_ids(tokenizer, "<image>\n" * 3 + question)[None]
    model.generate(ids, images=[pictures(3)], max_new_tokens=1, do_sample=False, pad_token_id=0)
    return list(model.last_choices[0].scores)


def test_a_question_aware_score_depends_on_the_question(build: Any) -> None:
    made = build(adr_question_rank=4)
    model = made.model.eval()
    plain = scores_of(model, made.tokenizer, QUESTION)
    assert plain == scores_of(model, made.tokenizer, "右侧有血流吗？")  # U is zero
    torch.manual_seed(0)
    model.get_model().mm_projector.sampler.question_out.data.normal_()
    first, second = (scores_of(model, made.tokenizer, text) for text in (QUESTION, "右侧有血流吗？"))
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 1e-3
    assert first == scores_of(model, made.tokenizer, QUESTION)


def test_what_the_question_adds_is_learnt_from_the_teacher(build: Any) -> None:
    made = build(adr_question_rank=4, adr_strategy="likelihood", adr_teacher_text="answer")
    model = made.model.train()
    torch.manual_seed(0)
    model(images=pictures(3), **batch_of(made.tokenizer, [EXAM])).loss.backward()
    scorer = model.get_model().mm_projector.sampler
    assert scorer.question_out.grad.abs().max() > 1e-6
    assert scorer.channel_weights.grad.abs().max() > 1e-6
    embeddings = model.get_model().embed_tokens.weight.grad
    model.zero_grad()
    model.settings.replace(adr_loss_weight=0.0).to_config(model.config)
    torch.manual_seed(0)
    model(images=pictures(3), **batch_of(made.tokenizer, [EXAM])).loss.backward()
    assert torch.equal(embeddings, model.get_model().embed_tokens.weight.grad)  # the LLM is not pulled by L_adr


def test_the_answer_teacher_is_the_answers_likelihood(build: Any) -> None:
    made = build(adr_strategy="likelihood", adr_teacher_text="answer")
    model, batch = made.model.train(), batch_of(made.tokenizer, [EXAM])
    seen: list[torch.Tensor] = []
    stock = type(model).score_frames
    model.score_frames = lambda *args: seen.append(stock(model, *args)) or seen[-1]
    model(images=pictures(3), **batch)
    with torch.no_grad():
        h = model.encode_images(pictures(3))
        text = batch["input_ids"][0][batch["input_ids"][0] != -200]
        labels = batch["labels"][0][batch["input_ids"][0] != -200]
        embed = model.get_model().embed_tokens
        words = torch.cat([torch.tensor([model.config.bos_token_id]), text])
        for frame in range(3):
            lead, rest = embed(words[:1]), embed(words[1:])
            hidden = model.get_model()(inputs_embeds=torch.cat([lead, h[frame], rest])[None]).last_hidden_state[0]
            logits = model.lm_head(hidden[h.shape[1] : -1]).log_softmax(-1)
            own = logits[torch.arange(len(text)), text][labels != -100]
            torch.testing.assert_close(seen[0][frame], own.mean(), rtol=1e-4, atol=1e-4)


def test_coverage_changes_which_frames_are_kept(build: Any) -> None:
    kept = {}
    for coverage in (0.0, 50.0):
        made = build(adr_top_k=2, adr_coverage=coverage)
        model = made.model.eval()
        frames = pictures(3)
        h = model.encode_images(frames)
        order = model.get_model().mm_projector.sampler(h).argsort(descending=True).tolist()
        best, second, third = order
        frames[second] = frames[best]  # the runner-up shows what the best one shows
        ids = prompt_ids(made.tokenizer, "<image>\n" * 3 + QUESTION)[None]
        model.generate(ids, images=[frames], max_new_tokens=1, do_sample=False, pad_token_id=0)
        kept[coverage] = set(model.last_choices[0].frames)
    assert kept[0.0] == {best, second}
    assert third in kept[50.0] and len(kept[50.0]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"adr_strategy": "attention", "adr_teacher_text": "answer"}, "only the likelihood teacher"),
        ({"adr_question_rank": 2, "adr_weights": "token"}, "Use channel or token_channel"),
        ({"adr_coverage": -1.0}, "must be 0 or more"),
        ({"adr_teacher_text": "history"}, "Allowed: findings, answer"),
    ],
)
def test_flags_that_do_not_fit_are_refused(build: Any, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**flags)
