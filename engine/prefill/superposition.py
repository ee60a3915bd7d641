"""Superposition prompting: documents as parallel paths of one prompt, scored and pruned (arXiv 2404.06910).

The preamble runs once. Each document sees the preamble and itself, each document's copy of the query sees the preamble,
that document and itself. Paths are ranked by how probable query and document are on them, and what follows the query
attends to the best ones only. Where paper and code differ, this follows the code (apple/ml-superposition-prompting).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from russet.engine.device import prefill_chunk
from russet.engine.errors import EmptyPromptError, InvalidOptionError, PromptTooLongError
from russet.engine.prefill.base import Prefilled, PromptTokens, Segments, Work
from russet.engine.prefill.branches import TRUNK, Rows, fill, join
from russet.engine.prefill.document_cache import DocumentCache
from russet.engine.prefill.exact import Exact, exact_instead
from russet.engine.prefill.paths import Layout, LogProbabilities, Path, Runner, Spacing, lay_out, means, packed
from russet.engine.prefill.stored_documents import StoredDocuments
from russet.engine.rows import GROWTH
from russet.models.decoder import Decoder
from russet.models.runtimes.base import runtime_of

if TYPE_CHECKING:
    from russet.engine.api import Model
    from russet.engine.prompt import Prompt


class Superposition:
    """Keeps the `keep` documents whose paths score highest; the others leave no rows.

    A path's score is mean log p(query | preamble, document) + `prior_weight` * mean log p(document | preamble), the
    first token of each left out. `positions` is "equilibrium" (documents share the harmonic mean of their lengths) or
    "left". `documents` is where documents that ran before are kept on disk. Raises InvalidOptionError.
    """

    name = "superposition"
    exact = False

    def __init__(
        self,
        keep: int = 2,
        *,
        prior_weight: float = 0.25,
        positions: Spacing = "equilibrium",
        documents: DocumentCache | None = None,
        chunk: int | None = None,
    ) -> None:
        if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
            raise InvalidOptionError(f"keep is {keep!r}; it is a number of documents, 1 or more.")
        if not np.isfinite(prior_weight):
            raise InvalidOptionError(f"prior_weight is {prior_weight!r}; give a finite number.")
        if positions not in get_args(Spacing):
            raise InvalidOptionError(f"positions is {positions!r}; it must be one of {', '.join(get_args(Spacing))}.")
        if documents is not None and not isinstance(documents, DocumentCache):
            raise InvalidOptionError(
                f"documents is of type {type(documents).__name__}; give a russet.DocumentCache, and the documents "
                "themselves with the prompt."
            )
        self.keep = keep
        self.prior_weight = prior_weight
        self.spacing: Spacing = positions
        self.documents = documents
        self.chunk = chunk or prefill_chunk()

    def positions(self, prompt: PromptTokens) -> int:
        """Where the reply begins: paths lie side by side, so many documents take the room of one."""
        parts = _parts(prompt)
        return lay_out(parts, self.spacing).end if parts is not None else len(prompt.tokens)

    def __call__(self, decoder: Any, prompt: PromptTokens, cache: Any) -> Prefilled:
        """Needs a prompt in parts with a document in it, an empty cache and a model of Russet's own."""
        parts = _parts(prompt)
        if cache.next_position:
            return _exactly(decoder, prompt, cache, "the cache holds the beginning of the prompt already")
        if parts is None:
            return _exactly(decoder, prompt, cache, "the prompt has no documents that are set apart from the rest")
        if not isinstance(decoder, Decoder):
            return _exactly(decoder, prompt, cache, f"the model runs through {runtime_of(decoder)}")
        layout = lay_out(parts, self.spacing)
        runner = Runner(decoder, cache, self.chunk)
        rows = self._superposed(decoder, parts, layout, runner)
        fill(cache, rows, len(parts.task) + GROWTH)
        cache.next_position = layout.task
        rest = Exact()(decoder, PromptTokens(parts.task), cache)
        work = [ours + theirs for ours, theirs in zip(runner.layer_tokens, rest.work.layer_tokens, strict=True)]
        return Prefilled(rest.logits, exact=False, strategy=self.name, work=Work(work))

    def precompute(self, model: Model, prompt: Prompt, *, raw: bool = False, system: str | None = None) -> int:
        """Put a prompt's preamble and documents into the document cache; how many of these were not there.

        `raw` and `system` as in `Model.stream`: the preamble holds the chat template's opening. Raises
        InvalidOptionError.
        """
        parts = _parts(model.prepare(prompt, raw=raw, system=system))
        if self.documents is None or parts is None:
            raise InvalidOptionError("There is nothing to precompute without a document cache and documents.")
        if not isinstance(model.decoder, Decoder):
            raise InvalidOptionError(
                f"{model.name} runs through {runtime_of(model.decoder)}, which has no document caches."
            )
        runner = Runner(model.decoder, model.decoder.new_cache(model.kv_bits), self.chunk)
        return StoredDocuments(self.documents, model.decoder, runner, parts.preamble, parts.documents).computed

    def _superposed(self, decoder: Decoder, parts: Segments, layout: Layout, runner: Runner) -> Rows:
        """Preamble, kept documents, and their copies of the query."""
        score = self.keep < len(parts.documents)
        source: _Computed | StoredDocuments
        if self.documents is not None:
            source = StoredDocuments(self.documents, decoder, runner, parts.preamble, parts.documents)
        else:
            source = _Computed(runner, parts, score and self.prior_weight != 0)
        trunk = source.trunk()
        found: list[Rows] = []
        logs: list[LogProbabilities] = []
        for group in packed([len(document) + len(parts.query) for document in parts.documents], self.chunk):
            found.append(source.place(group, layout))
            if parts.query:
                positions = layout.query + np.arange(len(parts.query), dtype=np.float64)
                paths = [Path(parts.query, positions, i) for i in group]
                queries, more = runner.run(paths, [*trunk, found[-1]], score=score)
                found.append(queries)
                logs += more
        if not score:
            return join([*trunk, *found])
        kept = self.best(means(logs, len(parts.documents)), source.log_probabilities)
        return join([*trunk, *(rows.of(kept) for rows in found if np.isin(rows.branches, kept).any())])

    def best(self, likelihood: np.ndarray, prior: np.ndarray) -> list[int]:
        """The indices of the `keep` best documents, by mean log p of the query and of the document itself.

        A text of one token has no mean, and is given the average of the others'.
        """
        score = _filled(likelihood) + self.prior_weight * _filled(prior)
        return sorted(np.argsort(-score, kind="stable")[: self.keep].tolist())


def _filled(values: np.ndarray) -> np.ndarray:
    """Without nan: the average in its place, or 0 where there is none."""
    missing = np.isnan(values)
    return np.where(missing, 0.0 if missing.all() else values[~missing].mean(), values)


def _parts(prompt: PromptTokens) -> Segments | None:
    """The segments without empty documents, and with a task; None where no document is left.

    Without a task, the query's last token takes its place: one row has to see all kept paths and predict what follows.
    """
    parts = prompt.segments
    documents = tuple(document for document in parts.documents if document) if parts is not None else ()
    if parts is None or not documents:
        return None
    if not parts.query:
        raise EmptyPromptError("The prompt has no query; say what is asked of the documents.")
    if parts.task:
        return replace(parts, documents=documents)
    return replace(parts, documents=documents, query=parts.query[:-1], task=parts.query[-1:])


class _Computed:
    """Preamble and documents of one prompt, run where the layout has them; `StoredDocuments` without a store."""

    def __init__(self, runner: Runner, parts: Segments, score: bool) -> None:
        self._runner = runner
        self._parts = parts
        self._score = score
        self._trunk: list[Rows] = []
        self._logs: list[LogProbabilities] = []
        preamble = parts.preamble
        if preamble:
            path = Path(preamble, np.arange(len(preamble), dtype=np.float64), TRUNK)
            self._trunk = [runner.run([path], [], score=False)[0]]

    @property
    def log_probabilities(self) -> np.ndarray:
        return means(self._logs, len(self._parts.documents))

    def trunk(self) -> list[Rows]:
        return self._trunk

    def place(self, group: Sequence[int], layout: Layout) -> Rows:
        paths = [Path(self._parts.documents[i], layout.documents[i], i) for i in group]
        rows, logs = self._runner.run(paths, self._trunk, score=self._score)
        self._logs += logs
        return rows


def _exactly(decoder: Any, prompt: PromptTokens, cache: Any, reason: str) -> Prefilled:
    """Exact prefill in its place, with the reason as a note."""
    longest = decoder.config.max_positions if isinstance(decoder, Decoder) else decoder.max_positions
    if cache.next_position + len(prompt.tokens) >= longest:
        raise PromptTooLongError(
            f"Superposition does not apply, because {reason}, and the whole prompt of {len(prompt.tokens)} tokens does "
            f"not fit in the model's context of {longest}; shorten the prompt."
        )
    return exact_instead(decoder, prompt, cache, f"Superposition does not apply: {reason}.")
