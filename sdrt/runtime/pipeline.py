"""The pipeline: prompts in, pictures out, over the engines of any backend."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdrt.errors import EngineError, UsageError
from sdrt.progress import Progress, silent
from sdrt.runtime import images
from sdrt.runtime.backends import GPU_BACKENDS, open_session
from sdrt.runtime.backends.base import Engine, check_finite
from sdrt.runtime.denoise import Conditioning, Latents, OnStep, denoise, denoise_fused
from sdrt.runtime.latents import check_latents, unit_noise
from sdrt.runtime.lms import Schedule
from sdrt.runtime.request import Picture, Request, make_request
from sdrt.runtime.text import Tokenizer

if TYPE_CHECKING:
    from PIL import Image

    from sdrt.bundle import ComponentName, Precision
    from sdrt.engines.engine_set import EngineSet
    from sdrt.engines.request import Provider

#: Pictures denoised together, unless the engine was made fastest for more. More gain little on a CPU and cost memory
#: in proportion.
PICTURES_AT_ONCE = 4
#: How a guided step runs: by denoise_step where the engines hold it, or always by the plain UNet.
LOOPS = ("auto", "plain")
#: diffusers' signature: (pipeline, step, timestep, {"latents": ...}) -> mapping, whose "latents" are gone on with.
Callback = Callable[["Pipeline", int, float, dict[str, Any]], "Mapping[str, Any] | None"]


@dataclass
class Timings:
    """Seconds by stage, and of each UNet step."""

    load: float = 0.0
    text_encoder: float = 0.0
    unet: float = 0.0
    vae_decoder: float = 0.0
    total: float = 0.0
    steps: list[float] = field(default_factory=list)

    @property
    def unet_s_per_step(self) -> float:
        """Median UNet seconds of the steps after the first, which warms up."""
        return statistics.median(self.steps[1:] or self.steps or [0.0])

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the block's seconds to a stage."""
        start = time.perf_counter()
        yield
        setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)


@dataclass(frozen=True)
class Result:
    """What a call gives: pictures, the settings that repeat them, final latents [n,4,64,64] before scaling, seconds."""

    images: list[Image.Image]
    request: Request
    records: list[dict[str, Any]]
    latents: Latents
    timings: Timings
    truncated: tuple[str, ...]


class Pipeline:
    """Engines of one checkpoint, opened once and run as often as wanted. Not to be shared between threads.

    Example::

        from sdrt import Pipeline

        pipe = Pipeline.load("demo")
        pipe("a red circle", seed=0).images[0].save("circle.png")
    """

    def __init__(
        self,
        engines: EngineSet,
        *,
        threads: int | None = None,
        loop: str = "auto",
        cuda_graphs: bool | None = None,
        progress: Progress = silent,
    ) -> None:
        """Open the engines of a set. ``load`` is the usual way, and says what the arguments mean.

        Where the set holds both the UNet and denoise_step, the one that a request needs is opened by the first request
        that does, since each holds the weights; the seconds count as load all the same.
        """
        if loop not in LOOPS:
            raise UsageError(f"loop is {loop[:40]!r}", hint=f"choose among {', '.join(LOOPS)}")
        start = time.perf_counter()
        self.engines = engines
        self.model = engines.manifest.model
        self.tokenizer = Tokenizer.open(engines.tokenizer, self.model.max_tokens)
        self.scheduler_config: dict[str, Any] = json.loads(engines.scheduler.read_bytes())
        check_cuda_graphs(engines.manifest.backend, cuda_graphs)
        self._session = open_session(engines, threads=threads, cuda_graphs=cuda_graphs is not False, progress=progress)
        self._holds_step = loop == "auto" and "denoise_step" in engines.manifest.components
        try:
            self._engine("text_encoder")
            if not self._holds_step:
                self._engine("unet")
            self._engine("vae_decoder")
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - start

    @classmethod
    def load(
        cls,
        checkpoint: str | None = None,
        *,
        revision: str | None = None,
        bundle: Path | None = None,
        engines: Path | None = None,
        trust: str | None = None,
        backend: str = "auto",
        precision: Precision | None = None,
        store: Path | None = None,
        build: bool = True,
        threads: int | None = None,
        loop: str = "auto",
        cuda_graphs: bool | None = None,
        provider: Provider | None = None,
        progress: Progress = silent,
    ) -> Pipeline:
        """Open a checkpoint's engines; what is missing on the way there is exported and built first.

        Args:
            checkpoint: A folder, a .safetensors file, a Hub id, or "demo", which is the default.
            revision: Of a Hub id.
            bundle: A bundle folder, in place of a checkpoint.
            engines: An engine set folder, in place of either.
            trust: SHA-256 of the manifest.json of an engine set from elsewhere.
            backend: onnxruntime, openvino, or auto: the fastest that can run here.
            precision: fp32 or bf16; None is the backend's choice on this machine.
            store: Folder of the store; None is the user's cache.
            build: Whether to export and build what is missing; else it is an error.
            threads: Threads to compute with; None is all that this process may use.
            loop: auto runs a guided step as one graph, denoise_step, where the engines hold it; plain never does.
            cuda_graphs: Whether steps are replayed from a CUDA graph, which tensorrt and tensorrt-rtx do unless told
                not to; the numbers are the same without.
            provider: What ONNX Runtime computes with: cpu (None is the same), cuda or tensorrt.
            progress: Told of exports and builds.

        Raises:
            SdrtError: Of the kind that fits: see sdrt.errors.
        """
        from sdrt.prepare import Source, prepare, resolve_backend

        source = Source(checkpoint, revision, bundle, engines, trust)
        if cuda_graphs is not None and not engines:
            # Before anything is exported or built for a backend that has none.
            backend = resolve_backend(backend, progress)
            check_cuda_graphs(backend, cuda_graphs)
        opened = prepare(
            source,
            backend=backend,
            precision=precision,
            store=store,
            build=build,
            provider=provider,
            progress=progress,
        )
        return cls(opened, threads=threads, loop=loop, cuda_graphs=cuda_graphs, progress=progress)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        latents: npt.NDArray[np.floating[Any]] | None = None,
        callback_on_step_end: Callback | None = None,
    ) -> Result:
        """Make pictures. The arguments are diffusers', but for ``seed`` in place of a generator.

        Args:
            prompt: One or several.
            negative_prompt: What to stay away from; used when guidance is on.
            num_inference_steps: 1 to the scheduler's number of trained timesteps.
            guidance_scale: How strongly to follow the prompt; 1 and below turn guidance off and halve the work.
            num_images_per_prompt: Pictures of each prompt.
            seed: Picture i has ``seed`` + i; a list gives each picture's; None draws one.
            latents: Unit noise [n,4,64,64] in place of the seeds'.
            callback_on_step_end: Called after each step; may give back other latents under "latents".

        Raises:
            UsageError: An argument is out of its range.
            NumericError: A component gave NaN or Inf; no picture is made.
        """
        request = make_request(
            prompt,
            negative_prompt,
            seed=seed,
            num_images_per_prompt=num_images_per_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        return self.run(request, latents=latents, callback_on_step_end=callback_on_step_end)

    def run(
        self,
        request: Request,
        *,
        latents: npt.NDArray[np.floating[Any]] | None = None,
        callback_on_step_end: Callback | None = None,
        progress: Progress = silent,
    ) -> Result:
        """Make the pictures of a checked request, a few at a time. See ``__call__``."""
        schedule = Schedule.from_config(self.scheduler_config, request.num_inference_steps)
        shape = (self.model.latent_channels, self.model.latent_size, self.model.latent_size)
        noise = unit_noise([p.seed for p in request.pictures], shape)
        if latents is not None:
            noise = check_latents(latents, len(request.pictures), shape)
        self._open_denoiser(request)
        timings = Timings(load=self.load_s)
        pictures, finals, records = [], [], []
        lost: list[str] = []
        with timings.measure("total"):
            for first, group in self._groups(request):
                part = noise[first : first + len(group)] * np.float32(schedule.init_noise_sigma)
                with timings.measure("text_encoder"):
                    conditioning, truncated = self._encode(group, request)
                with timings.measure("unet"), progress.stage("denoise", schedule.num_inference_steps) as advance:
                    hook = self._hook(callback_on_step_end)
                    final, seconds = self._denoise(request, schedule, part, conditioning, hook, advance)
                with timings.measure("vae_decoder"):
                    pictures += self.decode(final)
                timings.steps += seconds
                finals.append(final)
                lost += truncated
                records += [self._record(request, group, index, latents is not None) for index in range(len(group))]
        timings.total += timings.load
        return Result(pictures, request, records, np.concatenate(finals), timings, tuple(lost))

    def decode(self, latents: Latents) -> list[Image.Image]:
        """Pictures of final latents [n,4,64,64], as few at a time as the engine takes: they need much memory.

        Raises:
            NumericError: The decoder gave NaN or Inf.
        """
        decoder = self._engine("vae_decoder")
        (spec,) = decoder.spec.inputs
        unscaled = (latents / np.float32(self.model.scaling_factor)).astype(spec.dtype, copy=False)
        pictures = []
        rows = decoder.spec.batch.min if decoder.spec.batch else 1
        for first in range(0, len(unscaled), rows):
            sample = decoder.run(latent_sample=unscaled[first : first + rows])["sample"].astype(np.float32, copy=False)
            check_finite(sample, "vae_decoder")
            pictures += images.to_pictures(sample)
        return pictures

    @property
    def device_bytes(self) -> dict[str, int]:
        """Bytes held on a GPU now, by what for, and their total; empty for a backend that computes on the CPU."""
        return self._session.device_bytes

    def close(self) -> None:
        """Let go of every engine."""
        self._session.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _engine(self, name: ComponentName) -> Engine:
        return self._session.engine(name)

    def denoiser(self, request: Request) -> ComponentName:
        """The component that runs the request's steps: denoise_step where it is held and guidance is on, or unet."""
        return "denoise_step" if request.guided and self._holds_step else "unet"

    def way(self, request: Request) -> dict[str, Any]:
        """How the request's steps run, as records and --json name it.

        Returns:
            loop, "fused" (by denoise_step) or "plain" (by the UNet); provider, of ONNX Runtime; cuda_graphs, whether
            steps are replayed from a CUDA graph. What the backend does not have is None.
        """
        name = self.denoiser(request)
        options = self.engines.component(name).options
        onnxruntime = self.engines.manifest.backend == "onnxruntime"
        return {
            "loop": "fused" if name == "denoise_step" else "plain",
            "provider": options.get("provider", "cpu") if onnxruntime else None,
            "cuda_graphs": self._session.replays(name),
        }

    def pictures_at_once(self, request: Request) -> int:
        """How many of the request's pictures are denoised together.

        `PICTURES_AT_ONCE`, or as many as the engine was made fastest for if that is more; never more than it takes.

        Raises:
            EngineError: The engine takes not even one.
        """
        name = self.denoiser(request)
        limits = self.engines.component(name).batch
        if limits is None:
            return PICTURES_AT_ONCE
        rows = 2 if name == "unet" and request.guided else 1
        size = min(max(PICTURES_AT_ONCE, limits.opt // rows, -(-limits.min // rows)), limits.max // rows)
        if size < 1:
            hint = "build engines with another --batch"
            raise EngineError(f"the UNet takes batches of {limits} rows; a guided picture needs 2", hint=hint)
        return size

    def _open_denoiser(self, request: Request) -> None:
        """Open what the request's steps need, unless it is; the time is the load's, not the steps'."""
        start = time.perf_counter()
        if self.denoiser(request) == "unet":
            self._engine("unet")
        elif self._session.device_loop() is None:
            self._engine("denoise_step")
        self.load_s += time.perf_counter() - start

    def _denoise(
        self,
        request: Request,
        schedule: Schedule,
        latents: Latents,
        conditioning: Conditioning,
        hook: OnStep | None,
        advance: Callable[[int], None],
    ) -> tuple[Latents, list[float]]:
        """Final latents, and the seconds of each step, by the loop that fits the request."""
        fused = self.denoiser(request) == "denoise_step"
        device = self._session.device_loop() if fused else None
        if device is not None:
            return device.denoise(schedule, latents, conditioning, hook, advance), list(device.seconds)
        engine = self._engine(self.denoiser(request))
        before = len(engine.seconds)

        def on_step(step: int, timestep: float, latents: Latents) -> Latents | None:
            advance(1)
            return latents if hook is None else hook(step, timestep, latents)

        run = denoise_fused if fused else denoise
        return run(engine, schedule, latents, conditioning, on_step), engine.seconds[before:]

    def _groups(self, request: Request) -> Iterator[tuple[int, tuple[Picture, ...]]]:
        """The pictures, as many at a time as the engine that denoises them takes."""
        size = self.pictures_at_once(request)
        for first in range(0, len(request.pictures), size):
            yield first, request.pictures[first : first + size]

    def _encode(self, group: Sequence[Picture], request: Request) -> tuple[Conditioning, tuple[str, ...]]:
        """Hidden states of the prompts, and what was cut off each prompt. Each distinct text is encoded once, alone."""
        texts = [picture.prompt for picture in group]
        negatives = [picture.negative_prompt for picture in group] if request.guided else []
        distinct = list(dict.fromkeys(texts + negatives))
        tokens = self.tokenizer.encode(distinct)
        encoder = self._engine("text_encoder")
        states = {}
        for text, row in zip(distinct, tokens.input_ids, strict=True):
            state = encoder.run(input_ids=row[np.newaxis])["last_hidden_state"].astype(np.float32, copy=False)
            check_finite(state, "text_encoder")
            states[text] = state[0]
        lost = dict(zip(distinct, tokens.truncated, strict=True))
        conditioning = Conditioning(
            np.stack([states[text] for text in texts]),
            np.stack([states[text] for text in negatives]) if negatives else None,
            request.guidance_scale,
        )
        return conditioning, tuple(lost[text] for text in texts)

    def _hook(self, callback: Callback | None) -> OnStep | None:
        """The user's callback as the loop calls it."""
        if callback is None:
            return None

        def hook(step: int, timestep: float, latents: Latents) -> Latents:
            given = callback(self, step, timestep, {"latents": latents})
            return latents if given is None else check_latents(given.get("latents", latents), *_counted(latents))

        return hook

    def _record(self, request: Request, group: Sequence[Picture], index: int, own_latents: bool) -> dict[str, Any]:
        """Everything that repeats one picture, as the PNG carries it."""
        picture, manifest = group[index], self.engines.manifest
        return {
            "prompt": picture.prompt,
            "negative_prompt": picture.negative_prompt,
            "seed": picture.seed,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "scheduler": "LMS",
            "checkpoint": manifest.checkpoint.model_dump(mode="json"),
            "backend": manifest.backend,
            "precision": manifest.precision,
            "engines": self.engines.digest,
            **self.way(request),
            "size": [self.model.image_size, self.model.image_size],
            "latents_given": own_latents,
            "batch": [[p.prompt, p.negative_prompt, p.seed] for p in group],
            "batch_index": index,
        }


def check_cuda_graphs(backend: str, cuda_graphs: bool | None) -> None:
    """Hold that a backend has CUDA graphs, where it is said whether to use them.

    Raises:
        UsageError: It has none.
    """
    if cuda_graphs is not None and backend not in GPU_BACKENDS:
        name = "--cuda-graphs" if cuda_graphs else "--no-cuda-graphs"
        hint = f"leave {name} out, or choose another --backend"
        raise UsageError(f"{name} is for {' and '.join(GPU_BACKENDS)}; the backend is {backend}", hint=hint)


def _counted(latents: Latents) -> tuple[int, tuple[int, ...]]:
    """How many, and the shape of one."""
    return len(latents), latents.shape[1:]
