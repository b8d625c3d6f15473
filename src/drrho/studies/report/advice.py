"""The race of `drrho advise` on the page: the recommendation, its chart and the arms in a table."""

from collections.abc import Iterable
from pathlib import Path

from drrho.plotting.svg import draw_svg
from drrho.runtime.records import read_record
from drrho.studies.advise.plots import arm_places, race_chart
from drrho.studies.advise.results import FILE_NAME, AdviceResults
from drrho.studies.advise.tables import arm_rows
from drrho.studies.report.charts import DrawnChart


def find_advice(folders: Iterable[Path]) -> dict[str, AdviceResults]:
    """Read the races of the folders that hold one, by the folders' names."""
    found = [folder for folder in folders if (folder / FILE_NAME).is_file()]
    return {it.resolve().name: read_record(it / FILE_NAME, AdviceResults) for it in found}


def draw_advice(results: AdviceResults, name: str) -> DrawnChart:
    """Draw the scores of the arms against the steps, with the table of arms."""
    chart = race_chart(results)
    (header, rows), places = arm_rows(results), arm_places(results)
    words = "; ".join(f"{row[0]} reached {row[2]} at step {row[1]}" for row in rows)
    identifier = "".join(letter if letter.isalnum() else "-" for letter in name)
    return DrawnChart(
        title=f"The race, {name}",
        meaning=" ".join([results.sentence, *(f"Note: {note}." for note in results.notes)]),
        svg=draw_svg(chart, name=f"advice-{identifier}", description=words),
        header=header,
        rows=rows,
        places=[places[row[0]] for row in rows],
    )
