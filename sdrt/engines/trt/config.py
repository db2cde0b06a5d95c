"""A build's configuration from a recipe: the one place where TensorRT and TensorRT-RTX differ."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from sdrt.engines.recipe import Recipe
from sdrt.errors import EngineError


def new_config(trt: ModuleType, builder: Any, recipe: Recipe, *, rtx: bool) -> Any:
    """A configuration without profile and monitor.

    Args:
        trt: The module.
        builder: A builder of it.
        recipe: What it is to say.
        rtx: Whether the module is TensorRT-RTX, which compiles for named GPUs; TensorRT compiles for the one here.

    Raises:
        EngineError: TensorRT-RTX does not know a target.
    """
    config = builder.create_builder_config()
    config.builder_optimization_level = recipe.optimization_level
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_mib << 20)
    if rtx:
        _set_targets(trt, config, recipe)
        return config
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, recipe.hardware_compatibility.upper())
    if recipe.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    return config


def _set_targets(trt: ModuleType, config: Any, recipe: Recipe) -> None:
    config.num_compute_capabilities = len(recipe.targets)
    for index, target in enumerate(recipe.targets):
        capability = getattr(trt.ComputeCapability, target.upper())
        if not config.set_compute_capability(capability, index):
            hint = "choose other targets with --set targets=sm86,sm89"
            raise EngineError(f"TensorRT-RTX {trt.__version__} does not compile for {target}", hint=hint)
