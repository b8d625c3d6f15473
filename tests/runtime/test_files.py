"""Claims of folders and files, also where the file system or the environment lacks something."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from drrho.runtime.locks import exclusive, exclusive_file

CLAIMS = {"folder": exclusive, "file": lambda path, **how: exclusive_file(path / "x.json", **how)}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_claim_is_of_one_and_ends_with_its_block(claim, tmp_path):
    for _ in range(2):
        with claim(tmp_path):
            refused = pytest.raises(BlockingIOError, match="another process is at work in")
            with refused, claim(tmp_path):
                pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_file_system_without_locks_is_said_and_work_goes_on(claim, number, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="lock"), claim(tmp_path):
        done = True
    assert done


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_another_error_of_the_lock_is_not_hidden(claim, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="broken disk"), claim(tmp_path):
        pass


@pytest.mark.parametrize("backend", ["module://nothing_of_this_name.backend", "module://", "agg"])
def test_charts_do_not_need_the_backend_of_the_notebook_that_started_them(backend):
    program = "import drrho.plotting.axes; print('drawn')"
    environment = dict(os.environ) | {"MPLBACKEND": backend}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout == "drawn\n"
