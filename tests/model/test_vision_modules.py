"""How tower and projector join a language model: the config, the first weights, and the separators."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_ultra import prompt_ids

from llava_ultra_ext.arguments import UltraSettings
from llava_ultra_ext.model.groups import runs
from llava_ultra_ext.model.vision_modules import read_projector, separator_ids

pytest.importorskip("llava")
CLIP, HIDDEN = 32, 64


def tensors(*shapes: tuple[int, ...], seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.fixture
def llava_base(tmp_path: Path, tiny_llama: Path, tiny_mistral: Path) -> Callable[..., Path]:
    """Makes a folder as LLaVA and LLaVA-Med wrote them: a language model with a projector and mm_ settings inside."""

    def make(style: str, layout: str, projector: dict[str, torch.Tensor]) -> Path:
        from safetensors.torch import load_file, save_file

        folder = tmp_path / f"{style}-{layout}"
        shutil.copytree(tiny_mistral if "mistral" in style else tiny_llama, folder)
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        state.update({f"model.mm_projector.{name}": value for name, value in projector.items()})
        names = sorted(state)
        if layout == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        elif layout == "safetensors":
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            parts = {f"part-{i}-of-2": names[i::2] for i in (0, 1)}
            ending = ".bin" if layout == "sharded bin" else ".safetensors"
            index = {name: part + ending for part, owned in parts.items() for name in owned}
            for part, owned in parts.items():
                found = {name: state[name] for name in owned}
                if ending == ".bin":
                    torch.save(found, folder / (part + ending))
                else:
                    save_file(found, folder / (part + ending), metadata={"format": "pt"})
            whole = "pytorch_model.bin" if ending == ".bin" else "model.safetensors"
            (folder / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        config = json.loads((folder / "config.json").read_text())
        config.update(model_type=style, mm_vision_tower="openai/clip-vit-large-patch14", mm_hidden_size=1024)
        config.update(use_mm_proj=True, mm_projector_type="linear", architectures=["LlavaLlamaForCausalLM"])
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def projector_of(made: Any) -> Any:
    return made.model.get_model().mm_projector


class TestFirstWeights:
    @pytest.mark.parametrize("layout", ["bin", "safetensors", "sharded bin", "sharded safetensors"])
    def test_llava_med_1_0s_projector_becomes_p1(
        self, build: Any, llava_base: Callable[..., Path], layout: str
    ) -> None:
        weight, bias = tensors((HIDDEN, CLIP), (HIDDEN,))
        base = llava_base("llava", layout, {"weight": weight, "bias": bias})
        made, fresh = build(base=base), build()
        assert torch.equal(projector_of(made).projections["clip"].weight, weight)
        assert torch.equal(projector_of(made).projections["clip"].bias, bias)
        for name in ("projections.sam.weight", "sampler.channel_weights"):
            own, other = (dict(projector_of(model).named_parameters())[name] for model in (made, fresh))
            assert torch.equal(own, other), "the rest starts fresh"
        assert torch.equal(made.model.lm_head.weight, fresh.model.lm_head.weight)
        assert made.model.config.mm_vision_tower == "sam_clip_fused"
        assert made.model.config.model_type == "llava_llama"

    def test_llava_med_1_5s_mlp_becomes_p1_on_mistral(self, build: Any, llava_base: Callable[..., Path]) -> None:
        names = ("0.weight", "0.bias", "2.weight", "2.bias")
        values = dict(zip(names, tensors((HIDDEN, CLIP), (HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN,)), strict=True))
        base = llava_base("llava_mistral", "sharded safetensors", values)
        made = build(base=base, mm_projector_type="mlp2x_gelu")
        found = projector_of(made).projections["clip"].state_dict()
        assert set(found) == set(names) and all(torch.equal(found[name], values[name]) for name in names)
        assert type(made.model).__name__ == "UltraMistralForCausalLM"
        assert made.model.config.ultra_backbone == "mistral"
        assert made.model.config.model_type == "llava_mistral"

    def test_a_projector_of_another_width_is_named_and_left_out(
        self, build: Any, llava_base: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        base = llava_base("llava", "bin", dict(zip(("weight", "bias"), tensors((HIDDEN, 8), (HIDDEN,)), strict=True)))
        with caplog.at_level(logging.WARNING, "llava_ultra_ext"):
            made = build(base=base)
        assert torch.equal(
            projector_of(made).projections["clip"].weight, projector_of(build()).projections["clip"].weight
        )
        assert "not used: ['projections.clip.weight']" in caplog.text

    def test_a_folder_of_ours_is_taken_whole(self, build: Any, tmp_path: Path) -> None:
        first = build(seed=5)
        first.model.save_pretrained(tmp_path)
        first.tokenizer.save_pretrained(tmp_path)
        again = build(base=tmp_path, seed=6)
        own, other = (dict(projector_of(model).named_parameters()) for model in (first, again))
        own.pop("fusion.logits")  # set by `build`
        assert all(torch.equal(value, other[name]) for name, value in own.items())

    def test_stage_1s_file_is_taken_whole(self, build: Any, tmp_path: Path) -> None:
        first = build(seed=5)
        state = {f"base_model.model.model.mm_projector.{n}": v for n, v in projector_of(first).state_dict().items()}
        torch.save(state, tmp_path / "mm_projector.bin")
        again = build(seed=6, pretrain_mm_mlp_adapter=str(tmp_path / "mm_projector.bin"))
        for name, value in projector_of(first).named_parameters():
            if name != "fusion.logits":
                assert torch.equal(value, dict(projector_of(again).named_parameters())[name])

    def test_stage_1s_file_must_fit(self, build: Any, tmp_path: Path) -> None:
        state = {f"model.mm_projector.{n}": v for n, v in projector_of(build()).state_dict().items()}
        del state["model.mm_projector.projections.sam.bias"]
        torch.save(state, tmp_path / "part.bin")
        with pytest.raises(
            ValueError, match=r"part.bin does not fit this projector: missing \['projections.sam.bias'\]"
        ):
            build(pretrain_mm_mlp_adapter=str(tmp_path / "part.bin"))

    def test_a_language_model_has_no_projector(self, tiny_llama: Path, tmp_path: Path) -> None:
        assert read_projector(tiny_llama) == {}
        assert read_projector(tmp_path / "not-here") == {}


class TestJoining:
    def test_the_config_says_what_the_model_is(self, build: Any, tiny_clip: Path, tiny_sam: Path) -> None:
        config = build(adr_strategy="attention", adr_top_k=2, mm_projector_type="mlp2x_gelu").model.config
        settings = UltraSettings.from_config(config)
        assert dict(settings.sources) == {"clip": str(tiny_clip), "sam": str(tiny_sam)}
        assert dict(settings.widths) == {"clip": 32, "sam": 64} and settings.tokens == 16
        assert (settings.adr_strategy, settings.adr_top_k, settings.backbone) == ("attention", 2, "llama")
        assert (config.mm_vision_tower, config.mm_projector_type) == ("sam_clip_fused", "mlp2x_gelu")
        assert (config.use_mm_proj, config.mm_hidden_size) == (True, 32)
        assert (config.mm_vision_select_layer, config.mm_vision_select_feature) == (-2, "patch")
        assert json.loads(config.to_json_string())["ultra_separator_ids"] == list(settings.separator_ids)

    def test_the_encoders_are_no_part_of_the_model(self, build: Any) -> None:
        model = build().model
        assert not any("vision_tower" in name for name, _ in model.named_modules())
        assert not any("vision_tower" in name for name in model.state_dict())
        assert model.get_vision_tower().is_loaded

    def test_further_encoders_and_one_alone(
        self, build: Any, tiny_clip: Path, tiny_sam: Path, tiny_dinov2: Path
    ) -> None:
        towers = {
            f"fused:clip={tiny_clip}": {"clip": 32},
            f"fused:clip={tiny_clip},sam={tiny_sam},dinov2={tiny_dinov2}": {"clip": 32, "sam": 64, "dinov2": 32},
        }
        for name, widths in towers.items():
            made = build(vision_tower=name, clip_tower=None, sam_tower=None)
            assert dict(made.model.settings.widths) == widths
            assert list(projector_of(made).projections) == list(widths)


class TestSeparators:
    SPELLINGS = ("<image>\n<image>\n", "<image><image>", "<image> <image>", "<image>\n\n<image>", "<image>\r\n<image>")

    @pytest.mark.parametrize("text", SPELLINGS, ids=repr)
    @pytest.mark.parametrize("which", ["legacy", "new"])
    def test_white_space_joins_frames(
        self, tiny_llama: Path, tiny_llama_new_tokenizer: Path, text: str, which: str
    ) -> None:
        from transformers import AutoTokenizer

        folder = tiny_llama if which == "legacy" else tiny_llama_new_tokenizer
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=False)
        separators = set(separator_ids(tokenizer))
        assert len(runs(prompt_ids(tokenizer, "请看" + text + "请描述").tolist(), separators)) == 1
        assert len(runs(prompt_ids(tokenizer, "请看<image>\n和<image>\n").tolist(), separators)) == 2
        assert tokenizer.unk_token_id not in separators
        for token in separators:
            assert not tokenizer.decode([token]).strip()
