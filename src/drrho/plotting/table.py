"""Plain Markdown tables: legible in a terminal, rendered everywhere else."""

from collections.abc import Mapping, Sequence

CHANCE = "/chance"  # follows the name of the metric that guessing reaches as much of


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns: the first to the left, the others to the right.

    Raises:
        ValueError: a row has another length than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"each row needs {len(header)} cells, got {len(row)}: {list(row)}")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * width if column == 0 else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def metrics_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each metric, a column for each set; empty where a set has no such metric.

    A set's `METRIC/chance` is shown in a column beside the metric.
    """
    columns: dict[str, Mapping[str, float]] = {}
    for title, metrics in scores.items():
        chance = {
            name.removesuffix(CHANCE): value
            for name, value in metrics.items()
            if name.endswith(CHANCE) and name.removesuffix(CHANCE) in metrics
        }
        columns[title] = {
            name: value
            for name, value in metrics.items()
            if name.removesuffix(CHANCE) not in chance or name in chance
        }
        if chance:
            columns["chance" if len(scores) == 1 else f"{title}, chance"] = chance
    names = dict.fromkeys(name for metrics in columns.values() for name in metrics)
    rows = [
        [name, *(_number(name, metrics.get(name)) for metrics in columns.values())]
        for name in names
    ]
    return markdown_table(["", *columns], rows)


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if metric in {"images", "skipped"} else f"{value:.4f}"


def in_brackets(counts: Mapping[str, int]) -> str:
    """Counts in brackets after a space, or nothing if there are none."""
    listed = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return f" ({listed})" if listed else ""
