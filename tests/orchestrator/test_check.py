from __future__ import annotations

import pytest

import recipes
from orchestrator import check, study
from orchestrator.errors import RefusedError, UsageError
from recipes.config import fields, make
from recipes.data import load

BROKEN = """
import torch
from torch import nn
from recipes.config import AugmentConfig, DatasetConfig, FitConfig, OptimConfig, Part
from recipes.loop import fit

class Config(Part):
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    fit: FitConfig = FitConfig(batch_size=16)
    dataset: DatasetConfig = DatasetConfig()

class Shuffled(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)[torch.randperm(len(x))])  # which image is which is lost

def build_model(config, info):
    return Shuffled(64, 10)

def train(config, attempt=None):
    return fit(config, build_model, attempt, recipe=__file__)
"""


def overfit(*arguments):
    return check.overfit(study.load(arguments, single=True))


@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in recipes.BUILT_IN if name != "mlp")]
)
def test_every_recipe_learns_one_batch_by_heart(name):
    learnt = overfit(f"recipe={name}")
    assert learnt.last_loss <= 0.1 * learnt.first_loss
    assert 1 < learnt.steps < check.MAX_STEPS


def test_model_that_mixes_its_images_up_does_not(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    with pytest.raises(RefusedError, match=r"broken does not learn one batch by heart: its loss went from 2\.\d+ to"):
        overfit(f"recipe={path}")


def test_batch_that_is_too_small_for_the_classes_is_one_line():
    with pytest.raises(UsageError, match=r"has no image to train on; a larger batch_size takes more images$"):
        overfit("recipe=mlp", "batch_size=4")


def test_training_that_diverges_is_refused_in_one_line():
    with pytest.raises(RefusedError, match=r"^mlp does not learn one batch by heart: \w+_loss is (nan|inf)"):
        overfit("recipe=mlp", "optimizer=sgd", "lr=1e30", "batch_norm=false")


def test_an_epoch_is_one_step_on_one_batch_and_nothing_holds_the_model_back():
    recipe = recipes.load("cnn")
    known = fields(recipe.config_type)
    values = study.load(["recipe=cnn", "dropout=0.5", "crop=1", "ema=0.9"], single=True).config({})
    found = make(recipe.config_type, check.one_batch(values, known))
    assert (found.model.dropout, found.augment.crop, found.optim.ema, found.optim.label_smoothing) == (0, 0, 0, 0)
    assert len(load(found.dataset).train.labels) <= found.fit.batch_size
    assert found.fit.epochs == check.MAX_STEPS


def test_recipe_without_the_fields_that_are_needed_is_told_so():
    with pytest.raises(UsageError, match="no limit and no batch_size"):
        check.one_batch({"epochs": 1}, {"epochs": None})
