"""Small real models in the real file formats: CLIP, SAM, DINOv2, a LLaMA tokenizer, LLaMA and Mistral.

Weights are random (a seed fixes them) and everything is written in seconds, without a network. The folders have the
layout of the published checkpoints, so every loader in LLaVA, transformers and segment-anything opens them with its
ordinary code: tests and the quick start run the product's own paths, only smaller.

    python playground/tiny_models.py all OUT                          # one of each
    python playground/tiny_models.py llama OUT --corpus stage1.json   # the vocabulary covers that file's text
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tiny_tokenizer import CORPUS, fresh_folder, make_tokenizer, read_corpus

# --- vision ---


def make_clip(
    folder: str | Path,
    image_size: int = 32,
    patch_size: int = 8,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 2,
    words: int = 16,
    positions: int = 8,
    seed: int = 0,
) -> Path:
    """Writes a CLIP folder (text and vision model, as OpenAI's) that `CLIPVisionModel.from_pretrained` opens.

    Its grid is (image_size / patch_size)^2 tokens of `hidden` channels. Its text model reads `positions` tokens of
    `words`, the last of which ends a text.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    shared = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    config = CLIPConfig(
        text_config={
            **shared,
            "vocab_size": words,
            "max_position_embeddings": positions,
            "eos_token_id": words - 1,
        },
        vision_config={**shared, "image_size": image_size, "patch_size": patch_size},
        projection_dim=hidden,
    )
    processor = CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return _save(folder, _seeded(lambda: CLIPModel(config), seed), processor)


def make_sam(
    folder: str | Path,
    image_size: int = 128,
    hidden: int = 32,
    layers: int = 4,
    window: int = 4,
    global_attn: Sequence[int] = (1, 3),
    out_channels: int = 16,
    seed: int = 0,
) -> Path:
    """Writes a `SamModel` folder with a small prompt encoder and mask decoder. Its grid is (image_size / 16)^2."""
    from transformers import SamImageProcessor

    processor = SamImageProcessor(
        size={"longest_edge": image_size}, pad_size={"height": image_size, "width": image_size}
    )
    return _save(folder, _sam(image_size, hidden, layers, window, global_attn, out_channels, seed), processor)


def make_sam_pth(
    path: str | Path,
    image_size: int = 128,
    hidden: int = 32,
    layers: int = 4,
    window: int = 4,
    global_attn: Sequence[int] = (1, 3),
    out_channels: int = 16,
    seed: int = 0,
) -> Path:
    """Writes the weights of `make_sam` (same arguments, same numbers) under segment-anything's names, one `.pth` file.

    Keys: `image_encoder.*`, and one each of `prompt_encoder.*` and `mask_decoder.*`, which a reader of the encoder has
    to ignore as it does in the published files.
    """
    state = _sam(image_size, hidden, layers, window, global_attn, out_channels, seed).state_dict()
    renamed = segment_anything_state(state, out_channels)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    torch.save(renamed, partial)
    partial.replace(target)
    return target


def segment_anything_state(state: Mapping[str, Tensor], out_channels: int) -> dict[str, Tensor]:
    """A `SamModel`'s state under segment-anything's names, with one key each of the parts that are no encoder."""
    renamed = {
        _segment_anything_name(name): value.clone()
        for name, value in state.items()
        if name.startswith("vision_encoder.")
    }
    renamed["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = torch.zeros(2, out_channels // 2)
    renamed["mask_decoder.iou_token.weight"] = torch.zeros(1, out_channels)
    return renamed


def make_dinov2(folder: str | Path, image_size: int = 56, hidden: int = 32, layers: int = 2, seed: int = 0) -> Path:
    """Writes a `Dinov2Model` folder: patches of 14 pixels, a grid of (image_size / 14)^2 behind one class token."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=image_size,
        patch_size=14,
    )
    processor = BitImageProcessor(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return _save(folder, _seeded(lambda: Dinov2Model(config), seed), processor)


def _sam(
    image_size: int, hidden: int, layers: int, window: int, global_attn: Sequence[int], out_channels: int, seed: int
) -> nn.Module:
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config={
            "hidden_size": hidden,
            "output_channels": out_channels,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "image_size": image_size,
            "patch_size": 16,
            "window_size": window,
            "global_attn_indexes": list(global_attn),
            "num_pos_feats": out_channels // 2,
            "mlp_dim": 2 * hidden,
        },
        prompt_encoder_config={
            "hidden_size": out_channels,
            "image_size": image_size,
            "patch_size": 16,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": out_channels,
            "mlp_dim": 2 * out_channels,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": out_channels,
        },
    )
    return _seeded(lambda: SamModel(config), seed)


def _segment_anything_name(name: str) -> str:
    """`vision_encoder.layers.0.layer_norm1.weight` -> `image_encoder.blocks.0.norm1.weight`."""
    neck = {
        "neck.conv1.": "neck.0.",
        "neck.layer_norm1.": "neck.1.",
        "neck.conv2.": "neck.2.",
        "neck.layer_norm2.": "neck.3.",
    }
    for ours, theirs in neck.items():
        name = name.replace(ours, theirs)
    for ours, theirs in (
        ("vision_encoder.", "image_encoder."),
        (".layers.", ".blocks."),
        (".layer_norm", ".norm"),
        ("patch_embed.projection.", "patch_embed.proj."),
    ):
        name = name.replace(ours, theirs)
    return name


# --- language ---


def make_llama(
    folder: str | Path,
    corpus: Iterable[str] = CORPUS,
    hidden: int = 64,
    layers: int = 4,
    heads: int = 4,
    legacy: bool = True,
    max_positions: int = 1024,
    seed: int = 0,
    longest: int = 16,
) -> Path:
    """Writes a `LlamaForCausalLM` folder with its own tokenizer, whose pieces have at most `longest` characters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer(folder, corpus, legacy=legacy, longest=longest)
    config = LlamaConfig(**_decoder_settings(folder, hidden, layers, heads, max_positions), num_key_value_heads=heads)
    return _add_decoder(folder, _seeded(lambda: LlamaForCausalLM(config), seed))


def make_mistral(
    folder: str | Path,
    corpus: Iterable[str] = CORPUS,
    hidden: int = 64,
    layers: int = 4,
    heads: int = 4,
    legacy: bool = True,
    max_positions: int = 1024,
    seed: int = 0,
) -> Path:
    """Writes a `MistralForCausalLM` folder: two query heads share a key head, no sliding window (as v0.2)."""
    from transformers import MistralConfig, MistralForCausalLM

    make_tokenizer(folder, corpus, legacy=legacy)
    settings = _decoder_settings(folder, hidden, layers, heads, max_positions)
    config = MistralConfig(**settings, num_key_value_heads=heads // 2, sliding_window=None)
    return _add_decoder(folder, _seeded(lambda: MistralForCausalLM(config), seed))


def _decoder_settings(
    folder: str | Path, hidden: int, layers: int, heads: int, max_positions: int
) -> dict[str, int | float]:
    from transformers import LlamaTokenizer

    return {
        "vocab_size": len(LlamaTokenizer.from_pretrained(folder)),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
    }


def _add_decoder(folder: str | Path, model: Any) -> Path:
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    return Path(folder)


# --- shared ---


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Builds a model without touching the caller's random state.

    Constant parameters (zero biases and position tables, unit norms) get noise: with them at their initial value, a
    loader that forgets or swaps one of them would go unnoticed.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build().float().eval()
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _save(folder: str | Path, model: Any, processor: Any) -> Path:
    with fresh_folder(folder) as target:
        model.save_pretrained(target)
        processor.save_pretrained(target)
    return Path(folder)


MAKERS: dict[str, Callable[..., Path]] = {
    "clip": make_clip,
    "sam": make_sam,
    "sam_pth": make_sam_pth,
    "dinov2": make_dinov2,
    "llama": make_llama,
    "mistral": make_mistral,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: one model into OUT, or `all` into folders under OUT."""
    parser = argparse.ArgumentParser(description="Make small models with random weights in the real file formats.")
    parser.add_argument("kind", choices=[*MAKERS, "all"])
    parser.add_argument("out", type=Path, help="folder to write (for sam_pth: the .pth file)")
    parser.add_argument(
        "--corpus", nargs="+", type=Path, help="files whose text the tokenizer covers (json, jsonl, txt)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    corpus = CORPUS + (read_corpus(args.corpus) if args.corpus else [])
    for kind in MAKERS if args.kind == "all" else [args.kind]:
        out = args.out if args.kind != "all" else args.out / (f"{kind}.pth" if kind == "sam_pth" else kind)
        options = {"corpus": corpus} if kind in ("llama", "mistral") else {}
        print(MAKERS[kind](out, seed=args.seed, **options))


if __name__ == "__main__":
    main()
