"""Write the tables and the forest plot of finished comparisons again, from their results alone.

    python experiments/comparison_tables.py docs/results/demo docs/results/comparison/*/
    python experiments/comparison_tables.py FOLDER --chance test=DATA/emoji-pictograms/test-0000.tar

Each folder holds the `results.json` of `drrho compare`; it gets `results.md` and `differences.png`
as this version writes them. Nothing is trained or evaluated, and `results.json` stays as it is, but
for what guessing reaches on a test set, which earlier versions did not write: with --chance it is
computed from the captions and classes.
"""

import argparse
from pathlib import Path

from drrho.evaluation.evaluate import chance_on
from drrho.evaluation.sets import open_evaluation_set
from drrho.runtime.files import write_atomically, write_json
from drrho.runtime.records import read_json_object
from drrho.studies.compare.plots import draw_differences
from drrho.studies.compare.results import read_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--chance", nargs="+", default=[], metavar="TEST=DATA")
    arguments = parser.parse_args()
    sets = [text.partition("=") for text in arguments.chance]
    chance = {test: chance_on(open_evaluation_set(source)) for test, _, source in sets}
    for folder in arguments.folders:
        if chance:
            content = read_json_object(folder / "results.json")
            content["setup"]["chance"] = chance
            write_json(folder / "results.json", content)
        results = read_results(folder / "results.json")
        write_atomically(folder / "results.md", f"{results}\n".encode())
        if (folder / "differences.png").is_file():
            draw_differences(results, folder / "differences.png")


if __name__ == "__main__":
    main()
