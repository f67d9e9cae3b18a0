"""What every network is trained with, where the user does not say."""

from __future__ import annotations

import pytest

from denoise.config.recipes import RECIPES
from denoise.networks.catalogue import NETWORKS


def test_every_network_has_a_recipe() -> None:
    assert RECIPES.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_recipe_can_be_followed_by_its_network(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.patch_size % NETWORKS[name].divisor({}) == 0
    assert recipe.batch_size >= 1
    assert recipe.learning_rate > 0


@pytest.mark.parametrize(("name", "patch", "batch"), [("unet2d", 256, 32), ("unet3d", 96, 4)])
def test_the_published_networks_are_trained_as_they_were_published(name: str, patch: int, batch: int) -> None:
    recipe = RECIPES[name]
    assert (recipe.patch_size, recipe.batch_size) == (patch, batch)
    assert (recipe.learning_rate, recipe.schedule) == (1e-3, "constant")
    assert (recipe.loss, recipe.lcl_weight) == ("l1", 0.01)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_only_nvidia_gpus_make_larger_steps_by_themselves(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.batch_on("cpu") == recipe.batch_on("mps") == recipe.batch_size
    assert recipe.batch_on("cuda") == (recipe.gpu_batch_size or recipe.batch_size) >= recipe.batch_size
