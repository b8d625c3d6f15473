"""One colour for each method, in every picture."""

import itertools
from collections.abc import Iterable

# Okabe and Ito's colours, distinguishable with the common colour vision deficiencies, and purple.
# The page has variants of the same hues for light and dark (templates/page.css).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#6A4FB3")
MARKERS = "osD^vPX*"  # beyond the last colour, methods differ in their marker
METHODS = (
    *("clip openclip", "fastclip fastclip_v3", "drrho_clip", "siglip", "isogclr", "distillation"),
    *("fastclip_v1", "jest", "jest_top_k", "rho_top_k", "drrho_clip_equal", "drrho_clip_weaker"),
    *("filter", "fastclip_distillation", "drrho_clip_distillation"),
)
PLACES = {name: place for place, names in enumerate(METHODS) for name in names.split()}


def places(names: Iterable[str]) -> dict[str, int]:
    """Gives each name a place in the palette: the method's own if free, else the first free one.

    Args:
        names: of methods, METHOD+SETTING, or runs of a comparison, METHOD-seedN.
    """
    found: dict[str, int] = {}
    names = list(dict.fromkeys(names))
    for name in names:
        place = PLACES.get(name.split("/")[-1].split("-seed")[0].split("+")[0])
        if place is not None and place not in found.values():
            found[name] = place
    free = iter(place for place in itertools.count() if place not in set(found.values()))
    return {name: found[name] if name in found else next(free) for name in names}


def marker(place: int) -> str:
    """The marker of a place."""
    return MARKERS[(place // len(COLOURS)) % len(MARKERS)]
