"""The pipeline: prompts in, pictures out, over the engines of any backend."""

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
        keep_loaded: bool = True,
        progress: Progress = silent,
    ) -> None:
        """Open the engines of a set. ``load`` is the usual way, and says what the arguments mean.

        Where the set holds both the UNet and denoise_step, the one that a request needs is opened by the first request
        that does, since each holds the weights; the seconds are that request's load. Those of opening the pipeline are
        the first request's. Without ``keep_loaded`` every engine is opened when its turn comes.
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
        #: Threads that the engines compute with; None where a GPU does.
        self.threads = None if backend in GPU_BACKENDS else threads or usable_cpus()
        self._session = open_session(engines, threads=threads, cuda_graphs=cuda_graphs is not False, progress=progress)
        held = engines.manifest.components
        self._holds_step = loop == "auto" and "denoise_step" in held
        # DeepCache's whole pass stands for the UNet where the set was built for it.
        self._unet: ComponentName = "unet" if "unet" in held or DEEPCACHE[0] not in held else DEEPCACHE[0]
        #: Of the run that is under way, or of the last one; for callbacks.
        self.schedule: Schedule | None = None
        self._stop = False
        self._opened_s = 0.0  # of opening engines, by the run that is under way
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
        #: Seconds of opening the pipeline, until the first result counts them.
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
        """Open a checkpoint's engines; what is missing on the way there is exported and built first.

        Args:
            checkpoint: A folder, a .safetensors file, a Hub id, or "demo", which is the default.
            revision: Of a Hub id.
            variant: Variant of the checkpoint's weights, such as "bf16" or "non_ema"; None is the plain files.
            bundle: A bundle folder, in place of a checkpoint.
            engines: An engine set folder, in place of either.
            trust: SHA-256 of the manifest.json of an engine set from elsewhere.
            backend: onnxruntime, openvino, or auto: as ``sdrt tune`` found for this bundle here, threads and loop
                included, else the fastest that can run here.
            precision: fp32 or bf16; None is the backend's choice on this machine.
            store: Folder of the store; None is the user's cache.
            build: Whether to export and build what is missing; else it is an error.
            threads: Threads to compute with; None is all that this process may use.
            loop: auto runs a guided step as one graph, denoise_step, where the engines hold it; plain never does.
            cuda_graphs: Whether tensorrt and tensorrt-rtx replay steps from a CUDA graph; the numbers are the same.
            keep_loaded: Whether engines stay open from request to request. Without, the memory of each is given back
                when its work is done, and the next request opens it again; on a GPU they stay in any case.
            provider: What ONNX Runtime computes with: cpu (None is the same), cuda or tensorrt.
            deepcache: Whether to build engines that calls with ``deepcache`` need; ``engines`` hold them or not.
            token_merging: Share of tokens that the checkpoint's UNet merges before its largest self-attention, above 0
                and up to 0.75: faster, and less exact. None merges none, or what ``bundle`` or ``engines`` merge.
            progress: Told of exports and builds.

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
        """Make pictures. The arguments are diffusers', but for ``seed`` in place of a generator.

        Args:
            prompt: One or several.
            image: A picture to start from, of any size and mode: see sdrt.runtime.init_image.
            negative_prompt: What to stay away from; used when guidance is on.
            strength: The share of the steps that run on ``image``; 0.8 unless ``start_step`` is given.
            start_step: The first step that runs on ``image``, counted from 0, in place of ``strength``.
            lms_start: How LMS starts on ``image``: see sdrt.runtime.request.LMS_STARTS.
            num_inference_steps: 1 to the scheduler's number of trained timesteps.
            guidance_scale: How strongly to follow the prompt; 1 and below turn guidance off and halve the work. None is
                what the checkpoint recommends, and 7.5 where it does not.
            guidance_interval: (low, high): only steps whose sigma is above low and up to high are guided.
            deepcache: N: only every N-th step computes the whole UNet; the engines must be loaded with ``deepcache``.
            num_images_per_prompt: Pictures of each prompt.
            seed: Picture i has ``seed`` + i; a list gives each picture's; None draws one.
            latents: Unit noise [n,channels,height,width] of the model's ``latent_shape``, in place of the seeds'.
            callback_on_step_end: Called after each step; may give back other latents under "latents", decode them by
                ``decode``, and end the run by ``stop``.

        Raises:
            UsageError: An argument is out of its range.
            NumericError: A component gave NaN or Inf; no picture is made.
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
        """Make the pictures of a checked request, a few at a time. See ``__call__``."""
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
        # Only the last group can have been stopped, and is whole if that was at the last step.
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
        """The request with what the checkpoint recommends where it was left open."""
        return request.with_defaults(self.model.guidance_scale)

    def stop(self) -> None:
        """End the run that is under way after this step; for callbacks. What was begun is decoded as it is."""
        self._stop = True

    @property
    def stopping(self) -> bool:
        """Whether a callback has asked for the run's end."""
        return self._stop

    def decode(self, latents: Latents) -> list[Image.Image]:
        """Pictures of final latents [n,4,64,64], as few at a time as the engine takes: they need much memory.

        Raises:
            UsageError: They are no latents.
            NumericError: The decoder gave NaN or Inf.
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
        """Give a component's memory back, unless engines are kept loaded."""
        if not self.keep_loaded:
            self._session.release(name)

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

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture's latents."""
        return (self.model.latent_channels, self.model.latent_size, self.model.latent_size)

    def _open(self, name: ComponentName) -> Engine:
        """A component's engine; where it has to be opened, the seconds are the load's."""
        start = time.perf_counter()
        engine = self._session.engine(name)
        self._opened_s += time.perf_counter() - start
        return engine

    def denoiser(self, request: Request) -> ComponentName:
        """What runs the request's first step: denoise_step where it is held and guides all, or a UNet."""
        return self._denoisers(request)[0]

    def _denoisers(self, request: Request) -> tuple[ComponentName, ...]:
        """All components that run the request's steps."""
        if request.deepcache is not None:
            return DEEPCACHE
        always = request.guided and request.guidance_interval is None
        return ("denoise_step" if always and self._holds_step else self._unet,)

    def how_it_ran(self, request: Request) -> dict[str, Any]:
        """How the request's steps run, as records and --json name it.

        Returns:
            loop, "fused" (by denoise_step) or "plain" (by the UNet); provider, of ONNX Runtime; cuda_graphs, whether
            steps are replayed from a CUDA graph; threads, on the CPU. What the backend does not have is None.
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
        """How many of the request's pictures are denoised together; see sdrt.runtime.batches.

        Raises:
            EngineError: The engine takes not even one.
        """
        name = self.denoiser(request)
        return pictures_at_once(request, self.engines.component(name).batch, fused=name == "denoise_step")

    def _open_denoiser(self, request: Request) -> DeviceLoop | None:
        """Open what the request's steps need, unless it is; the time is the load's, not the steps'."""
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
        """The groups of pictures that were begun, the final latents of each, and after how many steps it was stopped.

        ``first`` are the latents [n,4,64,64] of all pictures at the schedule's first sigma.
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
        """Final latents, and the seconds of each step, by the loop that fits the request."""
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
        """The pictures, as many at a time as the engine that denoises them takes."""
        size = self.pictures_at_once(request)
        for first in range(0, len(request.pictures), size):
            yield first, request.pictures[first : first + size]

    def _init_image(self, request: Request, image: Image.Image | None) -> InitImage | None:
        """The picture to start from as the model takes it.

        Raises:
            UsageError: The request starts in the middle and there is no picture, or the other way round.
            EngineError: The engines lack the VAE's encoder.
        """
        if (image is None) != (request.start_step is None):
            hint = "give both or neither"
            raise UsageError("strength or start_step, and an image, belong together; one is missing", hint=hint)
        if image is None:
            return None
        self.engines.component("vae_encoder")
        return InitImage.of(image, self.model.image_size)

    def _encode_picture(self, init: InitImage, request: Request, timings: Timings) -> Latents:
        """Scaled latents [n,4,64,64] of the picture, drawn for each by its own seed.

        Raises:
            NumericError: The encoder gave NaN or Inf.
        """
        encoder = self._open("vae_encoder")
        with timings.measure("vae_encoder"):
            parameters = encode_picture(encoder, init)
        self.unload("vae_encoder")
        noise = posterior_noise([picture.seed for picture in request.pictures], self.latent_shape)
        return draw_latents(parameters, noise) * np.float32(self.model.scaling_factor)

    def _encode_texts(self, request: Request, timings: Timings) -> dict[str, EncodedText]:
        """Hidden states of every prompt and, with guidance, negative prompt; each distinct text once, alone."""
        encoder = self._open("text_encoder")
        with timings.measure("text_encoder"):
            encoded = encode_texts(encoder, self.tokenizer, texts_of(request))
        self.unload("text_encoder")
        return encoded
