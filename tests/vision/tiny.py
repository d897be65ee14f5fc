"""Small encoders with lively random weights (transformers' SAM starts at zero, which would hide mistakes)."""

from __future__ import annotations

import functools
import sys
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

SAM = {"hidden": 24, "layers": 3, "heads": 2, "mlp": 40, "out": 6, "window": 4, "whole": (1,)}


def lively(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """Every parameter random, none zero; norms stay near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return module.eval().requires_grad_(False)


def segment_anything():
    """segment-anything's image encoder module; torchvision, which only its mask generator uses, is stood in for."""
    if "torchvision" not in sys.modules:
        for name, members in {
            "torchvision": (),
            "torchvision.ops": (),
            "torchvision.ops.boxes": ("batched_nms", "box_area"),
            "torchvision.transforms": (),
            "torchvision.transforms.functional": ("resize", "to_pil_image"),
        }.items():
            sys.modules[name] = module = types.ModuleType(name)
            module.__spec__ = None
            for member in members:
                setattr(module, member, None)
        try:
            from segment_anything.modeling import image_encoder
        finally:  # other libraries must not take the stand-in for the real thing
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    else:
        from segment_anything.modeling import image_encoder
    return image_encoder


def their_sam(image_size: int, **changes) -> nn.Module:
    """segment-anything's ``ImageEncoderViT`` with random weights."""
    sizes = {**SAM, **changes}
    model = segment_anything().ImageEncoderViT(
        img_size=image_size,
        embed_dim=sizes["hidden"],
        depth=sizes["layers"],
        num_heads=sizes["heads"],
        mlp_ratio=sizes["mlp"] / sizes["hidden"],
        out_chans=sizes["out"],
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=sizes["window"],
        global_attn_indexes=sizes["whole"],
    )
    return lively(model)


def sam_config(image_size: int, **changes):
    from transformers import SamConfig

    sizes = {**SAM, **changes}
    vision = {
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "mlp_dim": sizes["mlp"],
        "output_channels": sizes["out"],
        "image_size": image_size,
        "window_size": sizes["window"],
        "global_attn_indexes": list(sizes["whole"]),
        "num_pos_feats": 4,
    }
    decoder = {"hidden_size": 8, "mlp_dim": 8, "num_attention_heads": 1, "iou_head_hidden_dim": 8}
    prompt = {"hidden_size": 8, "image_size": image_size, "mask_input_channels": 4}
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


def huggingface_sam(theirs: nn.Module, image_size: int, **changes) -> nn.Module:
    """transformers' ``SamModel`` with the weights of segment-anything's encoder.

    Both list their tensors in the same order, so they are paired by position: no table of names is trusted.
    """
    from transformers import SamModel

    model = SamModel(sam_config(image_size, **changes)).eval()
    encoder = model.vision_encoder.state_dict()
    given = list(theirs.state_dict().values())
    assert [v.shape for v in encoder.values()] == [v.shape for v in given]
    model.vision_encoder.load_state_dict(dict(zip(encoder, given, strict=True)))
    return model.requires_grad_(False)


def save_pth(theirs: nn.Module, path: Path) -> str:
    state = {f"image_encoder.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({**state, "mask_decoder.iou_token.weight": torch.zeros(1, 8)}, path)
    return str(path)


def sam_folder(folder: Path, image_size: int = 64, **changes) -> str:
    huggingface_sam(their_sam(image_size, **changes), image_size, **changes).save_pretrained(folder)
    return str(folder)


def clip_folder(folder: Path, image_size: int = 32, patch_size: int = 8) -> str:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=patch_size,
    )
    lively(CLIPVisionModel(config), scale=0.2).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    ).save_pretrained(folder)
    return str(folder)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random picture (a resize keeps what it shows)."""
    coarse = np.random.RandomState(seed).randint(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
