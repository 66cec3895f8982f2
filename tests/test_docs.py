"""The documentation: links lead somewhere, commands are taken, code parses, README is read in three minutes."""

import ast
import json
import re
import shlex

import pytest
import yaml
from conftest import ROOT

import rst_hub
from rst_hub import cli
from rst_hub.errors import RstHubError
from rst_hub.runs import settings as kinds
from rst_hub.runs.parsing import parse

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = {
    "search": kinds.SearchSettings,
    "train": kinds.TrainSettings,
    "benchmark": kinds.BenchmarkSettings,
    "transfer": kinds.TransferSettings,
    "publish": kinds.PublishSettings,
}


def blocks(text):
    """Return (language, lines) of every block of code in a page, and at last ("prose", the lines outside of them)."""
    found, prose, inside = [], [], None
    for line in text.splitlines():
        if line.startswith("```"):
            inside = [] if inside is None else None
            found += [] if inside is None else [(line[3:], inside)]
        else:
            (prose if inside is None else inside).append(line)
    assert inside is None
    return [*found, ("prose", prose)]


def prose(text):
    """Return a page without its blocks of code, where brackets are no links."""
    return "\n".join(blocks(text)[-1][1])


def anchors(text):
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page):
    """Return the relative links of a page."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8")))
    return [link for link in found if "://" not in link]


def is_broken(page, link):
    path, _, anchor = link.partition("#")
    there = (page.parent / path).resolve() if path else page
    if not there.exists() or not there.is_relative_to(ROOT):
        return True
    return bool(anchor) and anchor not in anchors(there.read_text(encoding="utf-8"))


def commands(text):
    """Return the words of every command of ours in a page, without the remark behind it; NAME stands for any name."""
    shells = ["\n".join(lines).replace("\\\n", " ") for kind, lines in blocks(text) if kind == ""]
    lines = [line.strip().removeprefix("$ ") for shell in shells for line in shell.splitlines()]
    spans = re.findall(r"`((?:python|accelerate launch) [^`]*(?:\.py|rst_hub\.runs)[^`]*)`", prose(text))
    lines += [" ".join(span.split()) for span in spans]
    ours = [
        re.split(r"\s{3,}\w|\s#", line)[0] for line in lines if re.match(r"(python|accelerate launch|rst-hub) ", line)
    ]
    return [shlex.split(line) for line in ours if "-m pytest" not in line and "NAME" not in line]


def recipe_of(words):
    """Return the recipe that a command runs, and its arguments; or None."""
    for number, word in enumerate(words):
        name = re.fullmatch(r"recipes/(\w+)\.py|rst_hub\.runs\.(\w+)", word)
        if name:
            return name[1] or name[2], words[number + 1 :]
    return None


def check(words):
    """Raise unless the real parsers take a command's options."""
    if words[0] == "rst-hub":
        cli._parser().parse_args(words[1:])
    elif (found := recipe_of(words)) and found[1] != ["--help"]:
        parse(SETTINGS[found[0]], found[1], "")
    elif not found:
        script = next(word for word in words if word.endswith(".py"))
        assert (ROOT / script).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    assert [link for link in links(page) if is_broken(page, link)] == []


def test_there_are_links_and_pages():
    assert len(PAGES) >= 16
    assert sum(len(links(page)) for page in PAGES) >= 50


def test_a_broken_link_is_seen():
    assert is_broken(ROOT / "README.md", "docs/no_such_page.md")
    assert is_broken(ROOT / "README.md", "docs/design.md#no-such-heading")
    assert not is_broken(ROOT / "README.md", "docs/design.md#every-file")


def test_every_page_is_in_the_readmes_index():
    named = {(ROOT / link).resolve() for link in links(ROOT / "README.md")}
    assert [str(page) for page in PAGES[1:] if page not in named] == []


def test_the_readme_is_read_in_minutes():
    assert 150 <= README.count("\n") <= 200
    assert len(README.split()) <= 1600


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_has_options_that_exist(page):
    for words in commands(page.read_text(encoding="utf-8")):
        try:
            check(words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{' '.join(words)}: {error}")


def test_there_are_commands():
    assert len(commands(README)) >= 8
    assert sum(len(commands(page.read_text(encoding="utf-8"))) for page in PAGES) >= 25


@pytest.mark.parametrize(
    "words",
    [
        ["python", "recipes/search.py", "--no-such-option", "1"],
        ["accelerate", "launch", "recipes/benchmark.py", "--tickets", "x"],
        ["rst-hub", "info", "x", "--to", "onnx"],
        ["python", "benchmarks/no_such.py"],
    ],
)
def test_a_wrong_command_is_seen(words):
    with pytest.raises((RstHubError, SystemExit, AssertionError)):
        check(words)


def test_python_parses_and_names_what_rst_hub_has():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    code = ["\n".join(lines) for kind, lines in blocks(text) if kind == "python"]
    names = set()
    for block in code:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rst_hub":
                names.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and node.module == "rst_hub":
                names.update(alias.name for alias in node.names)
    assert sorted(name for name in names if not hasattr(rst_hub, name)) == []
    assert len(code) >= 6
    assert len(names) >= 8


def test_the_citation_has_the_version_and_the_papers_authors():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = json.loads((ROOT / "rst_hub" / "cards" / "paper.json").read_text(encoding="utf-8"))
    [reference] = cited["references"]
    assert cited["version"] == rst_hub.__version__
    assert [f"{one['given-names']} {one['family-names']}" for one in reference["authors"]] == paper["authors"]
    assert reference["title"] == paper["title"]
    assert paper["arxiv"] in reference["url"]


def test_type_checkers_are_told_that_the_package_is_typed():
    assert (ROOT / "rst_hub" / "py.typed").is_file()
    assert 'rst_hub = ["py.typed"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
