"""`llava-ultra merge`: the merged folder is the model that answers from the LoRA folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from run_llava import flags, run_llava, train_mem
from safetensors.torch import load_file, save_file
from trained import Trained, training_flags

from llava_ultra_ext.model.opening import open_model
from llava_ultra_ext.train import merge

pytestmark = pytest.mark.usefixtures("armed")


def arguments(lora: Path, base: Path, target: Path) -> list[str]:
    return ["--model-path", str(lora), "--model-base", str(base), "--save-model-path", str(target)]


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def opened(folder: Path, base: Path | None) -> tuple[Any, Any, Any]:
    """Plainly, by LLaVA's own loader."""
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model

    name = get_model_name_from_path(str(folder))
    tokenizer, model, processor, _ = load_pretrained_model(str(folder), base and str(base), name)
    return tokenizer, model, processor


def greedy_tokens(folder: Path, base: Path | None, exams: Path) -> list[list[int]]:
    """Of every exam of `train.json` with pictures, 30 tokens."""
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import tokenizer_image_token

    tokenizer, model, processor = opened(folder, base)
    found = []
    for sample in json.loads((exams / "train.json").read_text(encoding="utf-8"))[:5]:
        conversation = conv_templates["ultra_v1_zh"].copy()
        conversation.append_message(conversation.roles[0], sample["conversations"][0]["value"])
        conversation.append_message(conversation.roles[1], None)
        ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
        pictures = [Image.open(exams / name) for name in sample["image"]]
        pixels = processor.preprocess(pictures, return_tensors="pt")["pixel_values"]
        output = model.generate(ids[None], images=pixels[None], do_sample=False, max_new_tokens=30)
        found.append(output[0].tolist())
    return found


@pytest.fixture(scope="module")
def merged(trained_lora: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("merged") / "llava-merged"
    assert merge.main(arguments(trained_lora.lora, trained_lora.base, target)) == 0
    return target


def test_merged_answers_are_the_lora_folders(merged: Path, trained_lora: Trained) -> None:
    lora = greedy_tokens(trained_lora.lora, trained_lora.base, trained_lora.exams)
    assert greedy_tokens(merged, None, trained_lora.exams) == lora
    stage1 = greedy_tokens(trained_lora.stage1, trained_lora.base, trained_lora.exams)
    assert stage1 != lora  # LoRA matters here
    assert sum(map(len, lora)) > 20


def test_merged_weights_are_the_lora_models(merged: Path, trained_lora: Trained) -> None:
    expected = opened(trained_lora.lora, trained_lora.base)[1].state_dict()
    found = opened(merged, None)[1].state_dict()
    assert set(found) == set(expected) and any("mm_projector.sampler" in name for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(merged / "model.safetensors").values())


def test_merged_config_keeps_type_and_settings(merged: Path, trained_lora: Trained) -> None:
    lora, whole = config_of(trained_lora.lora), config_of(merged)
    assert whole["model_type"] == "llava_llama"
    kept = [key for key in lora if key.startswith(("mm_", "ultra_", "tokenizer_", "image_"))]
    assert len(kept) > 30
    assert {key: whole[key] for key in kept} == {key: lora[key] for key in kept}


def test_mistral(tiny_mistral: Path, exam_folder: Path, tiny_clip: Path, tiny_sam: Path, tmp_path: Path) -> None:
    lora = tmp_path / "llava-lora"
    values = training_flags(tiny_mistral, exam_folder, tiny_clip, tiny_sam, lora)
    values |= {"lora_enable": True, "lora_r": 4, "version": "ultra_v1_zh", "max_steps": 4, "learning_rate": 1e-2}
    run_llava(train_mem(), *flags(values))
    target = tmp_path / "llava-merged"
    merge.main(arguments(lora, tiny_mistral, target))
    assert config_of(target)["model_type"] == "llava_mistral"
    assert greedy_tokens(target, None, exam_folder) == greedy_tokens(lora, tiny_mistral, exam_folder)


def test_saved_in_the_dtype_of_the_training(trained_lora: Trained, tmp_path: Path) -> None:
    lora = shutil.copytree(trained_lora.lora, tmp_path / "llava-lora")
    adapter = lora / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(adapter).items()}, adapter)
    (lora / "config.json").write_text(json.dumps({**config_of(lora), "torch_dtype": "bfloat16"}))
    target = tmp_path / "llava-merged"
    merge.main(arguments(lora, trained_lora.base, target))
    assert config_of(target)["torch_dtype"] == "bfloat16"
    saved = load_file(target / "model.safetensors")
    merged = open_model(str(lora), str(trained_lora.base), "cpu").model.state_dict()  # in float32
    assert all(torch.equal(tensor, merged[name].bfloat16()) for name, tensor in saved.items())
    assert all(tensor.dtype == torch.bfloat16 for tensor in saved.values()) and "lm_head.weight" in saved


def test_a_base_with_vicunas_generation_settings(trained_lora: Trained, tmp_path: Path) -> None:
    base = shutil.copytree(trained_lora.base, tmp_path / "vicuna")
    given = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6, "transformers_version": "4.37.2"}
    (base / "generation_config.json").write_text(json.dumps(given))
    target = tmp_path / "llava-merged"
    merge.main(arguments(trained_lora.lora, base, target))
    saved = json.loads((target / "generation_config.json").read_text())
    assert not saved.get("do_sample") and saved["eos_token_id"] == 2


def test_a_full_disk_leaves_nothing(trained_lora: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_ultra_ext.model.language_model import UltraLlamaForCausalLM

    def half(self: Any, folder: str) -> None:
        os.makedirs(folder)
        Path(folder, "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(UltraLlamaForCausalLM, "save_pretrained", half)
    with pytest.raises(OSError, match="No space left"):
        merge.main(arguments(trained_lora.lora, trained_lora.base, tmp_path / "llava-merged"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ultra", "the name must have 'llava' in it: LLaVA's programs choose by the folder's name"),
        ("llava-lora-merged", "the name must not have 'lora' in it.*a LoRA folder that needs --model-base"),
        ("llava-prompt", "the name must not have 'mpt' in it.*an MPT model"),
        ("llava-full", "exists and is not empty. Give a new folder"),
    ],
)
def test_targets_that_are_refused(
    name: str, message: str, trained_lora: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "open_model", None)
    (tmp_path / "llava-full").mkdir()
    (tmp_path / "llava-full" / "x").touch()
    with pytest.raises(ValueError, match=message):
        merge.main(arguments(trained_lora.lora, trained_lora.base, tmp_path / name))


def test_sources_that_are_refused(trained_lora: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "open_model", None)
    target = tmp_path / "llava-merged"
    with pytest.raises(ValueError, match="is no LoRA folder"):
        merge.main(arguments(trained_lora.stage1, trained_lora.base, target))
    with pytest.raises(ValueError, match="is not a LLaVA-Ultra folder"):
        merge.main(arguments(trained_lora.base, trained_lora.base, target))
    with pytest.raises(ValueError, match=r"--model-base .*nowhere: no config.json could be read"):
        merge.main(arguments(trained_lora.lora, tmp_path / "nowhere", target))


def test_an_empty_target_is_filled(trained_lora: Trained, tmp_path: Path) -> None:
    target = tmp_path / "llava-merged"
    target.mkdir()
    merge.main(arguments(trained_lora.lora, trained_lora.base, target))
    assert (target / "model.safetensors").is_file() and (target / "tokenizer.model").is_file()
