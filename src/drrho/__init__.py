"""Training under the guidance of a reference model: the DRRho risk and DRRho-CLIP."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("drrho")
except PackageNotFoundError:  # on the path and not installed
    __version__ = "0+unknown"
