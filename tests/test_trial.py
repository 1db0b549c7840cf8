"""Trials choose the recipe: none may learn from what judges it, and none may see the test set."""

import pytest
import torch
from toy import PLAIN, toy

from benchmarks import trial
from vitlib import recipes
from vitlib.recipe import Recipe
from vitlib.store import Store


def rows(images):
    """Return the images as a set, to see whether two share one."""
    return {image.numpy().tobytes() for image in images}


def test_the_validation_split_judges_and_is_not_learned_from():
    data = toy(train=120)
    judged = trial.judged_by_validation(data, 10**6)
    learned, judge = rows(judged.train.images), rows(judged.test.images)
    assert learned | judge == rows(data.train.images) and not learned & judge
    assert not (learned | judge) & rows(data.test.images)
    fit, validation = data.split(seed=0)
    assert torch.equal(judged.train.images, fit.images) and torch.equal(judged.test.labels, validation.labels)
    few = trial.judged_by_validation(data, 30)
    assert len(few.train) == 30 and rows(few.train.images) < learned and rows(few.test.images) == judge


@pytest.mark.parametrize("name", [name for name in recipes.RECIPES if name.startswith("cpu")])
def test_at_full_length_a_trial_is_the_recipe_itself(name):
    recipe = recipes.RECIPES[name]
    whole = trial.shortened(recipe, 1.0, narrow=False)
    assert (whole.epochs, whole.protocol) == (recipe.epochs, "refit")
    assert whole.spec() == recipe.spec()


def test_a_shorter_trial_shortens_what_is_trained_before_it_alike():
    short = trial.shortened(recipes.BEST, 0.1, narrow=True)
    assert (short.epochs, short.teacher.epochs) == (25, 10) and short.warmup_epochs == 1.0
    assert short.model_args["d_model"] == trial.NARROW["d_model"] and short.teacher.model_args["width"] == 32
    assert isinstance(short, Recipe) and short.loss == recipes.BEST.loss


def test_a_trial_is_one_row_of_the_log(tmp_path, monkeypatch, capsys):
    log = tmp_path / "RECIPE.md"
    monkeypatch.setattr(trial, "LOG", log)
    monkeypatch.setattr(trial, "load", lambda source: toy(train=120))
    monkeypatch.setattr(trial, "recipe_named", lambda name: PLAIN.but(name=name))
    monkeypatch.setattr(trial, "Store", lambda: Store(tmp_path / "runs", tmp_path / "published"))
    monkeypatch.setattr("sys.argv", ["trial", "toy", "--epochs", "50", "--images", "60", "--expect", "+2"])
    trial.main()
    cells = [cell.strip() for cell in log.read_text("utf-8").strip().strip("|").split("|")]
    (record,) = (tmp_path / "runs").glob("*/record.json")
    run = Store(tmp_path / "runs", tmp_path / "published").all()[0]
    assert cells[1:7] == ["toy", "full", "60", "2", "0", "+2"]
    assert cells[7].startswith(f"{run.accuracy:.1%} ± ") and cells[9].endswith(" s")
    assert "toy" in capsys.readouterr().out and record.exists()
