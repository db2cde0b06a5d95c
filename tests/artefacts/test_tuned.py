from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdrt.artefacts import tuned
from sdrt.artefacts.tuned import Trial, TuneRecord, find_record, machine_key, record_path, write_record
from sdrt.errors import ArtefactError, BackendUnavailableError
from sdrt.runtime.backends import registry
from sdrt.runtime.backends.registry import choose_backend

DIGEST = "ab" * 32


def trial(**changes: Any) -> Trial:
    fields: dict[str, Any] = {
        "backend": "onnxruntime",
        "precision": "fp32",
        "batch": None,
        "threads": 2,
        "loop": "plain",
        "seconds": (1.0, 1.1),
        "kept": True,
        "accurate": True,
        "why": "1.000 s a request at best",
    }
    return Trial(**(fields | changes))


def record(*trials: Trial, **changes: Any) -> TuneRecord:
    fields: dict[str, Any] = {
        "schema_version": 1,
        "sdrt": "0",
        "created": "2026-11-22T10:00:00+00:00",
        "machine": machine_key(),
        "checkpoint": "demo",
        "bundle_digest": DIGEST,
        "pictures": 1,
        "steps": 10,
        "trials": trials,
    }
    return TuneRecord(**(fields | changes))


def test_what_is_written_is_found_for_its_bundle_only(tmp_path: Path) -> None:
    written = record(trial())
    assert find_record(tmp_path, DIGEST) is None
    write_record(tmp_path, written)
    assert find_record(tmp_path, DIGEST) == written
    assert find_record(tmp_path, "cd" * 32) is None
    assert find_record(tmp_path, DIGEST[:16] + "cd" * 24) is None


def test_another_machine_or_library_has_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path, record(trial()))
    for change in ({"cpus": "64"}, {"openvino": "2031.1"}):
        with monkeypatch.context() as patch:
            patch.setattr(tuned, "machine_key", lambda change=change: machine_key() | change)
            assert find_record(tmp_path, DIGEST) is None
    assert find_record(tmp_path, DIGEST) is not None


def test_the_last_that_was_kept_is_best() -> None:
    kept = trial(threads=1)
    assert record(trial(), trial(kept=False), kept, trial(kept=False)).best is kept
    assert record(trial(kept=False)).best is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON object"),
        ('{"schema_version": 1}', "Field required"),
        ('{"schema_version": 9}', "version 9"),
    ],
)
def test_a_malformed_record_is_an_error_that_says_how_to_go_on(tmp_path: Path, text: str, message: str) -> None:
    path = record_path(tmp_path, DIGEST)
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ArtefactError, match=message) as refused:
        find_record(tmp_path, DIGEST)
    if "version" not in message:
        assert "sdrt tune" in refused.value.hint


def test_auto_is_what_was_tuned_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "available", lambda _: None)
    monkeypatch.setattr(registry, "installed_version", lambda _: "1.0")
    assert choose_backend()[0] == registry.BACKENDS[0]
    chosen, why = choose_backend(record(trial()))
    assert chosen == "onnxruntime"
    assert why == "tuned here on 2026-11-22: 1.000 s a request at best"
    # If no configuration was accurate, the machine's defaults apply, as without tuning.
    assert choose_backend(record(trial(kept=False)))[0] == registry.BACKENDS[0]


def test_what_was_tuned_has_to_be_here_still(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(backend: str) -> None:
        raise BackendUnavailableError(f"{backend} is not installed", hint="install it")

    monkeypatch.setattr(registry, "available", refuse)
    with pytest.raises(BackendUnavailableError, match="onnxruntime is not installed"):
        choose_backend(record(trial()))
