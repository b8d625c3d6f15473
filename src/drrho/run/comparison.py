"""Several objectives on the same data, from the same start: the table people ask for.

The reference is trained first, its embeddings of the training shards are stored, then every
method is trained from the same initial weights, on the same batches in the same order, and all
are evaluated on the test set, which nothing before has touched.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.contrastive.config import ObjectiveConfig
from drrho.evaluation.bootstrap import bootstrap_interval
from drrho.files import write_atomically, write_json
from drrho.models.build import load_model
from drrho.report.comparison import comparison_table, explain, method_title
from drrho.report.curves import draw_curves
from drrho.run.evaluation import EvaluationSet, evaluate_model, open_evaluation_set
from drrho.run.recipe import Recipe, resolve_device
from drrho.run.reference import PrecomputeConfig, precompute_reference
from drrho.run.training import train_recipe
from drrho.training.log import read_metrics
from drrho.training.state import versions


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A reference, and targets that are trained with it and without it.

    Attributes:
        output: folder of everything; finished parts found there are kept.
        reference: the run that makes the reference model.
        target: what the targets share. Its objective, output, reference and seed are set by
            `methods`, `output` and `seeds`.
        methods: name -> objective, in the order of the table.
        test: evaluation set that is read once, at the end.
        seeds: each method is trained once per seed.
    """

    output: str
    reference: Recipe
    target: Recipe
    methods: Mapping[str, ObjectiveConfig]
    test: str
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self):
        if not self.methods or not self.seeds:
            raise ValueError("a comparison needs at least one method and one seed")
        if Path(self.reference.output) in {
            Path(self.recipe(method, seed).output) for method in self.methods for seed in self.seeds
        }:
            raise ValueError(
                f"the reference's output {self.reference.output} is also that of a method; "
                "choose another"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ from each other, got {self.seeds}")

    def recipe(self, method: str, seed: int) -> Recipe:
        """The run of one method and seed."""
        objective = self.methods[method]
        return replace(
            self.target,
            output=str(Path(self.output) / f"{method}-seed{seed}"),
            objective=objective,
            reference=self.embeddings if objective.needs_reference else None,
            seed=seed,
        )

    @property
    def embeddings(self) -> str:
        """Folder of the reference's stored embeddings."""
        return str(Path(self.output) / "reference-embeddings")


def compare(comparison: Comparison) -> dict[str, Any]:
    """Runs what is missing, evaluates everything on the test set, writes table and curves.

    Writes `results.json`, `results.md` (table and explanation) and `curves.png` into
    `comparison.output`.

    Returns:
        The contents of `results.json`: `setup`, `reference`, `methods` (name -> mean metrics
        over the seeds, `mrr_interval`, `samples_seen`, `seconds`, `seed`, and `runs`, one by
        one), `differences` (paired, of each method from each one before it), `versions`.
    """
    folder = Path(comparison.output)
    reference_run = train_recipe(comparison.reference)
    report = precompute_reference(
        PrecomputeConfig(
            model=f"run:{comparison.reference.output}",
            data=comparison.target.data,
            output=comparison.embeddings,
            device=comparison.target.device,
        )
    )
    runs = {
        method: [train_recipe(comparison.recipe(method, seed)) for seed in comparison.seeds]
        for method in comparison.methods
    }
    test = open_evaluation_set(comparison.test)
    reference_scores, _ = _test_scores(comparison, comparison.reference.output, test)
    methods, ranks = {}, {}
    for method, finished in runs.items():
        scores = [
            _test_scores(comparison, comparison.recipe(method, seed).output, test)
            for seed in comparison.seeds
        ]
        ranks[method] = torch.stack([reciprocal for _, reciprocal in scores]).mean(dim=0)
        methods[method] = _summary(
            [metrics for metrics, _ in scores], finished, comparison.seeds, ranks[method]
        )
    results = {
        "setup": _setup(comparison, test, train_pairs=report.num_samples),
        "reference": reference_scores
        | {
            "samples_seen": reference_run["samples_seen"],
            "seconds": reference_run["seconds"],
            "pairs_without_embeddings": report.num_samples - report.num_encoded,
        },
        "methods": methods,
        "differences": _differences(ranks),
        "versions": versions(),
    }
    write_json(folder / "results.json", results)
    text = f"{comparison_table(results)}\n\n{explain(results)}\n"
    write_atomically(folder / "results.md", text.encode())
    seed = comparison.seeds[0]
    level = reference_run["metrics"].get("evaluation/mrr")
    draw_curves(
        {
            method_title(method): read_metrics(Path(comparison.recipe(method, seed).output))
            for method in comparison.methods
        },
        folder / "curves.png",
        levels={} if level is None else {"reference": level},
    )
    return results


def _test_scores(
    comparison: Comparison, run: str, test: EvaluationSet
) -> tuple[dict[str, float], Float[Tensor, " images"]]:
    device = resolve_device(comparison.target.device)
    model = load_model(Path(run) / "model")
    model.module.to(device).eval()
    evaluation = evaluate_model(
        model,
        test,
        device=device,
        batch_size=comparison.target.evaluation.batch_size,
        workers=comparison.target.loading.workers,
    )
    return evaluation.metrics, evaluation.reciprocal_ranks


def _summary(
    scores: list[dict[str, float]],
    finished: list[dict[str, Any]],
    seeds: tuple[int, ...],
    reciprocal_ranks: Float[Tensor, " images"],
) -> dict[str, Any]:
    """Means over the seeds, and every run by itself."""
    runs = [
        {
            "seed": seed,
            **metrics,
            "samples_seen": run["samples_seen"],
            "seconds": run["seconds"],
            "skipped_in_training": run["skipped"],
        }
        for seed, metrics, run in zip(seeds, scores, finished, strict=True)
    ]
    names = [*scores[0], "samples_seen", "seconds"]
    means = {name: sum(run[name] for run in runs) / len(runs) for name in names}
    low, high = bootstrap_interval(reciprocal_ranks, generator=_bootstrap_generator())
    return means | {
        "mrr_interval": [low, high],
        "seed": seeds[0] if len(seeds) == 1 else list(seeds),
        "runs": runs,
    }


def _differences(ranks: Mapping[str, Float[Tensor, " images"]]) -> list[dict[str, Any]]:
    """Paired differences of MRR, of each method from each one before it in the table.

    Every image is a query to all methods, so its contribution to the difference is compared
    image by image: the difficulty of the image cancels.
    """
    names = list(ranks)
    rows = []
    for i, better in enumerate(names):
        for other in names[:i]:
            difference = ranks[better] - ranks[other]
            low, high = bootstrap_interval(difference, generator=_bootstrap_generator())
            rows.append(
                {
                    "method": better,
                    "minus": other,
                    "mrr": float(difference.mean()),
                    "interval": [low, high],
                }
            )
    return rows


def _setup(comparison: Comparison, test: EvaluationSet, *, train_pairs: int) -> dict[str, Any]:
    target = comparison.target
    return {
        "reference_data": comparison.reference.data,
        "train": target.data,
        "train_pairs": train_pairs,
        "test": comparison.test,
        "test_pairs": test.manifest.num_samples,
        "batch_size": target.loading.batch_size,
        "steps": target.training.steps,
        "seeds": list(comparison.seeds),
        "threads": torch.get_num_threads(),
        "interval": "95 %, bootstrap over the test images of the mean over seeds",
    }


def _bootstrap_generator() -> torch.Generator:
    # The same resamples for every row of a table, so that rows can be compared.
    return torch.Generator().manual_seed(0)
