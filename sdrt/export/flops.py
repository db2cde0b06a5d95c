"""Count a module's work without doing it."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from sdrt.export.components import TorchComponent


def count_flops(component: TorchComponent) -> int:
    """FLOPs of one sample: two for each multiply-add of convolutions, matrix and attention products.

    Counted by torch's FlopCounterMode on meta tensors, so nothing is computed. Element-wise work and normalisation
    are not counted, as is the custom. The module's weights are given up, so this is the last thing done with it.
    """
    component.module.to("meta", torch.float32)
    example = {name: value.to("meta") for name, value in component.example(1, torch.float32).items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        component.module(**example)
    return int(counter.get_total_flops())
