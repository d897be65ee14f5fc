"""One thin class a backbone: ours before LLaVA's, so LLaVA's own code runs wherever ours does not speak."""

from __future__ import annotations

from typing import Any

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM, LlavaLlamaModel
from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM, LlavaMistralModel
from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM

from llava_ultra_ext.model.ultra_arch import UltraMetaForCausalLM
from llava_ultra_ext.model.vision_modules import UltraMetaModel, separator_ids


class _UltraTokenizer(UltraMetaForCausalLM):
    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: Any) -> None:
        """LLaVA's, and the token ids that separate frames: the model must find groups without a tokenizer."""
        super().initialize_vision_tokenizer(model_args, tokenizer)
        self.config.ultra_separator_ids = list(separator_ids(tokenizer))
        if self.config.bos_token_id is None:
            self.config.bos_token_id = tokenizer.bos_token_id
        if self.config.bos_token_id is None and self.settings.adr_strategy == "likelihood":
            raise ValueError(
                "--adr_strategy likelihood: neither config.json nor the tokenizer names a bos_token_id, with which the "
                "teacher's sequences start. Set it in config.json, or use --adr_strategy attention."
            )


class UltraLlamaModel(UltraMetaModel, LlavaLlamaModel):
    """LLaVA's Llama decoder, with the vision modules of `UltraMetaModel`."""

    config_class = LlavaConfig


class UltraLlamaForCausalLM(_UltraTokenizer, LlavaLlamaForCausalLM):
    """LLaMA, Vicuna, LLaVA-Med v1.0 and any Chinese model of LLaMA's architecture. Saved as ``llava_llama``."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = UltraLlamaModel(config)
        self.pretraining_tp = config.pretraining_tp
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class UltraMistralModel(UltraMetaModel, LlavaMistralModel):
    """LLaVA's Mistral decoder, with the vision modules of `UltraMetaModel`."""

    config_class = LlavaMistralConfig


class UltraMistralForCausalLM(_UltraTokenizer, LlavaMistralForCausalLM):
    """Mistral, LLaVA-Med v1.5; LLaVA's train.py cannot build it, ours can. Saved as ``llava_mistral``."""

    config_class = LlavaMistralConfig

    def __init__(self, config: LlavaMistralConfig) -> None:
        super(MistralForCausalLM, self).__init__(config)
        self.model = UltraMistralModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


BACKBONES = {
    "llama": (UltraLlamaForCausalLM, LlavaConfig),
    "mistral": (UltraMistralForCausalLM, LlavaMistralConfig),
}
