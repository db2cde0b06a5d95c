"""The record of how a picture was made, in PNG text chunks: JSON for sdrt, and a text that other programs read.

The text follows AUTOMATIC1111's stable-diffusion-webui: the prompt, a line "Negative prompt: ...", and one last line of
"Name: value" pairs, in which a value that could be misread is written as a JSON string.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sdrt.artefacts.engine_set import Provider
from sdrt.artefacts.manifest import CheckpointRecord, Digest, Precision, TokenMerging
from sdrt.errors import ArtefactError
from sdrt.files import unreadable
from sdrt.limits import MAX_PICTURES, MAX_SEED, MIN_DEEPCACHE
from sdrt.runtime.request import LmsStart
from sdrt.version import __version__

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineSet
    from sdrt.runtime.request import Picture, Request


RECORD_KEYWORD = "sdrt"
PARAMETERS_KEYWORD = "parameters"
RECORD_LIMIT_BYTES = 64 << 20
CHUNK_LIMIT = 100_000

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Keyword, then: not compressed, no language, no translated keyword (PNG 1.2, section 4.2.3.3).
_RECORD_HEAD = RECORD_KEYWORD.encode() + b"\0\0\0\0\0"
_PAIR = re.compile(r'(\w[\w /-]{0,60}): ?("(?:[^"\\]|\\.)*"|[^,]*)(?:, *|$)')
_PLAIN_VALUE = re.compile(r'[^\s,:"\x00-\x1f](?:[^,:"\x00-\x1f]*[^\s,:"\x00-\x1f])?')
_NEGATIVE = "Negative prompt:"
# If there are fewer pairs than this, AUTOMATIC1111 reads the last line as a part of the prompt.
_FEWEST_PAIRS = 3

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class PictureRecord(BaseModel):
    """Everything needed to repeat a picture; unknown fields are kept.

    ``loop`` is "fused" if denoise_step ran the steps and "plain" if the UNet did; ``provider`` is ONNX Runtime's;
    ``cuda_graphs`` is whether steps were replayed from a CUDA graph; ``threads`` is the number of CPU threads, on which
    OpenVINO's last bits depend (docs/decisions/0075). Each is None if the backend does not have it, or if the picture
    was drawn by an older sdrt that did not record it.

    ``token_merging`` is the share of tokens that the UNet merged; None if it merged none.

    ``init_image`` is the digest of the initial picture at the model's size, from which denoising started at
    ``start_step`` and by ``lms_start``; None if it started from noise alone. ``stopped_after`` is the number of steps
    after which a callback stopped the run, or None.

    ``batch`` holds prompt, negative prompt and seed of all pictures that were denoised together, of which this is
    number ``batch_index``: in another batch the last bits may differ.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, strict=True)

    prompt: str
    negative_prompt: str
    seed: Seed
    num_inference_steps: int = Field(ge=1)
    guidance_scale: float
    guidance_interval: tuple[float, float] | None = None
    deepcache: int | None = Field(default=None, ge=MIN_DEEPCACHE)
    token_merging: TokenMerging | None = None
    checkpoint: CheckpointRecord
    backend: str
    precision: Precision
    engines: Digest
    loop: Literal["fused", "plain"] | None = None
    provider: Provider | None = None
    cuda_graphs: bool | None = None
    threads: int | None = Field(default=None, ge=1)
    init_image: Digest | None = None
    start_step: int | None = Field(default=None, ge=0)
    lms_start: LmsStart | None = None
    stopped_after: int | None = Field(default=None, ge=1)
    latents_given: bool
    batch: list[tuple[str, str, Seed]] = Field(min_length=1, max_length=MAX_PICTURES)
    batch_index: int = Field(ge=0)

    @model_validator(mode="after")
    def _one_of_the_batch(self) -> Self:
        if self.batch_index >= len(self.batch):
            raise ValueError("batch_index is beyond batch")
        return self

    @model_validator(mode="after")
    def _starts_somewhere(self) -> Self:
        if (self.init_image is None) != (self.start_step is None):
            raise ValueError("init_image and start_step come together")
        if self.start_step is not None and self.start_step >= self.num_inference_steps:
            raise ValueError("start_step is beyond the last step")
        return self


def record_json(record: Mapping[str, Any]) -> str:
    """Return the record as one line of JSON; equal records give equal text."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a PNG that sdrt wrote, without decoding the picture.

    Raises:
        ArtefactError: The file cannot be read, is not a PNG, or has no record or a malformed one.
    """
    hint = "name a PNG that sdrt wrote; image editors and upload sites often drop its text"
    try:
        with path.open("rb") as file:
            content = _find_record(file)
    except OSError as error:
        raise unreadable(path, error, ArtefactError, hint=hint) from error
    except ValueError as error:
        raise ArtefactError(f"{path} {error}", hint=hint) from error
    try:
        return PictureRecord.model_validate_json(content).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ArtefactError(f"{path}: its sdrt record is malformed: {where}: {first['msg']}", hint=hint) from error


def _find_record(file: BinaryIO) -> bytes:
    """Return the JSON of the first iTXt chunk with `RECORD_KEYWORD`; a ValueError says what is wrong with the file."""
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise ValueError("is not a PNG file")
    for _ in range(CHUNK_LIMIT):
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("is a damaged PNG file: it ends before its last chunk")
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            raise ValueError("carries no sdrt record")
        start = file.read(len(_RECORD_HEAD)) if kind == b"iTXt" and length >= len(_RECORD_HEAD) else b""
        if start != _RECORD_HEAD:
            file.seek(length - len(start) + 4, 1)
            continue
        if length > RECORD_LIMIT_BYTES:
            raise ValueError(f"carries an sdrt record of over {RECORD_LIMIT_BYTES >> 20} MiB")
        content, checksum = file.read(length - len(start)), file.read(4)
        if checksum != struct.pack(">I", zlib.crc32(kind + start + content)):
            raise ValueError("is a damaged PNG file: the checksum of its sdrt record does not match")
        return content
    raise ValueError(f"is not a PNG that sdrt wrote: it has over {CHUNK_LIMIT} chunks")


def parameters_text(record: Mapping[str, Any], size: tuple[int, int]) -> str:
    """Return the text under "parameters", for a record and the picture's width and height.

    A prompt that would be misread, such as one with a line "Negative prompt: ...", is repeated on the last line as a
    JSON string: ``parse_parameters`` prefers that, and other programs ignore it.
    """
    pairs = {
        "Steps": record["num_inference_steps"],
        "Sampler": "LMS",
        "CFG scale": record["guidance_scale"],
        "Seed": record["seed"],
        "Size": f"{size[0]}x{size[1]}",
        **_strength(record),
        **_token_merging(record),
        "Model": record["checkpoint"]["name"],
        "Version": f"sdrt {__version__}",
    }
    prompts = {"Prompt": record["prompt"], "Negative prompt": record["negative_prompt"]}
    settings = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items())
    negative = f"{_NEGATIVE} {prompts['Negative prompt']}\n" if prompts["Negative prompt"] else ""
    # A PNG text chunk may not hold NUL.
    text = f"{prompts['Prompt']}\n{negative}{settings}".replace("\0", "\ufffd")
    read = parse_parameters(text)
    misread = [name for name, prompt in prompts.items() if read[name] != prompt]
    return text + "".join(f", {name}: {json.dumps(prompts[name], ensure_ascii=False)}" for name in misread)


def _strength(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pair "Denoising strength"; empty without an initial picture."""
    start_step, steps = record.get("start_step"), record["num_inference_steps"]
    return {} if start_step is None else {"Denoising strength": round(1 - start_step / steps, 4)}


def _token_merging(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pair "Token merging ratio"; empty without token merging."""
    ratio = record.get("token_merging")
    return {} if ratio is None else {"Token merging ratio": ratio}


def parse_parameters(text: str) -> dict[str, str]:
    r"""Parse the text under "parameters": the pairs of its last line, "Prompt" and "Negative prompt".

    Example:
        >>> parse_parameters("a cat\nNegative prompt: a dog\nSteps: 20, Sampler: LMS, Seed: 0")
        {'Prompt': 'a cat', 'Negative prompt': 'a dog', 'Steps': '20', 'Sampler': 'LMS', 'Seed': '0'}
    """
    *lines, last = text.strip().split("\n")
    pairs = {name: _unquoted(value) for name, value in _PAIR.findall(last)}
    if len(pairs) < _FEWEST_PAIRS:
        lines, pairs = [*lines, last], {}
    prompts: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    part = "Prompt"
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            part = "Negative prompt"
        prompts[part].append(line.removeprefix(_NEGATIVE).strip())
    return {name: "\n".join(found) for name, found in prompts.items()} | pairs


def _quoted(value: str) -> str:
    return value if _PLAIN_VALUE.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def _unquoted(value: str) -> str:
    """Return the text of a JSON string; any other value unchanged."""
    if not value.startswith('"'):
        return value
    try:
        text = json.loads(value)
    except ValueError:
        return value
    return text if isinstance(text, str) else value


def picture_record(
    engines: EngineSet, request: Request, group: Sequence[Picture], index: int, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the record of one picture.

    Args:
        engines: The engine set that drew it.
        request: The request.
        group: The pictures that were denoised together.
        index: Index of the picture in the group.
        facts: Further fields of the record, known only after the run.
    """
    picture, manifest = group[index], engines.manifest
    return {
        "prompt": picture.prompt,
        "negative_prompt": picture.negative_prompt,
        "seed": picture.seed,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "guidance_interval": request.guidance_interval,
        "deepcache": request.deepcache,
        "token_merging": manifest.token_merging,
        "scheduler": "LMS",
        "checkpoint": engines.checkpoint.model_dump(mode="json"),
        "backend": manifest.backend,
        "precision": manifest.precision,
        "engines": engines.digest,
        "size": [manifest.model.image_size, manifest.model.image_size],
        "start_step": request.start_step,
        "lms_start": None if request.start_step is None else request.lms_start,
        **facts,
        "batch": [[p.prompt, p.negative_prompt, p.seed] for p in group],
        "batch_index": index,
    }
