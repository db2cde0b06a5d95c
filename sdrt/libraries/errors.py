"""Translation of backend libraries' exceptions to sdrt's errors."""

from __future__ import annotations

from sdrt.errors import EngineError, ResourceError, SdrtError

#: Texts by which C++'s standard library, the C library, the dynamic loader and threads report that memory ran out.
OUT_OF_MEMORY = (
    "bad_alloc",
    "allocate memory",
    "can't alloc",
    "failed to map segment",
    "Resource temporarily unavailable",
)


def library_error(what: str, error: Exception) -> SdrtError:
    """Return sdrt's error for a backend library's exception.

    Args:
        what: Description of the failure, such as "openvino cannot open PATH".
        error: The library's exception; the last line of its message is quoted as the reason.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    if is_out_of_memory(error):
        return ResourceError(f"{what}: out of memory", hint="ask for fewer pictures at once, or free memory")
    return EngineError(f"{what}: {reason}", hint="build the engines again; if it fails again, report it")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a library raised an exception because memory ran out; C++ and the loader say so by text only."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
