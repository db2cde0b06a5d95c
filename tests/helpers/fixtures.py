"""Types of the fixtures in tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable

from sdrt.artefacts.engine_set import EngineSet

#: `tiny_engines`: returns the tiny checkpoint's engines by backend and precision.
Engines = Callable[..., EngineSet]
#: `hand_sets`: returns an engine set of hand-written graphs.
Sets = Callable[..., EngineSet]
