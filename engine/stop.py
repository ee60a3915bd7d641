"""Stop strings in streamed text: the text before one is shown, the string itself and all after it are not."""

from __future__ import annotations

from collections.abc import Sequence

from russet.engine.errors import InvalidOptionError


class StopMatcher:
    """Holds back what might become a stop string, and only that.

    The stop string that is complete first wins, the longest of those that end together; so the result does not depend
    on how the text was cut into pieces. One Knuth-Morris-Pratt automaton a stop string: constant work a character.
    Raises InvalidOptionError for an empty stop string, or for one string in place of a sequence of them.
    """

    def __init__(self, stops: Sequence[str]):
        if isinstance(stops, str):
            raise InvalidOptionError(f"stop is the string {stops!r}; give a list of strings, such as [{stops!r}].")
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise InvalidOptionError(f"A stop string is {stop!r}; it has to be a text of at least one character.")
        self._automata = [_Automaton(stop) for stop in dict.fromkeys(stops)]
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that is safe to show now; nothing once `stopped`."""
        if self.stopped:
            return ""
        if not self._automata:
            return text
        text = self._held + text
        for position in range(len(self._held), len(text)):
            matched = max(automaton.step(text[position]) for automaton in self._automata)
            if matched:
                self.stopped = True
                self._held = ""
                return text[: position + 1 - matched]
        held = max(automaton.state for automaton in self._automata)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        rest, self._held = self._held, ""
        return rest


class _Automaton:
    """How many characters of `stop` the text so far ends with."""

    def __init__(self, stop: str):
        self._stop = stop
        self._failure = [0] * len(stop)
        self.state = 0
        for position in range(1, len(stop)):
            self.step(stop[position])
            self._failure[position] = self.state
        self.state = 0

    def step(self, character: str) -> int:
        """Advance by one character; the stop string's length if it is complete now, else 0."""
        while self.state and self._stop[self.state] != character:
            self.state = self._failure[self.state - 1]
        if self._stop[self.state] == character:
            self.state += 1
        return len(self._stop) if self.state == len(self._stop) else 0
