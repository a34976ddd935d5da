"""The explorer is an extra: where plotly or gradio is not installed, its tests are skipped, and say so."""

from importlib.util import find_spec

import pytest

MISSING = [name for name in ("plotly", "gradio") if find_spec(name) is None]


class _Skipped(pytest.Module):
    """A file of tests that is not even imported."""

    def collect(self):
        pytest.skip(f"needs {' and '.join(MISSING)}; pip install gradio plotly selenium", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return _Skipped.from_parent(parent, path=module_path) if MISSING else None
