"""docs/tour.ipynb runs from the first cell to the last, and holds no outputs."""

import json
import os

import pytest

from tests.helpers import ROOT

NOTEBOOK = ROOT / "docs" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(NOTEBOOK.parent)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(cells) <= 15
    assert not any(cell["outputs"] for cell in code)
    namespace: dict = {}
    for cell in [*code, *code[:4]]:  # and again up to the training, which is done by then
        source = "".join(cell["source"])
        source = source.replace('"out/tour"', repr(os.fspath(tmp_path)))
        source = source.replace("eval_tokens=50000", "eval_tokens=5000")
        exec(source.replace("max_steps = 200", "max_steps = 12"), namespace)
    printed = capsys.readouterr().out
    assert "CKA" in printed
    assert "holds this run already" in printed
    assert "--- spelling" in printed
    assert (tmp_path / "learned" / "best.pt").is_file()
