"""Help, refusals and the shards of rooms are what `texts.json` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.__main__ import TEXTS, Checkout, differences


@pytest.mark.slow
@pytest.mark.timeout(900)  # some 80 commands, each a process
def test_texts_are_those_that_were_agreed_on(tmp_path: Path) -> None:
    texts = Checkout(Path(__file__).parents[2], tmp_path / "work").texts()
    found = differences(json.loads(TEXTS.read_text()), texts)
    assert not found, "\n".join([*found, "where that is meant: python -m tests.golden . --write"])
