"""Time and exactness of the risks beside other solvers, and their share of a training step.

    python benchmarks/risk.py > benchmarks/risk.md

Progress goes to standard error. What is compared runs in turn, so that whatever else the machine
does meets all of it.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence

import numpy as np
import torch
from exact import beyond_limit, exact_value
from measuring import FEWEST_REPEATS, in_turn, machine, seconds_of
from rivals import BRACKET, DRO_VERSION, rivals
from torch import Tensor, nn
from torch.nn import functional as F

from drrho.risk import (
    KL,
    ChiSquare,
    ChiSquareBall,
    CVaR,
    KLBall,
    KLCVaR,
    Mean,
    RiskMeasure,
)

BATCH = 1024

# With normal losses: all weights positive, nearly all, half of them.
COMPARED = [
    ChiSquareBall(radius=1e-4),
    ChiSquareBall(radius=0.1),
    ChiSquareBall(radius=1.0),
    CVaR(fraction=0.1),
    KL(temperature=1.0),
    KLBall(radius=0.1),
]
IN_TRAINING = [
    Mean(),
    CVaR(fraction=0.1),
    KL(temperature=1.0),
    KLCVaR(temperature=1.0, fraction=0.1),
    KLBall(radius=0.1),
    ChiSquareBall(radius=0.1),
    ChiSquare(strength=1.0),
]


def beside_other_solvers(risk: RiskMeasure, num_samples: int, *, budget: float) -> list[str]:
    """Rows of the table: one for each solver of this risk."""
    generator = torch.Generator().manual_seed(num_samples)
    losses = torch.randn(num_samples, dtype=torch.float64, generator=generator)
    exact = exact_value(risk, losses.numpy())
    solvers = {"drrho": lambda losses: risk(losses)[:2], **rivals(risk)}
    seconds = in_turn(
        [lambda solver=solver: solver(losses) for solver in solvers.values()], budget=budget
    )
    quantiles = np.quantile(seconds / seconds[:, :1], (0.5, 0.1, 0.9), axis=0)
    rows = []
    for column, (name, solver) in enumerate(solvers.items()):
        value, weights = solver(losses)
        middle, low, high = quantiles[:, column]
        ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})" if column else "1"
        rows.append(
            f"| {num_samples:,} | {name} | {1e3 * np.median(seconds[:, column]):.3g} | {ratio} "
            f"| {abs(value.item() - exact):.0e} | {beyond_limit(risk, weights.numpy()):.0e} |"
        )
    return rows


def solvers_section(sizes: Sequence[int], *, budget: float) -> list[str]:
    lines = [
        "## Beside other solvers",
        "",
        (
            "Value and weights of n standard normal losses in float64. Times are medians; the "
            "ratio is the median over repeats and the range of their middle 80 %: above 1, drrho "
            "is faster. The error of the value is absolute, against 64 bits of mantissa. The "
            "last column is by how much the weights miss a sum of one or leave the ball, "
            "relative to its radius."
        ),
        "",
        (
            "Bisection is on the dual variable, vectorised, until the bracket is "
            f"{BRACKET:.0e} of the first. dro bisects too, until the divergence is as close to "
            "the radius as its name says, by default 0.01; this is a port of fast-dro's own "
            "bisection, the code of the paper that solves so. Its CVaR sorts. It has no KL risk of "
            "given losses: its other models learn a whole linear model."
        ),
        "",
    ]
    for risk in COMPARED:
        lines += [
            f"### `{risk!r}`",
            "",
            "| n | solver | time [ms] | time / drrho's | error of the value | beyond the limit |",
            "|--:|---|--:|--:|--:|--:|",
        ]
        for num_samples in sizes:
            print(f"{risk!r}, n = {num_samples:,}", file=sys.stderr)
            lines += beside_other_solvers(risk, num_samples, budget=budget)
        lines.append("")
    return lines


class ResidualBlock(nn.Module):
    """Two convolutions; the shortcut is strided and padded with zero channels."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.stride = channels // channels_in
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, self.stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolutions(x)
        shortcut = x[:, :, :: self.stride, :: self.stride]
        new_channels = y.shape[1] - x.shape[1]
        return (y + F.pad(shortcut, (0, 0, 0, 0, 0, new_channels))).relu()


def resnet20() -> nn.Module:
    """For images of 32 x 32 pixels: 0.27 million parameters, 41 million multiplications each.

    Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016, 4.2.
    """
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(ResidualBlock(*pair) for pair in itertools.pairwise(widths)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def step_section() -> list[str]:
    torch.manual_seed(0)
    model = resnet20()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels, reduction="none").mean().backward()
        optimizer.step()

    losses = torch.randn(BATCH, requires_grad=True)
    calls = [lambda risk=risk: risk(losses).value.backward() for risk in IN_TRAINING]
    train()
    steps, risks = [], []
    for repeat in range(FEWEST_REPEATS):
        print(f"training step {repeat + 1} of {FEWEST_REPEATS}", file=sys.stderr)
        steps.append(seconds_of(train))
        risks.append(np.median(in_turn(calls, budget=1.0), axis=0))
    shares = 100 * np.array(risks) / np.array(steps)[:, None]
    lines = [
        "## Share of a training step",
        "",
        (
            "A step of ResNet-20 (forward, mean cross-entropy, backward, SGD) on "
            f"{BATCH:,} images of 32 x 32 pixels in float32 takes {np.median(steps):.3g} s. Beside "
            f"it, each risk of {BATCH:,} float32 losses with its weights and its backward pass; "
            "median (and range) over the steps."
        ),
        "",
        "| risk | time [ms] | share of the step [%] |",
        "|---|--:|--:|",
    ]
    for risk, seconds, share in zip(IN_TRAINING, np.array(risks).T, shares.T, strict=True):
        lines.append(
            f"| `{risk!r}` | {1e3 * np.median(seconds):.2f} "
            f"| {np.median(share):.3f} ({share.min():.3f} to {share.max():.3f}) |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["solvers", "step"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e3, 1e4, 1e5, 1e6, 1e7])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each risk and size")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    installed = f"dro {DRO_VERSION or 'absent'}."
    lines = ["# Risks: time and exactness", "", f"{machine()} {installed}", ""]
    if "solvers" in arguments.parts:
        lines += solvers_section([int(n) for n in arguments.sizes], budget=arguments.seconds)
    if "step" in arguments.parts:
        lines += step_section()
    print("\n".join(lines).rstrip())


if __name__ == "__main__":
    main()
