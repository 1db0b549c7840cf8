"""What 2.3 says about its curves: how the values of a knob end, how fast they get there, and who still improves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from labreport import metrics, stats
from labreport.analysis.ablation import BASELINE, value_text
from vitlib.data.sets import held_out

if TYPE_CHECKING:
    from vitlib.record import Run

    Family = Mapping[str, Sequence[Run]]

SHARE = 0.9  # of its own last accuracy: a curve that stays above has arrived


def by_value(families: "Mapping[str, Family]") -> "dict[str, dict[str, Sequence[Run]]]":
    """Return the knobs' settings under their bare values, as legends and sentences name them: ``4（基线）``."""
    return {
        title: {
            value_text(title, runs[0]) + BASELINE * label.endswith(BASELINE): runs for label, runs in family.items()
        }
        for title, family in families.items()
    }


def compared(values: "Family") -> str:
    """Return how one knob's values end and which arrives first, as Chinese prose, or nothing where one has a curve.

    Settings with fewer than three seeds are told with that, and compared in speed only where all have so few.
    """
    drawn = {
        value: np.array([run.history["val_accuracy"] for run in runs])
        for value, runs in values.items()
        if not any(run.failed for run in runs) and all(len(run.history["val_accuracy"]) for run in runs)
    }
    if len(drawn) < 2:
        return ""
    ends = {value: 100 * float(curves[:, -1].mean()) for value, curves in drawn.items()}
    ranked = sorted(ends, key=lambda value: -ends[value])
    told = [f"{value}（{ends[value]:.1f} %）" for value in ranked]
    gap = max(ends.values()) - min(ends.values())
    said = (
        f"最后一轮的验证准确率由高到低是{'、'.join(told)}，首尾相差 {gap:.1f} 个百分点；"
        if gap >= 0.05
        else f"{'、'.join(ends)}最后一轮的验证准确率都是 {max(ends.values()):.1f} %；"
    )
    enough = {value: curves for value, curves in drawn.items() if len(curves) >= stats.FEWEST_SEEDS}
    timed = enough if len(enough) > 1 else drawn
    needed = {v: float(np.mean([metrics.epochs_to_stay(c, SHARE) for c in curves])) for v, curves in timed.items()}
    quick, slow = min(needed.values()), max(needed.values())
    first, last = ("、".join(v for v in needed if needed[v] == end) for end in (quick, slow))
    some = f"种子不少于 {stats.FEWEST_SEEDS} 个的取值里，" * (len(timed) < len(drawn))
    said += (
        f"{some}最快达到的是{first}（{quick:.1f} 轮），最慢的是{last}（{slow:.1f} 轮）。"
        if quick < slow
        else f"{some}各取值达到的轮次相同，都是 {quick:.1f} 轮。"
    )
    return stats.spaced(said.replace("）（", "，"))  # 4（基线，35.2 %）


def sampling_error(runs: "Sequence[Run]") -> tuple[float, int]:
    """Return the standard error of a setting's last validation accuracy as a fraction, and the images it is of.

    All seeds are judged on one validation set: more of them do not lessen the images' sampling error.
    """
    images = max(1, sum(held_out(runs[0].data["class_counts"])))
    end = float(np.mean([run.history["val_accuracy"][-1] for run in runs]))
    return float(np.sqrt(end * (1 - end) / images)), images


def trends(settings: "Family") -> str:
    """Return which settings still rise in the last quarter of the epochs, and whose training loss still falls."""
    rising = [label for label, runs in settings.items() if _rise(runs) > sampling_error(runs)[0]]
    falling = [label for label, runs in settings.items() if _fall(runs) > 0]
    said = "在最后四分之一的轮次里，"
    if rising:
        which = "它" if len(rising) == 1 else "它们"
        said += (
            f"验证准确率的升幅（各种子平均）超过验证集一次抽样的标准误的{'只' * (len(rising) == 1)}有{'、'.join(rising)}，"
            f"{which}的名次可能随轮数改变；"
        )
    else:
        said += "没有一个设置的验证准确率的升幅（各种子平均）超过验证集一次抽样的标准误；"
    count = len(settings)
    return stats.spaced(
        f"{said}升幅小不等于已经收敛：在这段时间里，"
        + (
            f"{count} 个设置的训练损失都还在下降。"
            if len(falling) == count
            else f"{count} 个设置里有 {len(falling)} 个的训练损失还在下降。"
            if falling
            else f"{count} 个设置的训练损失却也没有一个还在下降。"
        )
    )


def _tail(curve: np.ndarray) -> float:
    """Change of a curve (epochs,) over its last quarter; 0 where it is no longer than that."""
    tail = max(1, round(len(curve) / 4))
    return float(curve[-1] - curve[-1 - tail]) if len(curve) > tail else 0.0


def _rise(runs: "Sequence[Run]") -> float:
    return _tail(np.mean([run.history["val_accuracy"] for run in runs], axis=0))


def _fall(runs: "Sequence[Run]") -> float:
    return -_tail(np.mean([run.history["train_loss"] for run in runs], axis=0))
