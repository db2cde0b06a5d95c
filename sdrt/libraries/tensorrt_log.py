"""TensorRT's log: one logger for each module and process, which keeps what is said for whoever is calling.

TensorRT keeps a pointer to the first logger that a process gives it for as long as any of its objects lives, warns of
every other one, and lets threads of its own write to the first. So there is one, and it is never freed.
"""

from __future__ import annotations

import threading
from typing import Any

TAIL_LINES = 3
LINE_LIMIT = 400


class Messages:
    """Warnings and errors, in order, since they were last cleared."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def clear(self) -> None:
        """Forget everything."""
        self.errors.clear()
        self.warnings.clear()

    def tail(self) -> str:
        """Return the last errors (or warnings, where there are none) in one line, to be quoted in an error."""
        lines = (self.errors or self.warnings)[-TAIL_LINES:]
        return "; ".join(" ".join(line.split())[:LINE_LIMIT] for line in lines) or "its log says nothing"

    def say(self, *texts: str) -> bool:
        """Whether one error holds all of these texts."""
        return any(all(text in line for text in texts) for line in self.errors)


class _Sinks:
    """Where the messages of each thread go; those of TensorRT's own threads go where the last call's go."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._last = Messages()

    def choose(self, messages: Messages) -> None:
        self._of_thread.messages = self._last = messages

    def chosen(self) -> Messages:
        messages: Messages = getattr(self._of_thread, "messages", self._last)
        return messages


# By the module's ILogger, which lives as long as the process. Never emptied: TensorRT may write at any time.
_LOGGERS: dict[type, tuple[Any, _Sinks]] = {}
_MAKING = threading.Lock()


def listen(trt: Any, messages: Messages) -> Any:
    """Have TensorRT's warnings and errors go to ``messages`` from now on, as far as this thread's calls give them.

    Args:
        trt: The tensorrt or tensorrt_rtx module.
        messages: Where they go until `listen` is called again.

    Returns:
        The module's logger, to be given to whatever takes one.
    """
    with _MAKING:
        if trt.ILogger not in _LOGGERS:
            sinks = _Sinks()
            _LOGGERS[trt.ILogger] = (_logger(trt, sinks), sinks)
        logger, sinks = _LOGGERS[trt.ILogger]
    sinks.choose(messages)
    return logger


def _logger(trt: Any, sinks: _Sinks) -> Any:
    """Make the ILogger of a module: it keeps warnings and errors, drops the rest and prints nothing."""
    base: Any = trt.ILogger
    severities = trt.ILogger.Severity
    worst = (severities.INTERNAL_ERROR, severities.ERROR)

    class Logger(base):  # type: ignore[misc]  # A base class of the module that is given.
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in worst:
                sinks.chosen().errors.append(msg)
            elif severity == severities.WARNING:
                sinks.chosen().warnings.append(msg)

    return Logger()
