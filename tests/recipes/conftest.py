"""The tiny world, in which a run of the whole chain takes seconds."""

import pytest
from tiny_world import build_world


@pytest.fixture
def world(tmp_path, tiny_tokenizer):
    return build_world(tmp_path, tiny_tokenizer)
