"""Specification of a comparison: references, methods, seeds and test sets."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from drrho.data.views import Views
from drrho.models.build import Model
from drrho.recipe.named.published import Scale, named_recipe
from drrho.recipe.recipe import Recipe
from drrho.runtime.checks import require_at_least
from drrho.runtime.files import expand_paths
from drrho.runtime.records import OPTIONAL

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
START = "reference:"  # begins the name of a model that starts from a reference's weights
Primary = tuple[str, str]  # a method, and the method or reference that it is expected to be above


class Stored(NamedTuple):
    """Stored embeddings that a recipe reads: reference, data, and views of the data."""

    reference: str
    data: str
    views: Views | None


class Part(NamedTuple):
    """One run of a comparison."""

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}:{self.seed}"


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Choice between the settings of a method, by runs of each on the validation set.

    Attributes:
        seed: random seed of these runs, different from the comparison's seeds.
        metric: metric of the recipe's evaluation; the setting with its highest mean is taken.
        runs: runs of each setting, with the seeds `seed`, `seed` + 1, ... A setting of which one
            run failed is not taken.
    """

    seed: int = 1000
    metric: str = "evaluation/mrr"
    runs: int = field(default=1, metadata=OPTIONAL)

    def __post_init__(self):
        require_at_least(1, runs=self.runs)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs of each setting."""
        return tuple(range(self.seed, self.seed + self.runs))


@dataclass(frozen=True, kw_only=True)
class GapConfig:
    """The two ends of the performance gap recovered, (m - weak) / (ceiling - weak).

    Attributes:
        weak: a reference, weaker than what the target can become.
        ceiling: a method that trains the target on the data that the weak one replaces.
    """

    weak: str
    ceiling: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods on the same test sets, each trained with the same seeds.

    Runs of one seed start from the same weights and are given the same data in the same order,
    where their recipes have the same model and data.

    Attributes:
        output: folder of everything; finished parts found there are kept. None given takes the
            recipe's, with "-comparison".
        methods: name -> recipe, in the order of the table; the first is what the others are
            compared with. Its `reference`, `teachers`, `filtering.reference` and
            `evaluation.references` are names of `references`; its `output` and `seed` are set
            here. A model "reference:NAME" starts from the weights of that reference. Several
            recipes are settings of one method, and `tuning` chooses one of them; then all methods
            have as many. Or names of algorithms (`drrho recipes` lists them), whose objectives and
            selections are put into `recipe`.
        recipe: what methods given by name have in common. Its reference is of stored embeddings.
        test: evaluation sets that are read once, at the end: one, or name -> set. None holds out a
            tenth of the training data, drawn at random, on which no method is trained.
        references: name -> recipe to train first, an existing model, or the folder of stored
            embeddings of the training data, whose model is not evaluated. A recipe may be steered
            by references listed before it. A reference's embeddings are stored once for each
            data set that a method trains on with it.
        seeds: each method is trained once per seed; a number n means the seeds 0 to n - 1.
        tuning: how settings are chosen; exactly where methods have several.
        gap: where a reference is weaker than the target: the gap to report.
        primaries: pairs (a method, the method or reference that it is expected to be above), named
            before anything is run: p values are adjusted for these alone. None given adjusts for
            all differences that the table shows.
        threads: number of threads of the processor that train, since it moves the last digits;
            None takes what PyTorch has.
        tuned_on: comparisons with the same methods and settings, whose tuning runs choose the
            settings for this one; none given makes such runs with its own data.
    """

    output: str = ""
    methods: Mapping[str, Recipe | tuple[Recipe, ...]] | Sequence[str]
    recipe: InitVar[Recipe | None] = None
    test: str | Mapping[str, str] | None = None
    references: Mapping[str, Recipe | Model | str] = field(default_factory=dict)
    seeds: int | tuple[int, ...] = (0,)
    tuning: TuningConfig | None = None
    gap: GapConfig | None = None
    primaries: tuple[Primary, ...] = ()
    threads: int | None = None
    tuned_on: "tuple[Comparison, ...]" = field(default=(), repr=False)

    def __post_init__(self, recipe: Recipe | None):
        expand_paths(self, "test", may_be_empty=True)  # none given takes the recipe's
        if isinstance(self.methods, Mapping) != (recipe is None):
            raise ValueError(
                "give methods as name -> recipe, or their names and the recipe for all"
            )
        if recipe is not None:
            self._put_into(recipe)
        if not self.output:
            raise ValueError("a comparison needs output, the folder of everything")
        if not self.methods or not self.all_seeds or self.test == {}:
            raise ValueError("a comparison needs at least one method, one seed and one test set")
        if len(set(self.all_seeds)) < len(self.all_seeds) or min(self.all_seeds) < 0:
            raise ValueError(
                f"seeds must not be negative and differ from each other, got {self.seeds}"
            )
        named = {"method": self.methods, "reference": self.references, "test set": self.tests}
        for kind, names in named.items():
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(
                        f"{name!r} cannot be the name of a {kind}, because it names a folder "
                        "too: use letters, digits and _ . + -"
                    )
        self._check_tuning()
        self._check_references()
        self._check_test_sets()
        if self.gap is not None and self.gap.weak not in self.references:
            raise ValueError(f"gap.weak = {self.gap.weak!r} is none of the references")
        if self.gap is not None and self.gap.ceiling not in self.methods:
            raise ValueError(f"gap.ceiling = {self.gap.ceiling!r} is none of the methods")
        if self.threads is not None:
            require_at_least(1, threads=self.threads)
        self._check_primaries()

    @property
    def tests(self) -> Mapping[str, str]:
        """Test sets by name; none where one is yet to be held out."""
        return {"test": self.test} if isinstance(self.test, str) else self.test or {}

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds, one by one."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def parts(self) -> tuple[Part, ...]:
        """All runs: seed after seed, so that an interrupted comparison has whole seeds."""
        return tuple(Part(method, seed) for seed in self.all_seeds for method in self.methods)

    def settings(self, method: str) -> tuple[Recipe, ...]:
        """The recipes to choose from, as in `methods`."""
        assert isinstance(self.methods, Mapping)  # names were replaced
        recipes = self.methods[method]
        return recipes if isinstance(recipes, tuple) else (recipes,)

    def run_recipe(self, part: Part, *, setting: int = 0) -> Recipe:
        """The run of one method and seed."""
        folder = Path(self.output) / f"{part.method}-seed{part.seed}"
        return self._located(self.settings(part.method)[setting], folder, seed=part.seed)

    @property
    def judges(self) -> "tuple[Comparison, ...]":
        """The comparisons whose tuning runs choose the settings."""
        return self.tuned_on or (self,)

    def tuning_recipes(self, method: str, setting: int) -> list[Recipe]:
        """The runs that judge one setting of a method."""
        assert self.tuning is not None
        first = Path(self.output) / "tuning" / f"{method}-setting{setting}"
        folders = {
            seed: first if seed == self.tuning.seed else Path(f"{first}-seed{seed}")
            for seed in self.tuning.seeds
        }
        chosen = self.settings(method)[setting]
        return [self._located(chosen, folder, seed=seed) for seed, folder in folders.items()]

    @property
    def model_names(self) -> set[str]:
        """Names of the models of all methods and of the references that are trained."""
        recipes = [recipe for method in self.methods for recipe in self.settings(method)]
        recipes += [it for it in self.references.values() if isinstance(it, Recipe)]
        return {recipe.model.name for recipe in recipes}

    def reference_recipe(self, name: str) -> Recipe | None:
        """The run that makes a reference; None for what exists already."""
        reference = self.references[name]
        if not isinstance(reference, Recipe):
            return None
        return self._located(reference, self.reference_folder(name) / "run", seed=reference.seed)

    def reference_model(self, name: str) -> Model | None:
        """The reference as a model that can be built, once it is trained; None for embeddings."""
        reference, recipe = self.references[name], self.reference_recipe(name)
        if recipe is None:
            return reference if isinstance(reference, Model) else None
        return model_of_run(recipe)

    def reference_folder(self, name: str) -> Path:
        """The folder of a reference's run, scores and stored embeddings."""
        return Path(self.output) / "references" / name

    def embeddings(self, stored: Stored) -> Path:
        """Folder of a reference's stored embeddings of a data set."""
        if isinstance(given := self.references[stored.reference], str):
            return Path(given)
        views = "" if stored.views is None else repr(stored.views)
        digest = hashlib.sha256(f"{stored.data}{views}".encode()).hexdigest()[:8]
        return self.reference_folder(stored.reference) / f"embeddings-{digest}"

    def _located(self, recipe: Recipe, folder: Path, *, seed: int) -> Recipe:
        """The recipe with folders in place of the names of references."""

        def located(names: Iterable[str], *, held_out: bool = False) -> tuple[str, ...]:
            data, views = recipe.data, recipe.loading.views
            if held_out:
                data, views = str(recipe.evaluation.data), None
            return tuple(str(self.embeddings(Stored(name, data, views))) for name in names)

        reference, filtering, evaluation = recipe.reference, recipe.filtering, recipe.evaluation
        if filtering is not None and filtering.reference is not None:
            filtering = replace(filtering, reference=located([filtering.reference])[0])
        if reference is not None:
            found = located(recipe.references)
            reference = found[0] if isinstance(reference, str) else found
        model, started = recipe.model, started_from(recipe)
        if started is not None:
            model = self.reference_model(started)
            assert model is not None  # stored embeddings are refused
        return replace(
            recipe,
            output=str(folder),
            seed=seed,
            model=model,
            reference=reference,
            teachers=located(recipe.teachers),
            filtering=filtering,
            evaluation=replace(
                evaluation, references=located(evaluation.references, held_out=True)
            ),
        )

    def _put_into(self, recipe: Recipe) -> None:
        """Replaces the names of algorithms by recipes, and folders of references by names."""
        if self.references:
            raise ValueError("references have no effect beside recipe, whose own are taken")
        names = {folder: f"reference-{k}" for k, folder in enumerate(recipe.references, start=1)}
        if len(names) == 1:
            names = dict.fromkeys(names, "reference")
        references = {name: folder for folder, name in names.items()}
        recipes = {name: _with_algorithm(recipe, name, list(references)) for name in self.methods}
        # The dataclass is frozen, and this is the end of its construction.
        object.__setattr__(self, "methods", recipes)
        object.__setattr__(self, "references", references)
        object.__setattr__(self, "output", self.output or f"{recipe.output}-comparison")

    def _check_tuning(self) -> None:
        numbers = {method: len(self.settings(method)) for method in self.methods}
        if len(set(numbers.values())) > 1 or 0 in numbers.values():
            raise ValueError(
                f"every method must have the same number of settings to choose from, got {numbers}"
            )
        if (max(numbers.values()) > 1) != (self.tuning is not None):
            raise ValueError(
                "tuning must be given exactly where methods have several settings; they have "
                f"{max(numbers.values())}, and tuning = {self.tuning}"
            )
        if self.tuning is None:
            return
        if both := {*self.tuning.seeds} & {*self.all_seeds}:
            raise ValueError(
                f"tuning.seed = {self.tuning.seed} must be none of the seeds, nor one of the next "
                f"where tuning.runs says so: {sorted(both)} would choose and be reported"
            )
        for method in self.methods:
            if any(recipe.evaluation.data is None for recipe in self.settings(method)):
                raise ValueError(f"method {method!r} has no evaluation.data to choose a setting by")

    def _check_primaries(self) -> None:
        for one, other in self.primaries:
            if one not in self.methods or other not in {*self.methods, *self.references}:
                raise ValueError(
                    f"the primary {one!r} over {other!r} must be a method, and a method or a "
                    f"reference; there are {', '.join([*self.methods, *self.references])}"
                )
        if len({frozenset(pair) for pair in self.primaries}) < len(self.primaries) or any(
            one == other for one, other in self.primaries
        ):
            raise ValueError(f"primaries must be different pairs, got {self.primaries}")

    def _check_references(self) -> None:
        names = list(self.references)
        for place, (name, reference) in enumerate(self.references.items()):
            if isinstance(reference, Model):
                reference.require_trained()
            elif isinstance(reference, Recipe):
                _require_known(reference, names[:place], whose=f"reference {name!r}")
        for method in self.methods:
            for recipe in self.settings(method):
                _require_known(recipe, names, whose=f"method {method!r}")
        self._require_used(names)
        recipes = [recipe for method in self.methods for recipe in self.settings(method)]
        recipes += [it for it in self.references.values() if isinstance(it, Recipe)]
        for name in filter(None, map(started_from, recipes)):
            if isinstance(self.references[name], str):
                raise ValueError(
                    f"model.name = {START + name!r} needs a reference that is a model; {name!r} is "
                    "a folder of stored embeddings"
                )

    def _require_used(self, names: list[str]) -> None:
        """Raises ValueError for a reference that neither a method nor a used reference reads."""
        recipes = [recipe for method in self.methods for recipe in self.settings(method)]
        used = {name for recipe in recipes for name in references_of(recipe)}
        for name in reversed(names):  # a reference reads those that stand before it
            reference = self.references[name]
            if name in used and isinstance(reference, Recipe):
                used |= set(references_of(reference))
        if unused := [name for name in names if name not in used]:
            raise ValueError(
                f"no method reads the reference {unused[0]!r}, which would not be computed; give "
                "it to a method, or leave it out"
            )

    def _check_test_sets(self) -> None:
        sources = {
            source: method
            for method in self.methods
            for recipe in self.settings(method)
            for source in (recipe.data, recipe.evaluation.data)
        }
        for name, source in self.tests.items():
            if source in sources:
                raise ValueError(
                    f"the test set {name!r}, {source}, is also what method {sources[source]!r} is "
                    "trained or validated on; take another"
                )


def model_of_run(recipe: Recipe) -> Model:
    """Name the model that a run is judged by: the best where it keeps that one, else the last."""
    keeps_best = recipe.training.keep_best is not None
    return Model(name=f"run:{Path(recipe.output) / 'best' if keeps_best else recipe.output}")


def stored_of(recipe: Recipe) -> tuple[Stored, ...]:
    """Lists the stored embeddings that a recipe reads, each once."""
    names = [*recipe.references, *recipe.teachers]
    if recipe.filtering is not None and recipe.filtering.reference is not None:
        names.append(recipe.filtering.reference)
    read = [Stored(name, recipe.data, recipe.loading.views) for name in names]
    held_out = str(recipe.evaluation.data)
    read += [Stored(name, held_out, None) for name in recipe.evaluation.references]
    return tuple(dict.fromkeys(read))


def references_of(recipe: Recipe) -> tuple[str, ...]:
    """The names of the references that a recipe reads or starts from, each once."""
    names = [stored.reference for stored in stored_of(recipe)]
    started = started_from(recipe)
    return tuple(dict.fromkeys(names if started is None else [*names, started]))


def started_from(recipe: Recipe) -> str | None:
    """The name of the reference whose weights a recipe's model starts from, if there is one."""
    name = recipe.model.name
    return name.removeprefix(START) if name.startswith(START) else None


def _require_known(recipe: Recipe, known: list[str], *, whose: str) -> None:
    for name in references_of(recipe):
        if name not in known:
            raise ValueError(
                f"{whose} names the reference {name!r}; there is none before it of that name, "
                f"only {', '.join(known) or 'no reference at all'}"
            )


def _with_algorithm(recipe: Recipe, name: str, references: Sequence[str]) -> Recipe:
    """The recipe with the objective, selection and filter of a published algorithm."""
    size = recipe.trained_batch_size
    published = named_recipe(name, Scale(batch_size=size, samples_seen=size))
    reads = published.reference is not None
    if not references and (reads or published.teachers or published.filtering is not None):
        raise ValueError(f"method {name!r} needs a reference: give the recipe one")
    steered = published.objective.needs_reference
    filtering = published.filtering
    optimizer = replace(
        recipe.training.optimizer,
        temperature_lr_scale=published.training.optimizer.temperature_lr_scale,
        temperature_schedule=published.training.optimizer.temperature_schedule,
    )
    return replace(
        recipe,
        objective=published.objective,
        selection=published.selection,
        filtering=filtering and replace(filtering, reference=references[0]),
        loading=replace(recipe.loading, batch_size=published.loading.batch_size),
        training=replace(recipe.training, optimizer=optimizer),
        reference=tuple(references) if reads else None,
        reference_weights=recipe.reference_weights if reads else None,
        missing_reference=recipe.missing_reference if steered else "leave_out",
        teachers=tuple(references[:1]) * len(published.teachers),
        evaluation=replace(recipe.evaluation, references=()),
    )
