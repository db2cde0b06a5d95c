"""Opening bundles: sound ones, and each kind of damage (fault-matrix rows 11-14 and 19-21)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import MANIFEST, check_files, file_records
from sdrt.errors import BundleError, SdrtError, TrustError
from sdrt.files import canonical_json, sha256_file
from tests.models.tiny_bundle import tiny_bundle as hand_made_bundle

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hand_made_bundle(tmp_path_factory.mktemp("bundles") / "whole").path


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """Return a bundle to break."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[Manifest], object]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    change(manifest)
    (bundle / MANIFEST).write_bytes(canonical_json(manifest))


def refusal(bundle: Path, *, verify: bool = False) -> SdrtError:
    with pytest.raises(SdrtError) as caught:
        Bundle.open(bundle, verify=verify)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_whole_bundle_opens(bundle: Path) -> None:
    opened = Bundle.open(bundle, verify=True)
    assert opened.digest == sha256_file(bundle / MANIFEST)
    assert opened.graph("unet") == bundle / "unet" / "model.onnx"
    assert opened.size_bytes == sum(
        path.stat().st_size for path in bundle.rglob("*") if path.is_file() and path.name != MANIFEST
    )
    opened.verify_weights()


def test_every_file_but_the_manifest_is_recorded(bundle: Path) -> None:
    found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()} - {MANIFEST}
    assert set(file_records(bundle)) == set(Bundle.open(bundle).manifest.files) == found


def test_a_component_that_is_not_there_is_named(tmp_path: Path) -> None:
    partial = hand_made_bundle(tmp_path / "partial", components=("unet",))
    with pytest.raises(BundleError, match="no vae_decoder"):
        partial.graph("vae_decoder")


@pytest.mark.parametrize("name", ["unet/model.onnx", "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])
def test_a_changed_byte_is_found_on_opening(name: str, bundle: Path) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    error = refusal(bundle)
    assert isinstance(error, TrustError)
    assert name in error.message


def test_changed_weights_are_found_by_verify(bundle: Path) -> None:
    path = bundle / "unet" / "model.onnx.data"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    opened = Bundle.open(bundle)
    with pytest.raises(TrustError, match=r"model\.onnx\.data does not match"):
        opened.verify_weights()
    assert isinstance(refusal(bundle, verify=True), TrustError)


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("name", ["unet/model.onnx", "unet/model.onnx.data"])
def test_truncated_files_are_found_on_opening(name: str, tenth: int, bundle: Path) -> None:
    size = (bundle / name).stat().st_size
    os.truncate(bundle / name, size * tenth // 10)
    error = refusal(bundle)
    assert isinstance(error, TrustError)
    assert f"has {size * tenth // 10} bytes" in error.message


def test_weights_short_of_one_byte_are_found_on_opening(bundle: Path) -> None:
    path = bundle / "vae_decoder" / "model.onnx.data"
    os.truncate(path, path.stat().st_size - 1)
    assert isinstance(refusal(bundle), TrustError)


@pytest.mark.parametrize("name", ["unet/model.onnx", "unet/model.onnx.data", "tokenizer/tokenizer.json"])
def test_a_missing_file_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    error = refusal(bundle)
    assert isinstance(error, BundleError)
    assert f"{name} is missing" in error.message


def test_no_manifest_no_bundle(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).unlink()
    for folder in (bundle, tmp_path / "absent", bundle / "unet" / "model.onnx"):
        assert isinstance(refusal(folder), BundleError)


def test_a_manifest_of_a_newer_schema_asks_for_an_upgrade(bundle: Path) -> None:
    def newer(manifest: Manifest) -> None:
        manifest["schema_version"] = 2
        manifest["a_field_of_the_future"] = {}

    edit(bundle, newer)
    error = refusal(bundle)
    assert isinstance(error, BundleError)
    assert "schema version 2" in error.message
    assert error.hint == "upgrade sdrt"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b"{}",
        b'{"schema_version": "1"}',
        b'{"schema_version": 0}',
        b'{"schema_version": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"schema_version": 1, "files": {}}',
    ],
    ids=lambda content: content[:24].decode(errors="replace"),
)
def test_a_malformed_manifest_is_refused(content: bytes, bundle: Path) -> None:
    (bundle / MANIFEST).write_bytes(content)
    error = refusal(bundle)
    assert isinstance(error, BundleError)
    assert MANIFEST in error.message


def test_an_enormous_manifest_is_not_read(bundle: Path) -> None:
    with (bundle / MANIFEST).open("wb") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    assert "larger than 4 MiB" in refusal(bundle).message


def spec_of_unet(manifest: Manifest, side: str, index: int) -> Manifest:
    found: Manifest = manifest["components"]["unet"][side][index]
    return found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.pop("model"), "model"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m.update(precision="fp64"), "precision"),
        (lambda m: m["checkpoint"].update(digest="ab"), "checkpoint.digest"),
        (lambda m: m["model"].update(scaling_factor=0), "model.scaling_factor"),
        (lambda m: m["model"].update(latent_size=-64), "model.latent_size"),
        (lambda m: m["components"].update(safety_checker=m["components"]["unet"]), "components.safety_checker"),
        (lambda m: spec_of_unet(m, "inputs", 1).update(dtype="bfloat16"), "components.unet.inputs.1.dtype"),
        (lambda m: m["files"]["unet/model.onnx"].update(sha256="A" * 64), "files.unet/model.onnx.sha256"),
        (lambda m: m["files"]["unet/model.onnx"].update(size_bytes=-1), "files.unet/model.onnx.size_bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_field_is_named(change: Callable[[Manifest], object], named: str, bundle: Path) -> None:
    edit(bundle, change)
    error = refusal(bundle)
    assert isinstance(error, BundleError)
    assert f"{MANIFEST}: {named}" in error.message


def test_a_graph_without_a_digest_is_refused(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["files"].pop("unet/model.onnx"))
    assert "unet/model.onnx has no digest" in refusal(bundle).message


@pytest.mark.parametrize(
    "name", ["../canary", "unet/../../canary", "/etc/passwd", "..", "unet\\model.onnx", "x" * 5000]
)
def test_paths_that_leave_the_bundle_are_refused(name: str, bundle: Path) -> None:
    (bundle.parent / "canary").write_bytes(b"canary")
    record = {"size_bytes": 6, "sha256": sha256_file(bundle.parent / "canary")}

    def redirect(manifest: Manifest) -> None:
        manifest["files"][name] = record
        manifest["components"]["unet"]["weights"] = name

    edit(bundle, redirect)
    assert isinstance(refusal(bundle), TrustError)


@pytest.mark.parametrize("name", ["unet/model.onnx.data", "unet/model.onnx", MANIFEST])
def test_links_are_refused_even_when_what_they_lead_to_matches(name: str, bundle: Path) -> None:
    path, aside = bundle / name, bundle.parent / "aside"
    path.rename(aside)
    path.symlink_to(aside)
    error = refusal(bundle)
    assert isinstance(error, TrustError)
    assert "is a link" in error.message
    path.unlink()
    os.link(aside, path)
    assert "is a hard link" in refusal(bundle).message


def test_a_linked_folder_is_refused(bundle: Path) -> None:
    (bundle / "unet").rename(bundle.parent / "unet")
    (bundle / "unet").symlink_to(bundle.parent / "unet")
    assert isinstance(refusal(bundle), TrustError)


def test_a_pipe_in_place_of_the_manifest_is_not_waited_for(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    os.mkfifo(bundle / MANIFEST)
    assert "not a plain file" in refusal(bundle).message


def test_check_files_hashes_what_it_is_told_to(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    path = bundle / "unet" / "model.onnx.data"
    path.write_bytes(bytes(path.stat().st_size))
    check_files(bundle, manifest, [], BundleError)
    with pytest.raises(TrustError):
        check_files(bundle, manifest, ["unet/model.onnx.data"], BundleError)
