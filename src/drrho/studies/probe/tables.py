"""A probe of references as a table and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drrho.plotting.table import markdown_table


def probe_table(document: Mapping[str, Any]) -> str:
    """One row for each reference, best first, and what the columns do not say.

    Args:
        document: what `probe.json` holds.
    """
    of_losses = document["kind"] == "losses"
    header = ["reference", "S" if of_losses else "MRR", "95 % interval", "ahead of next"]
    header += ["held-out loss", "scale", "ESS"]
    header += ["temperature", "radius"] if of_losses else ["rho", "S", "S, anchors", "precompute"]
    rows, notes = [], []
    for name, found in document["references"].items():
        value, low, high = _ranked_by(found, document)
        rows.append(
            [
                name,
                f"{value:.3f}",
                f"{low:.3f}-{high:.3f}",
                {None: "", True: "yes", False: "no"}[found["resolved"]],
                f"{found['held_out_loss']:.4f}",
                f"{found['beta'][0]:.2f}{'!' if found['scale_mismatch'] else ''}",
                f"{100 * found['effective_share']:.0f} %",
                *(_of_losses(found) if of_losses else _of_pairs(found)),
            ]
        )
        notes += _notes(name, found)
    left_out = document.get("left_out", 0)
    lost = f"; {left_out:,} without a finite loss of every model are left out" if left_out else ""
    closing = f"On {document['held_out']:,} held-out samples{lost}. "
    closing += (
        "S is the share of the excess risk of plain training that the reference is predicted to "
        "remove."
        if of_losses
        else "Ordered by the reference's own mean reciprocal rank of the right partner, which "
        "foretold gains best where that was checked; S did not (docs/results/probe.md). Heed "
        "alarms, and try the first two in short runs."
    )
    return "\n\n".join([markdown_table(header, rows), closing, *notes])


def draw_probe(document: Mapping[str, Any], path: Path) -> None:
    """What references are ranked by, with its interval, best on top; orange is an alarm.

    Raises:
        OSError: the PNG cannot be written.
    """
    # Seconds to import, and most commands draw nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    ordered = list(document["references"].items())
    figure = Figure(figsize=(7, 1.2 + 0.35 * len(ordered)), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for place, (_, found) in enumerate(ordered):
        value, low, high = _ranked_by(found, document)
        colour = "#D55E00" if found["alarm"] else "#0072B2"
        ax.plot([low, high], [place, place], color=colour)
        ax.plot(value, place, "o", color=colour)
    ax.set_yticks(range(len(ordered)), [name for name, _ in ordered])
    ax.invert_yaxis()
    ax.set_xlim(-0.02, 1.02)
    score = "steerability S" if document["kind"] == "losses" else "mean reciprocal rank"
    ax.set_xlabel(f"{score}, with 95 % interval (orange: has seen the training data?)")
    ax.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _ranked_by(found: Mapping[str, Any], document: Mapping[str, Any]) -> list[float]:
    """Estimate and interval of what orders the references."""
    return found["steerability"] if document["kind"] == "losses" else found["mrr"]


def _of_losses(found: Mapping[str, Any]) -> list[str]:
    return [f"{found['temperature']:.3g}", f"{found['radius']:.3g}"]


def _of_pairs(found: Mapping[str, Any]) -> list[str]:
    seconds = found["precompute_seconds"]
    cost = "stored" if seconds is None else f"{seconds:,.0f} s"
    scores = [f"{found['steerability'][0]:.3f}", f"{found['by_anchor']:.3f}"]
    return [f"{found['divergence']:.2f}", *scores, cost]


def _notes(name: str, found: Mapping[str, Any]) -> list[str]:
    notes, seen = [], found["contamination"]
    if seen is not None and seen["alarm"]:
        notes.append(
            f"ALARM: {name} has a loss lower by {-seen['gap']:.4f} on training samples than on "
            "held-out ones; it seems to have seen them, and would steer little."
        )
    if found["too_close"]:
        notes.append(
            f"ALARM: {name} deviates from the target as the pilots do (kappa "
            f"{found['kappa'][0]:.2f}): it seems to have seen their training samples."
        )
    if found["scale_mismatch"]:
        low, high = found["beta"][1:]
        notes.append(
            f"{name}: its losses or gaps fit the pilots' best when multiplied by {low:.2f} to "
            f"{high:.2f}: another scale, or noise. Multiplied so, its S would be "
            f"{found['scaled'][0]:.3f}."
        )
    return notes
