"""What a user names to be run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdrt.artefacts.manifest import check_token_merging
from sdrt.errors import UsageError


@dataclass(frozen=True)
class Source:
    """What to run: a checkpoint (default: the demo), or a bundle, or an engine set.

    ``token_merging`` is the share of tokens that the checkpoint's UNet is to merge; a bundle's or an engine set's is
    what it was exported with, and is held against what is asked.
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
