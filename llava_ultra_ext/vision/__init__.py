"""Pictures to tokens: image processor, frozen encoders on one grid, projector (eq. 2), sampler (eq. 3-4), distillation.

Knows nothing of LLaVA: its parts take plain numbers, tensors and modules.
"""
