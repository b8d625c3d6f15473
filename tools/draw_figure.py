"""Draw the README's figure from the results that it shows.

    python tools/draw_figure.py            after the study has written its results
    python tools/draw_figure.py --check    fails where the figure shows other numbers

The figure is SVG with an opaque ground, so that it reads on light and dark pages alike.
"""

import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "emoji-pictograms-union" / "results.json"
FIGURE = ROOT / "docs" / "figures" / "steering.svg"
# What each row of the figure is called, and its colour; without a colour it is a control.
ROWS = {
    "clip": ("CLIP, trained on B", "#0072B2"),
    "fastclip": ("FastCLIP, trained on B", "#E69F00"),
    "reference": ("the reference, trained on A", "#888888"),
    "drrho_clip": ("DRRho-CLIP, trained on B and steered", "#009E73"),
    "fastclip_both_halves": ("control: FastCLIP, trained on A and B", "#E69F00"),
    "fastclip_both_halves_840": ("control: the same, twice as many steps", "#E69F00"),
}
LEFT, RIGHT, TOP, STEP, WIDTH = 330, 680, 62, 34, 760
SEEDS, T_975 = 3, 4.302653  # Student's t of two degrees of freedom, as in the tables
LOW, HIGH = 0.25, 0.60
HEIGHT = TOP + STEP * len(ROWS) + 44
STYLE = "text{font:14px system-ui,sans-serif;fill:#222} .small{font-size:12px;fill:#555}"


def place(score: float) -> float:
    """Horizontal place of a score."""
    return LEFT + (score - LOW) / (HIGH - LOW) * (RIGHT - LEFT)


def row(name: str, top: float, scores: dict[str, float], seeds: list[float]) -> str:
    """One method: its name, every seed, the mean and its interval over seeds."""
    title, colour = ROWS[name]
    mean = scores["mrr"]
    weight = ' font-weight="600"' if name == "drrho_clip" else ""
    parts = [f'<text x="{LEFT - 14}" y="{top + 5}" text-anchor="end"{weight}>{title}</text>']
    if len(seeds) == SEEDS:
        half = T_975 * statistics.stdev(seeds) / SEEDS**0.5
        low, high = place(mean - half), place(mean + half)
        parts.append(f'<path d="M{low:.1f} {top}H{high:.1f}" stroke="{colour}" stroke-width="3"/>')
    parts += [
        f'<circle cx="{place(seed):.1f}" cy="{top}" r="3" fill="#fff" stroke="{colour}"/>'
        for seed in seeds
    ]
    hollow = name.startswith("fastclip_both")
    fill = "#fff" if hollow else colour
    parts.append(
        f'<circle cx="{place(mean):.1f}" cy="{top}" r="6" fill="{fill}" stroke="{colour}" '
        'stroke-width="2"/>'
    )
    parts.append(f'<text x="{RIGHT + 14}" y="{top + 5}"{weight}>{mean:.3f}</text>')
    return "".join(parts)


def figure() -> str:
    """The figure as SVG."""
    study = json.loads(RESULTS.read_text(encoding="utf-8"))
    methods = study["methods"] | study["references"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Mean reciprocal rank on emoji and pictograms, by method</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff"/>',
        f'<text x="{LEFT}" y="24">Mean reciprocal rank on 883 test images</text>',
        f'<text class="small" x="{LEFT}" y="42">A and B: halves of the training pairs</text>',
    ]
    bottom = TOP + STEP * len(ROWS) - 10
    for tick in (0.3, 0.4, 0.5, 0.6):
        x = place(tick)
        parts.append(f'<path d="M{x:.1f} {TOP - 8}V{bottom}" stroke="#ddd"/>')
        parts.append(
            f'<text class="small" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick}</text>'
        )
    for number, name in enumerate(ROWS):
        method = methods[name]
        seeds = [run["tests"]["test"]["mrr"] for run in method.get("runs", [])]
        scores = method["tests"]["test"]
        parts.append(row(name, TOP + 10 + STEP * number, scores, seeds if len(seeds) > 1 else []))
    parts.append(
        f'<text class="small" x="{LEFT}" y="{bottom + 38}">'
        "small circles: seeds; bars: 95 % intervals over three seeds</text>"
    )
    return "\n".join([*parts, "</svg>\n"])


def main(arguments: list[str]) -> int:
    """Writes the figure, or with --check says whether it shows the committed results."""
    drawn = figure()
    if "--check" in arguments:
        return int(drawn != FIGURE.read_text(encoding="utf-8"))
    FIGURE.write_text(drawn, encoding="utf-8")
    print(f"written: {FIGURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
