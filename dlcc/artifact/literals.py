"""Text in the generated C."""

from __future__ import annotations


def c_string(text: str) -> str:
    """``text`` as a C string literal of its UTF-8 bytes; everything unusual as octal escapes."""
    body = "".join(
        chr(b) if 0x20 <= b < 0x7F and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode()
    )
    return f'"{body}"'


def c_comment(text: str) -> str:
    """``text`` for the inside of a C comment: ASCII, and no end of a comment in it."""
    return text.encode("unicode_escape").decode("ascii").replace("*/", "*\\/").replace("/*", "/\\*")
