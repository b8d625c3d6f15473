"""Advice in words and tables."""

from drrho.evaluation.metrics.interval import Interval
from drrho.plotting.table import markdown_table
from drrho.studies.advise.results import AdviceResults, ArmFound, ReferenceFound

CAUTION_LEAD = (
    "No use of a reference was trained: the lead says how much of it was best in trainings of "
    "small models on drawn scenes. On one real reference distilling alone was better than steering "
    "and distilling (docs/results/advise.md has how often the lead was right, and where it loses). "
    "Filtering is not decided by it."
)
CAUTION = (
    "Intervals are over the held-out images, with one run of each arm: they do not say how another "
    "seed would come out. No curve is extrapolated: what leads here may not lead at the end of the "
    "training (docs/results/advise.md has how often it did)."
)


def advice_text(results: AdviceResults) -> str:
    """Write the recommendation, the arms, the references and the cost."""
    parts = [results.sentence, arms_table(results), references_table(results)]
    possible = {"race": "raced", "lead": "possible"}[results.decided_by]
    parts += [f"NOTE: {note}." for note in results.notes]
    parts += [f"Not {possible}: {title}: {reason}." for title, reason in not_raced(results)]
    caution = {"race": CAUTION, "lead": CAUTION_LEAD}[results.decided_by]
    return "\n\n".join(
        [*parts, cost_sentence(results), caution, f"Go on with:\n\n    {results.command}"]
    )


def arms_table(results: AdviceResults) -> str:
    """Write the table of the arms that were raced."""
    return markdown_table(*arm_rows(results))


def arm_rows(results: AdviceResults) -> tuple[list[str], list[list[str]]]:
    """Return header and a row for each arm that was raced, those that went furthest first."""
    raced = {name: arm for name, arm in results.arms.items() if name in results.compared}
    last = {name: _last(results, name) for name in raced}
    order = sorted(raced, key=lambda name: (-raced[name].steps, -last[name].mean))
    order.sort(key=lambda name: name != results.recommended)
    rows = [
        [
            name,
            f"{raced[name].steps:,}",
            str(last[name]),
            "" if (behind := raced[name].behind) is None else str(behind),
            _outcome(results, name, raced[name]),
        ]
        for name in order
    ]
    return ["arm", "steps", "MRR there (95 %)", "recommended less it", ""], rows


def references_table(results: AdviceResults) -> str:
    """A row for each reference, and what its judgement warns of."""
    rows, notes = [], []
    for name, found in results.references.items():
        rows.append([name, *_reference_cells(found), *_lead_cells(found)])
        if found.judgement is not None and found.judgement.warning is not None:
            notes.append(f"WARNING, {name}: {found.judgement.warning}")
    header = ["reference", "MRR (95 %)", "guessing", "effective rank", "other pairs' cosine"]
    if results.decided_by == "lead":
        header += ["MRR beside the pilot's", "lead"]
    return "\n\n".join([markdown_table(header, rows), *notes])


def not_raced(results: AdviceResults) -> list[tuple[str, str]]:
    """List the arms that have no run, with the reasons."""
    return [(it.title, it.reason or "") for it in results.arms.values() if it.run is None]


def cost_sentence(results: AdviceResults) -> str:
    """Say what the race took, and what of it is not lost."""
    spent, planned = results.spent, results.planned_steps
    what = {"race": "race", "lead": "pilot"}[results.decided_by]
    begun = f"{spent.kept:,} of them are the beginning of the recommended run"
    if spent.kept == 0:
        begun = "they are of plain training, and the recommended run begins anew"
    sentence = (
        f"The {what} took {spent.steps:,} steps, {spent.steps / planned:.0%} of the "
        f"{planned:,} of one whole run, and {spent.seconds:,.0f} s; {begun}"
    )
    encoding = spent.reference_seconds
    return sentence + (f". Encoding by the references: {encoding:,.0f} s." if encoding else ".")


def _lead_cells(found: ReferenceFound) -> list[str]:
    return [] if found.lead is None else [str(found.lead.reference), f"{found.lead.lead:.2f}"]


def _last(results: AdviceResults, name: str) -> Interval:
    return next(rung.mrr[name] for rung in reversed(results.rungs) if name in rung.mrr)


def _outcome(results: AdviceResults, name: str, arm: ArmFound) -> str:
    if name == results.recommended:
        return "recommended"
    if name in results.alike:
        return "cannot be told apart"
    return arm.reason or {"race": "reached the last rung", "lead": "pilot"}[results.decided_by]


def _reference_cells(found: ReferenceFound) -> list[str]:
    geometry = [f"{found.geometry.effective_rank:.1f}", f"{found.geometry.off_diagonal:.3f}"]
    if found.judgement is None:
        return ["", "", *geometry]
    mrr = found.judgement.mrr
    return [f"{mrr.value:.3f} ({mrr.low:.3f} to {mrr.high:.3f})", f"{mrr.guessing:.3f}", *geometry]
