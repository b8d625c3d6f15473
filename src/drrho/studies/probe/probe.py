"""Before training: which reference will steer best? Losses, or a recipe and pairs -> a ranking."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from jaxtyping import Float64
from torch import Tensor
from tyro.conf import Positional, Suppress, UseAppendAction

from drrho.contrastive.objectives.gist import GIST
from drrho.contrastive.objectives.global_risk import DRRhoCLIP
from drrho.contrastive.objectives.siglip import SigLIP
from drrho.data.indexing import open_manifest
from drrho.data.manifest import Manifest
from drrho.data.subset import split_at_random
from drrho.evaluation.metrics.bootstrap import bootstrap_interval
from drrho.models.program import trusting
from drrho.recipe.arguments.command import recipe_of, without_recipe_options
from drrho.recipe.recipe import Recipe
from drrho.recipe.train import with_steps
from drrho.reference.judgement import Judgement, judge_cosines, seen_shards
from drrho.reference.losses.table import read_loss_table
from drrho.runtime.files import expand_paths, write_atomically
from drrho.runtime.launch import require_one_process, resolve_device
from drrho.runtime.records import write_record
from drrho.studies.probe.contamination import Contamination, contamination
from drrho.studies.probe.pairs import (
    Pairs,
    PairsProbe,
    Seen,
    Trained,
    common_pairs,
    embed,
    embed_all,
    matching_by_captions,
    probe_pairs,
    train_pilots,
    training_subset,
    with_distinct_texts,
)
from drrho.studies.probe.plots import draw_probe
from drrho.studies.probe.results import FILE_NAME, ProbedReference, ProbeResults
from drrho.studies.probe.steerability import (
    FEWEST_SAMPLES,
    Estimate,
    Steerability,
    bootstrap_weights,
    effective_share,
    loss_moments,
    rank_references,
)

References = Annotated[tuple[str, ...], UseAppendAction]


@dataclass(frozen=True, kw_only=True)
class LossesProbeConfig:
    """Rank references by losses that any training loop has written.

    Attributes:
        losses: losses of the pilots and references on held-out samples: a folder of stored losses,
            or an .npz or .csv with a column for each model.
        pilots: names of two pilots: models of the target's architecture, trained on disjoint halves
            of its data.
        reference: name of a candidate reference; may be given several times. None given means all
            others.
        train_losses: losses of the same references on training samples, to find a reference that
            has seen them.
        pilot_share: share of the target's training samples that each pilot was trained on.
        output: folder for probe.json, probe.md and probe.png; None writes nothing.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap.
    """

    losses: Positional[str]
    pilots: tuple[str, str]
    reference: References = ()
    train_losses: str | None = None
    pilot_share: float = 0.5
    output: str | None = None
    resamples: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        expand_paths(self, "losses", "pilots", "reference", "train_losses")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Train two short pilots and rank references of a contrastive recipe.

    Attributes:
        held_out: held-out pairs of the training distribution: a manifest, or what `drrho index`
            takes; None holds out a tenth of the training pairs, drawn at random, or 20 if a tenth
            is fewer.
        reference: candidate reference: a folder of stored embeddings of the held-out pairs, a model
            as `drrho reference precompute` takes it (also the folder of a run or of a joined
            model), or ARCHITECTURE@PRETRAINED; may be given several times.
        data: training pairs: a manifest, or what `drrho index` takes; None takes the recipe's.
        output: folder of the pilots and of probe.json, probe.md and probe.png.
        pilot_steps: optimiser steps of each pilot; None takes a quarter of the recipe's.
        max_pairs: largest number of held-out pairs to use; memory is 8 bytes times its square, for
            each model.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap and of the choice of pairs.
        trust: run the programs that the folders of reference models name; needed for runs of
            "python:FILE.py".
    """

    reference: References
    held_out: str | None = None
    data: str | None = None
    output: str = "runs/probe"
    pilot_steps: int | None = None
    max_pairs: int = 1000
    resamples: int = 400
    seed: int = 0
    trust: bool = False

    def __post_init__(self):
        if not self.reference:
            raise ValueError("name at least one --reference")
        if len(set(self.reference)) < len(self.reference):
            raise ValueError(f"each reference once, got {self.reference}")
        if self.pilot_steps is not None and self.pilot_steps < 1:
            raise ValueError(f"pilot_steps must be at least 1, got {self.pilot_steps}")


def probe_losses(config: LossesProbeConfig) -> ProbeResults:
    """Ranks references by losses on held-out samples.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it lacks a model, has too few finite losses, or the pilots are identical.
    """
    table = read_loss_table(config.losses, needed=(*config.pilots, *config.reference))
    names = config.reference or tuple(name for name in table if name not in config.pilots)
    if not names:
        raise ValueError(f"{config.losses} has losses of the pilots alone; add references")
    if config.pilots[0] == config.pilots[1] or set(config.pilots) & set(names):
        raise ValueError(
            f"the pilots {config.pilots} must be two models, and no reference one of them"
        )
    losses, num_dropped = _finite({name: table[name] for name in (*config.pilots, *names)})
    pilots, references = losses[:2], losses[2:]
    generator = torch.Generator().manual_seed(config.seed)
    weights = bootstrap_weights(losses.shape[1], resamples=config.resamples, generator=generator)
    ranked = rank_references(
        loss_moments(pilots, references, weights=weights), names, pilot_share=config.pilot_share
    )
    held_out = dict(zip(names, references, strict=True))
    seen = _contaminations(config, held_out, generator)
    middle = pilots.mean(dim=0)
    rows = {}
    for name, found in ranked.items():
        assert found.temperature is not None
        rows[name] = _probed(
            found,
            seen[name],
            held_out_loss=float(held_out[name].mean()),
            effective_share=effective_share(middle - held_out[name], found.temperature),
        )
    results = ProbeResults(
        kind="losses", held_out=losses.shape[1], left_out=num_dropped, references=rows
    )
    return _written(results, config.output)


def probe_recipe(recipe: Recipe, config: ProbeConfig) -> ProbeResults:
    """Trains the pilots, embeds the held-out pairs by every model, and ranks.

    Raises:
        ValueError: a reference cannot be found, or does not fit the data.
    """
    with trusting(recipe.model.name, everything=config.trust):
        return _probe_recipe(recipe, config)


def _probe_recipe(recipe: Recipe, config: ProbeConfig) -> ProbeResults:
    if isinstance(recipe.objective, GIST):
        raise ValueError(
            "a probe ranks references that are subtracted, and GIST's reference is a guide; probe "
            "for a recipe of DRRhoCLIP, or compare the guides: `drrho compare`"
        )
    if isinstance(recipe.objective, SigLIP):
        raise ValueError("a probe compares gaps to the positive, which SigLIP does not train on")
    train = open_manifest(recipe.data if config.data is None else config.data)
    generator = torch.Generator().manual_seed(config.seed)
    if config.held_out is None:
        held_out, train = _held_out(train, generator)
    else:
        held_out = open_manifest(config.held_out)
    num_held_out = len(held_out.usable_ids())
    if num_held_out > config.max_pairs:
        held_out = training_subset(held_out, config.max_pairs, generator=generator)
    size = min(len(held_out.usable_ids()), len(train.usable_ids()))
    subset = training_subset(train, size, generator=generator)
    embedded = list(embed_all(config.reference, held_out, subset, recipe=recipe))  # fail early
    output = Path(config.output)
    steps = config.pilot_steps or max(1, with_steps(recipe, train).training.num_steps // 4)
    pilots = train_pilots(recipe, train, output=output, steps=steps)
    device = resolve_device(recipe.device)
    models = {name: embed(name, held_out, device=device) for name in pilots}
    models |= {name: found for name, found, _ in embedded}
    pairs = common_pairs(models)
    found = probe_pairs(
        [pairs[name] for name in pilots],
        {name: pairs[name] for name in config.reference},
        trained=Trained(
            temperature=recipe.objective.temperature.initial,
            reference_scale=(
                recipe.objective.reference_scale if isinstance(recipe.objective, DRRhoCLIP) else 1.0
            ),
        ),
        seen=Seen(
            {name: training for name, _, training in embedded},
            None
            if config.held_out is None
            else matching_by_captions(train, held_out, subset, seed=config.seed),
        ),
        generator=generator,
        resamples=config.resamples,
    )
    rates = {name: held.rate for name, held, _ in embedded}
    results = ProbeResults(
        kind="pairs",
        held_out=len(pairs[pilots[0]].ids),
        not_used=_not_used(models, pairs, num_held_out=num_held_out, looked_at=held_out),
        pilot_steps=steps,
        temperature=recipe.objective.temperature.initial,
        references={
            name: replace(row, judgement=_judged(pairs[name], train, seed=config.seed))
            for name, row in _pair_rows(
                found, rates, num_pairs=len(train.usable_ids()), generator=generator
            ).items()
        },
    )
    return _written(results, config.output)


def _judged(pairs: Pairs, train: Manifest, *, seed: int) -> Judgement:
    """Judge a reference on the held-out pairs, whose texts are distinct."""
    return judge_cosines(
        pairs.cosines,
        torch.arange(len(pairs.ids)),
        seen=seen_shards(pairs.trained_on, train),
        shards=len(train.shards),
        generator=torch.Generator().manual_seed(seed),
    )


def _not_used(
    models: dict[str, Pairs], kept: dict[str, Pairs], *, num_held_out: int, looked_at: Manifest
) -> dict[str, int]:
    """Count the held-out pairs that the ranking does without, by reason."""
    first, num_looked_at = next(iter(models)), len(looked_at.usable_ids())
    repeated = len(models[first].ids) - len(with_distinct_texts(models[first]).ids)
    counts = {
        "beyond max_pairs": num_held_out - num_looked_at,
        "with the caption of an earlier pair, whose image is no negative": repeated,
        "without embeddings of every model": num_looked_at - repeated - len(kept[first].ids),
    }
    return {reason: count for reason, count in counts.items() if count > 0}


def _held_out(manifest: Manifest, generator: torch.Generator) -> tuple[Manifest, Manifest]:
    usable = len(manifest.usable_ids())
    size = max(usable // 10, 2 * FEWEST_SAMPLES)  # captions may occur twice, which leaves fewer
    if usable < 2 * size:
        raise ValueError(
            f"only {usable} samples are usable, too few to hold {size} of them out; give held_out"
        )
    return split_at_random(manifest, size, generator=generator, reason="in the other part")


def _pair_rows(
    found: PairsProbe,
    rates: dict[str, float | None],
    *,
    num_pairs: int,
    generator: torch.Generator,
) -> dict[str, ProbedReference]:
    """By held-out mean reciprocal rank: of what was tried for pairs it foretells gains best."""
    ranks = found.reciprocal_ranks
    ordered = sorted(ranks, key=lambda name: -float(ranks[name].mean()))
    rows = {}
    for name, following in zip(ordered, [*ordered[1:], None], strict=True):
        rate, ahead = rates[name], None
        if following is not None:
            ahead = bootstrap_interval(ranks[name] - ranks[following], generator=generator)[0] > 0
        mrr = bootstrap_interval(ranks[name], generator=generator)
        rows[name] = _probed(
            replace(found.ranked[name], resolved=ahead, temperature=None, radius=None),
            found.contamination[name],
            held_out_loss=found.held_out_losses[name],
            effective_share=found.weights[name].effective_share,
            mrr=Estimate(float(ranks[name].mean()), *mrr),
            by_anchor=found.by_anchor[name].steerability.value,
            divergence=found.weights[name].divergence,
            precompute_seconds=None if rate is None else num_pairs / rate,
        )
    return rows


def _probed(found: Steerability, seen: Contamination | None, **more: Any) -> ProbedReference:
    alarm = found.too_close or (seen is not None and seen.alarm)
    return ProbedReference(**vars(found), contamination=seen, alarm=alarm, **more)


def _contaminations(
    config: LossesProbeConfig, held_out: dict[str, Tensor], generator: torch.Generator
) -> dict[str, Contamination | None]:
    if config.train_losses is None:
        return dict.fromkeys(held_out)
    table = read_loss_table(config.train_losses, needed=tuple(held_out))
    return {
        name: contamination(
            table[name][table[name].isfinite()],
            losses,
            resamples=max(1000, config.resamples),
            generator=generator,
        )
        for name, losses in held_out.items()
    }


def _finite(losses: dict[str, Tensor]) -> tuple[Float64[Tensor, "models samples"], int]:
    """The samples that all models have finite losses of, and how many others there are."""
    stacked = torch.stack(list(losses.values()))
    finite = stacked.isfinite().all(dim=0)
    return stacked[:, finite], int((~finite).sum())


def _written(results: ProbeResults, output: str | None) -> ProbeResults:
    # The best that may be taken is first.
    ranked = sorted(results.references.items(), key=lambda item: item[1].alarm)
    results = replace(results, references=dict(ranked))
    if output is not None:
        folder = Path(os.path.expanduser(output))
        write_record(folder / FILE_NAME, results)
        write_atomically(folder / "probe.md", f"{results}\n".encode())
        draw_probe(results, folder / "probe.png")
    return results


@dataclass(frozen=True, kw_only=True)
class ProbeCommand(ProbeConfig):
    """Train two short pilots and rank references of a contrastive recipe.

    A quick look, with no training of the target: it ranks references, and cannot say whether one of
    them helps, or what to do with it. `drrho advise` finds that in short runs. `drrho probe losses`
    ranks by stored losses instead. Options of the recipe may follow it, as in
    `drrho train`: --model.name small --batch-size 256.

    Attributes:
        recipe: Python file that defines `recipe = Recipe(...)`, or the name of a published recipe.
        changes: options of `drrho train` that change the recipe.
    """

    recipe: Positional[str]
    changes: Suppress[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        expand_paths(self, "held_out", "data", "recipe")

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> "ProbeCommand":
        """Read the command line."""
        own, changes = without_recipe_options(arguments)
        return replace(tyro.cli(cls, args=own, prog="drrho probe"), changes=tuple(changes))


def run_probe(config: ProbeCommand) -> str:
    """Rank references for a recipe before training with any of them."""
    require_one_process("drrho probe")
    results = probe_recipe(recipe_of(config.recipe, list(config.changes)), config)
    return f"{results}\n\n{config.output}/probe.json has all numbers, probe.png the picture."


def run_probe_losses(config: LossesProbeConfig) -> str:
    """Rank references by stored losses of any training loop."""
    written = "" if config.output is None else f"\n\n{config.output}/probe.json has all numbers."
    return f"{probe_losses(config)}{written}"
