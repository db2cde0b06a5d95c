"""TensorRT's log: one logger for each module and process, which keeps messages for the calling thread.

TensorRT keeps a pointer to the first logger that a process gives it for as long as any of its objects lives, warns
about every other logger, and writes to the first from threads of its own. So there is only one, and it is never freed.
"""

from __future__ import annotations

import threading
from typing import Any

TAIL_LINES = 3
LINE_LIMIT = 400


class Messages:
    """Warnings and errors since the last `clear`, in order."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def clear(self) -> None:
        """Drop all messages."""
        self.errors.clear()
        self.warnings.clear()

    def tail(self) -> str:
        """Return the last errors, or else the last warnings, as one line for an error message."""
        lines = (self.errors or self.warnings)[-TAIL_LINES:]
        return "; ".join(" ".join(line.split())[:LINE_LIMIT] for line in lines) or "its log says nothing"

    def say(self, *texts: str) -> bool:
        """Return whether one of the errors contains all of the texts."""
        return any(all(text in line for text in texts) for line in self.errors)


class _Sinks:
    """The `Messages` of each thread; TensorRT's own threads use those of the last `choose`."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._last = Messages()

    def choose(self, messages: Messages) -> None:
        self._of_thread.messages = self._last = messages

    def chosen(self) -> Messages:
        messages: Messages = getattr(self._of_thread, "messages", self._last)
        return messages


# Keyed by the module's ILogger. Never emptied: TensorRT may write at any time.
_LOGGERS: dict[type, tuple[Any, _Sinks]] = {}
_MAKING = threading.Lock()


def listen(trt: Any, messages: Messages) -> Any:
    """Collect the warnings and errors of this thread's TensorRT calls in ``messages`` from now on.

    Args:
        trt: The tensorrt or tensorrt_rtx module.
        messages: Receives them until the next call of `listen`.

    Returns:
        The module's logger, for TensorRT's constructors.
    """
    with _MAKING:
        if trt.ILogger not in _LOGGERS:
            sinks = _Sinks()
            _LOGGERS[trt.ILogger] = (_logger(trt, sinks), sinks)
        logger, sinks = _LOGGERS[trt.ILogger]
    sinks.choose(messages)
    return logger


def _logger(trt: Any, sinks: _Sinks) -> Any:
    """Create the ILogger of a module, which keeps warnings and errors, drops the rest and prints nothing."""
    base: Any = trt.ILogger
    severities = trt.ILogger.Severity
    worst = (severities.INTERNAL_ERROR, severities.ERROR)

    class Logger(base):  # type: ignore[misc]  # The base class comes from an argument.
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in worst:
                sinks.chosen().errors.append(msg)
            elif severity == severities.WARNING:
                sinks.chosen().warnings.append(msg)

    return Logger()
