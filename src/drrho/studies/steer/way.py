"""The steps of `drrho steer` once its data are known: from the reference's score to the report."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.shards import decode_captions
from drrho.encoding.costs import Rates, measure
from drrho.encoding.encoder import EmbeddingModel
from drrho.evaluation.evaluate import EvaluateConfig
from drrho.models.build import Model, build_model, save_model
from drrho.recipe.arguments.recipe_text import write_recipe_text
from drrho.recipe.document import RESULTS_FILE
from drrho.recipe.plan import readable_bytes
from drrho.recipe.recipe import Recipe, load_recipe
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.reference.judgement import guessed_mrr
from drrho.reference.precompute import stored_bytes
from drrho.runtime.files import read_regular, write_atomically
from drrho.runtime.launch import resolve_device
from drrho.runtime.records import write_record
from drrho.studies.report.write import ReportConfig, write_report
from drrho.studies.steer.choices import choose_recipe, plain_recipe
from drrho.studies.steer.commands import command_of
from drrho.studies.steer.config import SteerConfig, SteerFiles
from drrho.studies.steer.results import (
    SteerResults,
    differences_from_target,
    interval_of,
    near_guessing,
    sentences_of,
)
from drrho.studies.steer.scores import Scores, score
from drrho.studies.steer.steps import (
    Step,
    held_out_pairs,
    readable_seconds,
    whole,
)

MAX_FILE = 2**28  # bytes of a file of our own
CHECKPOINT_COPIES = 3  # weights, and AdamW's two moments
WEIGHT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Way:
    """What follows from the configuration and the sizes of data and models.

    Attributes:
        train: manifest of the training pairs.
        held_out: manifest of the held-out pairs.
        recipe: recipe to train by.
        recipe_text: the file of a recipe that was chosen; None for one that was given.
        rates: seconds of a pair; None once the run is finished.
        parameters: number of parameters of the target.
        embedding_dim: dimension of the reference's embeddings; 0 once the run is finished.
        scores: scores of the models on the held-out pairs, as they are found.
        warnings: what the judgement of the reference warns of, as it is found.
    """

    config: SteerConfig
    train: Manifest
    held_out: Manifest
    recipe: Recipe
    recipe_text: str | None
    rates: Rates | None
    parameters: int
    embedding_dim: int
    scores: dict[str, Scores] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, config: SteerConfig, train: Manifest, held_out: Manifest) -> "Way":
        """Choose or load the recipe, and time both models.

        Raises:
            ValueError: there is no such model, the held-out pairs are among the training pairs, or
                a given recipe trains in another folder.
        """
        files = SteerFiles(Path(config.output))
        _require_apart(train, held_out)
        given = None if config.recipe is None else load_recipe(config.recipe, Recipe)
        if given is not None and Path(given.output) != files.run:
            raise ValueError(
                f"{config.recipe} trains in {given.output}, and this steering's run is "
                f"{files.run}; set output = {str(files.run)!r} there"
            )
        model = config.target_model if given is None else given.model
        target = build_model(model, seed=config.seed if given is None else given.seed)
        parameters = sum(p.numel() for p in target.module.parameters())
        text = None
        if given is None:
            num_pairs = len(train.usable_ids())
            given, notes = choose_recipe(config, files, num_pairs=num_pairs, parameters=parameters)
            command = f"drrho train {files.recipe}"
            text = write_recipe_text(given, made_by="drrho steer", notes=notes, command=command)
        rates, dim = None, 0
        if not (files.run / RESULTS_FILE).exists():
            device = resolve_device(config.device)
            named = build_model(config.reference_model, seed=0)
            reference = EmbeddingModel.frozen(named, device=device)
            dim = reference.embedding_dim
            rates = measure(reference, target, train, precision=given.training.precision)
        return cls(
            config=config,
            train=train,
            held_out=held_out,
            recipe=given,
            recipe_text=text,
            rates=rates,
            parameters=parameters,
            embedding_dim=dim,
        )

    @staticmethod
    def num_steps(config: SteerConfig) -> int:
        """Count the steps that `steps` lists."""
        return 7 if config.with_plain else 6

    @property
    def files(self) -> SteerFiles:
        """Names of the files in the output folder."""
        return SteerFiles(Path(self.config.output))

    @property
    def recipe_file(self) -> Path:
        """The file that holds the recipe."""
        return self.files.recipe if self.config.recipe is None else Path(self.config.recipe)

    @cached_property
    def guessing(self) -> float:
        """Mean reciprocal rank of guessing among the held-out pairs, by their first captions."""
        samples = OpenShards(self.held_out).read(self.held_out.usable_ids().tolist())
        carriers = Counter(decode_captions(sample)[0] for sample in samples)
        return guessed_mrr(list(carriers.values()))

    def steps(self) -> list[Step]:
        """List the steps, each with its costs."""
        steps = [
            self._check_step(),
            self._precompute_step(),
            self._recipe_step(),
            self._train_step(self.recipe, self.recipe_file, "train the target, steered"),
        ]
        if self.config.with_plain:
            recipe = plain_recipe(self.recipe, self.files.plain)
            what = "train the target again without the reference"
            steps.append(self._train_step(recipe, self.files.plain_recipe, what))
        return [*steps, self._evaluate_step(), self._report_step()]

    def results(self) -> SteerResults:
        """Collect what was found, and write it."""
        mrr = {name: interval_of(found.ranks) for name, found in self.scores.items()}
        differences = differences_from_target({n: s.ranks for n, s in self.scores.items()})
        results = SteerResults(
            pairs=len(self.train.usable_ids()),
            held_out=len(self.held_out.usable_ids()),
            guessing=self.guessing,
            mrr=mrr,
            first={name: found.first for name, found in self.scores.items()},
            differences=differences,
            sentences=(
                *(f"the reference: {warning}" for warning in self.warnings),
                *sentences_of(mrr, differences, guessing=self.guessing),
            ),
            folder=self.config.output,
        )
        write_record(self.files.results, results)
        return results

    def _check_step(self) -> Step:
        evaluate = self._evaluate_config("reference", self.config.reference_model)

        def work() -> str:
            self._score("reference", evaluate, made_of="reference")
            mrr = interval_of(self.scores["reference"].ranks)
            warning = ""
            if near_guessing(mrr, self.guessing):
                warning = "; that is near guessing: this reference can teach little, choose another"
            first = self.scores["reference"].first
            return (
                f"MRR {mrr}, own text first for {first:.1%}; guessing {self.guessing:.3f}{warning}"
            )

        return Step(
            name="reference",
            what="score the reference on the held-out pairs",
            commands=(command_of("evaluate", evaluate),),
            cost=self._seconds(len(self.held_out.usable_ids()), "reference"),
            work=work,
        )

    def _precompute_step(self) -> Step:
        model = self.config.reference_model
        config = PrecomputeConfig(
            data=str(whole(self.config, self.files)),
            model=model.name,
            pretrained=model.pretrained,
            output=str(self.files.reference),
            workers=self.config.workers,
            device=self.config.device,
            trust=self.config.trust,
        )
        num_samples = self.train.num_samples
        cost = self._seconds(len(self.train.usable_ids()), "reference")
        if cost is not None:
            cost += f", {readable_bytes(stored_bytes(num_samples, self.embedding_dim))} of disk"

        def work() -> str:
            report = precompute_reference(config)
            counts = f"{config.output}: {report}; {report.shards_found} shards were there already"
            if (judgement := report.judgement) is None:
                return counts
            self.warnings.extend([] if judgement.warning is None else [judgement.warning])
            return f"{counts}\n    {judgement}"

        return Step(
            name="embeddings",
            what="store the reference's embeddings of every pair, once",
            commands=(command_of("reference precompute", config),),
            cost=cost,
            work=work,
        )

    def _recipe_step(self) -> Step:
        def work() -> str:
            if self.config.with_plain:
                plain = plain_recipe(self.recipe, self.files.plain)
                notes = ["the steered run without its reference: FastCLIP"]
                text = write_recipe_text(
                    plain,
                    made_by="drrho steer",
                    notes=notes,
                    command=f"drrho train {self.files.plain_recipe}",
                )
                write_atomically(self.files.plain_recipe, text.encode())
            if self.recipe_text is None:
                return f"{self.recipe_file}, as given"
            _require_own(self.files.recipe, self.recipe_text)
            write_atomically(self.files.recipe, self.recipe_text.encode())
            return f"{self.files.recipe}\n\n{self.recipe_text}"

        return Step(
            name="recipe",
            what="write the recipe, chosen by the sizes of data and model; edit it and give it as "
            "--recipe for another",
            commands=(f"drrho train {self.recipe_file} --dry-run",),
            cost=None,
            work=work,
        )

    def _train_step(self, recipe: Recipe, file: Path, what: str) -> Step:
        training = recipe.training

        def work() -> str:
            found = train_recipe(recipe)
            return f"{recipe.output}: {found.samples_seen:,} samples seen"

        cost = None
        if self.rates is not None and training.steps is not None:
            evaluations = (
                0
                if training.evaluate_every is None
                else training.steps // (training.evaluate_every)
            )
            seconds = training.steps * recipe.trained_batch_size * self.rates.step
            seconds += evaluations * len(self.held_out.usable_ids()) * self.rates.target
            copies = 1 + CHECKPOINT_COPIES * (training.keep_checkpoints + 1)
            disk = readable_bytes(copies * WEIGHT_BYTES * self.parameters)
            cost = f"{readable_seconds(seconds)}, {disk} of disk"
        return Step(
            name="train",
            what=what,
            commands=(f"drrho train {file}",),
            cost=cost,
            work=work,
        )

    def _evaluate_step(self) -> Step:
        """Score the target before and after training, and the plain run."""
        recipe = self.recipe
        untrained = not recipe.model.names_weights
        models = {
            "start": Model(name=f"run:{self.files.start}") if untrained else recipe.model,
            "target": Model(name=f"run:{self.files.run}"),
        }
        if self.config.with_plain:
            models["plain"] = Model(name=f"run:{self.files.plain}")
        configs = {name: self._evaluate_config(name, model) for name, model in models.items()}

        def work() -> str:
            if untrained:
                save_model(build_model(recipe.model, seed=recipe.seed), self.files.start)
            made_of = {
                "start": f"{recipe.model} {recipe.seed}",
                "target": _hash_of(self.files.run / RESULTS_FILE),
            }
            if self.config.with_plain:
                made_of["plain"] = _hash_of(self.files.plain / RESULTS_FILE)
            for name, evaluate in configs.items():
                self._score(name, evaluate, made_of=made_of[name])
            found = (f"{name} {interval_of(self.scores[name].ranks)}" for name in configs)
            return f"MRR: {', '.join(found)}"

        return Step(
            name="evaluate",
            what="score the target before and after training on the held-out pairs",
            commands=tuple(command_of("evaluate", one) for one in configs.values()),
            cost=self._seconds(len(configs) * len(self.held_out.usable_ids()), "target"),
            work=work,
        )

    def _report_step(self) -> Step:
        runs = (str(self.files.run), *([str(self.files.plain)] if self.config.with_plain else []))
        config = ReportConfig(
            runs=runs,
            output=str(self.files.report),
            device=self.config.device,
            trust=self.config.trust,
        )
        return Step(
            name="report",
            what="write one page: curves, alerts, pairs that steering raises and lowers",
            commands=(command_of("report", config),),
            cost=None,
            work=lambda: str(write_report(config)),
        )

    def _evaluate_config(self, name: str, model: Model) -> EvaluateConfig:
        return EvaluateConfig(
            run=model.name,
            pretrained=model.pretrained,
            data=(str(held_out_pairs(self.config, self.files)),),
            output=str(self.files.scores(name)),
            workers=self.config.workers,
            device=self.config.device,
            trust=self.config.trust,
        )

    def _score(self, name: str, config: EvaluateConfig, *, made_of: str) -> None:
        self.scores[name] = score(config, self.files.ranks(name), made_of=made_of)

    def _seconds(self, num_pairs: int, model: str) -> str | None:
        """Estimate the time of encoding so many pairs."""
        if self.rates is None:
            return None
        return readable_seconds(num_pairs * getattr(self.rates, model))


def _require_apart(train: Manifest, held_out: Manifest) -> None:
    """Raise ValueError if validation pairs are in shards that are trained on."""
    ids = set(held_out.usable_ids().tolist())
    if train.num_samples == held_out.num_samples and not ids & set(train.usable_ids().tolist()):
        return  # the two sides of a split
    common = {shard.contents for shard in train.shards} & {s.contents for s in held_out.shards}
    if common:
        raise ValueError(
            f"{len(common)} shards are among the training pairs and the validation pairs; leave "
            "--validation out to hold out some, or give other pairs"
        )


def _require_own(path: Path, text: str) -> None:
    """Raise ValueError if a recipe is there that is not the chosen one: it would be lost."""
    if path.exists() and read_regular(path, most=MAX_FILE) != text.encode():
        raise ValueError(
            f"{path} is not the recipe that is chosen here: it was edited, or other options or "
            f"another machine chose it; train by it with --recipe {path}, or remove it"
        )


def _hash_of(path: Path) -> str:
    return hashlib.sha256(read_regular(path, most=MAX_FILE)).hexdigest()
