"""The scaling laws that `drrho scaling fit` wrote, as a plot."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drrho.plotting.svg import Chart, Series, draw_svg
from drrho.studies.report.run_charts import DrawnChart

CURVE_POINTS = 32


@dataclass(frozen=True, kw_only=True)
class MethodLaw:
    """`error = scale * compute^-exponent + floor` of a method, and the runs it was fitted to.

    Attributes:
        points: compute and error of each run.
        scale, exponent, floor: of the law; None where none was fitted.
        interval: of the exponent.
    """

    points: tuple[tuple[float, float], ...]
    scale: float | None = None
    exponent: float | None = None
    floor: float = 0.0
    interval: tuple[float, float] | None = None


ScalingResults = Mapping[str, MethodLaw]


def read_scaling(document: Mapping[str, Any]) -> dict[str, MethodLaw]:
    """Method -> law, of what `drrho scaling fit` wrote; empty if the document is something else.

    Numbers that a later version adds are passed over.
    """
    methods = document.get("methods")
    if not isinstance(methods, Mapping):
        return {}
    found = {}
    for name, method in methods.items():
        if not isinstance(method, Mapping) or not isinstance(method.get("points"), list):
            continue
        points = tuple(
            (float(point["compute"]), float(point["error"]))
            for point in method["points"]
            if isinstance(point, Mapping) and {"compute", "error"} <= point.keys()
        )
        law = method.get("law") or {}
        interval = (method.get("intervals") or {}).get("exponent")
        found[name] = MethodLaw(
            points=points,
            scale=law.get("scale"),
            exponent=law.get("exponent"),
            floor=law.get("floor") or 0.0,
            interval=None if interval is None else (interval[0], interval[1]),
        )
    return {name: law for name, law in found.items() if law.points}


def draw_scaling(results: ScalingResults, name: str) -> DrawnChart:
    """Runs as points and laws as lines, on logarithmic axes, with a table of the exponents."""
    series = []
    for colour, (method, law) in enumerate(results.items()):
        compute, error = zip(*law.points, strict=True)
        series.append(Series(name=method, x=compute, y=error, colour=colour, marks=True))
        if law.scale is not None and law.exponent is not None:
            low, high = math.log(min(compute)), math.log(max(compute))
            x = [math.exp(low + (high - low) * i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]
            y = [law.scale * c**-law.exponent + law.floor for c in x]
            series.append(Series(name=f"{method}, law", x=x, y=y, colour=colour))
    rows = [
        [
            method,
            f"{len(law.points)}",
            "" if law.exponent is None else f"{law.exponent:.3f}",
            "" if law.interval is None else "{:.3f} to {:.3f}".format(*law.interval),
        ]
        for method, law in results.items()
    ]
    words = "; ".join(
        f"{method}: error falls with compute to the power -{law.exponent:.3f}"
        for method, law in results.items()
        if law.exponent is not None
    )
    chart = Chart(
        title=f"Scaling law, {name}",
        x_label="training compute",
        y_label="error",
        series=series,
        log_x=True,
        log_y=True,
    )
    identifier = "".join(letter if letter.isalnum() else "-" for letter in name)
    return DrawnChart(
        title=chart.title,
        meaning="Points are runs, lines the fitted laws: the steeper, the more compute buys.",
        svg=draw_svg(chart, name=f"scaling-{identifier}", description=words),
        header=["method", "runs", "exponent", "95 % interval"],
        rows=rows,
    )
