"""Code that is not drrho's own: packages that only a part of it needs, and programs of the user."""

import importlib
import json
import runpy
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit


def import_optional(name: str, *, user: str, extra: str) -> ModuleType:
    """Import a module that `user` (a plural noun) needs and drrho[`extra`] installs.

    Raises:
        ModuleNotFoundError: the module is not installed. The message has the command to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; {user} need: {install_command(extra)}", name=error.name
        ) from error


def built_by_program(path: Path, *, what: str) -> object:
    """Run a Python file of the user's, and return what its `build()` returns; None without one.

    Args:
        what: noun for what it builds, as in "model".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file, or its `build()`, raised an error.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what} 'python:{path}': there is no such file")
    try:
        build = runpy.run_path(str(path)).get("build")
        return build() if callable(build) else None
    except Exception as error:  # it is a program of the user's
        raise ValueError(f"{what} 'python:{path}': {type(error).__name__}: {error}") from error


def install_command(extra: str) -> str:
    """The pip command that adds drrho[`extra`] to this installation.

    It names the place that drrho was installed from, which pip records (PEP 610): a clone or other
    folder, a repository at a commit, an archive; or else the package index.
    """
    try:
        metadata = distribution("drrho").read_text  # of a file of the metadata, always UTF-8
        record = json.loads(metadata("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        record = {}
    url = record.get("url", "")
    if "dir_info" in record:
        option = "-e " if record["dir_info"].get("editable") else ""
        return f"pip install {option}{shlex.quote(f'{unquote(urlsplit(url).path)}[{extra}]')}"
    if "vcs_info" in record:
        url = f"{record['vcs_info']['vcs']}+{url}@{record['vcs_info']['commit_id']}"
    source = f" @ {url}" if url else ""
    return f"pip install {shlex.quote(f'drrho[{extra}]{source}')}"
