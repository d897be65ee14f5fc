"""The secret and what is derived from it."""

import os
import stat

import pytest

from llava_ultra_ext.data.deidentify.keys import LARGEST_SHIFT, VARIABLE, Secret, create_secret, load_secret, main

SECRET = Secret(bytes(range(32)))


def test_a_secret_is_made_once_for_its_owner_only(tmp_path):
    path = tmp_path / "keys" / "secret"
    assert main([str(path)]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(path.read_text().strip()) == 64
    assert load_secret(path) == Secret(bytes.fromhex(path.read_text().strip()))
    with pytest.raises(ValueError, match="already"):
        create_secret(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_read_is_refused(tmp_path, mode):
    path = create_secret(tmp_path / "secret")
    os.chmod(path, mode)
    with pytest.raises(ValueError, match="600"):
        load_secret(path)


@pytest.mark.parametrize("text", ["", "00" * 31, "zz" * 32, "00" * 33])
def test_what_is_no_secret_is_refused_and_not_shown(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match="64 hexadecimal") as caught:
        load_secret()
    assert not text or text not in str(caught.value)


def test_the_environment_may_hold_it(monkeypatch):
    monkeypatch.setenv(VARIABLE, bytes(range(32)).hex() + "\n")
    assert load_secret() == SECRET
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ValueError, match="llava-ultra secret"):
        load_secret()


def test_pseudonyms_depend_on_secret_kind_and_value():
    values = {SECRET.pseudonym(kind, value) for kind in ("patient", "accession") for value in ("1", "2")}
    assert len(values | {Secret(bytes(32)).pseudonym("patient", "1")}) == 5
    assert all(len(value) == 16 and set(value) <= set("0123456789abcdef") for value in values)
    assert SECRET.pseudonym("patient", " １23 ") == SECRET.pseudonym("patient", "123")
    assert repr(SECRET) == "Secret()"


def test_uids_are_uids():
    uid = SECRET.uid("1.2.3")
    assert uid == SECRET.uid("1.2.3") != SECRET.uid("1.2.4") and uid.startswith("2.25.") and len(uid) <= 64


def test_shifts_fill_their_range_without_zero():
    shifts = [SECRET.patient(str(number)).shift_days for number in range(12000)]
    assert set(shifts) == set(range(-LARGEST_SHIFT, LARGEST_SHIFT + 1)) - {0}
    with pytest.raises(ValueError, match="empty"):
        SECRET.patient(" ")
