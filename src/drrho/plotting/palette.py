"""One colour for each method, in every picture."""

import itertools
from collections.abc import Iterable

# The hues of Okabe and Ito, distinguishable with the common colour vision deficiencies, and purple:
# dark enough for lines on white (a contrast of 3), and lightened for dark pages.
COLOURS = ("#0072B2", "#C98300", "#009E73", "#C2629A", "#3A97D3", "#D55E00", "#333333", "#6A4FB3")
DARK = ("#4EA9EE", "#F0B23E", "#3FD0A4", "#EC9CC8", "#A5DBFF", "#FF8A5C", "#D0D0D0", "#B9A5FF")
MARKERS = "osD^vPX*"  # beyond the last colour, methods differ in their marker
METHODS = (
    *(
        "clip openclip plain",
        "fastclip fastclip_v3",
        "drrho_clip drrho",
        "siglip",
        "isogclr",
        "distillation",
    ),
    *(
        "fastclip_v1",
        "jest fastclip_union fastclip_both_halves union",
        "jest_top_k",
        "rho_top_k",
        "drrho_clip_equal",
        "drrho_clip_weaker",
    ),
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


def line_marker(place: int) -> str:
    """The marker on a line of a place: none on the first of each colour."""
    return "" if place < len(COLOURS) else marker(place)
