"""The site: its pages exist, links lead somewhere; the strict build."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from test_citations import unknown

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "site_pages.py")
assert spec is not None and spec.loader is not None
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)
DOCS = [p for p in sorted((ROOT / "docs").rglob("*.md")) if p.name == "index.md" or p.parent == ROOT / "docs"]


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without making Python objects of it."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)


def navigated(part) -> list[str]:
    if isinstance(part, str):
        return [part]
    values = part.values() if isinstance(part, dict) else part
    return [page for value in values for page in navigated(value)]


def made() -> set[str]:
    """Pages that the hook makes, by name: without making them."""
    rooms = {f"api/{name}.md" for rooms in site.ROOMS for name in rooms}
    return {"index.md", "experiments.md", "notebooks.md", "api/index.md", *rooms}


def test_the_navigation_names_pages_that_exist_and_leaves_out_none():
    pages = navigated(CONFIG["nav"])
    assert len(pages) == len(set(pages))
    assert {page for page in pages if not (ROOT / "docs" / page).is_file()} == made()
    assert {p.name for p in (ROOT / "docs").glob("*.md")} <= set(pages)


def test_every_public_room_has_a_page_and_every_name_of_its_face_is_on_it():
    rooms = {name for rooms in site.ROOMS for name in rooms}
    assert rooms == {p.parent.name for p in (ROOT / "gpsafe").glob("*/__init__.py")} - {"cli"}
    for name in rooms:
        room = importlib.import_module(f"gpsafe.{name}")
        assert {shown.split(".")[-1] for shown in site.names(name)} == set(room.__all__), name
        for shown in site.names(name):
            assert site.room(name).count(f"::: gpsafe.{shown}\n") == 1


def test_the_site_asks_no_other_host():
    assert CONFIG["theme"]["font"] is False
    assert "://" not in re.sub(r"^\s*#.*$", "", (ROOT / "mkdocs.yml").read_text(), flags=re.M)
    assert not {"extra_javascript", "repo_url", "site_url"} & set(CONFIG)


# ------------------------------------------------------------------------------------------------------- links
def dead(path: Path, text: str) -> list[str]:
    """Relative links of a Markdown text to what is neither a file nor a page that is made."""
    source, pages = path.relative_to(ROOT).as_posix(), {f"docs/{page}" for page in made()}
    return sorted(target for target in site.targets(text, source) - pages if not (ROOT / target).exists())


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_of_the_documents_lead_somewhere(path):
    assert dead(path, path.read_text()) == []


def test_every_stored_report_is_linked_from_the_page_of_experiments():
    linked = site.targets((ROOT / "experiments" / "README.md").read_text(), "experiments/README.md")
    assert {
        f"docs/experiments/{p.parent.name}/index.md" for p in (ROOT / "docs/experiments").glob("*/index.md")
    } <= linked


def test_control_a_dead_link_is_seen():
    assert dead(ROOT / "docs" / "theory.md", "[a](nothing.md#b) [c](xmpsc.md) `[d](code.md)` [e](../LICENSE)") == [
        "docs/nothing.md"
    ]


@pytest.mark.parametrize("name", ["extending", "notation", "published", "tutorial"])
def test_everything_that_a_page_names_exists(name):
    words = re.sub(r"^```.*?^```", "", (ROOT / "docs" / f"{name}.md").read_text(), flags=re.M | re.S)
    experiments = {p.stem.replace("_", "-") for p in (ROOT / "experiments").glob("*.py")}
    assert set(unknown(words)) <= experiments


def test_links_are_led_to_the_pages_that_show_their_targets():
    text = "[t](docs/theory.md#24-x) [e](experiments/README.md) [c](proofs_checks/widths.py) `[q](docs/x.md)` [w](https://a.b)"
    assert site.moved(text, "README.md", "index.md") == (
        "[t](theory.md#24-x) [e](experiments.md) [c](code/proofs_checks/widths.py.md) `[q](docs/x.md)` [w](https://a.b)"
    )
    assert site.moved('<img src="docs/figures/actsafe.png" alt="x">', "README.md", "index.md") == (
        '<img src="figures/actsafe.png" alt="x">'
    )
    assert site.moved("[a](../README.md)", "experiments/README.md", "experiments.md") == "[a](index.md)"


def test_equations_become_pictures_that_the_style_colours():
    page = site.drawn("a\n\n```math\n\\sigma_n \\leq \\frac{1}{2}\n```\n\nb")
    assert page.startswith('a\n\n<div class="formula" title="\\sigma_n ') and page.endswith("</svg></div>\n\nb")
    assert "#" not in page.replace('href="#', "") and "```" not in page  # no colour of its own
    assert "\n" not in page[3:-3] and ".formula svg { fill: currentColor" in (ROOT / "docs" / "site.css").read_text()


# --------------------------------------------------------------------------------------------------- the build
class Page(HTMLParser):
    """Links, sources and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        names = {key: value for key, value in attrs if value}
        self.anchors |= {names[key] for key in ("id", "name") if key in names}
        if tag == "a" and "href" in names:
            self.links.append(names["href"])
        else:
            self.loads += [names[key] for key in ("src", "href", "srcset") if key in names]


def broken(home: Path) -> list[str]:
    """Links of a built site to files or anchors that are not there, and what is loaded from other hosts."""
    pages = {path: Page(path.read_text()) for path in home.rglob("*.html")}
    wrong = []
    for path, page in pages.items():
        place = path.relative_to(home)
        wrong += [f"{place} loads {one}" for one in page.loads if "://" in one or one.startswith("//")]
        for target in (*page.links, *page.loads):
            if "://" in target or target.startswith(("//", "data:", "mailto:")) or path.name == "404.html":
                continue  # 404.html is served from any depth: its links are absolute
            name, _, anchor = target.partition("#")
            file = (path.parent / unquote(name)).resolve() if name else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (anchor and file in pages and unquote(anchor) not in pages[file].anchors):
                wrong.append(f"{place}: {target}")
    return wrong


def test_control_a_broken_site_is_seen(tmp_path):
    text = '<a href="b.html#x"></a><a href="b.html#y"></a><a href="c.html"></a><img src="d.png"><script src="https://e.f/g.js">'
    (tmp_path / "a.html").write_text(text)
    (tmp_path / "b.html").write_text('<h1 id="x"></h1><a href="https://e.f"></a>')
    assert broken(tmp_path) == ["a.html loads https://e.f/g.js", "a.html: b.html#y", "a.html: c.html", "a.html: d.png"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="needs the extra 'docs'")
def test_the_strict_build_and_every_link_of_every_page(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # a warning fails it, too
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(list(tmp_path.rglob("*.html"))) > 80
    assert broken(tmp_path) == []
