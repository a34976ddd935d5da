"""The page itself: turns declared controls into widgets, and views into HTML and plots.

Only this file and ``door.py`` use gradio.  One function refreshes the open tab from the values of all controls; the link in the
address bar is made of the same values.  Between two requests the server keeps only uploaded files, for an hour; gradio
remembers what it has shown to the latest visitors.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: it asks for gradio's newest version otherwise

import gradio as gr
from gradio.components.plot import PlotData
from starlette.middleware import Middleware

from bridge.config import ConfigError
from bridge.explorer import html, link
from bridge.explorer.controls import Choices, Control, Select, Slider, Toggle, Values, accept, defaults
from bridge.explorer.door import Door
from bridge.explorer.figures import Figure, with_room
from bridge.explorer.sources import OWN_MODEL, Source, model_names, parse
from bridge.explorer.tabs import byte_latent, check, compare, fine_tune, inference, model, plan, run
from bridge.report.run_file import MAX_BYTES
from bridge.report.view import View

logger = logging.getLogger(__name__)

TITLE = "bridge explore"
TABS = {tab.KEY: tab for tab in (model, compare, check, fine_tune, inference, plan, byte_latent, run)}
SHARED: tuple[Control, ...] = (
    Select(key="model", label="Model", options=tuple(model_names()), default="llama3-8b", info="A recipe; type to search."),
    Select(key="save", label="The camera above a plot saves", options=("png", "svg"), default="png", buttons=True),
    Select(key="tab", label="Tab", options=tuple(TABS), default=model.KEY),
)
#: The controls of each tab; all tabs share those of "".
SECTIONS: dict[str, tuple[Control, ...]] = {
    "": SHARED,
    **{key: tuple(control for part in tab.SECTIONS.values() for control in part) for key, tab in TABS.items()},
}
#: The two model pickers above the tabs -> the tabs in which they have no effect.
IDLE = {"model": {compare.KEY, byte_latent.KEY, run.KEY}, "own": {byte_latent.KEY, run.KEY}}
#: Groups of controls that are open at first.
_OPEN = ("Parallel layout", "LoRA", "Device")
_FOLDER = Path(__file__).parent
#: Seconds between two checks for old uploads, and the age in seconds at which they are deleted.
_CACHE = (600, 3600)
#: The largest upload that gradio accepts; a configuration has its own limit.
MAX_UPLOAD = MAX_BYTES
#: The number of visitors whose latest outputs gradio remembers, up to a megabyte each. The others notice no difference.
_VISITORS = 32


# ---- from values to what is shown ---------------------------------------------------------------------------------


def contents(tab: str, values: dict[str, Values], config: str = "", file: str | None = None) -> View:
    """The view of a tab; ConfigError if the inputs are wrong."""
    chosen = accept(SECTIONS[tab], values[tab])
    if tab == run.KEY:
        if not file:
            raise _Nothing("No run yet: drop a file above.")
        return run.view(file, chosen)
    return TABS[tab].view(Source(values[""]["model"], config), chosen)


class _Nothing(ConfigError):
    """There is nothing to show yet, which is not an error."""


def shown(call: Callable[[], View], name: str) -> tuple[str, View | None]:
    """The headline and the view, or one sentence that says why there is none.  Never a traceback."""
    try:
        view = call()
        return html.headline(view), view
    except _Nothing as error:
        return html.notes([str(error)]), None
    except ConfigError as error:
        return html.message(str(error)), None
    except Exception as error:  # an impossible model: the traceback goes to the log, one sentence to the page
        logger.exception("%s cannot be shown", name)
        return html.message(f"These inputs cannot be counted ({type(error).__name__}). Check the configuration's sizes."), None


def plot(figure: Figure, name: str, image_format: str) -> PlotData:
    """A figure whose mode bar is always visible and whose camera saves in the chosen format."""
    config = {
        "displaylogo": False,
        "displayModeBar": True,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
        "toImageButtonOptions": {"format": image_format, "filename": name, "scale": 2 if image_format == "png" else 1},
    }
    drawn = json.loads(with_room(figure).to_json() or "")
    return PlotData(type="plotly", plot=json.dumps({**drawn, "config": config}))


# ---- widgets ------------------------------------------------------------------------------------------------------


def widget(control: Control, section: str) -> Any:
    """The gradio component of a control."""
    common: dict[str, Any] = {
        "label": control.label,
        "info": control.info or None,
        "value": list(control.default) if isinstance(control.default, tuple) else control.default,
        "elem_id": f"{section}-{control.key}" if section else control.key,
    }
    if isinstance(control, Slider):
        return gr.Slider(minimum=control.minimum, maximum=control.maximum, step=control.step, **common)
    if isinstance(control, Toggle):
        return gr.Checkbox(**common)
    common["choices"] = list(control.options)
    if control.buttons:
        return (gr.CheckboxGroup if isinstance(control, Choices) else gr.Radio)(**common)
    return gr.Dropdown(multiselect=isinstance(control, Choices), **common)


class Page:
    """The page under construction: widgets by section and key, and what each tab shows."""

    def __init__(self) -> None:
        self.widgets: dict[str, dict[str, Any]] = {}
        self.headlines: dict[str, gr.HTML] = {}
        self.tables: dict[str, gr.HTML] = {}
        self.plots: dict[str, list[gr.Plot]] = {}
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_CACHE, fill_width=True) as self.blocks:
            gr.HTML(f'<h1 class="title">{TITLE}</h1><p class="lead">What training and inference cost, to the last FLOP.</p>')
            self._source()
            with gr.Tabs(elem_id="tabs") as self.tabs:
                self._tabs = {key: self._tab(key) for key in TABS}
            self._state()
        self._wire()

    # Layout

    def _source(self) -> None:
        with gr.Row():
            shared = {control.key: widget(control, "") for control in SHARED if control.key != "tab"}
        own = gr.Accordion(OWN_MODEL.replace(" (below)", ": a model of your own"), open=False, elem_id="own")
        with own, gr.Row():
            self.config = gr.Textbox(
                label="config.json",
                info="Hugging Face's. Where there is one, it is the model.",
                placeholder='{"model_type": "llama", "hidden_size": 4096, ...}',
                lines=6,
                max_lines=12,
                elem_id="config",
            )
            self.upload = gr.File(label="or drop the file", file_types=[".json"], elem_id="upload", height=160)
        self.problem = gr.HTML(elem_id="problem")
        self.widgets[""] = shared
        self.pickers = {"model": shared["model"], "own": own}

    def _tab(self, key: str) -> gr.Tab:
        tab = TABS[key]
        with gr.Tab(tab.TITLE, id=key, elem_id=f"tab-{key}") as result:
            gr.HTML(f'<p class="introduction">{tab.INTRODUCTION}</p>')
            with gr.Row(elem_classes="tab"):
                with gr.Column(scale=1, min_width=280, elem_classes="controls"):
                    if key == run.KEY:
                        self.run = gr.File(label="metrics.jsonl or run-*.wandb", elem_id="run-file", height=160)
                    self.widgets[key] = {}
                    for title, controls in tab.SECTIONS.items():
                        with gr.Accordion(title, open=title in _OPEN) if title else gr.Column():
                            self.widgets[key] |= {control.key: widget(control, key) for control in controls}
                with gr.Column(scale=3, min_width=300, elem_classes="results"):
                    self.headlines[key] = gr.HTML(elem_id=f"{key}-headline")
                    with gr.Row(elem_classes="plots"):
                        self.plots[key] = [
                            gr.Plot(show_label=False, elem_id=f"{key}-plot-{i}", visible=False, min_width=300)
                            for i in range(tab.NUM_FIGURES)
                        ]
                    self.tables[key] = gr.HTML(elem_id=f"{key}-table")
        return result

    def _state(self) -> None:
        """Hidden widgets with state from the browser: the open tab and the address."""
        self.widgets[""]["tab"] = gr.Textbox(value=model.KEY, visible="hidden", elem_id="open-tab")
        self.query = gr.Textbox(visible="hidden", elem_id="query")

    # Events

    def _wire(self) -> None:
        everything = [item for section in self.widgets.values() for item in section.values()]
        inputs = {*everything, self.config, self.run}
        plots = [item for items in self.plots.values() for item in items]
        outputs = [*self.headlines.values(), *self.tables.values(), *plots, *self.pickers.values(), self.query]
        with self.blocks:
            # Without gradio's checks: the controls check their values and give readable errors.
            own: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
            refreshed: dict[str, Any] = {"fn": self.refresh, "inputs": inputs, "outputs": outputs, "concurrency_limit": 4, **own}
            put = {"fn": None, "inputs": [self.query], "outputs": None, "js": "(query) => window.bridge.putQuery(query)"}
            changes = [item.change for item in [*everything, self.config, self.run]]
            gr.on(changes, trigger_mode="always_last", **refreshed).then(**put)
            for key, tab in self._tabs.items():
                tab.select(fn=None, js=f"() => {key!r}", outputs=[self.widgets[""]["tab"]])
            self.upload.upload(self.take, [self.upload], [self.config, self.upload, self.problem], **own)
            restored = [*everything, self.config, self.tabs, self.problem]
            loaded = self.blocks.load(
                self.restore, [self.query], restored, js="() => [window.location.search]", api_visibility="private"
            )
            loaded.then(**refreshed).then(**put)

    def _values(self, data: dict[Any, Any]) -> dict[str, Values]:
        return {section: {key: data[item] for key, item in items.items()} for section, items in self.widgets.items()}

    def refresh(self, data: dict[Any, Any]) -> dict[Any, Any]:
        """Show the open tab and put the state into the address."""
        values = self._values(data)
        config = str(data[self.config] or "").strip()
        tab = values[""]["tab"]
        if tab not in tuple(TABS):
            return {self.query: gr.skip()}
        try:
            values = {"": accept(SHARED, values[""]), **{key: values[key] for key in TABS}}
        except ConfigError as error:
            return {self.headlines[tab]: html.message(str(error))}
        name = f"bridge-{tab}"
        text, view = shown(lambda: contents(tab, values, config, _path(data[self.run])), name)
        result: dict[Any, Any] = {self.headlines[tab]: text, self.tables[tab]: html.values(view, name) if view else ""}
        result |= {item: gr.update(visible="hidden" if tab in IDLE[key] else True) for key, item in self.pickers.items()}
        figures = view.figures if view else [None] * len(self.plots[tab])
        for i, (item, figure) in enumerate(zip(self.plots[tab], figures, strict=True), 1):
            drawn = figure and plot(figure, f"{name}-{i}", values[""]["save"])
            result[item] = gr.update(value=drawn, visible=True) if drawn else gr.update(visible=False)
        result[self.query] = self._link(values, config)
        return result

    def _link(self, values: dict[str, Values], config: str) -> str:
        checked = {}
        for section, controls in SECTIONS.items():
            try:
                checked[section] = accept(controls, values[section])
            except ConfigError:  # an incomplete entry: the link keeps the initial values
                checked[section] = defaults(controls)
        return link.write(SECTIONS, checked, {link.CONFIG: link.pack(config) if config else ""})

    def restore(self, query: str) -> dict[Any, Any]:
        """Set all controls to the state in a link."""
        values, others, problems = link.read(SECTIONS, str(query or ""))
        config = ""
        try:
            config = link.unpack(others[link.CONFIG]) if link.CONFIG in others else ""
        except ConfigError as error:
            problems.append(str(error))
        result: dict[Any, Any] = {
            item: list(value) if isinstance(value := values[section][key], tuple) else value
            for section, items in self.widgets.items()
            for key, item in items.items()
        }
        result[self.config] = config
        result[self.tabs] = gr.Tabs(selected=values[""]["tab"])
        result[self.problem] = "".join(map(html.message, problems))
        return result

    def take(self, file: Any) -> tuple[Any, Any, str]:
        """The text of an uploaded config.json, or an error message."""
        if not (path := _path(file)):
            return gr.skip(), gr.skip(), ""
        try:
            text = Path(path).read_text(encoding="utf-8")
            parse(text)
        except (OSError, UnicodeDecodeError):
            return gr.skip(), None, html.message("The file is no text; drop a model's config.json.")
        except ConfigError as error:
            return gr.skip(), None, html.message(str(error))
        return text, None, ""


def _path(file: Any) -> str | None:
    """The path of an uploaded file, from gradio's description of it."""
    return file.get("path") if isinstance(file, dict) else None


# ---- serving ------------------------------------------------------------------------------------------------------


_GRAYS = {
    "body_text_color_subdued": "#566070",
    "body_text_color_subdued_dark": "#aeb7c5",
    "block_info_text_color": "#566070",
    "block_info_text_color_dark": "#aeb7c5",
}


def _theme() -> gr.themes.Base:
    """System fonts, and gray text that is dark enough to read."""
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return theme.set(**_GRAYS)


def serve(
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    password: str | None = None,
    open_browser: bool = False,
    block: bool = True,
) -> tuple[gr.Blocks, str]:
    """Serve the page until interrupted.

    Args:
        host: address to listen on.
        port: port to listen on; None: the first free one from 7860 on.
        password: the password of the user ``bridge``; None: the page is open to everyone who reaches the address.
        open_browser: whether to open the page in a browser.
        block: whether to wait until the server is stopped.

    Returns:
        The page and its URL.

    Raises:
        ConfigError: the address is not available.
    """
    if block:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # end as on Ctrl-C: uploads are deleted
    # Only the user can read this folder; it is deleted at the end.
    uploads = tempfile.TemporaryDirectory(prefix="bridge-explore-", ignore_cleanup_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = uploads.name
    blocks = Page().blocks
    blocks.uploads = uploads  # lives as long as the page
    try:
        _, url, _ = blocks.launch(
            server_name=host,
            server_port=port,
            auth=("bridge", password) if password else None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            state_session_capacity=_VISITORS,
            app_kwargs={"middleware": [Middleware(Door, uploads=uploads.name)]},
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            theme=_theme(),
            css_paths=_FOLDER / "page.css",
            head=f"<script>{(_FOLDER / 'page.js').read_text(encoding='utf-8')}</script>",
        )
    except OSError as error:
        where = f"{host}:{port}" if port else host
        raise ConfigError(f"cannot listen on {where} ({error}); choose another --host or --port") from None
    if open_browser:
        webbrowser.open(url)
    if block:
        print(f"bridge explore: {url}  (Ctrl-C ends it)", flush=True)
        blocks.block_thread()
    return blocks, url
