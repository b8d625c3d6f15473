"""What the hosts' packages need before they are imported."""

import drrho.integrations  # noqa: F401 - sentence-transformers imports torchvision, whole or not
