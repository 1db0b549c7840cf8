"""What lightening costs and gains: answers of variants on images, and the verdict on a loss of accuracy."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from labreport.analysis.shapley import contrast as paired
from labreport.stats import FEWEST_SEEDS, Comparison, compare, corrected, points, spaced
from vitlib.data import LabeledImages
from vitlib.evaluate import predict
from vitlib.light.export import CPU
from vitlib.plans import Entry
from vitlib.record import Run

LOSS, WORST = 0.003, 0.010  # the mean loss of accuracy and its upper bound that count as "no clear loss"
KEEPS, LOSES, OPEN, FEW, FALLEN = "达标", "有损失", "未能证明", "证据不足", "已退化"
OUTCOMES = {
    KEEPS: "达标",
    LOSES: "准确率有损失（差异显著）",
    OPEN: "未能证明没有明显的损失（差异不显著）",
    FEW: f"种子少于 {FEWEST_SEEDS} 个、证据不足",
    FALLEN: "有的种子已退化、不下结论",  # not of keeps_accuracy: who asks it sees to that
}
JUDGED = {  # the same of one method, as the predicate of a sentence
    KEEPS: "准确率没有明显的损失",
    LOSES: "准确率有损失",
    OPEN: "未能证明准确率没有明显的损失",
    FEW: "因种子太少而不判断准确率",
    FALLEN: "因有的种子已退化而不判断准确率",
}


def correct(model: nn.Module | Callable[[Tensor], Tensor], images: LabeledImages, normalize: str) -> np.ndarray:
    """Return whether each image is classified rightly, bool (N,), in float32 on the CPU."""
    logits = predict(model, images.images, device=CPU, normalize=normalize, precision="float32")
    return (logits.argmax(1) == images.labels).numpy()


def keeps_accuracy(comparison: Comparison) -> str:
    """Judge a light model minus its base by the loss of accuracy, as one of OUTCOMES.

    达标: the mean loss is at most ``LOSS`` and its bound at most ``WORST``. What fails is 有损失 only where the loss is
    significant, by Holm's p in a table; else nothing is shown, though the mean may be too large.
    """
    if min(comparison.seeds) < FEWEST_SEEDS:
        return FEW
    if -comparison.difference <= LOSS and -comparison.low <= WORST:
        return KEEPS
    return LOSES if comparison.difference < 0 and comparison.p < comparison.alpha else OPEN


def variants(answers: Mapping[str, Sequence[np.ndarray]], base: str) -> list[Comparison]:
    """Compare variants of the very same trained networks with ``base``, in order and with the names of
    :func:`labreport.stats.compare_table`.

    ``answers`` hold a bool array (images,) per seed. A seed's variants share its weights, so its luck cancels: seeds
    are paired here, where ``compare_table`` takes them for independent trainings.
    """
    tables = {name: np.array(seeds, dtype=float) for name, seeds in answers.items()}
    rows = [paired(table - tables[base], (name, base)) for name, table in tables.items() if name != base]
    return corrected(rows)


def onward(runs: Sequence[Run], base: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return each run with the one of ``base`` that it set out from; nothing unless all of them did."""
    before = {run.key: run for run in base}
    keys = [(start := run.recipe.init_from) and start.key(run.seed, run.data["fingerprint"]) for run in runs]
    return [(run, before[key]) for run, key in zip(runs, keys, strict=True)] if {*keys} <= before.keys() else []


def versus(table: Mapping[str, Sequence[Run]], base: str) -> list[Comparison]:
    """Compare recipes with ``base``, in order: those whose runs set out from its runs seed by seed, as :func:`variants`
    does, others as independent trainings.
    """
    rows = []
    for label, runs in table.items():
        if pairs := onward(runs, table[base]):
            change = np.array([run.correct.astype(float) - start.correct for run, start in pairs])
            rows.append(paired(change, (label, base)))
        elif label != base:
            rows.append(compare([run.correct for run in runs], [run.correct for run in table[base]], (label, base)))
    return corrected(rows)


def told_outcomes(judged: Mapping[str, str]) -> str:
    """Return one sentence for each outcome that methods (the keys) have."""
    said = ""
    for outcome, words in OUTCOMES.items():
        if names := [name for name, found in judged.items() if found == outcome]:
            said += f"{words}的有：{'、'.join(names)}。"
    return said


def told_each(words: Sequence[str]) -> str:
    """Say something of each of the things just named: once where it is the same of all."""
    if len(set(words)) == 1:
        return "都" * (len(words) > 1) + words[0]
    return f"前者{words[0]}，后者{words[1]}" if len(words) == 2 else f"依次是{'、'.join(words)}"


def told_duels(rows: Sequence[Comparison]) -> str:
    """Tell of each methods' comparison with a smaller model who was significantly better, and the range of the others."""
    by = {verdict: [row for row in rows if row.verdict == verdict] for verdict in ("较高", "较低")}
    said = [
        f"{words}的有 {len(found)} 对："
        + "、".join(f"{x.names[0]}（对{x.names[1]}，{points(x.difference, sign=True)} 个百分点）" for x in found)
        for words, found in zip(("显著更准", "显著更差"), by.values(), strict=True)
        if found
    ]
    if rest := sorted(row.difference for row in rows if row.verdict not in by):
        ends = list(dict.fromkeys(points(end, sign=True) for end in (rest[0], rest[-1])))
        span = f"分不出高下（差{'从' if len(ends) > 1 else '是'} {' 到 '.join(ends)} 个百分点）"
        said.append(f"其余 {len(rest)} 对{span}")
        if not said[:-1]:
            return spaced(f"{len(rows)} 对{'都' * (len(rows) > 1)}{span}。")
    return spaced(f"{len(rows)} 对里，{'；'.join(said)}。")


def unchanged(judged: Mapping[str, str]) -> str:
    """Judge the claim that accuracy is kept by all methods (the keys): one loss refutes it."""
    found = set(judged.values())
    return "不成立" if LOSES in found else "成立" if found == {KEEPS} else "证据不足"


def cut_short(runs: Mapping[str, Sequence[Run]], entries: Sequence[Entry]) -> tuple[list[str], list[str]]:
    """Return what a section's runs lack: labels trained for fewer epochs than their recipes say, with both numbers,
    and labels without any run."""
    short = []
    for entry in entries:
        epochs = min((run.epochs for run in runs.get(entry.label, [])), default=entry.recipe.epochs)
        if epochs < entry.recipe.epochs:
            short.append(f"{entry.label}（{epochs} 轮，配方是 {entry.recipe.epochs} 轮）")
    return short, [entry.label for entry in entries if not runs.get(entry.label)]


def trained_on(groups: Mapping[str, Sequence[Run]]) -> tuple[dict[str, str], str]:
    """Return letters of the processors, with number format and threads, that trained each label's runs, such as ``A、B``,
    and the words that say what the letters stand for."""
    places = {
        label: [f"{run.device}、{run.machine['dtype']}、{run.machine['threads']} 个线程" for run in runs]
        for label, runs in groups.items()
    }
    letters = {place: chr(ord("A") + i) for i, place in enumerate(dict.fromkeys(chain(*places.values())))}
    marks = {label: "、".join(sorted({letters[place] for place in each})) for label, each in places.items()}
    return marks, "，".join(f"{letter} 是 {place}" for place, letter in letters.items())


def told_behind(cases: Mapping[str, Sequence[tuple[float, float, float]]]) -> str:
    """Tell whether saved operations became time: by circumstance, each model's share of its base's operations and the
    interval (low, high) of its share of the time, NaN where there is none."""
    said, lost = [], []
    for how, rows in cases.items():
        behind = sum(share < low for share, low, _ in rows)
        ahead = sum(share > high for share, _, high in rows)
        lost += [how] * (behind > 0)
        if behind == len(rows):
            words = f"{len(rows)} 个全都如此" if len(rows) > 1 else "的确如此"
        elif not behind and not ahead:
            words = "一个也不能断定（计算量的比例在延迟的区间之内，或者没有区间）"
        else:
            counts = {"个如此": behind, "个相反，延迟减少得更多": ahead, "个不能断定": len(rows) - behind - ahead}
            words = "，".join(f"{count} {kind}" for kind, count in counts.items() if count)
        said.append(f"{how} 时，{words}")
    return "；".join(said) + (f"。可见{'与'.join(lost)} 时，省下的运算没有全部变成时间。" if lost else "。")


def flops_together(model: nn.Module, images: Tensor) -> float:
    """Return the FLOPs an image that a batch (B, C, S, S) really takes, where the busiest image sets the pace."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() / len(images)


def contrast(images: Tensor, shares: Tensor, patch: int) -> float:
    """Return the deviation of brightness within patches, weighted by their shares, over its plain mean.

    uint8 images (N, C, S, S), shares (N, patches) row by row; above 1 where patches with detail have larger shares.
    """
    patches = images.float().mean(1).unfold(1, patch, patch).unfold(2, patch, patch)
    detail = patches.flatten(1, 2).std(dim=(-1, -2))
    return float(((detail * shares).sum(1) / shares.sum(1) / detail.mean(1)).mean())


def smaller_pictures(model: nn.Module, side: int) -> Callable[[Tensor], Tensor]:
    """Return the model on pictures shrunk to ``side``: fewer tokens, their positions interpolated."""
    return lambda images: model(F.interpolate(images, size=(side, side), mode="bilinear", antialias=True))
