"""Description of the machine that a benchmark runs on: processor, memory, GPU, load, and versions of libraries."""

from __future__ import annotations

import os
import platform

from sdrt.doctor import gpu, processor
from sdrt.machine.cpu import available_memory_bytes, cpu_features, processor_name
from sdrt.machine.packages import package_versions

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "openvino-genai",
    "stable-diffusion-cpp-python",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
)


def machine() -> dict[str, str]:
    """Return the facts of the machine by name; available memory and load are those of the moment."""
    found, device, memory = processor(), gpu(), available_memory_bytes()
    facts = {
        "processor": processor_name(),
        "cpus": str(found["cpus"]),
        "features": " ".join(cpu_features()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": ", ".join(each["name"] for each in device["gpus"]) if device["driver"] is not None else "none",
    }
    if memory is not None:
        facts["memory_available"] = f"{memory / 2**30:.1f} GiB"
    if hasattr(os, "getloadavg"):
        facts["load"] = f"{os.getloadavg()[0]:.2f}"
    return facts


def versions() -> dict[str, str]:
    """Return the installed versions of `PACKAGES` by name."""
    return package_versions(PACKAGES)
