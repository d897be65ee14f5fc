"""The Gradio page: models, question, events; frames, files, chat and template questions are `page.js` in HTML parts.

Nothing that a model or a user wrote becomes markup: the script sets texts as texts.
"""

from __future__ import annotations

import html
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.page import shown
from llava_ultra_ext.serve.page.asking import Choices, Client, ask_lanes
from llava_ultra_ext.serve.page.examples import Example
from llava_ultra_ext.serve.page.store import ExamStore

TITLE = "LLaVA-Ultra 超声检查"
TITLE_ENGLISH = "Ultrasound exams"
NOTE = "研究软件，不是医疗器械；不得用于诊断。 Research software, not a medical device."
NO_SECOND = ""

_HERE = Path(__file__).parent
_FONTS = ["system-ui", "Noto Sans CJK SC", "Noto Sans SC", "PingFang SC", "Microsoft YaHei", "sans-serif"]
_LOAD = 'import(new URL("page/page.js", document.baseURI)).then((page) => page.{call});'
_KEY = "(_, ...rest) => [globalThis.examPage?.key() ?? '', ...rest]"
"""Puts the exam's key, which only the script knows, in place of the first input."""


def styles() -> str:
    """The page's own style sheet."""
    return (_HERE / "style.css").read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Fonts of the reader's own machine: none is fetched."""
    return gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=_FONTS, font_mono=["ui-monospace", "monospace"])


def build(client: Client, store: ExamStore, examples: Iterable[Example] = ()) -> gr.Blocks:
    """The page.

    Args:
        client: asks the models.
        store: where uploaded exams are.
        examples: exams to try.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_header(), elem_id="head")
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(scale=6, min_width=320, elem_id="pictures"):
                viewer = gr.HTML(
                    html_template=viewer_markup(examples),
                    js_on_load=_LOAD.format(call='mountViewer(element, () => trigger("opened"))'),
                )
            with gr.Column(scale=5, min_width=320, elem_id="talk"):
                parts = _talk()
        _bind(page, parts, viewer, Handlers(client, store))
    return page


@dataclass(frozen=True)
class Parts:
    """What events read and write."""

    key: gr.Textbox
    models: tuple[gr.Dropdown, gr.Dropdown]
    refresh: gr.Button
    marks: gr.HTML
    box: gr.Textbox
    send: gr.Button
    stop: gr.Button
    clear: gr.Button
    temperature: gr.Slider
    most_tokens: gr.Slider


def _talk() -> Parts:
    key = gr.Textbox(visible=False)
    with gr.Row(elem_id="models", equal_height=True):
        first = gr.Dropdown([], label="模型 Model", filterable=False, elem_id="model-a", min_width=110, scale=5)
        second = gr.Dropdown(
            [("不对比", NO_SECOND)],
            value=NO_SECOND,
            label="对比 Compare",
            filterable=False,
            elem_id="model-b",
            min_width=110,
            scale=5,
        )
        refresh = gr.Button("刷新", elem_id="refresh", min_width=56, scale=0)
    # Texts of models and users: set by the script, as texts. Gradio's own chat would make markup of them.
    marks = gr.HTML(
        value={},
        html_template=(_HERE / "chat.html").read_text(encoding="utf-8"),
        elem_id="chat",
        js_on_load=_LOAD.format(call='mountChat(element, () => props.value, (call) => watch("value", call))'),
    )
    gr.HTML(
        html_template=(_HERE / "questions.html").read_text(encoding="utf-8"),
        elem_id="templates",
        js_on_load=_LOAD.format(call="mountQuestions(element)"),
    )
    with gr.Row(elem_id="ask", equal_height=True):
        box = gr.Textbox(
            label="问题 Question",
            show_label=False,
            container=False,
            placeholder="输入问题，Enter 发送",
            lines=1,
            max_lines=5,
            max_length=4000,
            elem_id="question",
            scale=8,
            min_width=160,
        )
        send = gr.Button("发送 Send", variant="primary", elem_id="send", scale=0, min_width=96)
        stop = gr.Button("停止 Stop", variant="stop", interactive=False, elem_id="stop", scale=0, min_width=96)
    with gr.Row(elem_id="more"):
        with gr.Accordion("设置 Settings", open=False, elem_id="settings"):
            temperature = gr.Slider(0, 1, 0.2, step=0.05, label="温度 Temperature（0 最稳定）", elem_id="temperature")
            most_tokens = gr.Slider(16, 1024, 512, step=16, label="回答最长 Most tokens", elem_id="most-tokens")
        clear = gr.Button("清空对话", elem_id="clear", scale=0, min_width=110)
    return Parts(key, (first, second), refresh, marks, box, send, stop, clear, temperature, most_tokens)


def _bind(page: gr.Blocks, parts: Parts, viewer: gr.HTML, handlers: Handlers) -> None:
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    talk = [parts.marks, parts.send, parts.stop]
    names = [*parts.models]
    page.load(handlers.names, names, names, **private)
    parts.refresh.click(handlers.names, names, names, **private)
    asked = [parts.key, parts.box, *parts.models, parts.temperature, parts.most_tokens]
    gr.on(
        [parts.send.click, parts.box.submit],
        handlers.ask,
        asked,
        [parts.box, *talk],
        js=_KEY,
        concurrency_limit=None,
        trigger_mode="once",
        **private,
    )
    parts.stop.click(handlers.stop, parts.key, None, js=_KEY, queue=False, **private)
    parts.clear.click(handlers.clear, parts.key, talk, js=_KEY, queue=False, **private)
    viewer.opened(handlers.clear, parts.key, talk, js=_KEY, queue=False, **private)
    parts.models[1].change(None, parts.models[1], None, js="(name) => globalThis.examPage?.compare(Boolean(name))")


class Handlers:
    """What the page's events do.

    Args:
        client: asks the models.
        store: where exams are.
    """

    def __init__(self, client: Client, store: ExamStore) -> None:
        self._client, self._store = client, store

    async def names(self, first: str | None, second: str | None) -> tuple[Any, Any]:
        """Both drop-downs, with what is served now; a choice that is still served stays."""
        try:
            served = await self._client.models()
        except ServeError as error:
            gr.Warning(html.escape(shown.error_text(error)))
            served = []
        one = first if first in served else next(iter(served), None)
        other = second if second in served else NO_SECOND
        choices = [(name, name) for name in served]
        return gr.Dropdown(choices=choices, value=one), gr.Dropdown(
            choices=[("不对比", NO_SECOND), *choices], value=other
        )

    async def ask(
        self, key: str, text: str, first: str | None, second: str | None, temperature: float, most_tokens: float
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Question box, marks, send and stop, again and again until the answers are there."""
        models = [name for name in (first, second) if name]
        problem = "" if text.strip() else "请先输入问题。 Type a question first."
        if not first:
            problem = problem or "没有可用的模型，请点“刷新”。 No model is served; press 刷新."
        try:
            exam = None if problem else self._store.get(key)
        except ServeError as error:
            exam, problem = None, str(error)
        if exam is None:
            gr.Warning(html.escape(problem))
            yield (gr.skip(),) * 4
            return
        if any(lane.running for lane in exam.lanes):
            yield (gr.skip(),) * 4
            return
        choices = Choices(float(temperature), int(most_tokens))
        lanes = exam.lanes[: len(models)]
        busy = gr.Button(interactive=False), gr.Button(interactive=True)
        box: Any = ""
        async for _ in ask_lanes(self._client, lanes, models, text.strip(), exam.frames, choices):
            yield box, shown.marks(exam, len(models)), *busy
            box = gr.skip()
        yield box, shown.marks(exam, len(models)), *_idle()

    async def stop(self, key: str) -> None:
        """Cancel the answers of an exam, here and at the workers."""
        try:
            self._store.get(key).stop()
        except ServeError:  # dropped meanwhile, which stopped it
            return

    async def clear(self, key: str) -> tuple[Any, ...]:
        """Marks, send and stop of an exam that nothing was asked about."""
        try:
            for lane in self._store.get(key).lanes:
                lane.clear()
        except ServeError:
            pass  # no exam: nothing to forget
        return {}, *_idle()


def _idle() -> tuple[Any, Any]:
    return gr.Button(interactive=True), gr.Button(interactive=False)


def _header() -> str:
    return f'<header><h1>{TITLE} <small>{TITLE_ENGLISH}</small></h1><p class="note" role="note">{NOTE}</p></header>'


def viewer_markup(examples: Iterable[Example]) -> str:
    """Drop zone, large frame and strip; the script fills them."""
    buttons = "".join(
        f'<button type="button" data-example="{html.escape(one.name)}">{html.escape(one.title)}</button>'
        for one in examples
    )
    tried = f'<div class="examples" role="group" aria-label="示例检查 Examples"><span>示例 Try</span>{buttons}</div>'
    return (_HERE / "viewer.html").read_text(encoding="utf-8").replace("<!-- examples -->", tried if buttons else "")
