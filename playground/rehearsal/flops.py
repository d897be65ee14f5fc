"""Floating-point operations of each part, from the shapes: a product of (n, a) and (a, b) is 2 n a b.

Counted are matrix products that have to be done: no padding of windows, causal attention at half of its square, nothing
for norms, softmax and sums.
"""

from __future__ import annotations

from llava_ultra_ext.vision.sam import SamShape
from shapes import ClipShape, LlamaShape, Shapes


def clip_frame(shape: ClipShape) -> float:
    """One frame through CLIP's vision model; all of its layers run, whichever LLaVA reads."""
    tokens, hidden = shape.tokens + 1, shape.hidden_size
    linear = 2 * tokens * (4 * hidden**2 + 2 * hidden * shape.mlp_size)
    patches = 2 * shape.tokens * 3 * shape.patch_size**2 * hidden
    return float(shape.layers * (linear + 4 * tokens**2 * hidden) + patches)


def sam_frame(shape: SamShape, size: int) -> float:
    """One frame of `size` pixels through SAM's image encoder."""
    tokens, hidden = (size // shape.patch_size) ** 2, shape.hidden_size
    linear = 2 * tokens * (4 * hidden**2 + 2 * hidden * shape.mlp_size)
    whole = len(shape.global_layers)
    attention = 4 * tokens * hidden * (whole * tokens + (shape.layers - whole) * shape.window_size**2)
    ends = 2 * tokens * (3 * shape.patch_size**2 * hidden + shape.out_channels * (hidden + 9 * shape.out_channels))
    return float(shape.layers * linear + attention + ends)


def encoders_frame(shapes: Shapes) -> float:
    """One frame through both encoders."""
    return clip_frame(shapes.clip) + sam_frame(shapes.sam, shapes.sam_image_size)


def llm_linear(shape: LlamaShape, tokens: int, layers: int | None = None) -> float:
    """The linear maps of the first layers (default: all) on so many tokens, without the head."""
    return float(2 * tokens * shape.layer_weights * (shape.layers if layers is None else layers))


def llm_attention(shape: LlamaShape, tokens: int, layers: int | None = None) -> float:
    """Scores and sums of causal attention: half of 4 tokens^2 D a layer."""
    return float(2 * tokens**2 * shape.hidden_size * (shape.layers if layers is None else layers))


def head(shape: LlamaShape, tokens: int) -> float:
    """The map to the vocabulary."""
    return float(2 * tokens * shape.hidden_size * shape.words)


def teacher_frame(shapes: Shapes, findings: int, layers: int | None = None) -> float:
    """A teacher's pass over one frame and the findings.

    Args:
        findings: tokens of the findings.
        layers: the attention teacher's first N layers; None: the likelihood teacher, all layers and the head.
    """
    tokens = shapes.clip.tokens + findings
    pass_ = llm_linear(shapes.llama, tokens, layers) + llm_attention(shapes.llama, tokens, layers)
    return pass_ + (head(shapes.llama, findings) if layers is None else 0.0)


def projector_exam(shapes: Shapes, frames: int, train: bool = True) -> float:
    """P1 and P2 on all frames of an exam; training adds the gradient of their weights."""
    return (4.0 if train else 2.0) * frames * shapes.clip.tokens * shapes.projector_parameters


def llm_step(shapes: Shapes, text: int, lora_rank: int = 0) -> float:
    """The LLM's part of a training step on one sample, with gradient checkpointing: one frame and its text.

    A frozen linear map runs forward twice and once backward (to its input); attention backward is twice its forward;
    an adapter runs forward twice and twice backward (its input, its weights). The head is not checkpointed.
    """
    shape, tokens = shapes.llama, shapes.clip.tokens + text
    adapters = 8.0 * tokens * shape.lora_parameters(lora_rank)
    return 3 * llm_linear(shape, tokens) + 4 * llm_attention(shape, tokens) + 2 * head(shape, tokens) + adapters


def answer(shapes: Shapes, text: int, new: int) -> float:
    """Prompt of one frame and its text, then `new` tokens one by one, without the encoders."""
    shape, prompt = shapes.llama, shapes.clip.tokens + text
    total = prompt + new
    attention = llm_attention(shape, total)
    return llm_linear(shape, total) + attention + head(shape, total)
