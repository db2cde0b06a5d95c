"""The builders of TensorRT and TensorRT-RTX: strongly typed plans."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from sdrt.artefacts.engine_set import BackendName, BatchRange, LayerList
from sdrt.artefacts.manifest import COMPONENTS, ComponentName, Precision
from sdrt.engines.builders.base import Builder, Compiled, ComponentJob, Report
from sdrt.engines.recipe import DEFAULT, DEFAULT_TARGETS, Recipe, load_recipe
from sdrt.engines.trt import attention as attentions
from sdrt.engines.trt.config import new_config, wanted_workspace_bytes
from sdrt.engines.trt.layers import layer_list
from sdrt.engines.trt.monitor import Phases, make_monitor
from sdrt.engines.trt.network import objections, parse
from sdrt.engines.trt.profiles import add_profile
from sdrt.engines.trt.timing_cache import TimingCache
from sdrt.errors import BackendUnavailableError, EngineError, ResourceError, UsageError
from sdrt.files import disk_errors
from sdrt.libraries.tensorrt import Library
from sdrt.libraries.tensorrt_log import Messages, listen
from sdrt.machine import nvidia
from sdrt.machine.gc_pause import gc_paused
from sdrt.machine.packages import installed_version

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

PLAN = "model.plan"
#: Texts of the log that mean that memory ran out.
MEMORY_WORDS = ("out of memory", "Out of memory", "OutOfMemory")
#: Text of the log that means that TensorRT's compiler, Myelin, failed.
COMPILER_FAULT = "MyelinCheckException"
WITH_STEP: tuple[ComponentName, ...] = (*COMPONENTS, "denoise_step")


class TensorRtBuilder(Builder):
    """The builder of TensorRT: compiles for this machine's GPU and times kernels on it.

    Networks are strongly typed: their precision is the graphs'.

    Args:
        report: Receives the progress of a component.
        library: Module of TensorRT; None imports the backend's.
    """

    backend: ClassVar[BackendName] = "tensorrt"
    version = 3
    precisions = ("fp16", "fp32")
    module: ClassVar[str] = "tensorrt"
    for_targets: ClassVar[bool] = False
    side_by_side = False

    def __init__(self, report: Report | None = None, library: Library | None = None) -> None:
        super().__init__(report)
        self._library = library

    def library_versions(self) -> dict[str, str]:
        """Return the version of the library."""
        return {self.backend: installed_version(self.backend)}

    def must_match(self, recipe: Recipe | None = None) -> dict[str, str]:
        """Return the GPU's architecture, or the wider range of the recipe."""
        compatibility = recipe.hardware_compatibility if recipe else "none"
        if compatibility == "ampere_plus":
            return {"gpu": "sm80+"}
        return {"gpu": self._gpu().architecture}

    def also_in_key(self) -> dict[str, str]:
        """Return the versions of driver and CUDA and the GPU's name: kernels are chosen by timing."""
        driver = nvidia.driver()
        return {"driver": driver.version, "cuda": driver.cuda, "gpu": self._gpu().name}

    def components(self, held: frozenset[ComponentName]) -> tuple[ComponentName, ...]:
        """Return the four components, and denoise_step, which runs guided steps, if the bundle holds it."""
        return WITH_STEP if "denoise_step" in held else COMPONENTS

    def recipe(self, requested: Recipe | None, pictures: BatchRange | None) -> Recipe:
        """Return the user's recipe or the default one, with the user's range of pictures if there is one."""
        recipe = requested or load_recipe(DEFAULT)
        return recipe.with_pictures(pictures) if pictures else recipe

    def version_compatible(self, recipe: Recipe | None) -> bool:
        """Return whether the recipe sets ``version_compatible``."""
        return recipe is not None and recipe.version_compatible

    def default_precision(self) -> Precision:
        """Return fp16, the default precision of bundles for GPUs."""
        return "fp16"

    def precision(self, requested: Precision | None, exported: Precision = "fp32") -> Precision:
        """Return the bundle's precision: a strongly typed network computes in that of its graph.

        Raises:
            BackendUnavailableError: The backend does not compute in this precision.
            UsageError: The user's precision is not the bundle's.
        """
        wanted = super().precision(requested or exported, exported)
        if wanted != exported:
            hint = f"export it with --precision {wanted}, or leave --precision out"
            raise UsageError(
                f"the bundle is {exported}; {self.backend} computes in the precision of the graphs", hint=hint
            )
        return wanted

    def component_precision(
        self, component: ComponentName, precision: Precision, exported: Precision = "fp32"
    ) -> Precision:
        """Return the component's exported precision; one that overflows fp16 is fp32 in an fp16 bundle."""
        return exported

    def compile(self, job: ComponentJob, folder: Path) -> Compiled:
        """Write the plan of a component.

        Raises:
            EngineError: The graph is malformed, or TensorRT does not accept it; names the node.
            UsageError: The recipe's batch is outside the graph's shape.
            ResourceError: Memory ran out.
        """
        if job.recipe is None or job.batch is None:
            raise UsageError(f"{job.component} has no recipe", hint="build by sdrt.engines.build, which chooses one")
        library, cache = self._imported(), self._timing_cache(job)
        with disk_errors(folder), gc_paused():
            build = _Build(library, job, job.recipe, job.batch, self.report, for_targets=self.for_targets)
            (folder / PLAN).write_bytes(build.plan(cache))
            layers = build.layers()
        return Compiled(PLAN, layers=layers)

    def _timing_cache(self, job: ComponentJob) -> TimingCache | None:
        if job.timing_caches is None:
            return None
        gpu, driver = self._gpu(), nvidia.driver()
        parts = (self.backend, installed_version(self.backend), gpu.architecture, gpu.name, driver.version)
        device = "-".join("".join(c if c.isalnum() or c == "." else "_" for c in part) for part in parts)
        return TimingCache(job.timing_caches, device, self.report.note)

    def _gpu(self) -> nvidia.Gpu:
        gpus = nvidia.driver().gpus
        if not gpus:
            hint = "build on the machine that has it, or for others with --backend tensorrt-rtx"
            raise BackendUnavailableError(f"{self.backend} builds on the GPU, and there is none", hint=hint)
        return gpus[0]

    def _imported(self) -> Library:
        if self._library is None:
            try:
                self._library = cast("Library", import_module(self.module))
            except ImportError as error:
                hint = f"reinstall {self.backend}"
                message = f"{self.backend} is installed but does not import: {error}"
                raise BackendUnavailableError(message, hint=hint) from error
        return self._library


class TensorRtRtxBuilder(TensorRtBuilder):
    """The builder of TensorRT-RTX: compiles for the recipe's targets, without a GPU and without timing."""

    backend: ClassVar[BackendName] = "tensorrt-rtx"
    module = "tensorrt_rtx"
    for_targets = True
    side_by_side = True

    def must_match(self, recipe: Recipe | None = None) -> dict[str, str]:
        """Return the target architectures, one of which the GPU must have; nothing of this machine."""
        return {"gpu": " ".join(recipe.targets if recipe and recipe.targets else DEFAULT_TARGETS)}

    def also_in_key(self) -> dict[str, str]:
        """Return an empty dict: for the same targets every machine builds the same set."""
        return {}

    def recipe(self, requested: Recipe | None, pictures: BatchRange | None) -> Recipe:
        """Return the recipe as `TensorRtBuilder.recipe`; without targets it is for this machine's GPU."""
        try:
            here = [gpu.architecture for gpu in nvidia.driver().gpus]
        except BackendUnavailableError:
            here = []
        return super().recipe(requested, pictures).for_gpus(here)

    def version_compatible(self, recipe: Recipe | None) -> bool:
        """Return False: TensorRT-RTX has no version-compatible plans."""
        return False

    def _timing_cache(self, job: ComponentJob) -> None:
        return None


class _Build:
    """The build of one component. It keeps all objects alive that TensorRT's objects refer to."""

    def __init__(
        self, trt: Library, job: ComponentJob, recipe: Recipe, batch: BatchRange, report: Report, *, for_targets: bool
    ) -> None:
        self._trt, self._job, self._recipe, self._batch, self._for_targets = trt, job, recipe, batch, for_targets
        self._report = report
        self._messages = Messages()
        self._logger: rtx.ILogger = listen(trt, self._messages)
        self._builder = trt.Builder(self._logger)
        if not self._builder:
            raise EngineError(
                f"{job.backend} creates no builder: {self._messages.tail()}", hint="check NVIDIA's driver"
            )
        self._builder.max_threads = job.threads
        # From here on the log is the parser's.
        self._messages.clear()
        self._parsed = parse(trt, self._builder, self._logger, self._messages, job.graph)
        for warning in objections(self._messages, job.spec.inputs):
            report.note(f"{job.component}: {job.backend} warns: {warning}")
        self._attentions = attentions.attentions(trt, self._parsed.definition)

    def plan(self, cache: TimingCache | None) -> memoryview:
        """Build and return the serialised plan; build again with attentions decomposed that have no fused kernel.

        Raises:
            EngineError: TensorRT builds nothing; the message is the end of its log.
            ResourceError: Memory ran out.
        """
        self._mark([attention for attention in self._attentions if attentions.is_never_fused(self._trt, attention)])
        plan = self._try(cache)
        if plan is None and self._messages.say(attentions.NO_KERNEL) and self._mark_unfused():
            plan = self._try(cache)
        if plan is None and self._fused() and self._may_lack_kernel():
            # An attention may have a kernel alone and none inside this graph, or the log may word it differently.
            self._mark(self._fused())
            plan = self._try(cache)
        if plan is None:
            raise self._failure()
        return memoryview(plan)

    def layers(self) -> LayerList:
        """Return the layers of the network."""
        return layer_list(self._parsed.definition, self._attentions)

    def _try(self, cache: TimingCache | None) -> rtx.IHostMemory | None:
        """Build once; return the plan, or None with the reason in the log."""
        self._messages.clear()
        config = new_config(self._trt, self._builder, self._recipe, for_targets=self._for_targets)
        network, inputs = self._parsed.definition, self._job.spec.inputs
        add_profile(self._builder, config, network, self._job.component, inputs, self._batch, self._messages)
        phases = Phases(self._report.percent)
        # The configuration does not keep the monitor alive.
        monitor = make_monitor(self._trt, phases)
        config.progress_monitor = monitor
        if cache is not None:
            cache.give(config)
        plan = self._builder.build_serialized_network(network, config)
        phases.check()
        if cache is not None and plan is not None:
            cache.keep(config)
        return plan

    def _may_lack_kernel(self) -> bool:
        """Return whether the last build may have failed because an attention has no kernel, not because of memory."""
        return wanted_workspace_bytes(self._messages) is None and attentions.may_lack_kernel(self._messages)

    def _mark_unfused(self) -> bool:
        """Mark the attentions that do not build alone; return whether there are any."""
        rows = (self._batch.min, self._batch.opt, self._batch.max)
        known: dict[attentions.AttentionShape, bool] = {}
        for attention in self._fused():
            shape = attentions.shape_of(attention)
            if shape not in known:
                known[shape] = attentions.has_kernel(self._trt, self._builder, self._config, shape, rows)
        unfused = [attention for attention in self._fused() if not known[attentions.shape_of(attention)]]
        self._mark(unfused)
        return bool(unfused)

    def _fused(self) -> list[rtx.IAttention]:
        return [attention for attention in self._attentions if not attention.decomposable]

    def _mark(self, unfused: list[rtx.IAttention]) -> None:
        """Let TensorRT decompose these attentions, and report them."""
        if not unfused:
            return
        for attention in unfused:
            attention.decomposable = True
        first, count = attentions.describe(unfused[0]), f"{len(unfused)} of {len(self._attentions)} attentions"
        self._report.note(f"{self._job.component}: {count} have no kernel here and are decomposed, the first {first}")

    def _config(self) -> rtx.IBuilderConfig:
        return new_config(self._trt, self._builder, self._recipe, for_targets=self._for_targets)

    def _failure(self) -> EngineError | ResourceError:
        what = f"{self._trt.__name__} {self._trt.__version__} cannot build {self._job.component}"
        tail, recipe = self._messages.tail(), self._recipe
        wanted_bytes = wanted_workspace_bytes(self._messages)
        if wanted_bytes is not None and recipe.workspace_mib is not None:
            hint = f"build it with --set workspace_mib={-(-wanted_bytes >> 20)} or more, or by a recipe that sets none"
            return ResourceError(f"{what}: {tail}", hint=hint)
        if wanted_bytes is not None or any(self._messages.say(words) for words in MEMORY_WORDS):
            needed = f"{wanted_bytes} bytes are needed: " if wanted_bytes else ""
            hint = "use a recipe with fewer pictures, or stop other processes that use the GPU (nvidia-smi lists them)"
            return ResourceError(f"{what}: {tail}", hint=needed + hint)
        if self._for_targets:
            hint = "use another --recipe or fewer targets; if it fails again, report it"
        elif recipe.hardware_compatibility != "none" and self._messages.say(COMPILER_FAULT):
            hint = "this TensorRT does not compile it for other GPUs: build it with --set hardware_compatibility=none"
        elif recipe.version_compatible:
            hint = "build it with --set version_compatible=false; if it fails again, report it"
        else:
            hint = "use another --recipe; if it fails again, report it"
        return EngineError(f"{what}: {tail}", hint=hint)
