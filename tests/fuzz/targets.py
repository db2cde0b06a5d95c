"""Fuzz targets: every reader of files and texts from elsewhere, each with sound input to start from.

A target may accept its input or refuse it by one of sdrt's errors, in one line with a hint. Any other exception is a
finding.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

import sdrt
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.manifest import MANIFEST
from sdrt.checkpoint.clip_vocabulary import START, WORD_END, byte_symbols
from sdrt.checkpoint.configs import GENERATION_CONFIG, read_configs, read_guidance_scale
from sdrt.checkpoint.safetensors_header import header_bytes, read_header
from sdrt.checkpoint.tokenizer import build_tokenizer_json
from sdrt.engines.recipe import load_recipe
from sdrt.errors import SdrtError
from sdrt.files import sha256_bytes
from sdrt.graphs.structure import check_structure
from sdrt.limits import MAX_GUIDANCE_SCALE
from sdrt.runtime.images import write_png
from sdrt.runtime.init_image import InitImage, open_picture
from sdrt.runtime.picture_record import parameters_text, parse_parameters, read_record
from sdrt.runtime.prompt_file import read_prompt_file
from sdrt.runtime.request import make_request
from sdrt.runtime.text import Tokenizer
from sdrt.sampling.latents import load_latents
from sdrt.sampling.lms import Schedule
from tests.attacks.material import v1_checkpoint
from tests.doubles.engine_sets import make_set
from tests.graphs import models
from tests.helpers.records import picture_record
from tests.models.tiny_bundle import tiny_bundle

MESSAGE_LIMIT = 2000
#: 256 bytes, the same at the end of a word, and the two marks of a text.
VOCABULARY = [*byte_symbols(), *(symbol + WORD_END for symbol in byte_symbols()), START, "<|endoftext|>"]


class Finding(AssertionError):
    """A refusal that breaks the rules of refusals."""


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        prepare: Writes the reader's files to an empty folder; returns sound inputs, the first of them small.
        read: Passes an input to the reader, in that folder.
    """

    prepare: Callable[[Path], list[bytes]]
    read: Callable[[Path, bytes], object]

    def run(self, folder: Path, data: bytes) -> bool:
        """Read the input; return whether it was accepted.

        Raises:
            Finding: It was not refused in one line with a hint.
        """
        try:
            self.read(folder, data)
        except SdrtError as error:
            if "\n" in error.message or len(error.message) > MESSAGE_LIMIT or not error.hint:
                raise Finding(f"refused by {error.message[:300]!r}, hint {error.hint[:100]!r}") from error
            return False
        return True


def _bundle(folder: Path) -> list[bytes]:
    tiny_bundle(folder / "bundle", components=("vae_decoder",))
    return [(folder / "bundle" / MANIFEST).read_bytes()]


def _read_bundle(folder: Path, data: bytes) -> None:
    (folder / "bundle" / MANIFEST).write_bytes(data)
    opened = Bundle.open(folder / "bundle", verify=True)
    for name in opened.manifest.components:
        opened.component(name)


def _engines(folder: Path) -> list[bytes]:
    make_set(folder / "engines")
    return [(folder / "engines" / MANIFEST).read_bytes()]


def _read_engines(folder: Path, data: bytes) -> None:
    (folder / "engines" / MANIFEST).write_bytes(data)
    # By the digest, as if the user trusted the content.
    EngineSet.open(folder / "engines", trust=sha256_bytes(data)).lease.release()


def _safetensors(_: Path) -> list[bytes]:
    return [
        header_bytes({"a": ("F32", (2, 2)), "b": ("F16", (3,))}) + bytes(22),
        header_bytes({"empty": ("BF16", (0, 4))}),
        header_bytes({}),
    ]


def _graph(folder: Path) -> list[bytes]:
    bundle = tiny_bundle(folder / "bundle")
    (folder / "graph").mkdir()
    # Room for the weights of each of them.
    os.truncate(models.write(folder / "graph").with_name("model.onnx.data"), 1 << 20)
    graphs = [bundle.path / component.graph for component in bundle.manifest.components.values()]
    return [models.sound().SerializeToString(), *(path.read_bytes() for path in graphs)]


def _read_graph(folder: Path, data: bytes) -> None:
    path = folder / "graph" / "model.onnx"
    path.write_bytes(data)
    check_structure(path)


def _png(folder: Path) -> list[bytes]:
    path = folder / "sound.png"
    write_png(Image.new("RGB", (2, 2)), path, picture_record())
    return [path.read_bytes()]


def _read_png(folder: Path, data: bytes) -> None:
    (folder / "a.png").write_bytes(data)
    read_record(folder / "a.png")


def _parameters(_: Path) -> list[bytes]:
    record = picture_record(prompt='a "cat", or: two\nSteps: 1, Seed: 2', negative_prompt="Negative prompt: dog")
    return [b"a cat\nNegative prompt: a dog\nSteps: 20, Sampler: LMS", parameters_text(record, (64, 64)).encode()]


def _read_parameters(_: Path, data: bytes) -> None:
    text = data.decode(errors="replace")
    parse_parameters(text)
    # Every request survives a round trip through the file.
    record = picture_record(prompt=text.replace("\r", " "), negative_prompt=text[::-1].replace("\r", " "))
    read = parse_parameters(parameters_text(record, (64, 64)))
    if (read["Prompt"], read["Negative prompt"]) != (record["prompt"], record["negative_prompt"]):
        raise Finding(f"{record['prompt'][:200]!r} comes back as {read['Prompt'][:200]!r}")


def _recipe(_: Path) -> list[bytes]:
    recipes = sorted((Path(sdrt.__file__).parent / "engines" / "recipes").glob("*.toml"))
    return [path.read_bytes() for path in recipes]


def _read_recipe(folder: Path, data: bytes) -> None:
    (folder / "own.toml").write_bytes(data)
    load_recipe(str(folder / "own.toml"))


def _read_setting(_: Path, data: bytes) -> None:
    load_recipe("sd-v1-default", [data.decode(errors="replace")])


def _tokenizer_files(folder: Path) -> list[bytes]:
    """Write a vocabulary of single bytes, which is small enough for damage to matter."""
    folder.mkdir(exist_ok=True)
    merges = ["a b</w>", "c a"]
    tokens = [*VOCABULARY[:-2], *(merge.replace(" ", "") for merge in merges), *VOCABULARY[-2:]]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return [build_tokenizer_json(folder, 9, len(tokens)), (folder / "vocab.json").read_bytes()]


def _tokenizer(folder: Path) -> list[bytes]:
    return _tokenizer_files(folder / "tokenizer")[:1]


def _read_tokenizer(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    Tokenizer.open(folder / "tokenizer.json", 9).encode(["a cab", ""])


def _read_vocabulary(folder: Path, data: bytes) -> None:
    (folder / "tokenizer" / "vocab.json").write_bytes(data)
    (folder / "built.json").write_bytes(build_tokenizer_json(folder / "tokenizer", 9, 1000))
    Tokenizer.open(folder / "built.json", 9).encode(["a cab", ""])


def _vocabulary(folder: Path) -> list[bytes]:
    return _tokenizer_files(folder / "tokenizer")[1:]


def _prompt(_: Path) -> list[bytes]:
    texts = ("a cat", "", "👩‍👩‍👧‍👦", "<|endoftext|> e\u0301\u0301 \u202e", "don't 3 m\x00")
    return [text.encode() for text in texts]


@cache
def _bytes_tokenizer(folder: Path) -> Tokenizer:
    data, _ = _tokenizer_files(folder / "bytes")
    (folder / "bytes.json").write_bytes(data)
    return Tokenizer.open(folder / "bytes.json", 9)


def _read_prompt(folder: Path, data: bytes) -> None:
    text = data.decode("utf-8", errors="surrogateescape")
    prompt = make_request(text, text, seed=0).pictures[0].prompt
    tokens = _bytes_tokenizer(folder).encode([prompt])
    if tokens.input_ids.shape != (1, 9):
        raise Finding(f"{text[:200]!r} has {tokens.input_ids.shape} tokens")
    if tokens.truncated[0] not in prompt:
        raise Finding(f"of {text[:200]!r} was cut off {tokens.truncated[0][:200]!r}, which it does not hold")


def _prompt_file(_: Path) -> list[bytes]:
    rows = ({"prompt": "a cat", "seed": 7}, {"prompt": "b", "guidance_scale": 2.5, "num_inference_steps": 3})
    return [b"\n".join(json.dumps(row).encode() for row in rows), b'{"prompt": "a", "negative_prompt": "b"}\n']


def _read_prompt_file(folder: Path, data: bytes) -> None:
    (folder / "prompts.jsonl").write_bytes(data)
    read_prompt_file(folder / "prompts.jsonl", {"seed": 0})


def _latents(_: Path) -> list[bytes]:
    stream = io.BytesIO()
    np.save(stream, np.zeros((1, 1, 2, 2), np.float32))
    return [stream.getvalue()]


def _read_latents(folder: Path, data: bytes) -> None:
    (folder / "latents.npy").write_bytes(data)
    load_latents(folder / "latents.npy", 1, (1, 2, 2))


def _picture(_: Path) -> list[bytes]:
    seeds = []
    for name, mode in (("PNG", "P"), ("GIF", "P"), ("JPEG", "CMYK"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("TIFF", "LA")):
        stream = io.BytesIO()
        Image.new(mode, (5, 3)).save(stream, name)
        seeds.append(stream.getvalue())
    return seeds


def _read_picture(folder: Path, data: bytes) -> None:
    (folder / "picture").write_bytes(data)
    InitImage.of(open_picture(folder / "picture"), 8)


CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    GENERATION_CONFIG,
)


def _configs(folder: Path) -> list[bytes]:
    """Return each config of v1 behind the number of its place in `CONFIGS`."""
    v1_checkpoint(folder / "checkpoint")
    (folder / "checkpoint" / GENERATION_CONFIG).write_bytes(b'{"guidance_scale": 6.0}')
    return [bytes([48 + place]) + (folder / "checkpoint" / name).read_bytes() for place, name in enumerate(CONFIGS)]


def _read_configs(folder: Path, data: bytes) -> None:
    checkpoint = folder / "checkpoint"
    name = CONFIGS[(data[0] - 48) % len(CONFIGS) if data else 0]
    before = (checkpoint / name).read_bytes()
    try:
        (checkpoint / name).write_bytes(data[1:])
        Schedule.from_config(read_configs(checkpoint)["scheduler"], 5)
        guidance_scale = read_guidance_scale(checkpoint)
        if not abs(guidance_scale) <= MAX_GUIDANCE_SCALE:
            raise Finding(f"a guidance scale of {guidance_scale} was taken")
    finally:
        (checkpoint / name).write_bytes(before)


def _read_safetensors(folder: Path, data: bytes) -> None:
    (folder / "a.safetensors").write_bytes(data)
    header = read_header(folder / "a.safetensors")
    ends = [header.data_start + entry.end for entry in header.tensors.values()]
    if max(ends, default=header.data_start) != len(data):
        raise Finding(f"a file of {len(data)} bytes was taken for one of {max(ends, default=0)}")


TARGETS = {
    "bundle": Target(_bundle, _read_bundle),
    "engines": Target(_engines, _read_engines),
    "safetensors": Target(_safetensors, _read_safetensors),
    "graph": Target(_graph, _read_graph),
    "configs": Target(_configs, _read_configs),
    "png": Target(_png, _read_png),
    "parameters": Target(_parameters, _read_parameters),
    "recipe": Target(_recipe, _read_recipe),
    "setting": Target(lambda _: [b"targets=sm86,sm89", b"batch.unet=1:2:4", b"version_compatible=true"], _read_setting),
    "tokenizer": Target(_tokenizer, _read_tokenizer),
    "vocabulary": Target(_vocabulary, _read_vocabulary),
    "prompt": Target(_prompt, _read_prompt),
    "prompt-file": Target(_prompt_file, _read_prompt_file),
    "latents": Target(_latents, _read_latents),
    "picture": Target(_picture, _read_picture),
}
