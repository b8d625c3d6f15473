"""What the server of `tests/processes.py` has imported and read, so that no process has to."""

import drrho.cli  # noqa: F401
from drrho.data.caching.tokenizers import describe_tokenizer
from drrho.models.open_clip import simple_tokenizer
from tests import small_runs  # noqa: F401

describe_tokenizer(simple_tokenizer(1))
