"""The page of all preset keys equals the page that the sections generate."""

import dataclasses

import pytest

from sft.config import sections
from sft.config.keys import field_docs, render_page
from sft.config.preset import CHECKOUT
from sft.config.sections import Preset

SECTIONS = [c for c in vars(sections).values() if dataclasses.is_dataclass(c) and c is not Preset]


def test_the_page_equals_the_sections():
    page = CHECKOUT / "recipes" / "keys.md"
    assert page.read_text(encoding="utf-8") == render_page()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_has_a_docstring(section):
    nested = {f.name for f in dataclasses.fields(section) if dataclasses.is_dataclass(f.type)}
    keys = {f.name for f in dataclasses.fields(section)} - nested - {"trl"}
    assert keys <= set(field_docs(section))
