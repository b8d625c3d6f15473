"""Validation of `drrho probe` on logistic regression; the plan is in docs/results/probe.md.

    python experiments/probe/logistic.py        # 13 references, 40 replicates, about a minute

Everything is float64 and solved to the optimum by Newton's method, all problems at once.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import softplus

sys.path.insert(0, str(Path(__file__).parent))
from scoring import Probe, report

from drrho.studies.probe.contamination import contamination
from drrho.studies.probe.steerability import bootstrap_weights, loss_moments, rank_references

FEATURES, SAMPLES, HELD_OUT, REPLICATES = 20, 500, 500, 40
TEMPERATURES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
OUTPUT = Path("docs/results/probe/logistic")
RIDGE = 1e-6  # so that separable samples have a minimiser


def losses_of(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy (..., n) of weights (..., d) on inputs (n, d) with labels -1, 1."""
    return softplus(-y * (weights @ x.T))


def fit(x: Tensor, y: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """The minimiser of the mean loss; `mask` (d,) keeps some features alone."""
    x = x if mask is None else x * mask
    return solve(x, y, torch.zeros(1, len(x)), torch.tensor([float("inf")]))[0]


def solve(x: Tensor, y: Tensor, reference: Tensor, tau: Tensor) -> Tensor:
    """Minimisers (P, d) of `tau log mean exp((loss - reference) / tau)` for P pairs of reference
    losses (P, n) and temperatures (P,); an infinite temperature is the mean.
    """
    signed = x * y[:, None]
    weights = torch.zeros(len(tau), x.shape[1])
    inverse = (1 / tau)[:, None]

    def value(weights: Tensor) -> Tensor:
        excess = softplus(-weights @ signed.T) - reference
        soft = tau * ((excess * inverse).logsumexp(1) - torch.tensor(float(len(x))).log())
        return torch.where(tau.isinf(), excess.mean(1), soft) + RIDGE * weights.square().sum(1)

    for _ in range(60):
        margins = weights @ signed.T
        p = ((softplus(-margins) - reference) * inverse).softmax(dim=1)
        slope = torch.sigmoid(-margins)
        gradient = -(p * slope) @ signed
        each = slope * slope * inverse + slope * (1 - slope)
        hessian = signed.T @ ((p * each)[:, :, None] * signed)
        hessian = hessian - inverse[:, :, None] * gradient[:, :, None] * gradient[:, None, :]
        gradient = gradient + 2 * RIDGE * weights
        hessian = hessian + 2 * RIDGE * torch.eye(x.shape[1])
        step = torch.linalg.solve(hessian, gradient)
        decrease = (gradient * step).sum(1)
        if decrease.max() < 1e-14:
            break
        now, size = value(weights), torch.ones(len(tau))
        for _ in range(30):
            worse = value(weights - size[:, None] * step) > now - 1e-4 * size * decrease + 1e-14
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        weights = weights - size[:, None] * step
    return weights


def draw(truth: Tensor, num: int, generator: torch.Generator, *, shift: float = 0.0):
    x = torch.randn(num, FEATURES, generator=generator)
    x[:, : FEATURES // 2] += shift
    y = torch.where(torch.rand(num, generator=generator) < torch.sigmoid(x @ truth), 1.0, -1.0)
    return x, y


def references(truth: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], dict]:
    """Name -> weights; name -> size (features, samples)."""
    found, sizes = {}, {}
    for num in (100, 250, 1000, 4000):
        found[f"{num:,} samples"], sizes[f"{num:,} samples"] = (
            fit(*draw(truth, num, generator)),
            (FEATURES, num),
        )
    for kept in (15, 10, 5):
        mask = (torch.arange(FEATURES) < kept).double()
        name = f"{kept} features"
        found[name], sizes[name] = fit(*draw(truth, 4000, generator), mask=mask), (kept, 4000)
    x, y = draw(truth, 4000, generator)
    short = torch.zeros(FEATURES)
    for _ in range(5):
        short = short + (x * y[:, None] * torch.sigmoid(-y * (x @ short))[:, None]).mean(0)
    elsewhere = truth + 0.5 * torch.nn.functional.normalize(
        torch.randn(FEATURES, generator=generator), dim=0
    )
    flipped_x, flipped_y = draw(truth, 4000, generator)
    flips = torch.where(torch.rand(4000, generator=generator) < 0.3, -1.0, 1.0)
    full = found["4,000 samples"]
    found |= {
        "stopped early": short,
        "other domain": fit(*draw(elsewhere, 4000, generator, shift=1.0)),
        "30 % flipped": fit(flipped_x, flipped_y * flips),
        "halved": full / 2,
        "corrupted": full[torch.randperm(FEATURES, generator=generator)],
    }
    for name in list(found)[-5:]:
        sizes[name] = (FEATURES, 4000)
    sizes["memorised"] = (FEATURES, SAMPLES)
    return found, sizes


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    truth = 2 * torch.nn.functional.normalize(torch.randn(FEATURES, generator=generator), dim=0)
    fixed, sizes = references(truth, generator)
    quadrature = torch.randn(20_000, FEATURES, generator=generator)
    positive = torch.sigmoid(quadrature @ truth)

    def risk(weights: Tensor) -> Tensor:
        """Excess risk (...), the true weights' taken off."""
        ones = torch.ones(len(quadrature))

        def cross_entropy(w):
            up, down = losses_of(w, quadrature, ones), losses_of(w, quadrature, -ones)
            return (positive * up + (1 - positive) * down).mean(-1)

        return cross_entropy(weights) - cross_entropy(truth)

    names = list(sizes)
    probes, rows = [], []
    for replicate in range(REPLICATES):
        x, y = draw(truth, SAMPLES, generator)
        held_x, held_y = draw(truth, HELD_OUT, generator)
        plain = fit(x, y)
        models = torch.stack([(fixed | {"memorised": plain})[name] for name in names])
        half = SAMPLES // 2
        pilots = torch.stack([fit(x[:half], y[:half]), fit(x[half:], y[half:])])
        stored, held = losses_of(models, x, y), losses_of(models, held_x, held_y)
        pilot_held, pilot_train = losses_of(pilots, held_x, held_y), losses_of(pilots, x, y)
        weights = bootstrap_weights(HELD_OUT, resamples=200, generator=generator)
        found = rank_references(loss_moments(pilot_held, held, weights=weights), names)
        unseen = torch.cat([pilot_train[1, :half], pilot_train[0, half:]])
        flagged = {
            name
            for k, name in enumerate(names)
            if contamination(
                stored[k] - unseen,
                held[k] - pilot_held.mean(0),
                resamples=400,
                generator=generator,
            ).alarm
        }
        # Of its own, so that the draws of the plan stay what they were.
        apart = torch.Generator().manual_seed(replicate)
        revised = {
            name
            for k, name in enumerate(names)
            if found[name].too_close
            or contamination(stored[k], held[k], resamples=400, generator=apart).alarm
        }
        tau = torch.tensor(
            [[*TEMPERATURES, found[name].temperature] for name in names]
        )  # (references, temperatures)
        solved = solve(x, y, stored.repeat_interleave(tau.shape[1], 0), tau.flatten())
        risks = risk(solved).view_as(tau)
        validation = losses_of(solved, held_x, held_y).mean(-1).view_as(tau)
        best = validation[:, : len(TEMPERATURES)].argmin(1, keepdim=True)
        base = float(risk(plain))
        gained = {
            "gain": base - risks.gather(1, best).squeeze(1),
            "suggested": base - risks[:, -1],
            "oracle": base - risks[:, : len(TEMPERATURES)].min(1).values,
        }
        rows.append({key: value.tolist() for key, value in gained.items()} | {"plain": base})
        scores = {
            "S": [found[name].steerability.value for name in names],
            "S, scaled": [found[name].scaled.value for name in names],
            "held-out loss": (-held.mean(1)).tolist(),
            "size": [sizes[name][0] + sizes[name][1] / 1e9 for name in names],
            "variance ratio": [-found[name].variance_ratio for name in names],
        }
        probes.append(Probe(scores=scores, flagged=flagged, revised=revised))
        print(f"replicate {replicate + 1} of {REPLICATES}, plain {base:.4f}", file=sys.stderr)
    report(OUTPUT, names, probes, rows, title="Logistic regression: excess risk removed")


if __name__ == "__main__":
    main()
