"""The schemas that docs/stability.md promises, flattened: ``python -m tests.docs.promised`` writes them anew.

Run it after a schema gets a new version or more fields than were promised; test_stability.py fails then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sdrt.artefacts.engine_set import EngineManifest
from sdrt.artefacts.manifest import Manifest
from sdrt.bench.schema import Bench
from sdrt.compare.schema import Comparison
from sdrt.runtime.picture_record import PictureRecord

GOLDEN = Path(__file__).with_name("promised_schemas.json")
SCHEMAS: dict[str, type[BaseModel]] = {
    "sdrt.artefacts.manifest.Manifest": Manifest,
    "sdrt.artefacts.engine_set.EngineManifest": EngineManifest,
    "sdrt.compare.schema.Comparison": Comparison,
    "sdrt.bench.schema.Bench": Bench,
    "sdrt.runtime.picture_record.PictureRecord": PictureRecord,
}
#: Parts of a field's schema besides its type: descriptions, limits, and defaults.
NOT_TYPE = (
    "title",
    "description",
    "default",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "minItems",
    "maxItems",
    "pattern",
)


def fields(schema: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Map paths such as ``components.*.inputs[].name`` to their type and whether they are required."""
    whole = schema.model_json_schema()
    found: dict[str, dict[str, Any]] = {}
    _collect(whole, "", True, whole.get("$defs", {}), found)
    return found


def _collect(
    part: dict[str, Any], path: str, required: bool, defined: dict[str, Any], found: dict[str, dict[str, Any]]
) -> None:
    """Add a part of a schema, and everything below it, to ``found``."""
    if "$ref" in part:
        part = defined[part["$ref"].rpartition("/")[2]]
    choices = [choice for choice in part.get("anyOf", []) if choice.get("type") != "null"]
    if len(choices) == 1:
        nullable = len(part["anyOf"]) > 1
        _collect(choices[0], path, required, defined, found)
        if path in found:
            found[path]["nullable"] = nullable
        return
    if path:
        found[path] = {"type": _type(part), "required": required}
    for name, below in part.get("properties", {}).items():
        _collect(below, f"{path}.{name}".lstrip("."), name in part.get("required", []), defined, found)
    below = part.get("additionalProperties")
    if isinstance(below, dict):
        _collect(below, f"{path}.*", True, defined, found)
    below = part.get("items") if isinstance(part.get("items"), dict) else None
    if below:
        _collect(below, f"{path}[]", True, defined, found)


def _type(part: dict[str, Any]) -> Any:
    """Return a field's own type: its name, or its possible values."""
    if "properties" in part:
        return "object"
    kept = {
        key: value
        for key, value in part.items()
        if key not in NOT_TYPE and key not in ("items", "additionalProperties")
    }
    return kept.get("enum") or kept.get("const") or kept.get("type") or sorted(map(str, kept))


def golden() -> dict[str, dict[str, dict[str, Any]]]:
    """Read the promised schemas."""
    promised: dict[str, dict[str, dict[str, Any]]] = json.loads(GOLDEN.read_text())
    return promised


if __name__ == "__main__":
    blocks = []
    for name, schema in SCHEMAS.items():
        lines = [f"  {json.dumps(path)}: {json.dumps(kind)}" for path, kind in sorted(fields(schema).items())]
        blocks.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    text = "{\n" + ",\n".join(blocks) + "\n}\n"
    GOLDEN.write_text(text)
    print(GOLDEN)
