"""Sphinx configuration: `make docs` builds docs/_build/html. No network is needed."""

import builtins
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_LOWBIT_SMALL", "1")  # the notebooks, as the tests run them: without a network
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "_ext")]

project = "keras_lowbit"
author = "The keras_lowbit authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx_copybutton", "house", "figures"]
# Notebooks are pages too: executed when they have changed, with an error where a cell fails.
for notebook in Path(__file__).parents[1].glob("colab/*.ipynb"):
    (Path(__file__).parent / "notebooks" / notebook.name).write_bytes(notebook.read_bytes())
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parents[1] / "build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # what they write is not kept
nb_execution_timeout = 600
nb_output_stderr = "remove"

templates_path = ["_templates"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "keras_lowbit"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sourcelink = False
html_show_copyright = False

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
default_role = "code"

autosummary_generate = True
autosummary_generate_overwrite = True
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

nitpicky = True
# Third parties whose inventory would have to be fetched.
nitpick_ignore_regex = [
    ("py:.*", r"(keras|tf|tensorflow|numpy|np|collections|os|types|typing|pathlib|abc|dataclasses|random)\b.*"),
    ("py:.*", "|".join(sorted(name for name in dir(builtins) if name[0] != "_"))),
    (
        "py:.*",
        r"(Any|Callable|Callback|History|Iterable|Iterator|Mapping|Model|PathLike|Sequence|TypeGuard|ndarray|optional)",
    ),
    ("py:class", r"keras_lowbit\.quantizers\.base\.Q"),  # a type variable
]
