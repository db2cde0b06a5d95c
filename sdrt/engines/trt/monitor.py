"""Progress of a build, from TensorRT's nested phases, and its cancellation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sdrt.libraries.tensorrt import Library

if TYPE_CHECKING:
    import tensorrt_rtx as rtx


class Phases:
    """The nested phases of a build, each of a known number of steps, as one percentage.

    Args:
        report: Called with each new whole percentage. An exception of it cancels the build; `check` raises it again.
    """

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._open: dict[str, tuple[str | None, int, int]] = {}
        self._percent = 0
        self._stop: BaseException | None = None

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase inside its parent's current step."""
        self._open[name] = (parent, max(1, steps), 0)

    def step(self, name: str, step: int) -> bool:
        """Count a finished step of a phase; return False to cancel the build."""
        if name in self._open:
            parent, steps, _ = self._open[name]
            self._open[name] = (parent, steps, step + 1)
            self._tell(self._fraction())
        return self._stop is None

    def finish(self, name: str) -> None:
        """End a phase, whether or not all of its steps are done."""
        parent, _, _ = self._open.pop(name, (None, 1, 1))
        if parent is None and not self._open:
            self._tell(1.0)

    def check(self) -> None:
        """Raise the exception that cancelled the build, if any."""
        if self._stop is not None:
            raise self._stop

    def _fraction(self) -> float:
        """Return the fraction of the outermost phase; a phase counts as part of one step of its parent."""
        fractions: dict[str | None, float] = {}
        for name, (parent, steps, done) in reversed(self._open.items()):
            inner = fractions.get(name, 0.0)
            fractions[parent] = max(fractions.get(parent, 0.0), min(1.0, (done + inner) / steps))
        return fractions.get(None, 0.0)

    def _tell(self, fraction: float) -> None:
        percent = int(100 * fraction)
        if percent <= self._percent or self._stop is not None:
            return
        self._percent = percent
        # TensorRT calls this from C++, which an exception must not cross: any exception is kept, and cancels the build.
        try:
            self._report(percent)
        except BaseException as error:
            self._stop = error


def make_monitor(trt: Library, phases: Phases) -> rtx.IProgressMonitor:
    """Create an IProgressMonitor that reports to the phases."""
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # The base class comes from the module.
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    monitor: rtx.IProgressMonitor = Monitor()
    return monitor
