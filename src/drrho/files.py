"""Files that are whole: a reader finds the old content or the new, never a part."""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that, at every moment, is absent, the old one whole or the new one whole.

    The content is on the disk before the name is: a crash of the machine loses one of the two,
    not both.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes plain data as indented JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
