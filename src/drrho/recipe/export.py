"""Export of a run's model, or of one of its checkpoints, for other programs."""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from drrho.models.build import build_recorded_model, load_model
from drrho.models.export import export_hugging_face, export_open_clip
from drrho.models.lora import merged_weights
from drrho.models.program import trusting
from drrho.models.tuning import tune
from drrho.models.two_tower import TwoTower
from drrho.recipe.document import read_recipe, read_recipe_file
from drrho.runtime.files import expand_paths
from drrho.training.checkpoint import read_values

PREFIX, EMA_PREFIX = "model.", "ema.module."
EMA_NAME = "ema"  # the folder and the metrics of the moving average of the weights


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a trained model as another program loads it.

    Attributes:
        run: folder of a run.
        format: format to write: "open-clip", a file for `create_model_and_transforms(NAME,
            pretrained=FILE)` (a folder of the model "small"), or "hugging-face", a folder for
            `transformers.AutoModel.from_pretrained`.
        output: file to write, .pt or .safetensors, or a folder.
        checkpoint: checkpoint of the run to export, such as runs/mine/checkpoints/step-00001000; by
            default the finished model.
        ema: export the moving average of the weights instead, of a run with `training.ema`.
        trust: run the program that the run's folder names; needed for runs of "python:FILE.py".
    """

    run: Positional[str] = field(kw_only=False)
    format: Literal["open-clip", "hugging-face"]
    output: str
    checkpoint: str | None = None
    ema: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        expand_paths(self, "run", "checkpoint")


def export_model(config: ExportConfig) -> Path:
    """Write the model, and return its path.

    Raises:
        FileNotFoundError: the run has no finished model, or is no run.
        CheckpointError: the checkpoint is damaged.
        ValueError: the model cannot be written in this format, or the checkpoint does not fit it.
    """
    output = Path(config.output).expanduser()
    run = Path(config.run).expanduser()
    if config.ema:
        _require_ema(run)
    with trusting(everything=config.trust):
        if config.checkpoint is None:
            model = load_model(run / EMA_NAME / "model" if config.ema else run / "model")
        else:
            checkpoint = Path(config.checkpoint).expanduser()
            model = load_checkpoint_model(run, checkpoint, ema=config.ema)
    match config.format:
        case "open-clip":
            export_open_clip(model, output)
        case "hugging-face":
            export_hugging_face(model, output)
    return output


def _require_ema(run: Path) -> None:
    if read_recipe(read_recipe_file(run)).training.ema is None:
        raise ValueError(
            f"ema = True has no effect: {run} was trained without training.ema; leave it out"
        )


def load_checkpoint_model(run: Path, checkpoint: Path, *, ema: bool = False) -> TwoTower:
    """Load the model of one of a run's checkpoints, or the moving average of its weights.

    Raises:
        FileNotFoundError: the folder is no run.
        CheckpointError: the checkpoint is damaged.
        ValueError: the checkpoint is of another model.
    """
    read_values(checkpoint)  # verifies the files
    # Takes seconds to import.
    from drrho.training.tensor_files import read_tensors  # noqa: PLC0415

    recipe = read_recipe(read_recipe_file(run))
    model = build_recorded_model(recipe.model, seed=0, run=run)
    trained = model
    if recipe.tuning.lora is not None:
        trained = replace(model, module=copy.deepcopy(model.module))
        tune(trained, recipe.tuning, seed=0)
    prefix = EMA_PREFIX if ema else PREFIX
    weights = {
        name.removeprefix(prefix): value
        for name, value in read_tensors(checkpoint).items()
        if name.startswith(prefix)
    }
    try:
        trained.module.load_state_dict(weights)
        model.module.load_state_dict(merged_weights(trained.module, weights))
    except RuntimeError as error:
        raise ValueError(
            f"checkpoint {checkpoint} is not one of the model of {run}: {error}"
        ) from error
    return model


def run_export(config: ExportConfig) -> str:
    """Write a trained model as open_clip or Hugging Face loads it."""
    output = export_model(config)
    match config.format:
        case "open-clip" if output.is_dir():
            return (
                f"{output}: drrho.models.small.register(), then "
                f"open_clip.create_model_and_transforms('local-dir:{output}')"
            )
        case "open-clip":
            return f"{output}: open_clip.create_model_and_transforms(NAME, pretrained='{output}')"
        case "hugging-face":
            return f"{output}: transformers.AutoModel.from_pretrained('{output}')"
