"""The plots' model: engines for one picture at a time, whatever this machine was tuned for."""

from __future__ import annotations

from typing import Any

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.store import Store
from sdrt.pipeline import Pipeline
from sdrt.plots.model import Model
from sdrt.prepare.choice import Choice
from sdrt.prepare.source import Source


def test_a_tuned_batch_is_not_a_plots(tiny_bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def tuned(_source: Source, **how: Any) -> Choice:
        asked.append(how)
        return Choice("onnxruntime", "fp32", 1, "auto", BatchRange(min=4, opt=4, max=4), fused=True)

    monkeypatch.setattr("sdrt.prepare.choice.choose", tuned)
    with Model.load(Source(bundle=tiny_bundle.path), backend="auto", store=store.root) as model:
        assert asked[0]["backend"] == "auto"
        assert {"unet", "vae_encoder", "vae_decoder"} <= model.engines.manifest.components.keys()
        latents = model.noise(0)
        assert model.decode(latents).size == (512, 512)


def test_words_and_pictures_are_what_the_pipeline_makes_of_them(tiny_bundle: Bundle, store: Store) -> None:
    source = Source(bundle=tiny_bundle.path)
    with Model.load(source, backend="onnxruntime", store=store.root) as model:
        words = model.conditioning("a red circle", 7.5)
        assert model.conditioning("a red circle", 1.0).negative_prompt_embeds is None
        with Pipeline(model.engines, loop="plain") as pipeline:
            (drawn,) = pipeline.decode(model.noise(1))
        assert model.decode(model.noise(1)).tobytes() == drawn.tobytes()
        assert model.decode(model.noise(2)).tobytes() != drawn.tobytes()
        assert words.prompt_embeds.shape == (1, 77, 32)
        assert words.negative_prompt_embeds is not None
        empty = model.conditioning("", 1.0).prompt_embeds
        assert (words.negative_prompt_embeds == empty).all()
        assert not (words.prompt_embeds == empty).all()
        assert model.described == "checkpoint tiny, onnxruntime fp32"
