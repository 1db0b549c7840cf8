"""Looking into a ViT: each measure on cases whose answer is known."""

import json

import numpy as np
import pytest
import torch

from labreport.analysis.inside import (
    attention_distance,
    cka,
    portrait,
    position_similarity,
    removal,
    rollout,
    token_similarity,
)
from vitlib.augment import to_float
from vitlib.data.sets import ValSet
from vitlib.models import create_model

SMALL = {"d_model": 16, "num_heads": 2, "num_layers": 3, "ffn_hidden_channels": 16, "patch_size": 8}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = create_model("vit", **SMALL, pool="cls").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def images():
    return torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_rollout_multiplies_the_blocks_and_keeps_half_of_each_token():
    still = torch.eye(4).expand(2, 3, 4, 4)  # every token looks at itself
    assert torch.equal(rollout([still, still]), torch.eye(4).expand(2, 4, 4))
    even = torch.full((1, 2, 4, 4), 0.25)
    once = 0.5 * torch.eye(4) + 0.125
    torch.testing.assert_close(rollout([even])[0], once)
    torch.testing.assert_close(rollout([even, even])[0], once @ once)
    # the last block comes first in the product: token 0 looks at 1 in the first block, 2 looks at 0 in the second
    first, second = torch.eye(3).repeat(1, 1, 1, 1), torch.eye(3).repeat(1, 1, 1, 1)
    first[0, 0, 0], second[0, 0, 2] = torch.tensor([0.0, 1, 0]), torch.tensor([1.0, 0, 0])
    torch.testing.assert_close(rollout([first, second])[0, 2], torch.tensor([0.25, 0.25, 0.5]))


def test_distance_of_a_head_is_the_mean_way_to_where_it_looks():
    self_only = torch.eye(5).repeat(1, 1, 1, 1)  # a class token and 2 x 2 patches
    shifted = self_only.clone()
    shifted[0, 0, 1:] = 0
    shifted[0, 0, 1, 2] = shifted[0, 0, 2, 1] = shifted[0, 0, 3, 4] = shifted[0, 0, 4, 3] = (
        1  # its neighbour in the row
    )
    shifted[0, 0, 1:, 0] = 7  # what goes to the class token does not count
    both = torch.cat([self_only, shifted], dim=1)
    torch.testing.assert_close(attention_distance([both, both], 8, prefix=1), torch.tensor([[0.0, 8], [0, 8]]))
    even = torch.ones(1, 1, 4, 4) / 4
    assert attention_distance([even], 4).item() == pytest.approx((0 + 4 + 4 + 4 * 2**0.5) / 4)


def test_cka_is_one_for_turned_and_scaled_layers_and_small_for_unrelated_ones():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 50, 40, 8, generator=generator)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    found = cka([one, 3 * one @ turn + 1, other])
    assert found[0, 1].item() == pytest.approx(1, abs=1e-5) and found.diagonal().tolist() == pytest.approx([1, 1, 1])
    assert found[0, 2] < 0.05
    torch.testing.assert_close(found, found.T)


def test_similarity_of_tokens_and_places():
    tokens = torch.zeros(1, 3, 4)
    tokens[0, 0], tokens[0, 1, 0], tokens[0, 2, 1] = 9, 2, 3  # a class token and two patches at right angles
    same = torch.cat([tokens[:, :1], tokens[:, 1:2], 5 * tokens[:, 1:2]], dim=1)
    torch.testing.assert_close(token_similarity([tokens, same], prefix=1), torch.tensor([0.0, 1.0]))
    found = position_similarity(torch.tensor([[[1.0, 0], [2, 0], [0, 3]]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]))


def test_a_removed_part_is_as_if_it_had_no_weights(model, images):
    labels = model(images).argmax(dim=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = removal(model, images, labels)
    assert found.whole.all() and found.heads.shape == (3, 2, 12) and found.blocks.shape == (3, 12)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(images).argmax(dim=1), labels)  # no hook stays behind
    with torch.no_grad():
        model.blocks[1].attention.proj.weight[:, 8:] = 0  # the second head's part
    assert torch.equal(found.heads[1, 1], model(images).argmax(dim=1) == labels)
    del model.blocks[1]
    assert torch.equal(found.blocks[1], model(images).argmax(dim=1) == labels)
    assert not found.blocks.all()  # the test can tell


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_portrait_holds_arrays_only_and_says_what_its_measures_say(pool):
    torch.manual_seed(0)
    model = create_model("vit", **SMALL, pool=pool).eval()
    source = torch.Generator().manual_seed(2)
    pictures, held = (torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=source) for n in (6, 20))
    validation = ValSet(held, torch.arange(20) % 10)
    right = np.array([False, True, False, True, True, False])
    found = portrait(model, pictures, right, validation, "half")
    json.dumps(found, default=lambda array: array.tolist(), allow_nan=False)
    assert found["images"].tolist() == [1, 3, 4, 0] and found["blocks"] == [0, 1, 2]
    assert found["maps"].shape == (4, 4, 16) and found["places"].shape == (16, 16)
    np.testing.assert_allclose(found["maps"].sum(-1), 1, atol=1e-3 if pool == "mean" else 0.5)
    with torch.no_grad():
        seen = model.features(to_float(pictures, "half"))
    prefix = model.num_prefix_tokens
    assert found["distances"] == pytest.approx(attention_distance(seen.attention, 8, prefix).numpy(), abs=1e-4)
    assert found["cka"] == pytest.approx(cka(seen.tokens).detach().numpy(), abs=1e-4)
    lost = removal(model, to_float(held, "half"), validation.labels)
    assert found["whole"] == pytest.approx(float(lost.whole.float().mean()))
    assert found["heads"] == pytest.approx((lost.whole.float().mean() - lost.heads.float().mean(-1)).numpy(), abs=1e-4)
    norms = np.linalg.norm(found["filters"].reshape(len(found["filters"]), -1), axis=1)
    assert found["filters"].shape == (16, 3, 8, 8) and (np.diff(norms) < 1e-3).all()
    share, numbers, by_chance, deviation = found["components"]
    assert 6 / numbers < share <= 1 and numbers == 16  # sixteen filters span no more
    assert abs(share - by_chance) < 4 * deviation  # initialised at random, hence no more alike than chance
    assert found["heads_error"].shape == (3, 2) and found["parts_error"].shape == (3,)
