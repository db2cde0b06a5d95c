"""Write docs/licences.md: every package that sdrt installs, its licence, and the extras with it; for ``make docs``."""

from __future__ import annotations

from email.message import Message
from importlib.metadata import Distribution
from typing import cast

from packaging.utils import canonicalize_name

from tools.requirements import ROOT, closure, pinned, requirement_groups

PAGE = ROOT / "docs" / "licences.md"
HEAD = """# Licences

Written by `make docs` from what the installed packages say of themselves; edit `tools/licences.py`, not this page.

sdrt is Apache-2.0. So are the demo checkpoint's weights, which sdrt's own training made. CLIP's vocabulary and the
configs of Stable Diffusion v1 in `sdrt/assets/sd-v1` have a licence page beside them. Weights that you bring have
their own licence: that of Stable Diffusion v1 is CreativeML Open RAIL-M, and what it forbids is yours to heed.

sdrt redistributes none of the packages below. `runtime` is always installed, the others are extras of sdrt;
`build` makes the package.
"""
PROPRIETARY = "proprietary"
UNKNOWN = "unknown"
#: Packages that torch installs for GPUs on some platforms; torch's own licence page lists them.
GPU_PARTS = ("nvidia-", "triton")
#: Other names of licences -> SPDX's.
SPDX = {
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
    "Other/Proprietary License": PROPRIETARY,
}
#: Licence -> words at the head of its text.
TEXTS = {"Apache-2.0": ("Apache License", "Version 2.0"), "MIT": ("MIT License", "Permission is hereby granted")}
HEAD_LENGTH = 600
#: Longest licence field that is a name; longer ones hold the text.
NAME_LENGTH = 60


def licence(package: Distribution) -> str:
    """Return a package's licence from its metadata, or else from the text of its licence file."""
    said = stated(cast("Message", package.metadata))
    if said != UNKNOWN:
        return said
    files = [file for file in package.files or () if "dist-info" in file.parts[0] and "LICENSE" in file.name.upper()]
    heads = [str(file.read_text())[:HEAD_LENGTH] for file in files]
    known = [name for name, words in TEXTS.items() if any(all(word in head for word in words) for head in heads)]
    return known[0] if known else UNKNOWN


def stated(metadata: Message) -> str:
    """Return the licence that metadata state as an SPDX expression, a classifier, or a name in the free field."""
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression)
    classifiers = [str(text) for text in metadata.get_all("Classifier") or [] if str(text).startswith("License ::")]
    names = [text.split(" :: ")[-1] for text in classifiers if text.count(" :: ") > 1 or "Proprietary" in text]
    free = str(metadata.get("License") or "").strip()
    if free and "\n" not in free and len(free) <= NAME_LENGTH and free in SPDX.values():
        return free
    if names:
        return " AND ".join(SPDX.get(name, name) for name in names)
    short = free if free and "\n" not in free and len(free) <= NAME_LENGTH else UNKNOWN
    return SPDX.get(short, short)


def page() -> str:
    """Return the text of the page."""
    brought: dict[str, list[str]] = {}
    licences: dict[str, str] = {}
    absent: dict[str, list[str]] = {}
    for group, requirements in requirement_groups().items():
        found = closure(requirements)
        for name, installed in found.items():
            if name.startswith(GPU_PARTS):
                continue
            if "runtime" not in brought.setdefault(name, []):
                brought[name].append(group)
            licences[name] = licence(installed)
        for requirement in requirements:
            if canonicalize_name(requirement.name) not in found:
                absent.setdefault(requirement.name, []).append(group)
    versions = pinned()
    rows = [
        f"| {name} | {versions.get(name, '')} | {licences[name]} | {', '.join(brought[name])} |"
        for name in sorted(brought)
    ]
    table = "\n".join(["| package | version | licence | comes with |", "|---|---|---|---|", *rows])
    others = ", ".join(f"{name} (`{', '.join(groups)}`)" for name, groups in sorted(absent.items()))
    last = f"\nNot in the environment that `make setup` makes, so not read here: {others}.\n" if others else ""
    return f"{HEAD}\n{table}\n{last}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
