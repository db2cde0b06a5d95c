"""Exceptions of backend libraries as errors of sdrt."""

from __future__ import annotations

from sdrt.errors import EngineError, ResourceError, SdrtError

#: How C++'s standard library, the C library, the loader of shared libraries and threads say that memory ran out.
OUT_OF_MEMORY = (
    "bad_alloc",
    "allocate memory",
    "can't alloc",
    "failed to map segment",
    "Resource temporarily unavailable",
)


def library_error(what: str, error: Exception) -> SdrtError:
    """A backend library's exception as one of ours.

    Args:
        what: What failed, as "openvino cannot open PATH".
        error: What the library raised; the last line of its message is the reason.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    if is_out_of_memory(error):
        return ResourceError(f"{what}: out of memory", hint="ask for fewer pictures at once, or free memory")
    return EngineError(f"{what}: {reason}", hint="build the engines again; if it fails again, report it")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a library's exception is for want of memory; those of C++ and of the loader say so in words only."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
