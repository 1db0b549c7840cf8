"""Corrections of a trained classifier, alone and as runs of the store."""

import numpy as np
import pytest
import torch
from toy import PLAIN, toy

from vitlib.data import long_tail
from vitlib.errors import UserError
from vitlib.evaluate import predict
from vitlib.models import create_model
from vitlib.posthoc import PostHoc
from vitlib.recipe import Recipe
from vitlib.remedies import remedied
from vitlib.state import build_model
from vitlib.store import Store

SMALL = {"d_model": 16, "num_heads": 2, "num_layers": 1, "ffn_hidden_channels": 16, "num_classes": 4}
COUNTS = (100, 50, 20, 5)


@pytest.mark.parametrize("name", ["vit", "original"])
def test_adjusted_logits_are_the_logits_less_tau_log_prior(name):
    model = create_model(name, **SMALL).eval()
    images = torch.rand(3, 3, 32, 32)
    torch.manual_seed(0)  # the original is noisy in evaluation, too
    before = model(images)
    PostHoc("logit_adjustment", 1.5).apply(model, COUNTS)
    torch.manual_seed(0)
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    torch.testing.assert_close(model(images), before - 1.5 * prior.log())


def test_tau_one_makes_all_rows_equally_long_and_keeps_their_directions_and_mean_length():
    model = create_model("vit", **SMALL)
    torch.nn.init.normal_(model.head.weight)
    before = model.head.weight.detach().clone()
    PostHoc("tau_norm").apply(model, COUNTS)
    norms = model.head.weight.norm(dim=1)
    torch.testing.assert_close(norms, before.norm(dim=1).mean().expand(4))
    torch.testing.assert_close(torch.cosine_similarity(model.head.weight, before), torch.ones(4))
    assert not model.head.bias.any()


def test_tau_zero_changes_nothing_but_the_bias():
    model = create_model("vit", **SMALL)
    before = model.head.weight.detach().clone()
    PostHoc("tau_norm", 0.0).apply(model, COUNTS)
    torch.testing.assert_close(model.head.weight, before)


def test_a_bad_correction_is_refused_when_the_recipe_is_made():
    for posthoc in ({"kind": "tau"}, {"kind": "tau_norm", "tau": -1.0}):
        with pytest.raises(UserError, match="logit_adjustment"):
            Recipe(posthoc=posthoc)
    for posthoc in ({"tau": 1.0}, {"kind": "tau_norm", "gamma": 1.0}):
        with pytest.raises(UserError, match="要给出 kind"):
            Recipe(posthoc=posthoc)
    with pytest.raises(UserError, match="transfer='all'"):
        Recipe(posthoc={"kind": "tau_norm"})


def test_a_correction_is_a_run_without_epochs_that_equals_the_adjusted_logits(tmp_path):
    store, data = Store(tmp_path / "runs", tmp_path / "published"), long_tail(toy(train=90), 8)
    base = PLAIN.but(name="base", epochs=1)
    run = store.get(remedied("事后 logit 调整", base), 0, data, show=False)
    trained = store.find(base, 0, data)
    assert run.epochs == 0 and len(run.history["epoch"]) == 0 and run.name == "base-posthoc"
    fit, _ = data.split(seed=0)  # the prior is that of the images it was trained on
    prior = torch.tensor(fit.counts(data.num_classes)) / len(fit)
    logits = predict(trained.load_model(), data.test.images, device=torch.device("cpu"))
    assert np.array_equal(run.predicted, (logits - prior.log()).argmax(1).numpy())
    assert np.array_equal(run.load_model().head.weight.detach(), trained.load_model().head.weight.detach())


def test_a_retrained_classifier_leaves_the_encoder_untouched(tmp_path):
    store, data = Store(tmp_path / "runs", tmp_path / "published"), long_tail(toy(train=90), 8)
    base = PLAIN.but(name="base", epochs=1)
    run = store.get(remedied("分类头重训（cRT）", base).but(epochs=1, warmup_epochs=0.0), 0, data, show=False)
    before, after = store.find(base, 0, data).load_state(), run.load_state()
    build_model(run.recipe, 3, 16).load_state_dict(after)
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"head"}
