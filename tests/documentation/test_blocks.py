"""Every block of the documentation has one kind; its commands parse, and their configurations resolve."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mokd_det.__main__ import COMMANDS
from mokd_det.config import load_config
from tests.documentation import kinds
from tests.documentation.pages import PAGES, ROOT, Block, blocks, commands, spans
from tests.documentation.parsing import parsed, recipe, resolve, tool_of
from tests.documentation.place import catalogs_restored, make_own_data

ALL = [block for page in PAGES for block in blocks(page)]


def of_kind(*names: str) -> list[Block]:
    return [block for block in ALL if kinds.kind(block) in names]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the data that pages call the reader's own."""
    folder = tmp_path_factory.mktemp("place")
    make_own_data(folder)
    with catalogs_restored():
        yield folder


def test_every_block_has_exactly_one_kind() -> None:
    assert len(ALL) > 80
    for block in ALL:
        kinds.kind(block)


def test_no_block_is_indented_instead_of_fenced() -> None:
    """Indented blocks would be seen by no test."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        assert not re.findall(r"\n\n    \S.*", text), page


def test_tables_of_kinds_name_nothing_that_is_gone() -> None:
    first_lines = {block.first_line for block in ALL}
    assert set(kinds.EXCERPTS) | set(kinds.PRINTED_BY) | kinds.DRAWN <= first_lines
    assert {block.page for block in of_kind("arguments")} == set(kinds.ARGUMENTS_OF)
    lines = [" ".join(words) for block in of_kind("commands") for words in commands(block.text)]
    for pattern in kinds.NOT_RUN:
        assert any(re.search(pattern, line) for line in lines), pattern
    for page, test in kinds.RUN_BY.items():
        text = (ROOT / test).read_text()
        assert "python_blocks(" in text and page in text, test


@pytest.mark.parametrize("block", of_kind("code"), ids=str)
def test_python_compiles(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", of_kind("excerpt"), ids=str)
def test_an_excerpt_is_what_the_file_says(block: Block) -> None:
    file = (ROOT / kinds.EXCERPTS[block.first_line]).read_text()
    for line in block.text.splitlines():
        assert line in file


@pytest.mark.parametrize("block", of_kind("arguments"), ids=str)
def test_arguments_are_settings_of_their_configuration(block: Block) -> None:
    for setting in commands(block.text):
        load_config(ROOT / kinds.ARGUMENTS_OF[block.page], setting)


@pytest.mark.parametrize("block", of_kind("commands"), ids=str)
def test_commands_parse_and_their_configurations_resolve(
    block: Block, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for words in commands(block.text):
        for command in recipe(words) if words[0] == "make" else []:
            resolve(*parsed(command))
        resolve(*parsed(words))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md" and spans(page)])
def test_commands_within_sentences_parse(page: str) -> None:
    for words in spans(page):
        tool = None if "COMMAND" in words else tool_of(words)
        if "COMMAND" not in words and (tool is None or tool[1]):
            parsed(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_of_a_help_text_parse(name: str) -> None:
    source = (ROOT / "mokd_det" / "tools" / "parsers" / f"{COMMANDS[name]}.py").read_text()
    text = (ast.get_docstring(ast.parse(source)) or "").replace("\\\n", " ")
    lines = re.findall(r"^ *(python -m mokd_det \S.*)$", text, flags=re.MULTILINE)
    assert lines
    for line in lines:
        for words in commands(line):
            parsed(words)
