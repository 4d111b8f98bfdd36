"""Reads JSON piece by piece, for files whose parsed content does not fit into memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

_BLOCK_CHARACTERS = 1 << 18
_MAX_LIST_CHARACTERS = 32 << 20  # longest text of one list of numbers
_MAX_STRING_CHARACTERS = 1 << 16
_MAX_DEPTH = 64  # levels of nesting in a skipped value

_NO_SPACE = re.compile(r"[^ \t\r\n]")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_NUMBERS = re.compile(r"[^0-9eE+\-., \t\r\n]")
_NO_PLAIN = re.compile(r"[^0-9a-zA-Z+\-., \t\r\n]")
_PLAIN_END = re.compile(r"[,\]}]")
_PLAIN_END_WITHIN = re.compile(r'["\[\]{}]')


class JsonStream:
    """A JSON text that is read once, from front to back. Every fault raises a ValueError.

    `keys` and `items` iterate over an object or a list. The value after each key, and each item,
    must be read or skipped before the next step of the iteration.
    """

    def __init__(self, file: TextIO, check_stop: Callable[[], None] = lambda: None) -> None:
        """Takes an open file, positioned at the start of the JSON text.

        Args:
            file: The text.
            check_stop: Called before each block is read, also while values are skipped; may raise.
        """
        self._file = file
        self._check_stop = check_stop
        self._text = ""
        self._place = 0  # index in _text of the next character
        self._dropped = 0  # characters before _text

    @property
    def num_read(self) -> int:
        """Characters read so far."""
        return self._dropped + self._place

    def keys(self) -> Iterator[str]:
        """Yields the keys of the object that comes next, each once.

        Raises:
            ValueError: No object comes next, or a key occurs twice.
        """
        seen = set()
        for _ in self._members("{", "}"):
            key = self.string()
            if key in seen:
                raise ValueError(f"{key[:40]!r} occurs twice")
            seen.add(key)
            self._take(":")
            yield key

    def items(self) -> Iterator[None]:
        """Yields None before each item of the list that comes next, for the caller to read it."""
        yield from self._members("[", "]")

    def string(self) -> str:
        """Returns the string that comes next."""
        if self.peek() != '"':
            self._fail("a string")
        while (match := _STRING.match(self._text, self._place)) is None:
            if len(self._text) - self._place > _MAX_STRING_CHARACTERS or not self._grow():
                raise ValueError(
                    f"a string does not end within {_MAX_STRING_CHARACTERS} characters"
                )
        self._place = match.end()
        text: str = json.loads(match.group())
        return text

    def numbers(self) -> list[Any]:
        """Returns the numbers of the flat list that comes next."""
        self._take("[")
        return self._rest_of_list(_NO_NUMBERS)

    def plain(self) -> list[Any]:
        """Returns the list that comes next.

        Its items are numbers (NaN is allowed), true, false or null.
        """
        self._take("[")
        return self._rest_of_list(_NO_PLAIN)

    def values(self) -> list[Any]:
        """Returns the list that comes next.

        Its items are plain values, texts, or lists as `plain` reads them.
        """
        inside = self.peek_inside()
        if inside == "[":
            return self.nested_numbers(2, _NO_PLAIN)
        if inside != '"':
            end = self._find("]")
            if '"' not in self._text[self._place : end]:
                return self.plain()
        return [self._text_or_number() for _ in self.items()]

    def _text_or_number(self) -> Any:
        if self.peek() == '"':
            return self.string()
        start = self._place
        while (match := _PLAIN_END.search(self._text, self._place)) is None:
            if not self._grow():
                raise ValueError("ends too early")
            start = self._place
        token = self._text[start : match.start()]
        if _NO_PLAIN.search(token) or not token.strip():
            self._fail("a text or a number")
        self._place = match.start()
        return json.loads(token)

    def peek_inside(self) -> str:
        """Returns the first character of the next list, without moving past the list's start."""
        if self.peek() != "[":
            self._fail("'['")
        while (match := _NO_SPACE.search(self._text, self._place + 1)) is None:
            if not self._grow():
                raise ValueError("ends too early")
        return match.group()

    def nested_numbers(self, depth: int = 3, no_part: re.Pattern[str] = _NO_NUMBERS) -> list[Any]:
        """Returns the list of numbers that comes next, or lists of such lists.

        Args:
            depth: How deep lists may be nested.
            no_part: Matches characters that are not allowed in a list.
        """
        self._take("[")
        if self.peek() != "[" or depth == 1:
            return self._rest_of_list(no_part)
        rows = []
        while True:
            rows.append(self.nested_numbers(depth - 1, no_part))
            character = self.peek()
            if character not in ",]":
                self._fail("',' or ']'")
            self._place += 1
            if character == "]":
                return rows

    def _rest_of_list(self, no_part: re.Pattern[str]) -> list[Any]:
        """Reads the rest of a list; `no_part` matches characters that are not allowed in it."""
        end = self._find("]")
        text = self._text[self._place : end]
        wrong = no_part.search(text)
        if wrong is not None:
            found = text[wrong.start() :][:20]
            if found.startswith(("NaN", "I")):
                raise ValueError("a number is NaN or infinite")
            raise ValueError(f"a list of numbers contains {found!r}")
        numbers: list[Any] = json.loads(f"[{text}]")
        self._place = end + 1
        return numbers

    def skip(self) -> None:
        """Skips the next value without keeping it.

        It is checked only as far as is needed to find its end.
        """
        depth = 0
        while True:
            character = self.peek()
            if character in "{[":
                depth += 1
                self._place += 1
            elif character in "}]":
                if not depth:
                    self._fail("a value")
                depth -= 1
                self._place += 1
            elif character == '"':
                self.string()
            else:
                self._skip_plain(_PLAIN_END_WITHIN if depth else _PLAIN_END)
            if depth > _MAX_DEPTH:
                raise ValueError(f"lists or objects are nested more than {_MAX_DEPTH} levels deep")
            if not depth:
                return
            if self.peek() in ",:":
                self._place += 1

    def end(self) -> None:
        """Checks that nothing follows. Raises ValueError."""
        if self._next() is not None:
            self._fail("the end of the file")

    def peek(self) -> str:
        """Returns the next character that is not a space, without moving past it."""
        character = self._next()
        if character is None:
            raise ValueError("ends too early")
        return character

    def _members(self, start: str, end: str) -> Iterator[None]:
        self._take(start)
        if self.peek() == end:
            self._place += 1
            return
        while True:
            yield
            character = self.peek()
            if character not in (",", end):
                self._fail(f"',' or '{end}'")
            self._place += 1
            if character == end:
                return

    def _take(self, character: str) -> None:
        if self.peek() != character:
            self._fail(repr(character))
        self._place += 1

    def _skip_plain(self, end: re.Pattern[str]) -> None:
        """Moves past numbers and words, up to a character of `end`."""
        first = self.num_read
        while (match := end.search(self._text, self._place)) is None:
            self._place = len(self._text)
            if not self._grow():
                return
        self._place = match.start()
        if self.num_read == first:
            self._fail("a value")

    def _find(self, character: str) -> int:
        """Returns the next index of the character in the text; reads more text as needed."""
        start = self._place
        while (place := self._text.find(character, start)) < 0:
            start = len(self._text) - self._place
            if start > _MAX_LIST_CHARACTERS:
                raise ValueError(f"a list has more than {_MAX_LIST_CHARACTERS} characters")
            if not self._grow():
                raise ValueError("ends too early")
        return place

    def _next(self) -> str | None:
        while (match := _NO_SPACE.search(self._text, self._place)) is None:
            self._place = len(self._text)
            if not self._grow():
                return None
        self._place = match.start()
        return match.group()

    def _grow(self) -> bool:
        """Reads another block and drops the text before the place; False at the end of the file."""
        self._check_stop()
        block = self._file.read(_BLOCK_CHARACTERS)
        self._dropped += self._place
        self._text = self._text[self._place :] + block
        self._place = 0
        return bool(block)

    def _fail(self, wanted: str) -> NoReturn:
        found = self._text[self._place :][:1]
        raise ValueError(f"character {self.num_read}: found {found!r} where {wanted} is expected")
