"""One colour for each method, in every picture."""

import itertools
from collections.abc import Iterable

# Okabe and Ito's colours, distinguishable with the common colour vision deficiencies, and purple.
# The page has variants of the same hues for light and dark (templates/page.css).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#6A4FB3")
MARKERS = "osD^vPX*"  # beyond the last colour, methods differ in their marker
PLACES = {
    "clip": 0,
    "openclip": 0,
    "fastclip": 1,
    "fastclip_v3": 1,
    "drrho_clip": 2,
    "siglip": 3,
    "isogclr": 4,
    "distillation": 5,
    "fastclip_v1": 6,
    "jest": 7,
    "jest_top_k": 8,
    "rho_top_k": 9,
    "drrho_clip_equal": 10,
    "drrho_clip_weaker": 11,
    "filter": 12,
    "fastclip_distillation": 13,
    "drrho_clip_distillation": 14,
}


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
