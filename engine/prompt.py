"""A prompt in parts: instructions, documents that need not see each other, a question, and what follows it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from russet.engine.errors import EmptyPromptError, InvalidOptionError

SEPARATOR = "\n\n"
"""Between two parts: a blank line."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One user turn in parts, for retrieval: `Superposition` reads the documents side by side.

    Every other strategy sees the parts one after the other. Empty parts are left out, blank lines are put between the
    others. Raises EmptyPromptError without a query, and InvalidOptionError where a part is no text.
    """

    preamble: str = ""
    documents: tuple[str, ...] = ()
    query: str = ""
    task: str = ""

    def __post_init__(self) -> None:
        # A single text is a sequence of texts too: each character would be a document.
        if isinstance(self.documents, str) or not isinstance(self.documents, Iterable):
            kind = type(self.documents).__name__
            raise InvalidOptionError(f"The prompt's documents are a {kind}; give a list of texts, one a document.")
        object.__setattr__(self, "documents", tuple(self.documents))
        named = {"preamble": self.preamble, "query": self.query, "task": self.task}
        named |= {f"document {i + 1}": text for i, text in enumerate(self.documents)}
        for name, text in named.items():
            if not isinstance(text, str):
                raise InvalidOptionError(f"The prompt's {name} is of type {type(text).__name__}; give it as text.")
        if not self.query.strip():
            raise EmptyPromptError("The prompt has no query; say what is asked of the documents.")

    def texts(self, opening: str = "", closing: str = "") -> tuple[str, tuple[str, ...], str, str]:
        """Preamble, documents, query and task, whose concatenation is the text that the model reads.

        `opening` and `closing` are the chat template's text before and after the turn.
        """
        preamble, query, task = self.preamble.strip(), self.query.strip(), self.task.strip()
        documents = tuple(document.strip() + SEPARATOR for document in self.documents if document.strip())
        return (
            opening + (preamble + SEPARATOR if preamble else ""),
            documents,
            query,
            (SEPARATOR + task if task else "") + closing,
        )
