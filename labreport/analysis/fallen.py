"""Runs that have collapsed, and the table of comparisons that draws no conclusion from them."""

from collections.abc import Sequence

import pandas as pd

from labreport import stats
from labreport.metrics import Collapse, collapse
from vitlib.record import Run

NO_VERDICT = "—（已退化）"  # to differ from a run that learned nothing says nothing of a recipe


def fallen(group: Sequence[Run]) -> list[tuple[Run, Collapse]]:
    """Return the collapsed of a recipe's runs, each with what it gives as its answer."""
    return [(run, how) for run in group if (how := collapse(run))]


def frame(found: Sequence[stats.Comparison], sides: Sequence[Sequence[Sequence[Run]]]) -> pd.DataFrame:
    """Return :func:`labreport.stats.frame` with the verdict last, and none where a side holds a collapsed run.

    ``sides``: for each comparison the runs of both of its recipes.
    """
    table = stats.frame(found)
    verdicts = zip(table.pop("结论"), sides, strict=True)
    table["结论"] = [NO_VERDICT if any(map(fallen, pair)) else verdict for verdict, pair in verdicts]
    return table
