"""`python -m drrho`, as in `torchrun --nproc-per-node 8 -m drrho train RECIPE.py`."""

import sys

from drrho.cli import main

if __name__ == "__main__":
    sys.exit(main())
