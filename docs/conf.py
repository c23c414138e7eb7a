"""How Sphinx builds this site: `make docs`, with warnings as errors."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import catalogue  # noqa: E402

from benchmarks import report  # noqa: E402

# Written before every build, from docstrings and from measured figures; git ignores them.
for page, text in {**catalogue.pages(), "explanation/figures.md": report.figures()}.items():
    file = DOCS / page
    if not file.exists() or file.read_text() != text:  # an unchanged page is not built again
        file.write_text(text)

# Tutorials run in an empty folder that has the configurations and nothing else, and find the commands of this environment.
home = tempfile.mkdtemp(prefix="tutorials-")
shutil.copytree(DOCS.parent / "configs", Path(home) / "configs")
os.environ["FL_LIGHTNING_TUTORIALS"] = home
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONPATH", str(DOCS.parent))

project = "fl_lightning"
author = "the authors of fl_lightning"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute"]

html_theme = "furo"
html_title = "fl_lightning"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_copyright = False

myst_enable_extensions = ["deflist", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_typehints = "none"  # the signature has them
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as the source has them, without addresses
default_role = "code"  # docstrings put names in single backticks
nitpicky = True
# Other packages' objects: their inventories are on the network, and a build needs none.
nitpick_ignore_regex = [(r"py:.*", r"(torch|lightning|numpy|pandas|collections|os|pathlib|typing|nn|L|pd)\b.*")]


def setup(app: Any) -> None:
    app.connect("build-finished", lambda *_: shutil.rmtree(home, ignore_errors=True))
