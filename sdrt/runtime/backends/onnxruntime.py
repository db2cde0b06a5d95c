"""Runs a saved graph by ONNX Runtime on the provider that the set was built for, and on no other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime

from sdrt.arrays import Array
from sdrt.errors import EngineError
from sdrt.libraries.errors import library_error
from sdrt.libraries.onnxruntime import ERRORS, open_session
from sdrt.runtime.backends.base import Engine

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineComponent
    from sdrt.artefacts.manifest import ComponentName


class OnnxRuntimeEngine(Engine):
    """One ONNX Runtime session.

    Args:
        folder: The engine set's folder, verified.
        threads: Threads inside one operator.

    Raises:
        EngineError: The graph does not open, or its inputs and outputs are not the spec's.
        BackendUnavailableError: The session does not run on the set's provider.
    """

    def __init__(self, name: ComponentName, spec: EngineComponent, folder: Path, threads: int) -> None:
        super().__init__(name, spec)
        session = open_session(name, folder / spec.file, threads, spec.options.get("provider", "cpu"))
        for kind, nodes, specs in (
            ("inputs", session.get_inputs(), spec.inputs),
            ("outputs", session.get_outputs(), spec.outputs),
        ):
            found = [node.name for node in nodes]
            if sorted(found) != sorted(wanted.name for wanted in specs):
                raise EngineError(f"{folder / spec.file} has the {kind} {', '.join(found)}", hint="build it again")
        self._session: onnxruntime.InferenceSession | None = session
        self._outputs = [output.name for output in spec.outputs]

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the session, which returns new arrays each time."""
        if self._session is None:
            raise EngineError(f"{self.name} is closed", hint="open it again")
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        except ERRORS as error:
            raise library_error(f"{self.name} failed", error) from error

    def release(self) -> None:
        """Release the session."""
        self._session = None
