"""LLaVA's ``ModelWorker`` in one process: how many tokens enter the LLM for exams of 1, 4 and 12 frames."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import torch

from llava_ultra_ext.activate import arm


def main() -> None:
    lora, base, frame = sys.argv[1:4]
    torch.set_num_threads(1)
    arm()
    out = sys.stdout  # importing LLaVA's worker takes it away
    from llava.serve.model_worker import ModelWorker

    worker = ModelWorker("", "", "0", True, lora, base, None, False, False, "cpu")
    lengths: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        lengths.append(kwargs["inputs_embeds"].shape[1] if kwargs.get("inputs_embeds") is not None else 1)

    worker.model.model.register_forward_pre_hook(count, with_kwargs=True)
    picture = base64.b64encode(Path(frame).read_bytes()).decode()
    found = {}
    for k in (1, 4, 12):
        lengths.clear()
        prompt = "用户: " + "<image>\n" * k + "请描述。 助手:"
        params = {"prompt": prompt, "images": [picture] * k, "temperature": 0, "max_new_tokens": 2, "stop": "</s>"}
        *_, last = worker.generate_stream_gate(params)
        assert json.loads(last[:-1])["error_code"] == 0, last
        found[k] = max(lengths)
    out.write("LENGTHS " + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
