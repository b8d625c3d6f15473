"""The scaling laws that `drrho scaling fit` wrote, as a chart of the page."""

from drrho.contrastive.objectives.algorithms import method_title
from drrho.plotting.palette import places
from drrho.plotting.svg import draw_svg
from drrho.studies.report.run_charts import DrawnChart
from drrho.studies.scaling.plots import laws_chart
from drrho.studies.scaling.results import ScalingResults


def draw_scaling(results: ScalingResults, name: str) -> DrawnChart:
    """Runs as points and laws as lines, on logarithmic axes, with a table of the exponents."""
    rows, words = [], []
    for method, found in results.methods.items():
        interval = found.intervals.get("exponent")
        ends = "" if interval is None else "{:.3f} to {:.3f}".format(*interval)
        exponent = f"{found.law.exponent:.3f}"
        rows.append([method_title(method), f"{len(found.points)}", exponent, ends])
        words.append(f"{method}: error falls with compute to the power -{exponent}")
    chart = laws_chart(results, f"Scaling law, {name}")
    identifier = "".join(letter if letter.isalnum() else "-" for letter in name)
    return DrawnChart(
        title=chart.title,
        meaning="Points are runs, lines the fitted laws: the steeper, the more compute buys.",
        svg=draw_svg(chart, name=f"scaling-{identifier}", description="; ".join(words)),
        header=["method", "runs", "exponent", "95 % interval"],
        rows=rows,
        places=list(places(results.methods).values()),
    )
