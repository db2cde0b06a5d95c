"""A checkpoint saved after load_textual_inversion: ids, hidden states and the picture equal diffusers'."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrt import Pipeline
from sdrt.artefacts.store import Store
from sdrt.prepare.choice import Choice
from sdrt.prepare.engines import prepare
from sdrt.prepare.source import Source
from sdrt.runtime.backends.opening import open_session
from sdrt.runtime.text_states import encode_texts
from sdrt.sampling.latents import unit_noise
from tests.truth.reference import Latents, Picture, assert_has_contrast, diffusers_pipeline, psnr, reference_picture

#: Ids are compared in tests/checkpoint/test_added_tokens.py; an export and two pictures take a minute.
pytestmark = pytest.mark.long

PROMPT, NEGATIVE_PROMPT = "a photo of <cat>, New York<cat>_1 at night", "<dog>"
PROMPTS = [PROMPT, NEGATIVE_PROMPT, "", "<cat> " * 30]
STEPS, GUIDANCE_SCALE = 3, 3.0
MAX_TOKENS = 40
#: Measured 1.1e-6, and 4.3 where the further vectors of <cat> are left out.
STATES_TOLERANCE = 1e-4
#: The floor of test_against_diffusers.py, for the same reason.
PSNR_DB = 65.0


@pytest.fixture(scope="module")
def checkpoint(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny checkpoint with learned tokens, its own padding token, and prompts of 40 tokens."""
    import torch

    folder = tmp_path_factory.mktemp("learned") / "checkpoint"
    shutil.copytree(tiny_path, folder)
    pipeline = diffusers_pipeline(folder)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(5, 32, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_textual_inversion({"<cat>": vectors[:3]})
        pipeline.load_textual_inversion({"<dog>": vectors[3:4]})
        pipeline.load_textual_inversion(vectors[4], token="New York")
        pipeline.tokenizer.add_special_tokens({"pad_token": "<pad>"})
        pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))
        pipeline.tokenizer.model_max_length = MAX_TOKENS
        # As after saving twice: vocab.json and merges.txt stay beside the new tokenizer.json.
        pipeline.tokenizer.save_pretrained(folder / "tokenizer")
        pipeline.text_encoder.save_pretrained(folder / "text_encoder")
    assert json.loads((folder / "text_encoder" / "config.json").read_bytes())["vocab_size"] == 49408 + 6
    return folder


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    """Open diffusers' pipeline from the files."""
    return diffusers_pipeline(checkpoint)


@pytest.fixture(scope="module")
def truth(reference: Any) -> Picture:
    """Draw diffusers' picture."""
    noise = unit_noise([0])
    picture = reference_picture(reference, PROMPT, NEGATIVE_PROMPT, noise, STEPS, GUIDANCE_SCALE)
    assert_has_contrast(picture)
    return picture


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path, store: Store) -> Iterator[Pipeline]:
    """Open sdrt's pipeline over the same files."""
    engines = prepare(Source(checkpoint=str(checkpoint)), Choice("onnxruntime"), store=store.root)
    with Pipeline(engines) as opened:
        yield opened


def states(pipeline: Pipeline) -> list[Latents]:
    """Return hidden states of each prompt."""
    encoder = open_session(pipeline.engines).engine("text_encoder")
    encoded = encode_texts(encoder, pipeline.tokenizer, PROMPTS)
    return [encoded[prompt].states for prompt in PROMPTS]


def test_hidden_states_equal_diffusers(pipeline: Pipeline, reference: Any) -> None:
    for prompt, found in zip(PROMPTS, states(pipeline), strict=True):
        expected, _ = reference.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        assert expected.shape == (1, MAX_TOKENS, 32)
        np.testing.assert_allclose(found, expected[0].detach().numpy(), atol=STATES_TOLERANCE)


def test_the_check_finds_vectors_left_out(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = states(pipeline)
    monkeypatch.setattr(pipeline.tokenizer, "_vectors", {})
    assert np.abs(states(pipeline)[0] - whole[0]).max() > 100 * STATES_TOLERANCE


def test_the_picture_equals_diffusers(pipeline: Pipeline, truth: Picture) -> None:
    result = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        latents=unit_noise([0]),
    )
    assert psnr(np.asarray(result.images[0]), truth) >= PSNR_DB
