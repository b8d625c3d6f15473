"""`drrho advise`: what to do with a reference on a user's data, found by racing its uses."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from drrho.contrastive.objectives.global_risk import DRRhoCLIP
from drrho.data.indexing import open_manifest
from drrho.data.manifest import Manifest
from drrho.data.splits import hold_out
from drrho.evaluation.sets import EvaluationSet, open_evaluation_set
from drrho.models.program import trusting
from drrho.recipe.arguments.command import recipe_of
from drrho.recipe.arguments.recipe_text import write_recipe_text
from drrho.recipe.recipe import Recipe
from drrho.recipe.train import with_steps
from drrho.runtime.files import write_atomically, write_json
from drrho.runtime.launch import require_one_process
from drrho.runtime.locks import exclusive
from drrho.runtime.progress import Progress, announce
from drrho.runtime.provenance import plain, require_same_call
from drrho.runtime.records import to_json, write_record
from drrho.studies.advise.arms import PLAIN, Arm, list_arms, plain_recipe, with_head_start
from drrho.studies.advise.config import AdviseCommand, AdviseConfig, AdviseFiles
from drrho.studies.advise.halving import Budget, Rung, choose, field_of, paired_interval, race
from drrho.studies.advise.lead import Lead, choose_by_lead
from drrho.studies.advise.pilot import decided_by_lead, lead_of, why_doubtful
from drrho.studies.advise.planning import describe_plan
from drrho.studies.advise.plots import draw_race
from drrho.studies.advise.references import (
    Candidate,
    describe_candidates,
    look_at,
    store_candidates,
)
from drrho.studies.advise.results import AdviceResults, ArmFound, ReferenceFound, Spent
from drrho.studies.advise.running import Runner
from drrho.studies.advise.sentences import (
    note_on_early_ranks,
    notes_of,
    recommendation,
    recommendation_by_lead,
)

MAY_CHANGE = ("output", "dry_run", "trust", "recipe.output", "recipe.loading.workers")


class AdviceInterrupted(ValueError):
    """Error: Ctrl-C came outside training, which has an error of its own."""

    exit_status = 130


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all arms of a race have in common.

    Attributes:
        recipe: plain recipe, with the data that arms train on and are scored on.
        base: factor of the reference's similarities that strengths multiply.
        train: training pairs.
        held_out: pairs that arms are scored on.
        candidates: references.
        budget: steps of the race and of a whole run.
    """

    recipe: Recipe
    base: float
    train: Manifest
    held_out: EvaluationSet
    candidates: list[Candidate]
    budget: Budget

    @property
    def pilot(self) -> int:
        """Steps of plain training, where the lead decides: the budget of one reference."""
        of_one = round(self.budget.steps / len(self.candidates))
        return min(self.budget.length, max(1, of_one))


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is recommended, and why.

    Attributes:
        recommended: name of an arm.
        decided_by: a race, or the lead of a reference.
        alike: arms that cannot be told apart from it.
        sentence: the recommendation.
        notes: what makes it doubtful.
    """

    recommended: str
    decided_by: Literal["race", "lead"]
    alike: tuple[str, ...]
    sentence: str
    notes: tuple[str, ...]


def advise(recipe: Recipe, config: AdviseConfig) -> AdviceResults | None:
    """Race the uses of the references, and return what was found; None for a dry run.

    What it does is said on standard error; what is done already is kept.

    Raises:
        FileNotFoundError: data or a reference are not there.
        ValueError: the folder belongs to a call with another recipe or references, the budget is
            too small, or nothing can be raced.
        TrainingInterrupted, AdviceInterrupted: a signal came; the same call continues.
    """
    require_one_process("drrho advise")
    with trusting(recipe.model.name, everything=config.trust):
        if config.dry_run:
            setting = open_setting(recipe, config, write=False)
            arms = list(_require_race(setting, config).values())
            announce(
                describe_plan(
                    setting.recipe,
                    setting.train,
                    setting.candidates,
                    arms,
                    setting.budget,
                    pilot=setting.pilot if decided_by_lead(arms, config) else None,
                )
            )
            return None
        with exclusive(Path(config.output)):
            path = AdviseFiles(Path(config.output)).asked
            asked = plain(to_json(asdict(config)) | {"recipe": to_json(recipe)})
            require_same_call(path, asked, what="race", may_change=MAY_CHANGE)
            try:
                setting = open_setting(recipe, config, write=True)
                arms = _require_race(setting, config)
                # Not before: a call that was misspelt is no race, and its folder is free.
                write_json(path, asked)
                return _raced(setting, arms, config)
            except KeyboardInterrupt:
                raise AdviceInterrupted(
                    f"interrupted; the same command continues where it was in {config.output}"
                ) from None


def open_setting(recipe: Recipe, config: AdviseConfig, *, write: bool) -> Setting:
    """Find training and held-out pairs, the plain recipe and what each reference allows."""
    files = AdviseFiles(Path(config.output))
    scale = recipe.objective
    base = scale.reference_scale if isinstance(scale, DRRhoCLIP) else 1.0
    if recipe.evaluation.data is not None:
        train, held_out = open_manifest(recipe.data), open_evaluation_set(recipe.evaluation.data)
    else:
        sides = _held_out(recipe, files, write=write)
        train, of = sides
        held_out = EvaluationSet(name="held out", manifest=of, tasks=(), with_captions=True)
        evaluation = replace(recipe.evaluation, data=str(files.held_out))
        recipe = replace(recipe, data=str(files.train), evaluation=evaluation)
    if not held_out.with_captions:
        raise ValueError(
            f"evaluation.data = {recipe.evaluation.data!r} has no captions, by which arms are "
            "compared; give pairs, or leave it out to hold some of the training pairs out"
        )
    own = plain_recipe(with_steps(recipe, train), output=files.run(PLAIN))
    candidates = describe_candidates(config, own, train, held_out.manifest)
    length = own.training.num_steps
    steps = round(config.budget * length * len(candidates))
    return Setting(
        recipe=own,
        base=base,
        train=train,
        held_out=replace(held_out, tasks=()),
        candidates=candidates,
        budget=Budget(steps=max(1, steps), length=length),
    )


def _held_out(recipe: Recipe, files: AdviseFiles, *, write: bool) -> tuple[Manifest, Manifest]:
    """Hold out a tenth of the training pairs, or read those that were held out before."""
    known = all(path.exists() for path in (files.asked, files.train, files.held_out))
    if write and known:
        return Manifest.load(files.train), Manifest.load(files.held_out)
    sides = hold_out(open_manifest(recipe.data), pairs=None, seed=recipe.seed)
    if write:
        for path, side in zip((files.train, files.held_out), sides, strict=True):
            side.save(path)
    return sides


def _require_race(setting: Setting, config: AdviseConfig) -> dict[str, Arm]:
    """List the arms by name; ValueError if they, or the budget, make no race."""
    listed = list_arms(setting.recipe, setting.candidates, config, base=setting.base)
    raced = [arm for arm in listed if arm.recipe is not None]
    if len(raced) < 2:
        reasons = "\n  ".join(f"{arm.title}: {arm.reason}" for arm in listed if arm.reason)
        raise ValueError(f"nothing can be raced beside plain training:\n  {reasons}")
    if not decided_by_lead(listed, config):
        setting.budget.stops(field_of([arm.name for arm in raced], with_head_start(raced)))
    return {arm.name: arm for arm in listed}


def _raced(setting: Setting, arms: Mapping[str, Arm], config: AdviseConfig) -> AdviceResults:
    """Judge the references, race the arms, and write what was found."""
    files = AdviseFiles(Path(config.output))
    seconds = store_candidates(config, setting.recipe, setting.candidates)
    references = {}
    for candidate in setting.candidates:
        judgement, geometry = look_at(candidate, setting.train)
        references[candidate.name] = ReferenceFound(
            given=candidate.given, judgement=judgement, geometry=geometry
        )
        announce(
            f"reference {candidate.name}: effective rank {geometry.effective_rank:.1f}, mean "
            f"cosine of other pairs {geometry.off_diagonal:.3f}; {judgement}"
        )
    if decided_by_lead(list(arms.values()), config):
        rungs, runner = _pilot(setting, arms, files)
        leads = _leads(setting, runner)
        references = {name: replace(found, lead=leads[name]) for name, found in references.items()}
        decision = _decision_by_lead(setting, arms, leads, runner)
    else:
        rungs, runner = _race(setting, arms, files)
        decision = _decision_of_race(setting, arms, rungs, runner)
    results = _results(setting, arms, rungs, runner, decision)
    results = replace(
        results,
        references=references,
        spent=replace(results.spent, reference_seconds=seconds),
        command=f"drrho train {files.recipe}",
    )
    chosen = arms[results.recommended].recipe
    assert chosen is not None
    going_on = (
        f"the run continues from step {results.spent.kept:,} of {results.planned_steps:,}, where "
        "it was left; it equals one that was trained at once"
    )
    if results.spent.kept == 0:
        going_on = "the run begins anew: only plain training was begun"
    text = write_recipe_text(
        chosen,
        made_by="drrho advise",
        notes=[results.sentence, going_on],
        command=results.command,
    )
    write_atomically(files.recipe, text.encode())
    write_record(files.results, results)
    write_atomically(files.table, f"{results}\n".encode())
    draw_race(results, files.picture)
    return results


def _race(
    setting: Setting, arms: Mapping[str, Arm], files: AdviseFiles
) -> tuple[tuple[Rung, ...], Runner]:
    """Race the arms that have a recipe, and say how each rung went."""
    raced = {name: arm for name, arm in arms.items() if arm.recipe is not None}
    done = sum(min(_scored(files, name), setting.budget.length) for name in raced)
    with Progress(
        "race", total=setting.budget.steps, unit="steps", initial=min(done, setting.budget.steps)
    ) as progress:
        runner = Runner(arms=dict(arms), files=files, held_out=setting.held_out, progress=progress)
        rungs = []
        for rung in race(
            list(raced),
            control=PLAIN,
            ahead=with_head_start(raced.values()),
            budget=setting.budget,
            advance=runner,
        ):
            rungs.append(rung)
            gone = f"; no further: {', '.join(rung.dropped)}" if rung.dropped else ""
            announce(
                f"rung {len(rungs)}, step {rung.step:,} of {setting.budget.length:,}: "
                f"{rung.leader} leads with MRR {rung.mrr[rung.leader]}{gone}"
            )
    return tuple(rungs), runner


def _scored(files: AdviseFiles, name: str) -> int:
    """Return the furthest step at which an arm was scored before this call."""
    found = sorted((files.scores_of_all / name).glob("step-*.json"))
    return int(found[-1].stem.removeprefix("step-")) if found else 0


def _pilot(
    setting: Setting, arms: Mapping[str, Arm], files: AdviseFiles
) -> tuple[tuple[Rung, ...], Runner]:
    """Train and score the beginning of plain training, a rung with one arm."""
    done = min(_scored(files, PLAIN), setting.pilot)
    with Progress("pilot", total=setting.pilot, unit="steps", initial=done) as progress:
        runner = Runner(arms=dict(arms), files=files, held_out=setting.held_out, progress=progress)
        ranks = runner(PLAIN, setting.pilot)
    mrr = {PLAIN: paired_interval(ranks)}
    return (Rung(step=setting.pilot, leader=PLAIN, mrr=mrr, behind={}, dropped={}),), runner


def _leads(setting: Setting, runner: Runner) -> dict[str, Lead]:
    """Compare each reference with the pilot."""
    leads = {}
    for candidate in setting.candidates:
        lead = lead_of(
            candidate,
            setting.recipe,
            setting.train,
            setting.held_out,
            plain=runner.kept(PLAIN, setting.pilot).ranks,
            share=setting.pilot / setting.budget.length,
        )
        leads[candidate.name] = lead
        announce(f"reference {candidate.name}: MRR {lead.reference}, lead {lead.lead:.2f}")
    return leads


def _decision_by_lead(
    setting: Setting, arms: Mapping[str, Arm], leads: Mapping[str, Lead], runner: Runner
) -> Decision:
    """Recommend a use by the largest lead."""
    chosen, reference = choose_by_lead(list(arms.values()), leads, plain=PLAIN)
    kept = runner.kept(PLAIN, setting.pilot)
    doubts = why_doubtful(leads, plain_low=paired_interval(kept.ranks).low, guessing=kept.guessing)
    return Decision(
        recommended=chosen,
        decided_by="lead",
        alike=(),
        sentence=recommendation_by_lead(
            arms[chosen].title,
            reference,
            leads[reference],
            step=(setting.pilot, setting.budget.length),
        ),
        notes=tuple(doubts),
    )


def _decision_of_race(
    setting: Setting, arms: Mapping[str, Arm], rungs: Sequence[Rung], runner: Runner
) -> Decision:
    """Choose among the arms of the last rung."""
    last = rungs[-1]
    finals = {name: runner.kept(name, last.step).ranks for name in arms if name in last.mrr}
    chosen, alike = choose(finals)
    guessing = runner.kept(chosen, last.step).guessing
    notes = list(notes_of(rungs, guessing=guessing))
    if not with_head_start(arms[name] for name in rungs[0].mrr):
        notes += note_on_early_ranks(list(finals), step=last.step, length=setting.budget.length)
    return Decision(
        recommended=chosen,
        decided_by="race",
        alike=alike,
        sentence=recommendation(
            {name: arm.title for name, arm in arms.items()},
            finals,
            chosen=chosen,
            alike=alike,
            step=(last.step, setting.budget.length),
            guessing=guessing,
        ),
        notes=tuple(notes),
    )


def _results(
    setting: Setting,
    arms: Mapping[str, Arm],
    rungs: Sequence[Rung],
    runner: Runner,
    decision: Decision,
) -> AdviceResults:
    """Collect what became of each arm."""
    last, chosen = rungs[-1], decision.recommended
    scored = runner.kept(PLAIN, last.step)
    found = {name: _arm_found(arm, rungs, runner, chosen=chosen) for name, arm in arms.items()}
    steps = {name: _steps(rungs, name) for name in arms}
    seconds = sum(runner.kept(name, rung.step).seconds for rung in rungs for name in rung.mrr)
    return AdviceResults(
        planned_steps=setting.budget.length,
        budget_steps=setting.budget.steps if decision.decided_by == "race" else setting.pilot,
        pairs=len(setting.train.usable_ids()),
        held_out=len(scored.ranks),
        held_out_data=str(setting.recipe.evaluation.data),
        guessing=scored.guessing,
        references={},
        arms=found,
        rungs=tuple(rungs),
        recommended=chosen,
        decided_by=decision.decided_by,
        alike=decision.alike,
        notes=decision.notes,
        spent=Spent(
            steps=sum(steps.values()), kept=steps[chosen], seconds=seconds, reference_seconds=0.0
        ),
        sentence=decision.sentence,
        command="",
    )


def _arm_found(arm: Arm, rungs: Sequence[Rung], runner: Runner, *, chosen: str) -> ArmFound:
    common = [rung for rung in rungs if arm.name in rung.mrr and chosen in rung.mrr]
    behind, reason = None, arm.reason
    if common and arm.name != chosen:
        step = common[-1].step
        behind = paired_interval(
            runner.kept(chosen, step).ranks - runner.kept(arm.name, step).ranks
        )
    for rung in rungs:
        if arm.name in rung.dropped:
            where = {"behind": "behind the leader", "outranked": "outranked"}
            reason = f"{where[rung.dropped[arm.name]]} at step {rung.step:,}"
    return ArmFound(
        title=arm.title,
        use=arm.use,
        reference=arm.reference,
        run=None if arm.recipe is None else arm.recipe.output,
        steps=_steps(rungs, arm.name),
        reason=reason,
        behind=behind,
    )


def _steps(rungs: Sequence[Rung], name: str) -> int:
    return max((rung.step for rung in rungs if name in rung.mrr), default=0)


def run_advise(config: AdviseCommand) -> str:
    """Race the uses of references on your own data, and say which one to train by."""
    own = {name: value for name, value in vars(config).items() if name != "recipe"}
    results = advise(recipe_of(config.recipe, []), AdviseConfig(**own))
    return "a dry run: nothing was started or written" if results is None else str(results)
