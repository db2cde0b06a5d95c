"""FLOPs of a component's torch module, counted without computing."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from sdrt.export.components import TorchComponent


def count_flops(component: TorchComponent) -> int:
    """Return the FLOPs of one sample: two for each multiply-add of convolutions, matrix and attention products.

    torch's FlopCounterMode counts them on meta tensors, so nothing is computed. Element-wise work and normalisation
    are not counted, as usual. The module loses its weights: it cannot be used afterwards.
    """
    component.module.to("meta", torch.float32)
    example = {name: value.to("meta") for name, value in component.example(1, torch.float32).items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        component.module(**example)
    return int(counter.get_total_flops())
