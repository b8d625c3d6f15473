"""Linear regression, where the truth is known and theory predicts what a reference is worth.

    python examples/regression.py --output runs/regression
    python examples/regression.py --samples 80     # too few samples for the prediction

y = <w*, x> + noise, both Gaussian, in 20 dimensions. The reference is least squares on 200 samples
that the target does not see, the loss (y - <w, x>)^2 / 2, and the measure the excess risk over
the population, |w - w*|^2 / 2, which no test set has to estimate. Everything is done for 200 data
sets at once: risks reduce the last dimension, and the first is the data set.

With kappa = (reference's excess risk) / (least squares'), the prediction for many samples a
dimension is that DRRho at its best strength leaves kappa / (1 + kappa) of least squares' risk.
Risks then add up like parallel resistors, 1/R = 1/R_plain + 1/R_reference, and that is also
what least squares on both sets of samples would reach: the reference replaces its data.

Strength 1 is the predicted best, from kappa alone, which here follows from the numbers of samples:

| method | strength s |
|---|---|
| DRRho, KL | temperature kappa / s, in units of the noise's variance |
| DRRho, chi-square | radius s d / (2 (1 + kappa)) / n |
| DRO | the same risks of the losses themselves, without the reference |
| RHO-LOSS | the share 1 / (1 + s) of a super-batch with the largest excess losses is kept |

The risks are minimised by L-BFGS in 100 passes over the samples. RHO-LOSS minimises nothing; it
takes as many gradients of single samples, in steps that shrink, and passes forward 1 + s times as
many.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import drrho
from drrho.plotting.table import markdown_table

DIMENSIONS = 20
STRENGTHS = (0.25, 0.5, 1.0, 2.0)
PASSES = 100  # over the samples
SUPER_BATCH = 50


class Samples(NamedTuple):
    """Of every data set: x (sets, n, d) and y (sets, n)."""

    x: Tensor
    y: Tensor

    def losses(self, w: Tensor) -> Tensor:
        return (self.y - self.predictions(w)).square() / 2

    def predictions(self, w: Tensor) -> Tensor:
        return (self.x @ w[..., None]).squeeze(-1)

    def least_squares(self) -> Tensor:
        return torch.linalg.lstsq(self.x, self.y[..., None]).solution.squeeze(-1)


def draw(true: Tensor, n: int, generator: torch.Generator) -> Samples:
    x = torch.randn(len(true), n, DIMENSIONS, generator=generator, dtype=true.dtype)
    noise = torch.randn(len(true), n, generator=generator, dtype=true.dtype)
    return Samples(x, (x @ true[..., None]).squeeze(-1) + noise)


def minimise(risk: drrho.RiskMeasure, samples: Samples, reference_losses: Tensor | None) -> Tensor:
    """The w (sets, d) of least risk; all data sets are solved as one problem."""
    w = torch.zeros_like(samples.x[:, 0], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [w], max_iter=PASSES, max_eval=PASSES, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        losses = samples.losses(w)
        if reference_losses is not None:
            losses = drrho.excess_loss(losses, reference_losses)
        total = risk(losses).value.sum()
        total.backward()
        return total

    optimizer.step(objective)
    print(f"{risk}: largest gradient {w.grad.norm(dim=1).max():.1e}", file=sys.stderr)
    return w.detach()


def rho_loss(
    share: float, samples: Samples, reference_losses: Tensor, generator: torch.Generator
) -> Tensor:
    """The mean w (sets, d) of the second half of the steps."""
    w, mean = torch.zeros(2, len(samples.y), DIMENSIONS, dtype=samples.x.dtype)
    n = samples.y.shape[1]
    kept = round(share * min(SUPER_BATCH, n))
    steps = PASSES * n // kept
    for step in range(steps):
        # The data sets have nothing in common, so they may use the same numbers.
        drawn = torch.randperm(n, generator=generator)[:SUPER_BATCH]
        candidates = Samples(samples.x[:, drawn], samples.y[:, drawn])
        scores = candidates.losses(w) - reference_losses[:, drawn]
        weights = torch.zeros_like(scores).scatter(1, scores.topk(kept).indices, 1 / kept)
        residuals = candidates.predictions(w) - candidates.y
        gradient = ((weights * residuals)[..., None] * candidates.x).sum(dim=1)
        w = w - 0.3 / math.sqrt(1 + step / 10) * gradient
        if step >= steps // 2:
            mean += w / (steps - steps // 2)
    return mean


class Estimate(NamedTuple):
    """A multiple of plain training's risk, and the half width of its 95 % interval if measured."""

    value: float
    half_width: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.3f}" + (
            "" if self.half_width is None else f" ± {self.half_width:.3f}"
        )


def measured(risks: Tensor, plain: Tensor) -> Estimate:
    """The ratio of the means over data sets, which are paired."""
    value = risks.mean() / plain.mean()
    error = (risks - value * plain).std() / (plain.mean() * math.sqrt(len(plain)))
    return Estimate(value.item(), 1.96 * error.item())


def predicted(distance: float, kappa: float) -> Estimate:
    """Of w = (1 - distance) reference + distance plain, whose errors are independent."""
    return Estimate(distance**2 + kappa * (1 - distance) ** 2)


def compare(*, seeds: int, n: int, m: int) -> dict[str, list[Estimate]]:
    """For each strength, the excess risks as multiples of plain training's."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(seeds, DIMENSIONS, generator=generator, dtype=torch.float64)
    true /= math.sqrt(DIMENSIONS)
    target, other = draw(true, n, generator), draw(true, m, generator)
    both = Samples(*(torch.cat(parts, dim=1) for parts in zip(target, other, strict=True)))
    plain, reference = target.least_squares(), other.least_squares()
    reference_losses = target.losses(reference)
    # Least squares on k Gaussian samples has the mean excess risk d / (2 (k - d - 1)).
    kappa = (n - DIMENSIONS - 1) / (m - DIMENSIONS - 1)

    def risk_of(w: Tensor) -> Estimate:
        return measured(*((v - true).square().sum(dim=1) / 2 for v in (w, plain)))

    found = defaultdict(list)
    for s in STRENGTHS:
        g = s / (1 + kappa)
        kl, chi_square = (
            drrho.KL(temperature=kappa / s),
            drrho.ChiSquareBall(radius=g * DIMENSIONS / (2 * n)),
        )
        found["reference"].append(risk_of(reference))
        found["least squares on both"].append(risk_of(both.least_squares()))
        for name, risk, distance in [
            # A ridge of weight 1 / temperature towards the reference, and a soft threshold.
            ("KL", kl, kappa / (kappa + s)),
            ("chi-square", chi_square, max(0.0, 1 - math.sqrt(g / (1 + kappa)))),
        ]:
            found[f"DRO, {name}"].append(risk_of(minimise(risk, target, None)))
            found[f"DRRho, {name}"].append(risk_of(minimise(risk, target, reference_losses)))
            found[f"DRRho, {name}, predicted"].append(predicted(distance, kappa))
        w = rho_loss(1 / (1 + s), target, reference_losses, generator)
        found["RHO-LOSS"].append(risk_of(w))
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Estimate]]:
    parser = argparse.ArgumentParser(description="Linear regression with a reference model.")
    parser.add_argument("--seeds", type=int, default=200, help="data sets, at least 2")
    parser.add_argument("--samples", type=int, default=400, help="of the target")
    parser.add_argument("--reference-samples", type=int, default=200)
    parser.add_argument("--output", type=Path, help="folder for results.json and results.md")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"an interval needs at least 2 seeds, got {options.seeds}")
    if min(options.samples, options.reference_samples) < DIMENSIONS + 2:
        parser.error(f"least squares in {DIMENSIONS} dimensions needs {DIMENSIONS + 2} samples")
    found = compare(seeds=options.seeds, n=options.samples, m=options.reference_samples)
    rows = [[name, *map(str, estimates)] for name, estimates in found.items()]
    table = markdown_table(["risk / plain training's", *(f"s = {s:g}" for s in STRENGTHS)], rows)
    print(table)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "results.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.output / "results.md").write_text(table + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors this small are not worth dividing
    main()
