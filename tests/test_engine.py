"""The training engine: its arithmetic against a plain loop, precision, deadlines."""

import math
import time

import pytest
import torch
import torch.nn.functional as F
from toy import CPU, ORIGINAL, PLAIN, TINY, VIT, same, toy, trainer

from vitlib import device, engine, evaluate
from vitlib.augment import EpochDraws, to_float
from vitlib.models import create_model
from vitlib.recipe import Recipe
from vitlib.rng import derive
from vitlib.schedule import learning_rate
from vitlib.state import OutOfTime, TrainState, build_model, make_optimizer


@pytest.fixture(scope="module")
def data():
    return toy()


# --- the schedule ---------------------------------------------------------------------------------


def test_cosine_rises_to_the_rate_and_falls_to_zero():
    recipe = Recipe(lr=0.1, warmup_epochs=2.0)
    rates = [learning_rate(step, 100, 10, recipe) for step in range(100)]
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[0] == pytest.approx(0.1 / 21) and rates[20] == pytest.approx(0.1) == max(rates)
    assert rates[60] == pytest.approx(0.05)  # half-way down
    assert 0 < rates[99] < 1e-4


def test_warm_up_takes_at_most_half_of_the_run_and_constant_has_none():
    short = [learning_rate(step, 10, 10, Recipe(lr=1.0, warmup_epochs=50.0)) for step in range(10)]
    assert short.index(max(short)) == 5
    constant = Recipe(lr=0.3, schedule="constant", warmup_epochs=5.0)
    assert {learning_rate(step, 100, 10, constant) for step in range(100)} == {0.3}


# --- the arithmetic -------------------------------------------------------------------------------


def plain_loop(recipe, data, seed):
    """Train by the textbook: no fused kernel, no clipping, no sums; return losses, rates and the state dict."""
    torch.manual_seed(derive(seed, "init"))
    model = build_model(recipe, data.num_classes, data.image_size)
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "positions" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "positions" in n]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        foreach=False,
    )
    steps_per_epoch = len(data.train) // recipe.batch_size
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    losses, rates = [], []
    for epoch in range(recipe.epochs):
        order = EpochDraws(seed, epoch, data.train.labels, steps_per_epoch).order
        sums = 0.0
        for i, where in enumerate(order.split(recipe.batch_size)[:steps_per_epoch]):
            step = epoch * steps_per_epoch + i
            rise = (step + 1) / (warmup + 1)
            fall = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * (rise if step < warmup else fall)
            pixels = data.train.images[where] / 255 * 2 - 1
            loss = F.cross_entropy(model(pixels), data.train.labels[where], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums += float(loss.detach())
        losses.append(sums / steps_per_epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    return losses, rates, model.state_dict()


def test_training_is_the_plain_loops(data, tmp_path, in_float32):
    recipe = PLAIN.but(protocol="refit", clip_norm=0.0, batch_size=20, epochs=3, loss_args={"label_smoothing": 0.1})
    outcome = trainer(recipe, data, tmp_path, seed=7).run()
    losses, rates, state = plain_loop(recipe, data, seed=7)
    assert outcome.history["train_loss"] == pytest.approx(losses, rel=1e-5)
    assert outcome.history["lr"] == pytest.approx(rates)
    for name, tensor in state.items():
        torch.testing.assert_close(outcome.state[name], tensor, atol=2e-5, rtol=1e-4)


def test_the_loss_falls_and_the_classes_are_learned(data, tmp_path):
    outcome = trainer(PLAIN.but(epochs=8), data, tmp_path).run()
    losses = outcome.history["train_loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert outcome.history["epoch"] == [*range(1, 9)]
    assert outcome.history["val_accuracy"][-1] == 1.0 == outcome.history["train_accuracy"][-1]
    assert (outcome.test_logits.argmax(1) == data.test.labels).all()
    assert outcome.failed is None


@pytest.mark.parametrize("recipe", [VIT, ORIGINAL], ids=lambda recipe: recipe.name)
def test_a_run_is_a_function_of_the_seed_alone(data, tmp_path, recipe):
    outcomes = []
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(i)  # whatever was drawn before
        (tmp_path / str(i)).mkdir()
        outcomes.append(trainer(recipe, data, tmp_path / str(i), seed).run())
    first, again, other = outcomes
    assert same(first.state, again.state) and first.history == again.history
    assert torch.equal(first.test_logits, again.test_logits)
    assert not same(first.state, other.state) and not torch.equal(first.test_logits, other.test_logits)


def test_all_batches_have_one_shape_and_an_epoch_repeats_no_image(data, tmp_path):
    job = trainer(PLAIN.but(protocol="refit", batch_size=20, epochs=2), data, tmp_path)
    batches = []
    batch_of = job._batch

    def spy(draws, epoch, i):
        batches.append((epoch, draws.order[i * job.batch : (i + 1) * job.batch].tolist()))
        pixels, targets = batch_of(draws, epoch, i)
        assert pixels.shape == (20, 3, 16, 16) and targets.shape == (20,)
        torch.testing.assert_close(pixels, to_float(data.train.images[batches[-1][1]], "half"))
        return pixels, targets

    job._batch = spy
    job.run()
    assert [epoch for epoch, _ in batches] == [0, 0, 1, 1]  # 48 images: the last 8 wait for another epoch
    for epoch in (0, 1):
        seen = [i for e, where in batches if e == epoch for i in where]
        assert len(set(seen)) == 40


def test_a_batch_is_never_larger_than_the_data(data, tmp_path):
    job = trainer(PLAIN.but(batch_size=10_000, epochs=1, protocol="refit"), data, tmp_path)
    assert (job.batch, job.steps_per_epoch) == (48, 1)
    assert len(job.run().history["train_loss"]) == 1


def test_clipping_bounds_the_step(data, tmp_path):
    norms = []
    for clip in (0.0, 0.01):
        recipe = PLAIN.but(clip_norm=clip, epochs=1, protocol="refit")
        (folder := tmp_path / str(clip)).mkdir()
        job = trainer(recipe, data, folder)
        job._train_step(EpochDraws(0, 0, data.train.labels, job.steps_per_epoch), 0, 0)
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in job.model.parameters()])))
    assert norms[0] > 0.1 and norms[1] == pytest.approx(0.01, rel=1e-3)


def test_ema_is_the_running_mean_of_the_weights(data, tmp_path, monkeypatch, in_float32):
    trail = []
    update = TrainState.update_ema

    def spy(state):
        trail.append({k: v.clone() for k, v in state.model.state_dict().items()})
        update(state)

    monkeypatch.setattr(TrainState, "update_ema", spy)
    job = trainer(PLAIN.but(ema=0.6, epochs=3), data, tmp_path)
    mean = {k: v.clone() for k, v in job.model.state_dict().items()}
    outcome = job.run()
    for step, state in enumerate(trail):
        decay = min(0.6, (1 + step) / (10 + step))
        mean = {k: decay * mean[k] + (1 - decay) * state[k] for k in mean}
    for name, tensor in mean.items():
        torch.testing.assert_close(outcome.state[name], tensor)
    assert same(job.model.state_dict(), trail[-1])  # watching a curve must not touch the weights in training
    job.model.load_state_dict(outcome.state)
    logits = evaluate.predict(job.model.eval(), data.test.images, device=CPU)
    torch.testing.assert_close(outcome.test_logits, logits)


def test_the_optimiser_decays_matrices_only_and_has_two_rates():
    recipe = PLAIN.but(model_args={"pool": "cls", "registers": 1}, encoder_lr_scale=0.01)
    model = build_model(recipe, 3, 16)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in make_optimizer(recipe, model).param_groups:
        for parameter in group["params"]:
            found[names.pop(id(parameter))] = (group["weight_decay"], group["lr_scale"])
    assert not names
    assert found["head.weight"] == (0.05, 1.0) and found["head.bias"] == (0.0, 1.0)
    assert found["blocks.0.attention.qkv.weight"] == (0.05, 0.01)
    free = [name for name, (decay, _) in found.items() if not decay]
    assert {"prefix_tokens", "norm.weight", "blocks.0.norm1.bias"} <= {*free}
    assert any(name.startswith("positions") for name in free)
    adam = make_optimizer(recipe.but(optimizer="adam"), model).param_groups
    assert all(group["weight_decay"] == 0.05 for group in adam)  # the original's decays everything


# --- mixing and precision -------------------------------------------------------------------------


def test_mixing_stops_for_the_last_epochs(data, tmp_path, monkeypatch):
    mixed = []
    mix = engine.mix
    monkeypatch.setattr(engine, "mix", lambda *args: mixed.append(1) or mix(*args))
    job = trainer(VIT.but(augment={"mix_until": 0.5}), data, tmp_path)
    job.run()
    assert len(mixed) == 2 * job.steps_per_epoch  # of 4 epochs


def test_the_last_epoch_at_least_is_trained_with_the_weights_that_were_deferred(data, tmp_path):
    for epochs, defer, expected in ((4, 0.8, [3]), (4, 0.5, [2, 3]), (1, 0.8, [0]), (2, 0.0, [0, 1])):
        folder = tmp_path / f"{epochs}-{defer}"
        folder.mkdir()
        job, weighed = trainer(PLAIN.but(epochs=epochs, defer=defer), data, folder), set()
        step = job._train_step
        job._train_step = lambda draws, epoch, i, job=job, step=step, weighed=weighed: (
            step(draws, epoch, i), weighed.add(epoch) if job.loss.weigh else None
        )  # fmt: skip
        job.run()
        assert sorted(weighed) == expected


def test_images_are_small_at_first_then_whole_and_judged_whole(data, tmp_path):
    side = data.image_size
    job, seen = trainer(VIT.but(augment={"shrink": side // 2, "shrink_until": 0.5}), data, tmp_path), []
    job.model.register_forward_hook(lambda model, inputs, out: seen.append((model.training, inputs[0].shape[-1])))
    job.run()
    trained = [shown for training, shown in seen if training]
    assert trained == [side // 2] * 2 * job.steps_per_epoch + [side] * 2 * job.steps_per_epoch  # of 4 epochs
    assert {shown for training, shown in seen if not training} == {side}
    small, _ = job._batch(EpochDraws(0, 0, job.labels, job.steps_per_epoch), 0, 0)
    large, _ = job._batch(EpochDraws(0, 0, job.labels, job.steps_per_epoch), 2, 0)
    torch.testing.assert_close(small, F.avg_pool2d(large, 2), atol=0.5, rtol=0)  # the same pictures, and the same mix
    torch.testing.assert_close(small.mean(), large.mean(), atol=0.02, rtol=0)


def test_training_ends_on_plain_pictures(data, tmp_path):
    strong = {"trivial": True, "erase": 1.0, "strong_until": 0.5}
    varied, plain = (trainer(VIT.but(augment=switches), data, tmp_path) for switches in (strong, dict.fromkeys(strong)))
    same = []
    for epoch in range(4):
        draws = EpochDraws(0, epoch, varied.labels, varied.steps_per_epoch)
        pictures, usual = (job._batch(draws, epoch, 0)[0] for job in (varied, plain))
        same.append(torch.equal(pictures, usual))
    assert same == [False, False, True, True]


def test_bf16_is_used_where_the_device_has_it(data, tmp_path, monkeypatch):
    seen = {}
    for dtype in (None, torch.bfloat16):
        monkeypatch.setattr(evaluate, "autocast_dtype", lambda device, dtype=dtype: dtype)
        (folder := tmp_path / str(dtype)).mkdir()
        job = trainer(PLAIN.but(epochs=8), data, folder)
        job.model.head.register_forward_hook(
            lambda m, i, out, dtype=dtype: seen.setdefault(dtype, set()).add(out.dtype)
        )
        outcome = job.run()
        assert all(tensor.dtype == torch.float32 for tensor in outcome.state.values())
        assert outcome.history["val_accuracy"][-1] == 1.0 and outcome.test_logits.dtype == torch.float32
    assert seen == {None: {torch.float32}, torch.bfloat16: {torch.bfloat16}}


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [VIT, ORIGINAL], ids=lambda recipe: recipe.name)
def test_a_run_cut_up_by_deadlines_is_the_whole_run(data, tmp_path, recipe):
    (tmp_path / "whole").mkdir()
    (tmp_path / "pieces").mkdir()
    whole = trainer(recipe, data, tmp_path / "whole").run()
    for pieces in range(1000):
        deadline = time.monotonic() + 0.01 * (pieces % 3)
        try:
            outcome = trainer(recipe, data, tmp_path / "pieces", deadline=deadline).run()
            break
        except OutOfTime:
            continue
    assert pieces >= 3
    assert same(whole.state, outcome.state) and torch.equal(whole.test_logits, outcome.test_logits)
    assert whole.history == outcome.history
    assert outcome.timing["train_seconds"] > 0


def test_no_epochs_is_an_untrained_model(data, tmp_path):
    outcome = trainer(PLAIN.but(epochs=0), data, tmp_path).run()
    assert outcome.history == {} and outcome.test_logits.shape == (24, 3)
    assert TINY["d_model"] == outcome.state["head.weight"].shape[1]


def test_images_made_ready_together_are_those_made_ready_one_batch_at_a_time(data, tmp_path):
    recipe = PLAIN.but(augment={"flip": True, "crop": 2, "erase": 0.5}, epochs=2, batch_size=8)
    jobs = [trainer(recipe, data, tmp_path / name) for name in ("one", "three")]
    jobs[1].together = 3  # does not divide the steps of an epoch: the last lot is smaller
    assert jobs[1].steps_per_epoch % 3
    one, three = (job.run() for job in jobs)
    assert one.history == three.history and same(one.state, three.state)


@pytest.mark.parametrize("objective", ["classify", "mae", "dino"])
def test_warming_up_leaves_the_run_as_it_was(data, tmp_path, objective):
    recipe = ORIGINAL if objective == "classify" else PLAIN.but(objective=objective, model=objective)
    cold, warm = (trainer(recipe, data, tmp_path / name) for name in ("cold", "warm"))
    warm.warm_up()
    assert same(cold.run().state, warm.run().state)


@pytest.mark.slow
@pytest.mark.skipif(device._compile_obstacle("cpu") is not None, reason="needs a C++ compiler and Python.h")
def test_a_compiled_model_draws_the_random_numbers_of_the_plain_one():
    """So that the step that broke can be repeated without the compiler, and be the same step."""
    torch.manual_seed(0)
    model = create_model("vit", **TINY, img_size=16, dropout=0.3, attention_dropout=0.2, drop_path=0.5).train()
    images, seen = torch.randn(4, 3, 16, 16), []
    for run in (model, device.compiled(model)):
        torch.manual_seed(1)
        model.zero_grad()
        logits = run(images)
        logits.square().sum().backward()
        seen.append((logits.detach(), model.head.weight.grad.clone()))
    for plain, fast in zip(*seen, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-5)
    torch.manual_seed(2)
    assert not torch.allclose(model(images), seen[0][0], atol=1e-2)  # there are random numbers
