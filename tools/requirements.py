"""Prints what pyproject.toml requires for some extras, one requirement a line; "build" means the build system's.

python tools/requirements.py build,test
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
for extra in filter(None, sys.argv[1].split(",")):
    wanted = project["build-system"]["requires"] if extra == "build" else None
    print(*(wanted or project["project"]["optional-dependencies"][extra]), sep="\n")
