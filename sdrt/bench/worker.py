"""Program of a contender's process: reads a job and then work from stdin and answers on stdout, one JSON a line.

Run: ``python -m sdrt.bench.worker``. An error ends it with a traceback on stderr, which the benchmark reports.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO

from sdrt.bench.contender import Contender, Job, Ran, Stopwatch, Work
from sdrt.machine.memory import peak_memory_bytes, reset_peak_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Kind of contender -> its module and class.
KINDS: Mapping[str, tuple[str, str]] = {
    "sdrt": ("sdrt.bench.sdrt_contender", "SdrtContender"),
    "diffusers": ("sdrt.bench.peers.torch_diffusers", "Diffusers"),
    "torch-compile": ("sdrt.bench.peers.torch_diffusers", "CompiledDiffusers"),
    "onnxruntime": ("sdrt.bench.peers.plain_onnxruntime", "PlainOnnxRuntime"),
    "openvino-genai": ("sdrt.bench.peers.openvino_genai", "OpenVinoGenAi"),
    "stable-diffusion-cpp": ("sdrt.bench.peers.stable_diffusion_cpp", "StableDiffusionCpp"),
}


def main() -> None:
    """Load the contender of the job and draw until stdin ends."""
    answers = _take_stdout()
    job = Job(**json.loads(sys.stdin.readline()))
    if job.kind == "ceiling":
        _serve_ceiling(answers)
        return
    module, name = KINDS[job.kind]
    contender: Contender = getattr(import_module(module), name)(job)
    imported_at = time.monotonic()
    contender.load()
    _answer(answers, {"imported_at": imported_at, "loaded_at": time.monotonic()})
    for line in sys.stdin:
        _answer(answers, asdict(_run(contender, _work(line))))


def _take_stdout() -> TextIO:
    """Return stdout for the answers, and redirect later prints of libraries to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _work(line: str) -> Work:
    fields = json.loads(line)
    return Work(**{**fields, "prompts": tuple(fields["prompts"]), "seeds": tuple(fields["seeds"])})


def _run(contender: Contender, work: Work) -> Ran:
    reset_peak_memory()
    watch = Stopwatch()
    start = time.perf_counter()
    pictures = contender.run(work, watch)
    total = time.perf_counter() - start
    # Read before the PNG is encoded, which is not the contender's work.
    peak = peak_memory_bytes()
    pictures[0].save(work.png, "PNG")
    stages = {name: watch.seconds.get(name) for name in ("text_encoder", "unet", "vae_decoder")}
    return Ran(
        total=total,
        first_step_at=watch.first_step_at,
        picture_at=time.monotonic(),
        peak_memory_bytes=peak,
        device_bytes=contender.device_bytes(),
        **stages,
    )


def _serve_ceiling(answers: TextIO) -> None:
    """Measure the machine's ceiling once for each line of stdin."""
    from sdrt.bench.ceiling import MachineCeiling

    ceiling: MachineCeiling | None = None
    for line in sys.stdin:
        question = json.loads(line)
        ceiling = ceiling or MachineCeiling(question["threads"], question["device"])
        _answer(answers, ceiling.measure(tuple(question["precisions"])))


if __name__ == "__main__":
    main()
