"""Columns of tables and datasets by the names that people give them."""

from collections.abc import Sequence

# Lower case, without separators. `image` and `caption` come before all others.
IMAGE_NAMES = (
    *("image", "images", "imagepath", "imgpath", "imagefile", "imagefilename", "imagename"),
    *("filepath", "filename", "path", "file", "img", "picture", "photo"),
    *("jpg", "jpeg", "png", "webp"),
)
CAPTION_NAMES = (
    *("caption", "captions", "text", "texts", "title", "sentence", "sentences", "description"),
    *("alttext", "alt", "comment", "prompt", "txt"),
)
# Columns of pairs of texts: anchor and positive.
PAIR_NAMES = (
    *(("anchor", "positive"), ("query", "positive"), ("query", "passage"), ("query", "document")),
    *(
        ("query", "answer"),
        ("question", "answer"),
        ("question", "passage"),
        ("sentence1", "sentence2"),
    ),
    *(
        ("text1", "text2"),
        ("sentence0", "sentence1"),
        ("sentencea", "sentenceb"),
        ("texta", "textb"),
    ),
)
URL_NAMES = ("url", "imageurl", "imgurl")
NO_COLUMN = ""  # as the name of a column: there is none


def find_column(url: str, wanted: str | None, present: Sequence[str], *, of: str) -> str | None:
    """Choose a column of a table by its name; None where the table is to be read without one.

    Args:
        wanted: name that the user gave; None looks for a name that is known, where `image` and
            `caption`, unchanged, come first, and `NO_COLUMN` means without one.
        of: "image" or "caption".

    Raises:
        ValueError: there is none or no single one, in one sentence that names the columns.
    """
    if wanted == NO_COLUMN:
        return None
    if wanted is not None or of in present:
        return of if wanted is None else wanted
    names = IMAGE_NAMES if of == "image" else CAPTION_NAMES
    found = [name for name in present if _plain(name) in names]
    if len(found) == 1:
        return found[0]
    option = f"--{of}-column"
    if found:
        raise ValueError(
            f"{url} has several columns that may hold the {of}s, {found}; say which: "
            f"{option} {found[0]!r}"
        )
    if not present:
        raise ValueError(f"{url} names no columns: it is empty, or has no objects")
    urls = [name for name in present if _plain(name) in URL_NAMES]
    if of == "image" and urls:
        raise ValueError(
            f"{url} has no column of images but of their addresses, {urls[0]!r}, and nothing is "
            "fetched; fetch them with img2dataset and index its folder, or name a column of paths "
            f"or bytes: {option} NAME"
        )
    without = f", or {option} '' if there is none"
    if of == "image":
        without = "; or, of pairs of texts: --anchor-column NAME --caption-column NAME"
    raise ValueError(
        f"{url} has no column {of!r}, it has {list(present)}; say which holds {of}s: "
        f"{option} NAME{without}"
    )


def find_pair(present: Sequence[str]) -> tuple[str, str] | None:
    """Choose two columns that are known to be pairs of texts; None where there may be images."""
    by_name = {_plain(name): name for name in present}
    if any(name in by_name for name in (*IMAGE_NAMES, *URL_NAMES)):
        return None
    found = [pair for pair in PAIR_NAMES if all(name in by_name for name in pair)]
    return (by_name[found[0][0]], by_name[found[0][1]]) if len(found) == 1 else None


def find_field(where: str, present: Sequence[str]) -> str | None:
    """Choose the field of a JSON object that has the captions; None if none is known to.

    Raises:
        ValueError: several are known to.
    """
    if "caption" in present:
        return "caption"
    found = [name for name in present if _plain(name) in CAPTION_NAMES]
    if len(found) > 1:
        raise ValueError(
            f"{where} has several fields that may hold the caption, {found}; say which: "
            f"--caption-field {found[0]!r}"
        )
    return found[0] if found else None


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "").replace("-", "").replace(" ", "")
