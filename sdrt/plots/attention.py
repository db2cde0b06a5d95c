"""Maps of cross-attention: how much each part of a picture attends to each word, averaged over heads, layers and steps.

After DAAM (Tang et al. 2022, arXiv:2210.04885, section 3): the maps of all layers are resized to one size and averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrt.errors import UsageError
from sdrt.plots.figure import Panel, picture_grid, shown, styled
from sdrt.plots.marked_graph import MarkedUnet, Weights
from sdrt.runtime.denoise import denoise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdrt.artefacts.bundle import Bundle
    from sdrt.plots.model import Model
    from sdrt.progress import Progress
    from sdrt.runtime.denoise import Latents
    from sdrt.runtime.text import Word

COLUMNS = 4
WORD_CHARACTERS = 14
BAR_WIDTH = 0.9
#: Opacity of a map's colours over the picture.
OPACITY = 0.75
COLOUR_MAP = "magma"

Map = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class WordMap:
    """One word's share of attention: over the picture, [size,size] float32, and by layer, averaged over the picture."""

    word: str
    attention: Map
    by_layer: tuple[float, ...]

    @property
    def share(self) -> float:
        """Share of all attention."""
        return float(self.attention.mean())


@dataclass(frozen=True, eq=False)
class Attention:
    """A picture and its maps of attention. ``rest`` is the share of the start, the end and the padding tokens."""

    picture: Image.Image
    words: tuple[WordMap, ...]
    rest: float
    layers: tuple[str, ...]

    def numbers(self) -> dict[str, Any]:
        """Return the numbers of the figure, as --json prints them."""
        return {
            "layers": list(self.layers),
            "rest_share": round(self.rest, 6),
            "words": [
                {
                    "word": each.word,
                    "share": round(each.share, 6),
                    "share_by_layer": [round(value, 6) for value in each.by_layer],
                    "map": [[round(float(value), 6) for value in row] for row in each.attention],
                }
                for each in self.words
            ],
        }


class Sums:
    """Weights [queries, tokens] float32 of each cross-attention, averaged over heads and summed over runs."""

    def __init__(self) -> None:
        self._sums: dict[int, Weights] = {}
        self._runs: dict[int, int] = {}

    def add(self, layer: int, weights: Weights) -> None:
        """Add the weights [heads, queries, tokens] of one run of a layer."""
        mean = weights.mean(axis=0)
        self._sums[layer] = self._sums[layer] + mean if layer in self._sums else mean
        self._runs[layer] = self._runs.get(layer, 0) + 1

    def means(self) -> list[Weights]:
        """Return the weights [queries, tokens] of each cross-attention, averaged over the runs."""
        return [self._sums[layer] / np.float32(self._runs[layer]) for layer in sorted(self._sums)]


def attend(
    model: Model,
    bundle: Bundle,
    *,
    prompt: str,
    num_inference_steps: int,
    guidance_scale: float,
    seed: int,
    threads: int,
    progress: Progress,
) -> Attention:
    """Draw a prompt with the bundle's UNet graph, and collect its attention at every step.

    Args:
        model: Model that encodes the prompt and decodes the picture.
        bundle: Bundle whose UNet ONNX Runtime runs; its weights are verified first.
        prompt: Prompt of the picture.
        num_inference_steps: Number of steps.
        guidance_scale: Guidance scale; attention is that of the prompt's half.
        seed: Seed of the noise.
        threads: Number of threads of the UNet.
        progress: Progress callback for the steps.

    Returns:
        The picture, and each word's attention.

    Raises:
        UsageError: The prompt has no words.
        BundleError: The UNet's graph has no Attention operator.
        NumericError: A component returned NaN or Inf.
    """
    words = model.tokenizer.words(prompt)
    if not words:
        raise UsageError("--prompt has no words to attend to", hint='for example --prompt "a red circle"')
    schedule = model.schedule(num_inference_steps)
    conditioning = model.conditioning(prompt, guidance_scale)
    with progress.stage("checking the bundle"):
        bundle.verify_weights()
    sums = Sums()
    latents = model.noise(seed) * np.float32(schedule.init_noise_sigma)
    with (
        MarkedUnet(bundle, threads, sums.add) as unet,
        progress.stage("denoise", num_inference_steps) as advance,
    ):

        def on_step(_step: int, _timestep: float, following: Latents) -> Latents:
            advance(1)
            return following

        final = denoise(unet, schedule, latents, conditioning, on_step)
        layers = tuple(each.name for each in unet.attentions)
    maps = word_maps(words, sums.means())
    return Attention(model.decode(final), maps, 1 - sum(each.share for each in maps), layers)


def word_maps(words: tuple[Word, ...], layers: list[Weights]) -> tuple[WordMap, ...]:
    """Return each word's map: its tokens' attention, summed, resized to the finest layer's size, and averaged.

    Args:
        words: Words with the positions of their tokens.
        layers: Weights [queries, tokens] float32 of each cross-attention; queries are the positions of a square, row by
            row.
    """
    size = max(math.isqrt(len(layer)) for layer in layers)
    found = []
    for word in words:
        by_layer = [layer[:, list(word.positions)].sum(axis=1) for layer in layers]
        stacked = np.stack([_resized(values, size) for values in by_layer])
        means = tuple(float(values.mean()) for values in by_layer)
        found.append(WordMap(word.text, stacked.mean(axis=0), means))
    return tuple(found)


def _resized(values: Map, size: int) -> Map:
    """Return a square map, given row by row as [queries], as [size,size] by linear interpolation."""
    side = math.isqrt(len(values))
    square = Image.fromarray(np.ascontiguousarray(values.reshape(side, side), np.float32))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR), np.float32)


@styled
def draw_attention(found: Attention, prompt: str, caption: str) -> Figure:
    """Return a figure of the picture and of each word's map over it; each map's title gives its own scale."""
    import matplotlib
    from matplotlib.cm import ScalarMappable

    panels = [Panel(found.picture, "picture")]
    for each in found.words:
        low, high = float(each.attention.min()), float(each.attention.max())
        title = f"{shown(each.word, WORD_CHARACTERS)}: {low:.1%} to {high:.1%}"
        panels.append(Panel(overlaid(found.picture, each.attention), title))
    title = f"What the picture listens to in {prompt}"
    grid = picture_grid(title, caption, panels, min(COLUMNS, len(panels)), beside=BAR_WIDTH)
    scale = ScalarMappable(cmap=matplotlib.colormaps[COLOUR_MAP])
    bar = grid.figure.colorbar(scale, cax=grid.beside, ticks=[0, 1])
    bar.ax.set_yticklabels(["least", "most"])
    bar.set_label("attention to the word", labelpad=-12)
    return grid.figure


def overlaid(picture: Image.Image, attention: Map) -> Image.Image:
    """Return the picture in grey under the colours of a map [size,size], scaled from its minimum to its maximum."""
    import matplotlib

    low, high = float(attention.min()), float(attention.max())
    level = (attention - low) / (high - low) if high > low else np.zeros_like(attention)
    fine = np.asarray(
        Image.fromarray(level.astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC), np.float32
    ).clip(0, 1)
    colours = matplotlib.colormaps[COLOUR_MAP](fine)[..., :3]
    grey = np.asarray(picture.convert("L"), np.float32)[..., np.newaxis] / 255
    mixed = grey * (1 - OPACITY) + colours * OPACITY
    return Image.fromarray(np.rint(mixed * 255).clip(0, 255).astype(np.uint8))
