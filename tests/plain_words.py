"""Words that a reader has to decode, and what to write in their place."""

import re

AVOIDED = {
    r"\b(?:that|those) of\b": "name the thing again, or use 's",
    r"\bstands?\b(?!-in)": "is, is in",
    r"\b(?:lies?|lay)\b": "is, is in",
    r"\b(?:go|goes|going|went|gone) on\b": "continue",
    r"\bone of none\b": "without",
    r"\bin vain\b": "without success",
}


def unclear(text: str) -> list[str]:
    """The lines of a text with words to avoid, each with what to write instead."""
    return [
        f"{line.strip()[:120]}  ({found[0]}: {better})"
        for line in text.splitlines()
        for words, better in AVOIDED.items()
        if (found := re.search(words, line))
    ]
