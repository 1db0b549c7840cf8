"""What section 2.4 says and draws: verdicts on losses, pictures of surviving patches, its table of recipes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import toy

from labreport import stats
from labreport.analysis import assess
from labreport.analysis.kernels import Row
from labreport.figures import light as figures
from vitlib.light.recipes import CHILD, DISTILLED, LIGHT, METHODS, pruned
from vitlib.models import count, create_model
from vitlib.plans import PROFILES
from vitlib.recipes import BEST, VIT, recipe_named


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def runs(accuracy, images=4000, seeds=3):
    """Made-up answers of some seeds: the first images right, a few others by chance."""
    return [np.arange(images) < images * accuracy + seed for seed in range(seeds)]


@pytest.mark.parametrize(
    ("accuracy", "seeds", "word"), [(0.899, 3, "是"), (0.905, 3, "是"), (0.89, 3, "否"), (0.899, 2, "证据不足")]
)
def test_a_clear_loss_is_a_matter_of_mean_and_bound(accuracy, seeds, word):
    assert assess.keeps_accuracy(stats.compare(runs(accuracy, seeds=seeds), runs(0.9))) == word


def test_a_small_mean_with_a_wide_interval_is_no_proof():
    generator = np.random.default_rng(0)
    noisy, base = ([generator.random(300) < 0.9 for _ in range(3)] for _ in range(2))
    comparison = stats.compare(noisy, base)
    assert abs(comparison.difference) < 0.03 and comparison.low < -assess.WORST
    assert assess.keeps_accuracy(comparison) == "否"


def test_every_recipe_can_be_had_by_name_and_starts_from_its_base():
    assert len({label for label, _, _ in METHODS}) == len(METHODS)
    for _, recipe, _ in METHODS:
        assert recipe_named(recipe.name) is recipe
        if recipe.transfer == "all":
            assert recipe.init_from in (VIT, DISTILLED) and recipe.teacher in (VIT, BEST)
            assert PROFILES["quick"].fit(recipe).epochs == 1
            assert PROFILES["quick"].fit(recipe).init_from.epochs == dict(PROFILES["quick"].epochs)["vit"]


def test_the_light_models_are_as_light_as_they_claim():
    def cost(recipe):
        with torch.device("meta"):
            return count(create_model(recipe.model, **recipe.model_args))

    best, child, light = map(cost, (BEST, CHILD, LIGHT))
    assert child.params <= best.params / 4 and light.flops <= best.flops / 4
    assert light.params <= best.params * 4 / 8  # int8: a byte a weight, and an eighth of best's four
    blocks = [cost(recipe).params for recipe in (VIT, pruned(30), pruned(50), pruned(70))]
    assert [round(1 - left / blocks[0], 1) for left in blocks[1:]] == [0.3, 0.5, 0.7]


def test_pictures_are_shrunk_before_the_model_sees_them():
    model = create_model("vit", **toy.TINY).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(assess.smaller_pictures(model, 32)(images), model(images))
        assert not torch.allclose(assess.smaller_pictures(model, 16)(images), model(images))


def test_patches_fade_as_their_share_falls():
    images = np.full((1, 3, 8, 8), 100, np.uint8)
    painted = figures.shaded_patches(images, np.array([[1.0, 0.5, 0.0, 1.0]]), scale=2)
    assert painted.shape == (1, 3, 16, 16) and painted.dtype == np.uint8
    corners = [int(painted[0, 0, y, x]) for y in (0, 15) for x in (0, 15)]
    assert corners[0] == corners[3] == 100 < corners[1] < corners[2] < 255


def test_the_tradeoff_shows_every_model_and_the_front():
    table = pd.DataFrame(
        {
            "label": ["大", "小", "慢"],
            "accuracy": [0.9, 0.85, 0.8],
            "seconds": [0.02, 0.01, 0.03],
            "bytes": [8e6, 1e6, 4e6],
        }
    )
    fig = figures.tradeoff(table, ["大"])
    discs = fig.axes[0].collections
    assert [disc.get_offsets()[0].tolist() for disc in discs[:3]] == [[20, 90], [10, 85], [30, 80]]
    assert discs[0].get_sizes()[0] == 300 and discs[1].get_sizes()[0] == pytest.approx(37.5)
    assert len(discs[0].get_facecolor()) == 0 and len(discs[1].get_facecolor()) == 1  # the baseline is hollow
    assert fig.axes[0].lines[0].get_xydata().tolist() == [[10, 85], [20, 90]]


def test_kernels_that_did_not_run_are_not_drawn():
    ran = [Row("逐步计算", n, n / 1e6, n / 2e6, n / 5e5, 9, n * 1e3, "aten::softmax") for n in (64, 256)]
    fig = figures.kernels([*ran, Row("xFormers", 64, reason="无")])
    band = fig.axes[0].collections[-1]
    assert {(64, 0.032), (64, 0.128), (256, 0.512)} <= {
        (x, round(y, 6)) for x, y in band.get_paths()[0].vertices.tolist()
    }
    assert [text.get_text() for text in fig.legends[0].texts] == ["逐步计算"]
