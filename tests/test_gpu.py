"""What `benchmarks/gpu.py` measures on a GPU runs on a processor too."""

import runpy
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_it_can_be_rehearsed(monkeypatch):
    """All parts but the two that start processes."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    found = runpy.run_path(str(BENCHMARKS / "gpu.py"))
    names = [name for name in found["PARTS"] if name not in ("tests", "runs")]
    lines = list(found["page"](found["REHEARSAL"], names, minutes=5))
    assert not [line for line in lines if "FAILED" in line or "Left out" in line]
    assert sum(line.startswith("## ") for line in lines) == len(names) == 4
    assert "| tiny | 16 | DRRho-CLIP |" in "\n".join(lines)


def test_a_part_that_fails_or_comes_too_late_is_said(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    found = runpy.run_path(str(BENCHMARKS / "gpu.py"))

    def breaks(setting):
        """Broken."""
        yield "| begun |"
        raise OSError("no space")

    monkeypatch.setitem(found["PARTS"], "losses", breaks)
    lines = list(found["page"](found["REHEARSAL"], ["losses"], minutes=5))
    assert lines[-3:] == ["| begun |", "FAILED: OSError: no space", ""]
    lines = list(found["page"](found["REHEARSAL"], ["losses"], minutes=-1))
    assert lines[-1].startswith("Left out: ")
