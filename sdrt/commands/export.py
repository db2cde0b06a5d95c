"""The command ``sdrt export``: from a checkpoint to a bundle."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdrt.artefacts.manifest import check_token_merging
from sdrt.commands.options import (
    checkpoint_option,
    json_option,
    output_folder_option,
    print_json,
    print_text,
    revision_option,
    token_merging_option,
    variant_option,
)
from sdrt.commands.paths import check_free
from sdrt.errors import UsageError
from sdrt.files import disk_errors
from sdrt.install_lines import extra_line
from sdrt.terminal import size_text

if TYPE_CHECKING:
    from sdrt.artefacts.manifest import ComponentName, Precision

COMPONENTS: tuple[ComponentName, ...] = ("text_encoder", "unet", "vae_encoder", "vae_decoder")


@click.command("export")
@checkpoint_option
@revision_option
@variant_option
@output_folder_option("--out", "Folder to write the bundle to.  [required]")
@click.option(
    "--precision",
    type=click.Choice(("fp32", "fp16", "int8")),
    default="fp32",
    show_default=True,
    help="Precision of the graphs; int8 quantises the UNet only, calibrated on pictures that the checkpoint draws.",
)
@click.option(
    "--components",
    multiple=True,
    type=click.Choice(COMPONENTS),
    metavar="NAME",
    help="Export only this component (repeatable).",
)
@click.option(
    "--opset", type=click.IntRange(20, 24), default=23, show_default=True, metavar="N", help="ONNX opset version."
)
@token_merging_option
@click.option("--deepcache", is_flag=True, help="Add the two UNet graphs that sdrt denoise --deepcache runs.")
@click.option("--force", is_flag=True, help="Replace --out even if it is not empty.")
@json_option
def command(
    checkpoint: str | None,
    revision: str | None,
    variant: str | None,
    out: Path | None,
    precision: Precision,
    components: tuple[ComponentName, ...],
    opset: int,
    token_merging: float | None,
    deepcache: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Export a checkpoint to an ONNX bundle.

    A bundle contains graphs, weights, tokenizer, scheduler config and a manifest with digests. The batch axis is
    dynamic; latents are 64x64x4. Every graph is checked against the PyTorch module that it was exported from.
    """
    if out is None:
        raise UsageError("--out is missing", hint="give the folder of the bundle: --out BUNDLE")
    check_token_merging(token_merging)
    if deepcache and (precision == "int8" or "unet" not in (components or COMPONENTS)):
        hint = "leave one out: DeepCache's graphs are cut from the UNet in fp32 or fp16"
        other = "--precision int8" if precision == "int8" else "--components without unet"
        raise UsageError(f"--deepcache and {other} exclude each other", hint=hint)
    check_free(out, force)
    from sdrt.checkpoint import open_checkpoint
    from sdrt.errors import BackendUnavailableError
    from sdrt.progress import for_terminal

    opened = open_checkpoint(checkpoint or "demo", revision=revision, variant=variant)
    try:
        from sdrt.export.bundle_export import export_bundle
    except ModuleNotFoundError as error:
        hint = extra_line("export")
        raise BackendUnavailableError(f"{error.name} is needed to export and is not installed", hint=hint) from error
    progress = for_terminal()
    arguments: Any = {"components": components or COMPONENTS, "opset": opset, "token_merging": token_merging}
    arguments["progress"] = progress
    if precision == "int8" or deepcache:
        from sdrt.export.deepcache import add_deepcache
        from sdrt.export.quantised_bundle import quantise_bundle

        with disk_errors(out), tempfile.TemporaryDirectory(prefix=".sdrt-", dir=out.absolute().parent) as scratch:
            plain = export_bundle(
                opened, Path(scratch, "plain"), precision="fp32" if precision == "int8" else precision, **arguments
            )
            bundle = (add_deepcache if deepcache else quantise_bundle)(plain, out, progress=progress)
    else:
        bundle = export_bundle(opened, out, precision=precision, **arguments)
    if as_json:
        manifest = bundle.manifest.model_dump(mode="json")
        print_json({"path": str(out), "digest": bundle.digest, "size_bytes": bundle.size_bytes, "manifest": manifest})
        return
    for name, component in bundle.manifest.components.items():
        click.echo(f"{name:18}{component.parameters / 1e6:9.2f} M parameters {component.flops / 1e9:10.2f} GFLOP")
    print_text(f"{out} ({size_text(bundle.size_bytes)}, digest {bundle.digest})")
