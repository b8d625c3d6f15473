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
    rows = []
    for share in report.BUDGETS:
        for rule in ("A", "D", "G"):
            chosen = [report.choices_of(cell, rule, share) for cell in found]
            raced = [it for it in chosen if it is not None]
            if raced:
                rows.append(report.summary_row(f"rule {rule}, budget {share:.0%}", raced))
    for name, arm in report.BASELINES.items():
        if arm != "start":
            rows.append(report.summary_row(name, [report.always(cell, arm) for cell in found]))
    table = report.markdown_table(report.HEADER, rows)
    for name, text in (("", table), ("_values", report.values_table(found))):
        (report.RESULTS / f"without_start{name}.md").write_text(f"{text}\n")
        print(f"{text}\n")


if __name__ == "__main__":
    main()
