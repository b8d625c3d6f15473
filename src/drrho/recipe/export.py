"""Export of a run's model, or of one of its checkpoints, for other programs."""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from drrho.models.build import SMALL_CONFIG_FILE, build_recorded_model, load_model
from drrho.models.export import export_hugging_face, export_open_clip
from drrho.models.lora import merged_weights
from drrho.models.program import trusting
from drrho.models.tuning import tune
from drrho.models.two_tower import TwoTower
from drrho.recipe.document import RECIPE_FILE, read_recipe, read_recipe_file, read_run_results
from drrho.recipe.publishing.card import write_card
from drrho.recipe.publishing.hub import push_folder, require_repository
from drrho.runtime.files import expand_paths
from drrho.training.checkpoint import read_values

PREFIX, EMA_PREFIX = "model.", "ema.module."
PUSHED = (".safetensors", ".json", ".txt", ".md", ".model")  # endings of what exports write
EMA_NAME = "ema"  # the folder and the metrics of the moving average of the weights


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a trained model as another program loads it.

    Attributes:
        run: folder of a run.
        format: format to write: "open-clip", a file for `create_model_and_transforms(NAME,
            pretrained=FILE)` or a folder for `create_model_and_transforms("local-dir:FOLDER")`, or
            "hugging-face", a folder for `transformers.AutoModel.from_pretrained`.
        output: file to write, .pt or .safetensors, or a folder, which gets a card, README.md, too.
        checkpoint: checkpoint of the run to export, such as runs/mine/checkpoints/step-00001000; by
            default the finished model.
        push: repository of the Hugging Face Hub, OWNER/NAME, into which the folder is pushed after
            it was written; by default nothing leaves this machine. Log in with `hf auth login`.
        public: whether a repository that is made by the push is public; it is private otherwise.
        ema: export the moving average of the weights instead, of a run with `training.ema`.
        trust: run the program that the run's folder names; needed for runs of "python:FILE.py".
    """

    run: Positional[str] = field(kw_only=False)
    format: Literal["open-clip", "hugging-face"]
    output: str
    checkpoint: str | None = None
    push: str | None = None
    public: bool = False
    ema: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        expand_paths(self, "run", "checkpoint")
        if self.public and self.push is None:
            raise ValueError("public = True has no effect without push; leave it out")
        if self.push is not None:
            require_repository(self.push)
            if Path(self.output).suffix in (".pt", ".safetensors"):
                raise ValueError(
                    f"push needs a folder, with configuration and card; output = {self.output!r} "
                    "is a file: leave its ending out"
                )


def export_model(config: ExportConfig) -> Path:
    """Write the model, push it where that is asked for, and return its path.

    Raises:
        PushError: it is written and could not be pushed.
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
    if output.is_dir():
        _describe(run, output, config)
    if config.push is not None:
        files = [path.name for path in output.iterdir() if path.suffix in PUSHED]
        push_folder(output, config.push, files=files, public=config.public)
    return output


def _describe(run: Path, output: Path, config: ExportConfig) -> None:
    """Write the card of a run's model; it has scores of the finished model alone."""
    if not (run / RECIPE_FILE).is_file():
        return
    is_finished = config.checkpoint is None and not config.ema
    local = f"local-dir:{output.name}" if config.format == "open-clip" else output.name
    hub = f"hf-hub:{config.push}" if config.format == "open-clip" else str(config.push)
    write_card(
        output,
        read_recipe(read_recipe_file(run)),
        read_run_results(run) if is_finished else None,
        program=config.format,
        place=hub if config.push else local,
    )


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
    is_small = (Path(config.run).expanduser() / "model" / SMALL_CONFIG_FILE).is_file()
    register = "drrho.models.small.register(), then " if is_small else ""
    match config.format:
        case "open-clip" if output.is_dir():
            load = "{register}open_clip.create_model_and_transforms('{place}')"
            places = f"local-dir:{output}", f"hf-hub:{config.push}"
        case "open-clip":
            load = "open_clip.create_model_and_transforms(NAME, pretrained='{place}')"
            places = str(output), ""
        case "hugging-face":
            load = "transformers.AutoModel.from_pretrained('{place}')"
            places = str(output), str(config.push)
    written = f"{output}: {load.format(register=register, place=places[0])}"
    if config.push is None:
        return written
    kind = "public" if config.public else "private, if it was not there before"
    return f"{written}\npushed to {config.push} ({kind}): " + load.format(
        register=register, place=places[1]
    )
