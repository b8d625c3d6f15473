"""Arms of a race: for each use of each reference a recipe, or the reason why it is not raced."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drrho.contrastive.memory.temperature import Constant
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import DistillationTerm
from drrho.contrastive.objectives.gist import GIST
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import Objective
from drrho.recipe.arguments.override import changed_kind
from drrho.recipe.filtering import Filtering
from drrho.recipe.plain import without_reference
from drrho.recipe.recipe import Recipe
from drrho.studies.advise.config import USES, AdviseConfig, AdviseFiles, Use
from drrho.studies.advise.references import Candidate

PLAIN = "plain"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A use of a reference, at one setting.

    Attributes:
        name: name of its folder.
        title: the use in words.
        use: kind of use.
        reference: name of the reference; None for plain training.
        recipe: recipe of its run; None where it is not raced.
        reason: why it is not raced.
        amount: strength of steering, share that is kept, or weight of distillation; None where
            there is none.
    """

    name: str
    title: str
    use: Use
    reference: str | None
    recipe: Recipe | None
    reason: str | None = None
    amount: float | None = None


def plain_recipe(recipe: Recipe, *, output: Path) -> Recipe:
    """Return the recipe without reference, teachers, selection and filter, its length in steps.

    Raises:
        ValueError: its reference is no baseline, its samples are not those of a stored reference,
            or a run is found by `resume` alone.
    """
    if isinstance(recipe.objective, GIST):
        raise ValueError(
            "advise races uses of a reference beside plain training, and GIST has no plain form; "
            "give a recipe of FastCLIP, DRRhoCLIP or CLIP"
        )
    if recipe.loading.views is not None or recipe.loading.captions == "random":
        raise ValueError(
            "advise does not race augmented views or random captions, whose reference embeddings "
            "are stored view by view; leave loading.views and loading.captions out"
        )
    return replace(
        without_reference(recipe),
        output=str(output),
        training=replace(recipe.training, steps=recipe.training.num_steps, epochs=None),
        resume="latest",
    )


def list_arms(
    recipe: Recipe, candidates: Sequence[Candidate], config: AdviseConfig, *, base: float
) -> list[Arm]:
    """List plain training and every use of every reference, the simplest use first.

    Args:
        recipe: plain recipe, as `plain_recipe`.
        base: factor of the reference's similarities that strengths multiply.
    """
    arms = [Arm(name=PLAIN, title="plain training", use="plain", reference=None, recipe=recipe)]
    for candidate in candidates:
        arms += _Uses(recipe, candidate, config, base, several=len(candidates) > 1).arms()
    return sorted(arms, key=lambda arm: USES.index(arm.use))


def with_head_start(arms: Iterable[Arm]) -> set[str]:
    """Name the arms that begin with the reference's weights."""
    return {arm.name for arm in arms if arm.use == "start"}


@dataclass(frozen=True)
class _Uses:
    """The uses of one reference."""

    recipe: Recipe
    candidate: Candidate
    config: AdviseConfig
    base: float
    several: bool

    def arms(self) -> list[Arm]:
        """List the arms of the uses that are asked for."""
        config = self.config
        found = [
            self._arm("start", "start", "start from {}", self._from_start),
            self._arm("union", "union", "plain, also on the data of {}", self._on_union),
        ]
        found += [
            self._arm(
                "filter",
                f"filter-{share:g}",
                f"plain on the {100 * share:g} % that {{}} finds most alike",
                lambda share=share: self._filtered(share),
                amount=share,
            )
            for share in config.kept_fractions
        ]
        found += [
            self._arm(
                "steer",
                f"steer-{strength:g}",
                f"steer by {{}} at strength {strength:g}",
                lambda strength=strength: self._steered(strength),
                amount=strength,
            )
            for strength in config.strengths
        ]
        found += [
            self._arm(
                "distil",
                f"distil-{weight:g}",
                f"distil {{}} at weight {weight:g}",
                lambda weight=weight: self._distilled(self.recipe, weight),
                amount=weight,
            )
            for weight in config.distillation_weights
        ]
        strength = sorted(config.strengths)[len(config.strengths) // 2]
        weight = max(config.distillation_weights)
        found.append(
            self._arm(
                "both",
                f"steer-{strength:g}-distil-{weight:g}",
                f"steer by {{}} at strength {strength:g} and distil it at weight {weight:g}",
                lambda: self._distilled(self._steered(strength), weight),
                amount=strength,
            )
        )
        return [arm for arm in found if arm.use in config.uses]

    def _arm(
        self,
        use: Use,
        name: str,
        title: str,
        build: Callable[[], Recipe],
        *,
        amount: float | None = None,
    ) -> Arm:
        """Build an arm; a recipe that cannot be is its reason."""
        name = f"{name}-{self.candidate.name}" if self.several else name
        recipe, reason = None, None
        try:
            recipe = build()
        except ValueError as error:
            reason = str(error)
        if recipe is not None:
            files = AdviseFiles(Path(self.config.output))
            recipe = replace(recipe, output=str(files.run(name)))
        title = title.format(self.candidate.name if self.several else "the reference")
        return Arm(
            name=name,
            title=title,
            use=use,
            reference=self.candidate.name,
            recipe=recipe,
            reason=reason,
            amount=amount,
        )

    def _from_start(self) -> Recipe:
        model, reason = self.candidate.start
        if model is None:
            raise ValueError(reason)
        return replace(self.recipe, model=model)

    def _on_union(self) -> Recipe:
        union, reason = self.candidate.union
        if union is None:
            raise ValueError(reason)
        return replace(self.recipe, data=str(union))

    def _filtered(self, share: float) -> Recipe:
        filtering = Filtering(kept_fraction=share, reference=str(self.candidate.folder))
        return replace(self.recipe, filtering=filtering)

    def _steered(self, strength: float) -> Recipe:
        return replace(
            self.recipe,
            objective=_steering(self.recipe.objective, self.base * strength),
            reference=str(self.candidate.folder),
        )

    def _distilled(self, recipe: Recipe, weight: float) -> Recipe:
        temperature = self.config.teacher_temperature
        if temperature is None:
            temperature = recipe.objective.temperature.initial
        term = DistillationTerm(teacher_temperatures=(temperature,), weight=weight)
        return replace(
            recipe,
            objective=replace(recipe.objective, distillation=term),
            teachers=(str(self.candidate.folder),),
        )


def _steering(objective: Objective, scale: float) -> DRRhoCLIP:
    """Return the objective with a reference; ValueError if it is not one that steers."""
    if isinstance(objective, FastCLIP):
        return replace(changed_kind(objective, DRRhoCLIP), reference_scale=scale)
    if isinstance(objective, CLIP) and isinstance(objective.temperature, Constant):
        return DRRhoCLIP(temperature=objective.temperature, reference_scale=scale)
    raise ValueError(
        f"steering replaces FastCLIP, or CLIP at a constant temperature; the recipe's plain "
        f"objective is {type(objective).__name__} with a temperature that is "
        f"{objective.temperature.kind}"
    )
