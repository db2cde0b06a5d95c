"""Put the demo's exported bundle into the wheel, so that it runs without torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DemoBundleHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hook that exports the demo checkpoint for a wheel; an editable install exports it on first use."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Export into build/ and map the folder to sdrt/assets/demo-bundle."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        from sdrt.artefacts.store import Store
        from sdrt.prepare.bundles import open_bundle
        from sdrt.prepare.source import Source
        from sdrt.progress import Lines

        bundle = open_bundle(Source("demo"), Store(Path(self.root, "build", "store")), progress=Lines())
        build_data["force_include"][str(bundle.path)] = "sdrt/assets/demo-bundle"
