"""Both teachers against transformers' own attention maps and loss, on tiny Llama and Mistral models."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.models.llama import modeling_llama

from llava_ultra_ext.model.teacher import attention_scores, likelihood_scores, passes_needed

N, T, D, E, L, V, BOS, DEPTH = 5, 4, 16, 2, 6, 30, 1, 3
EXAM_OF_FRAME = torch.tensor([0, 0, 1, 1, 1])
LENGTHS = [4, 6]
KINDS = [("llama", "eager"), ("llama", "sdpa"), ("mistral", "eager"), ("mistral", "sdpa")]


def make(kind: str = "llama", attention: str = "eager", **extra: object) -> nn.Module:
    torch.manual_seed(0)
    size = {"vocab_size": V, "hidden_size": D, "intermediate_size": 24, "num_hidden_layers": DEPTH}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.5}
    if kind == "llama":
        config, cls = LlamaConfig(**size, **heads, **extra), LlamaForCausalLM
    else:
        config, cls = MistralConfig(**size, **heads, **extra), MistralForCausalLM
    if attention == "sdpa" and not getattr(cls, "_supports_sdpa", False):
        pytest.skip("this transformers release has no sdpa attention for Mistral (4.36)")
    return cls._from_config(config, attn_implementation=attention).eval()


@pytest.fixture
def frames() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(N, T, D)


@pytest.fixture
def findings() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    mask = torch.arange(L) < torch.tensor(LENGTHS)[:, None]
    return torch.randint(3, V, (E, L)).masked_fill(~mask, 0), mask


@pytest.fixture(params=["attention", "likelihood"])
def score(request: pytest.FixtureRequest):
    """Either teacher, called the same way."""

    def call(model: nn.Module, *args: object, **kwargs: object) -> Tensor:
        llm = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
        if request.param == "attention":
            return attention_scores(llm, *args, **{"layers": 2, **kwargs})
        return likelihood_scores(llm, model.lm_head, *args, bos_token_id=BOS, **kwargs)

    return call


def by_hand_attention(model: nn.Module, frames: Tensor, ids: Tensor, layers: int) -> list[float]:
    """One frame and no padding at a time, from the eager model's own attention maps."""
    scores = []
    for i, exam in enumerate(EXAM_OF_FRAME.tolist()):
        text = model.model.embed_tokens(ids[exam, : LENGTHS[exam]])
        out = model(inputs_embeds=torch.cat([frames[i], text])[None], output_attentions=True)
        mass = [a[0, :, T:, :T].sum(-1).mean() for a in out.attentions[:layers]]
        scores.append(float(sum(mass) / layers))
    return scores


def by_hand_likelihood(model: nn.Module, frames: Tensor, ids: Tensor) -> list[float]:
    scores = []
    for i, exam in enumerate(EXAM_OF_FRAME.tolist()):
        words = ids[exam, : LENGTHS[exam]]
        embedded = model.model.embed_tokens(torch.cat([torch.tensor([BOS]), words]))
        labels = torch.cat([torch.full((1 + T,), -100), words])
        inputs = torch.cat([embedded[:1], frames[i], embedded[1:]])
        scores.append(-float(model(inputs_embeds=inputs[None], labels=labels[None]).loss))
    return scores


# ------------------------------------------------------------------------------------------------- values


@torch.no_grad()
@pytest.mark.parametrize(("kind", "attention"), KINDS)
@pytest.mark.parametrize("layers", [1, 2, DEPTH])
def test_attention_is_the_mass_of_the_models_own_maps(
    kind: str, attention: str, layers: int, frames: Tensor, findings: tuple[Tensor, Tensor]
) -> None:
    expected = by_hand_attention(make(kind), frames, findings[0], layers)
    found = attention_scores(make(kind, attention).model, frames, *findings, EXAM_OF_FRAME, layers=layers)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01


@torch.no_grad()
@pytest.mark.parametrize(("kind", "attention"), KINDS)
def test_likelihood_is_minus_the_models_own_loss(
    kind: str, attention: str, frames: Tensor, findings: tuple[Tensor, Tensor]
) -> None:
    model = make(kind, attention)
    expected = by_hand_likelihood(model, frames, findings[0])
    found = likelihood_scores(model.model, model.lm_head, frames, *findings, EXAM_OF_FRAME, bos_token_id=BOS)
    assert found.tolist() == pytest.approx(expected, abs=2e-5)
    assert max(expected) - min(expected) > 0.1


@torch.no_grad()
def test_early_exit_is_norm_and_head_after_that_layer(frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    model = make()
    short = make()
    short.model.layers = short.model.layers[:2]

    def found(layers: int | None) -> list[float]:
        head = (model.model, model.lm_head)
        scores = likelihood_scores(*head, frames, *findings, EXAM_OF_FRAME, bos_token_id=BOS, layers=layers)
        return scores.tolist()

    assert found(DEPTH) == found(None)
    assert found(2) == pytest.approx(by_hand_likelihood(short, frames, findings[0]), abs=2e-5)
    assert found(2) != pytest.approx(found(None), abs=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_sliding_window_hides_distant_image_tokens(
    attention: str, frames: Tensor, findings: tuple[Tensor, Tensor]
) -> None:
    expected = by_hand_attention(make("mistral", sliding_window=5), frames, findings[0], 2)
    model = make("mistral", attention, sliding_window=5)
    found = attention_scores(model.model, frames, *findings, EXAM_OF_FRAME, layers=2)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scaling", ["linear", "dynamic"])
def test_scaled_rotary_embeddings(scaling: str, frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    extra = {"rope_scaling": {"type": scaling, "factor": 2.0}, "max_position_embeddings": 16}
    model = make(**extra)
    found = attention_scores(model.model, frames, *findings, EXAM_OF_FRAME, layers=2)
    assert found.tolist() == pytest.approx(by_hand_attention(make(**extra), frames, findings[0], 2), abs=1e-5)


def test_flash_attention_gets_no_mask(
    score, frames: Tensor, findings: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel needs a GPU, so a plain causal attention stands in."""
    expected = score(make(), frames, *findings, EXAM_OF_FRAME)

    def flash(self, query, key, value, mask, query_length, dropout=0.0, softmax_scale=None):  # (B, S, heads, width)
        assert mask is None
        key, value = (x.repeat_interleave(query.shape[2] // x.shape[2], 2) for x in (key, value))
        logits = torch.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(query.shape[-1])
        seen = torch.ones(query_length, query_length).tril().bool()
        return torch.einsum("bhqk,bkhc->bqhc", logits.masked_fill(~seen, -1e9).softmax(-1), value)

    model = make()
    monkeypatch.setattr(modeling_llama.LlamaFlashAttention2, "_flash_attention_forward", flash)
    for layer in model.model.layers:
        layer.self_attn.__class__ = modeling_llama.LlamaFlashAttention2
        layer.self_attn._flash_attn_uses_top_left_mask = False
    model.config._attn_implementation = "flash_attention_2"
    assert score(model, frames, *findings, EXAM_OF_FRAME).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


# ------------------------------------------------------------------------------------------------- invariance


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_permuted_frames_get_exactly_permuted_scores(
    score, attention: str, batch_size: int, frames: Tensor, findings: tuple[Tensor, Tensor]
) -> None:
    model, order = make(attention=attention), torch.tensor([3, 0, 4, 2, 1])
    plain = score(model, frames, *findings, EXAM_OF_FRAME, batch_size=batch_size)
    permuted = score(model, frames[order], *findings, EXAM_OF_FRAME[order], batch_size=batch_size)
    assert torch.equal(permuted, plain[order])
    assert len(set(plain.tolist())) == N


@pytest.mark.parametrize("pad", [0, 7])
def test_padding_changes_nothing(score, pad: int, frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    ids, mask = findings
    plain = score(make(), frames, ids, mask, EXAM_OF_FRAME)
    longer = nn.functional.pad(ids.masked_fill(~mask, pad), (0, 5), value=pad), nn.functional.pad(mask, (0, 5))
    padded = score(make(), frames, *longer, EXAM_OF_FRAME)
    assert padded.tolist() == pytest.approx(plain.tolist(), abs=1e-5)


def test_findings_of_each_frame_may_be_given_directly(score, frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    ids, mask = (x[EXAM_OF_FRAME] for x in findings)
    assert torch.equal(score(make(), frames, ids, mask), score(make(), frames, *findings, EXAM_OF_FRAME))


def test_other_findings_give_other_scores(score, frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    own, swapped = (score(make(), frames, *findings, exams) for exams in (EXAM_OF_FRAME, 1 - EXAM_OF_FRAME))
    assert (own - swapped).abs().min() > 1e-4


def test_a_frame_without_findings_has_no_score(score, frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    ids, mask = findings
    plain = score(make(), frames, ids, mask, EXAM_OF_FRAME)
    without = score(make(), frames, ids, mask & torch.tensor([[True], [False]]), EXAM_OF_FRAME)
    assert torch.isnan(without[2:]).all() and torch.equal(without[:2], plain[:2])


# ------------------------------------------------------------------------------------------------- rounds


def count_passes(model: nn.Module) -> list[int]:
    sizes: list[int] = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    return sizes


def test_extra_rounds_run_and_change_nothing(score, frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    model = make()
    sizes = count_passes(model)
    plain = score(model, frames, *findings, EXAM_OF_FRAME, batch_size=2)
    assert sizes == [2, 2, 2] and passes_needed(N, 2) == 3  # all passes alike, for equal rounding
    sizes.clear()
    more = score(model, frames, *findings, EXAM_OF_FRAME, batch_size=2, rounds=5)
    assert torch.equal(more, plain) and sizes == [2, 2, 2, 1, 1]


def test_a_rank_without_frames_keeps_the_others_company(score, findings: tuple[Tensor, Tensor]) -> None:
    model = make()
    sizes = count_passes(model)
    nothing = torch.zeros(0, T, D), *findings, torch.zeros(0, dtype=torch.long)
    assert score(model, *nothing, rounds=2).shape == (0,) and sizes == [1, 1]
    assert score(model, *nothing).shape == (0,) and len(sizes) == 2


def test_too_few_rounds_or_unknown_layers_are_refused(score, frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="need 3 rounds, got 2"):
        score(make(), frames, *findings, EXAM_OF_FRAME, batch_size=2, rounds=2)
    for layers in (0, DEPTH + 1):
        with pytest.raises(ValueError, match=f"give 1 to {DEPTH}"):
            score(make(), frames, *findings, EXAM_OF_FRAME, layers=layers)


# ------------------------------------------------------------------------------------------------- training


def with_lora(model: nn.Module) -> nn.Module:
    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5, target_modules=targets))
    torch.manual_seed(4)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    return wrapped


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_lora_is_seen_by_the_teacher(score, attention: str, frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    found = score(with_lora(make(attention=attention)), frames, *findings, EXAM_OF_FRAME)
    merged = with_lora(make(attention=attention)).merge_and_unload()
    assert found.tolist() == pytest.approx(score(merged, frames, *findings, EXAM_OF_FRAME).tolist(), abs=1e-4)
    assert found.tolist() != pytest.approx(score(make(), frames, *findings, EXAM_OF_FRAME).tolist(), abs=1e-2)


def test_training_mode_is_deterministic_and_restored(score, frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    model = with_lora(make(attention_dropout=0.5))
    expected = score(model.eval(), frames, *findings, EXAM_OF_FRAME)
    model.train()
    model.get_base_model().model.layers[1].mlp.eval()  # a mixed state must survive as it was
    flags = {name: module.training for name, module in model.named_modules()}
    found = [score(model, frames, *findings, EXAM_OF_FRAME) for _ in range(2)]
    assert torch.equal(found[0], expected) and torch.equal(found[1], expected)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert True in flags.values() and False in flags.values()
    with pytest.raises(RuntimeError):  # also when a pass fails
        score(model, frames[..., :-1], *findings, EXAM_OF_FRAME)
    assert {name: module.training for name, module in model.named_modules()} == flags


def test_no_gradient_and_no_trace_in_the_model(score, frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    model = make().train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    found = score(model, frames.requires_grad_(), *findings, EXAM_OF_FRAME)
    assert not found.requires_grad and found.grad_fn is None
    assert torch.is_grad_enabled() and all(p.grad is None for p in model.parameters())


def test_half_precision_models_score_in_float32(score, frames: Tensor, findings: tuple[Tensor, Tensor]) -> None:
    expected = score(make(), frames, *findings, EXAM_OF_FRAME)
    found = score(make().to(torch.bfloat16), frames, *findings, EXAM_OF_FRAME)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
