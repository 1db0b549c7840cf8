"""How much each of several remedies contributes, from the runs with all their combinations.

Shapley's value of player i among n is the mean, over all orders in which the players may join, of the gain in
accuracy when i joins:

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! * (v(S + i) - v(S)).

The values add up to v(all) - v(none). They are linear in the accuracies, so for every seed and every test image
there is one number whose mean is phi_i; ``contrast`` makes an interval of such a table. Seeds are joint here:
the combinations of one seed share their pre-training and are combined before the seeds are compared.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from labreport.stats import Comparison, weigh

Combination = frozenset[str]


def complete(have: Mapping[Combination, object], players: Sequence[str]) -> tuple[tuple[str, ...], Combination]:
    """Return the most players of whom all combinations are there, and the players that are always on with them.

    Without any the players are (): nothing can be shared out.
    """
    for size in range(len(players), 0, -1):
        for chosen in combinations(players, size):
            rest = [player for player in players if player not in chosen]
            for always in (frozenset(on) for n in range(len(rest) + 1) for on in combinations(rest, n)):
                if all(frozenset(on) | always in have for n in range(size + 1) for on in combinations(chosen, n)):
                    return chosen, always
    return (), frozenset()


def contributions(
    correct: Mapping[Combination, np.ndarray], players: Sequence[str], always: Combination = frozenset()
) -> dict[str, np.ndarray]:
    """Return each player's table (seeds, images) whose mean is its Shapley value.

    ``correct``: bool (seeds, images) by combination, the same seeds and images in the same order everywhere.
    """
    n = len(players)
    out = {}
    for player in players:
        others = [other for other in players if other != player]
        table = np.zeros(next(iter(correct.values())).shape)
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for joined in combinations(others, size):
                before = always | frozenset(joined)
                table += weight * (correct[before | {player}].astype(float) - correct[before].astype(float))
        out[player] = table
    return out


def contrast(table: np.ndarray, names: tuple[str, str], margin: float = 0.01, alpha: float = 0.05) -> Comparison:
    """Judge whether the mean of a table (seeds, images) of differences, a - b, is zero; seeds are paired."""
    return weigh([table], table.mean(axis=0), names, margin, alpha, not table.any())
