"""Recipes: the shipped ones, overrides, and refusals by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrt.artefacts.engine_set import BatchRange
from sdrt.engines.recipe import FOLDER, Recipe, load_recipe, names
from sdrt.errors import UsageError

COMPONENTS = {"text_encoder", "denoise_step", "unet", "vae_encoder", "vae_decoder"}


def test_three_ship_for_latency_default_and_throughput() -> None:
    assert names() == ("sd-v1-default", "sd-v1-latency", "sd-v1-throughput")
    for name in names():
        recipe = load_recipe(name)
        assert set(recipe.batch) == COMPONENTS
        assert recipe.targets is None
        # A component is one kernel, whose scratch is all its activations: a limit would refuse it.
        assert recipe.workspace_mib is None


@pytest.mark.parametrize(
    ("here", "targets"),
    [
        ([], ("sm86", "sm89", "sm120")),
        (["sm86"], ("sm86", "sm89", "sm120")),
        (["sm120", "sm75"], ("sm86", "sm89", "sm120")),
        (["sm75"], ("sm75",)),
        (["sm80", "sm86"], ("sm80",)),
        (["sm121"], ("sm121",)),
        # They do not run here, but can be moved to a machine that runs them.
        (["sm90"], ("sm86", "sm89", "sm120")),
    ],
)
def test_targets_that_nobody_names_are_for_the_gpu_that_is_here(here: list[str], targets: tuple[str, ...]) -> None:
    assert load_recipe("sd-v1-latency").for_gpus(here).targets == targets
    assert load_recipe("sd-v1-latency", ["targets=sm89"]).for_gpus(here).targets == ("sm89",)


@pytest.mark.parametrize(("name", "most"), [("sd-v1-latency", 1), ("sd-v1-default", 4), ("sd-v1-throughput", 16)])
def test_the_unet_has_two_rows_a_picture(name: str, most: int) -> None:
    recipe = load_recipe(name)
    assert recipe.rows("denoise_step").max == most
    # One row runs a picture without guidance; the denoise step runs pictures with guidance.
    assert recipe.rows("unet").min == 1
    assert recipe.rows("unet").max == 2 * most
    assert recipe.rows("unet").opt == 2 * recipe.rows("denoise_step").opt


def test_latency_is_static_where_it_counts() -> None:
    assert load_recipe("sd-v1-latency").rows("denoise_step") == BatchRange(min=1, opt=1, max=1)


def test_settings_override_fields() -> None:
    recipe = load_recipe(
        "sd-v1-default",
        ["targets=sm75,sm121", "optimization_level=5", "version_compatible=true", "batch.vae_decoder=1:2:3"],
    )
    assert recipe.targets == ("sm75", "sm121")
    assert recipe.optimization_level == 5
    assert recipe.version_compatible is True
    assert recipe.batch["vae_decoder"] == BatchRange(min=1, opt=2, max=3)
    assert recipe.batch["unet"] == load_recipe("sd-v1-default").batch["unet"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("speed=fast", "speed"),
        ("targets=sm90", "targets.0"),
        ("targets=", "targets="),
        ("optimization_level=6", "optimization_level"),
        ("optimization_level=high", "optimization_level"),
        ("optimization_level=true", "optimization_level"),
        ("workspace_mib=1", "workspace_mib"),
        ("hardware_compatibility=hopper", "hardware_compatibility"),
        ("version_compatible=2", "version_compatible"),
        ("batch.unet=4:2:1", "batch.unet"),
        ("batch.unet=0", "batch.unet"),
        ("batch.unet=1:2", "batch.unet"),
        ("batch.unet=²", "batch.unet"),
        ("batch.decoder=1", "batch.decoder"),
        ("batch=1", "component"),
        ("targets", "FIELD=VALUE"),
    ],
)
def test_wrong_settings_are_refused_by_name(setting: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("sd-v1-default", [setting])
    assert named in caught.value.message


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    own = 'targets = ["sm86", "sm121", "sm120"]\nworkspace_mib = 4096\n'
    path.write_text(own + (FOLDER / "sd-v1-latency.toml").read_text())
    recipe = load_recipe(str(path))
    assert recipe.targets == ("sm86", "sm121", "sm120")
    assert recipe.workspace_mib == 4096


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("targets = [", "not TOML"),
        ("colour = 1", "hardware_compatibility"),
        ("\x00", "not TOML"),
        ("#" * 70_000, "too large"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=named):
        load_recipe(str(path))


@pytest.mark.parametrize("name", ["fast", "../recipes/sd-v1-default", "", "missing.toml", "/nowhere/x.toml"])
def test_a_recipe_that_is_not_there(name: str) -> None:
    with pytest.raises(UsageError):
        load_recipe(name)


def test_pictures_of_the_users_replace_every_batch() -> None:
    recipe = load_recipe("sd-v1-default").with_pictures(BatchRange(min=2, opt=2, max=2))
    assert {batch.max for batch in recipe.batch.values()} == {2}


def test_a_component_without_a_batch_is_named() -> None:
    recipe = Recipe.model_validate({**load_recipe("sd-v1-default").model_dump(), "batch": {}})
    with pytest.raises(UsageError, match=r"batch\.unet"):
        recipe.rows("unet")
