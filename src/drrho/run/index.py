"""Shards -> the manifest that gives their samples ids."""

from pathlib import Path

from drrho.data.manifest import Manifest, index_shards


def write_manifest(data: str, output: str | None = None) -> tuple[Manifest, Path]:
    """Indexes shards and writes the manifest.

    Args:
        data: folder of tar files, brace or glob pattern, or one tar file.
        output: JSON file to write; None means `manifest.json` in the folder `data`.

    Raises:
        ValueError: `data` is no folder and there is no `output`, or `output` cannot be written.
    """
    if output is None and not Path(data).is_dir():
        raise ValueError(f"{data} is not a folder; say where to write with --output FILE.json")
    path = Path(data) / "manifest.json" if output is None else Path(output)
    if path.suffix != ".json":
        raise ValueError(f"output must be a .json file, got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / f".{path.name}.probe").touch()
        (path.parent / f".{path.name}.probe").unlink()
    except OSError as error:
        raise ValueError(
            f"cannot write {path} ({error.strerror}); choose another place with --output FILE.json"
        ) from error
    manifest = index_shards(data)
    manifest.save(path)
    return manifest, path
