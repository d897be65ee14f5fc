"""The small models are real ones: transformers opens them, again and again with the same numbers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    CLIPVisionModel,
    Dinov2Model,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralForCausalLM,
    SamModel,
)

import tiny_models
from tiny_tokenizer import CORPUS, make_tokenizer, read_corpus


def _pixels(size):
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_clip_opens_as_vision_model_and_matches_a_second_making(tiny_clip, tmp_path):
    first = CLIPVisionModel.from_pretrained(tiny_clip).eval()
    again = CLIPVisionModel.from_pretrained(tiny_models.make_clip(tmp_path / "clip")).eval()
    other = CLIPVisionModel.from_pretrained(tiny_models.make_clip(tmp_path / "other", seed=1)).eval()
    with torch.no_grad():
        outputs = [model(_pixels(32)).last_hidden_state for model in (first, again, other)]
    assert outputs[0].shape == (1, 1 + 4 * 4, 32)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=0.1)
    assert AutoImageProcessor.from_pretrained(tiny_clip).crop_size == {"height": 32, "width": 32}


def test_sam_grid_neck_and_nonzero_positions(tiny_sam):
    model = SamModel.from_pretrained(tiny_sam).eval()
    with torch.no_grad():
        neck = model.get_image_embeddings(_pixels(128))
    assert neck.shape == (1, 16, 8, 8)
    state = model.vision_encoder.state_dict()
    assert all(state[name].abs().max() > 0 for name in state), "a table of zeros would hide a loader that drops it"
    assert state["layers.0.attn.rel_pos_h"].shape == (2 * 4 - 1, 16)  # window of 4
    assert state["layers.1.attn.rel_pos_h"].shape == (2 * 8 - 1, 16)  # the whole grid


def test_sam_pth_holds_the_same_numbers_under_the_other_names(tiny_sam, tiny_sam_pth):
    theirs = torch.load(tiny_sam_pth, weights_only=True)
    ours = SamModel.from_pretrained(tiny_sam).vision_encoder.state_dict()
    encoder = {name: value for name, value in theirs.items() if name.startswith("image_encoder.")}
    assert len(encoder) == len(ours)
    for ours_name, theirs_name in (
        ("pos_embed", "image_encoder.pos_embed"),
        ("patch_embed.projection.weight", "image_encoder.patch_embed.proj.weight"),
        ("layers.3.attn.rel_pos_w", "image_encoder.blocks.3.attn.rel_pos_w"),
        ("layers.0.layer_norm2.bias", "image_encoder.blocks.0.norm2.bias"),
        ("layers.2.mlp.lin1.weight", "image_encoder.blocks.2.mlp.lin1.weight"),
        ("neck.conv2.weight", "image_encoder.neck.2.weight"),
        ("neck.layer_norm2.weight", "image_encoder.neck.3.weight"),
    ):
        assert torch.equal(ours[ours_name], encoder[theirs_name]), theirs_name
    assert len(theirs) > len(encoder)


def test_dinov2_grid(tiny_dinov2):
    with torch.no_grad():
        assert Dinov2Model.from_pretrained(tiny_dinov2).eval()(_pixels(56)).last_hidden_state.shape == (
            1,
            1 + 4 * 4,
            32,
        )


@pytest.mark.parametrize(("fixture", "kind"), [("tiny_llama", LlamaForCausalLM), ("tiny_mistral", MistralForCausalLM)])
def test_language_models_reload_with_equal_logits(fixture, kind, request, tmp_path):
    folder = request.getfixturevalue(fixture)
    make = tiny_models.make_llama if kind is LlamaForCausalLM else tiny_models.make_mistral
    ids = LlamaTokenizer.from_pretrained(folder)("超声所见", return_tensors="pt").input_ids
    with torch.no_grad():
        first, again = (kind.from_pretrained(path)(ids).logits for path in (folder, make(tmp_path / "again")))
    assert torch.equal(first, again)
    assert first.shape[-1] == len(LlamaTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("legacy", [True, False])
def test_tokenizer_covers_its_corpus_without_bytes(legacy, tiny_llama, tiny_llama_new_tokenizer):
    tokenizer = LlamaTokenizer.from_pretrained(tiny_llama if legacy else tiny_llama_new_tokenizer)
    assert tokenizer.legacy is legacy
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for line in CORPUS:
        ids = tokenizer(line).input_ids
        pieces = tokenizer.convert_ids_to_tokens(ids[1:])
        assert ids[0] == tokenizer.bos_token_id and not any(piece.startswith("<0x") for piece in pieces), line
        assert tokenizer.decode(ids, skip_special_tokens=True) == line
    unseen = "鼹鼠"
    assert tokenizer.decode(tokenizer(unseen).input_ids, skip_special_tokens=True) == unseen  # through bytes


def test_legacy_differs_after_a_special_token(tiny_llama, tiny_llama_new_tokenizer):
    old, new = (LlamaTokenizer.from_pretrained(folder) for folder in (tiny_llama, tiny_llama_new_tokenizer))
    text = "</s>用户：肝脏"
    assert old(text).input_ids != new(text).input_ids


def test_equal_corpora_give_equal_tokenizers(tmp_path):
    first, again = (make_tokenizer(tmp_path / name, ["肝脏大小正常。"] * 3) for name in ("a", "b"))
    assert (first / "tokenizer.model").read_bytes() == (again / "tokenizer.model").read_bytes()


def test_tokenizer_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(ValueError, match="needs at least"):
        make_tokenizer(tmp_path / "small", CORPUS, vocab_size=300)
    with pytest.raises(ValueError, match="empty"):
        make_tokenizer(tmp_path / "empty", ["", "  "])
    assert not list(tmp_path.iterdir()), "a failed making leaves nothing behind"


def test_read_corpus_takes_texts_and_no_paths(exam_folder, tmp_path):
    lines = tmp_path / "questions.jsonl"
    lines.write_text(json.dumps({"question_id": 7, "image": "a.png", "text": "胆囊如何？"}) + "\n", encoding="utf-8")
    texts = read_corpus([exam_folder / "train.json", lines])
    assert "胆囊如何？" in texts and "No." in texts
    assert not any(".png" in text for text in texts)


def test_making_a_model_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tiny_models.main(["clip", str(tmp_path / "clip"), "--seed", "9"])
    assert torch.equal(torch.rand(2), expected)
