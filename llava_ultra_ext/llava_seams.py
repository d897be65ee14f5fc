"""THE boundary: every name of LLaVA that this package binds, checked before any of them is changed.

LLaVA binds names at import (``from … import``, ``import *``), so a replacement must land in the module that *uses* the
name, right after that module was imported and before it runs. Each `Seam` is one such name: the host module, the
parameters we count on, what we put there and why. `check` reads the installed LLaVA's source without importing it;
`bind` is called by the import hook of :mod:`llava_ultra_ext.activate`; `undo` puts LLaVA's own objects back.

With any vision tower that is not ours, every replacement hands over to LLaVA's own object.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from llava_ultra_ext.llava_source import Definitions, llava_folder, parameters, source_file

__all__ = ["KNOWN_STATES", "SEAMS", "Seam", "UnknownLlava", "bind", "check", "fingerprint", "known_as", "llava_folder"]
__all__ += ["rebind", "undo"]

logger = logging.getLogger(__name__)

Replacement = Callable[[Any, ModuleType], Any]


@dataclass(frozen=True)
class Seam:
    """One name of LLaVA: where it lives, what we count on, what we bind, and why.

    Args:
        module: host module, as ``llava.train.train``.
        name: global of that module, or ``Class.method``.
        parameters: parameter names in order for a function, constructor-less classes and data give ``None``.
        replace: takes LLaVA's object and the host module, returns ours. ``None``: bound later, by the piece that
            ``why`` names, only while a run of ours lasts; listed here so that it is checked with the rest.
        why: what breaks without it.
    """

    module: str
    name: str
    parameters: tuple[str, ...] | None
    replace: Replacement | None
    why: str

    @property
    def title(self) -> str:
        """``module:name``, as messages show it."""
        return f"{self.module}:{self.name}"


def _train(original: Any, host: ModuleType) -> Any:
    def train(attn_implementation: str | None = None) -> Any:
        from llava_ultra_ext.train.program import run_training

        return run_training(host, original, attn_implementation)

    return train


def _build_vision_tower(original: Any, host: ModuleType) -> Any:
    def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> Any:
        from llava_ultra_ext.model.builders import is_ultra, tower_from_config

        if is_ultra(vision_tower_cfg):
            return tower_from_config(vision_tower_cfg)
        return original(vision_tower_cfg, **kwargs)

    return build_vision_tower


def _build_vision_projector(original: Any, host: ModuleType) -> Any:
    def build_vision_projector(config: Any, delay_load: bool = False, **kwargs: Any) -> Any:
        from llava_ultra_ext.model.builders import is_ultra, projector_from_config

        if is_ultra(config):
            return projector_from_config(config)
        return original(config, delay_load=delay_load, **kwargs)

    return build_vision_projector


def _model_class(original: Any, host: ModuleType) -> Any:
    from llava_ultra_ext.model.dispatch import ModelDispatch

    return ModelDispatch(original)


def _load_pretrained_model(original: Any, host: ModuleType) -> Any:
    def load_pretrained_model(
        model_path: str, model_base: str | None, model_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        from llava_ultra_ext.model.loading import load_pretrained

        return load_pretrained(original, model_path, model_base, model_name, *args, **kwargs)

    return load_pretrained_model


def _conv_templates(original: dict[str, Any], host: ModuleType) -> dict[str, Any]:
    from llava_ultra_ext.conversation import templates

    return {**original, **templates(host.Conversation, host.SeparatorStyle)}


def _serving(module: str, name: str) -> Replacement:
    """A replacement of a module in serve/, imported when it is bound: it loads torch."""

    def replace(original: Any, host: ModuleType) -> Any:
        return getattr(importlib.import_module(f"llava_ultra_ext.serve.{module}"), name)(original, host)

    return replace


_TRAINING = "bound by train/program.py for a run of ours: "

SEAMS: tuple[Seam, ...] = (
    Seam(
        "llava.conversation",
        "conv_templates",
        None,
        _conv_templates,
        "the Chinese templates, by --version and --conv-mode",
    ),
    Seam(
        "llava.model.llava_arch",
        "build_vision_tower",
        ("vision_tower_cfg", "**kwargs"),
        _build_vision_tower,
        "LLaVA's builder knows CLIP only and refuses any other name",
    ),
    Seam(
        "llava.model.llava_arch",
        "build_vision_projector",
        ("config", "delay_load", "**kwargs"),
        _build_vision_projector,
        "mm_projector must hold P1, P2, alpha and the feature score",
    ),
    Seam(
        "llava.model.llava_arch",
        "LlavaMetaForCausalLM.prepare_inputs_labels_for_multimodal",
        ("self", "input_ids", "position_ids", "attention_mask", "past_key_values", "labels", "images", "image_sizes"),
        None,
        "overridden by model/ultra_arch.py: one frame of an exam is chosen before LLaVA's own splice",
    ),
    Seam(
        "llava.model.llava_arch",
        "LlavaMetaForCausalLM.encode_images",
        ("self", "images"),
        None,
        "overridden by model/ultra_arch.py: hands LLaVA's splice the frames that were chosen",
    ),
    Seam(
        "llava.model.llava_arch",
        "LlavaMetaModel.initialize_vision_modules",
        ("self", "model_args", "fsdp"),
        None,
        "overridden by model/ultra_arch.py: LLaVA copies a fixed list of flags and forgets every other",
    ),
    Seam(
        "llava.model.llava_arch",
        "LlavaMetaForCausalLM.initialize_vision_tokenizer",
        ("self", "model_args", "tokenizer"),
        None,
        "extended by model/language_model.py: the ids of white space, by which frames of one exam are found",
    ),
    Seam(
        "llava.model.language_model.llava_llama",
        "LlavaLlamaForCausalLM.generate",
        ("self", "inputs", "images", "image_sizes", "**kwargs"),
        None,
        "extended by model/ultra_arch.py: says which frames were chosen",
    ),
    Seam(
        "llava.model.language_model.llava_mistral",
        "LlavaMistralForCausalLM.generate",
        ("self", "inputs", "images", "image_sizes", "**kwargs"),
        None,
        "the same for Mistral",
    ),
    Seam("llava.model.builder", "LlavaLlamaForCausalLM", None, _model_class, "a folder of ours needs our model class"),
    Seam("llava.model.builder", "LlavaMistralForCausalLM", None, _model_class, "the same for Mistral (LLaVA-Med v1.5)"),
    Seam(
        "llava.model.builder",
        "load_pretrained_model",
        (
            *("model_path", "model_base", "model_name", "load_8bit", "load_4bit", "device_map", "device"),
            *("use_flash_attn", "**kwargs"),
        ),
        _load_pretrained_model,
        "LLaVA goes by the folder's name, takes half precision on a CPU and does not notice a missing projector",
    ),
    Seam(
        "llava.train.train",
        "train",
        ("attn_implementation",),
        _train,
        "sees --vision_tower before anything is parsed or loaded",
    ),
    Seam("llava.train.train", "ModelArguments", None, None, _TRAINING + "our flags"),
    Seam("llava.train.train", "DataArguments", None, None, _TRAINING + "our flags"),
    Seam("llava.train.train", "LlavaLlamaForCausalLM", None, None, _TRAINING + "our model, Mistral included"),
    Seam("llava.train.train", "LLaVATrainer", None, None, _TRAINING + "L_adr, logs, complete checkpoints"),
    Seam(
        "llava.train.train",
        "make_supervised_data_module",
        ("tokenizer", "data_args"),
        None,
        _TRAINING + "several images a sample, Chinese lengths, exact labels",
    ),
    Seam(
        "llava.train.train",
        "safe_save_model_for_hf_trainer",
        ("trainer", "output_dir"),
        None,
        _TRAINING + "LLaVA's calls torch.cuda.synchronize, which fails without CUDA",
    ),
    Seam(
        "llava.train.llava_trainer",
        "LLaVATrainer.create_optimizer",
        ("self",),
        None,
        "extended by train/trainer.py: DeepSpeed loses count of empty parameter groups",
    ),
    Seam(
        "llava.train.llava_trainer",
        "LLaVATrainer._save_checkpoint",
        ("self", "model", "trial", "metrics"),
        None,
        "overridden by train/trainer.py: whole checkpoints in stage 1 too",
    ),
    Seam(
        "llava.serve.model_worker",
        "ModelWorker.generate_stream",
        ("self", "params"),
        None,
        "called by serve/exam_stream.py with a token budget that counts the frames that are kept",
    ),
    Seam(
        "llava.serve.model_worker",
        "ModelWorker.generate_stream_gate",
        ("self", "params"),
        _serving("worker", "exam_stream_gate"),
        "the worker hides every error, and cannot say which frame was chosen",
    ),
    Seam(
        "llava.serve.model_worker",
        "ModelWorker.get_queue_length",
        ("self",),
        _serving("worker", "exam_queue_length"),
        "the controller's choice must count our queue, not LLaVA's semaphore",
    ),
    Seam(
        "llava.serve.model_worker",
        "ModelWorker.send_heart_beat",
        ("self",),
        _serving("worker", "exam_heart_beat"),
        "sent in the event loop, it holds up every answer while the controller is slow or gone",
    ),
    Seam(
        "llava.serve.model_worker",
        "model_semaphore",
        None,
        None,
        "opened by serve/service.py for a model of ours: requests wait before it without a bound and without a word",
    ),
    Seam(
        "llava.serve.model_worker",
        "app",
        None,
        _serving("exam_app", "ExamApp"),
        "reads a request of any length, and lets nobody know that a client has gone",
    ),
    Seam(
        "llava.serve.model_worker",
        "load_image_from_base64",
        ("image",),
        _serving("worker", "checked_picture"),
        "would decode pictures that were decoded for their check",
    ),
    Seam(
        "llava.serve.model_worker",
        "TextIteratorStreamer",
        None,
        _serving("worker", "exam_streamer"),
        "gives up after 15 s without a token",
    ),
    Seam(
        "llava.serve.model_worker",
        "Thread",
        None,
        _serving("worker", "exam_thread"),
        "the error of a generate that fails is lost with its thread, and nobody knows when it has ended",
    ),
)

KNOWN_STATES: dict[str, str] = {
    "04245faa": "PyPI release 1.2.2.post1 (git tag v1.2.2.post1)",
    "4b799e36": "git head with the version string 1.2.2.post1",
}
"""`fingerprint` -> the LLaVA states that this package is tested with."""


class UnknownLlava(RuntimeError):
    """The installed LLaVA lacks a name, or gives a function other parameters, than this package counts on."""


def fingerprint(folder: Path) -> str:
    """Eight hex digits over the source files that the seams name."""
    digest = hashlib.sha256()
    for module in sorted({seam.module for seam in SEAMS}):
        path = source_file(folder, module)
        digest.update(path.read_bytes() if path.is_file() else b"absent")
    return digest.hexdigest()[:8]


def known_as(folder: Path) -> str:
    """Which tested LLaVA state this is; empty for an untested one, whose seams may fit all the same."""
    return KNOWN_STATES.get(fingerprint(folder), "")


def _misfit(seam: Seam, folder: Path, llava: Definitions) -> str | None:
    path = source_file(folder, seam.module)
    if not path.is_file():
        return f"{seam.title}: {path} does not exist"
    try:
        node = llava.find(seam.module, seam.name)
    except SyntaxError as error:
        return f"{seam.title}: this Python cannot read {error.filename or path} (line {error.lineno}: {error.msg})"
    if node is None:
        return f"{seam.title}: no such name in {path}"
    found = parameters(node)
    if seam.parameters is not None and found != seam.parameters:
        return f"{seam.title}: expected parameters {seam.parameters}, found {found}"
    return None


def check(folder: Path) -> list[str]:
    """Compare every seam with LLaVA's source; nothing is imported or changed.

    Returns:
        One sentence for each seam that does not fit; empty when all fit.
    """
    llava = Definitions(folder)
    return [problem for problem in (_misfit(seam, folder, llava) for seam in SEAMS) if problem]


_bound: dict[tuple[int, str], tuple[Any, str, Any, Any]] = {}
"""Owner, name, LLaVA's object, ours."""


def rebind(owner: Any, name: str, value: Any) -> None:
    """Set an attribute and remember LLaVA's own object, so that `undo` can put it back."""
    key, current = (id(owner), name), getattr(owner, name)
    original = _bound[key][2] if is_bound(owner, name) else current
    _bound[key] = (owner, name, original, value)
    setattr(owner, name, value)


def is_bound(owner: Any, name: str) -> bool:
    """Whether an attribute is the object that was put there; False again after the host module was reloaded."""
    entry = _bound.get((id(owner), name))
    return entry is not None and getattr(owner, name) is entry[3]


def bind(host: ModuleType, module_name: str | None = None) -> list[str]:
    """Bind the seams of one freshly imported LLaVA module.

    Args:
        host: the module object; ``sys.modules["__main__"]`` for a program that runs by ``python -m``.
        module_name: the LLaVA name of that module, when it differs from ``host.__name__``.

    Returns:
        The titles of the seams that were bound; those that were bound before are left alone.
    """
    bound = []
    for seam in SEAMS:
        if seam.module != (module_name or host.__name__) or seam.replace is None:
            continue
        owner: Any = host
        *parents, name = seam.name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        if not is_bound(owner, name):
            rebind(owner, name, seam.replace(getattr(owner, name), host))
            bound.append(seam.title)
    return bound


def undo() -> None:
    """Put back every object of LLaVA that `bind` or `rebind` replaced in this process."""
    for owner, name, original, _ in reversed(list(_bound.values())):
        setattr(owner, name, original)
    _bound.clear()
