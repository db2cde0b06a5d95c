"""Print the extras that run on this machine's GPU, for `make test-gpu`: trt, and rtx if TensorRT-RTX runs on it."""

from __future__ import annotations

import re
import subprocess
import sys

from sdrt.errors import BackendUnavailableError
from sdrt.machine.nvidia import RTX_ARCHITECTURES

ASK = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
TIMEOUT_S = 60


def architectures() -> list[str]:
    """Return the architectures of this machine's GPUs in their order, such as "sm86".

    Raises:
        BackendUnavailableError: nvidia-smi is missing, fails, or lists no GPU.
    """
    hint = "run it on a machine with an NVIDIA GPU and its driver"
    try:
        listed = subprocess.run(ASK, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailableError(
            f"the GPU tests need an NVIDIA GPU, and nvidia-smi does not run: {error}", hint=hint
        ) from error
    found = re.findall(r"^\s*(\d+)\.(\d+)\s*$", listed.stdout, re.MULTILINE)
    if listed.returncode or not found:
        said = " ".join((listed.stdout + listed.stderr).split()) or "nothing"
        raise BackendUnavailableError(f"the GPU tests need an NVIDIA GPU; nvidia-smi says: {said}", hint=hint)
    return [f"sm{major}{minor}" for major, minor in found]


def extras(architecture: str) -> str:
    """Return the extras for a GPU's architecture, separated by commas as pip takes them."""
    return "trt,rtx" if architecture in RTX_ARCHITECTURES else "trt"


def main() -> int:
    """Print the extras for the first GPU, which is the one used; return 4 if there is none."""
    try:
        print(extras(architectures()[0]))
    except BackendUnavailableError as error:
        print(f"{error.message}; {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
