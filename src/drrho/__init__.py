"""Training under the guidance of a reference model: the DRRho risk and DRRho-CLIP.

All that most programs need is here by name: `drrho.DRRhoLoss`, `drrho.CVaR`. A name is imported
when it is first used, so that `import drrho` alone costs next to nothing and the losses need no
more than PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; a test holds it equal to the table
    from drrho.contrastive.losses import CLIPLoss as CLIPLoss
    from drrho.contrastive.losses import DistillationLoss as DistillationLoss
    from drrho.contrastive.losses import DRRhoCLIPLoss as DRRhoCLIPLoss
    from drrho.contrastive.losses import FastCLIPLoss as FastCLIPLoss
    from drrho.contrastive.losses import SigLIPLoss as SigLIPLoss
    from drrho.contrastive.memory.temperature import Constant as Constant
    from drrho.contrastive.memory.temperature import Learned as Learned
    from drrho.contrastive.memory.temperature import PerSample as PerSample
    from drrho.contrastive.objectives.clip import CLIP as CLIP
    from drrho.contrastive.objectives.distillation import Distillation as Distillation
    from drrho.contrastive.objectives.distillation import DistillationTerm as DistillationTerm
    from drrho.contrastive.objectives.global_risk import DRRhoCLIP as DRRhoCLIP
    from drrho.contrastive.objectives.global_risk import FastCLIP as FastCLIP
    from drrho.contrastive.objectives.objective import Objective as Objective
    from drrho.contrastive.objectives.siglip import SigLIP as SigLIP
    from drrho.data.loading import Loading as Loading
    from drrho.data.views import Views as Views
    from drrho.encoding.encoder import EmbeddingModel as EmbeddingModel
    from drrho.encoding.encoder import load as load
    from drrho.models.build import Model as Model
    from drrho.models.small import SmallConfig as SmallConfig
    from drrho.recipe.filtering import Filtering as Filtering
    from drrho.recipe.recipe import Evaluation as Evaluation
    from drrho.recipe.recipe import Recipe as Recipe
    from drrho.recipe.selection import Selection as Selection
    from drrho.reference.reader import open_reference as open_reference
    from drrho.risk import KL as KL
    from drrho.risk import ChiSquare as ChiSquare
    from drrho.risk import ChiSquareBall as ChiSquareBall
    from drrho.risk import CVaR as CVaR
    from drrho.risk import KLBall as KLBall
    from drrho.risk import KLCVaR as KLCVaR
    from drrho.risk import Mean as Mean
    from drrho.risk import RiskMeasure as RiskMeasure
    from drrho.risk import effective_sample_size as effective_sample_size
    from drrho.risk import excess_loss as excess_loss
    from drrho.steering import BatchEstimator as BatchEstimator
    from drrho.steering import DRRhoLoss as DRRhoLoss
    from drrho.steering import LearnedDual as LearnedDual
    from drrho.steering import Losses as Losses
    from drrho.steering import LossTable as LossTable
    from drrho.steering import MovingAverage as MovingAverage
    from drrho.steering import accumulate_gradients as accumulate_gradients
    from drrho.steering import token_losses as token_losses
    from drrho.studies.compare.spec import Comparison as Comparison
    from drrho.studies.compare.spec import GapConfig as GapConfig
    from drrho.studies.compare.spec import TuningConfig as TuningConfig
    from drrho.training.config import Training as Training
    from drrho.training.optimizer import Optimizer as Optimizer
    from drrho.verbs import Run as Run
    from drrho.verbs import compare as compare
    from drrho.verbs import curate as curate
    from drrho.verbs import evaluate as evaluate
    from drrho.verbs import export as export
    from drrho.verbs import import_reference as import_reference
    from drrho.verbs import index as index
    from drrho.verbs import precompute_reference as precompute_reference
    from drrho.verbs import probe as probe
    from drrho.verbs import report as report
    from drrho.verbs import train as train

    __version__: str

_NAMES = {
    "contrastive.losses": (
        *("CLIPLoss", "DRRhoCLIPLoss", "DistillationLoss", "FastCLIPLoss", "SigLIPLoss"),
    ),
    "contrastive.memory.temperature": ("Constant", "Learned", "PerSample"),
    "contrastive.objectives.clip": ("CLIP",),
    "contrastive.objectives.distillation": ("Distillation", "DistillationTerm"),
    "contrastive.objectives.global_risk": ("DRRhoCLIP", "FastCLIP"),
    "contrastive.objectives.objective": ("Objective",),
    "contrastive.objectives.siglip": ("SigLIP",),
    "data.loading": ("Loading",),
    "data.views": ("Views",),
    "encoding.encoder": ("EmbeddingModel", "load"),
    "models.build": ("Model",),
    "models.small": ("SmallConfig",),
    "recipe.filtering": ("Filtering",),
    "recipe.recipe": ("Evaluation", "Recipe"),
    "recipe.selection": ("Selection",),
    "reference.reader": ("open_reference",),
    "risk": (
        *("CVaR", "ChiSquare", "ChiSquareBall", "KL", "KLBall", "KLCVaR", "Mean", "RiskMeasure"),
        *("effective_sample_size", "excess_loss"),
    ),
    "steering": (
        *("BatchEstimator", "DRRhoLoss", "LearnedDual", "LossTable", "Losses", "MovingAverage"),
        *("accumulate_gradients", "token_losses"),
    ),
    "studies.compare.spec": ("Comparison", "GapConfig", "TuningConfig"),
    "training.config": ("Training",),
    "training.optimizer": ("Optimizer",),
    "verbs": (
        *("Run", "compare", "curate", "evaluate", "export", "import_reference", "index"),
        *("precompute_reference", "probe", "report", "train"),
    ),
}
_HOMES = {name: f"drrho.{home}" for home, names in _NAMES.items() for name in names}
__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name

    def __getattr__(name: str) -> Any:
        """Imports a name of the front door, or reads the version, at its first use."""
        if name == "__version__":
            value = _version()
        elif name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module 'drrho' has no attribute {name!r}")
        globals()[name] = value
        return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  20 ms

    try:
        return version("drrho")
    except PackageNotFoundError:  # on the path and not installed
        return "0+unknown"
