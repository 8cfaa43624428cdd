"""A C++ compiler that compiles nothing twice: with the same flags, a source that is the same after
the preprocessor has the same object.

    python reusing_compiler.py FOLDER COMPILER ARGUMENTS

FOLDER keeps the objects.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(folder, compiler, *arguments):
    if "-c" not in arguments:
        return subprocess.run([compiler, *arguments]).returncode
    at = arguments.index("-o")
    target = Path(arguments[at + 1])
    rest = [a for a in arguments[:at] + arguments[at + 2 :] if a != "-c"]
    # Writes the list of headers too, as compiling would.
    done = subprocess.run([compiler, *rest, "-E", "-P", "-MT", target], stdout=subprocess.PIPE)
    if done.returncode:
        return done.returncode
    # What these say is in the text already; the last is where the list of headers goes.
    flags = [f for f in rest if not f.startswith(("-D", "-I")) and not f.endswith(".d")]
    key = hashlib.sha256(repr(flags).encode() + done.stdout).hexdigest()
    stored = Path(folder, key)
    if stored.exists():
        shutil.copy(stored, target)
        return 0
    code = subprocess.run([compiler, *arguments]).returncode
    if code == 0:
        fresh = stored.with_name(f"{key}.{os.getpid()}")
        shutil.copy(target, fresh)
        fresh.replace(stored)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
