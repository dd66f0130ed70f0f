"""What mkdocs does besides: the repository's files in the site, equations as MathML, plain defaults, and nothing fetched from elsewhere.

Pages link to each other and to the repository's files by relative paths, which work where the files lie and in the site alike.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "repository"  # where the site has them
SHOWN = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "assets/*/README.md", "assets/**/*.png", "configs/**/*.yaml")
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
MATH = re.compile(r"\$\$(.+?)\$\$|\$`(.+?)`\$", re.DOTALL)
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
FETCHED = re.compile(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//|<link[^>]+rel="(?:stylesheet|preload|preconnect)"[^>]+//')


def on_files(files, config):
    """Add the repository's files that pages link to."""
    for path in sorted(file for pattern in SHOWN for file in ROOT.glob(pattern)):
        files.append(File.generated(config, f"{REPOSITORY}/{path.relative_to(ROOT).as_posix()}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **_):
    """Turn links of the repository into links of the site, and equations into MathML; code stays as it is."""
    inside, outside = page.file.src_uri.removeprefix(f"{REPOSITORY}/"), f"docs/{page.file.src_uri}"
    here = posixpath.dirname(inside if page.file.src_uri.startswith(f"{REPOSITORY}/") else outside)
    parts = FENCED.split(markdown)
    parts[::2] = [MATH.sub(_mathml, LINK.sub(lambda link: _link(link, here, page), part)) for part in parts[::2]]
    return "".join(parts)


def _link(link, here, page):
    target = posixpath.normpath(posixpath.join(here, link[2]))
    within = target.removeprefix("docs/") if target.startswith("docs/") else f"{REPOSITORY}/{target}"
    if target.endswith("/") or Path(ROOT / target).is_dir():
        raise PluginError(f"{page.file.src_uri}: {link[2]} is a folder; link to a file")
    return link[1] + posixpath.relpath(within, posixpath.dirname(page.file.src_uri) or ".") + (link[3] or "") + link[4]


def _mathml(equation):
    block, line = equation.groups()
    mathml = convert((block or line).strip(), display="block" if block else "inline")
    return f'<div class="equation">{mathml}</div>' if block else f"<span>{mathml}</span>"  # a line that begins with <math> would be a block


def on_post_build(config):
    """Raise for a page that would fetch anything from elsewhere."""
    for page in Path(config.site_dir).rglob("*.html"):
        if fetched := FETCHED.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page}: fetches from elsewhere: {fetched[0]}")


class Keys(griffe.Extension):
    """Shows the default of a config's key, and not the call that declares it."""

    def on_attribute(self, *, attr, **_):
        """Put the first argument of `key(...)` in the place of the call."""
        if isinstance(attr.value, griffe.ExprCall) and str(attr.value.function) == "key" and attr.value.arguments:
            attr.value = attr.value.arguments[0]
