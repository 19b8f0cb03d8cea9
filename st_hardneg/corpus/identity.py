"""When two texts are the same text, and what stands for a text in random draws."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable

# Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt: characters that are there and cannot be seen.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)


def same_text_key(text: str) -> bytes:
    r"""Digest that two texts share when a reader would call them the same text.

    Source: NFKC_Casefold of the Unicode Standard (section 3.13), which leaves out invisible characters and normalises
    once more after folding case; then runs of whitespace become one space.

    Example:
        >>> same_text_key("  Straße\n 1") == same_text_key("STRASSE 1")
        True
        >>> same_text_key("soft\u00adhyphen") == same_text_key("softhyphen")
        True
    """
    return text_digest(" ".join(_casefolded(text).split()))


def _casefolded(text: str) -> str:
    if text.isascii():
        return text.lower()
    for _ in range(3):  # what folding yields may normalise further
        folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold())
        if folded == text:
            break
        text = folded
    return text


def text_digest(text: str) -> bytes:
    """Digest that only equal texts share."""
    # 16 bytes instead of the text keep a dictionary of millions of texts small.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


IDENTITIES: dict[str, Callable[[str], bytes]] = {"normalized": same_text_key, "exact": text_digest}
"""What ``MiningConfig.identity`` may be: from a text to the key that the same texts share."""


def draw_key(identity_key: bytes) -> int:
    """Return what stands for a text in random draws: 63 bits of its identity's key."""
    return int.from_bytes(identity_key[:8], "little") >> 1
