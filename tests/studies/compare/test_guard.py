"""Test sets that were trained or validated on are refused, however their data are named."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drrho.contrastive.objectives.global_risk import DRRhoCLIP
from drrho.data.indexing import open_manifest
from drrho.data.subset import split_at_random
from drrho.models.build import Model
from drrho.studies.compare.compare import compare
from drrho.studies.compare.guard import shared_samples
from drrho.studies.compare.spec import Comparison

FORMS = ("folder", "manifest", "dotted", "braces", "shard", "copy", "more")


@pytest.fixture(scope="module")
def named(scenes, tmp_path_factory):
    """The test pairs in every form of a name; other pairs as `other`."""
    folder = tmp_path_factory.mktemp("guard")
    for copy in ("copy", "more"):
        shutil.copytree(scenes / "test", folder / copy)
    shutil.copy(scenes / "train" / "scenes-0000.tar", folder / "more" / "scenes-0001.tar")
    (folder / "more" / "manifest.json").unlink()
    relative = os.path.relpath(scenes / "test")
    return {
        "folder": str(scenes / "test"),
        "manifest": str(scenes / "test" / "manifest.json"),
        "dotted": f"./{relative}",
        "braces": f"{scenes}/test/scenes-{{0000..0000}}.tar",
        "shard": str(scenes / "test" / "scenes-0000.tar"),
        "copy": str(folder / "copy" / "manifest.json"),
        "more": str(folder / "more"),
        "other": str(scenes / "train"),
    }


@pytest.fixture
def steered(plain_recipe, named, tmp_path):
    """A comparison in which nothing is seen before the test; the names of its four data sets."""

    def with_data(**data):
        data = dict.fromkeys(("train", "validation", "weak", "weak_validation"), "other") | data

        def at(train, validation, **changes):
            evaluation = replace(plain_recipe.evaluation, data=named[data[validation]])
            return replace(plain_recipe, data=named[data[train]], evaluation=evaluation, **changes)

        return Comparison(
            output=str(tmp_path / "out"),
            references={"weak": at("weak", "weak_validation")},
            methods={"steered": at("train", "validation", objective=DRRhoCLIP(), reference="weak")},
            test=named["folder"],
        )

    return with_data


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("train", "method 'steered' is trained"),
        ("validation", "method 'steered'"),
        ("weak", "the reference 'weak' is trained"),
        ("weak_validation", "the reference 'weak' is validated"),
    ],
)
def test_a_test_set_is_seen_through_every_name(steered, form, where, words):
    with pytest.raises(ValueError, match=words):
        compare(steered(**{where: form}))


def test_nothing_is_trained_before_it(steered, tmp_path):
    with pytest.raises(ValueError, match="shares 12 samples"):
        compare(steered(weak="braces"))
    assert not (tmp_path / "out" / "references").exists()


def test_a_run_that_is_a_reference_says_what_it_has_seen(plain_recipe, named, reference, tmp_path):
    """The fixture's reference was trained on the pairs that are `other` here, now the test set."""
    seen = replace(plain_recipe.evaluation, data=named["copy"])
    target = replace(
        plain_recipe, data=named["copy"], evaluation=seen, objective=DRRhoCLIP(), reference="given"
    )
    comparison = Comparison(
        output=str(tmp_path / "out"),
        references={"given": Model(name=f"run:{reference.parent / 'run'}")},
        methods={"steered": target},
        test=named["other"],
    )
    with pytest.raises(ValueError, match="the reference 'given' is trained on"):
        compare(comparison)


def test_parts_of_one_data_set_share_nothing(named):
    """Both are of the same shards, and each has the other's samples left out."""
    whole = open_manifest(named["other"])
    generator = torch.Generator().manual_seed(0)
    one, other = split_at_random(whole, 10, generator=generator, reason="in the other part")
    assert shared_samples(one, other) == 0
    assert shared_samples(one, whole) == shared_samples(whole, one) == 10
    assert shared_samples(whole, open_manifest(Path(named["folder"]))) == 0
