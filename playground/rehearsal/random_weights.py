"""Random weights at a rehearsal's shapes, in the published folders' formats: CLIP, SAM (folder and .pth), LLaMA.

python playground/rehearsal/random_weights.py clip|sam|llama --llm 1.1b [--quick] --out FOLDER [--corpus FILE …]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_ultra_ext.conversation import SYSTEM
from llava_ultra_ext.vision.sam_weights import read_shape
from shapes import LLAMAS, ClipShape, LlamaShape, Shapes, shapes_of
from tiny_models import segment_anything_state
from tiny_tokenizer import CORPUS, fresh_folder, make_tokenizer, read_corpus

SHARD = "1GB"
"""Of the LLM's files: a program that reads them holds one beside the model."""


def make_clip(folder: Path, shape: ClipShape) -> None:
    """Text and vision model with the processor, as openai/clip-vit-large-patch14-336."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    vision = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.mlp_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "projection_dim": shape.text_hidden,
    }
    text = {
        "hidden_size": shape.text_hidden,
        "intermediate_size": 4 * shape.text_hidden,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": max(1, shape.text_hidden // 64),
        "vocab_size": shape.text_words,
        "max_position_embeddings": shape.text_positions,
        "projection_dim": shape.text_hidden,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape.text_hidden)
    side = {"height": shape.image_size, "width": shape.image_size}
    processor = CLIPImageProcessor(size={"shortest_edge": shape.image_size}, crop_size=side)
    with fresh_folder(folder) as target:
        _seeded(lambda: CLIPModel(config)).save_pretrained(target)
        processor.save_pretrained(target)


def make_sam(folder: Path, shapes: Shapes) -> None:
    """`folder` as facebook/sam-vit-large, and `folder`.pth as sam_vit_l_0b3195.pth, with the same numbers.

    Raises:
        ValueError: the two files do not describe the same encoder.
    """
    from transformers import SamConfig, SamImageProcessor, SamModel

    sam = shapes.sam
    vision = {
        "hidden_size": sam.hidden_size,
        "output_channels": sam.out_channels,
        "num_hidden_layers": sam.layers,
        "num_attention_heads": sam.heads,
        "mlp_dim": sam.mlp_size,
        "image_size": sam.image_size,
        "patch_size": sam.patch_size,
        "window_size": sam.window_size,
        "global_attn_indexes": list(sam.global_layers),
        "num_pos_feats": sam.out_channels // 2,
    }
    prompt = {"hidden_size": sam.out_channels, "image_size": sam.image_size, "patch_size": sam.patch_size}
    mask = {"hidden_size": sam.out_channels, "mlp_dim": 8 * sam.out_channels}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask)
    model = _seeded(lambda: SamModel(config))
    side = sam.image_size
    processor = SamImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side})
    partial, file = folder.with_name(f"{folder.name}.pth.partial"), folder.with_name(f"{folder.name}.pth")
    folder.parent.mkdir(parents=True, exist_ok=True)
    torch.save(segment_anything_state(model.state_dict(), sam.out_channels), partial)
    partial.replace(file)
    with fresh_folder(folder) as target:
        model.save_pretrained(target)
        processor.save_pretrained(target)
    if read_shape(str(folder)) != read_shape(str(file)):
        raise ValueError(f"{folder} and {file}: read as different encoders; this is a fault of the program.")


def make_llama(folder: Path, shape: LlamaShape, texts: Sequence[str]) -> None:
    """Shards in bfloat16 with an index, and a slow tokenizer of as many pieces as the embedding has rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.words,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.mlp_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.positions,
        rms_norm_eps=1e-5,
        pad_token_id=0,
        torch_dtype="bfloat16",
    )
    with fresh_folder(folder) as target:
        # make_tokenizer puts another folder in the place of `target`; that one goes to `folder` when all is written.
        make_tokenizer(target, [*CORPUS, SYSTEM, *texts])
        fill_vocabulary(target / "tokenizer.model", shape.words)
        model = _seeded(lambda: LlamaForCausalLM(config), torch.bfloat16)
        model.generation_config.pad_token_id = 0
        model.save_pretrained(target, max_shard_size=SHARD)


def fill_vocabulary(path: Path, words: int) -> None:
    """Adds unused pieces to a sentencepiece model: an LLM of random weights says any of its words.

    Raises:
        ValueError: it has more pieces than that.
    """
    # Not sentencepiece's own copy of the description: protobuf takes it once, and transformers has another.
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    model.ParseFromString(path.read_bytes())
    if len(model.pieces) > words:
        raise ValueError(f"{path}: has {len(model.pieces)} pieces, the LLM's vocabulary {words}. Give fewer texts.")
    for number in range(len(model.pieces), words):
        model.pieces.add(piece=f"<unused{number}>", score=0.0, type=model.SentencePiece.UNUSED)
    model.trainer_spec.vocab_size = words
    path.write_bytes(model.SerializeToString())


def _seeded(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> Any:
    """A model on the GPU where there is one (13 billion random numbers take a CPU minutes).

    What starts as zeros or ones gets noise: with SAM's positions at zero, their cost and their errors would not show.
    """
    place: AbstractContextManager[Any] = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        with place:
            model = build().eval()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("clip", "sam", "llama"))
    parser.add_argument("--llm", choices=list(LLAMAS), default="1.1b")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, nargs="*", default=[], help="files whose text the tokenizer covers")
    args = parser.parse_args(argv)
    shapes = shapes_of(args.llm, args.quick)
    if args.kind == "clip":
        make_clip(args.out, shapes.clip)
    elif args.kind == "sam":
        make_sam(args.out, shapes)
    else:
        make_llama(args.out, shapes.llama, read_corpus(args.corpus))


if __name__ == "__main__":
    main()
