"""What 2.3 says about its runs: settings grouped by the knob that differs, conclusions, memory, the printed numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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

BASELINE = "（基线）"  # ends the baseline's label in each family


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
            _labelled(names, value) + BASELINE * (value == standard): by_value[value]
            for value in (sorted(by_value) if numeric else by_value)
        }
    return out


def by_knob(runs: "Family", baseline: str) -> "dict[str, Sequence[Run]]":
    """Return the runs in the order of tables: the baseline, its settings by knob and value, then the rest as they come."""
    labels = {id(group): label for label, group in runs.items()}
    known = {baseline: runs[baseline]} if baseline in runs else {}
    for family in families(runs, baseline).values():
        known |= {labels[id(group)]: group for group in family.values()}
    return {**known, **runs}


WIDTHS = ("d_model", "ffn_hidden_channels")


def titled(names: Sequence[str]) -> str:
    """Return how readers know the arguments that change together."""
    return knobs.COUPLED if tuple(names) == WIDTHS else "、".join(knobs.KNOBS.get(n, (n,))[0] for n in names)


def value_text(title: str, run: "Run") -> str:
    """Return a run's value of the knob with this title, short enough to stand beside a point."""
    own = _arguments(run)
    names = WIDTHS[:1] if title == knobs.COUPLED else [n for n in own if titled([n]) in title.split("、")]
    return "、".join(str(knobs.WORDS.get(str(own[name]), own[name])) for name in names)


def _labelled(names: tuple[str, ...], values: tuple[Any, ...]) -> str:
    return f"{knobs.COUPLED}{values[0]}" if names == WIDTHS else "、".join(map(knobs.told, names, values))


class Verdicts:
    """The comparisons of a section: a pair of settings is judged once, and told with that verdict ever after.

    Each call is a family of its own under Holm's correction, less the pairs that an earlier call has judged.
    """

    def __init__(self) -> None:
        self._judged: dict[tuple[tuple[int, ...], ...], tuple[stats.Comparison, tuple[Sequence[Run], ...]]] = {}

    def judge(self, pairs: "Sequence[tuple[tuple[str, str], Sequence[Run], Sequence[Run]]]") -> list[stats.Comparison]:
        """Compare the runs of each pair, first minus second, under the pair's names."""
        keys = [tuple(tuple(map(id, runs)) for runs in two) for _, *two in pairs]
        new = [i for i, key in enumerate(keys) if not {key, key[::-1]} & self._judged.keys()]
        tests = [
            stats.compare([run.correct for run in first], [run.correct for run in second], names)
            for names, first, second in (pairs[i] for i in new)
        ]
        # the runs are kept as well: the id of a run that is gone may be another's
        self._judged |= {keys[i]: (test, pairs[i][1:]) for i, test in zip(new, stats.corrected(tests), strict=True)}
        return [
            replace(self._judged[key][0] if key in self._judged else _turned(self._judged[key[::-1]][0]), names=names)
            for key, (names, *_) in zip(keys, pairs, strict=True)
        ]

    def against_baseline(self, family: "Family") -> dict[str, stats.Comparison]:
        """Compare each setting of a knob that finished with the baseline; none where that has not."""
        usable = _finished(family)
        base = next((label for label in usable if label.endswith(BASELINE)), None)
        others = [label for label in usable if base and label != base]
        tests = self.judge([((label, base), usable[label], usable[base]) for label in others if base])
        return dict(zip(others, tests, strict=True))


def _turned(test: stats.Comparison) -> stats.Comparison:
    return replace(test, seeds=test.seeds[::-1], difference=-test.difference, low=-test.high, high=-test.low)


def conclude(title: str, family: "Family", verdicts: Verdicts) -> str:
    """Return what the runs allow one to say about a knob, as Chinese prose.

    The setting that the validation accuracy at the end would choose is named. Every setting is compared on the test
    images with the baseline only, with the section's verdicts. The cheapest of those not shown to be worse is named,
    and whether it has been shown to be equivalent. Settings with too few seeds are not judged, only told; with too few
    everywhere nothing can be shown, and none is named as cheapest.
    """
    usable = _finished(family)
    said = f"**{title}**　"
    if gone := [label for label in family if label not in usable]:
        said += f"{'、'.join(gone)}有训练中止的运行，不参与比较。"
    if len(usable) < 2:
        return stats.spaced(f"{said}没有两个可以比较的取值。")
    chosen = _with_enough_seeds(usable) or usable
    best = max(chosen, key=lambda label: float(np.mean([run.history["val_accuracy"][-1] for run in chosen[label]])))
    accuracy = stats.summary([run.accuracy for run in usable[best]])
    said += f"按验证准确率选出的是{best}，它的测试准确率是 {accuracy.percent} %。"
    tests = verdicts.against_baseline(family)
    if not tests:
        return stats.spaced(f"{said}没有基线可以比较。")
    base = next(iter(tests.values())).names[1]
    judged = {label: test for label, test in tests.items() if min(test.seeds) >= stats.FEWEST_SEEDS}
    parts = [
        f"{words}{'、'.join(told)}"
        for verdict, words in VERDICTS.items()
        if (told := [_gap(test) for test in judged.values() if test.verdict == verdict])
    ]
    if few := [_gap(test) for label, test in tests.items() if label not in judged]:
        parts.append(f"种子少于 {stats.FEWEST_SEEDS} 个、不作判断的是{'、'.join(few)}")
    said += f"与{'它' if best == base else base}相比，{'；'.join(parts)}。"
    if not judged:
        seeds = min(map(len, usable.values()))
        return stats.spaced(f"{said}有的取值只有 {seeds} 个种子，高下与够不够用都还不能断定，差值只供参考。")
    flops = {label: runs[0].flops for label, runs in usable.items() if label in judged or label == base}
    standing = {label: test.verdict for label, test in judged.items() if test.verdict != "较低"}
    cheapest = min([base, *standing], key=lambda label: flops[label])
    if len(set(flops.values())) == 1:
        said += "各取值的计算量相同。"
    elif flops[cheapest] < flops[base]:
        share = f"计算量是基线的 {100 * flops[cheapest] / flops[base]:.0f} %"
        unproved = "，均值还更高，但校正后不显著" if judged[cheapest].low > 0 else "，但还没有证明它与基线等价"
        known = {"等价": "，而且与基线等价", "较高": "，准确率还更高"}.get(standing[cheapest], unproved)
        said += f"没有被证明比基线更差的取值里，{cheapest}最省，{share}{known}。"
    elif standing:
        said += "没有被证明比基线更差的取值里，没有比基线更省的。"
    return stats.spaced(said)


VERDICTS = {"较低": "显著更低的是", "较高": "显著更高的是", "等价": "等价的是", "证据不足": "分不出高下的是"}


def chance_of_lead(lead: float, deviation: float, settings: int, draws: int = 100_000) -> float:
    """Return how often the best of equally good settings leads the next by ``lead``, in units of ``deviation``'s."""
    ranked = np.sort(np.random.RandomState(0).normal(0, deviation, (draws, settings)), axis=1)
    return float(np.mean(ranked[:, -1] - ranked[:, -2] >= lead))


def answer(families: "Mapping[str, Family]", verdicts: Verdicts) -> list[str]:
    """Return what the knobs are worth and what they cost, as Chinese prose: how their ends compare, and the prices."""
    ends = _ends(families, verdicts)
    if not ends:
        return ["本次没有可以比较的旋钮。"]
    costs = {title: [runs[0].flops for runs in _finished(families[title]).values()] for title in ends}
    ratio = {title: max(flops) / min(flops) for title, flops in costs.items()}
    dear = sorted(costs, key=lambda title: -ratio[title])
    prices = [f"{title}相差 {ratio[title]:.1f} 倍" if ratio[title] > 1.05 else f"{title}几乎不改变它" for title in dear]
    price = stats.spaced(f"代价是确定的：计算量在所试的取值之间，{'，'.join(prices)}。")
    tests = sorted((test for of_one in ends.values() for test in of_one), key=lambda test: -abs(test.difference))
    if not tests:
        return [f"种子少于 {stats.FEWEST_SEEDS} 个，旋钮的好坏不作判断。", price]
    told = [
        f"{words}{'、'.join(same)}"
        for verdict, words in VERDICTS.items()
        if (same := [_gap(test) for test in tests if test.verdict == verdict])
    ]
    silent = "、".join(title for title, of_one in ends.items() if not of_one)
    rest = f"{silent}的种子少于 {stats.FEWEST_SEEDS} 个，不作判断。" * bool(silent)
    return [stats.spaced(f"各旋钮两端的取值与基线相比（p 值经 Holm 校正），{'；'.join(told)}。{rest}"), price]


def brief(families: "Mapping[str, Family]", verdicts: Verdicts, most: int = 2) -> str:
    """Return the answer in one Chinese sentence without a full stop: the ``most`` largest significant differences of
    single knobs' ends from the baseline, and the knobs that show none; nothing where nothing can be compared."""
    ends = {title: tests for title, tests in _ends(families, verdicts).items() if title != knobs.COUPLED}
    clear = [(title, test) for title, tests in ends.items() for test in tests if test.verdict in ("较高", "较低")]
    clear.sort(key=lambda item: -abs(item[1].difference))
    parts = []
    for title, test in clear[:most]:
        span = (-test.high, -test.low) if test.difference < 0 else (test.low, test.high)
        parts.append(
            f"{test.names[0]}比 {test.names[1].removeprefix(title).strip()}{'低' if test.difference < 0 else '高'} "
            f"{stats.points(abs(test.difference))} 个百分点（95 % 区间 [{', '.join(map(stats.points, span))}]），差异显著"
        )
    if len(clear) > most:
        parts.append(f"另有 {len(clear) - most} 个两端的取值与基线差异显著")
    found = {title: {test.verdict for test in tests} for title, tests in ends.items()}
    alike = [title for title, kinds in found.items() if kinds == {"等价"}]
    unseen = [title for title, kinds in found.items() if kinds and title not in alike and not kinds & {"较高", "较低"}]
    parts += [f"{'、'.join(alike)}两端的取值与基线等价"] * bool(alike)
    parts += [f"{'、'.join(unseen)}两端的取值没有看到显著的差别"] * bool(unseen)
    if ends and not parts:
        parts = [f"种子少于 {stats.FEWEST_SEEDS} 个，旋钮的好坏不作判断"]
    return stats.spaced("；".join(parts))


def _ends(families: "Mapping[str, Family]", verdicts: Verdicts) -> dict[str, list[stats.Comparison]]:
    """Compare the ends of each knob that has a baseline with it: chosen by their values, not by their results.

    Settings with too few seeds are no ends; a knob that has no others gets an empty list.
    """
    out = {}
    for title, family in families.items():
        if tests := verdicts.against_baseline(family):
            enough = [label for label, runs in _finished(family).items() if len(runs) >= stats.FEWEST_SEEDS]
            judged = [tests[label] for label in dict.fromkeys((*enough[:1], *enough[-1:])) if label in tests]
            out[title] = [test for test in judged if min(test.seeds) >= stats.FEWEST_SEEDS]
    return out


def steps(family: "Family", verdicts: Verdicts) -> list[stats.Comparison]:
    """Compare each setting with the one before it: what a monotone claim such as "wider is better" needs."""
    usable = _finished(family)
    return verdicts.judge([((b, a), usable[b], usable[a]) for a, b in pairwise(usable)])


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


def _gap(test: stats.Comparison) -> str:
    points = 100 * test.difference
    much = (
        f"{'低' if points < 0 else '高'} {abs(points):.1f} 个百分点"
        if abs(points) >= 0.05
        else "相差不到 0.05 个百分点"
    )
    return f"{test.names[0]}（{much}）"
