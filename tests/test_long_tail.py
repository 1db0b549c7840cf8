"""Cutting any data set to a long tail."""

import numpy as np
import pytest
from toy import toy

from vitlib.data import long_tail
from vitlib.errors import UserError


def test_counts_fall_by_the_factor_in_the_classes_order_and_the_test_set_stays():
    data = toy(train=600, test=30, size=8, classes=3)
    cut = long_tail(data, 10)
    assert cut.class_counts == (200, 63, 20) and cut.test is data.test
    assert long_tail(data, 4, "step").class_counts == (200, 50, 50)
    assert cut.fingerprint == long_tail(data, 10).fingerprint != data.fingerprint
    known = {image.numpy().tobytes() for image in data.train.images}
    assert {image.numpy().tobytes() for image in cut.train.images} <= known
    assert "玩具数据" in cut.provenance and "不平衡因子 10 " in cut.provenance


def test_an_uneven_set_gives_what_it_can_and_never_an_empty_class():
    data = toy(train=300, test=30, size=8, classes=3)
    uneven = long_tail(data, 4, "step")  # 100, 25, 25
    cut = long_tail(uneven, 100)
    assert np.all(np.array(cut.class_counts) <= uneven.class_counts) and cut.class_counts == (100, 10, 1)
    assert long_tail(cut, 1000).class_counts[-1] == 1


def test_a_bad_factor_is_refused():
    for arguments in ((0.5,), (float("inf"),), (float("nan"),), (10, "linear")):
        with pytest.raises(UserError, match="不平衡"):
            long_tail(toy(), *arguments)
