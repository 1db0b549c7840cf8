"""Shapley shares: their definition, their interval, and what is left when combinations are missing."""

from itertools import combinations, permutations

import numpy as np
import pytest

from labreport.analysis.shapley import complete, contrast, contributions
from labreport.stats import compare

PLAYERS = ("P", "A", "W", "O")
SUBSETS = [frozenset(chosen) for size in range(5) for chosen in combinations(PLAYERS, size)]


def test_values_are_the_mean_gain_over_all_orders_and_add_up():
    source = np.random.RandomState(0)
    correct = {chosen: source.random_sample((3, 40)) < 0.5 for chosen in SUBSETS}
    shares = {player: table.mean() for player, table in contributions(correct, PLAYERS).items()}
    for player in PLAYERS:
        gains = []
        for order in permutations(PLAYERS):
            before = frozenset(order[: order.index(player)])
            gains.append(correct[before | {player}].mean() - correct[before].mean())
        assert shares[player] == pytest.approx(np.mean(gains))
    whole = correct[frozenset(PLAYERS)].mean() - correct[frozenset()].mean()
    assert sum(shares.values()) == pytest.approx(whole)


def test_a_player_that_changes_nothing_gets_nothing_and_twins_get_the_same():
    base = np.random.RandomState(1).random_sample((3, 50))
    correct = {chosen: base < 0.3 + 0.2 * len(chosen & {"P", "A"}) for chosen in SUBSETS}
    tables = contributions(correct, PLAYERS)
    assert not tables["W"].any() and contrast(tables["W"], ("甲", "乙")).verdict == "等价"
    assert tables["P"].mean() == pytest.approx(tables["A"].mean())


def test_with_one_player_it_is_a_plain_difference():
    source = np.random.RandomState(2)
    correct = {frozenset("W"): source.random_sample((3, 400)) < 0.6, frozenset(): source.random_sample((3, 400)) < 0.5}
    (table,) = contributions(correct, ("W",)).values()
    joint, apart = contrast(table, ("甲", "乙")), compare(*correct.values())
    assert joint.difference == pytest.approx(apart.difference) and joint.seeds == (3, 3)
    assert 0.5 < (joint.high - joint.low) / (apart.high - apart.low) < 2.5


def test_the_interval_covers_the_truth():
    covered = 0
    for trial in range(200):
        source = np.random.RandomState(trial)
        table = source.normal(0.03, 0.3, (3, 1)) * 0.1 + source.normal(0, 0.4, 300) + source.normal(0, 0.4, (3, 300))
        result = contrast(table, ("甲", "乙"))
        covered += result.low <= 0.003 <= result.high
    assert covered >= 186  # of 200; 95 % are 190


def test_one_seed_never_decides():
    result = contrast(np.ones((1, 50)), ("甲", "乙"))
    assert result.verdict == "证据不足" and "证据不足" in result.sentence


def test_the_largest_complete_part_is_found():
    whole = dict.fromkeys(SUBSETS)
    assert complete(whole, PLAYERS) == (PLAYERS, frozenset())
    del whole[frozenset("PO")]
    assert complete(whole, PLAYERS)[0] == ("P", "A", "W")
    quick = dict.fromkeys(map(frozenset, ("", "A", "W", "AW")))
    assert complete(quick, PLAYERS) == (("A", "W"), frozenset())
    background = dict.fromkeys(map(frozenset, ("A", "AW")))
    assert complete(background, PLAYERS) == (("W",), frozenset("A"))
    assert complete({frozenset("P"): None}, PLAYERS) == ((), frozenset())
