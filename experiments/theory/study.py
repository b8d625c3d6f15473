"""What the studies share: means with intervals, and what is written of a study."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrho.plotting.chart import Chart
from drrho.plotting.png import draw_png
from drrho.plotting.table import markdown_table
from drrho.runtime.files import write_atomically, write_json

# Half the width of a 95 % interval, in standard errors.
NORMAL_QUANTILE = 1.96


class Estimate(NamedTuple):
    """A mean over replicates, and half the width of its 95 % interval."""

    value: float
    half_width: float

    def __str__(self) -> str:
        digits = max(0, 1 - math.floor(math.log10(self.half_width))) if self.half_width > 0 else 4
        return f"{self.value:.{digits}f} ± {self.half_width:.{digits}f}"

    def covers(self, value: float, *, relative_error: float = 0.0) -> bool:
        """Whether the interval, widened by a share of the value, holds the value."""
        return abs(self.value - value) <= self.half_width + relative_error * abs(value)


def mean_of(replicates: Tensor) -> Estimate:
    """Of independent replicates."""
    error = replicates.std() / math.sqrt(len(replicates))
    return Estimate(replicates.mean().item(), NORMAL_QUANTILE * error.item())


def ratio_of(numerators: Tensor, denominators: Tensor) -> Estimate:
    """The ratio of two means over the same replicates; the interval knows that they are paired."""
    ratio = numerators.mean() / denominators.mean()
    residual = numerators - ratio * denominators
    error = residual.std() / (denominators.mean().abs() * math.sqrt(len(residual)))
    return Estimate(ratio.item(), NORMAL_QUANTILE * error.item())


def parser_of(description: str, *, replicates: int) -> argparse.ArgumentParser:
    """The options that every study has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--replicates", type=_at_least_two, default=replicates, help="at least 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder for the tables, numbers and figure")
    return parser


class Table(NamedTuple):
    """A heading, what the columns are, and the rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return f"{self.title}\n\n{markdown_table(self.header, self.rows)}\n"


def publish(
    name: str,
    *,
    options: argparse.Namespace,
    results: Mapping[str, Any],
    tables: Sequence[Table],
    charts: Sequence[Chart],
) -> None:
    """Prints the tables; with `--output`, writes NAME.md, NAME.json and NAME.png there."""
    text = "\n".join(map(str, tables))
    print(text)
    if options.output is None:
        return
    settings = {"replicates": options.replicates, "seed": options.seed}
    folder: Path = options.output
    write_json(folder / f"{name}.json", settings | _plain(results))
    write_atomically(folder / f"{name}.md", text.encode())
    draw_png(charts, folder / f"{name}.png")


def _plain(value: Any) -> Any:
    """Tensors and tuples as lists, numbers to six digits: what JSON holds and a person reads."""
    match value:
        case Tensor():
            return _plain(value.tolist())
        case Estimate():
            return {"value": _plain(value.value), "half_width": _plain(value.half_width)}
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float():
            return float(f"{value:.6g}")
        case _:
            return value


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"an interval needs at least 2 replicates, got {number}")
    return number


def generator_of(seed: int) -> torch.Generator:
    """Every study draws from its own, so that one number repeats it."""
    return torch.Generator().manual_seed(seed)
