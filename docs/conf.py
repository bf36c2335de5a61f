"""How the site is built: python -m sphinx -W -b html docs build/site

Every code cell is run on the way, so that what a page shows is what its code printed. Nothing is fetched.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# Reference and chapters speak of this checkout's Python, with the kernels as last installed, as the tests do.
sys.path[:0] = [str(HERE), str(ROOT)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

project = "refgpt"
author = "the authors of refgpt"
release = version = installed_version("refgpt")
language = "en-GB"
smartquotes = False  # values stand in quotation marks: they are code

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "command_line",
    "book",
    "figures",
    "held_by",
]

myst_enable_extensions = ["deflist"]  # no mathematics: pages would fetch a script to set it
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # each chapter takes less than two minutes, unless the machine is busy
nb_execution_show_tb = True
nb_merge_streams = True

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"DTypeLike": "DTypeLike", "Tap": "Tap"}  # names, not what they stand for
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "refgpt"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072b2", "color-brand-content": "#0072b2"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}
