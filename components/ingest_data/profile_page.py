"""The profile of a dataset as a page for people: one file, without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secvec.components.shared.pages import page_templates

_BARS = ("characters", "tokens", "turns", "languages", "patterns")


def render_profile(profile: Mapping[str, Any]) -> str:
    """Render a profile; all text from rows and names is escaped."""
    environment = page_templates("secvec.components.ingest_data")
    environment.filters["show"] = show_text
    return environment.get_template("profile.html.j2").render(profile=profile, bars=_BARS)


def show_text(text: str) -> str:
    """Write what a reader would not see, or that would turn the text around, as escapes."""
    return "".join(one if one.isprintable() or one == "\n" else f"\\u{ord(one):04x}" for one in str(text))
