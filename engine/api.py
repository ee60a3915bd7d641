"""The Python API: load a model, then generate, stream, or hold a session."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from russet.engine.chat_template import ChatTemplate
from russet.engine.decode import Step
from russet.engine.device import wire_memory
from russet.engine.encoding import encode_messages, encode_parts, messages_or_ids
from russet.engine.errors import ChatTemplateError, EmptyPromptError, InvalidOptionError
from russet.engine.generation import Run, check_prompt, generate
from russet.engine.options import GenerationOptions
from russet.engine.prefill.base import Extend, Extendable, Prefill, PromptTokens, positions_of, prepare
from russet.engine.prefill.exact import Exact
from russet.engine.prefix_store import PrefixStore, open_store
from russet.engine.progress import Progress
from russet.engine.prompt import Prompt
from russet.engine.reply import Piece, Reply
from russet.engine.session import Session
from russet.engine.timing import Stopwatch, now
from russet.engine.tokenizer import Tokenizer, load_tokenizer
from russet.models.card import describe
from russet.models.config import DecoderConfig
from russet.models.download import resolve
from russet.models.opening import Opened, description_folder, eos_tokens, open_decoder
from russet.models.runtimes.base import ForeignDecoder

Message = dict[str, str]
AnyPrompt = str | Prompt | Sequence[Message] | Sequence[int]
"""One user turn, as one text or in parts, a conversation, or token ids."""


def load(
    name: str | Path,
    *,
    dtype: str | None = None,
    kv_bits: int | None = None,
    prefix_cache: str | Path | bool | None = None,
    compute_units: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a model by catalog name, folder, GGUF file, hub repository or package; fetched and converted if need be.

    `dtype` ("float16", "bfloat16", "float32") is what it computes in; unless given, float32 on a CPU and the
    checkpoint's own on a GPU. `kv_bits` 8 stores the KV cache as int8, which halves it and is lossy. `prefix_cache`
    keeps the rows of long prompts on disk, so that a prompt that begins like an earlier one is not computed again: True
    for the cache folder, or a folder of one's own. `compute_units` ("all", "cpu", "cpu-gpu", "cpu-ne") is what a
    package for Apple's runtimes may run on. Raises `RussetError` subclasses.
    """
    if kv_bits not in (None, 8, 16):
        raise InvalidOptionError(f"kv_bits is {kv_bits!r}; it must be 8 or 16.")
    path = resolve(str(name), progress=progress)
    started = now()
    files = description_folder(path)
    # Parsing the vocabulary takes a tenth of a small model's start; weights load meanwhile.
    with ThreadPoolExecutor(max_workers=1) as pool:
        tokenizer_loading = pool.submit(load_tokenizer, files, eos_tokens(files))
        opened = open_decoder(path, dtype, compute_units)
        tokenizer = tokenizer_loading.result()
    wire_memory()
    store = open_store(prefix_cache, path, opened.decoder, kv_bits or 16)
    return Model(str(name), path, files, opened, tokenizer, kv_bits or 16, now() - started, store)


class Model:
    """A loaded model with its tokenizer and chat template.

    `files` is the folder with its config.json and tokenizer, within `path` for a package. `config` is None where
    another program computes the layers; `card` is a paragraph that says what was loaded.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        files: Path,
        opened: Opened,
        tokenizer: Tokenizer,
        kv_bits: int,
        load_s: float,
        prefix_store: PrefixStore | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self.files = files
        self.decoder: Extendable = opened.decoder
        self.config: DecoderConfig | None = opened.config
        self.tokenizer = tokenizer
        self.template = ChatTemplate.load(files, tokenizer)
        self.max_positions = opened.max_positions
        self.vocab_size = _vocab_size(opened) or tokenizer.vocab_size
        self.kv_bits = kv_bits
        self.load_s = load_s
        self.prefix_store = prefix_store

    @property
    def card(self) -> str:
        return describe(self)

    def generate(self, prompt: AnyPrompt, *, raw: bool = False, system: str | None = None, **settings: Any) -> Reply:
        """The whole reply to a prompt; takes what `stream` takes."""
        *_, last = self.stream(prompt, raw=raw, system=system, **settings)
        assert last.reply is not None
        return last.reply

    def stream(
        self,
        prompt: AnyPrompt,
        *,
        raw: bool = False,
        system: str | None = None,
        options: GenerationOptions | None = None,
        prefill: Prefill | None = None,
        **overrides: Any,
    ) -> Generator[Piece, None, None]:
        """Pieces of the reply as they come; the last one carries the `Reply`.

        A string is one user turn through the model's chat template if it has one, or with `raw` a text to continue.
        `overrides` are fields of `GenerationOptions` (max_tokens, temperature, seed, ...). The prompt is checked here,
        before the first piece is asked for.
        """
        strategy = prefill or Exact()
        self.load_for(strategy)
        watch = Stopwatch()
        chosen = merge_options(options, overrides)
        tokens = self.prepare(prompt, raw=raw, system=system)
        check_prompt(tokens.tokens, self, positions_of(strategy, tokens))
        watch.tokenised()
        cache = self.decoder.new_cache(self.kv_bits)
        return generate(self, tokens, chosen, strategy, watch, cache, Run())

    def session(
        self,
        system: str | None = None,
        *,
        options: GenerationOptions | None = None,
        prefill: Prefill | None = None,
        **overrides: Any,
    ) -> Session:
        """A conversation that keeps its exact KV rows between turns; `prefill` is the strategy of every turn."""
        return Session(self, system, merge_options(options, overrides), prefill)

    def load_session(
        self,
        path: str | Path,
        *,
        options: GenerationOptions | None = None,
        prefill: Prefill | None = None,
        **overrides: Any,
    ) -> Session:
        """A conversation that `Session.save` wrote, cache included; `SessionFileError` if it is another model's."""
        return Session.load(self, Path(path), merge_options(options, overrides), prefill)

    def encode(self, prompt: AnyPrompt, *, raw: bool = False, system: str | None = None) -> list[int]:
        """Token ids of a prompt, as `stream` would feed them to the model."""
        return list(self.prepare(prompt, raw=raw, system=system).tokens)

    def prepare(self, prompt: AnyPrompt, *, raw: bool = False, system: str | None = None) -> PromptTokens:
        """Token ids of a prompt, and what prefill strategies know of them."""
        if isinstance(prompt, Prompt):
            plain = raw or (self.template is None and system is None)
            return encode_parts(self.tokenizer, None if plain else self._chat_template(), prompt, system)
        if not isinstance(prompt, str):
            given = messages_or_ids(prompt)
            if given and isinstance(given[0], dict):
                return self.prepare_chat(given)  # type: ignore[arg-type]
            return PromptTokens(given)  # type: ignore[arg-type]
        if not prompt.strip():
            raise EmptyPromptError("The prompt is empty; write something for the model to answer.")
        if raw or (self.template is None and system is None):
            return PromptTokens(self.tokenizer.encode_prompt(prompt))
        opening = [{"role": "system", "content": system}] if system else []
        return self.prepare_chat([*opening, {"role": "user", "content": prompt}])

    def prepare_chat(self, messages: Sequence[Message]) -> PromptTokens:
        """Token ids of a conversation up to where the assistant is to speak, the template's closing as their tail."""
        return encode_messages(self.tokenizer, self._chat_template(), messages)

    def _chat_template(self) -> ChatTemplate:
        if self.template is None:
            raise ChatTemplateError(f"{self.name} has no chat template, so it can only continue text; use raw prompts.")
        return self.template

    def load_for(self, prefill: Prefill) -> None:
        """Load what a strategy brings (KV Prediction's auxiliary model) unless it is there; `load_s` counts it."""
        started = now()
        prepare(prefill, self.decoder)
        self.load_s += now() - started

    def step(self, cache: Any, extend: Extend | None = None) -> Step:
        """The decoder, or `extend` in its place, as the token loop wants it: a token in, logits of the next one out."""
        extend = extend or self.decoder.extend

        def step(token: mx.array) -> mx.array:
            logits = extend(token, cache)
            assert logits is not None
            return logits[:, -1]

        return step


def _vocab_size(opened: Opened) -> int | None:
    if opened.config is not None:
        return opened.config.vocab_size
    return opened.decoder.vocab_size if isinstance(opened.decoder, ForeignDecoder) else None


def merge_options(options: GenerationOptions | None, overrides: dict[str, Any]) -> GenerationOptions:
    """`options` with single fields replaced; `InvalidOptionError` names one that does not exist."""
    known = GenerationOptions.__dataclass_fields__
    for name in overrides:
        if name not in known:
            raise InvalidOptionError(f"There is no option {name!r}; there are {', '.join(known)}.")
    return replace(options or GenerationOptions(), **overrides)
