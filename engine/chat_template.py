"""Messages -> the text that a model was trained to read, by the jinja2 template that came with it.

A template is code from a stranger: it runs in jinja2's sandbox, with bounded work. Helpers and options are those of
`transformers.utils.chat_template_utils`, so that the text equals `apply_chat_template`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.engine.errors import ChatTemplateError
from russet.engine.tokenizer.settings import is_afm, read_json

if TYPE_CHECKING:
    from russet.engine.template_sandbox import SandboxedTemplate
    from russet.engine.tokenizer import Tokenizer

MAX_QUOTED_CHARACTERS = 300
_MARK = "\ue0f0"  # a private-use character stands in for what the user says


@dataclass(frozen=True)
class ChatTemplate:
    """`source` is the jinja2 text, `variables` what it may read beside the messages, `origin` the file it is from."""

    source: str
    variables: dict[str, str] = field(default_factory=dict)
    origin: str = "the chat template"

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of a model folder, or None where it has none.

        Looked for in chat_template.jinja, tokenizer_config.json, chat_template.json; Apple Foundation Models, whose
        checkpoints bring none, have one here. Raises ChatTemplateError where a file is damaged.
        """
        folder = Path(folder)
        found = _find(folder)
        if found is None and is_afm(folder):
            from russet.engine.afm_template import AFM_TEMPLATE

            found = AFM_TEMPLATE, "the chat template for Apple Foundation Models"
        return cls(found[0], dict(tokenizer.token_names), found[1]) if found else None

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt's text, special tokens spelled out, BOS among them where the template writes it.

        `messages` are {"role", "content"}; `variables` reach the template by name (`tools`, `enable_thinking`, ...).
        Raises ChatTemplateError where the template refuses the messages, fails, or does not come to an end.
        """
        given = {"tools": None, "documents": None, **self.variables, **variables}
        given |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        template = self._compiled
        try:
            return template.render(given)
        except Exception as error:  # a template can raise whatever Python can
            raise ChatTemplateError(_sentence(error, self.origin)) from error

    def frame(self, system: str | None = None) -> tuple[str, str]:
        """The text before and after what the user says in a conversation of one turn, to be answered.

        Raises ChatTemplateError where the template does not write the user's text as it is.
        """
        messages = [{"role": "system", "content": system}] if system else []
        opening, mark, closing = self.render([*messages, {"role": "user", "content": _MARK}]).partition(_MARK)
        if not mark:
            raise ChatTemplateError(
                f"{self.origin[:1].upper() + self.origin[1:]} changes what the user says, so a prompt in parts does "
                "not go through it; mend it, or give the prompt as raw text."
            )
        return opening, closing

    @cached_property
    def closing(self) -> str:
        """The text after the last user's, as far as one plain turn shows it."""
        try:
            return self.frame()[1]
        except ChatTemplateError:
            return ""

    @cached_property
    def _compiled(self) -> SandboxedTemplate:
        from jinja2 import TemplateSyntaxError

        from russet.engine.template_sandbox import SandboxedTemplate

        try:
            return SandboxedTemplate(self.source)
        except TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"Line {error.lineno} of {self.origin} is not valid jinja2 ({_quote(error)}); mend or replace it."
            ) from error


def _find(folder: Path) -> tuple[str, str] | None:
    """The template's text and a phrase that names its file."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), f"the chat template {path}"
        except (OSError, ValueError) as error:
            raise ChatTemplateError(f"{path} is not readable text ({error}); fetch the file again.") from error
    for path in (folder / "tokenizer_config.json", folder / "chat_template.json"):
        value = read_json(path).get("chat_template")
        if value is not None:
            return _default(value, path), f"the chat template in {path}"
    return None


def _default(value: Any, path: Path) -> str:
    """One template, or of a list of named ones the one called "default"."""
    if isinstance(value, str):
        return value
    named = value
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if not isinstance(named, dict):
        raise ChatTemplateError(f"{path} has a chat_template of type {type(value).__name__}; a text is expected.")
    template = named.get("default")
    if not isinstance(template, str):
        names = ", ".join(map(str, named)) or "none"
        raise ChatTemplateError(f"{path} names no chat template 'default' (it has: {names}); name one so.")
    return template


def _sentence(error: Exception, origin: str) -> str:
    from jinja2.exceptions import SecurityError, TemplateError, TemplateRuntimeError, UndefinedError

    subject, reason = origin[:1].upper() + origin[1:], _quote(error)
    match error:
        case SecurityError():
            return f"{subject} tries what the sandbox forbids ({reason}); use a template from a source that you trust."
        case UndefinedError():
            return f"{subject} needs what these messages lack ({reason}); check their roles and contents."
        case TemplateRuntimeError():
            return f"{subject} fails ({reason}); mend or replace it."
        case TemplateError():
            return f"{subject} refuses these messages: {reason}."
        case OverflowError() | MemoryError() | RecursionError():
            return f"{subject} was stopped ({reason}); mend or replace it."
        case _:
            return f"{subject} fails on these messages ({type(error).__name__}: {reason}); check their contents."


def _quote(error: Exception) -> str:
    """An error's message on one line, of bounded length, without a full stop."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= MAX_QUOTED_CHARACTERS else text[:MAX_QUOTED_CHARACTERS] + "…"
