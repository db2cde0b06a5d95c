"""The pipeline: it makes pictures from prompts, by the engines of any backend."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdrt.arrays import check_finite
from sdrt.artefacts.manifest import DEEPCACHE
from sdrt.errors import UsageError
from sdrt.files import system_errors
from sdrt.machine.cpu import usable_cpus
from sdrt.progress import Progress, silent
from sdrt.runtime import images, loading
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.backends.opening import open_session
from sdrt.runtime.backends.registry import GPU_BACKENDS
from sdrt.runtime.backends.session import check_cuda_graphs
from sdrt.runtime.batches import pictures_at_once
from sdrt.runtime.callbacks import Callback, Watch, check_callback
from sdrt.runtime.deepcache import CachedUnet
from sdrt.runtime.denoise import Conditioning, Latents, denoise, denoise_fused
from sdrt.runtime.init_image import InitImage, draw_latents, encode_picture
from sdrt.runtime.picture_record import picture_record
from sdrt.runtime.request import DEFAULT_STRENGTH, LmsStart, Picture, Request, make_request
from sdrt.runtime.result import Result, Timings
from sdrt.runtime.text import Tokenizer
from sdrt.runtime.text_states import EncodedText, conditioning_of, encode_texts, texts_of
from sdrt.sampling.latents import check_kind, check_latents, posterior_noise, unit_noise
from sdrt.sampling.lms import Schedule

if TYPE_CHECKING:
    from PIL import Image

    from sdrt.artefacts.engine_set import EngineSet, Provider
    from sdrt.artefacts.manifest import ComponentName, Precision
    from sdrt.runtime.backends.session import DeviceLoop


class Pipeline:
    """The engines of a checkpoint, opened once for any number of requests. Do not share it between threads.

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
        keep_loaded: bool = True,
        progress: Progress = silent,
    ) -> None:
        """Open the engines of a set. See ``load``, the usual way, for the arguments.

        If the set holds both the UNet and denoise_step, each is opened by the first request that needs it, since each
        holds the weights, and the time counts as that request's load. The time of opening the pipeline counts as the
        first request's. Without ``keep_loaded`` each engine is opened when it is needed.
        """
        names = {"threads": threads, "cuda_graphs": cuda_graphs, "loop": loop, "keep_loaded": keep_loaded}
        threads, cuda_graphs, *_ = loading.checked(names).values()
        start = time.perf_counter()
        self.engines = engines
        self.keep_loaded = keep_loaded
        self.model = engines.manifest.model
        self.tokenizer = Tokenizer.open(engines.tokenizer, self.model.max_tokens)
        self.scheduler_config: dict[str, Any] = json.loads(engines.scheduler.read_bytes())
        backend = engines.manifest.backend
        check_cuda_graphs(backend, cuda_graphs)
        #: Number of CPU threads of the engines; None for a GPU's.
        self.threads = None if backend in GPU_BACKENDS else threads or usable_cpus()
        self._session = open_session(engines, threads=threads, cuda_graphs=cuda_graphs is not False, progress=progress)
        held = engines.manifest.components
        self._holds_step = loop == "auto" and "denoise_step" in held
        # In a set built for DeepCache, its full pass replaces the UNet.
        self._unet: ComponentName = "unet" if "unet" in held or DEEPCACHE[0] not in held else DEEPCACHE[0]
        #: Schedule of the current or last run; for callbacks.
        self.schedule: Schedule | None = None
        self._stop = False
        self._opened_s = 0.0  # of opening engines, in the current run
        unet: tuple[ComponentName, ...] = () if self._holds_step else (self._unet,)
        needed: tuple[ComponentName, ...] = ("text_encoder", *unet, "vae_decoder")
        try:
            for name in needed:
                if keep_loaded:
                    self._session.engine(name)
                else:
                    engines.component(name)
        except BaseException:
            self.close()
            raise
        #: Seconds of opening the pipeline; 0 after the first result, whose timings include them.
        self.load_s = time.perf_counter() - start

    @classmethod
    @system_errors()
    def load(
        cls,
        checkpoint: str | Path | None = None,
        *,
        revision: str | None = None,
        variant: str | None = None,
        bundle: str | Path | None = None,
        engines: str | Path | None = None,
        trust: str | None = None,
        backend: str = "auto",
        precision: Precision | None = None,
        store: str | Path | None = None,
        build: bool = True,
        threads: int | None = None,
        loop: str = "auto",
        cuda_graphs: bool | None = None,
        keep_loaded: bool = True,
        provider: Provider | None = None,
        deepcache: bool = False,
        token_merging: float | None = None,
        progress: Progress = silent,
    ) -> Pipeline:
        """Open the engines of a checkpoint, a bundle or an engine set; export and build what is missing.

        Args:
            checkpoint: Folder, .safetensors file, Hub id, or "demo", which is the default.
            revision: Revision of a Hub id.
            variant: Variant of the checkpoint's weights, such as "bf16" or "non_ema"; None is the plain files.
            bundle: Folder of a bundle, in place of a checkpoint.
            engines: Folder of an engine set, in place of either.
            trust: SHA-256 of the manifest.json of an engine set from elsewhere.
            backend: Name of the backend. auto is the one that ``sdrt tune`` found best for this bundle here, with its
                threads and loop, else the fastest that can run here.
            precision: fp32, bf16, fp16 or int8; None is the backend's default on this machine.
            store: Folder of the store; None is the user's cache.
            build: Whether to export and build what is missing, rather than raise ArtefactError.
            threads: Number of CPU threads; None is all that this process may use.
            loop: auto runs a guided step as one graph, denoise_step, if the engines hold it; plain never does.
            cuda_graphs: Whether tensorrt and tensorrt-rtx replay steps from a CUDA graph; the results are the same.
            keep_loaded: Whether engines stay open between requests. Otherwise each is closed after its part of a
                request, which saves memory, and opened again by the next; on a GPU they always stay open.
            provider: Execution provider of ONNX Runtime: cpu (the default), cuda or tensorrt.
            deepcache: Whether to build the engines that calls with ``deepcache`` need; no effect with ``engines``.
            token_merging: Share of tokens that the UNet merges before its largest self-attention, above 0 and up to
                0.75: faster, but less exact. None merges none, or the share of ``bundle`` or ``engines``.
            progress: Progress callback.

        Raises:
            SdrtError: Of the kind that fits: see sdrt.errors.
        """
        given = loading.checked({name: value for name, value in locals().items() if name not in ("cls", "progress")})
        from sdrt.prepare.engines import load_engines

        opened, settings = load_engines(given, progress)
        return cls(opened, **settings, progress=progress)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: Image.Image | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        strength: float | None = None,
        start_step: int | None = None,
        lms_start: LmsStart = "diffusers",
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        deepcache: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        latents: npt.NDArray[np.floating[Any]] | None = None,
        callback_on_step_end: Callback | None = None,
    ) -> Result:
        """Make pictures. The arguments are those of diffusers, with ``seed`` in place of a generator.

        Args:
            prompt: Prompt or prompts.
            image: Picture to start from, of any size and mode: see sdrt.runtime.init_image.
            negative_prompt: Negative prompt, or one for each prompt; used if guidance is on.
            strength: Share of the steps that run on ``image``; 0.8 unless ``start_step`` is given.
            start_step: First step that runs on ``image``, counted from 0, in place of ``strength``.
            lms_start: Start of LMS on ``image``: see sdrt.runtime.request.LMS_STARTS.
            num_inference_steps: Number of steps, 1 to the scheduler's number of trained timesteps.
            guidance_scale: Strength of guidance; 1 and below turn it off and halve the work. None is the checkpoint's
                recommended scale, or 7.5.
            guidance_interval: (low, high): only steps whose sigma is above low and up to high are guided.
            deepcache: N: only every N-th step computes the whole UNet; the engines must be loaded with ``deepcache``.
            num_images_per_prompt: Number of pictures of each prompt.
            seed: Seed of the first picture, increased by 1 for each following one; or a list of all; None is random.
            latents: Unit noise [n,channels,height,width] of the model's ``latent_shape``, in place of the seeds'.
            callback_on_step_end: Called after each step; may return other latents under "latents", decode them with
                ``decode``, and end the run with ``stop``.

        Raises:
            UsageError: An argument is out of its range.
            NumericError: A component returned NaN or Inf; no picture is made.
        """
        if image is not None and strength is None and start_step is None:
            strength = DEFAULT_STRENGTH
        request = make_request(
            prompt,
            negative_prompt,
            seed=seed,
            num_images_per_prompt=num_images_per_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            strength=strength,
            start_step=start_step,
            lms_start=lms_start,
            guidance_interval=guidance_interval,
            deepcache=deepcache,
        )
        return self.run(request, image=image, latents=latents, callback_on_step_end=callback_on_step_end)

    def run(
        self,
        request: Request,
        *,
        image: Image.Image | None = None,
        latents: npt.NDArray[np.floating[Any]] | None = None,
        callback_on_step_end: Callback | None = None,
        progress: Progress = silent,
    ) -> Result:
        """Make the pictures of a request, as many at a time as the engines take. See ``__call__``."""
        check_callback(callback_on_step_end)
        request = self.with_defaults(request)
        for name in self._denoisers(request):
            self.engines.component(name)
        init = self._init_image(request, image)
        schedule = Schedule.from_config(self.scheduler_config, request.num_inference_steps)
        if request.start_step is not None:
            schedule = schedule.starting_at(request.start_step, fresh=request.lms_start == "fresh")
        self.schedule = schedule
        first = unit_noise([p.seed for p in request.pictures], self.latent_shape)
        if latents is not None:
            first = check_latents(latents, len(request.pictures), self.latent_shape)
        first *= np.float32(schedule.init_noise_sigma)
        timings, opening_s, self._opened_s = Timings(), self.load_s, 0.0
        self._stop = False
        with timings.measure("total"):
            if init is not None:
                first += self._encode_picture(init, request, timings)
            texts = self._encode_texts(request, timings)
            made, finals, stopped_after = self._denoise_groups(
                request, schedule, first, texts, callback_on_step_end, timings, progress
            )
            self._open("vae_decoder")
            with timings.measure("vae_decoder"):
                pictures = [picture for final in finals for picture in self.decode(final)]
            self.unload("vae_decoder")
        timings.load, self.load_s = opening_s + self._opened_s, 0.0
        timings.total += opening_s
        facts = self.how_it_ran(request) | {
            "init_image": None if init is None else init.digest,
            "latents_given": latents is not None,
        }
        # Only the last group can have been stopped; at the last step it is complete.
        cut = stopped_after if stopped_after != schedule.num_inference_steps else None
        records = [
            picture_record(
                self.engines, request, group, index, facts | {"stopped_after": cut if group is made[-1] else None}
            )
            for group in made
            for index in range(len(group))
        ]
        lost = tuple(texts[picture.prompt].lost for group in made for picture in group)
        return Result(pictures, request, records, np.concatenate(finals), timings, lost, stopped_after)

    def with_defaults(self, request: Request) -> Request:
        """Return the request, with the checkpoint's recommended guidance scale if it has none."""
        return request.with_defaults(self.model.guidance_scale)

    def stop(self) -> None:
        """End the current run after this step; for callbacks. Its latents are decoded as they are."""
        self._stop = True

    @property
    def stopping(self) -> bool:
        """True if a callback has called ``stop`` in the current or last run."""
        return self._stop

    def decode(self, latents: Latents) -> list[Image.Image]:
        """Decode final latents [n,channels,height,width], float32, to pictures.

        As few as the engine takes are decoded at a time, which saves memory.

        Raises:
            UsageError: The latents are of another type or shape.
            NumericError: The decoder returned NaN or Inf.
        """
        check_kind(latents, (None, *self.latent_shape))
        decoder = self._open("vae_decoder")
        (spec,) = decoder.spec.inputs
        unscaled = (latents / np.float32(self.model.scaling_factor)).astype(spec.dtype, copy=False)
        pictures = []
        rows = decoder.spec.batch.min if decoder.spec.batch else 1
        for first in range(0, len(unscaled), rows):
            sample = decoder.run(latent_sample=unscaled[first : first + rows])["sample"].astype(np.float32, copy=False)
            check_finite(sample, "vae_decoder")
            pictures += images.to_pictures(sample)
        return pictures

    def unload(self, name: ComponentName) -> None:
        """Close a component's engine, unless engines are kept loaded."""
        if not self.keep_loaded:
            self._session.release(name)

    @property
    def device_bytes(self) -> dict[str, int]:
        """Bytes allocated on the GPU, by purpose, and their total; empty for the CPU's backends."""
        return self._session.device_bytes

    def close(self) -> None:
        """Close every engine."""
        self._session.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture's latents."""
        return (self.model.latent_channels, self.model.latent_size, self.model.latent_size)

    def _open(self, name: ComponentName) -> Engine:
        """Return a component's engine; if it has to be opened, count the time as load."""
        start = time.perf_counter()
        engine = self._session.engine(name)
        self._opened_s += time.perf_counter() - start
        return engine

    def denoiser(self, request: Request) -> ComponentName:
        """Return the component of a request's first step: denoise_step if held and all steps are guided, or a UNet."""
        return self._denoisers(request)[0]

    def _denoisers(self, request: Request) -> tuple[ComponentName, ...]:
        """Return all components that run a request's steps."""
        if request.deepcache is not None:
            return DEEPCACHE
        always = request.guided and request.guidance_interval is None
        return ("denoise_step" if always and self._holds_step else self._unet,)

    def how_it_ran(self, request: Request) -> dict[str, Any]:
        """Describe how a request's steps run, for records and --json.

        Returns:
            loop, "fused" (denoise_step) or "plain" (UNet); provider, of ONNX Runtime; cuda_graphs, whether steps are
            replayed from a CUDA graph; threads, of the CPU. Each is None if the backend does not have it.
        """
        name = self.denoiser(request)
        options = self.engines.component(name).options
        onnxruntime = self.engines.manifest.backend == "onnxruntime"
        return {
            "loop": "fused" if name == "denoise_step" else "plain",
            "provider": options.get("provider", "cpu") if onnxruntime else None,
            "cuda_graphs": self._session.replays(name),
            "threads": self.threads,
        }

    def pictures_at_once(self, request: Request) -> int:
        """Return the number of a request's pictures that are denoised together; see sdrt.runtime.batches.

        Raises:
            EngineError: The engine's batch range does not fit a picture of the request.
        """
        name = self.denoiser(request)
        return pictures_at_once(request, self.engines.component(name).batch, fused=name == "denoise_step")

    def _open_denoiser(self, request: Request) -> DeviceLoop | None:
        """Open the engines of a request's steps; count the time as load, not as the steps'."""
        start = time.perf_counter()
        device = self._session.device_loop() if self.denoiser(request) == "denoise_step" else None
        self._opened_s += time.perf_counter() - start
        for name in self._denoisers(request) if device is None else ():
            self._open(name)
        return device

    def _denoise_groups(
        self,
        request: Request,
        schedule: Schedule,
        first: Latents,
        texts: Mapping[str, EncodedText],
        callback: Callback | None,
        timings: Timings,
        progress: Progress,
    ) -> tuple[list[tuple[Picture, ...]], list[Latents], int | None]:
        """Denoise the pictures in groups.

        ``first`` are the latents [n,channels,height,width] of all pictures at the schedule's first sigma.

        Returns:
            The groups that were begun, the final latents of each, and the step after which the run was stopped, if so.
        """
        device = self._open_denoiser(request)
        made, finals, stopped_after = [], [], None
        for index, group in self._groups(request):
            conditioning = conditioning_of(group, request, texts)
            part, watch, opened_s = first[index : index + len(group)], Watch(self, callback), self._opened_s
            with timings.measure("unet"), progress.stage("denoise", schedule.num_inference_steps) as advance:
                final, seconds = self._denoise(request, schedule, part, conditioning, watch, advance, device)
            # A callback may have opened the decoder.
            timings.unet -= self._opened_s - opened_s
            made.append(group)
            finals.append(final)
            timings.steps += seconds
            if self._stop:
                stopped_after = watch.steps
                break
        for name in self._denoisers(request):
            self.unload(name)
        return made, finals, stopped_after

    def _denoise(
        self,
        request: Request,
        schedule: Schedule,
        latents: Latents,
        conditioning: Conditioning,
        watch: Watch,
        advance: Callable[[int], None],
        device: DeviceLoop | None,
    ) -> tuple[Latents, list[float]]:
        """Denoise latents by the loop that fits the request; return the final ones and the seconds of each step."""
        if device is not None:
            hook = watch if watch.callback else None
            return device.denoise(schedule, latents, conditioning, hook, advance), list(device.seconds)
        engine = self._open(self.denoiser(request))
        seconds: list[float] = []

        def on_step(step: int, timestep: float, latents: Latents) -> Latents | None:
            seconds.append(engine.last_s)
            advance(1)
            return watch(step, timestep, latents)

        if request.deepcache is not None:
            cached = CachedUnet(engine, self._open(DEEPCACHE[1]), request.deepcache)
            return denoise(cached, schedule, latents, conditioning, on_step), cached.seconds
        run = denoise_fused if self.denoiser(request) == "denoise_step" else denoise
        return run(engine, schedule, latents, conditioning, on_step), seconds

    def _groups(self, request: Request) -> Iterator[tuple[int, tuple[Picture, ...]]]:
        """Yield groups of pictures, as many as the engine takes at a time, and the index of the first of each."""
        size = self.pictures_at_once(request)
        for first in range(0, len(request.pictures), size):
            yield first, request.pictures[first : first + size]

    def _init_image(self, request: Request, image: Image.Image | None) -> InitImage | None:
        """Return the picture to start from in the model's size, or None without one.

        Raises:
            UsageError: Only one of a start step and a picture is given.
            EngineError: The engines lack vae_encoder.
        """
        if (image is None) != (request.start_step is None):
            hint = "give both or neither"
            raise UsageError("strength or start_step, and an image, belong together; one is missing", hint=hint)
        if image is None:
            return None
        self.engines.component("vae_encoder")
        return InitImage.of(image, self.model.image_size)

    def _encode_picture(self, init: InitImage, request: Request, timings: Timings) -> Latents:
        """Return scaled latents [n,channels,height,width] of a picture, drawn with each picture's seed.

        Raises:
            NumericError: The encoder returned NaN or Inf.
        """
        encoder = self._open("vae_encoder")
        with timings.measure("vae_encoder"):
            parameters = encode_picture(encoder, init)
        self.unload("vae_encoder")
        noise = posterior_noise([picture.seed for picture in request.pictures], self.latent_shape)
        return draw_latents(parameters, noise) * np.float32(self.model.scaling_factor)

    def _encode_texts(self, request: Request, timings: Timings) -> dict[str, EncodedText]:
        """Return hidden states of every prompt and, with guidance, negative prompt; encode each distinct text once."""
        encoder = self._open("text_encoder")
        with timings.measure("text_encoder"):
            encoded = encode_texts(encoder, self.tokenizer, texts_of(request))
        self.unload("text_encoder")
        return encoded
