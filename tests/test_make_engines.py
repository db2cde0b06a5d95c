"""``make engines`` on a machine without a GPU: it compiles the demo to TensorRT-RTX plans and names what it skips."""

from __future__ import annotations

from typing import Any

import pytest

from sdrt.artefacts.engine_set import BackendName, EngineSet
from sdrt.artefacts.manifest import ComponentName
from sdrt.artefacts.store import Store
from sdrt.checkpoint import open_checkpoint
from sdrt.engines.build import check_buildable
from sdrt.engines.request import BuildRequest
from sdrt.errors import BackendUnavailableError
from tests.makefile import make

SKIPPED = "make engines: tensorrt is skipped: it cannot be built here, for the reason above"


@pytest.fixture(scope="module")
def made(store: Store) -> str:
    """Run `make engines` into the store of the test run; return its output."""
    done = make("engines", "ready-to-build", f"STORE={store.root}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def plans(made: str, store: Store) -> EngineSet:
    (entry,) = (entry for entry in store.entries() if (entry.backend, entry.checkpoint) == ("tensorrt-rtx", "demo"))
    return store.open_engines(entry.path)


def attentions(unet: dict[str, Any]) -> int:
    """Count a UNet's attentions by its config: two a transformer, one transformer a layer, one more in up blocks."""
    layers = int(unet["layers_per_block"])
    down = sum(layers for kind in unet["down_block_types"] if "CrossAttn" in kind)
    up = sum(layers + 1 for kind in unet["up_block_types"] if "CrossAttn" in kind)
    return 2 * (down + 1 + up)


def test_the_demo_is_compiled_for_three_gpus(plans: EngineSet) -> None:
    assert plans.manifest.host == {"gpu": "sm86 sm89 sm120"}
    assert plans.manifest.precision == "fp16"
    assert set(plans.manifest.components) == {"text_encoder", "unet", "denoise_step", "vae_encoder", "vae_decoder"}
    # Weights in fp16, and kernels for every GPU.
    weights = open_checkpoint("demo").weights("unet").stat().st_size
    assert plans.component("denoise_step").size_bytes > weights
    assert plans.component("unet").size_bytes > weights


def test_the_parser_warns_of_nothing(made: str) -> None:
    assert "tensorrt-rtx denoise_step fp16" in made
    assert "warns" not in made


def test_the_demos_attentions_are_fused(plans: EngineSet) -> None:
    checkpoint = open_checkpoint("demo")
    wanted: dict[ComponentName, int] = {
        "text_encoder": checkpoint.text_encoder["num_hidden_layers"],
        "unet": attentions(checkpoint.unet),
        "denoise_step": attentions(checkpoint.unet),
    }
    fused = {}
    for name, component in plans.manifest.components.items():
        assert component.layers is not None
        fused[name] = [attention.fused for attention in component.layers.attentions]
    assert {name: fused[name] for name in wanted} == {name: [True] * count for name, count in wanted.items()}


def refusal(backend: BackendName) -> str | None:
    """Return the reason why a backend cannot build here."""
    try:
        check_buildable(BuildRequest(backend))
    except BackendUnavailableError as error:
        return error.message
    return None


def test_a_backend_that_cannot_be_built_here_is_skipped_and_said_so(made: str) -> None:
    reason = refusal("tensorrt")
    said = [line for line in made.splitlines() if line.startswith(("sdrt: ", "make engines: "))]
    if reason is None:
        assert said == []
    else:
        error, skipped = said
        assert error.startswith(f"sdrt: {reason}")
        assert skipped == SKIPPED


def test_a_backend_asked_for_by_name_is_not_skipped(store: Store) -> None:
    done = make("engines", "ready-to-build", f"STORE={store.root}", "BACKENDS=tensorrt")
    assert "is skipped" not in done.stderr
    assert ("Error 4" in done.stderr) == (done.returncode != 0) == (refusal("tensorrt") is not None)
