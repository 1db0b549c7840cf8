"""A recipe's key: what changes it, what does not, and the keys of all named recipes, pinned."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitlib.errors import UserError
from vitlib.recipe import Recipe
from vitlib.recipes import RECIPES, recipe_named

DATA = "0123456789abcdef"

# Numerics version 2. A difference means that a default or a named recipe changed, and that its published
# records are lost. A recipe may change while nothing has been published from it; a default never.
KEYS = {
    "original-vanilla": "74df156389c31a37",
    "original-pretrain": "01428fde4f47a6a7",
    "original-improved": "828c8e0824c3c2ed",
    "original-patch8": "20e7ab35967fc919",
    "original-patch16": "d25bda1fcb71b6a5",
    "original-patch16-continued": "f62f79b31d2d91ca",
    "original-patch16-fixed": "ce8a28b004cdc82b",
    "vit": "a8825ef8b9bf0b1e",
    "vit-mae": "9bddfa48282ef160",
    "vit-dino": "2a557a072f596dc1",
    "teacher": "277c7a71c4eafc63",
    "best": "88741a4f7d1ccaaf",
    "cpu": "715e128885373be2",
    "cpu-long": "12290955d8187748",
    "cpu-longest": "51e1dfb7daae09f5",
    "cpu-varied": "62d925e290a635b7",
    "cpu-plain": "e6d195c4ff9352ca",
    "cpu-with-stem": "3ad20438ed8abe70",
    "cpu-with-pool": "045adf29ec072dce",
    "cpu-with-balance": "a0ae7b5b3f496164",
    "cpu-with-muon": "f0ccead1f5d52b17",
    "vit-shifted": "c40299e943fb9bf7",
    "vit-local": "736350eccb92f774",
    "cpu-pooled": "c28c37d6a9096c55",
    "cpu-mild": "dc62a258a52c907d",
    "cpu-wide": "75fa4afb2e94b766",
    "cpu-again": "2bc21cc8c0b6eabd",
    "cpu-vit": "df5f8f2fe3fc05d9",
    "cpu-settled": "2acae60efe4cb475",
    "cpu-broad": "0bb935c70b8af726",
    "cpu-light": "4fd9f61d3bb3bedf",
    "cpu-child": "832c8eaf6999d2c0",
    "fast": "5e711a1b0e320b13",
}


def key(recipe, seed=0, data=DATA, numerics=2):
    return recipe.key(seed, data, numerics)


def test_keys_of_the_named_recipes_are_the_pinned_ones():
    assert {name: key(recipe) for name, recipe in RECIPES.items()} == KEYS


def test_the_name_is_not_part_of_the_key():
    assert key(Recipe(name="a", epochs=3)) == key(Recipe(name="b", epochs=3))


SPELLED_OUT = [
    {"epochs": 100, "lr": 1e-3, "protocol": "study", "ema": 0, "init_from": None},
    {"weight_decay": 5e-2, "clip_norm": 1, "warmup_epochs": 5, "encoder_lr_scale": 1},
    {"model_args": {"patch_size": 4, "dropout": 0, "drop_path": 0.0, "layer_scale": None, "pool": "mean"}},
    {"loss_args": {"label_smoothing": 0, "weighting": "none", "mining": "none", "keep": 0.5, "beta": 0.999}},
    {"augment": {"flip": False, "crop": 0, "resized_crop": None, "mixup": 0, "mix_until": 1}},
]


@pytest.mark.parametrize("fields", SPELLED_OUT)
def test_defaults_spelled_out_change_nothing(fields):
    assert Recipe(**fields).spec() == {}
    assert key(Recipe(**fields)) == key(Recipe())


SAME = [
    ({"lr": 1, "ema": 0.5}, {"lr": 1.0, "ema": 0.5}),
    ({"model_args": {"layer_scale": 1}}, {"model_args": {"layer_scale": 1.0}}),
    ({"loss": "focal", "loss_args": {"gamma": 1}}, {"loss": "focal", "loss_args": {"gamma": 1.0}}),
    ({"loss": "focal", "loss_args": {"gamma": 2}}, {"loss": "focal"}),
    ({"augment": {"mixup": 1, "jitter": 1}}, {"augment": {"jitter": 1.0, "mixup": 1.0}}),
    ({"augment": {"resized_crop": (1, 1, 1, 2)}}, {"augment": {"resized_crop": [1.0, 1.0, 1.0, 2.0]}}),
    ({"augment": {"crop": 4.0, "flip": 1}}, {"augment": {"crop": 4, "flip": True}}),
    (
        {"posthoc": {"kind": "tau_norm"}, "transfer": "all"},
        {"posthoc": {"kind": "tau_norm", "tau": 1}, "transfer": "all"},
    ),
    (
        {"model_args": {"patch_size": 8, "d_model": 64}, "init_from": Recipe(name="x", lr=1)},
        {"model_args": {"d_model": 64, "patch_size": 8}, "init_from": Recipe(name="y", lr=1.0)},
    ),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_ways_of_writing_one_recipe_have_one_key(one, other):
    assert key(Recipe(**one)) == key(Recipe(**other)) != key(Recipe())


CHANGES = [
    {"model": "original"},
    {"model_args": {"d_model": 128}},
    {"objective": "autoencode"},
    {"protocol": "refit"},
    {"epochs": 101},
    {"batch_size": 255},
    {"optimizer": "adam"},
    {"lr": 2e-3},
    {"weight_decay": 0.0},
    {"schedule": "constant"},
    {"warmup_epochs": 4.0},
    {"clip_norm": 0.0},
    {"ema": 0.9},
    {"loss": "focal"},
    {"loss_args": {"label_smoothing": 0.1}},
    {"augment": {"flip": True}},
    {"augment": {"crop": 1}},
    {"augment": {"mixup": 0.1, "mix_until": 0.9}},
    {"normalize": "none"},
    {"init_from": Recipe()},
    {"init_from": Recipe(epochs=1)},
    {"encoder_lr_scale": 0.1},
    {"transfer": "all"},
    {"teacher": Recipe()},
    {"teacher": Recipe(epochs=1)},
    {"teacher": Recipe(), "distill": {"temperature": 2}},
    {"posthoc": {"kind": "tau_norm"}, "transfer": "all"},
    {"sampling": "balanced"},
    {"defer": 0.8},
    {"on_nonfinite": "continue"},
]


def test_every_field_but_the_name_changes_the_key():
    keys = [key(Recipe(**change)) for change in [{}, *CHANGES]]
    keys += [key(Recipe(), seed=1), key(Recipe(), data="f" * 16), key(Recipe(), numerics=3)]
    assert len(set(keys)) == len(CHANGES) + 4
    assert {name for change in CHANGES for name in change} == set(Recipe.__dataclass_fields__) - {"name"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_record_gives_the_recipe_back(name):
    recipe = RECIPES[name]
    back = Recipe.from_spec(json.loads(json.dumps(recipe.spec())), name)
    assert key(back) == key(recipe) and back.spec() == recipe.spec() and back.name == name
    assert back.epochs == recipe.epochs and back.lr == recipe.lr and back.protocol == recipe.protocol
    if recipe.init_from:
        assert back.init_from.spec() == recipe.init_from.spec() != {}
        assert key(back.init_from) == key(recipe.init_from)


RECIPE_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.integers(0, 2000),
        "lr": st.floats(0, 1) | st.integers(0, 3),
        "ema": st.sampled_from([0, 0.0, 0.9, 0.999]),
        "clip_norm": st.integers(0, 3) | st.floats(0, 10),
        "protocol": st.sampled_from(["study", "refit", "original"]),
        "model_args": st.fixed_dictionaries(
            {}, optional={"d_model": st.sampled_from([64, 256]), "drop_path": st.sampled_from([0, 0.0, 0.1])}
        ),
        "augment": st.fixed_dictionaries(
            {},
            optional={
                "flip": st.booleans(),
                "crop": st.integers(0, 4),
                "mixup": st.integers(0, 2) | st.floats(0, 2),
                "resized_crop": st.sampled_from([None, (1, 1, 1, 1), [0.5, 1, 1, 1]]),
            },
        ),
    },
)


@given(RECIPE_FIELDS, RECIPE_FIELDS)
def test_any_recipe_survives_json_and_keeps_its_key(fields, start):
    recipe = Recipe(**fields, init_from=Recipe(**start | {"protocol": fields.get("protocol", "study")}))
    back = Recipe.from_spec(json.loads(json.dumps(recipe.spec())), "back")
    assert back.spec() == recipe.spec() and key(back) == key(recipe)


REFUSED = [
    ({"epoch": 3}, "epoch.*是不是想写 epochs"),
    ({"model_args": {"patchsize": 8}}, "patchsize.*是不是想写 patch_size"),
    ({"model_args": {"d_model": "wide"}}, "d_model='wide'"),
    ({"model": "resnet"}, "resnet.*vit、original"),
    ({"loss": "hinge"}, "hinge.*cross_entropy"),
    ({"loss_args": {"smoothing": 0.1}}, "smoothing.*label_smoothing"),
    ({"loss_args": {"label_smoothing": 2}}, "label_smoothing=2"),
    ({"augment": {"flipp": True}}, "flipp.*是不是想写 flip"),
    ({"augment": {"crop": -1}}, "crop=-1"),
    ({"augment": {"resized_crop": (0.8, 1.0)}}, "resized_crop="),
    ({"augment": {"resized_crop": (0.8, 0.4, 1, 1)}}, "resized_crop="),
    ({"augment": {"jitter": 1.5}}, "jitter=1.5"),
    ({"augment": {"erase": -0.1}}, "erase=-0.1"),
    ({"augment": {"mixup": -1}}, "mixup=-1"),
    ({"augment": {"mix_until": 7}}, "mix_until=7"),
    ({"augment": {"shrink": -1}}, "shrink=-1"),
    ({"augment": {"shrink_until": 2}}, "shrink_until=2"),
    ({"augment": {"strong_until": -0.1}}, "strong_until=-0.1"),
    ({"protocol": "cheat"}, "protocol='cheat'.*study、refit、original"),
    ({"optimizer": "sgd"}, "optimizer='sgd'"),
    ({"epochs": 2.5}, "epochs=2.5"),
    ({"epochs": -1}, "epochs=-1"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"lr": -1e-3}, "lr=-0.001"),
    ({"lr": float("nan")}, "lr=nan"),
    ({"warmup_epochs": -1}, "warmup_epochs=-1"),
    ({"ema": 1.0}, "ema=1.0"),
    ({"lr": "fast"}, "类型不对.*str"),
    ({"augment": {"jitter": "x"}}, "类型不对.*'x'"),
    ({"augment": {"resized_crop": 0.5}}, "类型不对.*float"),
    ({"loss_args": {"label_smoothing": "a"}}, "label_smoothing='a'|类型不对"),
    ({"posthoc": {"kind": "tau_norm", "tau": "a"}}, "类型不对.*str"),
    ({"name": "my cpu"}, "'my cpu'.*不能有空格"),
    ({"name": "cpu（试）"}, "cpu（试）"),
    ({"loss": "ldam", "augment": {"mixup": 0.8}}, "ldam.*去掉 mixup"),
    ({"model": "mae", "objective": "mae", "teacher": Recipe()}, "都是分类模型"),
    ({"teacher": Recipe(normalize="none")}, "normalize 相同"),
    (
        {"model": "a_vit", "model_args": {"distill_token": True}, "teacher": Recipe(), "distill": {"kind": "token"}},
        "模型 vit 的 distill_token",
    ),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_is_unknown_or_wrong_is_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        Recipe().but(**fields)


def test_an_unknown_field_in_a_record_is_refused_by_name():
    with pytest.raises(UserError, match="momentum"):
        Recipe.from_spec({"epochs": 3, "momentum": 0.9}, "x")


def test_but_merges_arguments_and_takes_out_what_is_none():
    base = Recipe(model_args={"d_model": 64, "num_heads": 2}, augment={"flip": True, "crop": 4}, epochs=7)
    changed = base.but(name="new", model_args={"num_heads": None, "patch_size": 8}, augment={"crop": 2})
    assert changed.model_args == {"d_model": 64, "patch_size": 8}
    assert changed.augment == {"flip": True, "crop": 2}
    assert (changed.name, changed.epochs) == ("new", 7)
    assert base.model_args == {"d_model": 64, "num_heads": 2}  # the original is as it was


def test_recipes_are_found_by_name_or_refused():
    assert all(recipe_named(name) is recipe and recipe.name == name for name, recipe in RECIPES.items())
    with pytest.raises(UserError, match=r"bset.*original-vanilla"):
        recipe_named("bset")
