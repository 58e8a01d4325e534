"""What lies around the code: links lead somewhere, and the files that other programs read are as those want them."""

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import mdpo

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for folder in (".", "bench", "docs", "kernels", "mdpo")
    for path in (ROOT.glob("*.md") if folder == "." else (ROOT / folder).rglob("*.md"))
)
LINK = re.compile(r"\]\(((?:[^()\s]|\([^()\s]*\))+)\)")  # its parentheses in pairs


def prose(page: Path) -> str:
    """Without blocks of code and code in a line, whose brackets are no links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / name)) if name else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_links_are_looked_at():
    links = {link for page in PAGES for link in LINK.findall(prose(page))}
    assert {"mdpo/README.md", "mdpo/README.md#models", "docs/packed_row.svg"} <= links


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "bench/README.md", "mdpo/README.md"])
def test_what_a_page_says_to_run_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    modules = re.findall(r"python -m (bench[\w.]*)", text)
    named = [f"{name.replace('.', '/')}{end}" for name in modules for end in (".py", "/__main__.py")]
    assert len([name for name in named if (ROOT / name).is_file()]) == len(modules)
    for name in re.findall(r"(?:bash|pytest) ([\w/]+(?:\.\w+)?)", text) + re.findall(r"\b(configs/[\w./-]+\w)", text):
        assert (ROOT / name).exists(), name


def test_the_packed_row_is_drawn_with_the_tables_numbers():
    from mdpo.objectives import rows

    (mdpo,) = [row for row in rows() if row.name == "mdpo"]
    text = " ".join(ElementTree.parse(ROOT / "docs" / "packed_row.svg").getroot().itertext())
    assert f"2P + 3R = {mdpo.packed:,} tokens" in text and f"3P + 3R = {mdpo.unshared:,} tokens" in text


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    licensed = re.search(r'^license = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert licensed is not None and (citation["version"], citation["license"]) == (mdpo.__version__, licensed[1])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["references"][0]["url"] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert any(step.get("run") == ".ci/run" for job in workflow["jobs"].values() for step in job["steps"])
    assert "make test" in (ROOT / ".ci" / "run").read_text() and "`make test`" in (ROOT / "README.md").read_text()
    lowest = re.search(r'^requires-python = ">=(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    pythons = [step["with"]["python-version"] for step in workflow["jobs"]["oldest"]["steps"] if "with" in step]
    assert lowest is not None and pythons == [lowest[1]]


def test_the_hooks_need_nothing_from_elsewhere():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    assert entries and all(entry.startswith(".venv/bin/ruff ") for entry in entries)
