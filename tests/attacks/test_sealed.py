"""Fault-matrix rows 20 to 26: manifests, and engine sets whose plans and blobs are code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import TOKENIZER, EngineSet
from sdrt.artefacts.manifest import MANIFEST, ComponentName
from sdrt.artefacts.store import Store
from sdrt.engines.build import build, build_key, find
from sdrt.engines.key import BuildKey
from sdrt.engines.recipe import load_recipe
from sdrt.engines.request import BuildRequest
from sdrt.errors import SdrtError
from sdrt.files import canonical_json
from sdrt.progress import silent
from sdrt.runtime.backends.opening import open_engine
from tests.attacks.material import refusal
from tests.command_line import CommandLine
from tests.doubles.cuda_double.plans import double_set
from tests.doubles.cuda_double.rig import Rig
from tests.doubles.engine_sets import KEY, make_set
from tests.doubles.engines import build_few_bytes
from tests.helpers.compiling import compile_here
from tests.models.tiny_bundle import tiny_bundle

DECODER = BuildRequest("onnxruntime", components=("vae_decoder",))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle", components=("vae_decoder",))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", lock_timeout_s=60)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[ComponentName]:
    """Build components as a few bytes; return the list of their names."""
    return compile_here(monkeypatch, build_few_bytes)


@pytest.mark.parametrize("name", ["vae_decoder/model.onnx", "vae_decoder/model.onnx.data"])
def test_row_20_a_file_that_is_not_what_was_sealed(
    name: str, bundle: Bundle, store: Store, compiled: list[ComponentName]
) -> None:
    data = bytearray((bundle.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle.path / name).write_bytes(data)
    # Weights are hashed when something is built from them, all else on opening.
    refusal(lambda: build(Bundle.open(bundle.path), DECODER, store, silent), 8, name, "does not match its digest")
    assert compiled == []
    assert not list(store.root.glob("engines/*/*"))


@pytest.mark.parametrize("kind", ["bundle", "engines"])
def test_row_21_a_manifest_of_a_newer_schema(kind: str, bundle: Bundle, store: Store) -> None:
    folder = bundle.path if kind == "bundle" else store.engines_path("openvino", KEY)
    if kind == "engines":
        make_set(folder)
    newer = {**json.loads((folder / MANIFEST).read_bytes()), "schema_version": 2, "a_field_of_the_future": {}}
    (folder / MANIFEST).write_bytes(canonical_json(newer))
    opening = partial(Bundle.open, folder) if kind == "bundle" else partial(store.open_engines, folder)
    error = refusal(opening, 3, "schema version 2")
    assert error.hint == "upgrade sdrt"


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "swap"])
def test_row_22_a_spoiled_plan_is_quarantined_and_built_once_more(
    damage: str, bundle: Bundle, store: Store, compiled: list[ComponentName], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr("onnxruntime.InferenceSession.__init__", lambda *args, **_: opened.append(args))
    plan = build(bundle, DECODER, store, silent).path / "vae_decoder" / "plan"
    whole = plan.read_bytes()
    spoiled = {"flip": whole[:-1] + b"!", "truncate": whole[:-1], "empty": b"", "swap": b"other" * 40}
    plan.write_bytes(spoiled[damage])
    refusal(partial(store.open_engines, plan.parent.parent), 8, "plan")
    assert find(bundle, DECODER, store) is None
    assert build(bundle, DECODER, store, silent).path / "vae_decoder" / "plan" == plan
    assert plan.read_bytes() == whole
    assert compiled == ["vae_decoder"] * 2
    [aside] = store.root.glob("quarantine/*/*/vae_decoder/plan")
    assert aside.read_bytes() == spoiled[damage]
    assert opened == []


def test_row_22_an_engine_that_changed_is_found_before_it_is_opened_by_a_run(
    bundle: Bundle, store: Store, compiled: list[ComponentName], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr("onnxruntime.InferenceSession.__init__", lambda *args, **_: opened.append(args))
    plan = build(bundle, DECODER, store, silent).path / "vae_decoder" / "plan"
    plan.write_bytes(b"other" * 40)
    running = build(bundle, DECODER, store, silent, verify=False)
    refusal(partial(open_engine, running, "vae_decoder"), 8, str(plan), "does not match its digest", "quarantine")
    [aside] = store.root.glob("quarantine/*/*/vae_decoder/plan")
    assert aside.read_bytes() == b"other" * 40
    assert opened == []
    running = build(bundle, DECODER, store, silent, verify=False)
    assert compiled == ["vae_decoder"] * 2
    running.check("vae_decoder")


def test_row_22_what_another_process_has_built_again_stays(
    bundle: Bundle, store: Store, compiled: list[ComponentName]
) -> None:
    plan = build(bundle, DECODER, store, silent).path / "vae_decoder" / "plan"
    whole = plan.read_bytes()
    plan.write_bytes(b"other" * 40)
    running = build(bundle, DECODER, store, silent, verify=False)
    checked = EngineSet._compare

    def meanwhile(self: EngineSet, file: str, sha256: str) -> None:
        plan.write_bytes(whole)
        checked(self, file, sha256)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineSet, "_compare", meanwhile)
        refusal(partial(running.check, "vae_decoder"), 8, "does not match its digest")
    assert not list(store.root.glob("quarantine/*/*"))
    assert plan.read_bytes() == whole


@pytest.mark.parametrize("spoil", [lambda plan: plan.write_bytes(b"plan"), lambda plan: plan.unlink()])
def test_row_22_what_shows_without_hashing_is_built_once_more_at_once(
    spoil: Callable[[Path], object], bundle: Bundle, store: Store, compiled: list[ComponentName]
) -> None:
    spoil(build(bundle, DECODER, store, silent).path / "vae_decoder" / "plan")
    build(bundle, DECODER, store, silent, verify=False).check("vae_decoder")
    assert compiled == ["vae_decoder"] * 2


def test_row_23_a_set_from_elsewhere(store: Store, tmp_path: Path, sdrt: CommandLine) -> None:
    digest = make_set(tmp_path / "elsewhere")
    opening = partial(store.open_engines, tmp_path / "elsewhere")
    assert f"--trust {digest}" in refusal(opening, 8, "trusted by its digest").hint
    refusal(partial(opening, trust="0" * 64), 8, digest)
    assert opening(trust=digest).digest == digest
    ended = sdrt("denoise", "--prompt", "a", "--engines", tmp_path / "elsewhere", "--out", tmp_path / "a.png")
    assert (ended.code, "trusted by its digest" in ended.complaint) == (8, True)
    refusal(partial(store.import_engines, tmp_path / "elsewhere", trust="0" * 64), 8, digest)
    imported = store.import_engines(tmp_path / "elsewhere", trust=digest)
    assert store.open_engines(imported.path).digest == digest


def test_row_23_a_link_in_the_store_does_not_make_it_ours(store: Store, tmp_path: Path) -> None:
    make_set(tmp_path / "elsewhere")
    place = store.engines_path("openvino", KEY)
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "elsewhere")
    store.root.chmod(0o700)
    refusal(partial(EngineSet.open, place, private_root=store.root), 8, "trusted by its digest")


CHANGES: dict[str, Any] = {
    "versions": {"tensorrt": "11.4.0"},
    "host": {"gpu": "sm89", "cuda": "12.4"},
    "bundle": "ba" * 32,
    "recipe": load_recipe("sd-v1-default", ["batch.unet=1:2:4"]),
    "precision": "fp16",
    "machine": {"gpu": "L4"},
}


@pytest.mark.parametrize("field", CHANGES)
def test_row_24_a_key_changes_with_each_of_its_parts(field: str) -> None:
    key = BuildKey(
        backend="tensorrt",
        builder=1,
        versions={"tensorrt": "11.3.0"},
        host={"gpu": "sm86", "cuda": "12.4"},
        machine={"gpu": "A10"},
        bundle="ab" * 32,
        components=("unet",),
        precision="fp32",
        component_precision={"unet": "fp32"},
        batch=None,
        options={},
        recipe=load_recipe("sd-v1-default"),
    )
    assert key.model_copy(update={field: CHANGES[field]}).digest != key.digest


def test_row_24_a_miss_is_built_and_not_loaded(bundle: Bundle, store: Store, compiled: list[ComponentName]) -> None:
    first = build(bundle, DECODER, store, silent)
    other = BuildRequest("onnxruntime", components=("vae_decoder",), provider="cuda")
    assert find(bundle, DECODER, store) is not None
    assert find(bundle, other, store) is None
    assert build(bundle, other, store, silent).path != first.path
    assert compiled == ["vae_decoder"] * 2


def test_row_25_graphs_of_one_name_and_two_shapes(tmp_path: Path) -> None:
    bundles = [tiny_bundle(tmp_path / str(seed), components=("vae_decoder",), seed=seed) for seed in (0, 1)]
    names = {onnx.load(bundle.graph("vae_decoder"), load_external_data=False).graph.name for bundle in bundles}
    assert len(names) == 1
    assert bundles[0].graph("vae_decoder").read_bytes() == bundles[1].graph("vae_decoder").read_bytes()
    # Here even the graphs are equal and only the weights differ: the key covers the whole bundle.
    assert len({build_key(bundle, DECODER).digest for bundle in bundles}) == 2


def test_row_26_a_plan_that_does_not_deserialise(tmp_path: Path) -> None:
    plans = double_set(tiny_bundle(tmp_path / "bundle"), tmp_path / "double")
    with Rig(plans) as rig:
        refusal(partial(rig.session._device.deserialise, plans, TOKENIZER), 3, "magic tag does not match")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["components"]["unet"].update(file="../../outside"),
        lambda m: m["components"]["unet"].update(file="/etc/passwd"),
        lambda m: m["files"].update({"../outside": m["files"]["unet/model.blob"]}),
        lambda m: m["files"].update({"unet/link": m["files"]["unet/model.blob"]}),
        lambda m: m["components"]["unet"].update(batch={"min": 3, "opt": 2, "max": 1}),
        lambda m: m.update(backend="pickle"),
    ],
    ids=["file outside", "absolute", "listed outside", "link", "batch", "backend"],
)
def test_row_20_engine_manifests_that_lead_elsewhere(
    change: Callable[[dict[str, Any]], object], store: Store, tmp_path: Path
) -> None:
    folder = store.engines_path("openvino", KEY)
    make_set(folder)
    (folder / "unet" / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "outside")
    manifest = json.loads((folder / MANIFEST).read_bytes())
    change(manifest)
    (folder / MANIFEST).write_bytes(canonical_json(manifest))
    for path in (store.root, *folder.parents[:2]):
        path.chmod(0o700)
    with pytest.raises(SdrtError) as caught:
        store.open_engines(folder)
    assert caught.value.exit_code in (3, 8)
