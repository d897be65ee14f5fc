"""Files in, as bytes of one request, frames out, as data URLs: nothing of an exam touches the disk.

Gradio's own upload writes files into its temporary folder, and Starlette's forms do above 1 MB; so the body is read
here. It is the files one behind the other, and a header says how long each is: no file's name leaves the browser.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from llava_ultra_ext.data.deidentify.pixel_text import TextReader
from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.exam_pictures import OpenedExam, encoded, open_exam
from llava_ultra_ext.serve.limits import Limits
from llava_ultra_ext.serve.page.examples import Example
from llava_ultra_ext.serve.page.questions import listed
from llava_ultra_ext.serve.page.store import ExamStore

SIZES = "x-sizes"
"""Header of an upload: the files' lengths in bytes, joined by commas. A page of another host cannot send it unasked."""

UPLOADS = 3
"""Most at a time, examples among them; each may hold `Limits.request_bytes`. Our choice."""

READ_SECONDS = 300.0
_SHOWN_SIDE = 1024  # pixels; what is sent to the model stays whole
_MOST_FILES = 2000
_HERE = Path(__file__).parent
_SCRIPTS = ("page.js", "files.js", "questions.js")


class ExamRoutes:
    """The page's own routes beside Gradio's.

    Args:
        store: where exams are kept.
        examples: name -> exam to try.
        limits: of an upload.
        reader: finds text that was left in DICOM pictures.
    """

    def __init__(
        self,
        store: ExamStore,
        examples: Mapping[str, Example],
        limits: Limits | None = None,
        reader: TextReader | None = None,
    ) -> None:
        self._store, self._examples, self._limits = store, examples, limits or Limits()
        self._reader = reader
        self._opening = asyncio.Lock()  # pydicom's switches are the process's, and one decoder is enough memory
        self._uploads = 0

    def add_to(self, app: FastAPI) -> None:
        """Bind the routes."""
        app.add_api_route("/exam", self.upload, methods=["POST"], include_in_schema=False)
        app.add_api_route("/exam/example/{name}", self.example, methods=["POST"], include_in_schema=False)
        app.add_api_route("/exam/drop/{key}", self.drop, methods=["POST"], include_in_schema=False)
        app.add_api_route("/page/{name}", self.static, methods=["GET"], include_in_schema=False)

    async def upload(self, request: Request) -> Response:
        """An exam's files -> its key and frames."""
        try:
            with self._one_more():
                files = await asyncio.wait_for(self._files(request), READ_SECONDS)
                return JSONResponse(await self._opened(lambda: files))
        except ServeError as error:
            return refusal(error)
        except TimeoutError:
            return refusal(ServeError("bad_request", "上传超时，请重试。 The upload took too long; try again."))

    async def example(self, name: str) -> Response:
        """An exam to try."""
        try:
            if name not in self._examples:
                raise ServeError("bad_request", "没有这个示例。 There is no such example.")
            with self._one_more():
                return JSONResponse(await self._opened(self._examples[name].files))
        except ServeError as error:
            return refusal(error)

    async def drop(self, key: str) -> Response:
        """Forget an exam; a page that is closed says so."""
        self._store.drop(key)
        return Response(status_code=204)

    async def static(self, name: str) -> Response:
        """The page's own scripts, and its template questions."""
        if name == "questions.json":
            return JSONResponse(listed())
        if name not in _SCRIPTS:
            return Response(status_code=404)
        return Response((_HERE / name).read_bytes(), media_type="text/javascript")

    @contextlib.contextmanager
    def _one_more(self) -> Iterator[None]:
        if self._uploads >= UPLOADS:
            raise ServeError("busy", "上传太多，请稍后再试。 Too many uploads at once; try again soon.")
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def _files(self, request: Request) -> list[bytes]:
        sizes = _sizes(request.headers.get(SIZES, ""), self._limits)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > sum(sizes):
                break
        if len(body) != sum(sizes):
            raise ServeError("bad_request", "上传不完整，请重试。 The upload is incomplete; try again.")
        whole, files, start = memoryview(body), [], 0
        for size in sizes:
            files.append(bytes(whole[start : start + size]))
            start += size
        return files

    async def _opened(self, read: Callable[[], Sequence[bytes]]) -> dict[str, Any]:
        async with self._opening:
            opened, frames = await asyncio.to_thread(self._open, read)
            pictures = await asyncio.to_thread(lambda: [_shown(one.image) for one in opened.pictures])
        sizes = [one.image.size for one in opened.pictures]
        exam = self._store.add(frames, sizes, [one.label for one in opened.pictures])
        return {
            "exam": exam.key,
            "frames": [
                {"label": one.label, "width": one.image.width, "height": one.image.height, "url": url}
                for one, url in zip(opened.pictures, pictures, strict=True)
            ],
            "skipped": list(opened.skipped),
            "notes": _notes(opened, self._reader is not None),
        }

    def _open(self, read: Callable[[], Sequence[bytes]]) -> tuple[OpenedExam, list[bytes]]:
        opened = open_exam(read(), self._limits, reader=self._reader)
        return opened, [encoded(one.image) for one in opened.pictures]


def refusal(error: ServeError) -> JSONResponse:
    """An error as the page's script shows it."""
    return JSONResponse({"code": error.code, "message": str(error)}, error.status)


def _sizes(header: str, limits: Limits) -> list[int]:
    """Lengths of the files, before a byte of them is read."""
    given = header.split(",") if header else []
    if not all(one.isascii() and one.isdigit() and len(one) < 12 for one in given):
        raise ServeError("bad_request", "上传的格式不对。 The upload does not say how long its files are.")
    if len(given) > _MOST_FILES:
        raise ServeError(
            "too_many_frames",
            f"共 {len(given)} 个文件，最多 {_MOST_FILES} 个。 {len(given)} files; choose one exam.",
        )
    sizes = [int(one) for one in given]
    if sum(sizes) > limits.request_bytes:
        most = limits.request_bytes >> 20
        raise ServeError(
            "request_too_large",
            f"文件总计超过 {most} MB，请减少文件。 More than {most} MB together; choose fewer files.",
        )
    return sizes


def _shown(picture: Image.Image) -> str:
    """A JPEG for the eye; its size is bounded so that a phone can hold an exam."""
    small = picture.copy()
    small.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _notes(opened: OpenedExam, text_read: bool) -> list[str]:
    """What the reader must know of how far pictures are de-identified."""
    notes = []
    if any(one.cleaned for one in opened.pictures):
        notes.append("DICOM：信息头已丢弃，扫描区域以外已涂黑并裁去。")
        if not text_read:
            notes.append("扫描区域内的文字未经检查。")
    if not all(one.cleaned for one in opened.pictures):
        notes.append("PNG/JPEG：元数据已去除，但图中文字保持原样，请确认不含姓名。")
    return notes
