"""The races of scenes.py again, of arms that do not begin with the reference's weights. Post hoc.

    python experiments/advise/scenes.py            # trains what this replays
    python experiments/advise/without_start.py

For references whose architecture is not the target's, which `start` needs. Best arm, gain and
regret are among the other arms. Written after all cells had been seen, so it decides nothing.
"""

import scenes

_all_arms = scenes.arms


def _others() -> dict[str, scenes.Arm]:
    return {name: arm for name, arm in _all_arms().items() if name != "start"}


def main() -> None:
    """Write docs/results/advise/without_start.md and without_start_values.md."""
    scenes.arms = _others  # before report takes it
    import report  # noqa: PLC0415

    found = list(report.cells(4))
    parts = {
        "without_start": report.summary(found, ("A", "D", "G")),
        "without_start_values": report.values_table(found),
    }
    for name, text in parts.items():
        (report.RESULTS / f"{name}.md").write_text(f"{text}\n")
        print(f"{text}\n")


if __name__ == "__main__":
    main()
