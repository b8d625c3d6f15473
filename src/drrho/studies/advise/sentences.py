"""The recommendation in a sentence, and what it rests on."""

from collections.abc import Iterator, Mapping, Sequence

from drrho.reference.judgement import NEAR_GUESSING
from drrho.studies.advise.arms import PLAIN
from drrho.studies.advise.halving import Rung, Scores, paired_interval
from drrho.studies.advise.lead import LEVELS, Lead


def notes_of(rungs: Sequence[Rung], *, guessing: float) -> Iterator[str]:
    """Say at which rungs arms were dropped before anything was learned."""
    blind = [rung for rung in rungs if rung.dropped and rung.mrr[rung.leader].low <= guessing]
    for rung in blind:
        dropped = [name for name, why in rung.dropped.items() if why == "outranked"]
        if dropped:
            yield (
                f"at step {rung.step:,} the leader could not be told from guessing "
                f"({guessing:.3f}), so that it was chance that dropped {', '.join(dropped)}: raise "
                "--budget or race fewer --uses"
            )


def note_on_early_ranks(finalists: Sequence[str], *, step: int, length: int) -> Iterator[str]:
    """Say that a race of arms that all began anew tells little about their ends.

    docs/results/advise.md, "Without start": the order of such arms early in training is weakly
    related to the order at its end.
    """
    if step < length:
        yield (
            "no arm began with the reference's weights, and the order of arms that begin anew "
            "often changes after a race: before you rely on the recommendation, continue the runs "
            f"of {' and '.join(finalists)} to their ends with `drrho train`, or let --decide-by "
            "lead decide"
        )


def recommendation_by_lead(title: str, name: str, lead: Lead, *, step: tuple[int, int]) -> str:
    """Say what to do, and from which lead of the reference that follows."""
    bounds = [0.0, *(least for least, _ in LEVELS), float("inf")]
    place = sum(lead.lead >= least for least in bounds) - 1
    between = (
        f"from {bounds[place]:g} on"
        if place == len(bounds) - 2
        else f"of {bounds[place]:g} to {bounds[place + 1]:g}"
    )
    where = "the held-out pairs" if lead.held_out else "as many training pairs"
    said = f"Recommended: {title}. The MRR of {name} on {where} is {lead.reference}"
    if lead.is_near_guessing:
        return f"{said}, near guessing ({lead.guessing:.3f}), and it is left alone."
    return (
        f"{said}; plain training has {lead.plain:.3f} at step {step[0]:,} of {step[1]:,}. The odds "
        f"of the reference are {lead.lead:.2f} times those that plain training is expected to end "
        f"with, and a lead {between} recommends this."
    )


def recommendation(
    titles: Mapping[str, str],
    finals: Scores,
    *,
    chosen: str,
    alike: Sequence[str],
    step: tuple[int, int],
    guessing: float,
) -> str:
    """Say what to do, by how much it led and where, and what cannot be told apart from it."""
    where = f"at step {step[0]:,} of {step[1]:,}"
    own = paired_interval(finals[chosen])
    said = f"Recommended: {titles[chosen]}. {where.capitalize()} its MRR is {own}"
    if chosen != PLAIN:
        lead = paired_interval(finals[chosen] - finals[PLAIN])
        told = (
            "ahead of plain training by" if lead.low > 0 else "not told apart from plain training:"
        )
        said += f", {told} {lead}"
    leader = max(finals, key=lambda name: float(finals[name].mean()))
    if leader != chosen:
        said += (
            f"; {leader} is higher, by no more than one standard error, and the simpler use is "
            "preferred"
        )
    others = [name for name in alike if name != PLAIN or chosen == PLAIN]
    if others:
        said += f". It cannot be told apart from {' and '.join(others)}"
    if own.low <= NEAR_GUESSING * guessing:
        said += (
            f". This is near guessing ({guessing:.3f}): the race was too short to tell; raise "
            "--budget or race fewer --uses"
        )
    return f"{said}."
