"""A probe of references as a table."""

from drrho.evaluation.metrics.chance import reciprocal_rank_chance
from drrho.plotting.table import in_brackets, markdown_table
from drrho.studies.probe.results import ProbedReference, ProbeResults


def probe_table(results: ProbeResults) -> str:
    """A table with a row per reference, best first, and notes below it."""
    of_losses = results.kind == "losses"
    header = ["reference", "S" if of_losses else "MRR", "95 % interval", "ahead of next"]
    header += ["held-out loss", "scale", "ESS"]
    header += ["temperature", "radius"] if of_losses else ["rho", "S", "S, anchors", "precompute"]
    rows, notes = [], []
    for name, found in results.references.items():
        value, low, high = results.ranked_by(found)
        rows.append(
            [
                name,
                f"{value:.3f}",
                f"{low:.3f}-{high:.3f}",
                {None: "", True: "yes", False: "no"}[found.resolved],
                f"{found.held_out_loss:.4f}",
                f"{found.beta.value:.2f}{'!' if found.scale_mismatch else ''}",
                f"{100 * found.effective_share:.0f} %",
                *(_of_losses(found) if of_losses else _of_pairs(found)),
            ]
        )
        notes += _notes(name, found)
    left_out = results.left_out
    lost = f"; {left_out:,} without a finite loss of every model are left out" if left_out else ""
    if results.not_used:
        total = results.held_out + sum(results.not_used.values())
        lost = f" of {total:,}; the others are not used{in_brackets(results.not_used)}"
    closing = f"On {results.held_out:,} held-out samples{lost}. "
    if not of_losses:
        guessed = reciprocal_rank_chance(results.held_out)
        closing += f"Guessing reaches an MRR of {guessed:.3f}. "
    closing += (
        "S is the share of the excess risk of plain training that the reference is predicted to "
        "remove."
        if of_losses
        else "Ordered by the reference's own mean reciprocal rank of the right partner, which "
        "foretold gains best where that was checked; S did not (docs/results/probe.md). The order "
        "does not say whether any of them helps: heed alarms, and try the first two in short runs "
        "(`drrho advise`)."
    )
    return "\n\n".join([markdown_table(header, rows), closing, *notes])


def _of_losses(found: ProbedReference) -> list[str]:
    return [f"{found.temperature:.3g}", f"{found.radius:.3g}"]


def _of_pairs(found: ProbedReference) -> list[str]:
    seconds = found.precompute_seconds
    cost = "stored" if seconds is None else f"{seconds:,.0f} s"
    scores = [f"{found.steerability.value:.3f}", f"{found.by_anchor:.3f}"]
    return [f"{found.divergence:.2f}", *scores, cost]


def _notes(name: str, found: ProbedReference) -> list[str]:
    notes, seen = [], found.contamination
    if found.judgement is not None:
        notes.append(f"{name}: {found.judgement}")
    if seen is not None and seen.alarm:
        notes.append(
            f"ALARM: {name} has a loss lower by {-seen.gap:.4f} on training samples than on "
            "held-out ones; it seems to have seen them, and would steer little."
        )
    if found.too_close:
        notes.append(
            f"ALARM: {name} deviates from the target as the pilots do (kappa "
            f"{found.kappa.value:.2f}): it seems to have seen their training samples."
        )
    if found.scale_mismatch:
        _, low, high = found.beta
        notes.append(
            f"{name}: its losses or gaps fit the pilots' best when multiplied by {low:.2f} to "
            f"{high:.2f}: another scale, or noise. Multiplied so, its S would be "
            f"{found.scaled.value:.3f}."
        )
    return notes
