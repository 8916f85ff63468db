"""The user's wish to end a run, kept where the exception that carries it is lost."""

from __future__ import annotations

_asked = False


def interrupt(*_: object) -> None:
    """Handle a signal: end in order, as on Ctrl-C."""
    global _asked  # noqa: PLW0603 - locks may not be taken where a signal is handled
    _asked = True
    raise KeyboardInterrupt


def check_interrupted() -> None:
    """Raise what was raised before in vain.

    Python prints an exception out of a destructor, a weak reference's callback or a fork's hook, and goes on.

    Raises:
        KeyboardInterrupt: A signal has asked for the end.
    """
    if _asked:
        raise KeyboardInterrupt
