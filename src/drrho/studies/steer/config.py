"""Configuration of `drrho steer`, and the files of its folder."""

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from drrho.models.build import Model, named_model
from drrho.runtime.checks import require_at_least, require_positive
from drrho.runtime.files import expand_paths
from drrho.runtime.launch import Device


@dataclass(frozen=True, kw_only=True)
class SteerConfig:
    """Steer a model by a reference on your own pairs: from the images to a report.

    The steps are: index, held-out pairs, check of the reference, its embeddings, a recipe,
    training, evaluation and report. Each step prints what it does, what it costs, and the command
    that does it alone. Finished steps are kept, so the same command continues after an
    interruption.

    Attributes:
        data: training pairs, as `drrho index` takes them: a folder of images with captions, a
            table, shards; or a manifest.
        reference: reference model, as `drrho reference precompute` takes it, with
            ARCHITECTURE@PRETRAINED for an open_clip tag or checkpoint file; or the folder of a
            model.
        model: model to train: "small", or any that a recipe takes; ARCHITECTURE alone has random
            weights, ARCHITECTURE@PRETRAINED and the others are fine-tuned.
        output: folder of everything that is written.
        validation: validation pairs, as `drrho index` takes them, or a manifest; None holds out a
            tenth of the images of `data`, as `drrho split` does.
        recipe: file of the recipe to train by, such as the `recipe.py` of the folder after you
            edited it; None takes the one that follows from the sizes of data and model.
        with_plain: also train without the reference, for as many steps, and compare.
        dry_run: read the data, say what would be done and what it would cost; write nothing.
        batch_size: pairs in a batch; None chooses.
        epochs: passes over the training pairs; None chooses.
        image_column: column of a table with the images; None finds it, as `drrho index` does.
        caption_column: column of a table with the captions; None finds it.
        images: folder that paths in a table are relative to; None finds it.
        image_extension: extension of the images in tar files, where it is none of the usual.
        caption_field: field of json files, in tar files or beside images, that has the captions.
        workers: worker processes that read and decode; 0 does it in the main process.
        seed: random seed of the held-out pairs, the initial weights and the order of the data.
        device: device to compute on; "auto" takes the GPU if there is one.
        trust: run the program that the folder of a model names; needed for runs of
            "python:FILE.py".
    """

    data: Positional[str] = field(kw_only=False)
    reference: str
    model: str = "small"
    output: str = "runs/steered"
    validation: str | None = None
    recipe: str | None = None
    with_plain: bool = False
    dry_run: bool = False
    batch_size: int | None = None
    epochs: float | None = None
    image_column: str | None = None
    caption_column: str | None = None
    images: str | None = None
    image_extension: str | None = None
    caption_field: str | None = None
    workers: int = 0
    seed: int = 0
    device: Device = "auto"
    trust: bool = False

    def __post_init__(self) -> None:
        expand_paths(self, "data", "reference", "validation", "recipe", "images")
        require_at_least(0, workers=self.workers, seed=self.seed)
        require_at_least(2, batch_size=self.batch_size)
        require_positive(epochs=self.epochs)
        if self.recipe is not None:
            for name in ("batch_size", "epochs"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(
                        f"{name} = {value} has no effect on a recipe that is given; set it there"
                    )
        self.reference_model.require_trained()

    @property
    def reference_model(self) -> Model:
        """The reference."""
        return named_model(self.reference)

    @property
    def target_model(self) -> Model:
        """The model to train."""
        return named_model(self.model)


@dataclass(frozen=True)
class SteerFiles:
    """Names of what `drrho steer` writes into its folder."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        """Return the place of a file or folder; AttributeError if there is none of that name."""
        if name not in FILES:
            raise AttributeError(name)
        return self.folder / FILES[name]

    def scores(self, of: str) -> Path:
        """Return the file of the scores of a model, as `drrho evaluate --output` writes it."""
        return self.folder / "scores" / f"{of}.json"

    def ranks(self, of: str) -> Path:
        """Return the file of the reciprocal ranks behind the scores of a model."""
        return self.folder / "scores" / f"{of}.ranks.json"


FILES = {
    "asked": "asked.json",
    "pairs": "pairs.json",
    "train": "train.json",
    "val": "val.json",
    "reference": "reference",
    "recipe": "recipe.py",
    "plain_recipe": "plain.py",
    "start": "start",
    "run": "run",
    "plain": "plain",
    "report": "report.html",
    "results": "steer.json",
}
