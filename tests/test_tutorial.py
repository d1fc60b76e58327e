"""The tutorial runs as it stands, block after block, and what its text says of the output is true."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


@pytest.fixture(scope="module")
def names():
    found: dict = {}
    return found


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (0, r"HOLDS INCONCLUSIVE"),
        (1, r"HOLDS VIOLATED"),
        (2, r"\{'honest': 0, 'wrong': (?:2[6-9]|[34]\d|50)\}"),  # "the other one most", of fifty
        (3, r"\[5, .*\]\n.*rkhs_norm"),
    ],
)
def test_a_block_prints_what_the_text_says(names, block, says, capsys):
    exec(compile(BLOCKS[block], f"tutorial, block {block}", "exec"), names)
    assert re.search(says, capsys.readouterr().out)
    if block == 3:
        sizes = [len(safe) for safe in names["run"].safe_sets]
        assert sizes == sorted(sizes) and sizes[-1] > sizes[0] == 5


def test_every_block_is_tried():
    assert len(BLOCKS) == 4
