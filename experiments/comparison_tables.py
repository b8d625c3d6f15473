"""Write the tables and the forest plot of finished comparisons again, from their results alone.

    python experiments/comparison_tables.py docs/results/demo docs/results/comparison/*/

Each folder holds the `results.json` of `drrho compare`, which stays as it is; it gets `results.md`
and `differences.png` as this version writes them. Nothing is trained or evaluated.
"""

import argparse
from pathlib import Path

from drrho.runtime.files import write_atomically
from drrho.studies.compare.plots import draw_differences
from drrho.studies.compare.results import read_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        results = read_results(folder / "results.json")
        write_atomically(folder / "results.md", f"{results}\n".encode())
        if (folder / "differences.png").is_file():
            draw_differences(results, folder / "differences.png")


if __name__ == "__main__":
    main()
