"""Reading a training file: every fault is found at once, before training, and said so that it can be repaired."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llava_ultra_ext.data.exam import BadSample
from llava_ultra_ext.data.manifest import BadSamples, load_manifest, read_records


def exam(id, images, *, findings="结节", **extra):
    tokens = "<image>\n" * len(images)
    talk = [{"from": "human", "value": f"{tokens}问"}, {"from": "gpt", "value": "答"}]
    return {"id": id, "image": images, "findings": findings, "conversations": talk, **extra}


@pytest.fixture
def load(tmp_path, pictures):
    def run(records, **options):
        path = tmp_path / "train.json"
        path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        return load_manifest(path, **{"image_folder": str(pictures), **options})

    return run


def test_good_exams_keep_their_order(load):
    exams, bad = load([exam("b", ["2.png", "1.png"]), exam("a", ["0.png"]), {"id": "t", "conversations": TEXT}])
    assert [item.id for item in exams] == ["b", "a", "t"]
    assert exams[0].images == ("2.png", "1.png") and len(bad) == 0


TEXT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON .line 1, column 1"),
        ('[{"id": 1},]', "is not JSON .line 1.*A JSON list of samples is needed"),
        ('{"id": 1}', r"holds a JSON dict; a list of samples is needed, \[\{…\}"),
        ("[]", "the list is empty; at least one sample"),
        ('{"id": 1}\n{"id": 2}\n', "holds JSON lines; a JSON list is needed. Convert it: python -c"),
    ],
)
def test_files_that_are_no_json_list(tmp_path, content, message):
    path = tmp_path / "train.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"--data_path {path}: ")


def test_the_command_for_json_lines_works(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"id": "甲"}\n\n{"id": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_records(path)
    command = str(caught.value).split("Convert it: ")[1].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    assert read_records(f"{path}.json") == [{"id": "甲"}, {"id": 2}]


def test_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match=r"none.json: cannot be read .No such file"):
        read_records(tmp_path / "none.json")
    (tmp_path / "gbk.json").write_bytes("[“甲状腺”]".encode("gbk"))
    with pytest.raises(ValueError, match=r"is not UTF-8. Convert it, for example from GBK: iconv"):
        read_records(tmp_path / "gbk.json")
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_records(tmp_path / "bom.json") == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_frames": 0}, "--max_frames 0: an exam keeps at least one frame"),
        ({"on_bad_sample": "ignore"}, "--on_bad_sample ignore: not a known value. Allowed: error, skip"),
        ({"image_folder": None}, "--image_folder is not given, but samples have pictures"),
    ],
)
def test_bad_flags(load, options, message):
    with pytest.raises(ValueError, match=message):
        load([exam("a", ["0.png"])], **options)


def faulty(pictures):
    """Samples with one fault each: reason -> record."""
    (pictures / "empty.png").touch()
    (pictures / "text.png").write_bytes(b"hello")
    (pictures / "cut.png").write_bytes((pictures / "3.png").read_bytes()[:-30])
    (pictures / "x.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (pictures.parent / "outside.png").write_bytes((pictures / "3.png").read_bytes())
    return {
        "missing_picture": exam("s1", ["0.png", "none.png"]),
        "empty_picture": exam("s2", ["empty.png"]),
        "truncated_picture": exam("s3", ["cut.png"]),
        "not_a_picture": exam("s4", ["text.png"]),
        "dicom_picture": exam("s5", ["x.dcm"]),
        "outside_folder": exam("s6", ["../outside.png"]),
        "image_tokens": exam("s7", ["0.png"]) | {"image": ["0.png", "1.png"]},
        "no_images": exam("s8", []),
    }


MESSAGES = {
    "missing_picture": "sample s1: picture 2 of 2 does not exist below --image_folder. Check the folder and the name.",
    "empty_picture": "sample s2: picture 1 of 1 is an empty file (0 bytes). Export it again.",
    "truncated_picture": "sample s3: picture 1 of 1 is damaged or cut off. Export it again.",
    "not_a_picture": "sample s4: picture 1 of 1 is not a picture that Pillow can read. Use PNG or JPEG.",
    "dicom_picture": "sample s5: picture 1 of 1 is a DICOM file. Convert it to PNG and remove identifying data first.",
    "outside_folder": "sample s6: picture 1 of 1 lies outside --image_folder. Give a path relative to that folder.",
    "image_tokens": "sample s7: 2 pictures and 1 <image> tokens;",
    "no_images": "sample s8: `image` is an empty list;",
}


def test_error_lists_every_fault(load, pictures):
    with pytest.raises(ValueError) as caught:
        load([exam("good", ["0.png"]), *faulty(pictures).values()])
    text = str(caught.value)
    assert "8 bad samples" in text and "--on_bad_sample skip" in text
    for message in MESSAGES.values():
        assert message in text
    assert "good" not in text and "none.png" not in text and "结节" not in text


def test_skip_leaves_them_out_and_reports(load, pictures, tmp_path, caplog):
    records = [*faulty(pictures).values(), exam("good", ["0.png"])]
    exams, bad = load(records, on_bad_sample="skip")
    assert [item.id for item in exams] == ["good"]
    assert bad.reasons == dict.fromkeys(MESSAGES, 1)
    assert "8 bad samples" in caplog.text
    bad.write(tmp_path / "out" / "bad_samples.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out" / "bad_samples.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"s{number}" for number in range(1, 9)]
    assert set(rows[0]) == {"id", "reason", "message"}
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["bad_samples.jsonl"]


def test_skip_needs_a_good_sample(load):
    with pytest.raises(ValueError, match=r"no sample is left. 1 bad samples .missing_picture 1"):
        load([exam("a", ["none.png"])], on_bad_sample="skip")


def test_an_error_lists_ten():
    report = BadSamples(tuple(BadSample(f"s{number}", "why", "what.") for number in range(13)))
    lines = report.summary().splitlines()
    assert lines[0] == "13 bad samples (why 13):" and lines[10] == "sample s9: what." and lines[11] == "… and 3 more"


@pytest.mark.parametrize("strategy", ["attention", "likelihood"])
def test_a_teacher_needs_findings_of_exams_with_a_choice(load, strategy):
    records = [exam("one", ["0.png"], findings=None), exam("many", ["0.png", "1.png"], findings=" ")]
    with pytest.raises(
        ValueError, match=f"(?s)1 bad samples .*sample many: --adr_strategy {strategy} needs `findings`"
    ) as e:
        load(records, strategy=strategy)
    assert "sample one" not in str(e.value)
    for other in ("none", "feature", "first", "random", "all"):
        assert len(load(records, strategy=other)[0]) == 2


def test_known_scores_replace_findings(load):
    records = [exam("many", ["0.png", "1.png"], findings=None, exam_id="E")]
    assert len(load(records, strategy="likelihood", frame_scores={"E": {"0.png": -1.0, "1.png": -2.0}})[0]) == 1
    with pytest.raises(ValueError, match=r"needs `findings`"):
        load(records, strategy="likelihood", frame_scores={"E": {"0.png": -1.0}})
    with pytest.raises(ValueError, match=r"needs `findings`"):
        load(records, strategy="attention", frame_scores={"E": {"0.png": -1.0, "1.png": -2.0}})


def test_oracle_needs_valid_frames(load):
    with pytest.raises(ValueError, match=r"sample x: --adr_strategy oracle needs `valid_frames`"):
        load([exam("x", ["0.png", "1.png"]), exam("one", ["0.png"])], strategy="oracle")
    assert load([exam("x", ["0.png", "1.png"], valid_frames=[1])], strategy="oracle")[0][0].valid_frames == (1,)


def test_a_picture_is_checked_once(load, monkeypatch):
    from llava_ultra_ext.data import manifest

    asked = []
    original = manifest.check_pictures
    monkeypatch.setattr(
        manifest, "check_pictures", lambda paths, workers: asked.extend(paths) or original(paths, workers)
    )
    load([exam("a", ["0.png", "1.png"]), exam("b", ["1.png"])])
    assert [path.rsplit("/", 1)[1] for path in asked] == ["0.png", "1.png"]
