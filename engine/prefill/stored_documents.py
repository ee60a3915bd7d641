"""The documents of one prompt out of a document cache; those that it lacks are computed and kept there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from russet.engine.prefill.branches import TRUNK, Rows
from russet.engine.prefill.document_cache import DocumentCache
from russet.engine.prefill.document_rows import DocumentRows, KeysValues, place
from russet.engine.prefill.paths import Layout, Path, Runner, means, packed
from russet.models.decoder import Decoder


class StoredDocuments:
    """Preamble and documents with their rows at no positions yet; `computed` texts were not in the cache."""

    def __init__(
        self,
        store: DocumentCache,
        decoder: Decoder,
        runner: Runner,
        preamble: Sequence[int],
        documents: Sequence[Sequence[int]],
    ) -> None:
        self.computed = 0
        self._store = store
        self._decoder = decoder
        self._runner = runner
        self._preamble = preamble
        self._preamble_rows = self._load_preamble() if preamble else None
        self._documents = self._load(documents)

    @property
    def log_probabilities(self) -> np.ndarray:
        """The mean log p of each document given the preamble, float64; nan for one of a single token."""
        return np.array([rows.log_probability for rows in self._documents])

    def trunk(self) -> list[Rows]:
        """The preamble's rows at its positions; nothing where it is empty."""
        if self._preamble_rows is None:
            return []
        positions = np.arange(len(self._preamble), dtype=np.float64)
        branches = np.full(len(self._preamble), TRUNK)
        return [place(self._decoder, self._runner.cache, [self._preamble_rows], positions, branches)]

    def place(self, group: Sequence[int], layout: Layout) -> Rows:
        """The rows of some documents, where the layout has them."""
        positions = [layout.documents[i] for i in group]
        branches = [np.full(len(layout.documents[i]), i) for i in group]
        texts = [self._documents[i] for i in group]
        return place(self._decoder, self._runner.cache, texts, np.concatenate(positions), np.concatenate(branches))

    def _load_preamble(self) -> DocumentRows:
        found = self._store.read(self._decoder, self._preamble, ())
        if found is not None:
            return found
        probe = KeysValues()
        positions = np.arange(len(self._preamble), dtype=np.float64)
        self._runner.run([Path(self._preamble, positions, TRUNK)], [], score=False, probe=probe)
        rows = DocumentRows(probe.arrays(self._decoder.config), math.nan)
        self._keep([()], [rows])
        return rows

    def _load(self, documents: Sequence[Sequence[int]]) -> list[DocumentRows]:
        found = {i: self._store.read(self._decoder, self._preamble, text) for i, text in enumerate(documents)}
        missing = [i for i, rows in found.items() if rows is None]
        trunk = self.trunk() if missing else []
        for places in packed([len(documents[i]) for i in missing], self._runner.chunk):
            group = [documents[missing[k]] for k in places]
            rows = self._compute(group, trunk)
            self._keep(group, rows)
            found |= {missing[k]: entry for k, entry in zip(places, rows, strict=True)}
        return [rows for rows in found.values() if rows is not None]

    def _compute(self, documents: Sequence[Sequence[int]], trunk: Sequence[Rows]) -> list[DocumentRows]:
        """Rows of documents that start behind the preamble, a token a position."""
        probe = KeysValues()
        start = len(self._preamble)
        paths = [Path(text, start + np.arange(len(text), dtype=np.float64), i) for i, text in enumerate(documents)]
        _, logs = self._runner.run(paths, trunk, score=True, probe=probe)
        ends = np.cumsum([len(text) for text in documents])[:-1].tolist()
        split = {shape: mx.split(array, ends, axis=3) for shape, array in probe.arrays(self._decoder.config).items()}
        return [
            DocumentRows({shape: parts[i] for shape, parts in split.items()}, float(log_probability))
            for i, log_probability in enumerate(means(logs, len(documents)))
        ]

    def _keep(self, documents: Sequence[Sequence[int]], rows: Sequence[DocumentRows]) -> None:
        self.computed += len(documents)
        self._store.write(self._decoder, self._preamble, documents, rows)
