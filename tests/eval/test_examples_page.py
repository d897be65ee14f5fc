"""The page of examples: its content, that strangers' text is inert, and that its filter works in a real browser."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_ultra_ext.eval import examples_page
from llava_ultra_ext.eval.gold import Gold
from llava_ultra_ext.eval.predictions import Answers

pytest.importorskip("jinja2", reason="the page needs jinja2")

SHOWN = {"zh": "char", "en": "13a"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=1">"\'>&lt;'


class Page(HTMLParser):
    """Elements with their attributes, and the text of each example."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "article":
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def gold(number: int, answer: str = "左肺", text: str = "哪侧？", **more: Any) -> Gold:
    closed = more.get("closed", False)
    tags = {"lang": more.get("lang", "zh"), "answer_type": "CLOSED" if closed else "OPEN", **more.pop("tags", {})}
    return Gold(f"q{number}", number, text, answer, tags=tags, **more)


def answers(name: str, *texts: str, metadata: dict[str, Any] | None = None) -> Answers:
    ids = [f"q{number}" for number in range(1, len(texts) + 1)]
    return Answers(name, "a.jsonl", dict(zip(ids, texts, strict=True)), metadata or {})


def page(golds: list[Gold], *models: Answers, **more: Any) -> str:
    return examples_page.page(golds, models, title=more.pop("title", "SLAKE"), shown=SHOWN, **more)


def pictures(folder: Path) -> Path:
    for name, shade in (("a", 40), ("b", 200)):
        Image.new("RGB", (400, 300), (shade, 0, 0)).save(folder / f"{name}.png")
    shutil.copy(folder / "a.png", folder / "copy.png")
    return folder


def test_an_example_shows_question_truth_and_what_differs() -> None:
    html = page(
        [gold(1, "左肺上叶"), gold(2, "是", closed=True)],
        answers("llava", "右肺上叶", "是的"),
        answers("ultra", "左肺上叶。", "否"),
    )
    one, two = Page(html).texts
    assert "哪侧？" in one and "✗ wrong F1 75" in one and "✓ right F1 100" in one and "F1" not in two
    assert "<ins>右</ins><del>左</del>肺上叶</dd>" in html and "左肺上叶。</dd>" in html and "是的</dd>" in html
    assert "tokens of char (zh)" in html and "2 of 2 questions" in html


def test_filters_read_data_attributes() -> None:
    metadata = {"q1": {"frames": [[1]], "frame_scores": [[0.25, 0.5]]}}
    golds = [
        gold(
            1,
            images=("a.png", "b.png"),
            valid_frames=(0,),
            tags={"modality": "CT", "content_type": "Organ"},
            exam_id="US-9",
        ),
        gold(2, "Yes", "Is it?", closed=True, lang="en", tags={"modality": "MRI", "content_type": "Size & Shape"}),
    ]
    found = Page(page(golds, answers("llava", "右肺", "yes", metadata=metadata), answers("ultra", "左肺", "Yes")))
    first, second = found.of("article")
    assert (first["data-lang"], first["data-answer_type"], first["data-modality"]) == ("zh", "OPEN", "CT")
    assert (first["data-m0"], first["data-m1"], first["data-disagree"], first["data-frame"]) == (
        "wrong",
        "right",
        "1",
        "any A",
    )
    assert first["data-text"] == "q1\nus-9\n哪侧?\n左肺\n右肺\n左肺"
    assert (second["data-m0"], second["data-m1"], second["data-content_type"]) == ("right", "right", "Size & Shape")
    assert "data-disagree" not in second and "data-frame" not in second
    names = [attributes["name"] for attributes in found.of("select")]
    assert names == ["lang", "answer_type", "modality", "content_type", "m0", "m1", "frame"]


def test_filters_that_tell_nothing_apart_are_left_out() -> None:
    found = Page(page([gold(1)], answers("llava", "右肺")))
    assert [attributes["name"] for attributes in found.of("select")] == ["m0"]
    assert [attributes["name"] for attributes in found.of("input")] == ["text"]


def test_each_picture_is_embedded_once_however_often_it_is_shown(tmp_path: Path) -> None:
    golds = [gold(number, images=("a.png", "b.png", "copy.png")) for number in (1, 2, 3)]
    html = page(golds, answers("llava", "x", "y", "z"), image_folder=str(pictures(tmp_path)))
    uris = re.findall(r"url\(data:image/jpeg;base64,([^)]+)\)", html)
    assert len(uris) == len(set(uris)) == 2
    sizes = [Image.open(io.BytesIO(base64.b64decode(uri))).size for uri in uris]
    assert sizes == [(320, 240), (320, 240)]
    assert re.findall(r'class="pic (p\d|none)"', html) == ["p0", "p1", "p0"] * 3


def test_absent_damaged_and_outside_pictures_are_empty_frames(tmp_path: Path) -> None:
    folder = pictures(tmp_path) / "inner"
    folder.mkdir()
    (folder / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    html = page(
        [gold(1, images=("none.png", "cut.png", "../a.png", str(tmp_path / "a.png"), "n\0.png"))],
        answers("m", "x"),
        image_folder=str(folder),
    )
    assert html.count(">picture not found<") == 5 and "data:image" not in html
    assert str(tmp_path) not in html and "none.png" not in html


def test_without_image_folder_there_are_no_frames_unless_something_is_known_of_them() -> None:
    golds = [gold(1, images=("a.png",)), gold(2, images=("a.png", "b.png"))]
    html = page(golds, answers("m", "x", "y", metadata={"q2": {"frames": [[1]], "frame_scores": [[-0.5, 0.25]]}}))
    first, second = Page(html).texts
    assert "frame 1" not in first and "frame 2 of 2" in second and "-0.500" in second


def test_chosen_and_valid_frames_are_marked_for_each_model(tmp_path: Path) -> None:
    golds = [gold(1, images=("a.png", "b.png"), valid_frames=(1,))]
    a = answers("one", "x", metadata={"q1": {"frames": [[0]], "frame_scores": [[0.75, 0.5]]}})
    b = answers("two", "左肺", metadata={"q1": {"frames": [[1]], "frame_scores": [[-1, -0.125]]}})
    html = page(golds, a, b, answers("three", "x"), image_folder=str(pictures(tmp_path)))
    first, second = html.split("<figure")[1:]
    assert ">valid<" not in first and ">valid<" in second.split("</figure>")[0]
    rows = [
        re.findall(r'"letter">(\w)</span>(?: <span class="(bad|picked)">chosen</span>)?</span><span>(\S+?)<', one)
        for one in (first, second)
    ]
    assert rows == [[("A", "bad", "0.750"), ("B", "", "-1.000")], [("A", "", "0.500"), ("B", "picked", "-0.125")]]
    assert html.count("· wrong frame") == 1


def test_text_of_strangers_is_inert() -> None:
    golds = [gold(1, EVIL, EVIL, exam_id=EVIL, tags={"modality": EVIL}), gold(2, tags={"modality": "CT"})]
    html = page(golds, answers(EVIL, EVIL + "x", "{{ 7*7 }}"), title=EVIL)
    found = Page(html)
    assert len(found.of("script")) == 1 and not found.of("img") and "<script>document" not in html
    handlers = [name for _, attributes in found.found for name in attributes if name.startswith("on")]
    assert handlers == [] and "{{ 7*7 }}" in html
    assert found.of("article")[0]["data-modality"] == EVIL and EVIL in found.texts[0]


def test_the_policy_lets_this_script_and_style_run_and_nothing_else() -> None:
    html = page([gold(1)], answers("m", "x"))
    (policy,) = [attributes["content"] for attributes in Page(html).of("meta") if "http-equiv" in attributes]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    for kind in ("script", "style"):
        content = re.search(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        assert content is not None
        own = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{own}'" in policy
    assert not re.search(r"(?:src|href)\s*=|https?://|@import", html)


def test_a_part_of_the_questions_is_named_as_such() -> None:
    golds = [gold(number) for number in range(1, 21)]
    html = page(golds, answers("a", *["左肺"] * 20), answers("b", *["右肺"] * 20), count=5, seed=3)
    assert len(Page(html).of("article")) == 5
    assert "5 of 20 questions. They are no fair sample" in html and "(seed 3)" in html


def test_an_empty_answer_is_said_to_be_empty() -> None:
    assert "(empty)" in Page(page([gold(1)], answers("m", ""))).texts[0]


def test_pictures_of_16_bits_are_stretched() -> None:
    picture = Image.fromarray(np.array([[1000, 1000], [3000, 3000]], dtype=np.uint16))
    uri = examples_page.thumbnail(picture.resize((64, 64), Image.Resampling.NEAREST))
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("L"))
    assert grey[5, 5] < 10 and grey[60, 60] > 245


def test_missing_jinja2_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r"jinja2 is not installed.*pip install 'llava_ultra_ext\[eval\]'"):
        page([gold(1)], answers("m", "x"))


def test_the_page_holds_as_many_examples_as_were_asked_for() -> None:
    golds = [gold(number, "左肺上叶见结节" * 5, images=("a.png", "b.png")) for number in range(1, 2001)]
    models = [answers(name, *["右肺上叶可见低回声结节" * 5] * 2000) for name in "ab"]
    html = page(golds, *models, count=500)
    assert html.count("<article") == 500


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the filter is not tried in a browser")
@pytest.mark.parametrize(
    ("fragment", "shown"),
    [
        ("", ["q1", "q2", "q3"]),
        ("lang=en", ["q3"]),
        ("m0=wrong&m1=right", ["q1"]),
        ("disagree=1", ["q1"]),
        ("frame=A", ["q2"]),
        ("text=%E5%93%AA%20%E5%8F%B3%E8%82%BA", ["q1"]),  # 哪 右肺: each word somewhere
        ("text=%EF%BC%AC%EF%BC%B5%EF%BC%AE%EF%BC%A7", ["q3"]),  # ＬＵＮＧ
        ("text=nowhere", []),
        ("content_type=Size+%26+Shape", ["q2"]),
        ("content_type=unknown&other=1", ["q1", "q2", "q3"]),
    ],
)
def test_the_filter_in_a_browser(browser_page: Path, fragment: str, shown: list[str]) -> None:
    dom = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"),
            *(
                f"--user-data-dir={browser_page.parent / 'profile'}",
                "--dump-dom",
                f"{browser_page.as_uri()}#{fragment}",
            ),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    cards = dom.split("<article")[1:]
    assert [re.search(r"<h2>(.*?)</h2>", card)[1] for card in cards if not re.search(r"^[^>]*\shidden", card)] == shown  # type: ignore[index]
    assert f">{len(shown)} of 3 shown</output>" in dom and "<title>Examples: SLAKE</title>" in dom
    assert ('id="none" hidden' in dom) == bool(shown)


@pytest.fixture(scope="module")
def browser_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = {"q2": {"frames": [[0]], "frame_scores": [[0.5, 0.25]]}}
    golds = [
        gold(1, tags={"content_type": "Organ"}),
        gold(2, "大", "多大？", images=("a.png", "b.png"), valid_frames=(1,), tags={"content_type": "Size & Shape"}),
        gold(3, "Left lung", "Where?", lang="en", tags={"content_type": "Organ"}),
    ]
    html = page(
        golds, answers("a", "右肺", EVIL, "left lung", metadata=metadata), answers("b", "左肺", EVIL, "left lung")
    )
    target = tmp_path_factory.mktemp("page") / "examples.html"
    target.write_text(html, encoding="utf-8")
    return target
