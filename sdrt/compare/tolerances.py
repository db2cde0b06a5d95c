"""Table of tolerances by kind, component, backend and precision, each with its reason and origin."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from sdrt.artefacts.engine_set import BackendName
from sdrt.artefacts.manifest import ComponentName, Precision
from sdrt.compare.schema import Kind, ToleranceRecord
from sdrt.errors import UsageError
from sdrt.files import unreadable

TABLE = Path(__file__).with_name("tolerances.toml")
#: Metrics that each kind of row may limit.
LIMITS: Mapping[str, tuple[str, ...]] = {
    "component": ("relative_l2", "peak"),
    "trajectory": ("relative_l2",),
    "picture": ("psnr_db", "ssim", "lpips"),
}
#: Parts of a row's name, from its end, with their values. "torch": in half precision it stands in for GPU engines.
NAMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("precision", get_args(Precision)),
    ("backend", (*get_args(BackendName), "torch")),
    ("component", get_args(ComponentName)),
)
LIMIT_BYTES = 1 << 20

Key = tuple[Kind, str, str, str]


@dataclass(frozen=True)
class Tolerances:
    """Limits by (kind, component, backend, precision); the component of trajectories and pictures is ""."""

    table: Mapping[Key, ToleranceRecord]

    def of(self, component: str, backend: str, precision: str, kind: Kind = "component") -> ToleranceRecord | None:
        """Return the limits of one comparison; None if the table has no row, so that nothing can be verified.

        Args:
            component: Name of the component; ignored for trajectories and pictures.
            backend: Name of the backend, or "torch".
            precision: Precision that it computes in.
            kind: Kind of the comparison.
        """
        return self.table.get((kind, component if kind == "component" else "", backend, precision))


def load(path: Path | None = None) -> Tolerances:
    """Read the shipped table; rows of the user's file replace its rows as a whole.

    Args:
        path: A TOML file with the layout of the shipped one: ``[component.unet.openvino.bf16]``,
            ``[trajectory.openvino.bf16]`` or ``[picture.openvino.bf16]``, each with its limits and a reason.

    Raises:
        UsageError: The file cannot be read, or a row is malformed, has an unknown name, or limits a metric that is not
            measured for its kind.
    """
    table = _rows(TABLE)
    if path is not None:
        table |= _rows(path)
    return Tolerances(table)


def _rows(path: Path) -> dict[Key, ToleranceRecord]:
    hint = "use the layout of sdrt/compare/tolerances.toml"
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise UsageError(f"--tolerances: {path} is larger than {LIMIT_BYTES >> 20} MiB", hint=hint)
        parsed = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error, UsageError, hint=hint, subject="--tolerances: ") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--tolerances: {path} is not TOML: {error}", hint=hint) from error
    rows: dict[Key, ToleranceRecord] = {}
    for kind, part in parsed.items():
        if kind not in LIMITS or not isinstance(part, dict):
            known = ", ".join(LIMITS)
            raise UsageError(f"--tolerances: {path}: [{kind}] is unknown", hint=f"choose among {known}")
        depth = 3 if kind == "component" else 2
        for names, row in _leaves(part, depth, (kind,), path):
            key = (kind, *(names[1:] if kind == "component" else ("", *names[1:])))
            rows[key] = _record(row, names, path)  # type: ignore[index]
    return rows


def _leaves(
    part: Mapping[str, Any], depth: int, names: tuple[str, ...], path: Path
) -> list[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Return the tables ``depth`` levels down, with their names."""
    if depth == 0:
        return [(names, part)]
    found = []
    for name, inner in part.items():
        if not isinstance(inner, dict):
            where = ".".join((*names, name))
            hint = "rows are [component.NAME.BACKEND.PRECISION] and [trajectory|picture.BACKEND.PRECISION]"
            raise UsageError(f"--tolerances: {path}: {where} must be a table", hint=hint)
        found += _leaves(inner, depth - 1, (*names, name), path)
    return found


def _record(row: Mapping[str, Any], names: tuple[str, ...], path: Path) -> ToleranceRecord:
    where = f"--tolerances: {path}: [{'.'.join(names)}]"
    for name, (what, known) in zip(reversed(names[1:]), NAMES, strict=False):
        if name not in known:
            raise UsageError(f"{where}: there is no {what} {name!r}", hint=f"choose among {', '.join(known)}")
    try:
        record = ToleranceRecord.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        hint = "limits are relative_l2, peak, psnr_db, ssim and lpips; reason is needed, measured is a table"
        raise UsageError(f"{where}: {field}: {first['msg']}", hint=hint) from error
    _check_limits(record, names[0], where)
    return record


def _check_limits(record: ToleranceRecord, kind: str, where: str) -> None:
    """Raise UsageError unless a row has limits, all of them on metrics of its kind.

    Raises:
        UsageError: It has none, or one on a metric that is not measured for its kind.
    """
    limits = record.model_dump(exclude={"measured", "reason"}, exclude_none=True)
    hint = f"limits of a {kind} are {', '.join(LIMITS[kind])}"
    for name in (*limits, *record.measured):
        if name not in LIMITS[kind]:
            raise UsageError(f"{where}: {name} is not measured for a {kind}", hint=hint)
    if not limits:
        raise UsageError(f"{where} limits nothing", hint=hint)
