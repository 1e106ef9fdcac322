"""Pages whose sections are rewritten by commands, each without touching the others."""

from __future__ import annotations

import os
import re
from pathlib import Path


def replace_section(page: Path, name: str, text: str, introduction: str = "") -> None:
    """Put ``text`` in the place of the section ``name``, or at the end of the page.

    A new page starts with ``introduction``. A section stands between
    the comments ``<!-- name -->`` and ``<!-- end of name -->``.
    """
    whole = page.read_text(encoding="utf-8") if page.exists() else introduction.strip() + "\n"
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    block = f"{start}\n{text.strip()}\n{end}"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(whole):
        whole = pattern.sub(lambda _: block, whole)
    else:
        whole = f"{whole.rstrip()}\n\n{block}\n"
    fresh = page.with_suffix(".tmp")
    fresh.write_text(whole, encoding="utf-8")
    os.replace(fresh, page)
