"""The engines of one set, opened together, so that a backend can share memory and run loops on its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self

from sdrt.errors import UsageError
from sdrt.machine.malloc_trim import trim_heap
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.backends.registry import GPU_BACKENDS

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineSet
    from sdrt.artefacts.manifest import ComponentName
    from sdrt.runtime.denoise import Conditioning, Latents, OnStep
    from sdrt.sampling.lms import Schedule


class DeviceLoop(Protocol):
    """The guided denoising loop, run on the engine's device without copies to the host between steps."""

    #: Seconds of each step of the last run.
    seconds: list[float]

    def denoise(
        self,
        schedule: Schedule,
        latents: Latents,
        conditioning: Conditioning,
        on_step: OnStep | None,
        advance: Callable[[int], None],
    ) -> Latents:
        """Run every step of the schedule, like `sdrt.runtime.denoise.denoise_fused`.

        Args:
            schedule: Timesteps, sigmas and coefficients.
            latents: [n,4,64,64] noise at the first sigma.
            conditioning: Hidden states of both halves, and the guidance scale.
            on_step: Called with the latents after each step; may change them or stop the loop. Each call costs a copy
                to the host and a wait; None keeps everything on the device.
            advance: Called with the number of steps done.

        Returns:
            The final latents [n,4,64,64], before the scaling factor.

        Raises:
            NumericError: The latents hold NaN or Inf.
        """


class Session:
    """The engines of one set, each opened when it is first used. Not thread-safe.

    Backends whose engines share nothing use this class itself.

    Args:
        engines: The opened, hence verified, set.
        open_engine: Opens one of its components.
    """

    def __init__(self, engines: EngineSet, open_engine: Callable[[ComponentName], Engine]) -> None:
        self.engines = engines
        self._open_engine = open_engine
        self._opened: dict[ComponentName, Engine] = {}

    def engine(self, name: ComponentName) -> Engine:
        """Return a component's engine, opening it if it is not open.

        Raises:
            EngineError: The set lacks the component, or it does not open.
        """
        if name not in self._opened:
            self._opened[name] = self._open_engine(name)
        return self._opened[name]

    def device_loop(self) -> DeviceLoop | None:
        """Return the loop that the backend runs on its device; None if it has none, or the set lacks denoise_step."""
        return None

    def replays(self, name: ComponentName) -> bool | None:
        """Return whether a component's runs are replayed from a CUDA graph; None if the backend has no CUDA graphs."""
        return None

    @property
    def device_bytes(self) -> dict[str, int]:
        """Bytes held on the device, by purpose; empty on the CPU."""
        return {}

    def release(self, name: ComponentName) -> None:
        """Close a component's engine and free its memory; it is opened again when it is next used."""
        engine = self._opened.pop(name, None)
        if engine is not None:
            engine.close()
            trim_heap()

    def close(self) -> None:
        """Close every engine."""
        for engine in self._opened.values():
            engine.close()
        self._opened.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_cuda_graphs(backend: str, cuda_graphs: bool | None) -> None:
    """Raise UsageError if CUDA graphs are switched on or off for a backend that has none.

    Args:
        backend: Name of the backend.
        cuda_graphs: Whether to use them; None if not given.

    Raises:
        UsageError: The backend has no CUDA graphs.
    """
    if cuda_graphs is not None and backend not in GPU_BACKENDS:
        name = "--cuda-graphs" if cuda_graphs else "--no-cuda-graphs"
        hint = f"leave {name} out, or choose another --backend"
        raise UsageError(f"{name} is for {' and '.join(GPU_BACKENDS)}; the backend is {backend}", hint=hint)
