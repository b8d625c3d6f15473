"""Results of every version open, and are written as they were read."""

import json
from pathlib import Path

import pytest

from drrho.studies.compare.results import find_results, read_results, write_results

COMMITTED = Path(__file__).parents[3] / "docs" / "results"
NAMED = tuple(f"comparison/{name}" for name in ("scenes-0", "scenes-30", "scenes-60"))
NAMED += ("comparison/emoji-pictograms", "comparison/openstax-figures")


@pytest.mark.parametrize("name", NAMED)
def test_what_was_written_without_a_version_is_read_whole(tmp_path, name):
    path = COMMITTED / name / "results.json"
    write_results(tmp_path / "again.json", read_results(path))
    again = json.loads((tmp_path / "again.json").read_text())
    assert again.pop("format") == 1
    assert again == json.loads(path.read_text())


def test_the_first_layout_is_read():
    results = read_results(COMMITTED / "emoji-pictograms" / "results.json")
    assert list(results.methods) == ["clip", "fastclip", "drrho_clip"]
    assert results.methods["clip"].tests["test"]["mrr"] == pytest.approx(0.30787, abs=1e-5)
    assert results.methods["clip"].intervals["test"] == pytest.approx((0.28749, 0.32931), abs=1e-5)
    assert [run.seed for run in results.methods["clip"].runs] == [0, 1, 2]
    assert results.references["reference"].tests["test"]["mrr"] > 0
    assert results.setup.test_pairs == {"test": 883}
    assert [row.won for row in results.differences] == [3, 3, 3]
    assert "DRRho-CLIP is ahead of CLIP" in str(results)


def test_a_file_that_is_none_or_of_a_later_version_is_named(tmp_path):
    path = tmp_path / "results.json"
    assert find_results(tmp_path) is None
    path.write_text('{"samples_seen": 3}')
    assert find_results(tmp_path) is None
    with pytest.raises(ValueError, match="has no methods"):
        read_results(path)
    path.write_text('{"format": 2, "methods": {}}')
    with pytest.raises(ValueError, match="has format 2, and this version of drrho reads up to 1"):
        read_results(path)
    path.write_text('{"methods": {"clip": {"runs": [{"seed": "x"}]}}}')
    with pytest.raises(ValueError, match=r"methods\.clip\.runs\[0\]\.seed must be a int, got 'x'"):
        read_results(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        find_results(tmp_path)
