"""Every Python sample of the README and of docs/ runs: those of one page in their order, as one program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = [page for page in DOCUMENTS if SAMPLE.search(page.read_text())]
PATIENCE_S = 50


def program_of(page: Path) -> str:
    """The samples of a page, each at the line where the page has it, so that a traceback names that line."""
    text = page.read_text()
    lines = [""] * (text.count("\n") + 1)
    for sample in SAMPLE.finditer(text):
        first = text.count("\n", 0, sample.start(1))
        for offset, line in enumerate(sample[1].splitlines()):
            lines[first + offset] = line
    return "\n".join(lines)


def test_the_pages_that_teach_have_samples() -> None:
    assert {"README.md", "tutorial.md", "patterns.md"} <= {page.name for page in PAGES}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_samples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    program = tmp_path / f"{page.stem}.py"
    program.write_text(program_of(page))
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path.parent)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "abandoned" not in done.stderr
