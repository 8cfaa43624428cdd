#!/usr/bin/env python3
"""The tests on the oldest and on the newest of what the package admits, in fresh environments.

    .ci/versions.py           both
    .ci/versions.py oldest    Python 3.10, and the lowest torch and lowest of everything else
    .ci/versions.py newest    Python 3.13, and the newest torch and newest of everything else
    .ci/versions.py newest tests/ops -k opcheck    what follows is for pytest

Installs a clean copy of the source as a user would and runs plain `pytest` and the doctor on it: no
GPU needed. What came out goes into .ci/versions.md. PYTHON_OLDEST and PYTHON_NEWEST choose the
interpreters (one that is not there is said, and is no failure); ENVIRONMENTS names a folder where
the environments are kept, some gigabytes each, for the next time.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = {"oldest": "3.10", "newest": "3.13"}
TABLE = ROOT / ".ci" / "versions.md"
HEAD = """The tests on the oldest and the newest admitted versions, as `.ci/versions.py` ran them.

| | Python | torch | others | tests | doctor |
|---|---|---|---|---|---|
"""
OTHERS = ("numpy", "pillow", "safetensors", "tqdm", "tyro", "matplotlib", "pytest", "hypothesis")


def interpreter(name):
    """The interpreter to use, or None if there is none of its version here."""
    version = PYTHON[name]
    program = os.environ.get(f"PYTHON_{name.upper()}") or shutil.which(f"python{version}")
    if program is None:
        return None
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([program, "-c", code], capture_output=True, text=True)
    return program if done.stdout.strip() == version else None


def copy_source(folder):
    """What git knows and what it would add: nothing that was built."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def check(name, arguments, python, work):
    """Installs and tests; whether all is well, and the row of the table."""
    source = work / f"{name}-source"
    environment = (Path(os.environ.get("ENVIRONMENTS", work)) / name).resolve()
    binaries = environment / "bin"
    copy_source(source)
    subprocess.run([python, "-m", "venv", environment], check=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RWM_FAST_", "PYTHON"))}
    env |= {"RWM_FAST_EXT": "1", "RWM_FAST_CUDA": "0", "OMP_NUM_THREADS": "1"}
    install = [binaries / "pip", "install", "--quiet", "-c", f".ci/{name}.txt", ".[test]"]
    subprocess.run(install, cwd=source, env=env, check=True)
    del env["RWM_FAST_EXT"], env["RWM_FAST_CUDA"]
    pytest = [binaries / "pytest", "-p", "no:cacheprovider", "-ra", *arguments]
    tests = subprocess.Popen(pytest, cwd=source, env=env, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in tests.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    counts = ", ".join(re.findall(r"\d+ (?!deselected)[a-z]+(?=,| in )", lines[-1]))
    what = f"`{' '.join(arguments)}`: {counts}" if arguments else counts
    doctor = [binaries / "python", "-W", "error", "-m", "rwm_fast.doctor"]
    said = subprocess.run(doctor, cwd=work, env=env, stdout=subprocess.PIPE, text=True)
    facts = (name, *versions(binaries), what, said.stdout.splitlines()[-1])
    return tests.wait() == 0 and said.returncode == 0, f"| {' | '.join(facts)} |\n"


def versions(binaries):
    """Of Python, of torch, and of the others in one string."""
    own = subprocess.check_output([binaries / "python", "-V"], text=True).split()[1]
    listing = subprocess.check_output([binaries / "pip", "list", "--format=json"], text=True)
    found = {package["name"].lower(): package["version"] for package in json.loads(listing)}
    return own, found["torch"], ", ".join(f"{name} {found[name]}" for name in OTHERS)


def write(name, row):
    """The row of this name in the table, beside those of other runs."""
    rows = TABLE.read_text().splitlines(keepends=True) if TABLE.exists() else []
    known = {line.split("|")[1].strip(): line for line in rows if line.startswith("| ")}
    known |= {name: row}
    TABLE.write_text(HEAD + "".join(known[name] for name in PYTHON if name in known))


def main(only=None, *arguments):
    if only not in (None, *PYTHON):
        sys.exit(f"{only}: say {' or '.join(PYTHON)}, or nothing for both")
    fine = True
    for name in [only] if only else PYTHON:
        python = interpreter(name)
        if python is None:
            print(f"{name}: skipped, no Python {PYTHON[name]}; PYTHON_{name.upper()} names one")
            continue
        with tempfile.TemporaryDirectory() as work:
            passed, row = check(name, arguments, python, Path(work))
        print(row)
        write(name, row)
        fine = fine and passed
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
