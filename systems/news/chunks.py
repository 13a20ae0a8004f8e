"""Chunks: pieces of an article that are embedded and found one by one.

Owns where a text is cut. Refuses to know what an embedder can take: it takes a chunk of any length.
"""

from __future__ import annotations

from systems.news.settings import CHUNK_OVERLAP_WORDS, CHUNK_WORDS


def chunks(
    text: str, words_max: int = CHUNK_WORDS, overlap: int = CHUNK_OVERLAP_WORDS
) -> list[str]:
    """Pieces of `words_max` words; each begins with the last `overlap` words of the one before."""
    words = text.split()
    starts = range(0, max(1, len(words) - overlap), words_max - overlap)
    return [" ".join(words[start : start + words_max]) for start in starts] if words else []
