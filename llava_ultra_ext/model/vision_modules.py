"""How the tower and the projector join a language model, and where their first weights come from.

LLaVA's ``initialize_vision_modules`` copies a fixed list of flags into the config and forgets every other; ours keeps
`UltraSettings`, so that ``load_pretrained_model`` restores the model from the folder alone.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llava_ultra_ext.model.builders import build_projector, build_tower
from llava_ultra_ext.train.trainable import load_projector
from llava_ultra_ext.vision.sources import find_file

logger = logging.getLogger(__name__)


class UltraMetaModel:
    """Mixed in before LLaVA's model class of a backbone."""

    config: Any
    dtype: torch.dtype

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Build tower and projector for training, and record every setting in the config.

        The projector starts from ``--pretrain_mm_mlp_adapter`` where given, else from the projector in the base folder
        (LLaVA's or LLaVA-Med's becomes P1; one of ours is taken whole), else fresh.

        Raises:
            ValueError: an encoder is missing or the grids cannot be merged, or the adapter does not fit.
        """
        settings = model_args.ultra_settings
        tower = build_tower(settings, model_args.vision_tower)
        if model_args.feature_cache is None or settings.sam_trainable == "neck":  # whose neck starts from SAM's
            tower.load_model()
        described = tower.describe()
        settings = settings.replace(widths=dict(described.widths), tokens=described.tokens)
        config = self.config
        settings.replace(backbone=getattr(config, "ultra_backbone", "llama")).to_config(config)
        config.mm_vision_tower = model_args.vision_tower
        config.use_mm_proj = True
        config.mm_projector_type = model_args.mm_projector_type
        config.mm_hidden_size = tower.hidden_size
        config.mm_vision_select_layer = model_args.mm_vision_select_layer
        config.mm_vision_select_feature = model_args.mm_vision_select_feature
        config.mm_patch_merge_type = model_args.mm_patch_merge_type
        # A plain object on purpose: frozen encoders are neither partitioned by ZeRO-3 nor saved with the model.
        self.vision_tower = tower
        projector = build_projector(settings, config.hidden_size, config.mm_projector_type, tower)
        if model_args.feature_cache is not None:
            tower.unload()
        self._first_weights(projector, model_args)
        if is_deepspeed_zero3_enabled():
            # ZeRO-3 refuses a model of two dtypes; it keeps float32 master weights itself.
            projector = projector.to(self.dtype)
        self.mm_projector = projector

    def _first_weights(self, projector: torch.nn.Module, model_args: Any) -> None:
        if model_args.pretrain_mm_mlp_adapter is not None:
            path = Path(model_args.pretrain_mm_mlp_adapter)
            load_projector(
                projector, torch.load(path, map_location="cpu", weights_only=True), source=str(path), strict=True
            )
            return
        state = read_projector(model_args.model_name_or_path)
        if state:
            load_projector(projector, state, source=model_args.model_name_or_path, strict=False)
        else:
            logger.info("projector: starts fresh, %s has none", model_args.model_name_or_path)


def read_projector(source: str | Path) -> dict[str, torch.Tensor]:
    """The ``mm_projector`` tensors of a model folder, read without the rest of its weights.

    Args:
        source: a folder, or a hub name whose files are reachable or cached.

    Returns:
        Names as in the file -> tensors; empty for a language model without a projector.
    """
    files = _weight_files(str(source))
    state: dict[str, torch.Tensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as handle:
                state.update({name: handle.get_tensor(name) for name in list(handle.keys()) if "mm_projector" in name})
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            state.update({name: tensor for name, tensor in tensors.items() if "mm_projector" in name})
    return state


def _weight_files(source: str) -> list[Path]:
    """The files that hold projector tensors; of an unsharded model its one file."""
    index = find_file(source, "model.safetensors.index.json", "pytorch_model.bin.index.json")
    if index is not None:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({file for name, file in weight_map.items() if "mm_projector" in name})
        return [path for path in (find_file(source, name) for name in names) if path is not None]
    whole = find_file(source, "model.safetensors", "pytorch_model.bin")
    return [] if whole is None else [whole]


def separator_ids(tokenizer: Any) -> tuple:
    """Sorted ids of tokens that may stand between the ``<image>`` tokens of one group: those of white space."""
    found = set()
    for text in ("\n", "\n\n", " ", "  ", "\t", "\r\n", "\n ", " \n"):
        found.update(tokenizer(text, add_special_tokens=False).input_ids)
    for token in ("▁", "▁▁", "<0x0A>", "<0x0D>", "<0x09>", "<0x20>", "\n", "Ċ", "Ġ"):
        found.add(tokenizer.convert_tokens_to_ids(token))
    return tuple(sorted(i for i in found if i is not None and i != tokenizer.unk_token_id))
