"""Shapes of the published models, and small ones of the same form; how many parameters each has."""

from __future__ import annotations

from dataclasses import dataclass

from llava_ultra_ext.vision.sam import SamShape


@dataclass(frozen=True)
class ClipShape:
    """CLIP's vision model, and the text model that the published folder holds beside it."""

    hidden_size: int
    layers: int
    heads: int
    mlp_size: int
    image_size: int
    patch_size: int
    text_hidden: int
    text_layers: int
    text_words: int
    text_positions: int = 77

    @property
    def tokens(self) -> int:
        """Patches; the class token comes besides."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def parameters(self) -> int:
        """Of both models with their projections, as the folder holds them."""
        ends = self.hidden_size * (3 * self.patch_size**2 + self.tokens + 2 + 4)
        vision = ends + self.layers * _block(self.hidden_size, self.mlp_size)
        words = self.text_hidden * (self.text_words + self.text_positions + 2)
        text = words + self.text_layers * _block(self.text_hidden, 4 * self.text_hidden)
        return vision + text + self.text_hidden * (self.hidden_size + self.text_hidden) + 1


@dataclass(frozen=True)
class LlamaShape:
    """A LLaMA: V words, hidden size D, grouped key heads."""

    hidden_size: int
    layers: int
    heads: int
    key_heads: int
    mlp_size: int
    words: int
    positions: int = 2048

    @property
    def key_size(self) -> int:
        """Channels of all key heads."""
        return self.hidden_size // self.heads * self.key_heads

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(input, output) of a layer's seven linear maps: q, k, v, o, gate, up, down."""
        hidden, key, mlp = self.hidden_size, self.key_size, self.mlp_size
        return ((hidden, hidden), (hidden, key), (hidden, key), (hidden, hidden), *([(hidden, mlp)] * 2), (mlp, hidden))

    @property
    def layer_weights(self) -> int:
        """Numbers of a layer's linear maps."""
        return sum(before * after for before, after in self.matrices)

    @property
    def parameters(self) -> int:
        """With embeddings, head and norms."""
        norms = self.hidden_size * (2 * self.layers + 1)
        return self.layers * self.layer_weights + 2 * self.words * self.hidden_size + norms

    def lora_parameters(self, rank: int) -> int:
        """LLaVA puts an adapter of this rank on every linear map of every layer."""
        return self.layers * rank * sum(before + after for before, after in self.matrices)


@dataclass(frozen=True)
class Shapes:
    """Everything that a rehearsal makes."""

    clip: ClipShape
    sam: SamShape
    llama: LlamaShape
    sam_image_size: int  # of training: merges into CLIP's grid

    @property
    def sam_grid(self) -> int:
        """Cells along a side of SAM's map."""
        return self.sam_image_size // self.sam.patch_size

    @property
    def sam_width(self) -> int:
        """Channels of a SAM token after whole cells are merged into CLIP's grid."""
        return self.sam.out_channels * self.sam_grid**2 // self.clip.tokens

    @property
    def projector_parameters(self) -> int:
        """P1 and P2, linear; alpha and the frame score are a few numbers more."""
        return (self.clip.hidden_size + self.sam_width + 2) * self.llama.hidden_size

    @property
    def frame_numbers(self) -> int:
        """Numbers of a frame's features in the cache."""
        return self.clip.tokens * (self.clip.hidden_size + self.sam_width)


def sam_parameters(shape: SamShape) -> int:
    """Of the image encoder; prompt encoder and mask decoder are a hundredth besides."""
    hidden, grid, depth = shape.hidden_size, shape.image_size // shape.patch_size, shape.hidden_size // shape.heads
    positions = grid**2 * hidden + sum(
        2 * depth * (2 * (grid if layer in shape.global_layers else shape.window_size) - 1)
        for layer in range(shape.layers)
    )
    neck = shape.out_channels * (hidden + 9 * shape.out_channels + 4)
    return hidden * (3 * shape.patch_size**2 + 1) + shape.layers * _block(hidden, shape.mlp_size) + positions + neck


def _block(hidden: int, mlp: int) -> int:
    """A pre-norm transformer block with biases: four maps of attention, two of the MLP, two norms."""
    return 4 * hidden * (hidden + 1) + hidden * mlp * 2 + mlp + hidden + 4 * hidden


CLIP_L = ClipShape(1024, 24, 16, 4096, 336, 14, 768, 12, 49408)
"""openai/clip-vit-large-patch14-336."""

SAM_L = SamShape(1024, 24, 16, 4096, 256, 1024, 16, 14, (5, 11, 17, 23))
"""facebook/sam-vit-large, sam_vit_l_0b3195.pth."""

LLAMAS = {
    "1.1b": LlamaShape(2048, 22, 32, 4, 5632, 32000),  # TinyLlama
    "7b": LlamaShape(4096, 32, 32, 32, 11008, 32000, 4096),  # LLaMA, Vicuna
    "13b": LlamaShape(5120, 40, 40, 40, 13824, 32000, 4096),
}

QUICK = Shapes(
    ClipShape(32, 2, 2, 64, 56, 14, 32, 2, 64),
    SamShape(32, 4, 2, 64, 16, 128, 16, 4, (1, 3)),
    LlamaShape(64, 2, 4, 2, 128, 2048),
    128,
)
"""The same forms, in seconds."""


def shapes_of(llm: str, quick: bool) -> Shapes:
    """The published encoders with a LLaMA of this size, or the small ones."""
    return QUICK if quick else Shapes(CLIP_L, SAM_L, LLAMAS[llm], 768)
