r"""Post hoc, beside weak_to_strong.py: is it the learning rate at which steering broke down?

    OMP_NUM_THREADS=1 drrho compare recipes/weak_to_strong.py
    OMP_NUM_THREADS=1 drrho compare experiments/weak_to_strong_post_hoc.py

Written after the primaries of weak_to_strong.py were seen. There the settings of one replicate
chose the largest of the learning rates for steering, 3e-3, and in some of the eight others the
runs broke down. Here every arm has the middle rate, 1.2e-3, and steering its full strength, on the
same scenes, references and seeds. Nothing is chosen, and nothing is decided: what comes of it is a
hypothesis for other data.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import drrho

OUTPUT = "runs/weak-to-strong-post-hoc"


def _study():
    """The program of the study, which is no module of a package."""
    path = Path(__file__).parents[1] / "recipes" / "weak_to_strong.py"
    spec = importlib.util.spec_from_file_location("weak_to_strong", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


study = _study()


def comparison(replicate: int) -> drrho.Comparison:
    planned = study.comparison(replicate)
    at_middle = study.training(study.RATES[1], study.STEPS)

    def fixed(method: str) -> drrho.Recipe:
        """The last settings of a method, which are those of full strength."""
        return replace(planned.methods[method][-1], training=at_middle)

    return drrho.Comparison(
        output=OUTPUT,
        references={"reference": planned.references["reference"]},
        methods={name: fixed(name) for name in ("plain", "drrho", "union", "union_drrho")},
        test=planned.test,
        threads=1,
    )


recipe = drrho.Replicates(output=OUTPUT, comparison=comparison, replicates=8)
