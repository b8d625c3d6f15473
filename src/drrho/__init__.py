"""Training under the guidance of a reference model: the DRRho risk and DRRho-CLIP."""

__version__ = "0.1.0"
