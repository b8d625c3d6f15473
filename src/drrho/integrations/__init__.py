"""A host's training loop into a steered one: `drrho.integrations.hugging_face`."""

from drrho.runtime.torchvision import import_torchvision

# transformers imports torchvision wherever it is installed.
import_torchvision()
