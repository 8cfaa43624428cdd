"""The short form of .ci/fuzz_files.py: some damaged files of every kind end in a result or a
sentence."""

import importlib.util

import pytest
import repository as repo


@pytest.fixture(scope="module")
def fuzz_files():
    spec = importlib.util.spec_from_file_location("fuzz_files", repo.ROOT / ".ci/fuzz_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "kind", ["picture", "mask", "zip", "shards", "index", "config", "state", "weights"]
)
def test_damaged_files_end_in_a_result_or_a_sentence(fuzz_files, kind, tmp_path):
    result = fuzz_files.fuzz(40, 1, (kind,), tmp_path)
    assert not result["found"]
    assert sum(result["outcomes"][kind].values()) == 40
    assert result["outcomes"][kind]["refused" if kind != "config" else "read"]


def test_what_may_not_happen_is_found_and_kept(fuzz_files, tmp_path, monkeypatch):
    def broken(_):
        raise KeyError("name")

    monkeypatch.setitem(fuzz_files.READERS, "mask", broken)
    result = fuzz_files.fuzz(3, 1, ("mask",), tmp_path)
    assert len(result["found"]) == 3 and "KeyError: 'name'" in result["found"][0]
    assert len(list(tmp_path.iterdir())) == 3
