"""Configuration of a run: one frozen dataclass, written in a Python file."""

import difflib
import runpy
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from drrho.contrastive.memory.temperature import PerSample
from drrho.contrastive.objectives.objective import Objective, check_passes
from drrho.contrastive.objectives.siglip import SigLIP
from drrho.contrastive.tiles.tiling import Tiling
from drrho.data.loading import Loading
from drrho.models.build import Model
from drrho.models.tuning import Tuning
from drrho.recipe.filtering import Filtering
from drrho.recipe.selection import Selection
from drrho.reference.live import PREFIX, Live, is_live
from drrho.reference.reader import check_weights
from drrho.runtime.checks import require_at_least
from drrho.runtime.files import expand_paths
from drrho.runtime.launch import Device
from drrho.runtime.records import OPTIONAL
from drrho.training.config import Training
from drrho.training.parallel import Parallel

Resume = Literal["latest", "never", "required", "extend"]
MissingReference = Literal["leave_out", "plain"]
Kind = TypeVar("Kind")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Validation during training; never on the test set.

    Attributes:
        data: validation set: shards or a manifest with captions (retrieval) or labels (zero-shot);
            None evaluates nothing.
        batch_size: images embedded at once.
        references: folders of stored embeddings of the validation set, to log the variance of the
            loss as `evaluation/loss_variance`, and of the excess loss over each reference as
            `evaluation/excess_loss_variance/FOLDER`.
    """

    data: str | None = None
    batch_size: int = 256
    references: tuple[str, ...] = ()

    def __post_init__(self):
        expand_paths(self, "data", "references", outputs=())
        if self.references and self.data is None:
            raise ValueError(
                f"evaluation.references = {self.references} has no effect without evaluation.data"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.

    Attributes:
        output: folder of the run. A run found there is continued, a finished one returned.
        data: training data: a manifest written by `drrho index`, or what `drrho index` takes (a
            folder of shards, a brace pattern), which is then indexed at every start.
        loading: batch size, shuffling and worker processes.
        model: model to train.
        tuning: parts of the model that are not trained, and adapters of low rank.
        objective: objective to minimise.
        training: length of the run, optimiser, precision, logging and checkpoints; 10 epochs by
            default.
        reference: folder written by `drrho reference precompute`, or several such folders, which
            steer as one; or "live:MODEL", a model that embeds every batch in training, such as
            "live:run:runs/other". Only for objectives and selections that read a reference.
        reference_weights: weights of the similarities of several references; None takes their mean.
            They need not add up to 1: `w tau / tau_ref` lets one enter as its own logits.
        missing_reference: treatment of a pair without reference embeddings: "leave_out" drops it
            from its batch and counts it as skipped, "plain" keeps it with its plain loss.
        teachers: folders of stored embeddings or live models, one for each teacher that the
            objective imitates; the reference may be one of them.
        live: settings of the models "live:MODEL" among reference and teachers.
        selection: selection of the batch from what is loaded (JEST, RHO top-k); None trains on all.
        filtering: filter that leaves out pairs before training by their similarity to a reference;
            None leaves out none.
        micro_batch_size: pairs that a process encodes at once; None encodes the whole batch. The
            loss is computed over the whole batch, but activations are kept for a micro-batch only,
            at the price of one more forward pass. BatchNorm normalises a micro-batch.
        gradient_checkpointing: recompute the blocks of the towers in the backward pass: a third
            more time; memory holds the activations of one block and the blocks' inputs.
        compile: compile the blocks of the towers with torch.compile.
        tiling: memory that the loss may take for tiles of similarities, and the passes that
            compute a distillation.
        parallel: parallel training on several processes: "replicated" (DistributedDataParallel) or
            "sharded" (FSDP2: parameters, gradients and the optimiser's moments are sharded).
        evaluation: validation during training.
        seed: random seed of the initial weights, the order of the data and random transforms.
        resume: treatment of a run found in `output`: "latest" continues it at its latest
            checkpoint, or returns it if it is finished; "never" makes its presence an error,
            "required" its absence. "extend" continues a finished run to the recipe's steps,
            by the schedule of a run of that many.
        device: device to compute on; "auto" takes the GPU if there is one.
    """

    output: str
    data: str
    model: Model
    objective: Objective
    loading: Loading = field(default_factory=Loading)
    tuning: Tuning = field(default_factory=Tuning, metadata=OPTIONAL)
    training: Training = field(default_factory=lambda: Training(epochs=10))
    reference: str | tuple[str, ...] | None = None
    reference_weights: tuple[float, ...] | None = None
    missing_reference: MissingReference = "leave_out"
    teachers: tuple[str, ...] = ()
    live: Live = field(default_factory=Live, metadata=OPTIONAL)
    selection: Selection | None = None
    filtering: Filtering | None = None
    micro_batch_size: int | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    tiling: Tiling = field(default_factory=Tiling)
    parallel: Parallel = "replicated"
    evaluation: Evaluation = field(default_factory=Evaluation)
    seed: int = 0
    resume: Resume = "latest"
    device: Device = "auto"

    def __post_init__(self):
        # A method of a comparison leaves its output to the comparison.
        expand_paths(self, "data", "reference", "teachers", may_be_empty=True)
        if not isinstance(self.objective, Objective):
            raise TypeError(
                "objective must be one of CLIP(...), SigLIP(...), FastCLIP(...), DRRhoCLIP(...), "
                f"GIST(...), Distillation(...), got {self.objective!r}"
            )
        check_passes(self.tiling, self.objective)
        require_at_least(0, seed=self.seed)
        if self.loading.batch_size < 2:
            raise ValueError(
                f"loading.batch_size must be at least 2: pairs are each other's negatives, got "
                f"{self.loading.batch_size}"
            )
        if self.micro_batch_size is not None and not (
            1 <= self.micro_batch_size < self.loading.batch_size
        ):
            raise ValueError(
                "micro_batch_size must be at least 1 and below loading.batch_size = "
                f"{self.loading.batch_size}, got {self.micro_batch_size}; None encodes it at once"
            )
        rest = self.training.optimizer.moment_warmup_steps
        if rest and isinstance(self.objective.temperature, PerSample):
            raise ValueError(
                f"training.optimizer.moment_warmup_steps = {rest} does not fit a temperature for "
                "each sample, which moves with the loss in these steps too; leave one of them out"
            )
        whole = {
            "training.ema, which keeps a whole copy of the weights": self.training.ema,
            "tuning.lora, whose adapters are small": self.tuning.lora,
        }
        for what, part in whole.items():
            if self.parallel == "sharded" and part is not None:
                raise ValueError(
                    f"parallel = 'sharded' does not fit {what}; use parallel = 'replicated'"
                )
        self._check_references()
        if self.selection is not None:
            self._check_selection(self.selection)
        if self.filtering is not None:
            self._check_filtering(self.filtering)
        for name in ("keep_best", "evaluate_every"):
            value = getattr(self.training, name)
            if value is not None and self.evaluation.data is None:
                raise ValueError(
                    f"training.{name} = {value!r} has no effect without evaluation.data"
                )

    @property
    def needs_reference(self) -> bool:
        """Whether objective or selection reads the reference's embeddings."""
        selects = self.selection is not None and self.selection.needs_reference
        return self.objective.needs_reference or selects

    @property
    def trained_batch_size(self) -> int:
        """Pairs of a step that the model is trained on."""
        loaded = self.loading.batch_size
        return loaded if self.selection is None else self.selection.batch_size

    @property
    def references(self) -> tuple[str, ...]:
        """Folders of the references; empty without one."""
        if self.reference is None:
            return ()
        return (self.reference,) if isinstance(self.reference, str) else self.reference

    def _check_references(self) -> None:
        method = f"objective.method = {self.objective.method!r}"
        if self.needs_reference and self.reference is None:
            needed_by = method
            if not self.objective.needs_reference and self.selection is not None:
                needed_by = f"selection.kind = {self.selection.kind!r}"
            raise ValueError(
                f"{needed_by} needs a reference: give the folder that `drrho reference "
                f"precompute` wrote as reference, or a model as {PREFIX}MODEL"
            )
        if self.reference is not None and not self.needs_reference:
            raise ValueError(
                f"reference = {self.reference!r} has no effect on {method}; leave it out "
                "(on the command line: --reference None)"
            )
        if len(set(self.references)) < len(self.references) or self.reference == ():
            raise ValueError(f"reference must name different folders, got {self.reference!r}")
        if self.reference_weights is not None:
            if len(self.references) < 2:
                raise ValueError(
                    f"reference_weights = {self.reference_weights} has no effect on "
                    f"{len(self.references)} references; leave it out (objective.reference_scale "
                    "scales a reference)"
                )
            check_weights(self.references, self.reference_weights)
        if self.missing_reference == "plain" and not self.objective.needs_reference:
            raise ValueError(f"missing_reference = 'plain' has no effect on {method}; leave it out")
        if len(self.teachers) != self.objective.num_teachers:
            raise ValueError(
                f"the objective has {self.objective.num_teachers} teachers, but teachers "
                f"names {len(self.teachers)} folders; give one that `drrho reference precompute` "
                "wrote for each"
            )
        stored = [name for name in (*self.references, *self.teachers) if not is_live(name)]
        if self.loading.captions == "random" and stored:
            raise ValueError(
                "loading.captions = 'random' does not fit stored reference embeddings, which are "
                "computed from the first captions; use 'first', or store the reference for views "
                "with `--views-captions random` and set loading.views, or give a live model"
            )
        self._check_live()

    def _check_live(self) -> None:
        """Raise ValueError where a live model, or its settings, would make no sense."""
        if not any(map(is_live, (*self.references, *self.teachers))):
            if self.live != Live():
                raise ValueError(
                    f"live = {self.live} has no effect: neither reference nor teachers name a "
                    f"model by {PREFIX}MODEL"
                )
        elif self.live.images == "target" and self.loading.views is not None:
            raise ValueError(
                "live.images = 'target' has no effect beside loading.views, by which target and "
                "reference get the same crops already; leave one of them out"
            )
        elif self.live.images == "target" and self.loading.draft:
            raise ValueError(
                "live.images = 'target' does not fit loading.draft, which decodes images for the "
                "target's size; leave one of them out"
            )
        if len(self.references) > 1 and any(map(is_live, self.references)):
            raise ValueError(
                f"reference = {self.references}: several references steer as one only from stored "
                "embeddings; store them with `drrho reference precompute`, or give one live model"
            )
        if any(map(is_live, self.references)) and self.missing_reference == "plain":
            raise ValueError(
                "missing_reference = 'plain' has no effect on a live reference, which embeds every "
                "pair that can be read; leave it out"
            )
        for folder in self.evaluation.references:
            if is_live(folder):
                raise ValueError(
                    f"evaluation.references = {folder!r} must be a folder of stored embeddings of "
                    "the validation set: `drrho reference precompute`"
                )

    def _check_filtering(self, filtering: Filtering) -> None:
        if filtering.reference is None and self.reference is None:
            raise ValueError(
                "filtering needs the similarities of a reference: give the folder that `drrho "
                "reference precompute` wrote as filtering.reference"
            )
        folder = self.reference if filtering.reference is None else filtering.reference
        if isinstance(folder, str) and is_live(folder):
            raise ValueError(
                f"filtering reads the similarities of all pairs before the first step, which a "
                f"live model ({folder!r}) does not have: store them with `drrho reference "
                "precompute`, and give the folder as filtering.reference"
            )
        if filtering.reference is None and self.missing_reference == "plain":
            raise ValueError(
                "missing_reference = 'plain' has no effect with filtering, which leaves out pairs "
                "without reference embeddings; leave one of them out"
            )

    def _check_selection(self, selection: Selection) -> None:
        draw = selection.draw(self.objective)
        if not 2 <= draw.batch_size < self.loading.batch_size:
            raise ValueError(
                "selection.batch_size must be at least 2 and below loading.batch_size = "
                f"{self.loading.batch_size}, the super-batch, got {draw.batch_size}"
            )
        if selection.needs_reference and (selection.reference_bias is None) != (
            not isinstance(self.objective, SigLIP)
        ):
            raise ValueError(
                f"selection.reference_bias = {selection.reference_bias} does not fit "
                f"objective.method = {self.objective.method!r}: 'siglip' needs it, and no other"
            )


# A run may be continued with other values of these: they change no number beyond its rounding.
# The contents of data and references are compared, not their paths.
MAY_CHANGE = (
    "output",
    "data",
    "reference",
    "teachers",
    "filtering.reference",
    "live.batch_size",
    "loading.workers",
    "loading.cache",
    "training.epochs",  # the steps are what counts
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.keep_best",
    "training.trackers",
    "training.not_finite",
    "parallel",
    "gradient_checkpointing",
    "compile",
    "tiling.kept_megabytes",
    "tiling.passes",
    "training.evaluate_every",
    "evaluation.data",
    "evaluation.batch_size",
    "resume",
    "evaluation.references",
)


def load_recipe(path: str | Path, *kinds: type[Kind]) -> Kind:
    """Load the object called `recipe` from a Python file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be run, or defines no `recipe` of these kinds.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*.py")])
        raise FileNotFoundError(
            f"recipe {path} does not exist" + (f"; near it: {near}" if near else "")
        )
    try:
        recipe = runpy.run_path(str(path)).get("recipe")
    except Exception as error:  # it is a program of the user's
        line = _line_in(path, error)
        raise ValueError(f"recipe {path}{line}: {type(error).__name__}: {error}") from error
    if not isinstance(recipe, kinds):
        remedy = {"Recipe": "`drrho train`"}
        remedy |= dict.fromkeys(("Comparison", "Replicates"), "`drrho compare`")
        wanted = " or ".join(f"{kind.__name__}(...)" for kind in kinds)
        other = remedy.get(type(recipe).__name__)
        raise ValueError(
            f"{path} must define `recipe = {wanted}`, it has {type(recipe).__name__}"
            + (f"; that is for {other}" if other else "")
        )
    return recipe


def _line_in(path: Path, error: Exception) -> str:
    """Find the last line of the file that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f", line {lines[-1]}" if lines else ""
