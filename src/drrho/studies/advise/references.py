"""References of a race: their stored embeddings, how they do, and what each allows."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.data.index import MixConfig, mix_manifests
from drrho.data.indexing import open_manifest
from drrho.data.manifest import Manifest
from drrho.models.build import Model, build_model, find_model
from drrho.models.seen import training_data_of
from drrho.recipe.recipe import Recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.reference.judgement import Judgement, judge_reference
from drrho.reference.pairs import drawn_ids
from drrho.reference.reader import Reference, open_reference
from drrho.reference.store import FILE_NAME as STORE_FILE
from drrho.studies.advise.config import AdviseConfig, AdviseFiles

SAMPLE = 1000  # pairs whose cosines are looked at
NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A reference of a race.

    Attributes:
        name: short name, different for each.
        given: what the user named.
        folder: folder of its stored embeddings of the training pairs.
        model: the model; None where only embeddings are there.
        start: the model to start from, or the reason why not.
        union: manifest of the training pairs and its own data, or the reason why not.
    """

    name: str
    given: str
    folder: Path
    model: Model | None
    start: tuple[Model | None, str]
    union: tuple[Path | None, str]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The cosines of images and texts under a reference.

    Attributes:
        effective_rank: exponential of the entropy of the singular values of the matrix of cosines,
            its rows and columns centred: how many directions tell pairs apart.
        off_diagonal: mean cosine of an image and another image's text.
    """

    effective_rank: float
    off_diagonal: float


def name_references(given: tuple[str, ...]) -> list[str]:
    """Name references by the last part of what the user named, numbered where that is not one."""
    short = []
    for source in given:
        place = Path(source.partition(":")[2] or source)
        parts = [part for part in place.parts if part not in ("run", "model", "embeddings", "/")]
        words = "".join(
            c if c.isalnum() or c in "._" else "-" for c in (parts or ["reference"])[-1]
        )
        short.append(words.strip("-.") or "reference")
    counts, seen = Counter(short), Counter[str]()
    names = []
    for name in short:
        seen[name] += 1
        names.append(name if counts[name] == 1 else f"{name}-{seen[name]}")
    return names


def describe_candidates(
    config: AdviseConfig, recipe: Recipe, train: Manifest, held_out: Manifest
) -> list[Candidate]:
    """Find what each reference is and allows, before anything is encoded or written.

    Args:
        train: training pairs.
        held_out: pairs that arms are scored on.

    Raises:
        FileNotFoundError: a reference or its data are not there.
        ValueError: it is no model with weights, or its stored embeddings are of other data.
    """
    files, found = AdviseFiles(Path(config.output)), []
    data = config.reference_data or (NONE,) * len(config.reference)
    names = name_references(config.reference)
    for name, given, own in zip(names, config.reference, data, strict=True):
        stored = (Path(given) / STORE_FILE).is_file()
        model = None if stored else _model_of(given)
        if stored:
            open_reference(given, train)
        found.append(
            Candidate(
                name=name,
                given=given,
                folder=Path(given) if stored else files.references / name,
                model=model,
                start=_start(model, recipe, held_out),
                union=_union(own, train, held_out, files.unions / f"{name}.json"),
            )
        )
    return found


def _model_of(given: str) -> Model:
    architecture, _, pretrained = given.partition("@") if ":" not in given else (given, "", "")
    model = find_model(architecture, pretrained=pretrained or None)
    model.require_trained()
    return model


def _start(model: Model | None, recipe: Recipe, held_out: Manifest) -> tuple[Model | None, str]:
    """Return the model to start from, or why a run cannot."""
    if model is None:
        return None, "only embeddings of the reference are given; name its model to start from it"
    if _shapes(model) != _shapes(recipe.model):
        return None, "the reference has another architecture than the recipe's model"
    if has_seen(model, held_out):
        return None, (
            "the reference was trained on shards of the held-out pairs, so that they cannot judge "
            "it; give the recipe an evaluation.data that it has not seen"
        )
    return model, ""


def has_seen(model: Model, held_out: Manifest) -> bool:
    """Whether a model is known to be trained on shards of the held-out pairs."""
    return bool(set(training_data_of(model) or ()) & _contents(held_out))


def _shapes(model: Model) -> dict[str, torch.Size]:
    state = build_model(model, seed=0, target=True).module.state_dict()
    return {name: value.shape for name, value in state.items()}


def _contents(manifest: Manifest) -> set[str]:
    return {shard.content_sha256 for shard in manifest.shards if shard.num_samples}


def _union(own: str, train: Manifest, held_out: Manifest, output: Path) -> tuple[Path | None, str]:
    """Return where the union is to be written, or why there is none."""
    if own == NONE:
        return None, "the data of the reference are not given (--reference-data)"
    contents = _contents(open_manifest(own))
    if common := contents & _contents(train):
        return None, f"{len(common)} shards of its data are among the training pairs already"
    if common := contents & _contents(held_out):
        return None, f"{len(common)} shards of its data are among the held-out pairs"
    return output, ""


def store_candidates(config: AdviseConfig, recipe: Recipe, candidates: list[Candidate]) -> float:
    """Store what is not stored yet: embeddings of the training pairs, and joined data.

    Returns:
        Seconds that the references took to encode.
    """
    seconds, data = 0.0, config.reference_data or (NONE,) * len(candidates)
    for candidate, own in zip(candidates, data, strict=True):
        if candidate.model is not None:
            began = time.monotonic()
            precompute_reference(
                PrecomputeConfig(
                    data=recipe.data,
                    model=candidate.model.name,
                    pretrained=candidate.model.pretrained,
                    output=str(candidate.folder),
                    workers=recipe.loading.workers,
                    device=recipe.device,
                    trust=config.trust,
                )
            )
            seconds += time.monotonic() - began
        union, _ = candidate.union
        if union is not None and not union.exists():
            union.parent.mkdir(parents=True, exist_ok=True)
            train, other = union.with_suffix(".train.json"), union.with_suffix(".own.json")
            open_manifest(recipe.data).save(train)
            open_manifest(own).save(other)
            mix_manifests(MixConfig(manifests=(str(train), str(other)), output=str(union)))
    return seconds


def look_at(candidate: Candidate, train: Manifest) -> tuple[Judgement | None, Geometry]:
    """Judge a reference on a sample of the training pairs."""
    store = open_reference(candidate.folder, train)
    return judge_reference(store, train), geometry_of(_cosines(store, train))


def _cosines(store: Reference, train: Manifest) -> Float[Tensor, "pairs pairs"]:
    generator = torch.Generator().manual_seed(0)
    pairs = store.gather(drawn_ids(train, store, count=SAMPLE, generator=generator)).pairs
    return (pairs.image @ pairs.text.T).double()


def geometry_of(cosines: Float[Tensor, "pairs pairs"]) -> Geometry:
    """Describe a square matrix of cosines, whose diagonal has the pairs.

    Source: docs/mathematics.md, "What the cosines of a reference hold".
    """
    size = len(cosines)
    centred = cosines - cosines.mean(dim=0) - cosines.mean(dim=1, keepdim=True) + cosines.mean()
    values = torch.linalg.svdvals(centred)
    shares = values / values.sum()
    shares = shares[shares > 0]
    off = (cosines.sum() - cosines.diagonal().sum()) / (size * (size - 1))
    rank = float((-shares * shares.log()).sum().exp()) if len(shares) else 0.0
    return Geometry(effective_rank=rank, off_diagonal=float(off))
