"""`load_pretrained_model` gives back the model that was saved, from the folder alone, or says what is missing."""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_ultra import pictures, prompt_ids

from llava_ultra_ext import llava_seams
from llava_ultra_ext.model import loading
from llava_ultra_ext.train.trainable import NON_LORA_FILE, PROJECTOR_FILE, learned_parameters, lora_state, save_tensors

pytest.importorskip("llava")
QUESTION = "<image>\n" * 4 + "请描述该甲状腺超声图像。"
MODELS = {"llama": "UltraLlamaForCausalLM", "mistral": "UltraMistralForCausalLM"}


@pytest.fixture(scope="session")  # `undo` gives everything back, so not before the end
def builder() -> Iterator[Any]:
    """LLaVA's `model/builder.py` and `llava_arch.py`, bound for these tests where the environment did not do it."""
    import llava.model.builder
    import llava.model.llava_arch

    bound = llava_seams.bind(llava.model.builder) + llava_seams.bind(llava.model.llava_arch)
    yield llava.model.builder
    if bound:
        llava_seams.undo()


@pytest.fixture
def load(builder: Any) -> Callable[..., Any]:
    return lambda path, base=None, name="anything", **options: builder.load_pretrained_model(
        str(path), None if base is None else str(base), name, **options
    )


def answers(
    model: Any, tokenizer: Any, images: torch.Tensor | None = None
) -> tuple[torch.Tensor, list[int], list[int]]:
    """H_v of four frames, the greedy answer, and the chosen frames."""
    images = pictures(4) if images is None else images
    model.eval()
    with torch.no_grad():
        h = model.encode_images(images)
    ids = prompt_ids(tokenizer, QUESTION)[None]
    tokens = model.generate(ids, images=images, do_sample=False, max_new_tokens=8, eos_token_id=-1, pad_token_id=0)
    return h, tokens[0].tolist(), model.last_choices[0].frames


def check_same(left: Any, right: Any) -> None:
    assert torch.equal(left[0], right[0])
    assert left[1:] == right[1:] and len(left[1]) == 1 + 8


def save_whole(made: Any, folder: Path, **options: Any) -> Path:
    made.model.save_pretrained(folder, **options)
    made.tokenizer.save_pretrained(folder)
    return folder


def save_stage_1(made: Any, folder: Path) -> Path:
    made.model.config.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    save_tensors({n: p.detach() for n, p in learned_parameters(made.model).items()}, folder / PROJECTOR_FILE)
    return folder


def save_lora(made: Any, folder: Path) -> Path:
    made.model.config.save_pretrained(folder)
    lora, rest = lora_state(made.wrapped)
    made.wrapped.save_pretrained(folder, state_dict=lora)
    save_tensors(rest, folder / NON_LORA_FILE)
    return folder


class TestRestored:
    @pytest.mark.parametrize("base", list(MODELS))
    @pytest.mark.parametrize("layout", [{}, {"safe_serialization": False}, {"max_shard_size": "200KB"}], ids=str)
    def test_a_whole_model_from_its_folder_alone(
        self, build: Any, load: Callable[..., Any], tmp_path: Path, base: str, layout: dict
    ) -> None:
        flags = {"adr_strategy": "feature", "mm_projector_type": "mlp2x_gelu", "mm_fusion_alpha": "channel"}
        made = build(base=base, **flags)
        tokenizer, model, processor, _ = load(save_whole(made, tmp_path / "out", **layout))
        assert type(model).__name__ == MODELS[base] and model.dtype == torch.float32
        check_same(answers(model, tokenizer), answers(made.model, made.tokenizer))
        assert model.settings == made.model.settings
        tower = made.model.get_vision_tower()
        assert (processor.crop_size, processor.image_mean) == (
            tower.image_processor.crop_size,
            tower.image_processor.image_mean,
        )
        assert not model.training
        # LLaVA's branch for Mistral takes the fast tokenizer; training used the slow one.
        assert type(tokenizer) is type(made.tokenizer) and not tokenizer.is_fast

    @pytest.mark.parametrize("base", list(MODELS))
    def test_stage_1_with_its_base(
        self, build: Any, load: Callable[..., Any], tmp_path: Path, base: str, request: pytest.FixtureRequest
    ) -> None:
        made = build(base=base, adr_strategy="feature")
        folder = save_stage_1(made, tmp_path / "no-name-of-theirs")
        tokenizer, model, _, _ = load(folder, request.getfixturevalue(f"tiny_{base}"))
        assert type(model).__name__ == MODELS[base]
        # LLaVA's own code would have rounded the projector to float16.
        check_same(answers(model, tokenizer), answers(made.model, made.tokenizer))

    @pytest.mark.parametrize("base", list(MODELS))
    def test_lora_with_its_base(
        self, build: Any, load: Callable[..., Any], tmp_path: Path, base: str, request: pytest.FixtureRequest
    ) -> None:
        made = build(base=base, adr_strategy="feature", peft=True)
        with torch.no_grad():
            for name, parameter in made.wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
        folder = save_lora(made, tmp_path / "checkpoint-3")
        tokenizer, model, _, _ = load(folder, request.getfixturevalue(f"tiny_{base}"))
        found, expected = answers(model, tokenizer), answers(made.model, made.tokenizer)
        check_same(found, expected)
        weight = made.model.model.layers[0].self_attn.q_proj
        merged = weight.base_layer.weight + weight.get_delta_weight("default")
        assert torch.allclose(model.model.layers[0].self_attn.q_proj.weight, merged, atol=1e-6)
        assert not torch.equal(weight.base_layer.weight, merged)

    def test_a_trained_neck_comes_from_the_folder(self, build: Any, load: Callable[..., Any], tmp_path: Path) -> None:
        made = build(adr_strategy="feature", sam_trainable="neck")
        with torch.no_grad():
            for parameter in made.model.get_model().mm_projector.neck.parameters():
                parameter.mul_(1.5)
        tokenizer, model, _, _ = load(save_whole(made, tmp_path / "out"))
        check_same(answers(model, tokenizer), answers(made.model, made.tokenizer))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_a_cpu_computes_in_float32_whatever_is_stored(
        self, build: Any, load: Callable[..., Any], tmp_path: Path, dtype: torch.dtype
    ) -> None:
        if torch.cuda.is_available():
            pytest.skip("this machine has CUDA")
        made = build(adr_strategy="feature")
        half = made.model.to(dtype)
        _, model, _, _ = load(save_whole(made, tmp_path / "out"))
        assert model.dtype == torch.float32 and model.get_vision_tower().dtype == torch.float32
        assert torch.equal(model.lm_head.weight, half.lm_head.weight.float())


class TestRefused:
    def test_a_whole_folder_without_its_projector(self, build: Any, load: Callable[..., Any], tmp_path: Path) -> None:
        """LLaVA and transformers only warn, and answer with a random projector."""
        made = build()
        state = {n: v for n, v in made.model.state_dict().items() if "projections.sam" not in n}
        made.model.save_pretrained(tmp_path, state_dict=state)
        made.tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"lacks .*projections\.sam\.weight"):
            load(tmp_path)

    @pytest.mark.parametrize("kind", ["stage 1", "LoRA"])
    def test_a_part_without_its_base(self, build: Any, load: Callable[..., Any], tmp_path: Path, kind: str) -> None:
        made = build(peft=kind == "LoRA")
        (save_lora if kind == "LoRA" else save_stage_1)(made, tmp_path)
        with pytest.raises(ValueError, match=rf"is a {kind} folder and holds no language model.*--model-base"):
            load(tmp_path)

    @pytest.mark.parametrize("kind", ["stage 1", "LoRA"])
    def test_a_part_without_what_was_learned(
        self, build: Any, load: Callable[..., Any], tmp_path: Path, tiny_llama: Path, kind: str
    ) -> None:
        made = build(peft=kind == "LoRA")
        (save_lora if kind == "LoRA" else save_stage_1)(made, tmp_path)
        (tmp_path / (NON_LORA_FILE if kind == "LoRA" else PROJECTOR_FILE)).unlink()
        with pytest.raises(ValueError, match=r"has neither non_lora_trainables\.bin nor mm_projector\.bin"):
            load(tmp_path, tiny_llama)

    @pytest.mark.parametrize("kind", ["stage 1", "LoRA"])
    def test_a_part_with_a_key_missing(
        self, build: Any, load: Callable[..., Any], tmp_path: Path, tiny_llama: Path, kind: str
    ) -> None:
        made = build(peft=kind == "LoRA")
        (save_lora if kind == "LoRA" else save_stage_1)(made, tmp_path)
        path = tmp_path / (NON_LORA_FILE if kind == "LoRA" else PROJECTOR_FILE)
        state = torch.load(path)
        torch.save({name: value for name, value in state.items() if "fusion" not in name}, path)
        with pytest.raises(ValueError, match=r"does not fit this projector: missing \['fusion.logits'\]"):
            load(tmp_path, tiny_llama)

    def test_a_base_of_another_size(
        self, build: Any, load: Callable[..., Any], tmp_path: Path, tiny_llama: Path
    ) -> None:
        import tiny_models

        other = tiny_models.make_llama(tmp_path / "other", hidden=32)
        save_stage_1(build(), tmp_path / "out")
        with pytest.raises(ValueError, match=r"hidden_size 32 \(trained from 64\).*--model_name_or_path"):
            load(tmp_path / "out", other)

    def test_a_base_of_another_architecture(
        self, build: Any, load: Callable[..., Any], tmp_path: Path, tiny_mistral: Path
    ) -> None:
        save_stage_1(build(), tmp_path / "out")
        with pytest.raises(ValueError, match=r"--model-base .*: architecture mistral \(trained from llama\)"):
            load(tmp_path / "out", tiny_mistral)

    def test_an_encoder_that_is_gone(
        self, build: Any, load: Callable[..., Any], tmp_path: Path, tiny_clip: Path
    ) -> None:
        moved = tmp_path / "clip"
        shutil.copytree(tiny_clip, moved)
        save_whole(build(clip_tower=str(moved)), tmp_path / "out")
        shutil.rmtree(moved)
        with pytest.raises(ValueError, match=f"clip encoder '{moved}'"):
            load(tmp_path / "out")


class TestStock:
    def test_other_folders_go_through_untouched(self, tiny_llama: Path, tmp_path: Path) -> None:
        calls: list[Any] = []

        def original(*args: Any, **kwargs: Any) -> str:
            calls.append((args, kwargs))
            return "theirs"

        stock = tmp_path / "llava-stock"
        stock.mkdir()
        config = {"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
        (stock / "config.json").write_text(json.dumps(config))
        for path in (str(stock), str(tiny_llama), str(tmp_path / "nowhere")):
            assert loading.load_pretrained(original, path, None, "llava-v1.5", True, device="cpu") == "theirs"
        expected = [
            ((p, None, "llava-v1.5", True), {"device": "cpu"}) for p in (stock, tiny_llama, tmp_path / "nowhere")
        ]
        assert [((Path(a[0]), *a[1:]), k) for a, k in calls] == expected

    def test_the_class_hands_over_with_the_very_arguments(self, tiny_llama: Path) -> None:
        from llava_ultra_ext.model.dispatch import ModelDispatch

        class Stock:
            mark = "stock"

            @classmethod
            def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
                return args, kwargs

        dispatch = ModelDispatch(Stock)
        assert dispatch.from_pretrained(str(tiny_llama), low_cpu_mem_usage=True) == (
            (str(tiny_llama),),
            {"low_cpu_mem_usage": True},
        )
        config = types.SimpleNamespace(to_dict=lambda: {"mm_vision_tower": "openai/clip"})
        assert dispatch.from_pretrained("x", config=config) == (("x",), {"config": config})
        assert dispatch.mark == "stock" and isinstance(dispatch(), Stock)
