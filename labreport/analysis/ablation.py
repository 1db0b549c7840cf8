"""What 2.3 says about its runs: settings grouped by the knob that differs, conclusions, memory, the printed numbers."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from labreport import stats
from vitlib import knobs
from vitlib.models import model_defaults

if TYPE_CHECKING:
    from vitlib.record import Run

    Family = Mapping[str, Sequence[Run]]

# Test accuracy in percent that the original report's plots show (mean of the last tenth of the epochs), read off to
# ± READ_ERROR. The recipe behind "improved", width 256 and 4 heads is one and the same.
READ_ERROR = 0.3
PRINTED: dict[str, dict[int, float]] = {
    "patch_size": {4: 65.5, 8: 65.1, 16: 10.0},
    "d_model": {64: 63.3, 128: 67.5, 256: 69.1, 512: 72.3},
    "num_heads": {2: 65.8, 4: 69.1, 8: 69.4, 16: 66.7},
}


def families(runs: "Family", baseline: str = "现代 ViT") -> "dict[str, Family]":
    """Group runs by the arguments of the model in which they differ from ``baseline``: one, or several that go together.

    Returns, by the knob's name for readers, its settings in the order of their values, the baseline among them.
    Without the baseline there is none.
    """
    if baseline not in runs:
        return {}
    base = _arguments(runs[baseline][0])
    found: dict[tuple[str, ...], dict[tuple[Any, ...], Sequence[Run]]] = {}
    for group in runs.values():
        own = _arguments(group[0])
        changed = tuple(name for name in base if name in own and own[name] != base[name])
        if group[0].recipe.model == runs[baseline][0].recipe.model and changed:
            found.setdefault(changed, {})[tuple(own[name] for name in changed)] = group
    order = [*knobs.KNOBS]
    out: dict[str, Family] = {}
    # single knobs as the table has them, then what a user added, then several at once
    for names in sorted(found, key=lambda names: (len(names), *((*order, name).index(name) for name in names), names)):
        standard = tuple(base[name] for name in names)
        by_value = found[names] | {standard: runs[baseline]}
        numeric = not any(isinstance(one, str | None) for value in by_value for one in value)
        title = titled(names)
        out[title] = {
            _labelled(names, value) + "（基线）" * (value == standard): by_value[value]
            for value in (sorted(by_value) if numeric else by_value)
        }
    return out


WIDTHS = ("d_model", "ffn_hidden_channels")


def titled(names: Sequence[str]) -> str:
    """Return how readers know the arguments that change together."""
    return knobs.COUPLED if tuple(names) == WIDTHS else "、".join(knobs.KNOBS.get(n, (n,))[0] for n in names)


def value_text(title: str, run: "Run") -> str:
    """Return a run's value of the knob with this title, short enough to stand beside a point."""
    own = _arguments(run)
    names = WIDTHS[:1] if title == knobs.COUPLED else [n for n in own if titled([n]) in title.split("、")]
    return "、".join(str(own[name]) for name in names)


def _labelled(names: tuple[str, ...], values: tuple[Any, ...]) -> str:
    return f"{knobs.COUPLED}{values[0]}" if names == WIDTHS else "、".join(map(knobs.told, names, values))


def conclude(title: str, family: "Family") -> str:
    """Return what the runs allow one to say about a knob, as Chinese prose.

    The setting is chosen by the validation accuracy at the end; only then is it compared with each other one on
    the test images (Holm's correction). The cheapest of those not shown to be worse is named, and whether it has been
    shown to be equivalent. Settings with too few seeds neither are chosen nor judged, only told, where two others have
    enough; with too few everywhere nothing can be shown, and none is named.
    """
    usable = _finished(family)
    said = f"**{title}**　"
    if gone := [label for label in family if label not in usable]:
        said += f"{'、'.join(gone)}有训练中止的运行，不参与比较。"
    if len(usable) < 2:
        return stats.spaced(f"{said}没有两个可以比较的取值。")
    judged = _with_enough_seeds(usable) or usable
    best = max(judged, key=lambda label: float(np.mean([run.history["val_accuracy"][-1] for run in judged[label]])))
    tests = stats.compare_table(_correct(judged), best)
    accuracy = stats.summary([run.accuracy for run in usable[best]])
    said += f"按验证准确率选出的是{best}，它的测试准确率是 {accuracy.percent} %。"
    few = {label: runs for label, runs in usable.items() if len(runs) < stats.FEWEST_SEEDS}
    open_words = f"种子少于 {stats.FEWEST_SEEDS} 个、不作判断的是"
    parts = []
    for verdict, words in VERDICTS.items():
        if told := [_gap(test) for test in tests if test.verdict == verdict]:
            parts.append(f"{open_words if judged is usable and few else words}{'、'.join(told)}")
    said += "；".join(parts) + "。"
    if judged is usable and few:
        seeds = min(map(len, few.values()))
        return stats.spaced(f"{said}有的取值只有 {seeds} 个种子，高下与够不够用都还不能断定，差值只供参考。")
    flops = {label: runs[0].flops for label, runs in judged.items()}
    standing = {test.names[0]: test.verdict for test in tests if test.verdict != "较低"}
    cheapest = min([best, *standing], key=lambda label: flops[label])
    if len(set(flops.values())) == 1:
        said += "各取值的计算量相同。"
    elif flops[cheapest] < flops[best]:
        share = f"计算量是{best}的 {100 * flops[cheapest] / flops[best]:.0f} %"
        known = {"等价": "，而且与它等价", "证据不足": "，但还没有证明它与后者等价"}.get(standing[cheapest], "")
        said += f"没有被证明更差的取值里，{cheapest}最省，{share}{known}。"
    elif standing:
        said += "没有被证明更差的取值里，没有比它更省的。"
    else:
        said += "其余取值都显著更差。"
    if few:
        gaps = [
            _gap(stats.compare(correct, _correct(usable)[best], (label, best)))
            for label, correct in _correct(few).items()
        ]
        said += f"{open_words}{'、'.join(gaps)}。"
    return stats.spaced(said)


VERDICTS = {
    "较低": "显著更低的是",
    "较高": "在测试集上反而显著更高的是",
    "等价": "与它等价的是",
    "证据不足": "与它分不出高下的是",
}


def chance_of_lead(lead: float, deviation: float, settings: int, draws: int = 100_000) -> float:
    """Return how often the best of equally good settings leads the next by ``lead``, in units of ``deviation``'s."""
    ranked = np.sort(np.random.RandomState(0).normal(0, deviation, (draws, settings)), axis=1)
    return float(np.mean(ranked[:, -1] - ranked[:, -2] >= lead))


def answer(families: "Mapping[str, Family]") -> str:
    """Return what the knobs are worth, as one Chinese paragraph: by knob what its two ends differ in, and their cost."""
    usable = {title: ready for title, family in families.items() if len(ready := _finished(family)) > 1}
    if not usable:
        return "本次没有可以比较的旋钮。"
    costs = {title: [runs[0].flops for runs in family.values()] for title, family in usable.items()}
    dear = sorted(costs, key=lambda title: -max(costs[title]) / min(costs[title]))
    ratio = {title: max(flops) / min(flops) for title, flops in costs.items()}
    told = [f"{title}相差 {ratio[title]:.1f} 倍" if ratio[title] > 1.05 else f"{title}几乎不改变它" for title in dear]
    price = f"代价是确定的：计算量在所试的取值之间，{'，'.join(told)}。"
    judged = {title: ready for title, family in usable.items() if (ready := _with_enough_seeds(family))}
    if not judged:
        return stats.spaced(f"种子少于 {stats.FEWEST_SEEDS} 个，旋钮的好坏不作判断；{price}")
    # the two ends of each knob: chosen by their values, not by their results
    ends = [
        stats.compare(correct[last], correct[first], (last, first))
        for correct in map(_correct, judged.values())
        for first, *_, last in [list(correct)]
    ]
    tests = sorted(stats.corrected(ends), key=lambda test: -abs(test.difference))
    words = {"较高": "显著", "较低": "显著", "等价": "视为等价", "证据不足": "证据不足"}
    gains = [
        f"{test.names[0]}与{test.names[1]}相比{_gap(test)[len(test.names[0]) :]}，{words[test.verdict]}"
        for test in tests
    ]
    silent = [title for title in usable if title not in judged]
    rest = f"{'、'.join(silent)}的种子少于 {stats.FEWEST_SEEDS} 个，不作判断。" if silent else ""
    return stats.spaced(f"各旋钮的两端（p 值经 Holm 校正）：{'；'.join(gains)}。{rest}{price}")


def steps(family: "Family") -> list[stats.Comparison]:
    """Compare each setting with the one before it: what a monotone claim such as "wider is better" needs."""
    correct = _correct(_finished(family))
    return [stats.compare(correct[b], correct[a], (b, a)) for a, b in pairwise(correct)]


def training_bytes(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Return what one training step must hold, in bytes of float32: the weights' share, and the activations'.

    The weights' share is 16 bytes a parameter: itself, its gradient and Adam's two moments. The activations are
    what the forward pass on ``images``, float (B, C, S, S), keeps for the backward pass. On torch's meta device
    nothing is computed, so that models that fit nowhere can be counted.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)  # alive until all is counted: a storage freed would lend its address
    del output
    return 16 * sum(parameter.numel() for parameter in model.parameters()), sum(kept.values())


def _arguments(run: "Run") -> dict[str, Any]:
    return {**model_defaults(run.recipe.model), **run.recipe.model_args}


def _finished(family: "Family") -> "dict[str, Sequence[Run]]":
    return {label: runs for label, runs in family.items() if not any(run.failed for run in runs)}


def _with_enough_seeds(family: "Family") -> "dict[str, Sequence[Run]]":
    """Return the settings that can be judged, where there are at least two of them."""
    enough = {label: runs for label, runs in family.items() if len(runs) >= stats.FEWEST_SEEDS}
    return enough if len(enough) > 1 else {}


def _correct(family: "Family") -> dict[str, list[np.ndarray]]:
    return {label: [run.correct for run in runs] for label, runs in family.items()}


def _gap(test: stats.Comparison) -> str:
    points = 100 * test.difference
    much = (
        f"{'低' if points < 0 else '高'} {abs(points):.1f} 个百分点"
        if abs(points) >= 0.05
        else "相差不到 0.05 个百分点"
    )
    return f"{test.names[0]}（{much}）"
