"""What a step minimises: teachers and how they are imitated, pre-training by masks and by crops, and their resumption."""

import math
import time

import pytest
import torch
import torch.nn.functional as F
from toy import PLAIN, TINY, same, toy, trainer

from labreport.analysis.mechanism import restored
from vitlib.augment import EpochDraws
from vitlib.errors import UserError
from vitlib.evaluate import autocast
from vitlib.losses import build_loss
from vitlib.models import MAE, ViT, create_model
from vitlib.models.mae import pick
from vitlib.objectives import Distill, Ensemble, Objective, SelfDistill
from vitlib.recipe import Recipe
from vitlib.state import OutOfTime
from vitlib.store import Store

SMALL = TINY | {"img_size": 16}
TEACHER = PLAIN.but(name="toy-teacher", epochs=1)
CNN = PLAIN.but(
    name="toy-cnn", model="cnn", model_args=dict.fromkeys(PLAIN.model_args) | {"width": 4, "blocks": 1}, epochs=1
)
MASKED = PLAIN.but(
    name="toy-mae", model="mae", objective="mae", epochs=3, augment={"flip": True},
    model_args={"decoder_width": 8, "decoder_layers": 1, "drop_path": 0.1},
)  # fmt: skip
SELF = PLAIN.but(
    name="toy-dino", model="dino", objective="dino", epochs=3, augment={"flip": True, "jitter": 0.2},
    model_args={"prototypes": 16, "hidden": 16, "bottleneck": 8, "small_crops": 2, "small_side": 8, "dropout": 0.1},
)  # fmt: skip
TAUGHT = PLAIN.but(name="toy-taught", teacher=CNN, epochs=3, augment={"mixup": 0.8, "mix_until": 0.7})
TOKEN = TAUGHT.but(name="toy-token", model_args={"distill_token": True}, distill={"kind": "token"})


def logits(count=6, classes=3, seed=0):
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


# --- distillation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_imitation_is_hintons_formula(temperature):
    mine, its = logits(), logits(seed=1)
    p, q = ((x / temperature).softmax(1).double() for x in (its, mine))
    expected = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
    got = Distill(temperature=temperature).imitation(mine, its)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
    assert Distill(temperature=temperature).imitation(its, its).abs() < 1e-6


@pytest.mark.parametrize("kind", ["hard", "token"])
def test_hard_imitation_learns_the_teachers_decision(kind):
    mine, its = logits(), logits(seed=1)
    torch.testing.assert_close(Distill(kind=kind).imitation(mine, its), F.cross_entropy(mine, its.argmax(1)))


@pytest.mark.parametrize("kind", ["soft", "hard", "token"])
def test_the_loss_is_shared_between_labels_and_teacher(kind):
    recipe = (TOKEN if kind == "token" else TAUGHT).but(distill={"kind": kind, "weight": 0.3})
    torch.manual_seed(0)
    model, teacher = create_model("vit", **SMALL, num_classes=3, distill_token=kind == "token"), torch.nn.Flatten()
    teacher = torch.nn.Sequential(teacher, torch.nn.Linear(768, 3)).eval()
    pixels, targets = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    loss, answer = Objective(recipe, model, build_loss("cross_entropy", (2, 2, 2)), teacher)(model, pixels, targets)
    said, taught = model(pixels) if kind == "token" else (model(pixels),) * 2
    expected = 0.7 * F.cross_entropy(said, targets) + 0.3 * Distill(kind=kind).imitation(taught, teacher(pixels))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(answer, (said + taught) / 2)
    torch.testing.assert_close(model.eval()(pixels), (said + taught) / 2)  # what the two heads say together
    assert not answer.requires_grad and all(p.grad is None for p in teacher.parameters())


def test_the_weight_1_leaves_the_labels_out():
    recipe = TAUGHT.but(distill={"weight": 1.0})
    model = torch.nn.Flatten()
    objective = Objective(recipe, model, build_loss("cross_entropy", (2, 2, 2)), lambda pixels: logits())
    losses = [
        objective(lambda _: logits(seed=1), torch.zeros(6), targets)[0] for targets in torch.eye(3).long()[:, [0] * 6]
    ]
    assert losses[0] == losses[1] == losses[2]


def test_an_ensemble_averages_probabilities():
    members = [torch.nn.Linear(4, 3) for _ in range(3)]
    x = torch.randn(5, 4)
    expected = torch.stack([member(x).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(Ensemble(members)(x).exp(), expected)
    torch.testing.assert_close(Ensemble(members[:1])(x), members[0](x).log_softmax(1))


REFUSED = [
    ({"distill": {"tau": 2.0}, "teacher": CNN}, "没有叫 tau 的设定.*temperature"),
    ({"distill": {"kind": "medium"}, "teacher": CNN}, "kind='medium'.*soft"),
    ({"distill": {"weight": 0.0}, "teacher": CNN}, r"weight=0.0.*\(0, 1\]"),
    ({"distill": {"temperature": 0}, "teacher": CNN}, "temperature=0.0"),
    ({"distill": {"seeds": 1.5}, "teacher": CNN}, "seeds=1.5"),
    ({"distill": {"weight": 0.5}}, "却没有教师"),
    ({"distill": {"kind": "token"}, "teacher": CNN}, "distill_token=True"),
    ({"model_args": {"distill_token": True}, "teacher": CNN}, "kind='token'"),
    ({"distill": {"tokens": -1}, "teacher": CNN}, "tokens=-1.0"),
    ({"distill": {"tokens": 0.5}, "teacher": CNN}, "dynamic_vit"),
    ({"model": "dynamic_vit", "model_args": {"d_model": 32}, "distill": {"tokens": 1}, "teacher": TAUGHT}, "结构相同"),
    ({"model": "dynamic_vit", "distill": {"tokens": 1, "seeds": 2}, "teacher": Recipe()}, "单独一个"),
    ({"teacher": CNN.but(protocol="refit")}, "验证集.*toy-cnn"),
    ({"teacher": CNN.but(normalize="none")}, "normalize"),
    ({"teacher": MASKED}, "须都是分类模型"),
    ({"model": "mae"}, "模型 mae 与目标 classify 不配"),
    ({"objective": "dino"}, "模型 vit 与目标 dino 不配"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_does_not_go_together_is_refused_when_the_recipe_is_made(fields, words):
    with pytest.raises(UserError, match=words):
        Recipe(**fields)


def test_defaults_stay_out_of_the_key_of_a_distillation():
    plain, written = TAUGHT, TAUGHT.but(distill={"kind": "soft", "weight": 0.5, "temperature": 1, "seeds": 1})
    assert plain.spec() == written.spec() and "distill" not in plain.spec()
    assert Recipe.from_spec(TOKEN.spec(), "back").spec() == TOKEN.spec()


def test_the_kept_tokens_imitate_the_teachers():
    recipe = Recipe(
        model="dynamic_vit", model_args={**SMALL, "keep_ratio": 0.5, "registers": 1},
        teacher=Recipe(model_args={**SMALL, "registers": 1}),
        distill={"tokens": 0.5, "temperature": 2.0},
    )  # fmt: skip
    torch.manual_seed(0)
    shape = {**SMALL, "num_classes": 3, "registers": 1, "num_layers": 2}
    student, teacher = create_model("dynamic_vit", **shape, keep_ratio=0.5), create_model("vit", **shape).eval()
    pixels, targets = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    objective = Objective(recipe, student, build_loss("cross_entropy", (2, 2, 2)), Ensemble([teacher]))
    torch.manual_seed(1)
    loss, _ = objective(student, pixels, targets)
    torch.manual_seed(1)  # the same patches are drawn
    with autocast(pixels.device):  # as teachers run
        theirs, answers = teacher.encode(teacher.embed(pixels)).float(), teacher(pixels).float()
    said = student(pixels)
    tokens, weight = (values[:, 1:] for values in student.encoded)
    kept = weight.bool()
    assert 0 < kept.float().mean() < 1
    gap = ((tokens - theirs[:, 1:]) ** 2).mean(2)[kept].mean()
    imitation = Distill(temperature=2.0).imitation(said, answers)
    expected = (F.cross_entropy(said, targets) + imitation) / 2 + 0.5 * gap + student.auxiliary_loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in student.parameters()) and all(p.grad is None for p in teacher.parameters())


def test_a_run_that_imitates_tokens_trains_through_the_store(tmp_path):
    base = PLAIN.but(name="toy-base", epochs=1, model_args={"num_layers": 2})
    pupil = base.but(
        name="toy-tokens", model="dynamic_vit", model_args={"keep_ratio": 0.5}, init_from=base, transfer="all",
        teacher=base, distill={"tokens": 0.5},
    )  # fmt: skip
    store, data = Store(tmp_path, tmp_path / "published"), toy(train=24)
    runs = [store.get(recipe, 0, data, show=False) for recipe in (pupil, pupil.but(distill={"tokens": None}))]
    assert not same(*(run.load_state() for run in runs))


def test_tokens_that_are_the_teachers_have_no_gap():
    student = create_model("dynamic_vit", **SMALL, keep_ratio=1.0).train()
    pixels = torch.randn(2, 3, 16, 16)
    student(pixels)
    assert student.gap(student.encode(student.embed(pixels))) == 0


def test_an_ensemble_teaches_with_the_runs_of_several_seeds(tmp_path):
    store, data = Store(tmp_path, tmp_path / "published"), toy(train=24)
    recipe = TAUGHT.but(epochs=1, teacher=TEACHER, distill={"seeds": 2})
    run = store.get(recipe, 3, data, show=False)
    assert [(r.name, r.seed) for r in store.all()] == [("toy-taught", 3), ("toy-teacher", 3), ("toy-teacher", 4)]
    alone = store.get(recipe.but(distill={"seeds": None}), 3, data, show=False)
    assert not same(run.load_state(), alone.load_state())


# --- the masked autoencoder -----------------------------------------------------------------------


def mae(**arguments):
    torch.manual_seed(0)
    return create_model("mae", **SMALL | {"decoder_width": 8, "decoder_layers": 1} | arguments).eval()


def test_the_encoder_sees_the_visible_patches_only():
    model, images = mae(mask_ratio=0.75), torch.rand(5, 3, 16, 16) * 2 - 1
    torch.manual_seed(1)
    tokens, order, hidden = model.forward_encoder(images)
    assert tokens.shape == (5, 4, 16) and hidden.sum(1).tolist() == [12.0] * 5
    noise = torch.rand(images.shape) * hidden.view(5, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.manual_seed(1)
    assert torch.equal(model.forward_encoder(images + noise)[0], tokens)  # what is masked cannot be told
    whole = model.embed(images)  # and the rest is what ViT's encoder makes of these tokens
    vit = ViT(**SMALL).eval()
    vit.load_encoder(model.state_dict())
    torch.testing.assert_close(vit.encode(pick(whole, order[:, :4])), tokens)
    torch.testing.assert_close(vit.embed(images), whole)


@pytest.mark.parametrize("arguments", [{}, {"pool": "cls", "registers": 1}, {"stem": "conv"}, {"stem": "shifted"}])
def test_with_nothing_masked_the_encoder_is_the_vits(arguments):
    model, images = mae(mask_ratio=0.0, **arguments), torch.randn(2, 3, 16, 16)
    tokens, order, hidden = model.forward_encoder(images)
    vit = create_model("vit", **SMALL, **arguments).eval()
    vit.load_encoder(model.state_dict())
    prefix = model.num_prefix_tokens
    back = torch.cat([tokens[:, :prefix], pick(tokens[:, prefix:], order.argsort(1))], dim=1)
    torch.testing.assert_close(back, vit.encode(vit.embed(images)))
    assert hidden.sum() == 0 and model.loss(model(images)[0], hidden, images) == 0


def test_the_loss_looks_at_masked_patches_and_forgets_their_brightness():
    model, images = mae(), torch.randn(2, 3, 16, 16)
    predicted, hidden = model(images)
    loss = model.loss(predicted, hidden, images)
    seen = (1 - hidden)[:, :, None]
    torch.testing.assert_close(model.loss(predicted + 9 * seen, hidden, images), loss)
    torch.testing.assert_close(model.loss(predicted, hidden, images * 3 + 1), loss, atol=1e-4, rtol=1e-4)
    patches = model.patches(images)
    perfect = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()
    assert model.loss(perfect, hidden, images) < 1e-12
    torch.testing.assert_close(loss, ((predicted - perfect) ** 2).mean(2)[hidden.bool()].mean())


def test_a_reconstruction_keeps_what_was_seen_and_depends_on_its_seed_alone():
    model, images = mae(), torch.rand(2, 3, 16, 16) * 2 - 1
    before = torch.get_rng_state()
    masked, whole = restored(model, images, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert masked.shape == whole.shape == images.shape
    grey = masked == 0
    assert grey.float().mean() == 0.75 and torch.equal(masked[~grey], images[~grey])
    torch.testing.assert_close(whole[~grey], images[~grey])
    assert torch.equal(restored(model, images, 1)[1], whole)
    assert not torch.equal(restored(model, images, 2)[0], masked)


def test_masked_pictures_are_learned():
    coarse = torch.rand(16, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(coarse, size=(16, 16), mode="bicubic") * 2 - 1
    model = mae(d_model=32, decoder_width=32, mask_ratio=0.5).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(240):
        predicted, hidden = model(images)
        losses.append(model.loss(predicted, hidden, images))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


@pytest.mark.parametrize("before", [MASKED, SELF], ids=lambda recipe: recipe.name)
def test_pre_training_hands_its_encoder_over(before, tmp_path):
    store, data, before = Store(tmp_path, tmp_path / "published"), toy(train=24), before.but(epochs=1)
    run = store.get(PLAIN.but(name="tuned", init_from=before, epochs=0), 0, data, show=False)
    start, end = store.find(before, 0, data), run.load_state()
    learned = start.load_state()
    handed = [f"teacher.{name}" if f"teacher.{name}" in learned else name for name in end]  # of DINO the teacher
    assert any(name.startswith("teacher") for name in handed) == (before.objective == "dino")
    pairs = zip(end, handed, strict=True)
    assert all(torch.equal(end[name], learned[its]) for name, its in pairs if not name.startswith("head"))
    assert math.isnan(start.accuracy) and [*start.history] == [
        "epoch",
        "train_loss",
    ]  # and nothing was told of the labels


def test_the_parts_that_only_pre_train_are_not_handed_over():
    assert isinstance(mae(), MAE)
    names = {name.split(".")[0] for name in mae().state_dict()} - {
        name.split(".")[0] for name in ViT(**SMALL).state_dict()
    }
    assert names == {"decoder"}


# --- DINO -----------------------------------------------------------------------------------------


def test_dinos_cosines_are_not_rounded_before_the_temperature_enlarges_them():
    projector = dino().projector
    with torch.autocast("cpu", torch.bfloat16):
        cosines = projector(torch.randn(4, projector.layers[0].in_features))
    assert cosines.dtype == torch.float32
    assert not torch.equal(cosines, cosines.bfloat16().float())


def dino(**arguments):
    torch.manual_seed(0)
    return create_model("dino", **SMALL | SELF.model_args | {"dropout": 0.0} | arguments)


def views(model, images, seed=0):
    draws = EpochDraws(seed, 0, torch.zeros(len(images), dtype=torch.long), 1)
    job = type("Job", (), {"augment": {"flip": True}, "distill": {}, "normalize": "half", "epochs": 1})
    return SelfDistill(job, model, None).views(images, draws, slice(None))


def test_views_differ_and_are_functions_of_seed_and_epoch():
    model, images = dino(), torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    shown, again, other = views(model, images), views(model, images), views(model, images, seed=1)
    assert [tuple(view.shape[1:]) for view in shown] == [(3, 16, 16)] * 2 + [(3, 8, 8)] * 2
    assert all(torch.equal(one, two) for one, two in zip(shown, again, strict=True))
    assert not torch.equal(shown[0], shown[1]) and not torch.equal(shown[2], shown[3])
    assert not torch.equal(shown[0], other[0])


def test_the_loss_is_the_cross_entropy_of_every_pair_of_different_views():
    model, images = dino(), torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    model.projector.center.normal_()
    shown = views(model, images)
    loss, mean = model.loss(*model(shown))
    student = [model.say(view) for view in shown]
    teacher = [model.teacher.say(view) for view in shown[:2]]
    terms = []
    for t in range(2):
        for s in range(4):
            if s != t:
                target = ((teacher[t] - model.projector.center) / 0.04).softmax(1)
                terms.append(F.cross_entropy(student[s] / 0.1, target))
    torch.testing.assert_close(loss, torch.stack(terms).mean(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean, torch.cat(teacher).mean(0), atol=1e-5, rtol=1e-4)
    loss.backward()
    assert all(p.grad is None for p in model.teacher.parameters())


def test_the_teacher_follows_its_pupil_and_stands_still_at_the_end():
    model = dino(momentum=0.9, center_momentum=0.8)
    names = [name for name, _ in model.teacher.named_parameters()]
    assert all(torch.equal(model.teacher.state_dict()[name], model.state_dict()[name]) for name in names)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("teacher"):
                parameter.add_(1.0)
    old = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    model.follow(torch.ones(16), 0.0)
    for name in names:
        torch.testing.assert_close(model.teacher.state_dict()[name], old[name] + 0.1)
    torch.testing.assert_close(model.projector.center, torch.full((16,), 0.2))
    assert [model.momentum_at(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.95, 1.0])
    assert not model.train().teacher.training and model.training


# --- resumption -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [MASKED, SELF, TAUGHT, TOKEN, CNN.but(epochs=3)], ids=lambda recipe: recipe.name)
def test_a_run_cut_into_pieces_is_the_whole_run(recipe, tmp_path):
    data = toy(train=27)  # 3 steps an epoch
    teacher = None
    if recipe.teacher:
        torch.manual_seed(0)
        teacher = create_model("cnn", num_classes=3, width=4, blocks=1).eval()
    for part in ("whole", "pieces"):
        (tmp_path / part).mkdir()
    whole = trainer(recipe, data, tmp_path / "whole", teacher=teacher).run()
    while True:
        try:
            job = trainer(recipe, data, tmp_path / "pieces", teacher=teacher, deadline=time.monotonic())
            outcome = job.run()  # one step, then the time is up
            break
        except OutOfTime:
            continue
    assert same(outcome.state, whole.state) and outcome.history == whole.history
    assert whole.failed is None and all(map(math.isfinite, whole.history["train_loss"]))


# --- the CNN --------------------------------------------------------------------------------------


def test_the_cnn_is_a_wide_residual_network():
    model = create_model("cnn").eval()
    assert sum(p.numel() for p in model.parameters()) == 2_748_890  # WRN-16-4 of the paper's table: 2.7 M
    images = torch.randn(2, 3, 32, 32)
    x = model.stem(images)
    for layer in model.layers:
        active = F.relu(layer.norm1(x))
        inner = layer.conv2(F.relu(layer.norm2(layer.conv1(active))))
        x = inner + (F.conv2d(active, layer.shortcut.weight, stride=layer.stride) if layer.shortcut else x)
    assert x.shape == (2, 256, 8, 8)
    torch.testing.assert_close(model(images), model.head(F.relu(model.norm(x)).mean((2, 3))), atol=1e-4, rtol=1e-4)
