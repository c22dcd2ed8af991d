"""HTML that cannot break: elements are always closed, texts always escaped.

What :func:`element` writes is XML as well as HTML, so a strict parser can check a whole page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

__all__ = ["Content", "Markup", "element", "join", "text"]

_VOID = frozenset({"br", "hr", "img", "link", "meta"})

# Characters that neither HTML nor XML can hold; they occur in file names, as do lone surrogates.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = Markup | str | int | float | None | Iterable["Content"]
"""What an element may hold: HTML, plain text or numbers (both are escaped), nothing, or a sequence of these."""


def text(value: object) -> Markup:
    """Plain text as HTML: every character stands for itself."""
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", str(value)), quote=True))


def join(*content: Content) -> Markup:
    """One piece of HTML from several."""
    parts = []
    for item in content:
        if isinstance(item, Markup):
            parts.append(item)
        elif item is None:
            continue
        elif isinstance(item, (str, int, float)):
            parts.append(text(item))
        else:
            parts.append(join(*item))
    return Markup("".join(parts))


def element(tag: str, /, *content: Content, **attributes: object) -> Markup:
    """An HTML or SVG element.

    Args:
        tag: its name.
        content: what is in it.
        attributes: ``class_`` is the attribute "class", ``stroke_width`` is "stroke-width"; numbers are rounded
            to two digits after the point, which is a hundredth of a pixel; None: the attribute is left out.
    """
    written = []
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, float):
            value = f"{value:.2f}".rstrip("0").rstrip(".")
        key = key.rstrip("_").replace("_", "-")
        written.append(f' {key}="{text(value)}"')
    inner = join(*content)
    if tag in _VOID and not inner:
        return Markup(f"<{tag}{''.join(written)} />")
    return Markup(f"<{tag}{''.join(written)}>{inner}</{tag}>")
