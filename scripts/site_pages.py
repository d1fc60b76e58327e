"""Pages of the site that are made of what is there: README, rooms, notebooks, source files. A hook of mkdocs.

A link in Markdown is written as a code host reads it, from the file where it stands. Here it is led to the page of the site
that shows its target: a document, or, for a file of code that is linked somewhere, a page with its text. So no text is
written twice.
"""

from __future__ import annotations

import ast
import html
import io
import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"""(?:(?<=\]\()|(?<=\bsrc=")|(?<=\bhref=")|(?<=\bsrcset="))([^)\s#:"]+)(#[^)\s"]*)?(?=[)"])""")
"""Of Markdown, and of HTML in it."""
FENCE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
MATH = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
ROOMS = (
    ("confidence", "cost", "tube", "certify", "safety"),
    ("models", "systems", "policies", "sets", "rkhs", "saved"),
    ("algorithms", "planning", "baselines", "comparison", "calibration", "referee", "plotting", "testbed", "lab"),
)
HOMES = {"README.md": "index.md", "experiments/README.md": "experiments.md"}
"""Files outside docs/ that are pages of their own."""


# ------------------------------------------------------------------------------------------------------- links
def page_of(path: str) -> str:
    """The page (or file) of the site that shows a file of the repository; both relative, "/" between the parts."""
    if path in HOMES:
        return HOMES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith((".ipynb", ".png", ".gif")):
        return path
    return f"code/{path}.md"


def _prose(text: str) -> Iterator[tuple[bool, str]]:
    """Parts of a Markdown text in order, and whether each is prose (no code)."""
    for part in FENCE.split(text):
        yield not part.startswith("`"), part


def targets(text: str, source: str) -> set[str]:
    """Files of the repository that a Markdown file (`source`, relative to the root) links to."""
    found = (target for prose, part in _prose(text) if prose for target, _ in LINK.findall(part))
    return {posixpath.normpath(posixpath.join(posixpath.dirname(source), target)) for target in found}


def moved(text: str, source: str, page: str) -> str:
    """The text of `source` with its links as they must be on `page` of the site."""

    def led(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        if not (ROOT / path).exists():
            return found[0]  # for mkdocs to complain about
        return posixpath.relpath(page_of(path), posixpath.dirname(page) or ".") + (found[2] or "")

    return "".join(LINK.sub(led, part) if prose else part for prose, part in _prose(text))


# ------------------------------------------------------------------------------------------------------- pages
def home() -> str:
    """README.md, the first page."""
    return moved((ROOT / "README.md").read_text(), "README.md", "index.md")


def experiments() -> str:
    """experiments/README.md: what was found, with a link to each stored report."""
    return moved((ROOT / "experiments" / "README.md").read_text(), "experiments/README.md", "experiments.md")


def code(path: str) -> str:
    """A source file, line by line."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return moved(text, path, page_of(path))
    kind = {".py": "python", ".toml": "toml", ".json": "json"}.get(Path(path).suffix, "text")
    title = "# " + path.replace("_", r"\_")
    return f'{title}\n\n``````{kind} linenums="1"\n{text}``````\n'


def notebooks() -> str:
    """A list of the notebooks, each with the first words of its text. Nothing is run."""
    lines = ["# Notebooks", "", "Files for JupyterLab: `make lab` opens them. They were not run for this page.", ""]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        words = next(("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"), "")
        title, _, rest = words.partition("\n")
        first = moved(rest.strip().split("\n\n")[0].replace("\n", " "), f"notebooks/{path.name}", "notebooks.md")
        lines += [f"## {title.lstrip('# ')}", "", first, "", f"[{path.name}](notebooks/{path.name})", ""]
    return "\n".join(lines)


def names(room: str) -> list[str]:
    """What the face of a room shows, by where it is made, below gpsafe: "cost.robust_dp.RobustDP".

    The face's own path would not do: beside a function there may be a module of its name.
    """
    face = ROOT / "gpsafe" / room / "__init__.py"
    stub = face.with_suffix(".pyi")  # where names are loaded when they are first used
    body = ast.parse((stub if stub.is_file() else face).read_text()).body
    sources = {
        alias.name: f"{room}.{node.module}" if node.level else (node.module or "").removeprefix("gpsafe.")
        for node in body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lists = [n.value for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    shown = ast.literal_eval(lists[0]) if lists else list(sources)
    return [f"{sources.get(name, room)}.{name}" for name in sorted(shown, key=str.lower)]


def room(name: str) -> str:
    """The page of one room: what its face shows, from the docstrings."""
    return f"# {name}\n\n{_words(name)}\n\n" + "\n".join(f"::: gpsafe.{shown}\n" for shown in names(name))


def _words(name: str) -> str:
    """The docstring of a room."""
    text = (ROOT / "gpsafe" / name / "__init__.py").read_text()
    return text.split('"""')[1].strip()


def api() -> str:
    """The list of rooms, in the order of trust."""
    heads = ("What decides, and is believed", "What it speaks of", "What learns, proposes, compares, shows and runs")
    lines = ["# API", "", "`import gpsafe as gs` shows the names most used; each room has more.", ""]
    for head, rooms in zip(heads, ROOMS, strict=True):
        lines += [f"## {head}", "", "| room | what |", "|---|---|"]
        lines += [f"| [{name}]({name}.md) | {_words(name).split(chr(10) * 2)[0]} |" for name in rooms] + [""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """All pages that are made, by their place in the site."""
    made = {
        "index.md": home(),
        "experiments.md": experiments(),
        "notebooks.md": notebooks(),
    }
    made |= {"api/index.md": api()} | {f"api/{name}.md": room(name) for rooms in ROOMS for name in rooms}
    return made


def drawn(text: str) -> str:
    """Equations of a Markdown text as pictures, which site.css colours: the site asks no other host for what sets LaTeX."""
    return MATH.sub(lambda found: _picture(found[1]), text)


def _picture(formula: str) -> str:
    from matplotlib import rc_context
    from matplotlib.mathtext import math_to_image

    file = io.StringIO()
    with rc_context({"mathtext.fontset": "cm", "savefig.transparent": True}):
        math_to_image(f"${formula}$", file, format="svg")
    picture = file.getvalue()[file.getvalue().index("<svg") :]
    picture = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", picture, flags=re.DOTALL)
    return f'<div class="formula" title="{html.escape(formula)}">{" ".join(picture.split())}</div>'


# ---------------------------------------------------------------------------------------------- hooks of mkdocs
def on_config(config: Any) -> Any:
    """Paths of sources and snippets are relative to the root, wherever the build was started."""
    os.chdir(ROOT)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made, and the files of the repository that pages link to."""
    from mkdocs.structure.files import File

    made = pages()
    reached = {one for page, text in made.items() for one in targets(text, page)}
    for file in files.documentation_pages():
        reached |= {page_of(path) for path in targets(file.content_string, f"docs/{file.src_uri}")}
    for one in sorted(reached):
        source = ROOT / (one.removeprefix("code/").removesuffix(".md") if one.startswith("code/") else one)
        if not source.is_file() or one in made or files.get_file_from_path(one):
            continue
        if one.startswith("code/"):
            made[one] = code(source.relative_to(ROOT).as_posix())
        else:
            files.append(File.generated(config, one, content=source.read_bytes()))
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Leads the links of a document in docs/; those of made pages are led already."""
    written = page.file.generated_by is None
    return drawn(moved(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)) if written else markdown
