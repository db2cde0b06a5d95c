"""Bundles: ONNX graphs and everything needed to run them without torch, sealed by ``manifest.json``."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sdrt.artefacts.manifest import (
    FILE_LIMIT_BYTES,
    CheckpointRecord,
    Component,
    ComponentName,
    Manifest,
    check_files,
    parse_manifest,
    read_manifest,
)
from sdrt.errors import BundleError
from sdrt.files import sha256_bytes, system_errors, utf8_path


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. ``digest`` is the SHA-256 of its manifest and so covers every file.

    ``named`` is the checkpoint that the user named, if another one with the same weights was exported first.
    """

    path: Path
    manifest: Manifest
    digest: str
    named: CheckpointRecord | None = field(default=None, compare=False)

    @property
    def checkpoint(self) -> CheckpointRecord:
        """The exported checkpoint, by the name that the user gave."""
        return self.named or self.manifest.checkpoint

    @classmethod
    @system_errors()
    def open(cls, path: Path, *, verify: bool = False) -> Bundle:
        """Open a bundle folder; check the manifest, all sizes, the graphs' digests and, with ``verify``, all digests.

        Raises:
            BundleError: The manifest or a file is missing or malformed.
            TrustError: A digest or size does not match, or a path leaves the folder.
            ResourceError: A file cannot be read, for example without permission.
        """
        data = read_manifest(path, BundleError)
        manifest = parse_manifest(path, data, Manifest, BundleError)
        weights = manifest.weights()
        for name, record in manifest.files.items():
            if name not in weights and record.size_bytes > FILE_LIMIT_BYTES:
                hint = "export the checkpoint again: weights go into a file beside their graph"
                raise BundleError(f"{path / name} is larger than {FILE_LIMIT_BYTES >> 20} MiB", hint=hint)
        check_files(path, manifest, [name for name in manifest.files if verify or name not in weights], BundleError)
        return cls(path, manifest, sha256_bytes(data))

    def component(self, name: ComponentName) -> Component:
        """Return a component's record.

        Raises:
            BundleError: The bundle does not hold the component.
        """
        if name not in self.manifest.components:
            raise BundleError(f"{self.path} holds no {name}", hint="export again with all components")
        return self.manifest.components[name]

    def graph(self, component: ComponentName) -> Path:
        """Return the path of a component's ONNX file, validated; the only way by which graphs are opened.

        The first call of a process validates all graphs of the bundle in a child process (see sdrt.graphs.validate),
        before any library of this process reads them.

        Raises:
            BundleError: The bundle does not hold the component, or a graph is refused.
            TrustError: A graph reads weights from a file that the manifest does not name.
        """
        from sdrt.graphs.validate import validate_once

        relative = self.component(component).graph
        validate_once(self)
        return self._utf8_path / relative

    @cached_property
    def _utf8_path(self) -> Path:
        """A path of the folder in UTF-8, valid for the lifetime of this object."""
        held = ExitStack()
        weakref.finalize(self, held.close)
        return held.enter_context(utf8_path(self.path))

    def verify_weights(self) -> None:
        """Hash every file against the manifest.

        Raises:
            TrustError: A digest differs.
        """
        check_files(self.path, self.manifest, self.manifest.files, BundleError)

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(record.size_bytes for record in self.manifest.files.values())
