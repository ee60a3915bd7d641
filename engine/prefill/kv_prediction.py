"""KV Prediction (arXiv 2410.08391): a small auxiliary model runs the prompt, and the base gets its rows by linear maps.

The base model computes the last token only, or also the tokens that the end of the prompt attends to (recompute.py).
Its own key norm and rotary embedding follow the predicted keys, so that a predictor sees keys that do not depend on
their positions.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mlx.core as mx

from russet.engine.cache import KVCache
from russet.engine.device import prefill_chunk
from russet.engine.errors import InvalidOptionError, PredictorError
from russet.engine.prefill.base import Prefilled, PromptTokens, Work
from russet.engine.prefill.exact import exact_instead
from russet.engine.prefill.identity import EQUAL, Identity, keys_values
from russet.engine.prefill.importance import Aggregated, Scorer
from russet.engine.prefill.own_layers import auxiliary_of
from russet.engine.prefill.predictor import Predictor
from russet.engine.prefill.predictor_folder import find_predictor, load_predictor
from russet.engine.prefill.recompute import SeenRows, common_layers, fill
from russet.models.catalog import CATALOG
from russet.models.decoder import Decoder
from russet.models.download import resolve
from russet.models.loading import load_decoder

KEEP = 0.08
"""The share of a prompt's tokens that the base computes in all layers, where its first layers are the auxiliary's."""

POOL = 15
"""Neighbouring tokens that share their scores."""

_logger = logging.getLogger("russet")


class KVPrediction:
    """Predict the prompt's keys and values from an auxiliary model's.

    `predictor` is one in memory, the folder that holds it, or the name of a listed one. `auxiliary` is a decoder, or
    the name or folder of a model; without one, the predictor says which it was trained with: layers of the base, a
    folder inside its own, or a model of the catalog. `prepare` loads it ahead of the first prompt.

    Where the auxiliary begins with the base's own layers, the base computes a share `keep` of the prompt's tokens
    itself, those that `scorer` ranks highest; 0 is the paper's method, which computes the last token only. `rows`
    bounds the rows of one pass. Raises `PredictorError` where predictor, base and auxiliary do not belong together.
    """

    name = "kv-prediction"
    exact = False

    def __init__(
        self,
        predictor: Predictor | Path | str,
        auxiliary: Decoder | Path | str | None = None,
        rows: int | None = None,
        keep: float = KEEP,
        scorer: Scorer | None = None,
    ) -> None:
        if not 0 <= keep <= 1:
            raise InvalidOptionError(f"keep is {keep}; it is a share of the prompt, from 0 to 1.")
        self.folder = None if isinstance(predictor, Predictor) else find_predictor(predictor)
        self.predictor = predictor if isinstance(predictor, Predictor) else load_predictor(find_predictor(predictor))
        self.auxiliary = auxiliary
        self.rows = rows or prefill_chunk()
        self.keep = keep
        self.scorer = scorer or Aggregated(pool=POOL)
        self._prepared: tuple[Decoder, Decoder, Predictor] | None = None

    def prepare(self, decoder: Any) -> None:
        """Load the auxiliary ahead of the first prompt, and check it and the predictor against the base."""
        if isinstance(decoder, Decoder):
            self._parts(decoder)

    def _parts(self, decoder: Decoder) -> tuple[Decoder, Predictor]:
        """The auxiliary, and the predictor in the base's number format, once both have been checked against it."""
        if self._prepared is None or self._prepared[0] is not decoder:
            _check("base model", self.predictor.base, decoder)
            auxiliary = self._find_auxiliary(decoder)
            if isinstance(self.predictor.auxiliary, Identity):
                _check("auxiliary model", self.predictor.auxiliary, auxiliary)
            elif keys_values(auxiliary.config) != self.predictor.sources:
                raise PredictorError(
                    f"The predictor was made with layers {list(self.predictor.auxiliary)} of the base itself, which "
                    "the auxiliary given does not have; leave the auxiliary out."
                )
            predictor = self.predictor.astype(decoder.dtype)
            mx.eval(list(predictor.weights.values()))
            self._prepared = decoder, auxiliary, predictor
        return self._prepared[1:]

    def __call__(self, decoder: Any, prompt: PromptTokens, cache: Any) -> Prefilled:
        reason = self._unfit(decoder, prompt, cache)
        if reason:
            return exact_instead(decoder, prompt, cache, reason, self.rows)
        auxiliary, predictor = self._parts(decoder)
        if common_layers(predictor) is not None:
            logits, work = fill(decoder, auxiliary, predictor, prompt, cache, self.keep, self.scorer, self.rows)
            return Prefilled(logits, exact=False, strategy=self.name, work=work)
        *context, last = prompt.tokens
        store_predicted(decoder, auxiliary, predictor, context, cache, self.rows)
        cache.next_position = len(context)
        logits = decoder.extend(mx.array([[last]]), cache)
        assert logits is not None
        return Prefilled(logits[:, -1], exact=False, strategy=self.name, work=Work([1] * len(decoder.blocks)))

    def _unfit(self, decoder: Any, prompt: PromptTokens, cache: Any) -> str:
        """Why exact prefill has to serve, as a sentence, or nothing."""
        if not isinstance(decoder, Decoder):
            return "KV Prediction needs one of Russet's own architectures, so the prompt was computed exactly."
        if len(prompt.tokens) < 2:
            return "KV Prediction computes the last token anyway, so this prompt of one token was computed exactly."
        if cache.next_position:
            return (
                f"The auxiliary model has not seen the {cache.next_position} tokens that are cached already, so the "
                "rest of the prompt was computed exactly."
            )
        config = self._parts(decoder)[0].config
        if len(prompt.tokens) > config.max_positions or max(prompt.tokens) >= config.vocab_size:
            return (
                f"The auxiliary model takes {config.max_positions} tokens out of a vocabulary of {config.vocab_size}, "
                "which is too little for this prompt, so it was computed exactly."
            )
        return ""

    def _find_auxiliary(self, decoder: Decoder) -> Decoder:
        known = self.predictor.auxiliary
        if isinstance(self.auxiliary, Decoder):
            return self.auxiliary
        if self.auxiliary is not None:
            return load_decoder(resolve(str(self.auxiliary)))
        if not isinstance(known, Identity):
            return auxiliary_of(decoder, known, self.predictor.own)
        inside = self.folder / known.name if self.folder else None
        if inside is not None and inside.is_dir():
            return load_decoder(inside)
        if known.name in CATALOG:
            return load_decoder(resolve(known.name))
        raise PredictorError(
            f"The predictor was trained with {known.name}, which is neither in its folder nor in the catalog; name the "
            "auxiliary model."
        )


def store_predicted(
    base: Decoder, auxiliary: Decoder, predictor: Predictor, tokens: list[int], cache: KVCache, rows: int
) -> None:
    """Append predicted rows of `tokens` to an empty cache of the base, `rows` of them at a time.

    The auxiliary stops at the last layer that the map reads. Its cache is gone afterwards.
    """
    layers = range(max(source for source in predictor.layer_map if source is not None) + 1)
    auxiliary_cache, watch = auxiliary.new_cache(), SeenRows()
    for start in range(0, len(tokens), rows):
        chunk = mx.array([tokens[start : start + rows]])
        auxiliary.run(auxiliary.embed(chunk), layers, start, auxiliary_cache, last=0, probe=watch)
        for layer, keys, values in predictor.predict_all(watch.seen):
            base.store(layer, keys, values, start, cache)
        mx.eval(cache.arrays(), auxiliary_cache.arrays())


def _check(role: str, known: Identity, decoder: Decoder) -> None:
    difference = known.difference(decoder)
    name = f" ({known.name})" if known.name else ""
    if difference:
        raise PredictorError(
            f"The {role} has {difference}; use the one that the predictor was made with{name}, or another predictor."
        )
    if known.similarity(decoder) < EQUAL:
        _logger.warning(
            "the %s's weights are close to those that the predictor was made with%s, not equal: another number format, "
            "or a fine-tuned model",
            role,
            name,
        )
