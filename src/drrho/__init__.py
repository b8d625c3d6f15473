"""Training under the guidance of a reference model: the DRRho risk and DRRho-CLIP.

All that most programs need is here by name: `drrho.DRRhoLoss`, `drrho.CVaR`. A name is imported
when it is first used, so that `import drrho` alone costs next to nothing and the losses need no
more than PyTorch. `__init__.pyi` lists the names.
"""

import ast
from importlib import import_module
from pkgutil import get_data
from typing import Any

_HOMES = {
    alias.name: node.module
    for node in ast.parse(get_data(__name__, "__init__.pyi") or b"").body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}
__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def __getattr__(name: str) -> Any:
    """Imports a name, or reads the version, at its first use."""
    if name == "__version__":
        value = _version()
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'drrho' has no attribute {name!r}")
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  20 ms

    try:
        return version("drrho")
    except PackageNotFoundError:  # on the path and not installed
        return "0+unknown"
