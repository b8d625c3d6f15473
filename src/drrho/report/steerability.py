"""A probe of references as a table and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drrho.report.table import markdown_table


def probe_table(document: Mapping[str, Any]) -> str:
    """One row for each reference, best first, and what the columns do not say.

    Args:
        document: what `probe.json` holds.
    """
    of_losses = document["kind"] == "losses"
    header = ["reference", "S", "95 % interval", "ahead of next", "held-out loss", "scale", "ESS"]
    header += ["temperature", "radius"] if of_losses else ["rho", "S, anchors", "precompute"]
    rows, notes = [], []
    for name, found in document["references"].items():
        value, low, high = found["steerability"]
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
    closing = (
        f"On {document['held_out']:,} held-out samples{lost}. S is the share of the excess risk "
    )
    closing += "of plain training that the reference is predicted to remove."
    if not of_losses:
        closing += (
            " For pairs this order did not come true on the one task that it was checked on "
            "(docs/results/probe.md): compare the held-out losses, heed alarms, and try the first "
            "two in short runs."
        )
    return "\n\n".join([markdown_table(header, rows), closing, *notes])


def draw_probe(document: Mapping[str, Any], path: Path) -> None:
    """S of every reference with its interval, best on top; orange where there is an alarm.

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
        value, low, high = found["steerability"]
        colour = "#D55E00" if found["alarm"] else "#0072B2"
        ax.plot([low, high], [place, place], color=colour)
        ax.plot(value, place, "o", color=colour)
    ax.set_yticks(range(len(ordered)), [name for name, _ in ordered])
    ax.invert_yaxis()
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("steerability S, with 95 % interval (orange: has seen the training data?)")
    ax.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _of_losses(found: Mapping[str, Any]) -> list[str]:
    return [f"{found['temperature']:.3g}", f"{found['radius']:.3g}"]


def _of_pairs(found: Mapping[str, Any]) -> list[str]:
    seconds = found["precompute_seconds"]
    cost = "stored" if seconds is None else f"{seconds:,.0f} s"
    return [f"{found['divergence']:.2f}", f"{found['by_anchor']:.3f}", cost]


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
