"""The command ``sdrt doctor``: what this machine can run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdrt.commands.options import json_option, print_json, print_text, store_option
from sdrt.terminal import size_text


@click.command("doctor")
@store_option
@json_option
def command(store: Path | None, as_json: bool) -> None:
    """Show what this machine can run, what is missing for the rest, and the command that installs it."""
    from sdrt.artefacts.store import Store
    from sdrt.doctor import examine

    found = examine(Store.at(store))
    if as_json:
        print_json(found)
        return
    for line in lines(found):
        print_text(line)


def lines(found: dict[str, Any]) -> list[str]:
    """Return the lines that are printed without --json."""
    processor, gpu, store = found["processor"], found["gpu"], found["store"]
    has = [label for label, key in (("AMX", "amx"), ("AVX512-BF16", "avx512_bf16")) if processor[key]]
    memory, size = found["memory_available_bytes"], store["size_bytes"]
    text = [
        f"sdrt         {found['sdrt']}, Python {found['python']}, {found['system']}",
        f"processor    {processor['cpus']} CPUs, {' and '.join(has) if has else 'neither AMX nor AVX512-BF16'}",
        f"memory       {size_text(memory) + ' available' if memory is not None else 'unknown'}",
    ]
    if gpu["driver"] is None:
        text.append(f"GPU          none: {gpu['problem']} ({gpu['remedy']})")
    else:
        text.append(f"driver       {gpu['driver']}, CUDA {gpu['cuda']}")
        text += [f"GPU          {g['name']}, {g['architecture']}, {size_text(g['memory_bytes'])}" for g in gpu["gpus"]]
    held = f"{size_text(size)} held, " if size is not None else ""
    text.append(f"store        {store['path']}: {held}{size_text(store['free_bytes'])} free")
    if store["problem"]:
        text.append(f"             {store['problem']}")
    for package in found["packages"]:
        text.append(f"{package['name']:16} {package['version'] or 'missing: ' + package['install']}")
    for backend in found["backends"]:
        state = "runs here" if backend["runs"] else f"does not run: {backend['reason']} ({backend['remedy']})"
        text.append(f"{backend['backend']:16} {state}")
    return [*text, f"--backend auto is {found['auto'] or 'nothing: no backend runs here'}"]
