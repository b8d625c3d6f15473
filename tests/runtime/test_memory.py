"""Free memory is the machine's, or what is left of a container's limit."""

import pytest

from drrho.runtime import memory


@pytest.fixture
def group(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


def test_without_a_limit_it_is_the_machines(group, monkeypatch):
    (group / "memory.max").write_text("max\n")
    machine = group / "meminfo"
    machine.write_text("MemTotal: 9 kB\nMemAvailable: 7 kB\n")
    monkeypatch.setattr(memory, "MACHINE", machine)
    assert memory.free_memory() == 7 * 1024


def test_a_system_that_does_not_say_what_is_free_has_some(group, monkeypatch):
    monkeypatch.setattr(memory, "MACHINE", group / "none")
    assert memory.free_memory() > 0


@pytest.mark.parametrize(
    ("limit", "used", "counts", "line"),
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file 500"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file 500",
        ),
    ],
)
def test_of_a_container_files_that_can_be_dropped_are_free(group, limit, used, counts, line):
    (group / "memory").mkdir()
    (group / limit).write_text("10000\n")
    (group / used).write_text("4000\n")
    (group / counts).write_text(f"anon 3500\n{line}\nother 7\n")
    assert memory.free_memory() == 6500
