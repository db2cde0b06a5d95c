"""Prompts of a comparison with their seeds, from a file or a default set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdrt.errors import UsageError
from sdrt.files import unreadable
from sdrt.limits import MAX_SEED
from sdrt.runtime.request import check_text

MAX_PROMPTS = 64
LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class PromptSeed:
    """Prompt and seed of a picture to compare, drawn without a negative prompt."""

    prompt: str
    seed: int


#: Captions of the demo's grammar: one and two objects, every size, textures, horizontal and vertical relations, empty.
DEMO = (
    PromptSeed("a large green star on a purple background", 0),
    PromptSeed("a small red circle on white", 1),
    PromptSeed("a striped blue square on a yellow background", 2),
    PromptSeed("a yellow ring to the left of a black cross on green", 3),
    PromptSeed("a large orange triangle above a white circle on a dotted blue background", 4),
    PromptSeed("", 5),
)
#: Prompts for any other checkpoint, the last one empty.
GENERAL = (
    PromptSeed("a photograph of an astronaut riding a horse", 0),
    PromptSeed("a portrait of an old fisherman, oil on canvas", 1),
    PromptSeed("a valley with a river at dawn, mist between the trees", 2),
    PromptSeed("", 3),
)


def default_prompts(checkpoint: str) -> tuple[PromptSeed, ...]:
    """Return the default prompts of a checkpoint of this name."""
    return DEMO if checkpoint == "demo" else GENERAL


def read_prompts(path: Path) -> tuple[PromptSeed, ...]:
    """Read prompts from a UTF-8 text file, one per line: a prompt, or a seed, a tab and a prompt, which may be empty.

    Empty lines and lines that start with "#" are skipped. The seed of a line without one is its index among the
    prompts, from 0.

    Raises:
        UsageError: The file cannot be read, has no prompt or too many, or a line has another form.
    """
    hint = "write one prompt a line, or SEED, a tab and the prompt"
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise UsageError(f"--prompts: {path} is larger than {LIMIT_BYTES >> 20} MiB", hint=hint)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise unreadable(path, error, UsageError, hint=hint, subject="--prompts: ") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompts: {path} is not UTF-8 at byte {error.start}", hint=hint) from error
    found: list[PromptSeed] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            found.append(_parse(line.rstrip("\r"), len(found), f"--prompts: {path}, line {number}"))
    if not 1 <= len(found) <= MAX_PROMPTS:
        raise UsageError(f"--prompts: {path} holds {len(found)} prompts; 1 to {MAX_PROMPTS} are allowed", hint=hint)
    return tuple(found)


def _parse(line: str, place: int, where: str) -> PromptSeed:
    """Parse one line; ``place`` is the seed of a line without one."""
    before, tab, after = line.partition("\t")
    prompt, seed = (after.strip(), -1) if tab else (before.strip(), place)
    if tab and before.isascii() and before.isdigit() and len(before) <= len(str(MAX_SEED)):
        seed = int(before)
    if not 0 <= seed <= MAX_SEED:
        hint = "write SEED, a tab and the prompt, or the prompt alone"
        raise UsageError(f"{where}: the seed is {before[:40]!r}; it must be 0 to {MAX_SEED}", hint=hint)
    check_text(where, prompt)
    return PromptSeed(prompt, seed)
