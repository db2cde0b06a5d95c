"""Speed and fidelity of each opt-in that trades one for the other, picture by picture.

Each prompt is drawn with every setting in turn, and compared with the picture in fp32. Speed is the processor time of a
picture's steps, which other users of the machine affect little, relative to bf16, pair by pair. Guidance is 7.5,
whatever the checkpoint recommends, as in `sdrt bench`.

Run: python benchmarks/frontier.py [--checkpoint C] [--bundle DIR] [--steps N] [--threads N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdrt import Pipeline
from sdrt.bench.chart import Chart, Series, draw
from sdrt.bench.machine import machine, versions
from sdrt.compare.images import psnr_db, ssim
from sdrt.compare.pictures import scene_verdict
from sdrt.compare.prompts import PromptSeed, default_prompts
from sdrt.limits import DEFAULT_GUIDANCE_SCALE
from sdrt.progress import for_terminal

if TYPE_CHECKING:
    from PIL import Image

    from sdrt.artefacts.manifest import Precision


class Setting(NamedTuple):
    """A setting: the UNet's precision, the sigmas between which guidance is on, and the share of tokens to merge.

    ``deepcache`` is the number of steps from one full computation of the UNet to the next.
    """

    name: str
    precision: Precision
    guidance_interval: tuple[float, float] | None = None
    token_merging: float | None = None
    deepcache: int | None = None

    @property
    def engines(self) -> tuple[Precision, float | None, bool]:
        """The part of the setting that needs engines of its own."""
        return self.precision, self.token_merging, self.deepcache is not None


class Drawn(NamedTuple):
    """One picture and the processor seconds of its steps."""

    picture: Image.Image
    steps_cpu_s: float


REFERENCE = Setting("fp32", "fp32")
BASE = Setting("bf16", "bf16")
SETTINGS = (
    REFERENCE,
    BASE,
    Setting("int8", "int8"),
    Setting("bf16, guided at 0.3 to 5", "bf16", (0.3, 5.0)),
    Setting("bf16, guided above 0.3", "bf16", (0.3, 100.0)),
    Setting("bf16, guided above 1", "bf16", (1.0, 100.0)),
    Setting("int8, guided above 0.3", "int8", (0.3, 100.0)),
    Setting("bf16, 0.5 of the tokens merged", "bf16", token_merging=0.5),
    Setting("bf16, DeepCache 2", "bf16", deepcache=2),
    Setting("bf16, DeepCache 3", "bf16", deepcache=3),
    Setting("bf16, DeepCache 5", "bf16", deepcache=5),
)
#: PSNR to plot for equal pictures, where it is infinite.
EQUAL_DB = 80.0


def main() -> None:
    """Measure all settings, print a table, and write frontier.json and frontier.svg."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--bundle", type=Path, help="in place of the checkpoint; prompts are those of --checkpoint")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--store", type=Path, default=Path("build/store"))
    parser.add_argument("--out", type=Path, default=Path("build/frontier"))
    args = parser.parse_args()
    prompts = default_prompts(args.checkpoint)
    # Token merging is set when a bundle is exported.
    settings = [setting for setting in SETTINGS if not (args.bundle and setting.token_merging)]
    with contextlib.ExitStack() as stack:
        pipes = {
            (precision, token_merging, deepcache): stack.enter_context(
                Pipeline.load(
                    None if args.bundle else args.checkpoint,
                    bundle=args.bundle,
                    backend="openvino",
                    precision=precision,
                    store=args.store,
                    threads=args.threads,
                    keep_loaded=True,
                    token_merging=token_merging,
                    deepcache=deepcache,
                    progress=for_terminal(),
                )
            )
            for precision, token_merging, deepcache in dict.fromkeys(each.engines for each in settings)
        }
        rounds = [
            {each.name: _draw(pipes[each.engines], each, prompt, args.steps) for each in settings} for prompt in prompts
        ]
    rows = [_row(setting, prompts, rounds) for setting in settings]
    for row in rows:
        print(
            f"{row['name']:28}{row['speed']:6.2f} of bf16's speed ({row['speed_low']:.2f} to {row['speed_high']:.2f})"
            f"{row['psnr_db']:8.1f} dB, worst {row['worst_psnr_db']:.1f}; SSIM {row['ssim']:.4f}; "
            f"{row['right']} of {len(prompts)} right"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"steps": args.steps, "threads": args.threads, "machine": machine(), "versions": versions()}
    (args.out / "frontier.json").write_text(json.dumps({**result, "settings": rows}, indent=1) + "\n")
    dots = tuple(Series(row["name"], ((row["speed"], row["psnr_db"]),), "dots") for row in rows)
    title = f"Speed against fidelity: {args.checkpoint}, {args.steps} steps"
    chart = Chart(title, "speed of the steps, bf16 = 1", "PSNR to fp32, dB (80: equal)", dots)
    (args.out / "frontier.svg").write_text(draw(chart))


def _draw(pipe: Pipeline, setting: Setting, prompt: PromptSeed, steps: int) -> Drawn:
    """Draw one picture and measure the processor time of its steps, each from the end of the one before.

    The first step has none before it and counts as much as the next of its kind.
    """
    ends: list[float] = []

    def on_step_end(_pipe: Pipeline, _step: int, _timestep: float, _tensors: dict[str, Any]) -> None:
        ends.append(time.process_time())

    result = pipe(
        prompt.prompt,
        seed=prompt.seed,
        num_inference_steps=steps,
        guidance_scale=DEFAULT_GUIDANCE_SCALE,
        guidance_interval=setting.guidance_interval,
        deepcache=setting.deepcache,
        callback_on_step_end=on_step_end,
    )
    alike = setting.deepcache or 1
    return Drawn(result.images[0], ends[-1] - ends[0] + ends[alike] - ends[alike - 1])


def _row(setting: Setting, prompts: tuple[PromptSeed, ...], rounds: list[dict[str, Drawn]]) -> dict[str, Any]:
    """Return the speed and fidelity of a setting over all prompts."""
    ratios = sorted(drawn[BASE.name].steps_cpu_s / drawn[setting.name].steps_cpu_s for drawn in rounds)
    pairs = [(drawn[REFERENCE.name].picture, drawn[setting.name].picture) for drawn in rounds]
    decibels = [EQUAL_DB if (value := psnr_db(*pair)) is None else value for pair in pairs]
    verdicts = [scene_verdict(picture, prompt.prompt) for (_, picture), prompt in zip(pairs, prompts, strict=True)]
    return {
        "name": setting.name,
        "precision": setting.precision,
        "guidance_interval": setting.guidance_interval,
        "token_merging": setting.token_merging,
        "deepcache": setting.deepcache,
        "speed": statistics.median(ratios),
        "speed_low": ratios[0],
        "speed_high": ratios[-1],
        "psnr_db": statistics.mean(decibels),
        "worst_psnr_db": min(decibels),
        "ssim": statistics.mean(ssim(*pair) for pair in pairs),
        "right": verdicts.count("right"),
    }


if __name__ == "__main__":
    main()
