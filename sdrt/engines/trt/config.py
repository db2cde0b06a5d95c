"""The configuration of a build: the only place where TensorRT and TensorRT-RTX differ."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sdrt.engines.recipe import DEFAULT_TARGETS, Recipe
from sdrt.errors import EngineError
from sdrt.libraries.tensorrt import Library
from sdrt.libraries.tensorrt_log import Messages

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

_WANTED = re.compile(r"insufficient memory on requested size of (\d+)")


def new_config(trt: Library, builder: rtx.Builder, recipe: Recipe, *, for_targets: bool) -> rtx.IBuilderConfig:
    """Create a configuration, without profile and monitor.

    Args:
        trt: Module of TensorRT.
        builder: Builder of the module.
        recipe: Settings of the build.
        for_targets: Whether the module is TensorRT-RTX, which compiles for the recipe's targets.

    Raises:
        EngineError: TensorRT-RTX does not know a target.
    """
    config = builder.create_builder_config()
    config.builder_optimization_level = recipe.optimization_level
    if recipe.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_mib << 20)
    if for_targets:
        _set_targets(trt, config, recipe)
        return config
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, recipe.hardware_compatibility.upper())
    if recipe.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    return config


def wanted_workspace_bytes(messages: Messages) -> int | None:
    """Return the largest workspace in bytes that a kernel lacked, or None if the log names none."""
    wanted = [int(size) for line in messages.errors + messages.warnings for size in _WANTED.findall(line)]
    return max(wanted, default=None)


def _set_targets(trt: Library, config: rtx.IBuilderConfig, recipe: Recipe) -> None:
    # Plans compute in memory that the runtime allocates: NVIDIA's release notes (TensorRT-RTX 1.2) require it for
    # capturing a stream.
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    targets = recipe.targets or DEFAULT_TARGETS
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = getattr(trt.ComputeCapability, target.upper())
        if not config.set_compute_capability(capability, index):
            hint = "choose other targets with --set targets=sm86,sm89"
            raise EngineError(f"TensorRT-RTX {trt.__version__} does not compile for {target}", hint=hint)
