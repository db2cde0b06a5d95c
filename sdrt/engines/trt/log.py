"""TensorRT's log, collected: its errors come as log lines beside a None."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdrt.engines.trt.library import Library

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

TAIL_LINES = 3
LINE_LIMIT = 400


class Messages:
    """The warnings and errors of one build, in order."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def clear(self) -> None:
        """Forget everything."""
        self.errors.clear()
        self.warnings.clear()

    def tail(self) -> str:
        """The last errors (or warnings, where there are none) in one line, as a message of ours quotes them."""
        lines = (self.errors or self.warnings)[-TAIL_LINES:]
        return "; ".join(" ".join(line.split())[:LINE_LIMIT] for line in lines) or "it logged nothing"

    def say(self, text: str) -> bool:
        """Whether an error holds this text."""
        return any(text in line for line in self.errors)


def make_logger(trt: Library, messages: Messages) -> rtx.ILogger:
    """An ILogger of the module that collects warnings and errors, and drops the rest."""
    base: Any = trt.ILogger
    worst = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    class Logger(base):  # type: ignore[misc]  # A base class of the module that is given.
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in worst:
                messages.errors.append(msg)
            elif severity == trt.ILogger.WARNING:
                messages.warnings.append(msg)

    logger: rtx.ILogger = Logger()
    return logger
