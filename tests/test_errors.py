from __future__ import annotations

from fedcli.errors import MAX_MESSAGE, DataError, shortened


def test_a_message_keeps_its_beginning_and_its_end() -> None:
    text = f"data.h5: client {'x' * 1_000_000!r}: is damaged; fetch it again"
    said = str(DataError(text))
    assert len(said) <= MAX_MESSAGE
    assert said.startswith("data.h5: client 'xxx")
    assert said.endswith("xxx': is damaged; fetch it again")
    assert f"{len(text):,} characters" in said


def test_a_message_that_is_short_stays() -> None:
    assert str(DataError("x" * MAX_MESSAGE)) == "x" * MAX_MESSAGE
    assert shortened("abc") == "abc"
