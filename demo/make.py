"""Make the demo checkpoint, all stages in order: `make demo-checkpoint`.

Each stage resumes from its saved state in the work folder; a finished one is skipped. With --warm-start and an empty
work folder, training starts from a checkpoint's weights instead, with the last stage only.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from demo import train_autoencoder, train_text_encoder, train_unet
from demo.assemble import averaged, sample, sheet, write_checkpoint
from demo.evaluate import held_out_captions
from sdrt.checkpoint.clip_vocabulary import write_clip_tokenizer

#: Share of the time budget of each stage.
SHARES = {"autoencoder": 0.25, "text_encoder": 0.07, "inner": 0.18, "guided": 0.05, "full": 0.45}
#: Number of encoded scenes that the UNet is trained on.
SCENES = 4000


def warm_start(out: Path, checkpoint: Path) -> None:
    """Copy a checkpoint's weights to where each stage looks for those of the stage before."""
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        shutil.copytree(checkpoint / part, out / part)


def write_sheet(out: Path, stage: str) -> None:
    """Write a sheet of held-out captions drawn with a stage's averaged weights, at guidance 1 above and 7.5 below."""
    captions = held_out_captions(6, 1) + held_out_captions(6, 2)
    pipeline = averaged(out, stage)
    pictures = [p for guidance in (1.0, 7.5) for p in sample(pipeline, captions, 0, guidance)]
    sheet(pictures, columns=6, pixels=192).save(out / f"sheet_{stage}.png")


def make(out: Path, budget_s: float, threads: int) -> None:
    """Run every stage and write the checkpoint to ``out``/checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    budgets = {stage: share * budget_s for stage, share in SHARES.items()}
    warm = (out / "unet").exists()
    if not warm:
        write_clip_tokenizer(out / "tokenizer")
        train_autoencoder.main(out, budgets["autoencoder"], threads)
        train_text_encoder.main(out, budgets["text_encoder"], threads)
    for stage in ("full",) if warm else train_unet.STAGES:
        train_unet.main(out, budgets[stage], stage, SCENES, threads)
        write_sheet(out, stage)
    write_checkpoint(averaged(out), out / "checkpoint")


def main() -> None:
    """Parse the command line and make the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="work folder: states, logs, sample sheets, checkpoint/")
    parser.add_argument("--budget-s", type=float, default=4 * 3600, help="seconds of training in total")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-start", type=Path, metavar="FOLDER", help="start from this checkpoint's weights")
    arguments = parser.parse_args()
    if arguments.warm_start and not arguments.out.exists():
        warm_start(arguments.out, arguments.warm_start)
    make(arguments.out, arguments.budget_s, arguments.threads)


if __name__ == "__main__":
    main()
