"""Fake device memory: addresses into host arrays; every access that is not allowed is an error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

# Far from any address of this process, so that confusing host and device always fails.
FIRST_ADDRESS = 0x7F_0000_0000_0000
ALIGNMENT = 256
# Gap between allocations, so that an overrun is detected.
GUARD = 4096
# Content of fresh and freed memory: a NaN as float32 and as float16, so that reading it is detected.
POISON = 0xFF


class Misuse(AssertionError):
    """A broken rule of CUDA or TensorRT, which a GPU would answer with undefined behaviour."""


class Arena:
    """The device's memory.

    Args:
        size_bytes: Its size.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._live: dict[int, Bytes] = {}
        self._freed: dict[int, int] = {}
        self._next = FIRST_ADDRESS

    @property
    def used_bytes(self) -> int:
        """The number of allocated bytes."""
        return sum(len(block) for block in self._live.values())

    def allocate(self, size_bytes: int) -> int | None:
        """Return an aligned address, never one that was used before; None when memory is used up."""
        if self.used_bytes + size_bytes > self.size_bytes:
            return None
        address = self._next
        self._live[address] = np.full(size_bytes, POISON, np.uint8)
        self._next += -(-(size_bytes + GUARD) // ALIGNMENT) * ALIGNMENT
        return address

    def free(self, address: int) -> None:
        """Free an allocation by its own address, once."""
        if address not in self._live:
            raise Misuse(f"{address:#x} is freed, which is not allocated" + self._history(address))
        self._freed[address] = len(self._live.pop(address))

    def view(self, address: int, size_bytes: int) -> Bytes:
        """Return the bytes at an address, which must belong to one living allocation."""
        for start, block in self._live.items():
            if start <= address < start + len(block):
                if address + size_bytes > start + len(block):
                    raise Misuse(f"{size_bytes} bytes at {address:#x} run over the end of their allocation")
                return block[address - start : address - start + size_bytes]
        raise Misuse(f"{address:#x} is not device memory" + self._history(address))

    def _history(self, address: int) -> str:
        freed = any(start <= address < start + size for start, size in self._freed.items())
        return ": use after free" if freed else ""
