"""Seeded splits: shares, stability, connected studies, the hash."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from llava_ultra_ext.data.splits import make_split, parse_shares, place, split_hash

SHARES = (0.8, 0.1, 0.1)


def test_place_is_the_hash_of_seed_and_study() -> None:
    digest = hashlib.sha256(b"3:study-7").hexdigest()
    assert place("study-7", 3) == pytest.approx(int(digest[:16], 16) / 2**64, abs=1e-12)


def test_shares_are_met() -> None:
    counts = Counter(make_split({str(number): () for number in range(10000)}, SHARES, 0).values())
    assert counts["train"] == pytest.approx(8000, abs=150)
    assert counts["validate"] == pytest.approx(1000, abs=120)
    held_out = make_split({str(number): () for number in range(500)}, (0, 0.5, 0.5), 0)
    assert set(held_out.values()) == {"validate", "test"}


def test_new_studies_move_no_old_ones_and_order_does_not_matter() -> None:
    old = {str(number): () for number in range(300)}
    more = {**{f"new-{number}": () for number in range(300)}, **dict(reversed(old.items()))}
    split, grown = make_split(old, SHARES, 5), make_split(more, SHARES, 5)
    assert {study: grown[study] for study in old} == split
    assert make_split(old, SHARES, 6) != split


def test_a_new_study_that_shares_a_picture_may_move_old_ones() -> None:
    old = {f"{number:03}": [f"own {number}"] for number in range(1, 300)}
    split = make_split(old, SHARES, 0)
    moved = next(study for study in old if split[study] != make_split({"000": ()}, SHARES, 0)["000"])
    grown = make_split({**old, "000": [f"own {int(moved)}"]}, SHARES, 0)
    assert grown[moved] == grown["000"] != split[moved]
    assert {study: grown[study] for study in old if study != moved} == {s: v for s, v in split.items() if s != moved}


def test_connected_studies_go_where_the_smallest_id_goes() -> None:
    alone = make_split({f"{number:03}": () for number in range(300)}, SHARES, 0)
    # 000 and 299 meet through 150 only.
    keys = {f"{number:03}": [f"own {number}"] for number in range(300)}
    for pair in ((0, 150), (150, 299), (20, 21)):
        for number in pair:
            keys[f"{number:03}"].append(f"shared {pair}")
    joined = make_split(dict(reversed(keys.items())), SHARES, 0)
    expected = {**alone, "150": alone["000"], "299": alone["000"], "021": alone["020"]}
    assert joined == expected


def test_hash_of_a_split() -> None:
    expected = hashlib.sha256(b"a\ttest\nb\ttrain").hexdigest()[:16]
    assert split_hash([("b", "train"), ("a", "test"), ("b", "train")]) == expected
    assert split_hash([("b", "test"), ("a", "test")]) != expected


@pytest.mark.parametrize("given", ["0.8,0.1", "0.8,0.1,0.2", "a,b,c", "1.2,-0.1,-0.1", "nan,0.5,0.5", ""])
def test_bad_shares_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"as in 0\.8,0\.1,0\.1"):
        parse_shares(given)
