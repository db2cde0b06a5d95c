"""Opening of engine sets by the backend that built them."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING

from sdrt.errors import BackendUnavailableError, EngineError, ResourceError, SdrtError, UsageError
from sdrt.files import system_errors
from sdrt.install_lines import package_line
from sdrt.machine.cpu import unsuited, usable_cpus
from sdrt.machine.packages import distribution, installed_version
from sdrt.progress import Progress, silent
from sdrt.runtime.backends.registry import available, find_backend

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineManifest, EngineSet
    from sdrt.artefacts.manifest import ComponentName
    from sdrt.runtime.backends.base import Engine
    from sdrt.runtime.backends.session import Session


@system_errors()
def open_engine(engines: EngineSet, component: ComponentName, *, threads: int | None = None) -> Engine:
    """Open one component of an engine set, ready to run on this machine.

    Args:
        engines: The opened, hence verified, set.
        component: Name of the component.
        threads: Number of CPU threads; None uses all CPUs of this process.

    Raises:
        EngineError: The set lacks the component, or was built by another version of the library.
        TrustError: The component differs from the seal.
        BackendUnavailableError: The backend cannot run here, or the processor lacks what the set was built for.
        UsageError: ``threads`` is below 1.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1", hint="leave it out to use every CPU")
    spec = engines.component(component)
    backend = engines.manifest.backend
    available(backend)
    check_host(engines.manifest)
    entry = find_backend(backend)
    try:
        module = import_module(entry.module)
        if entry.needs_gpu:
            alone: Engine = module.open_alone(engines, component, *module.libraries(backend))
            return alone
        engines.check(component)
        engine: Engine = getattr(module, entry.engine)(component, spec, engines.path, threads or usable_cpus())
    except ImportError as error:
        raise _import_error(backend, error) from error
    return engine


def open_session(
    engines: EngineSet,
    *,
    threads: int | None = None,
    cuda_graphs: bool = True,
    progress: Progress = silent,
) -> Session:
    """Open an engine set to run its components on this machine; each engine is opened when it is first used.

    Args:
        engines: The opened, hence verified, set.
        threads: Number of CPU threads of each engine; None uses all CPUs of this process.
        cuda_graphs: Whether TensorRT's steps are replayed from a CUDA graph; the results are the same without.
        progress: Progress callback; receives warnings.

    Raises:
        EngineError: The set was built by another version of the library.
        BackendUnavailableError: The backend cannot run here, or the set was built for another kind of device.
        UsageError: ``threads`` is below 1.
    """
    from sdrt.runtime.backends.session import Session

    backend = engines.manifest.backend
    if not find_backend(backend).needs_gpu:
        return Session(engines, lambda component: open_engine(engines, component, threads=threads))
    available(backend)
    check_host(engines.manifest)
    try:
        module = import_module("sdrt.runtime.backends.tensorrt")
        libraries = module.libraries(backend)
        session: Session = module.TensorRtSession(engines, *libraries, cuda_graphs=cuda_graphs, progress=progress)
    except ImportError as error:
        raise _import_error(backend, error) from error
    return session


def _import_error(backend: str, error: ImportError) -> SdrtError:
    """Return the error for an installed library whose import failed."""
    from sdrt.libraries.errors import is_out_of_memory

    if is_out_of_memory(error):
        return ResourceError(f"{backend} cannot be loaded: out of memory", hint="free memory")
    hint = f"reinstall {backend}"
    return BackendUnavailableError(f"{backend} is installed but does not import: {error}", hint=hint)


def check_host(manifest: EngineManifest) -> None:
    """Raise an error unless a set was built by the installed libraries' versions, for a processor like this one.

    A version-compatible set opens in later versions of the same major version too.

    Raises:
        EngineError: The set was built by another version of a library.
        BackendUnavailableError: The set was built for another kind of processor, or for instructions this one lacks.
    """
    for library, built_by in manifest.versions.items():
        here = installed_version(library)
        if here == built_by or (manifest.version_compatible and _is_later_of_the_same_major(here, built_by)):
            continue
        name, _ = distribution(library) or (library, here)
        hint = f"{package_line(f'{name}=={built_by}')}; or build them again here"
        raise EngineError(f"the engines were built by {library} {built_by}; here is {here}", hint=hint)
    lacking = unsuited(manifest.host)
    if lacking:
        hint = "build them again on this machine"
        raise BackendUnavailableError(f"the engines were built for {lacking}, which this is not", hint=hint)


def _is_later_of_the_same_major(here: str, built_by: str) -> bool:
    """Return whether a version, such as 11.4.0.29 or 11.4.0.post1, is later than another of the same major version."""
    one, other = ([int(number) for number in re.findall(r"\d+", text)] for text in (here, built_by))
    return one[:1] == other[:1] and one > other
