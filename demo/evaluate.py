"""Measure the demo checkpoint on held-out captions: how many pictures match the whole caption.

    python -m demo.evaluate --out build/demo-evaluation

draws with sdrt's fp32 onnxruntime engines, or others (--backend, --precision). To measure what int8 or bf16 costs,
compare with the evaluation.json of the same captions in fp32 (--against). Writes evaluation.json, evaluation.md and
sheet.png.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.scenes import caption, draw, held_out, random_scene
from sdrt.artefacts.manifest import Precision
from sdrt.checkpoint import open_checkpoint
from sdrt.compare.scorer import Verdict, score

#: Function from captions and a seed to pictures; the k-th picture is drawn from seed + k.
Painter = Callable[[Sequence[str], int], list[Image.Image]]

CHECKPOINT = Path(__file__).parents[1] / "sdrt" / "assets" / "demo-checkpoint"
STEPS = 25
SEED = 0
CAPTIONS_SEED = 2026
ASPECTS = ("right", *(field.name for field in fields(Verdict)))


@dataclass(frozen=True)
class Result:
    """One caption, the seed of its picture, and the verdict."""

    caption: str
    seed: int
    objects: int
    verdict: Verdict

    def has(self, aspect: str) -> bool:
        """Return whether an aspect is right; "right" stands for all of them."""
        return bool(getattr(self.verdict, aspect))


def held_out_captions(count: int, objects: int, seed: int = CAPTIONS_SEED) -> list[str]:
    """Return captions of scenes that training never sees, with one or two objects, that name every colour."""
    rng = random.Random(seed + objects)
    captions: list[str] = []
    while len(captions) < count:
        scene = random_scene(rng, pairs=float(objects - 1))
        if held_out(scene):
            captions.append(caption(rng, scene, complete=True))
    return captions


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4)."""
    z = 1.959964
    share, weight = right / count, z * z / count
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired(lost: int, won: int, count: int) -> tuple[float, float, float]:
    """Return the change of a share in paired samples, and its 95% interval.

    Source: Agresti and Min 2005, section 2, with half a pair added to each cell.

    Args:
        lost: Number of pairs that were right and are wrong now.
        won: Number of pairs that were wrong and are right now.
        count: Number of all pairs.
    """
    z, b, c, n = 1.959964, lost + 0.5, won + 0.5, count + 2
    centre, half = (c - b) / n, z * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return (won - lost) / count, centre - half, centre + half


def numbered_captions(count: int) -> list[tuple[str, int, int]]:
    """Return ``count`` captions, each with its picture's seed and its number of objects; half of them have two."""
    captions = [(words, objects) for objects in (1, 2) for words in held_out_captions(count // 2, objects)]
    return [(words, SEED + k, objects) for k, (words, objects) in enumerate(captions)]


def earlier(path: Path, count: int) -> list[bool]:
    """Read for each picture of an earlier evaluation.json whether it was right.

    Raises:
        ValueError: The captions or the seeds differ.
    """
    rows = json.loads(path.read_bytes())["results"]
    if [(row["caption"], row["seed"]) for row in rows] != [each[:2] for each in numbered_captions(count)]:
        raise ValueError(f"{path} has other captions or seeds; evaluate both with the same --count")
    return [bool(row["right"]) for row in rows]


def changes(results: list[Result], before: Sequence[bool]) -> str:
    """Return a Markdown table of the pictures that changed from right to wrong or back since an earlier evaluation."""
    lines = ["| everything right | before | lost | won | change, points |", "|---|---|---|---|---|"]
    for label, kinds in (("one object", {1}), ("two objects", {2}), ("all", {1, 2})):
        both = zip(before, results, strict=True)
        pairs = [(was, result.verdict.right) for was, result in both if result.objects in kinds]
        lost, won = pairs.count((True, False)), pairs.count((False, True))
        change, low, high = (100 * value for value in paired(lost, won, len(pairs)))
        share = sum(was for was, _ in pairs) / len(pairs)
        lines.append(f"| {label} | {share:.1%} | {lost} | {won} | {change:+.1f} ({low:+.1f} to {high:+.1f}) |")
    return "\n".join(lines) + "\n"


def evaluate(paint: Painter, count: int, batch: int = 4) -> tuple[list[Result], list[Image.Image], float]:
    """Draw and score ``count`` captions, half of them with two objects.

    Returns:
        The results, the pictures, and the seconds a picture.
    """
    captions = numbered_captions(count)
    results: list[Result] = []
    pictures: list[Image.Image] = []
    start = time.perf_counter()
    for k in range(0, len(captions), batch):
        painted = paint([words for words, _, _ in captions[k : k + batch]], SEED + k)
        pictures += painted
        for (words, seed, objects), picture in zip(captions[k : k + batch], painted, strict=True):
            results.append(Result(words, seed, objects, score(picture, words)))
        print(f"{len(results)} of {len(captions)}: {sum(r.verdict.right for r in results)} right", flush=True)
    return results, pictures, (time.perf_counter() - start) / len(captions)


def sdrt_painter(checkpoint: str, backend: str, precision: Precision, guidance_scale: float) -> Painter:
    """Return a painter that draws with sdrt."""
    from sdrt import Pipeline

    pipeline = Pipeline.load(checkpoint, backend=backend, precision=precision)
    settings: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": guidance_scale}
    return lambda prompts, seed: list(pipeline(list(prompts), seed=seed, **settings).images)


def autoencoder_psnr(checkpoint: Path, count: int = 32, pixels: int = 512) -> list[float]:
    """Return the PSNR in dB of held-out scenes through the autoencoder, one value a scene."""
    import torch
    from diffusers import AutoencoderKL

    from demo.training import pixels_of

    vae = AutoencoderKL.from_pretrained(checkpoint / "vae").eval()
    rng = random.Random(CAPTIONS_SEED)
    values: list[float] = []
    while len(values) < count:
        scene = random_scene(rng)
        if not held_out(scene):
            continue
        picture = pixels_of([draw(scene, pixels, rng)])
        with torch.no_grad():
            decoded = vae.decode(vae.encode(picture).latent_dist.mean).sample.clamp(-1, 1)
        values.append(10 * math.log10(4 / (decoded - picture).square().mean().item()))
    return values


def table(results: list[Result]) -> str:
    """Return a Markdown table of the share of right pictures by aspect, with 95% intervals."""
    lines = ["| aspect | one object | two objects |", "|---|---|---|"]
    for aspect in ASPECTS:
        cells = []
        for objects in (1, 2):
            chosen = [result.has(aspect) for result in results if result.objects == objects]
            low, high = wilson(sum(chosen), len(chosen))
            cells.append(f"{sum(chosen) / len(chosen):.1%} ({low:.1%} to {high:.1%})")
        lines.append(f"| {'everything' if aspect == 'right' else aspect} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(
    out: Path, results: list[Result], pictures: list[Image.Image], measured: dict[str, float], changed: str = ""
) -> None:
    """Write the verdicts, the table, what changed and a sheet of the first pictures of both kinds."""
    from demo.assemble import sheet

    out.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(result), "right": result.verdict.right} for result in results]
    (out / "evaluation.json").write_text(json.dumps({**measured, "results": rows}, indent=1) + "\n")
    figures = "".join(f"- {name}: {value:.2f}\n" for name, value in measured.items())
    (out / "evaluation.md").write_text("\n".join(part for part in (table(results), changed, figures) if part))
    half = len(pictures) // 2
    sheet(pictures[:18] + pictures[half : half + 18], columns=6, pixels=192).save(out / "sheet.png")


def main(
    out: Path, count: int, checkpoint: str, paint: Painter, guidance_scale: float, before: Path | None = None
) -> None:
    """Evaluate and print the table."""
    folder = CHECKPOINT if checkpoint == "demo" else Path(checkpoint)
    was = earlier(before, count) if before else None
    results, pictures, seconds = evaluate(paint, count)
    measured = {
        "guidance scale": guidance_scale,
        "seconds a picture": seconds,
        "autoencoder PSNR, dB": float(np.mean(autoencoder_psnr(folder))),
    }
    write(out, results, pictures, measured, changes(results, was) if was else "")
    print((out / "evaluation.md").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200, help="number of captions, half of them with two objects")
    parser.add_argument("--checkpoint", default="demo", metavar="FOLDER", help="a checkpoint of the demo's scenes")
    parser.add_argument("--backend", default="onnxruntime", help="sdrt's backend")
    parser.add_argument("--precision", default="fp32", help="sdrt's precision")
    parser.add_argument("--guidance-scale", type=float, help="default: the checkpoint's")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier evaluation.json to compare with")
    args = parser.parse_args()
    scale = args.guidance_scale
    if scale is None:
        scale = open_checkpoint(args.checkpoint).guidance_scale
    painter = sdrt_painter(args.checkpoint, args.backend, args.precision, scale)
    main(args.out, args.count, args.checkpoint, painter, scale, args.against)
