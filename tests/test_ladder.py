"""From the plain ViT to the best recipe: every step is one ingredient, and every ingredient can be taken out."""

from itertools import pairwise

import pytest

from vitlib.errors import UserError
from vitlib.models import count, create_model
from vitlib.plans import PROFILES, SECTIONS, Job, jobs
from vitlib.recipes import (
    BEST,
    CPU,
    CPU_LADDER,
    CPU_SETTLED,
    LADDER,
    OTHERS,
    STEPS,
    VIT,
    VIT_DINO,
    VIT_MAE,
    recipe_named,
    without,
)
from vitlib.sweep import H100_FLOPS, prices


def minutes(recipe):
    return prices([Job(recipe, 0, 1, "")], 35_580, H100_FLOPS)[1] / 60


def test_best_keeps_to_its_limits():
    assert count(create_model(BEST.model, **BEST.model_args)).params <= 6_000_000
    assert minutes(BEST) <= 10  # its teacher included
    assert BEST.protocol == BEST.teacher.protocol == "refit"


def test_the_ladder_begins_with_vit_and_ends_with_best():
    recipes = [recipe for _, recipe in LADDER]
    assert recipes[0] is VIT and recipes[-1] is BEST and len(LADDER) == len(STEPS) + 1
    assert len({recipe.key(0, "") for recipe in recipes}) == len({recipe.name for recipe in recipes}) == len(recipes)
    assert {recipe.protocol for recipe in recipes[:-1]} == {"study"}  # chosen on the validation split
    for before, after, (_, changes) in zip(recipes, recipes[1:], STEPS.values(), strict=False):
        changed = {name for name in VIT.__dataclass_fields__ if getattr(before, name) != getattr(after, name)}
        assert changed - {"name"} == set(changes) or after is BEST


def test_the_processors_ladder_changes_one_thing_a_step_and_then_grows():
    recipes = [recipe for _, recipe in CPU_LADDER]
    assert recipes[0].model_args.keys() == {"d_model", "num_heads", "num_layers", "ffn_hidden_channels"}
    for (before, after), name in zip(pairwise(recipes[:4]), ("stem", "pool", "balance"), strict=True):
        assert before.but(**STEPS[name][1]).spec() == after.spec() != before.spec()
    assert recipes[3].but(optimizer="muon", lr=CPU.lr).spec() == recipes[4].spec()
    assert recipes[4].but(epochs=CPU.epochs).spec() == CPU.spec() and recipes[5] is CPU
    # the last step but one changes how the network of the one before it is trained, and nothing else; the last its size
    assert recipes[-2] is CPU_SETTLED and CPU_SETTLED.model_args == recipes[-3].model_args
    assert recipes[-1].but(model_args=CPU_SETTLED.model_args).spec() == CPU_SETTLED.spec()
    assert len({recipe.key(0, "") for recipe in recipes}) == len({recipe.name for recipe in recipes}) == len(recipes)
    assert {recipe.protocol for recipe in recipes} == {"refit"}  # the whole data


@pytest.mark.parametrize("name", STEPS)
def test_one_ingredient_less_is_all_the_others(name):
    less, changes = without(name), STEPS[name][1]
    assert less.spec() != BEST.spec() and less.protocol == "refit"
    taught = {"teacher": BEST.teacher} if name in ("teacher", "balance") else {}
    assert less.but(**changes | taught).spec() == BEST.spec()
    if name == "balance":  # nothing of it is balanced, the teacher neither
        assert less.loss == less.teacher.loss == "cross_entropy" and BEST.teacher.loss != "cross_entropy"
    assert recipe_named(f"best-without-{name}") == less and recipe_named("best") is BEST  # as a command knows them
    assert name == "long" or recipe_named(f"ladder-{name}") in dict(LADDER).values()


def test_whatever_2_1_trains_has_a_name_that_a_command_knows():
    assert all(recipe_named(entry.recipe.name) == entry.recipe for entry in SECTIONS["2.1"])


def test_an_unknown_ingredient_is_refused():
    with pytest.raises(UserError, match="stem、pool"):
        without("salt")


@pytest.mark.parametrize("recipe", [VIT_MAE, VIT_DINO], ids=lambda recipe: recipe.name)
def test_pre_training_has_the_compute_of_training_without_it(recipe):
    assert minutes(recipe) == pytest.approx(minutes(VIT), rel=0.02)


def test_the_steps_are_planned_for_a_gpu_and_a_processor_is_spared_the_cnn():
    labels = {entry.label for entry in SECTIONS["2.1"]}
    assert labels >= {label for label, _ in LADDER[:-1]} | set(OTHERS)
    thin = {job.recipe.name: job.recipe for job in jobs("2.1", PROFILES["quick"])}
    assert not thin.keys() & {recipe.name for _, recipe in LADDER[1:-1]} and thin["best"].teacher is None
    full = {job.recipe.name: job.recipe for job in jobs("2.1", PROFILES["full"])}
    assert full["best"].teacher.model == "cnn" and full["ladder-teacher"].teacher.protocol == "study"


def test_an_ensemble_costs_its_teachers_and_their_answers():
    more = minutes(BEST.but(name="best-of-three", distill={"seeds": 3})) - minutes(BEST)
    answers = minutes(BEST.teacher) / 3 * BEST.epochs / BEST.teacher.epochs
    assert more == pytest.approx(2 * minutes(BEST.teacher) + 2 * answers)
