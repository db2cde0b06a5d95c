"""LPIPS, a perceptual distance between pictures; needs the extra ``lpips``."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sdrt.errors import NumericError
from sdrt.install_lines import extra_line

if TYPE_CHECKING:
    import torch

#: Distance between a reference and a candidate; 0 if they are equal.
Lpips = Callable[[Image.Image, Image.Image], float]


def open_lpips() -> tuple[Lpips | None, str]:
    """Open LPIPS over AlexNet (Zhang et al. 2018, arXiv:1801.03924) with its authors' weights.

    torchvision downloads AlexNet's own weights once, into torch's cache.

    Returns:
        The distance and its version; None and the reason if the extra is not installed, or AlexNet is neither cached
        nor reachable.
    """
    if find_spec("lpips") is None:
        return None, f"not measured: {extra_line('lpips')}"
    try:
        weights = _alexnet_weights()
    except (OSError, RuntimeError) as error:
        return None, f"not measured: AlexNet's weights cannot be fetched ({type(error).__name__})"
    import lpips

    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    # lpips reads AlexNet's file as a pickle that can run code, so it starts from random weights and is filled here.
    network.net.load_state_dict(_as_slices(network.net, weights))
    return _measured_by(network), f"{version('lpips')}, AlexNet"


def _alexnet_weights() -> dict[str, torch.Tensor]:
    """Load AlexNet's ImageNet weights, by torchvision's names.

    Raises:
        OSError: They are neither cached nor reachable.
        RuntimeError: The downloaded file does not have the digest in its name.
    """
    import torch
    from torchvision.models import AlexNet_Weights

    url = AlexNet_Weights.IMAGENET1K_V1.url
    weights: dict[str, torch.Tensor] = torch.hub.load_state_dict_from_url(
        url, progress=False, check_hash=True, weights_only=True
    )
    return weights


def _as_slices(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename torchvision's weights to lpips' names: features.6.bias to slice3.6.bias."""
    return {name: weights["features." + name.partition(".")[2]] for name in network.state_dict()}


def _measured_by(network: Any) -> Lpips:
    import torch

    def as_tensor(picture: Image.Image) -> torch.Tensor:
        levels = np.asarray(picture, np.float32).transpose(2, 0, 1)[np.newaxis]
        return torch.from_numpy(levels / 127.5 - 1)

    def distance(reference: Image.Image, candidate: Image.Image) -> float:
        with torch.inference_mode():
            found = float(network(as_tensor(reference), as_tensor(candidate)))
        if not math.isfinite(found):
            raise NumericError(f"LPIPS is {found}", hint="remove AlexNet's file from torch's cache, to fetch it again")
        return found

    return distance
