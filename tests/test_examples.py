"""Every example runs to its end, in a process of its own, with little to do."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"

# Arguments, and what it must have said or written.
RUNS = {
    "edit_photo.py": (["--seconds", "1"], "runs/example-edit/edited.png"),
    "stylegan2_layer.py": ([], "doubled: [4, 32, 64, 64]"),
    "train_folder.py": (["--kimg", "0.016"], "{'kimg': 0.016, "),
    "own_loss.py": (["--steps", "2"], "1 {'reconstruction': "),
}


def test_every_example_is_run():
    assert {path.name for path in FOLDER.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_an_example_runs(name, tmp_path):
    arguments, said = RUNS[name]
    command = [sys.executable, "-W", "error", str(FOLDER / name), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    if said.endswith(".png"):
        assert (tmp_path / said).stat().st_size > 0
