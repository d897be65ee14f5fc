"""The exam page in a real browser, in front of LLaVA's controller, a real small model and workers that misbehave."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llava_servers
import pytest
from fake_workers import FakeWorker, Step, ours, said, steps

pytest.importorskip("pydicom", reason="the page reads DICOM with pydicom")

from exam_page import PATIENCE_MS, Reader, Served, chromium, exam_page
from playwright.sync_api import Browser, expect

from dicom_frames import local_files

CINE = next(path for _, path in local_files() if path.name == "examples_ybr_color.dcm")
SCRIPT = "<img src=x onerror=globalThis.hacked=1>"
EVIL_ANSWER = "<script>globalThis.hacked=1</script> ![x](http://example.com/x.png) {{1}} ${1} <5mm"


@dataclass(frozen=True)
class House:
    """Everything behind the browser: `real` serves a small model, the others are `FakeWorker`."""

    page: Served
    controller: str
    real: str
    evil: FakeWorker
    slow: FakeWorker


def endless(params: dict[str, Any]) -> Iterator[Step]:
    """A worker that grows its answer for a minute."""
    for size in range(600):
        yield said(params, "结节" + "。" * size)
        yield 0.1


def failing(code: str, text: str) -> Any:
    return steps({"text": text, "error_code": 1, "code": code})


@pytest.fixture(scope="module")
def house(served: llava_servers.Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("page")
    status = {"model_names": [served.model], "speed": 1, "queue_length": 0}
    with (
        llava_servers.controller(folder) as controller,
        FakeWorker(controller, f"evil {SCRIPT}", ours(EVIL_ANSWER)) as evil,
        FakeWorker(controller, "slow", endless) as slow,
        FakeWorker(controller, "busy", failing("busy", f"16 wait. {SCRIPT}")),
    ):
        registration = {"worker_name": served.worker, "check_heart_beat": False, "worker_status": status}
        llava_servers.post(f"{controller}/register_worker", registration)
        with exam_page(controller, folder) as page:
            yield House(page, controller, served.model, evil, slow)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def reader(browser: Browser, house: House) -> Iterator[Reader]:
    made = Reader(browser, house.page)
    yield made
    assert made.hosts <= {"127.0.0.1", ""} and not made.errors
    made.page.close()


@pytest.fixture
def exam(reader: Reader, house: House) -> Reader:
    """A cine that the real model is to be asked about, nothing said yet."""
    reader.picks("a", house.real)
    reader.picks("b", "不对比")
    reader.gives(CINE)
    expect(reader.page.locator(".turn")).to_have_count(0)
    return reader


def test_a_cine_is_asked_about_and_the_chosen_frame_is_shown_with_its_heat(exam: Reader, house: House) -> None:
    before = house.page.files()
    expect(exam.page.locator(".thumb")).to_have_count(8)
    assert exam.page.locator(".thumb .label").first.text_content() == "1 · 帧 2/30"
    told = exam.asks_and_waits("请描述该超声图像的所见。")
    assert told["answer"] not in ("", "…") and told["model"] == house.real
    assert "首字" in told["status"] and "α 0." in told["status"]
    scores = exam.scores()
    assert len(scores) == 8 and exam.chosen() == [scores.index(max(scores))]
    label = exam.page.locator(".thumb .label").nth(exam.chosen()[0]).text_content()
    assert f"依据「{label}」" in told["status"]
    assert exam.page.locator(".tools output").text_content() == f"{label}（共 8 张） · ✓ 选中"
    heat = exam.page.locator(".heat")
    expect(heat).to_be_visible()
    assert (heat.get_attribute("src") or "").startswith("data:image/png")
    exam.page.uncheck(".heat-switch input")
    expect(heat).to_be_hidden()
    exam.page.check(".heat-switch input")
    assert house.page.files() == before
    assert house.page.asked_outside() == []


def test_nothing_was_written_anywhere(exam: Reader, house: House, tmp_path: Path) -> None:
    """Neither by the start of the page nor by a large upload, which Starlette and Gradio would both put on the disk."""
    large = tmp_path / "large.bmp"
    large.write_bytes(_bmp(1200, 1000))
    exam.gives(large)
    exam.asks_and_waits("请描述该超声图像的所见。")
    assert all(path.is_dir() for path in house.page.files()), "Gradio makes two empty folders when it starts"


def _bmp(width: int, height: int) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(out, "BMP")
    return out.getvalue()


def test_a_second_question_keeps_the_first_and_a_new_exam_forgets_both(exam: Reader, house: House) -> None:
    exam.picks("a", "evil")
    exam.asks_and_waits("第一问？")
    exam.asks_and_waits("第二问？")
    prompt = house.evil.asked[-1]["prompt"]
    assert prompt.count("<image>") == len(house.evil.asked[-1]["images"]) == 8
    assert prompt.index("第一问？") < prompt.index("<5mm") < prompt.index("第二问？")
    exam.page.locator(".look").first.click()
    expect(exam.page.locator(".look").first).to_have_attribute("aria-pressed", "true")
    exam.tries("phantom-liver")
    expect(exam.page.locator(".turn")).to_have_count(0)
    expect(exam.page.locator(".thumb")).to_have_count(8)
    exam.asks_and_waits("第三问？")
    assert "第一问？" not in house.evil.asked[-1]["prompt"]
    exam.page.click("#clear")
    expect(exam.page.locator(".turn")).to_have_count(0)
    assert exam.scores() == []


def test_an_answer_streams_and_stop_hangs_up_at_the_worker(exam: Reader, house: House) -> None:
    exam.picks("a", "slow")
    ways = (lambda: exam.page.click("#stop"), lambda: exam.page.keyboard.press("Escape"))
    for number, stop in enumerate(ways, start=1):
        house.slow.hung_up.clear()
        exam.asks("请描述。")
        expect(exam.page.locator(".turn")).to_have_count(number)
        answer = exam.page.locator(".turn .answer").last
        expect(answer).to_contain_text("结节。", timeout=PATIENCE_MS)
        short = len(answer.text_content() or "")
        expect(answer).to_have_text(re.compile(f"结节。{{{short},}}"), timeout=PATIENCE_MS)
        stop()
        told = exam.waits_for("stopped")
        assert told["answer"].startswith("结节。") and told["status"].startswith("已停止")
        assert house.slow.hung_up.wait(10)
        expect(exam.page.locator("#send")).to_be_enabled()


def test_two_models_answer_side_by_side_and_their_scripts_stay_text(exam: Reader, house: House) -> None:
    exam.picks("b", "evil")
    exam.asks_and_waits("请描述。")
    second = exam.waits_for("done", lane=1)
    assert second["answer"] == EVIL_ANSWER and second["model"] == f"B · evil {SCRIPT}"
    lanes = [exam.page.locator(".lane").nth(lane).bounding_box() for lane in (0, 1)]
    assert lanes[0] and lanes[1] and lanes[0]["y"] == lanes[1]["y"] and lanes[0]["x"] < lanes[1]["x"]
    marks = exam.page.locator(".thumb .marks").nth(1).text_content() or ""
    assert "A -" in marks and "B -0.250" in marks
    exam.picks("b", "不对比")
    exam.asks_and_waits(SCRIPT)
    assert exam.page.evaluate("globalThis.hacked") is None
    assert exam.page.locator("#chat img, #chat script").count() == 0


def test_an_error_is_a_sentence_in_chinese(exam: Reader) -> None:
    exam.picks("a", "busy")
    exam.asks("请描述。")
    told = exam.waits_for("failed")
    assert told["error"] == f"⚠ 当前请求太多，请稍后再试。 16 wait. {SCRIPT}"
    assert exam.page.evaluate("globalThis.hacked") is None


def test_a_broken_file_is_told_and_the_exam_before_it_stays(exam: Reader, tmp_path: Path) -> None:
    broken = tmp_path / "WANG.dcm"
    broken.write_bytes(CINE.read_bytes()[:-100_000])
    key = exam.page.evaluate("examPage.key()")
    exam.page.set_input_files(".drop input", str(broken))
    message = exam.page.locator(".message.error")
    expect(message).to_contain_text("像素数据不完整", timeout=PATIENCE_MS)
    assert "WANG" not in (message.text_content() or "")
    assert exam.page.evaluate("examPage.key()") == key


def test_the_keyboard_is_enough(exam: Reader) -> None:
    exam.page.locator(".thumb").first.focus()
    expect(exam.page.locator(".thumb").first).to_have_attribute("aria-selected", "true")
    for key, place in (("Right", 1), ("Right", 2), ("Left", 1), ("End", 7), ("Right", 7), ("Home", 0)):
        exam.page.keyboard.press(key if key in ("End", "Home") else f"Arrow{key}")
        expect(exam.page.locator(".thumb").nth(place)).to_be_focused()
        expect(exam.page.locator('.thumb[aria-selected="true"]')).to_be_focused()
    exam.page.focus("#question textarea")
    exam.page.keyboard.type("一")
    exam.page.keyboard.press("Shift+Enter")
    exam.page.keyboard.type("二")
    assert exam.page.input_value("#question textarea") == "一\n二"
    exam.page.keyboard.press("Enter")
    assert exam.waits_for("done")["question"] == "一\n二"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    exam.page.keyboard.press("Tab")
    assert exam.page.evaluate(outline) == "solid"


def test_template_questions_follow_the_site(exam: Reader) -> None:
    exam.page.select_option(".templates select", label="甲状腺")
    exam.page.get_by_text("请描述该甲状腺超声图像的所见。").click()
    expect(exam.page.locator("#question textarea")).to_have_value("请描述该甲状腺超声图像的所见。")


def test_an_exam_that_is_removed_is_forgotten(exam: Reader, house: House) -> None:
    exam.removes()
    expect(exam.page.locator(".thumb")).to_have_count(0)
    asked = len(house.evil.asked)
    exam.asks("请描述。")
    expect(exam.page.get_by_text("请先放入检查图像")).to_be_visible(timeout=PATIENCE_MS)
    assert len(house.evil.asked) == asked


def test_a_page_that_is_closed_drops_its_exam_and_stops_its_answer(browser: Browser, house: House) -> None:
    reader = Reader(browser, house.page)
    reader.gives(CINE)
    reader.picks("a", "slow")
    house.slow.hung_up.clear()
    reader.asks("请描述。")
    expect(reader.page.locator(".turn .answer").last).to_contain_text("结节。", timeout=PATIENCE_MS)
    reader.page.close()
    assert house.slow.hung_up.wait(20)


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, house: House) -> None:
    phone = Reader(browser, house.page, 390, 844)
    phone.picks("a", house.real)
    phone.picks("b", "evil")
    phone.gives(CINE)
    phone.asks_and_waits("请描述该超声图像的所见，并给出诊断。")
    wide = "[...document.querySelectorAll('.gradio-container *')].filter(e => !e.closest('.strip') && e.offsetWidth > 0"
    wide += " && e.getBoundingClientRect().right > innerWidth + 1).length"
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.page.evaluate(wide) == 0
    assert phone.hosts <= {"127.0.0.1", ""} and not phone.errors
    phone.page.close()


def test_markup_that_got_into_the_page_would_not_run(reader: Reader) -> None:
    """The last line of defence: the page's own rules, whatever a component lets through."""
    reader.page.evaluate("text => document.querySelector('.notes').innerHTML = text", SCRIPT)
    reader.page.wait_for_timeout(500)
    assert reader.page.evaluate("globalThis.hacked") is None


def test_everything_works_behind_a_password(browser: Browser, house: House, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("密 word:1\n", encoding="utf-8")
    with exam_page(house.controller, tmp_path / "locked", "--password-file", str(secret)) as locked:
        stranger = browser.new_page()
        assert stranger.request.get(locked.address).status == 401
        stranger.close()
        owner = Reader(browser, locked, password="密 word:1")
        owner.picks("a", "evil")
        owner.gives(CINE)
        assert owner.asks_and_waits("请描述。")["answer"] == EVIL_ANSWER
        owner.page.close()


def test_the_note_is_on_the_page(reader: Reader) -> None:
    note = reader.page.get_by_role("note")
    expect(note).to_be_visible()
    assert "不是医疗器械" in (note.text_content() or "")
    assert reader.page.evaluate("document.documentElement.lang") == "zh-CN"
