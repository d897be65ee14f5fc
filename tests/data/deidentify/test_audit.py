"""The audit holds counts, and cannot hold anything else."""

import json

import pytest

from llava_ultra_ext.data.deidentify.audit import Entry, append
from llava_ultra_ext.data.deidentify.quarantine import REASONS, Quarantine

EXAM = "0123456789abcdef"


def test_lines_are_added_and_a_torn_one_spoils_none(tmp_path):
    path = tmp_path / "audit.jsonl"
    append(path, Entry(EXAM, "text", {"name": 2, "phone": 0}))
    with open(path, "a") as file:
        file.write('{"exam": "01')
    append(path, Entry(EXAM, "pixels", {}, quarantined="no_scan_region"))
    lines = path.read_text().split("\n")
    assert json.loads(lines[0]) == {"exam": EXAM, "step": "text", "removed": {"name": 2}}
    assert json.loads(lines[2]) == {"exam": EXAM, "step": "pixels", "removed": {}, "quarantined": "no_scan_region"}
    assert len(lines) == 4 and path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("US张伟", "text", {}),
        (EXAM, "张伟", {}),
        (EXAM, "text", {"张伟": 1}),
        (EXAM, "text", {"name": "张伟"}),
        (EXAM, "text", {"name": -1}),
        (EXAM, "text", {}, "张伟"),
    ],
)
def test_anything_else_is_refused_and_not_shown(arguments):
    with pytest.raises(ValueError) as caught:
        Entry(*arguments)
    assert "张伟" not in str(caught.value)


def test_every_reason_says_what_to_do():
    for reason in REASONS:
        assert Quarantine(reason).reason == reason and reason in str(Quarantine(reason))
