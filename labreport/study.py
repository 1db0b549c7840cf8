"""What a notebook opens: a section's data and runs, under a profile."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from vitlib import plans
from vitlib.data import Dataset, load
from vitlib.data.long_tail import told
from vitlib.device import pick
from vitlib.errors import FailedRun, UserError
from vitlib.plans import SECTIONS, Entry, Job, Profile
from vitlib.progress import Progress
from vitlib.record import Run, is_stale, read_record
from vitlib.store import Store
from vitlib.sweep import calibrate, decide, missing, prices, resolve

SHORTEST = Profile("shortest", epochs=(("original", 1), ("vit", 1)))


@dataclass(frozen=True)
class Study:
    """A section's runs by label, in the order of its table, and the data they were cut from.

    data: already cut to the profile; in ``published`` the data at hand, for pictures only, cut to the images
        that the records come from where it holds them.
    """

    section: str
    profile: str
    data: Dataset
    runs: dict[str, list[Run]]

    def first(self, label: str) -> Run:
        """Return the run of the first seed; raises UserError when this report has none of that label."""
        if not self.runs.get(label):
            raise UserError(f"{self.section} 节没有“{label}”的运行；有的是：{'、'.join(self.runs)}。")
        return self.runs[label][0]

    def rows(self) -> list[dict[str, object]]:
        """Return the settings of the runs as rows for a table, Chinese column names."""
        return [
            {
                "配置": label,
                "配方": runs[0].name,
                "轮数": runs[0].epochs,
                "批大小": runs[0].recipe.batch_size,
                "学习率": f"{runs[0].recipe.lr:g}",
                "训练图像": runs[0].data["train_images"],
                "种子数": len(runs),
                "参数量": runs[0].params,
            }
            for label, runs in self.runs.items()
        ]


def open_study(
    section: str,
    profile: str = "quick",
    data: str | Dataset = "auto",
    *,
    images: int | None = None,
    epochs: int | None = None,
    seeds: int | None = None,
    extra: Sequence[Entry] = (),
    store: Store | None = None,
    show: bool = True,
) -> Study:
    """Open a section: load the data, cut it to the profile, and train what the store lacks.

    profile: ``smoke``, ``quick``, ``hours``, ``days``, ``full``, ``auto`` (by the machine) or ``published`` (no
    training: the published records). ``images``, ``epochs`` and ``seeds`` replace the profile's own; ``extra`` entries
    join the section's table. Raises UserError where ``published`` is asked for any of them.
    """
    store = store or Store()
    dataset = load(data) if isinstance(data, str) else data
    table = [*SECTIONS[section], *extra]
    if profile == "published":
        if extra or not (images is epochs is seeds is None):
            raise UserError(
                "published 档只取已发布的记录，不训练：请让 images、epochs、seeds 为 None、另加的设置为空，或换一个档位。"
            )
        found = published_runs(table, store)
        return Study(section, profile, _as_recorded(dataset, next(iter(found.values()))[0]), found)
    chosen = resolve(profile, dataset, images=images, epochs=epochs, seeds=seeds)
    dataset = chosen.cut(dataset)
    # a value that a user adds may be in the table already, beyond the profile's scope: it is trained, and once
    table = [*{entry.label: entry for entry in table}.values()]
    wanted = [
        Job(chosen.fit(entry.recipe), seed, 0, entry.label, entry.factor)
        for entry in table
        for seed in range(chosen.seeds)
        if chosen.takes(entry, seed)
    ]
    lacking = missing(wanted, dataset, store)
    if show and lacking:
        print(f"{section} 节：\n{price_table(lacking, len(dataset.train), calibrate(pick()))}", file=sys.stderr)
    runs: dict[str, list[Run]] = {}
    with Progress(len(wanted), f"{section} 节的运行", unit="次", show=show) as progress:
        for job in wanted:
            try:
                run = store.get(job.recipe, job.seed, plans.tailed(dataset, job.factor), show=show)
            except FailedRun as error:
                Progress.warn(f"“{job.label}”缺种子 {job.seed}：{error}")
                continue
            runs.setdefault(job.label, []).append(run)
            progress.advance()
    return Study(section, chosen.name, dataset, runs)


def price_table(lacking: Sequence[Job], images: int, flops_per_second: float) -> str:
    """Return what is about to be trained, a line a setting, with its estimated minutes, and their sum, as text.

    A pre-training or a teacher that several settings share is in the line of each and in the sum once.
    """
    by_label: dict[str, list[Job]] = {}
    for job in lacking:
        by_label.setdefault(job.label, []).append(job)
    minutes = {name: prices(jobs, images, flops_per_second)[0] / 60 for name, jobs in by_label.items()}
    lines = [
        f"  {label}：{len(jobs)} 个种子，{jobs[0].recipe.epochs} 轮，约 {minutes[label]:.1f} 分钟"
        for label, jobs in by_label.items()
    ]
    total = prices(lacking, images, flops_per_second)[0] / 60
    return "\n".join([f"还要训练 {len(lacking)} 次，估计共 {total:.0f} 分钟（按现在的速度推算）：", *lines])


def settle(profile: str, data: str, accept: Sequence[str] = ()) -> tuple[str, str]:
    """Decide once for a whole report what ``auto`` means; return names of profile and data for the notebooks.

    Tells on standard error what was chosen and, for ``full``, the estimated hours. Raises UserError for an
    unknown name, and for ``published`` when a record is stale and its run is not named in ``accept``.
    """
    dataset = load(data)
    source = dataset.name if data == "auto" else data
    print(f"数据：{dataset.provenance}", file=sys.stderr)
    if profile == "published":
        stale = [run.name for run in _published(Store()) if is_stale(run) and run.name not in accept]
        if stale:
            raise UserError(
                f"已发布的记录 {'、'.join(sorted(set(stale)))} 是在较旧的数值版本下得到的；"
                "请重新训练它们，或用 --accept 名字 表示接受。"
            )
        print("档位：published（不训练，用已发布的记录）", file=sys.stderr)
        return profile, source
    name = decide(profile, dataset)
    chosen = plans.profile_named(name)
    if name.startswith("full"):
        todo = missing(plans.jobs("all", chosen), dataset, Store())
        seconds = sum(prices(todo, len(dataset.train), calibrate(pick())).values())
        print(f"档位：{name}，还要训练 {len(todo)} 次，估计 {seconds / 3600:.1f} 小时", file=sys.stderr)
    else:
        print(f"档位：{name}（种子 {chosen.seeds} 个）", file=sys.stderr)
    return name, source


def published_runs(table: Sequence[Entry], store: Store) -> dict[str, list[Run]]:
    """Return the published runs of a table's recipes, by label.

    Runs can only be compared on the same data: of the data sets (and their subsets) that the records come
    from, the one that serves most entries is taken, the larger one where two serve as many; entries cut to a
    long tail are served apart, each factor by its own. A recipe is known by its name and by what it is apart from
    its length, because a profile makes one run of two; by the name alone where full-size profiles alone train it, whose
    length may be all that it is (a control of twice the epochs). Of several lengths of training the recipe's own is
    taken, where it is there, else the longest that was trained under its name, else the longest.
    Stale records are used; the report's appendix marks them.
    """
    by_data: dict[str, list[Run]] = {}
    specs = {}
    for run in _published(store):
        by_data.setdefault(run.data["fingerprint"], []).append(run)
        specs[run.key] = SHORTEST.fit(run.recipe).spec()

    def serve(candidates: list[Run], factor: float) -> dict[str, list[Run]]:
        out = {}
        for entry in table:
            if entry.factor != factor or (factor and told(factor) not in candidates[0].data["provenance"]):
                continue
            mine = own = [run for run in candidates if run.name == entry.recipe.name]
            if entry.scope < plans.FULL:
                like = SHORTEST.fit(entry.recipe).spec()
                mine = [run for run in candidates if specs[run.key] == like] + own
            length = max((run.epochs for run in own or mine), default=0)
            if any(run.epochs == entry.recipe.epochs for run in mine):
                length = entry.recipe.epochs
            by_seed = {run.seed: run for run in mine if run.epochs == length}  # its own name is the last to be put in
            if mine:
                out[entry.label] = [by_seed[seed] for seed in sorted(by_seed)]
        return out

    best: dict[str, list[Run]] = {}
    for factor in dict.fromkeys(entry.factor for entry in table):
        tables: list[dict[str, list[Run]]] = [serve(candidates, factor) for candidates in by_data.values()]
        most = max(tables, key=lambda t: (len(t), sum(r[0].data["train_images"] for r in t.values())))
        best |= most
    if not best:
        names = "、".join(entry.recipe.name for entry in table)
        raise UserError(f"{store.published} 里没有这一节要用的运行记录（{names}）。")
    return best


def _as_recorded(data: Dataset, run: Run) -> Dataset:
    """Return the images that a run was made from, when they are a profile's cut of ``data``, else ``data`` itself."""
    if list(data.class_names) != run.data["class_names"]:
        return data
    cut = data.subset(sum(run.data["class_counts"]), run.data["test_images"])
    return cut if cut.fingerprint == run.data["fingerprint"] else data


def _published(store: Store) -> list[Run]:
    runs = [read_record(path, published=True) for path in sorted(store.published.glob("*.json"))]
    if not runs:
        raise UserError(f"{store.published} 里还没有已发布的运行记录；请先用 PROFILE=quick 生成报告。")
    return runs
