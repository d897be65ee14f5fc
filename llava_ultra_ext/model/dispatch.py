"""From a folder to the right class: ours for a folder of ours, LLaVA's own object for everything else."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig

from llava_ultra_ext.model.builders import is_ultra
from llava_ultra_ext.train.trainable import NAME

logger = logging.getLogger(__name__)


def config_dict(folder: str) -> dict[str, Any]:
    """``config.json`` of a folder or hub name as it stands; no model class is looked up."""
    return PretrainedConfig.get_config_dict(folder)[0]


class ModelDispatch:
    """Stands in LLaVA's ``model/builder.py`` for a model class; only ``from_pretrained`` differs, and only for ours."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """LLaVA's class, built as LLaVA does."""
        return self._stock(*args, **kwargs)

    def from_pretrained(self, path: str, *args: Any, config: PretrainedConfig | None = None, **kwargs: Any) -> Any:
        """LLaVA's call, answered by our class when the config names a tower of ours.

        Our choice: float32 on a CPU. LLaVA asks for float16 everywhere; most CPUs have no arithmetic of 16 bits and
        take a hundred times as long, and float16 rounds what was stored as float32 or bfloat16.

        Raises:
            ValueError: a whole model whose projector is incomplete; transformers only warns, and makes up the rest.
        """
        values = config.to_dict() if config is not None else config_dict(path)
        if not is_ultra(PretrainedConfig(**values)):
            extra = {} if config is None else {"config": config}
            return self._stock.from_pretrained(path, *args, **extra, **kwargs)
        model_class, model_config = ultra_class(values)
        _keep_projector_whole(kwargs)
        on_cpu = not torch.cuda.is_available() or kwargs.get("device_map") == {"": "cpu"}
        if on_cpu and kwargs.get("torch_dtype") is torch.float16:
            kwargs["torch_dtype"] = torch.float32
        model, info = model_class.from_pretrained(path, *args, config=model_config, output_loading_info=True, **kwargs)
        # With a config of its own, LLaVA loads a base model here; the projector follows from another file.
        missing = sorted(name for name in info["missing_keys"] if NAME in name) if config is None else []
        if missing:
            raise ValueError(
                f"{path} lacks {', '.join(missing)}: these weights would be random. Load a folder that training "
                "finished, or merge again: llava-ultra merge --model-path … --model-base … --save-model-path …"
            )
        return model


def _keep_projector_whole(kwargs: dict[str, Any]) -> None:
    """``--load-8bit`` and ``--load-4bit`` mean the language model; Transformers would take the projector too."""
    if kwargs.pop("load_in_8bit", False):
        kwargs["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    kwargs.pop("load_in_4bit", None)  # LLaVA gives it beside its quantization_config
    if kwargs.get("quantization_config") is not None:
        kwargs["quantization_config"].llm_int8_skip_modules = [NAME, "lm_head"]


def ultra_class(values: dict[str, Any]) -> tuple[Any, PretrainedConfig]:
    """Our class and config object for the ``config.json`` of a saved model of ours."""
    from llava_ultra_ext.model.language_model import BACKBONES

    model_class, config_class = BACKBONES[values["ultra_backbone"]]
    kept = {name: value for name, value in values.items() if name != "model_type"}
    return model_class, config_class(**kept)


class TrainingDispatch:
    """Stands for ``LlavaLlamaForCausalLM`` in LLaVA's ``train/train.py`` while a run of ours lasts."""

    def from_pretrained(self, path: str, **kwargs: Any) -> Any:
        """The base model, LLaMA or Mistral, without the vision parts that its folder may name.

        Those are built by ``initialize_vision_modules``, outside DeepSpeed's ``zero.Init``, from the flags of this run.

        Raises:
            ValueError: the folder holds another architecture.
        """
        from llava_ultra_ext.model.language_model import BACKBONES

        values = config_dict(path)
        backbone = backbone_of(values, path)
        model_class, config_class = BACKBONES[backbone]
        kept = {
            name: value
            for name, value in values.items()
            if not name.startswith(("mm_", "ultra_")) and name not in ("model_type", "use_mm_proj", "architectures")
        }
        model = model_class.from_pretrained(path, config=config_class(**kept), **kwargs)
        model.config.ultra_backbone = backbone
        settle_generation(model.generation_config)
        return model


def settle_generation(config: Any) -> None:
    """Vicuna's settings hold a temperature without ``do_sample``, which Transformers reads but refuses to save."""
    if not config.do_sample:
        config.temperature, config.top_p = 1.0, 1.0


def backbone_of(values: dict[str, Any], path: str) -> str:
    """``llama`` or ``mistral``, from a base folder's ``model_type``.

    Raises:
        ValueError: any other architecture.
    """
    from llava_ultra_ext.arguments import MODEL_TYPES

    found = values.get("model_type")
    if found not in MODEL_TYPES:
        raise ValueError(
            f"--model_name_or_path {path}: model_type {found!r} in its config.json. "
            f"Allowed: {', '.join(sorted(MODEL_TYPES))} ("
            "LLaMA, Vicuna, LLaVA-Med, Mistral, or a Chinese model saved with LLaMA's architecture)."
        )
    return MODEL_TYPES[found]
