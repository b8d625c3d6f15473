"""The commands of the command line: a configuration in, the text to print out."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from drrho.data.index import IndexConfig, MixConfig, mix_manifests, write_manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.evaluation.evaluate import EvaluateConfig, evaluate_named_model
from drrho.evaluation.tasks.benchmark import TaskScore, averages, evaluate_task_list
from drrho.plotting.table import markdown_table
from drrho.recipe.export import ExportConfig, export_model
from drrho.recipe.filtering import FilterReport
from drrho.recipe.plan import plan_run
from drrho.recipe.recipe import Recipe
from drrho.recipe.train import train_recipe
from drrho.reference.build import (
    LossesConfig,
    PrecomputeConfig,
    VerifyConfig,
    precompute_reference,
    verify_reference,
)
from drrho.reference.formats.build import ImportConfig, import_reference
from drrho.reference.losses.summary import summarise_losses
from drrho.runtime.errors import CheckpointError, NotFiniteError
from drrho.runtime.files import write_json
from drrho.runtime.launch import ProcessFailed, is_follower, require_one_process
from drrho.studies.compare.compare import compare, write_tables
from drrho.studies.compare.spec import Comparison, Part
from drrho.studies.curate.curate import CurateConfig, curate
from drrho.studies.demo import DemoConfig, demo
from drrho.studies.probe.probe import LossesProbeConfig, ProbeConfig, probe_losses, probe_recipe
from drrho.studies.probe.tables import probe_table
from drrho.studies.report.variance import draw_variances, variance_table
from drrho.studies.report.write import ReportConfig, write_report
from drrho.studies.scaling.fit import EfficiencyConfig, FitConfig, fit_scaling, measure_efficiency
from drrho.training.log import read_metrics

# What a user can usually mend, said in one line; anything else keeps its traceback.
USER_ERRORS = (
    *(ValueError, OSError, ModuleNotFoundError),
    *(CheckpointError, NotFiniteError, ProcessFailed),
)


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Draw captioned scenes as WebDataset shards.

    Attributes:
        folder: where to write.
        scenes: the set.
    """

    folder: Positional[str]
    scenes: ScenesConfig


@dataclass(frozen=True, kw_only=True)
class VarianceConfig:
    """The variance of loss and excess losses on held-out pairs, along training.

    Attributes:
        runs: folders of runs that were trained with `evaluation.references`.
        output: PNG to write.
    """

    runs: Positional[tuple[str, ...]]
    output: str = "variance.png"


def run_demo(config: DemoConfig) -> str:
    """The whole way on procedural scenes."""
    demo(config)
    page = write_report(
        ReportConfig(runs=(config.output,), output=str(Path(config.output) / "report.html"))
    )
    return f"{_comparison_report(config.output)}\nWhat steering sees, and all curves: {page}"


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Train references and every method, evaluate on the test sets, write table and plots.

    What is finished is kept. Several processes may work on one folder: no run is done twice.

    Attributes:
        seeds: each method is trained once per seed; None means the recipe's.
        output: folder of everything; None means the recipe's.
        only: runs to do, METHOD:SEED; none means all.
        tasks: share the runs out over this many tasks, and do one task's.
        task: which, from 0; None means SLURM_ARRAY_TASK_ID.
        table_only: train nothing, write the table of what is finished.
    """

    seeds: tuple[int, ...] | None = None
    output: str | None = None
    only: tuple[str, ...] = ()
    tasks: int | None = None
    task: int | None = None
    table_only: bool = False

    def __post_init__(self):
        if sum((bool(self.only), self.tasks is not None, self.table_only)) > 1:
            raise ValueError("only, tasks and table_only exclude each other")
        if self.task is not None and self.tasks is None:
            raise ValueError(f"task = {self.task} has no effect without tasks, their number")

    def applied_to(self, comparison: Comparison) -> Comparison:
        """The comparison with the seeds and the output that are given here."""
        return replace(
            comparison,
            seeds=comparison.seeds if self.seeds is None else self.seeds,
            output=comparison.output if self.output is None else self.output,
        )

    def parts(self, comparison: Comparison) -> tuple[Part, ...]:
        """The runs to do.

        Raises:
            ValueError: there is no such run or task.
        """
        parts = comparison.parts
        if self.only:
            named = {str(part): part for part in parts}
            if unknown := [name for name in self.only if name not in named]:
                raise ValueError(f"only = {unknown[0]!r} is no METHOD:SEED of {', '.join(named)}")
            return tuple(named[name] for name in self.only)
        if self.tasks is None:
            return parts
        task = self.task
        if task is None:
            number = os.environ.get("SLURM_ARRAY_TASK_ID", "")
            if not number.isdecimal():
                raise ValueError("tasks needs task, where no SLURM_ARRAY_TASK_ID is set")
            task = int(number)
        if not 0 <= task < self.tasks:
            raise ValueError(f"task must be from 0 to {self.tasks - 1}, got {task}")
        return parts[task :: self.tasks]


def run_compare(comparison: Comparison, config: CompareConfig) -> tuple[str, int]:
    """Several methods, one table; the text to print, and 1 where a run failed, else 0."""
    require_one_process("drrho compare")
    comparison = config.applied_to(comparison)
    if config.table_only:
        results = write_tables(comparison)
    else:
        results = compare(comparison, config.parts(comparison))
    failed = any(method["failed"] for method in results["methods"].values())
    return _comparison_report(comparison.output), int(failed)


def run_index(config: IndexConfig) -> str:
    """Shards -> manifest."""
    manifest, path = write_manifest(config)
    reasons = Counter(reason for shard in manifest.shards for reason in shard.unusable.values())
    return (
        f"{path}: {manifest.num_samples:,} samples in {len(manifest.shards):,} shards, "
        f"{reasons.total():,} unusable{_in_brackets(reasons)}"
    )


def run_mix(config: MixConfig) -> str:
    """Manifests -> one."""
    manifest = mix_manifests(config)
    return (
        f"{config.output}: {manifest.num_samples:,} samples in {len(manifest.shards):,} shards, "
        f"of {len(config.manifests)} data sets"
    )


def run_precompute(config: PrecomputeConfig) -> str:
    """A reference model -> its stored embeddings."""
    report = precompute_reference(config)
    return (
        f"{config.output}: embeddings of {report.num_encoded:,} of {report.num_samples:,} samples"
        f"{_in_brackets(report.absent)}; {report.shards_found} shards were there already"
    )


def run_verify(config: VerifyConfig) -> str:
    """Stored embeddings -> whether they are what they should be.

    Raises:
        ValueError: they are not; the message says why.
    """
    found = verify_reference(config)
    if found.faults:
        raise ValueError(f"{config.folder} is not in order:\n  " + "\n  ".join(found.faults))
    stored = f"{found.num_stored:,} of {found.num_samples:,} samples{_in_brackets(found.absent)}"
    lines = [
        f"{config.folder}: embeddings of {stored}; all rows are finite and of unit length",
    ]
    if found.lowest is not None and found.mean is not None:
        rows = [
            [name, f"{lowest:.6f}", f"{mean:.6f}"]
            for name, lowest, mean in zip(("image", "text"), found.lowest, found.mean, strict=True)
        ]
        table = markdown_table([f"cosine of {found.num_encoded}", "lowest", "mean"], rows)
        lines += ["", table]
    return "\n".join(lines)


def run_import(config: ImportConfig) -> str:
    """Embeddings of another program -> a store."""
    report = import_reference(config)
    return (
        f"{config.output}: embeddings of {report.num_encoded:,} of {report.num_samples:,} samples"
        f"{_in_brackets(report.absent)}"
    )


def run_losses(config: LossesConfig) -> str:
    """Stored losses -> what they are, and how alike those of two references are."""
    summaries, correlations = summarise_losses(config.folder)
    header = ["reference", "identity", "samples", "missing", "losses", "of a", "not finite"]
    rows = [
        [
            summary.reference,
            summary.identity,
            *(f"{count:,}" for count in (summary.num_samples, summary.num_missing)),
            f"{summary.num_losses:,}",
            summary.unit,
            f"{summary.num_nonfinite:,}",
            *(f"{value:.4f}" for value in (summary.mean, summary.standard_deviation)),
        ]
        for summary in summaries
    ]
    table = markdown_table([*header, "mean", "standard deviation"], rows)
    if not correlations:
        return table
    rows = [
        [" and ".join(pair.references), f"{pair.num_samples:,}", f"{pair.correlation:.4f}"]
        for pair in correlations
    ]
    return f"{table}\n\n{markdown_table(['losses of', 'common samples', 'correlation'], rows)}"


def run_probe(recipe: Recipe, config: ProbeConfig) -> str:
    """A recipe and references -> their ranking, before training."""
    require_one_process("drrho probe")
    table = probe_table(probe_recipe(recipe, config))
    return f"{table}\n\n{config.output}/probe.json has all numbers, probe.png the picture."


def run_probe_losses(config: LossesProbeConfig) -> str:
    """Losses of pilots and references -> their ranking."""
    return probe_table(probe_losses(config))


def run_train(recipe: Recipe) -> str:
    """A recipe -> a trained model."""
    results = train_recipe(recipe)
    scores = {
        name.removeprefix("evaluation/"): value
        for name, value in results["metrics"].items()
        if name.startswith("evaluation/")
    }
    table = f"{_metrics_table({'evaluation': scores})}\n\n" if scores else ""
    skipped = sum(results["skipped"].values())
    if results["filtering"] is not None:
        table += f"filtering: {FilterReport(**results['filtering'])}\n\n"
    return (
        f"{table}{recipe.output}: {results['samples_seen']:,} samples in "
        f"{results['seconds']:,.0f} s, {skipped:,} skipped{_in_brackets(results['skipped'])}; the "
        f"model is in {recipe.output}/model, its history in {recipe.output}/metrics.jsonl"
    )


def run_dry(recipe: Recipe) -> str:
    """A recipe -> what it would do; nothing is written."""
    return plan_run(recipe)


def run_evaluate(config: EvaluateConfig) -> str:
    """A model -> its scores.

    Raises:
        ValueError: a task of a list failed; the message has the scores of the others too.
    """
    if config.tasks is not None:
        return _task_table(evaluate_task_list(config))
    scores = evaluate_named_model(config)
    if config.output is not None and not is_follower():
        write_json(Path(config.output), scores)
    return _metrics_table(scores)


def run_scaling_fit(config: FitConfig) -> str:
    """Finished runs -> laws of error against compute."""
    fit_scaling(config)
    return _written(config.output, "scaling")


def run_scaling_efficiency(config: EfficiencyConfig) -> str:
    """Finished runs -> how many times the samples the baseline needs."""
    measure_efficiency(config)
    return _written(config.output, "efficiency")


def run_variance(config: VarianceConfig) -> str:
    """Logs of runs -> a table of first and last variances, and a plot."""
    logs = {Path(run).name: read_metrics(Path(run)) for run in config.runs}
    table = variance_table(logs)
    draw_variances(logs, Path(config.output))
    return f"{table}\n\nThe plot is {config.output}."


def run_export(config: ExportConfig) -> str:
    """A trained model -> the form of another program."""
    output = export_model(config)
    match config.format:
        case "open-clip":
            return f"{output}: open_clip.create_model_and_transforms(NAME, pretrained='{output}')"
        case "hugging-face":
            return f"{output}: transformers.AutoModel.from_pretrained('{output}')"


def run_report(config: ReportConfig) -> str:
    """Runs -> one page."""
    return str(write_report(config))


def run_curate(config: CurateConfig) -> str:
    """A run and its reference -> what they say of every pair."""
    found = curate(config)
    labels = found.summary["labels"]
    return (
        f"{found.table}: {_in_brackets(labels).strip(' ()')}\n"
        f"{found.manifest}: {found.summary['kept']:,} of {found.summary['pairs']:,} pairs kept; "
        f"train on it with --data {found.manifest}"
    )


def run_scenes(config: DrawConfig) -> str:
    """Captioned scenes -> shards."""
    paths = write_scenes(Path(config.folder), config.scenes)
    return f"{config.folder}: {config.scenes.num_samples:,} scenes in {len(paths):,} shards"


def _comparison_report(output: str) -> str:
    written = (Path(output) / "results.md").read_text()
    return f"\n{written}\nThe numbers are in {output}/results.json, the plots beside it."


def _written(output: str, name: str) -> str:
    text = (Path(output) / f"{name}.md").read_text()
    return f"\n{text}\nThe numbers are in {output}/{name}.json, the plot in {output}/{name}.png."


def _task_table(scores: list[TaskScore]) -> str:
    """The main metric of each task, averages, and what was passed over."""
    rows = [
        [
            score.task.name,
            score.task.main_metric or "none",
            "done" if score.main_metric is None else f"{score.main_metric:.4f}",
        ]
        for score in scores
        if score.problem is None
    ]
    rows += [[name, "", f"{value:.4f}"] for name, value in averages(scores).items()]
    problems = [score for score in scores if score.problem is not None]
    lines = [markdown_table(["task", "main metric", "score"], rows)] if rows else []
    lines += [f"{score.task.name}: {score.problem}" for score in problems]
    if not rows or any(score.is_failure for score in problems):
        raise ValueError("not every task could be evaluated\n\n" + "\n".join(lines))
    return "\n".join(lines)


def _metrics_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each metric, a column for each set; empty where a set has no such metric."""
    columns = scores.values()
    names = dict.fromkeys(name for metrics in columns for name in metrics)
    rows = [
        [name, *(_number(name, metrics[name]) if name in metrics else "" for metrics in columns)]
        for name in names
    ]
    return markdown_table(["", *scores], rows)


def _number(metric: str, value: float) -> str:
    return f"{value:,.0f}" if metric in {"images", "skipped"} else f"{value:.4f}"


def _in_brackets(counts: Mapping[str, int]) -> str:
    listed = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return f" ({listed})" if listed else ""
