"""The recipes of section 2.2 say what they mean: combinations, shared pre-training, controls, equal compute."""

import pytest
import torch

from vitlib import remedies
from vitlib.losses import build_loss
from vitlib.models import count, create_model
from vitlib.remedies import (
    ALL,
    BASE,
    CONTROLS,
    FACTORS,
    LACKED,
    MASKED,
    SUBSETS,
    combination,
    masked,
    on_tail,
    remedied,
)


@pytest.mark.parametrize("family", ["original", "vit"])
def test_sixteen_combinations_differ_in_the_four_switches_only(family):
    recipes = {chosen: combination(family, chosen) for chosen in SUBSETS}
    assert len(recipes) == 16 == len({str(recipe.spec()) for recipe in recipes.values()})
    assert len({recipe.name for recipe in recipes.values()}) == 16
    for chosen, recipe in recipes.items():
        assert (recipe.init_from is not None) == ("P" in chosen) == (recipe.encoder_lr_scale == 0.01)
        assert bool(recipe.augment) == ("A" in chosen)
        assert ("weighting" in recipe.loss_args) == ("W" in chosen)
        assert ("mining" in recipe.loss_args) == ("O" in chosen)
        rest = {"init_from", "encoder_lr_scale", "augment", "loss_args"}
        bare = {key: value for key, value in recipe.spec().items() if key not in rest}
        assert bare == {key: value for key, value in recipes[frozenset()].spec().items() if key not in rest}
    shared = {str(recipe.init_from.spec()) for recipe in recipes.values() if recipe.init_from}
    assert len(shared) == 1


def test_all_four_of_the_original_are_its_improved_recipe_but_for_the_length():
    from vitlib.recipes import IMPROVED, PRETRAIN

    short = IMPROVED.but(epochs=remedies.EPOCHS, init_from=PRETRAIN.but(epochs=remedies.EPOCHS))
    assert combination("original", ALL).spec() == short.spec()


def test_controls_differ_from_their_partner_in_what_they_name():
    long = CONTROLS["原系统：不预训练，监督训练的轮数补足"]
    whole = combination("original", ALL)
    assert long.epochs == whole.epochs + whole.init_from.epochs and long.init_from is None
    assert long.encoder_lr_scale == 1.0 and long.loss_args == whole.loss_args and long.augment == whole.augment
    bare = CONTROLS["原系统：随机编码器，学习率之比 1/100"]
    assert bare.but(init_from=whole.init_from).spec() == whole.spec() and bare.encoder_lr_scale == 0.01


def test_every_other_remedy_is_one_change_of_the_base_and_has_its_own_name():
    made = {label: remedied(label) for label in LACKED}
    assert len({recipe.name for recipe in made.values()}) == len(made)
    assert len({str(recipe.spec()) for recipe in [BASE, *made.values()]}) == len(made) + 1
    assert made["类别加权"].spec() == combination("vit", frozenset("AW")).spec()
    assert made["延迟加权"].defer == made["LDAM＋延迟加权"].defer == 0.8
    ldam = made["LDAM＋延迟加权"]
    assert ldam.model_args["cosine_head"] and build_loss(ldam.loss, (5, 4), **ldam.loss_args).sample_loss.scale == 30
    for label in remedies.FREE:
        assert made[label].epochs == 0 and made[label].init_from == BASE and made[label].transfer == "all"


def test_a_long_tail_gives_new_names_and_the_same_training():
    for factor in FACTORS:
        recipe = on_tail(remedied("事后 logit 调整"), factor)
        assert recipe.name.endswith(f"-if{factor}") and recipe.init_from.name == f"{BASE.name}-if{factor}"
        assert recipe.spec() == remedied("事后 logit 调整").spec()


@pytest.mark.parametrize("ratio", MASKED)
def test_masked_pre_training_and_fine_tuning_cost_what_the_base_costs(ratio):
    recipe = masked(ratio)
    with torch.device("meta"):
        passes = [count(create_model(r.model, **r.model_args)).flops * r.epochs for r in (recipe, recipe.init_from)]
        base = count(create_model("vit", **BASE.model_args)).flops * BASE.epochs
    assert sum(passes) == pytest.approx(base, rel=0.02)
