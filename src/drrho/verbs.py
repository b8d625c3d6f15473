"""The verbs of the front door: what the commands of the command line do, from Python.

Each takes the fields of its command's configuration as arguments and returns what was found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from inspect import signature
from os import PathLike, fspath
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_origin, get_type_hints

from drrho.contrastive.objectives.algorithms import ALGORITHMS
from drrho.data.index import IndexConfig, write_manifest
from drrho.data.indexing import open_manifest
from drrho.data.loading import Loading
from drrho.data.manifest import Manifest
from drrho.encoding.encoder import EmbeddingModel, load
from drrho.evaluation.evaluate import EvaluateConfig, evaluate_named_model
from drrho.evaluation.tasks.benchmark import evaluate_task_list
from drrho.models.build import Model
from drrho.models.program import trusting
from drrho.models.towers.joined import JoinedCard
from drrho.recipe.document import RunResults
from drrho.recipe.export import ExportConfig, export_model
from drrho.recipe.folder import Row, read_run
from drrho.recipe.recipe import Recipe
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig
from drrho.reference.build import precompute_reference as precompute_embeddings
from drrho.reference.formats.build import ImportConfig
from drrho.reference.formats.build import import_reference as import_embeddings
from drrho.reference.joining.join import JoinConfig
from drrho.reference.joining.join import join_reference as join_models
from drrho.reference.precompute import PrecomputeReport
from drrho.runtime.files import write_json
from drrho.runtime.launch import Device, is_follower, require_one_process
from drrho.studies.advise.advise import advise as advise_on
from drrho.studies.advise.config import USES, AdviseConfig, DecideBy, Use
from drrho.studies.advise.results import AdviceResults
from drrho.studies.compare.compare import compare as run_comparison
from drrho.studies.compare.replicates import Replicates
from drrho.studies.compare.results import Results
from drrho.studies.compare.spec import Comparison
from drrho.studies.curate.curate import CurateConfig, Curation
from drrho.studies.curate.curate import curate as curate_pairs
from drrho.studies.listing.found import Found
from drrho.studies.listing.ls import ListConfig, list_folder
from drrho.studies.probe.probe import ProbeConfig, probe_recipe
from drrho.studies.probe.results import ProbeResults
from drrho.studies.report.write import ReportConfig, write_report
from drrho.studies.steer.config import SteerConfig
from drrho.studies.steer.results import SteerResults
from drrho.studies.steer.steer import steer as steer_model
from drrho.training.tracking.tracker import Tracker

P = ParamSpec("P")
Config = TypeVar("Config")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """A run in its folder, finished or not; everything is read when it is asked for.

    Attributes:
        path: folder of the run.
        trust: whether the program that the folder names may run, and the URLs and repositories
            that it names be fetched; true for what `train` returns, whose recipe named them.
    """

    path: Path
    trust: bool = False

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def recipe(self) -> Recipe:
        """The recipe that was trained.

        Raises:
            ValueError: it names a program, a repository or data at a URL, which whoever trains by
                it would run or fetch, and the folder is not trusted.
        """
        run = read_run(self.path)
        with trusting(everything=self.trust):
            run.require_trusted_recipe()
        return run.recipe

    @cached_property
    def model(self) -> EmbeddingModel:
        """The trained model, ready to embed images and texts; FileNotFoundError before the end."""
        return load(self.path, trust=self.trust)

    @property
    def log(self) -> list[Row]:
        """The metrics of the logged steps, in their order."""
        return read_run(self.path).rows

    @property
    def results(self) -> RunResults | None:
        """Metrics at the end, seconds, samples and the like; None before the end."""
        return read_run(self.path).results


Reported = str | Path | Run | Recipe | Comparison | Results


def _with_fields_of(
    config: Callable[P, Config],
) -> Callable[[Callable[[Config], Result]], Callable[P, Result]]:
    """Turns a function of a configuration into one of the configuration's fields."""
    hints = get_type_hints(config)

    def decorate(function: Callable[[Config], Result]) -> Callable[P, Result]:
        @wraps(function)
        def verb(*arguments: P.args, **fields: P.kwargs) -> Result:
            given = signature(config).bind(*arguments, **fields).arguments
            made: Any = config  # pyright cannot see that these are its own arguments again
            return function(made(**{n: _as_field(hints[n], value) for n, value in given.items()}))

        # `help` shows the fields of the configuration, as an editor does.
        result = signature(function).return_annotation
        verb.__dict__["__signature__"] = signature(config).replace(return_annotation=result)
        verb.__doc__ = f"{function.__doc__}\n{config.__doc__}"
        return verb

    return decorate


def _as_field(kind: Any, value: Any) -> Any:
    """A value as a field holds it: a path or a run by its name, one of several in a tuple."""
    if get_origin(kind) is not tuple:
        return fspath(value) if isinstance(value, PathLike) else value
    several = (value,) if isinstance(value, str | PathLike) else value
    return tuple(fspath(one) if isinstance(one, PathLike) else one for one in several)


def train(recipe: Recipe, *, trust: bool = False, trackers: Sequence[Tracker] = ()) -> Run:
    """Trains a model by a recipe, continues what its folder holds, or returns what is finished.

    >>> run = drrho.train(recipe)
    >>> run.model.encode_text(["a lemon"])

    Args:
        recipe: what to train; the program and the data that it names are trusted.
        trust: run the program that the folder of a model "run:PATH" names.
        trackers: trackers of your own (`Tracker`), beside those that the recipe names.

    Raises:
        ValueError: the folder holds a run of another recipe, or data, reference and recipe do not
            fit each other. Found before the first step.
        TrainingInterrupted: a signal came; the same call continues.
        ProcessFailed: with several processes, this one failed or lost another.
    """
    with trusting(everything=trust):
        train_recipe(recipe, trackers=trackers)
    return Run(Path(recipe.output), trust=True)


@_with_fields_of(IndexConfig)
def index(config: IndexConfig) -> Manifest:
    """Counts and hashes the samples of a data set; their order gives the sample ids.

    >>> manifest = drrho.index("DATA", output="train.json")
    """
    return write_manifest(config)[0]


@_with_fields_of(PrecomputeConfig)
def precompute_reference(config: PrecomputeConfig) -> PrecomputeReport:
    """Stores a reference model's embeddings of every pair of a data set; restartable.

    >>> drrho.precompute_reference(
    ...     data="train.json", model="ViT-B-32", pretrained="laion2b_s34b_b79k", output="reference"
    ... )
    """
    return precompute_embeddings(config)


@_with_fields_of(ImportConfig)
def import_reference(config: ImportConfig) -> PrecomputeReport:
    """Takes over embeddings that another program stored, joined by key.

    >>> from drrho.reference.formats.clip_retrieval import ClipRetrieval
    >>> drrho.import_reference(
    ...     format=ClipRetrieval(source="EMBEDDINGS"),
    ...     data="train.json",
    ...     model="ViT-L/14",
    ...     output="reference",
    ... )
    """
    return import_embeddings(config)


@_with_fields_of(JoinConfig)
def join_reference(config: JoinConfig) -> JoinedCard:
    """Builds a reference from a vision and a text model trained separately.

    >>> drrho.join_reference(
    ...     image="timm:resnet50",
    ...     text="sentence-transformers:all-MiniLM-L6-v2",
    ...     data="train.json",
    ...     output="joined",
    ... ).held_out
    """
    return join_models(config)


@_with_fields_of(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> dict[str, dict[str, float]]:
    """Scores a model by retrieval where data have captions, by classes where they have classes.

    >>> scores = drrho.evaluate("runs/mine", data=("test",))["test"]
    >>> scores["mrr"]

    Returns:
        Set -> metric -> value; with `tasks`, the main metric of each task that was scored.
    """
    if config.tasks is not None:
        return {
            score.task.name: {score.task.main_metric or "": score.main_metric}
            for score in evaluate_task_list(config)
            if score.main_metric is not None
        }
    scores = evaluate_named_model(config)
    if config.output is not None and not is_follower():
        write_json(Path(config.output), scores)
    return scores


def probe(  # noqa: PLR0913 - the fields of its command
    data: str,
    *,
    references: str | Sequence[str],
    held_out: str | None = None,
    recipe: Recipe | None = None,
    output: str = "runs/probe",
    pilot_steps: int | None = None,
    trust: bool = False,
) -> ProbeResults:
    """Ranks references for a data set before training with any of them.

    >>> print(drrho.probe("train.json", references=["ref_a", "ref_b"]))

    Two short pilots are trained on halves of the data; the references are ranked on held-out pairs.

    Args:
        data: training pairs: a manifest, or what `drrho.index` takes.
        references: folders of stored embeddings of the held-out pairs, models as
            `drrho.precompute_reference` takes them, or ARCHITECTURE@PRETRAINED.
        held_out: pairs of the same distribution that training does not see; None holds out a tenth
            of `data`, drawn at random, or 20 pairs if a tenth is fewer.
        recipe: recipe that the references are to steer; None takes the small model and OpenCLIP's
            objective. The pilots have its model, batches and temperature.
        output: folder of the pilots and of probe.json, probe.md and probe.png.
        pilot_steps: optimiser steps of each pilot; None takes a quarter of the recipe's, or 200
            without a recipe.
        trust: run the programs that the folders of models name.

    Raises:
        FileNotFoundError: a reference or data are not there.
        ValueError: a reference does not fit the data, or there are too few of them.
    """
    require_one_process("drrho.probe")
    if recipe is None:
        manifest = open_manifest(data)
        recipe = Recipe(
            data=data,
            output=output,
            model=Model("small"),
            objective=ALGORITHMS["openclip"].objective,
            loading=Loading(batch_size=max(2, min(128, len(manifest.usable_ids()) // 8))),
        )
        pilot_steps = 200 if pilot_steps is None else pilot_steps
    given = _as_field(tuple[str, ...], references)
    config = ProbeConfig(
        data=data,
        held_out=held_out,
        reference=given,
        output=output,
        pilot_steps=pilot_steps,
        trust=trust,
    )
    return probe_recipe(recipe, config)


def advise(  # noqa: PLR0913 - the fields of its command
    recipe: Recipe,
    *,
    references: str | Sequence[str],
    reference_data: str | Sequence[str] = (),
    output: str = "runs/advice",
    budget: float = 0.25,
    decide_by: DecideBy = "auto",
    uses: Sequence[Use] = USES[1:],
    trust: bool = False,
) -> AdviceResults:
    """Finds out which use of references to train a recipe by.

    >>> print(drrho.advise(recipe, references="runs/reference"))

    Short runs of plain training and of every use that applies (start from the reference, filter,
    steer, distil, ...) are compared on held-out pairs, and the worse half goes no further.
    `drrho.train` with the recipe that is written continues the best one. Where no use begins with
    the reference's weights or data, plain training alone is begun, and how far the reference is
    ahead of where it is expected to end decides.

    Args:
        recipe: training that is planned; the program and the data that it names are trusted.
        references: models as `drrho.precompute_reference` takes them, ARCHITECTURE@PRETRAINED, or
            folders of stored embeddings of the training pairs.
        reference_data: data that each reference was trained on, "none" where they are not there.
        output: folder of the raced runs, the recipe and advice.json, advice.md, advice.png.
        budget: optimiser steps of the race for each reference, or of the beginning of plain
            training, as a share of the recipe's.
        decide_by: "race", "lead" or "auto", as above.
        uses: uses to race beside plain training.
        trust: run the programs that the folders of models name.

    Raises:
        FileNotFoundError: a reference or data are not there.
        ValueError: a reference does not fit the data, or the budget is too small.
        TrainingInterrupted: a signal came; the same call continues.
    """
    config = AdviseConfig(
        reference=_as_field(tuple[str, ...], references),
        reference_data=_as_field(tuple[str, ...], reference_data),
        output=output,
        budget=budget,
        decide_by=decide_by,
        uses=tuple(uses),
        trust=trust,
    )
    results = advise_on(recipe, config)
    assert results is not None  # it is None for a dry run
    return results


def compare(comparison: Comparison | Replicates, *, trust: bool = False) -> Results:
    """Trains the references and every method of a comparison, evaluates, writes table and plots.

    >>> results = drrho.compare(comparison)
    >>> print(results)

    What is finished is kept; several processes may work on one folder.

    Args:
        comparison: what to train, once or in replicates; the programs and the data that it names
            are trusted.
        trust: run the programs that the folders of references name.

    Raises:
        TrainingInterrupted: a signal came; the same call continues.
    """
    require_one_process("drrho.compare")
    with trusting(everything=trust):
        return run_comparison(comparison)


@_with_fields_of(CurateConfig)
def curate(config: CurateConfig) -> Curation:
    """Ranks the pairs of a data set by a run and its reference, and leaves some of them out.

    >>> found = drrho.curate("runs/mine", output="curated")
    >>> found.manifest
    """
    return curate_pairs(config)


def report(  # noqa: PLR0913 - the fields of its command
    runs: Reported | Sequence[Reported],
    *,
    output: str = "report.html",
    reference: str | None = None,
    data: str | None = None,
    galleries: bool = True,
    device: Device = "auto",
    trust: bool = False,
) -> Path:
    """Writes one page about runs: curves, comparisons, what steering sees, alerts.

    >>> drrho.report([run, "runs/comparison"], output="report.html")

    Args:
        runs: runs, finished or not; comparisons or their results, for all their runs; or
            the folders of any of these.
        output: HTML file to write.
        reference: stored embeddings of the training data, where they are not what the runs say.
        data: training data, where they have moved.
        galleries: whether to examine and show pairs.
        device: device to compute on.
        trust: run the programs that the runs' folders name, and fetch the models and data that
            their recipes name; not needed for what `train` returns.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: a file of a run is damaged.
    """
    given = [runs] if isinstance(runs, Reported) else runs
    config = ReportConfig(
        runs=tuple(map(_folder, given)),
        output=output,
        reference=reference,
        data=data,
        galleries=galleries,
        device=device,
        trust=trust,
    )
    trusted = [run for run in given if isinstance(run, Run) and run.trust]
    own = [name for run in trusted for name in (run.recipe.model.name, f"run:{run.path}")]
    with trusting(*own):
        return write_report(config)


@_with_fields_of(SteerConfig)
def steer(config: SteerConfig) -> SteerResults | None:
    """Steers a model by a reference on a user's own pairs: all steps from the images to a report.

    >>> print(drrho.steer("photos", reference="ViT-B-32@laion2b_s34b_b79k", output="runs/steered"))

    A dry run only says what would be done, and returns None.
    """
    return steer_model(config)


@_with_fields_of(ExportConfig)
def export(config: ExportConfig) -> Path:
    """Writes a trained model as open_clip or Hugging Face loads it.

    >>> drrho.export("runs/mine", format="hugging-face", output="exported")
    """
    return export_model(config)


@_with_fields_of(ListConfig)
def ls(config: ListConfig) -> list[Found]:
    """Lists what a folder holds: runs, stores, manifests and results, with state and score.

    >>> [run.path for run in drrho.ls("runs", all=True) if run.state != "finished"]
    """
    return list_folder(config)


def _folder(run: Reported) -> str:
    if isinstance(run, Recipe | Comparison):
        return run.output
    if not isinstance(run, Results):
        return fspath(run)
    if run.folder is None:
        raise ValueError("these results have no folder; name the folder of the comparison")
    return run.folder
