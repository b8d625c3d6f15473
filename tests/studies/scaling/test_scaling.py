"""The commands read comparisons and tables, and say what they could not."""

import json
import math

import pytest

from drrho.cli import main
from drrho.studies.scaling.points import read_runs


def results(settings, *, gain=0.0):
    """Of `drrho compare`: runs of two methods whose errors follow known laws of compute."""
    methods = {}
    for i, setting in enumerate(settings):
        for method, exponent in (("fastclip", 0.1), ("drrho_clip", 0.2)):
            gflop = 10.0**i
            methods[f"{method}+{setting}"] = {
                "gflop": {"image": 0.75 * gflop, "text": 0.25 * gflop},
                "runs": [
                    {
                        "seed": seed,
                        "tests": {
                            "test": {"mrr": 1 - (gflop * 1000) ** -(exponent + seed / 1000)},
                            "other": {"mrr": 0.5 + 0.01 * i},
                        },
                        "cost": {"samples_seen": 1000},
                    }
                    for seed in range(3)
                ],
            }
    return {"methods": methods}


@pytest.fixture
def ladder(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results(("s", "m", "l", "xl"))))
    return tmp_path


def test_laws_of_a_comparison(ladder, capsys):
    assert (
        main(["scaling", "fit", str(ladder), "--output", str(ladder / "out"), "--resamples", "100"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "E = a C^-b" in printed
    found = json.loads((ladder / "out" / "scaling.json").read_text())
    assert found["methods"]["fastclip"]["law"]["exponent"] == pytest.approx(0.101)
    (difference,) = found["exponent_differences"]
    assert difference["method"] == "drrho_clip"
    assert difference["difference"] == pytest.approx(0.1)
    assert all(row["ratio"] < 1 and not row["extrapolated"] for row in found["compute_ratios"])
    assert (ladder / "out" / "scaling.png").stat().st_size > 1000


def test_a_table_of_points_and_an_error_beyond_them(tmp_path, capsys):
    rows = ["# a comment", "method,compute,error"]
    rows += [
        f"{m},{10**k},{(10**k) ** -b:.6f}" for m, b in (("a", 0.1), ("b", 0.2)) for k in range(1, 6)
    ]
    (tmp_path / "points.csv").write_text("\n".join(rows))
    arguments = ["scaling", "fit", str(tmp_path / "points.csv"), "--output", str(tmp_path)]
    assert main([*arguments, "--at", "0.01", "--points", "pareto", "--resamples", "100"]) == 0
    assert "extrapolated" in capsys.readouterr().out


def fitted(folder, content, *options):
    (folder / "results.json").write_text(json.dumps(content))
    arguments = ["scaling", "fit", str(folder), "--output", str(folder), "--resamples", "100"]
    status = main([*arguments, *options])
    found = folder / "scaling.json"
    return status, json.loads(found.read_text()) if found.is_file() else {}


def test_settings_near_chance_are_left_out_and_still_shown(tmp_path, capsys):
    content = results(("s", "m", "l", "xl"))
    for run in content["methods"]["fastclip+s"]["runs"]:
        run["tests"]["test"]["mrr"] = 0.02
    _, found = fitted(tmp_path, content, "--chance", "0.005")
    assert "less than 0.05" in capsys.readouterr().out
    for method, exponent in (("fastclip", 0.101), ("drrho_clip", 0.201)):
        points = found["methods"][method]["points"]
        assert [point["used"] for point in points] == [False] * 3 + [True] * 9
        assert found["methods"][method]["law"]["exponent"] == pytest.approx(exponent)
    fitted(tmp_path, content)
    assert "none was left out" in capsys.readouterr().out


def test_the_references_cost_enters_total_compute(tmp_path, capsys):
    """500 samples of training and 300 passes of 2 GFLOP: 1,200 of the unit of compute."""
    content = results(("s", "m", "l"))
    content["references"] = {
        "strong": {"tests": {}, "gflop": {"image": 1.5, "text": 0.5}, "cost": {"samples_seen": 500}}
    }
    cost = {"training": {"samples_seen": 500}, "precompute": {"samples": 300, "seconds": 1}}
    for name, method in content["methods"].items():
        if name.startswith("drrho"):
            method["reference_cost"] = {"strong": cost}
    _, alone = fitted(tmp_path, content)
    _, total = fitted(tmp_path, content, "--compute", "total")
    assert "training and forward passes are in it" in capsys.readouterr().out
    for method, more in (("fastclip", 0), ("drrho_clip", 1200)):
        both = (it["methods"][method]["points"] for it in (alone, total))
        for one, other in zip(*both, strict=True):
            assert other["compute"] == pytest.approx(one["compute"] + more)
    del content["references"]
    assert fitted(tmp_path, content, "--compute", "total")[0] == 1
    assert "what the references of drrho_clip cost" in capsys.readouterr().err


def test_a_law_that_is_read_beyond_its_runs_is_marked(tmp_path, capsys):
    """Both reach 0.5, but one method's law is at it only beyond its largest run."""
    rows = ["method,compute,error", *(f"a,{c},{(c / 10) ** -0.1}" for c in (20, 100, 1000))]
    rows += [f"b,{c},{e}" for c, e in ((20, 0.9), (30, 0.85), (40, 0.6), (40, 0.9))]
    (tmp_path / "points.csv").write_text("\n".join(rows))
    arguments = ["scaling", "fit", str(tmp_path / "points.csv"), "--output", str(tmp_path)]
    assert main([*arguments, "--at", "0.65", "--resamples", "100"]) == 0
    assert "extrapolated in compute: b's law at" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "scaling.json").read_text())["compute_ratios"]
    assert not row["extrapolated"]
    assert set(row["beyond"]) == {"b"}
    assert row["beyond"]["b"] > 1


def test_sample_ratios_of_a_comparison(tmp_path, capsys):
    """DRRho-CLIP is above all that FastCLIP reached, on the other set nobody is above."""
    content = results((1000, 2000, 4000))
    (tmp_path / "results.json").write_text(json.dumps(content))
    output = ["--output", str(tmp_path / "out"), "--resamples", "100"]
    assert main(["scaling", "efficiency", str(tmp_path), *output]) == 0
    printed = capsys.readouterr().out
    assert "> 1.00" in printed
    assert "| beyond |" in printed
    assert "inf" not in printed
    found = json.loads((tmp_path / "out" / "efficiency.json").read_text())
    assert [row["bound"] for row in found["ratios"]] == ["at_least"] * 3
    assert found["ratios"][2]["low"] is None
    assert found["scores"]["fastclip"]["4000"]["0"] == pytest.approx(1 - 1e5**-0.1)
    assert (tmp_path / "out" / "efficiency.png").is_file()
    assert main(["scaling", "efficiency", str(tmp_path), "--metric", "other/mrr", *output]) == 0
    assert "1.00-1.00" in capsys.readouterr().out  # equal scores


WITHOUT_SCORES = {
    "gflop": {"image": 1, "text": 1},
    "runs": [{"seed": 0, "cost": {"samples_seen": 1}}],
}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "neither csv nor JSON"),
        ("{}", "has no methods"),
        ('{"methods": {"clip": {}}}', "has no 'runs'"),
        ('[{"method": "a", "compute": "x", "error": 1}]', "row 1"),
        ("[]", "no run"),
        ('{"methods": {"clip": {"runs": [{"seed": 0, "tests": {}}]}}}', "forward GFLOP"),
        (
            json.dumps({"methods": {"a": WITHOUT_SCORES}}),
            "'mrr'",
        ),
    ],
)
def test_what_is_no_result_is_named(tmp_path, capsys, content, named):
    (tmp_path / "r.json").write_text(content)
    assert main(["scaling", "fit", str(tmp_path / "r.json"), "--output", str(tmp_path)]) == 1
    assert named in capsys.readouterr().err


def test_missing_files_and_methods_are_named(tmp_path, ladder, capsys):
    assert main(["scaling", "fit", str(tmp_path / "none.json")]) == 1
    assert "none.json does not exist" in capsys.readouterr().err
    assert main(["scaling", "efficiency", str(ladder), "--baseline", "siglip"]) == 1
    assert "no run of 'siglip'" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    content = results((1000, 2000))
    content["methods"]["fastclip+1000"]["runs"][0]["cost"]["samples_seen"] = 2000
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert main(["scaling", "efficiency", str(tmp_path)]) == 1
    assert "equally many samples" in capsys.readouterr().err
    (tmp_path / "results.json").write_text(json.dumps(results(("half", "all"))))
    assert main(["scaling", "efficiency", str(tmp_path)]) == 1
    assert "METHOD+NUMBER" in capsys.readouterr().err


def test_the_setting_stands_after_the_plus(ladder):
    runs = read_runs([str(ladder)])
    assert {run.method for run in runs} == {"fastclip", "drrho_clip"}
    assert len({run.setting for run in runs}) == 4
    assert math.isclose(runs[0].compute(), 1000)
