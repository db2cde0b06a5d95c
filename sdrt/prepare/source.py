"""The source of a run: a checkpoint, a bundle or an engine set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdrt.artefacts.manifest import check_token_merging
from sdrt.errors import UsageError


@dataclass(frozen=True)
class Source:
    """A checkpoint (default: the demo), a bundle or an engine set.

    Attributes:
        checkpoint: Folder, .safetensors file, Hub id or "demo".
        revision: Revision of a Hub id.
        bundle: Folder of a bundle.
        engines: Folder of an engine set.
        trust: SHA-256 of the manifest.json of an engine set from elsewhere.
        token_merging: Share of tokens that the UNet merges. A checkpoint is exported with it; a bundle or an engine set
            must have it.
        variant: Variant of the checkpoint's weights.
    """

    checkpoint: str | None = None
    revision: str | None = None
    bundle: Path | None = None
    engines: Path | None = None
    trust: str | None = None
    token_merging: float | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        check_token_merging(self.token_merging)
        given = [name for name in ("checkpoint", "bundle", "engines") if getattr(self, name)]
        if len(given) > 1:
            raise UsageError(f"--{given[0]} and --{given[1]} exclude each other", hint="give one of them")
        if self.trust and not self.engines:
            raise UsageError("--trust is for --engines, which is missing", hint="give both, or neither")
        if self.revision and not self.checkpoint:
            raise UsageError("--revision is for --checkpoint, which is missing", hint="give both, or neither")
        if self.variant is not None and not self.checkpoint:
            raise UsageError("--variant is for --checkpoint, which is missing", hint="give both, or neither")
