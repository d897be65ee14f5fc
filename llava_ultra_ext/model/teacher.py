"""Teachers that score frames by reading the findings text with the LLM (paper section 3.3, equation 4, and ours).

* :func:`attention_scores`: how much the findings attend to the frame in the first LLM layers. The paper's mode.
* :func:`likelihood_scores`: how likely the findings are, given the frame. Our choice and the recommended teacher: the
  attention mass follows visual saliency and hardly changes with the text, while the likelihood reads it.

Each frame gets a pass of its own, so the order of the frames cannot matter. The decoder layers are called one by one
(not the whole model), because only the first ones may be needed and because every attention kernel can then be served.

Shapes: N frames, E exams, T tokens a frame, L findings tokens (right-padded), D hidden size, B frames of one pass,
S tokens of a pass, A attention heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

Decoder = Any  # transformers' LlamaModel, MistralModel and LLaVA's subclasses; nn.Module would hide their attributes
PassScore = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def attention_scores(
    llm: Decoder,
    frames: Tensor,
    findings_ids: Tensor,
    findings_mask: Tensor,
    exam_of_frame: Tensor | None = None,
    *,
    layers: int,
    batch_size: int = 8,
    rounds: int | None = None,
) -> Tensor:
    """Equation 4: attention mass of the findings on the frame, in passes ``[H_v^i ; H_t]``.

    The paper does not reduce the attention maps to a number. Our choice: softmax over all visible tokens, the sum over
    the image tokens, then the mean over heads, findings tokens and layers.

    Args:
        llm: a Llama or Mistral decoder (``embed_tokens``, ``layers``), any attention kernel, with or without LoRA.
        frames: H_v (N, T, D).
        findings_ids: (E, L), or (N, L) without ``exam_of_frame``; right-padded with any id of the vocabulary.
        findings_mask: bool, like ``findings_ids``; False on padding.
        exam_of_frame: (N,) long, the row of ``findings_ids`` of each frame.
        layers: how many of the first layers to read, the paper's N.
        batch_size: frames of one pass.
        rounds: how many passes to run; default: as many as needed. Under ZeRO-3 all ranks must run the same number, so
            that they gather the same parameters: give the largest number that any rank needs.

    Returns:
        (N,) float32 in (0, 1); NaN for a frame without findings.

    Raises:
        ValueError: for a number of layers the LLM does not have, or too few rounds.
    """
    depth = _check_depth(llm, layers)

    def score(images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = _sequence(llm, images, ids)
        context = _context(llm, hidden)
        mass = hidden.new_zeros(ids.shape, dtype=torch.float32)  # (B, L)
        for number, layer in enumerate(llm.layers[:depth], start=1):
            mass = mass + _image_mass(layer, hidden, context, images.shape[1])
            if number < depth:  # nobody reads what the last layer would put out
                hidden = _advance(layer, hidden, context)
        return _mean_over_tokens(mass / depth, mask)

    with _evaluating(llm.embed_tokens, llm.layers):
        return _frame_by_frame(score, frames, findings_ids, findings_mask, exam_of_frame, batch_size, rounds)


@torch.no_grad()
def likelihood_scores(
    llm: Decoder,
    lm_head: nn.Module,
    frames: Tensor,
    findings_ids: Tensor,
    findings_mask: Tensor,
    exam_of_frame: Tensor | None = None,
    *,
    bos_token_id: int,
    layers: int | None = None,
    batch_size: int = 8,
    rounds: int | None = None,
) -> Tensor:
    """Our teacher: mean log-likelihood of a findings token in ``[BOS ; H_v^i ; findings]``.

    Args:
        llm: as in :func:`attention_scores`, with its final ``norm``.
        lm_head: from D to the vocabulary.
        frames: H_v (N, T, D).
        findings_ids: (E, L), or (N, L) without ``exam_of_frame``; right-padded with any id of the vocabulary.
        findings_mask: bool, like ``findings_ids``; False on padding.
        exam_of_frame: (N,) long, the row of ``findings_ids`` of each frame.
        bos_token_id: what the LLM's sequences start with.
        layers: early exit after this many layers (final norm and head follow at once); default: all of them.
        batch_size: frames of one pass.
        rounds: as in :func:`attention_scores`.

    Returns:
        (N,) float32, in nats, at most 0; NaN for a frame without findings.

    Raises:
        ValueError: for a number of layers the LLM does not have, or too few rounds.
    """
    depth = _check_depth(llm, layers)

    def score(images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = _sequence(llm, images, ids, bos_token_id)
        context = _context(llm, hidden)
        for layer in llm.layers[:depth]:
            hidden = _advance(layer, hidden, context)
        start = images.shape[1]  # the last image token predicts the first findings token
        logits = lm_head(llm.norm(hidden[:, start : start + ids.shape[1]])).float()  # (B, L, V)
        log_likelihood = -F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")  # (B, L)
        return _mean_over_tokens(log_likelihood, mask)

    with _evaluating(llm.embed_tokens, llm.layers, llm.norm, lm_head):
        return _frame_by_frame(score, frames, findings_ids, findings_mask, exam_of_frame, batch_size, rounds)


def passes_needed(frames: int, batch_size: int) -> int:
    """How many passes score so many frames; ranks agree on the largest before they start."""
    return math.ceil(frames / batch_size)


def _frame_by_frame(
    score: PassScore,
    frames: Tensor,
    findings_ids: Tensor,
    findings_mask: Tensor,
    exam_of_frame: Tensor | None,
    batch_size: int,
    rounds: int | None,
) -> Tensor:
    """(N,): runs exactly ``rounds`` passes and puts their scores together."""
    count = frames.shape[0]
    needed = passes_needed(count, batch_size)
    rounds = needed if rounds is None else rounds
    if rounds < needed:
        raise ValueError(
            f"{count} frames in passes of {batch_size} need {needed} rounds, got {rounds}: "
            "give the largest number that any rank needs."
        )
    if exam_of_frame is not None:
        findings_ids, findings_mask = findings_ids[exam_of_frame], findings_mask[exam_of_frame]
    inputs = frames.detach(), findings_ids, findings_mask.bool()
    rows = math.ceil(count / needed) if needed else 0
    scores = []
    for start in range(0, needed * rows, rows or 1):
        part = [_fill(x[start : start + rows], rows) for x in inputs]
        scores.append(score(*part))
    for _ in range(rounds - needed):  # only for the company of other ranks
        score(*(x.new_zeros((1, *x.shape[1:])) for x in inputs))
    return torch.cat(scores)[:count] if scores else frames.new_zeros(0, dtype=torch.float32)


def _fill(part: Tensor, rows: int) -> Tensor:
    """Repeats the last row up to ``rows``: with one shape for all passes, a frame's score does not depend on its place
    in the batch, not even in its last bit."""
    return torch.cat([part, part[-1:].expand(rows - len(part), *part.shape[1:])]) if len(part) < rows else part


def _sequence(llm: Decoder, images: Tensor, ids: Tensor, bos_token_id: int | None = None) -> Tensor:
    """The tokens of a pass (B, S, D)."""
    lead = 0 if bos_token_id is None else 1
    words = ids if bos_token_id is None else F.pad(ids, (1, 0), value=bos_token_id)
    embedded = llm.embed_tokens(words)  # one call: under ZeRO-3 a call is a gathering
    return torch.cat([embedded[:, :lead], images.to(embedded.dtype), embedded[:, lead:]], dim=1)


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Dropout (LoRA's too) off, then every module back to the mode it was in."""
    modes = [(module, module.training) for top in modules for module in top.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class _Context:
    """What all layers of a pass share: additive mask (B, 1, S, S), the mask that the kernel gets, positions (1, S)."""

    additive: Tensor
    for_kernel: Tensor | None
    positions: Tensor


def _context(llm: Decoder, hidden: Tensor) -> _Context:
    """Padding needs no mask: it stands on the right, where no real token of a causal model looks."""
    batch, length, _ = hidden.shape
    positions = torch.arange(length, device=hidden.device)
    distance = positions[:, None] - positions[None, :]
    visible = distance >= 0
    window = getattr(llm.config, "sliding_window", None)  # Mistral
    if window is not None:
        visible = visible & (distance < window)
    additive = torch.zeros_like(visible, dtype=hidden.dtype).masked_fill(~visible, torch.finfo(hidden.dtype).min)
    additive = additive.expand(batch, 1, length, length)
    # Flash attention is causal (and windowed) by itself, and refuses a mask of this form.
    flash = getattr(llm.config, "_attn_implementation", "eager") == "flash_attention_2"
    return _Context(additive, None if flash else additive, positions[None, :])


def _advance(layer: Any, hidden: Tensor, context: _Context) -> Tensor:
    """One decoder layer, (B, S, D) to (B, S, D)."""
    return layer(hidden, attention_mask=context.for_kernel, position_ids=context.positions, use_cache=False)[0]


def _image_mass(layer: Any, hidden: Tensor, context: _Context, tokens: int) -> Tensor:
    """(B, L): attention of each findings token on the ``tokens`` image tokens before it, mean over the heads.

    Fused kernels return no attention map, so it is computed here from the layer's own norm, projections (called as
    modules: LoRA, quantisation and ZeRO-3 work) and rotary embedding. Float32, because frames differ by about .01.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    batch, length, _ = normed.shape
    query, key = (
        states.view(batch, length, -1, attention.head_dim).transpose(1, 2)  # (B, A, S, D/A), fewer key heads
        for states in (attention.q_proj(normed), attention.k_proj(normed))
    )
    cos, sin = attention.rotary_emb(key, seq_len=length)
    query, key = apply_rotary_pos_emb(query, key, cos, sin, context.positions)
    key = repeat_kv(key, query.shape[1] // key.shape[1])
    with torch.autocast(hidden.device.type, enabled=False):
        logits = query[:, :, tokens:].float() @ key.float().transpose(2, 3) / math.sqrt(attention.head_dim)
        weights = (logits + context.additive[:, :, tokens:].float()).softmax(-1)  # (B, A, L, S)
    return weights[..., :tokens].sum(-1).mean(1)


def _mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """(B, L) to (B,), over the tokens that are no padding; 0 / 0 = NaN says that there are none."""
    return values.masked_fill(~mask, 0).sum(1) / mask.sum(1)


def _check_depth(llm: Decoder, layers: int | None) -> int:
    available = len(llm.layers)
    if layers is not None and not 1 <= layers <= available:
        raise ValueError(f"The teacher was asked for {layers} of the LLM's {available} layers: give 1 to {available}.")
    return available if layers is None else layers
