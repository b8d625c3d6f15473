"""Charts of the page, each with a description in words and its numbers in a table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from drrho.contrastive.objectives.algorithms import method_title
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import Objective
from drrho.plotting.chart import Chart, Series
from drrho.plotting.palette import places
from drrho.plotting.svg import draw_svg
from drrho.studies.compare.curves import STYLE_NAMES, STYLES, curve_chart, styles_in_words
from drrho.studies.report.content import Group
from drrho.studies.report.gallery import Gallery, ShownStage
from drrho.studies.scaling.plots import laws_chart
from drrho.studies.scaling.results import ScalingResults
from drrho.training.metrics import LOSS, PANELS, Metric, Panel, metrics_of

STILL = 1e-6  # a number that moves by less is constant
TABLE_ROWS = 12  # of the table behind a chart; metrics.jsonl has them all


@dataclass(frozen=True, kw_only=True)
class DrawnChart:
    """A chart with its text and its table.

    Attributes:
        title, meaning: heading and explanation.
        svg: `<svg>` element.
        header, rows: cells of the table.
        places: place in the palette of each row's subject; empty where rows have no colour.
    """

    title: str
    meaning: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    places: Sequence[int] = ()


def draw_panels(groups: Sequence[Group]) -> tuple[list[DrawnChart], list[str]]:
    """Draws each panel in which any run has a number that changes.

    Returns:
        The charts, and sentences on metrics that stayed as they were and are not drawn.
    """
    drawn, constants = [], []
    logs = {group.name: [run.folder.rows for run in group.runs] for group in groups}
    colours = {group.name: group.place for group in groups}
    for panel in PANELS:
        metrics = metrics_of(panel)
        for unit, names in _units(panel, groups).items():
            shown = {name: logs[name] for name in names if any(logs[name])}
            if not shown:
                continue
            chart = curve_chart(panel, metrics, shown, labelled=True, colours=colours)
            lines, still = _moving(chart.series)
            constants += [
                f"{panel.title}, {line.name}: {line.y[0]:.4g} throughout" for line in still
            ]
            if lines:
                title = panel.title if unit == panel.unit else f"{panel.title}, in {unit}"
                label = panel.unit if unit == panel.unit else f"{panel.unit}, {unit}"
                chart = replace(chart, series=lines, y_label=label, title=title)
                drawn.append(_drawn(chart, panel, metrics, f"curve-{len(drawn)}"))
    return drawn, constants


def _units(panel: Panel, groups: Sequence[Group]) -> dict[str, list[str]]:
    """Unit -> names of the groups that have it: losses in nats and in cosines share no axis."""
    if panel != LOSS:
        return {panel.unit: [group.name for group in groups]}
    found: dict[str, list[str]] = {}
    for group in groups:
        found.setdefault(loss_unit(group.runs[0].folder.recipe.objective), []).append(group.name)
    return found


def loss_unit(objective: Objective) -> str:
    """The unit of an objective's loss."""
    if not isinstance(objective, FastCLIP | DRRhoCLIP) or not objective.times_temperature:
        return "nats"
    return "units of cosine" if objective.distillation is None else "units of cosine, and nats"


def _moving(series: Sequence[Series]) -> tuple[list[Series], list[Series]]:
    """Lines that change, and lines of two points or more that do not."""
    still = [line for line in series if len(line.y) > 1 and max(line.y) - min(line.y) <= STILL]
    return [line for line in series if line not in still], still


def _drawn(chart: Chart, panel: Panel, metrics: Sequence[Metric], name: str) -> DrawnChart:
    several = any("," in line.name for line in chart.series)
    styles = [f"{styles_in_words(metrics)}."] if several and len(metrics) > 1 else []
    header, rows = _table(chart.series)
    return DrawnChart(
        title=chart.title,
        meaning=" ".join([panel.meaning, *styles]),
        svg=draw_svg(chart, name=name, description=_describe(chart.series)),
        header=header,
        rows=rows,
    )


def draw_histogram(gallery: Gallery, number: int, group: Group) -> DrawnChart:
    """Weights of the negatives at each stage of a run, with the numbers in a table.

    The last stage has the colour of the method, earlier ones are grey.
    """
    last = len(gallery.stages) - 1
    series = [
        Series(
            name=stage.title,
            x=gallery.edges,
            y=stage.histogram,
            colour=group.place if place == last else None,
            style=STYLES[(last - place) % len(STYLES)],
            steps=True,
        )
        for place, stage in enumerate(gallery.stages)
    ]
    chart = Chart(
        title=f"Weights of negatives, {group.name}",
        x_label="log10 of the weight (0 is an even share)",
        y_label="share of the negatives",
        series=series,
    )
    words = "; ".join(_in_words(stage, gallery.edges) for stage in gallery.stages)
    return DrawnChart(
        title=chart.title,
        meaning="Each anchor spreads its weight over its negatives. Left of 0 are those that count "
        f"less than an even share, right of it those that count more. {_styles(gallery.stages)}",
        svg=draw_svg(chart, name=f"weights-{number}", description=words),
        header=["log10 of the weight", *(stage.title for stage in gallery.stages)],
        rows=[
            [f"{low:g} to {high:g}", *(f"{stage.histogram[i]:.4f}" for stage in gallery.stages)]
            for i, (low, high) in enumerate(zip(gallery.edges, gallery.edges[1:], strict=False))
            if any(stage.histogram[i] >= 5e-5 for stage in gallery.stages)
        ],
    )


def _styles(stages: Sequence[ShownStage]) -> str:
    """The line styles of the stages in words, the last stage first."""
    named = [
        f"{STYLE_NAMES[number % len(STYLES)]}: {stage.title}"
        for number, stage in enumerate(reversed(stages))
    ]
    words = ", ".join(named)
    return f"{words[:1].upper()}{words[1:]}."


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


def _describe(series: Sequence[Series]) -> str:
    """Where each line begins and ends, in words."""
    return "; ".join(
        f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}, between {min(line.y):.3g} and "
        f"{max(line.y):.3g}"
        for line in series
    )


def _table(series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """At most TABLE_ROWS of the samples at which any line has a point, the last among them."""
    points = [dict(zip(line.x, line.y, strict=True)) for line in series]
    places = sorted({x for line in points for x in line})
    if len(places) > TABLE_ROWS:
        last = len(places) - 1
        places = [places[round(i * last / (TABLE_ROWS - 1))] for i in range(TABLE_ROWS)]
    rows = [
        [f"{x:,.0f}", *(f"{line[x]:.4g}" if x in line else "" for line in points)] for x in places
    ]
    return ["samples", *(line.name for line in series)], rows


def _in_words(stage: ShownStage, edges: Sequence[float]) -> str:
    shares = list(zip(edges, stage.histogram, strict=False))
    above = sum(share for low, share in shares if low >= 0)
    tenfold = sum(share for low, share in shares if low >= 1)
    return (
        f"{stage.title}: {above:.1%} of the negatives count more than an even share, "
        f"{tenfold:.2%} more than ten times"
    )
