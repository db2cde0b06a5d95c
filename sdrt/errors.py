"""Errors that sdrt raises, with their exit codes on the command line.

    SdrtError
    |-- UsageError               2   an option or request is wrong
    |-- ArtefactError            3   an input artefact is malformed or not what it should be
    |   |-- CheckpointError      3     a checkpoint
    |   |-- BundleError          3     an ONNX bundle
    |   `-- EngineError          3     an engine set
    |-- BackendUnavailableError  4   the backend, provider or device is not available here
    |-- NumericError             5   NaN or Inf, or a comparison over its tolerance
    |-- ResourceError            6   out of memory or disk, or no permission
    |-- TimeLimitError           7   a time limit or a lock ran out
    `-- TrustError               8   a digest does not match, pickle, data outside its folder, an unsealed plan

Each has a hint that says what to do next. Interruption (Ctrl-C, SIGTERM) is KeyboardInterrupt and exits 130.
"""

from __future__ import annotations

from sdrt.terminal import printable

#: Longest message in characters; messages quote untrusted files, whose text may be of any length.
MESSAGE_LIMIT = 1500


class SdrtError(Exception):
    """Base of the tree.

    Args:
        message: The fault, naming the file, field or component; shortened to one line of bounded length.
        hint: What to do next, in one line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        line = printable(message)
        self.message = line if len(line) <= MESSAGE_LIMIT else f"{line[: MESSAGE_LIMIT - 4]} ..."
        super().__init__(self.message)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Return what pickle needs to rebuild the error, with its hint, in another process."""
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[SdrtError], message: str, hint: str) -> SdrtError:
    return kind(message, hint=hint)


class UsageError(SdrtError):
    """An option or request is wrong; the message names it and the valid range."""

    exit_code = 2


class ArtefactError(SdrtError):
    """An input artefact is malformed or not what it should be."""

    exit_code = 3


class CheckpointError(ArtefactError):
    """A checkpoint is malformed, incomplete or not Stable Diffusion v1."""


class BundleError(ArtefactError):
    """A bundle is malformed, incomplete or from a newer sdrt."""


class EngineError(ArtefactError):
    """An engine set is malformed, or an engine cannot be built or opened."""


class BackendUnavailableError(SdrtError):
    """The requested backend, provider or device is not available here."""

    exit_code = 4


class NumericError(SdrtError):
    """Numbers are NaN or Inf, or a comparison is over its tolerance."""

    exit_code = 5


class ResourceError(SdrtError):
    """Out of memory or disk, or no permission where sdrt has to write."""

    exit_code = 6


class TimeLimitError(SdrtError):
    """A time limit ran out, or a lock did not become free."""

    exit_code = 7


class TrustError(SdrtError):
    """A file must not be opened: a digest mismatch, pickle, data outside its folder, an unsealed plan."""

    exit_code = 8
