"""The learning rate as a pure function of the step."""

import math

from vitlib.recipe import Recipe


def learning_rate(step: int, steps: int, steps_per_epoch: int, recipe: Recipe) -> float:
    """Return the learning rate of ``step`` (0-based) of ``steps``.

    ``constant`` is the recipe's rate throughout. ``cosine`` rises linearly over the warm-up epochs
    (at most half of the run) and then falls along half a cosine to 0 (Loshchilov and Hutter, SGDR,
    ICLR 2017, without restarts).
    """
    if recipe.schedule == "constant":
        return recipe.lr
    warmup = min(recipe.warmup_epochs * steps_per_epoch, steps / 2)
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
