"""Recipes: TensorRT's build settings, as TOML files. ``recipes/`` holds the shipped ones."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError

from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.manifest import ComponentName, Record, first_problem
from sdrt.engines.rows import component_rows
from sdrt.errors import UsageError
from sdrt.files import unreadable
from sdrt.machine.nvidia import RtxArchitecture

FOLDER = Path(__file__).parent / "recipes"
DEFAULT = "sd-v1-default"
RECIPE_LIMIT_BYTES = 64 << 10

Target = RtxArchitecture
#: Targets of TensorRT-RTX unless the user names some or this machine's GPU is another.
DEFAULT_TARGETS: tuple[Target, ...] = ("sm86", "sm89", "sm120")
Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]


class Recipe(Record):
    """TensorRT's build settings of an engine set.

    Attributes:
        targets: GPU architectures that TensorRT-RTX compiles for; None is this machine's GPU, or sm86, sm89 and sm120
            if it is one of these or there is none. TensorRT always compiles for this machine's GPU.
        hardware_compatibility: Other GPUs that TensorRT's plans must run on; TensorRT-RTX has ``targets``. Some
            releases cannot compile attention with a level other than none.
        version_compatible: Whether TensorRT's plans must open with later versions of the same major.
        optimization_level: 0 (quick build) to 5 (every tactic is tried).
        workspace_mib: Limit of scratch memory on the GPU, in MiB; None is no limit. To TensorRT a component is one
            kernel, whose scratch holds all activations: below that size nothing is built.
        batch: Pictures at once, by component. The builder adds the rows of guidance.
    """

    targets: Annotated[tuple[Target, ...], Field(min_length=1)] | None = None
    hardware_compatibility: Compatibility
    version_compatible: bool
    optimization_level: Annotated[int, Field(strict=True, ge=0, le=5)]
    workspace_mib: Annotated[int, Field(strict=True, ge=64, le=1 << 20)] | None = None
    batch: dict[ComponentName, BatchRange]

    def rows(self, component: ComponentName) -> BatchRange:
        """Return the range of rows of a component's batch axis.

        Raises:
            UsageError: The recipe does not name the component.
        """
        if component not in self.batch:
            raise UsageError(f"the recipe has no batch.{component}", hint=f"give it: --set batch.{component}=1:1:4")
        return component_rows(component, self.batch[component], beside_step=True)

    def for_gpus(self, here: Sequence[str]) -> Recipe:
        """Return the recipe with its targets, or with default ones if it has none.

        Args:
            here: Architectures of this machine's GPUs, the one in use first.
        """
        if self.targets is not None:
            return self
        own = tuple(target for target in get_args(Target) if target in here[:1])
        return self.model_copy(update={"targets": own if own and own[0] not in DEFAULT_TARGETS else DEFAULT_TARGETS})

    def with_pictures(self, pictures: BatchRange) -> Recipe:
        """Return the recipe with one range of pictures for every component."""
        return self.model_copy(update={"batch": dict.fromkeys(self.batch, pictures)})


def names() -> tuple[str, ...]:
    """Return the names of the shipped recipes, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe and override some of its fields.

    Args:
        name: Name of a shipped recipe, or the path of a .toml file.
        settings: ``FIELD=VALUE`` each; lists are separated by commas, batches are ``MIN:OPT:MAX`` or one number.

    Raises:
        UsageError: There is no such recipe; or a field is unknown, missing or malformed: the message names it.
    """
    path = Path(name) if name.lower().endswith(".toml") else FOLDER / f"{name}.toml"
    if not name.lower().endswith(".toml") and name not in names():
        hint = f"choose from {', '.join(names())}, or give a .toml file"
        raise UsageError(f"there is no recipe {name[:80]!r}", hint=hint)
    fields = _read(path)
    for setting in settings:
        _override(fields, setting)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        hint = f"fields are {', '.join(Recipe.model_fields)}"
        raise UsageError(f"recipe {path}: {first_problem(error)}", hint=hint) from error


def _read(path: Path) -> dict[str, Any]:
    hint = "give a recipe's name, or a TOML file like those in sdrt/engines/recipes"
    try:
        if path.stat().st_size > RECIPE_LIMIT_BYTES:
            raise UsageError(f"{path} is too large for a recipe", hint=hint)
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error, UsageError, hint=hint) from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}", hint=hint) from error


def _override(fields: dict[str, Any], setting: str) -> None:
    """Set the field of one ``FIELD=VALUE``, as TOML would give it."""
    field, equals, text = setting.partition("=")
    if not equals or not text:
        raise UsageError(f"--set {setting[:60]!r} is not FIELD=VALUE", hint="for example --set targets=sm86,sm89")
    name, _, component = field.partition(".")
    if name == "batch":
        if not component:
            hint = "name it, as --set batch.vae_decoder=1:1:4, or give --batch for all"
            raise UsageError("--set batch needs a component", hint=hint)
        fields.setdefault("batch", {})[component] = _batch(field, text)
    elif name == "targets":
        fields[field] = text.split(",")
    else:
        fields[field] = {"true": True, "false": False}.get(text, int(text) if text.isdecimal() else text)


def _batch(field: str, text: str) -> dict[str, int]:
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdecimal() for part in parts):
        raise UsageError(f"--set {field}={text[:40]!r} is not N or MIN:OPT:MAX", hint="for example 1:1:4")
    low, best, high = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    return {"min": low, "opt": best, "max": high}
