"""A strict reading of a page: well-formed, and nothing in it leads outside."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

# fmt: off
HTML = frozenset((
    "a", "body", "code", "details", "div", "figcaption", "figure", "footer", "h1", "h2", "h3", "h4", "head", "header",
    "html", "i", "img", "li", "main", "meta", "nav", "p", "pre", "section", "span", "style", "summary", "table",
    "tbody", "td", "th", "thead", "title", "tr", "ul",
))
# fmt: on
SVG = frozenset(["circle", "image", "line", "path", "polygon", "rect", "svg", "text", "title"])


def parse(page: str) -> ElementTree.Element:
    """The page's root; every element must be known and closed, every reference be to the page itself."""
    assert page.startswith("<!DOCTYPE html>\n")
    root = ElementTree.fromstring(page)
    ids = [node.get("id") for node in root.iter() if node.get("id") is not None]
    assert len(set(ids)) == len(ids)
    for node in root.iter():
        assert node.tag in HTML | SVG, node.tag
        for name, value in node.attrib.items():
            assert not name.startswith("on"), name
            if name in ("href", "src"):
                assert re.match(r"#[\w-]+$|data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$", value), value[:80]
                assert not value.startswith("#") or value[1:] in ids
            if name == "style":
                drawn = (
                    r"([a-z-]+: [\w#.,() -]+(; |$))+" if node.tag in SVG else r"width:[\d.]+%|--columns: \d+"
                )
                assert re.fullmatch(drawn, value) and "url" not in value, value
        if node.tag == "img":
            assert node.get("alt")
    styles = [node.text or "" for node in root.iter("style")]
    assert len(styles) == 1 and "url(" not in styles[0] and "@import" not in styles[0]
    policy = [node.get("content") for node in root.iter("meta") if node.get("http-equiv") is not None]
    assert len(policy) == 1 and policy[0] is not None and policy[0].startswith("default-src 'none'")
    # Texts of configurations may hold addresses, but nothing that a browser follows does.
    assert "http:" not in page and "https:" not in page
    return root


def words(node: ElementTree.Element) -> str:
    """The text of an element, in one line."""
    return " ".join(" ".join(node.itertext()).split())


def section(root: ElementTree.Element, id_: str) -> ElementTree.Element:
    """A part of the page."""
    (found,) = [node for node in root.iter("section") if node.get("id") == id_]
    return found
