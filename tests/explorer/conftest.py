"""The explorer is an extra: without plotly and gradio there is nothing to test."""

import pytest

pytest.importorskip("plotly", reason="the explorer needs plotly; pip install 'bridge-flops[explorer]'")
pytest.importorskip("gradio", reason="the explorer needs gradio; pip install 'bridge-flops[explorer]'")
