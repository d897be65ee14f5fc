"""`llava-ultra cache`: nothing is computed twice, nothing stale is used, and what is there is kept, come what may."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import counted_build
import pytest
import torch
from exam_case import EXAM, Case
from PIL import Image
from run_llava import environment
from safetensors import safe_open

from llava_ultra_ext import cli
from llava_ultra_ext.train import cache
from llava_ultra_ext.vision.feature_cache import (
    HEADER,
    SHARDS,
    CacheHeader,
    FeatureCache,
    ShardWriter,
    picture_key,
    shards,
)
from llava_ultra_ext.vision.tower import FusedVisionTower

PICTURES = 18
"""Of `exam_folder`; no two are equal."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the cache comes to be."""
    return tmp_path / "features"


def flags(case: Case, folder: Path, **changes: Any) -> list[str]:
    """A build of the case's pictures; a value of None leaves a flag out."""
    values = {name: case.flags[name] for name in ("data_path", "image_folder", "clip_tower", "sam_tower")}
    values |= {"feature_cache": folder, "dtype": "float32", "encoder_batch_size": 4, "workers": 2, **changes}
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def data(case: Case, folder: Path) -> list[str]:
    """For verify and prune."""
    return [
        *("--feature_cache", str(folder), "--data_path", str(case.flags["data_path"])),
        *("--image_folder", str(case.folder)),
    ]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames each call of the encoders had, from here on."""
    calls: list[int] = []
    encode = FusedVisionTower.__call__

    def counted(tower: FusedVisionTower, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(len(pixels))
        return encode(tower, pixels)

    monkeypatch.setattr(FusedVisionTower, "__call__", counted)
    return calls


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def records(folder: Path) -> dict[str, torch.Tensor]:
    """Every record, by key."""
    found = FeatureCache(folder)
    return {key: found.read([key])[0] for key in found._place}


def key(case: Case, name: str) -> str:
    return picture_key(case.folder / name)


class TestBuild:
    def test_every_picture_once_with_what_the_tower_says_of_it(
        self, case: Case, folder: Path, encoded: list[int]
    ) -> None:
        assert cache.main(["build", *flags(case, folder)]) == 0
        assert encoded == [4, 4, 4, 4, 2]
        tower = FusedVisionTower({kind: str(case.flags[f"{kind}_tower"]) for kind in ("clip", "sam")}, name="")
        tower.load_model()
        found = FeatureCache(folder)
        assert len(found) == PICTURES
        for name in case.records[EXAM]["image"]:
            pixels = tower.image_processor.preprocess(Image.open(case.folder / name))["pixel_values"]
            want, got = tower(pixels), tower(found.read([key(case, name)]))
            for kind in ("clip", "sam"):
                torch.testing.assert_close(got[kind], want[kind], rtol=1e-5, atol=1e-5)  # batches of 4 and of 1

    def test_a_second_build_computes_nothing_and_loads_nothing(
        self, case: Case, folder: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache.main(["build", *flags(case, folder)])
        before = contents(folder)
        encoded.clear()
        monkeypatch.setattr(FusedVisionTower, "load_model", lambda *_: pytest.fail("weights were read"))
        assert cache.main(["build", *flags(case, folder, encoder_batch_size=5)]) == 0
        assert encoded == [] and contents(folder) == before

    def test_only_what_is_new_is_computed(self, case: Case, folder: Path, encoded: list[int]) -> None:
        """A changed picture and a new one are; a renamed one, and one that stands in the file twice, are not."""
        cache.main(["build", *flags(case, folder)])
        before = records(folder)
        encoded.clear()
        Image.new("RGB", (64, 48), (90, 20, 20)).save(case.picture())
        Image.new("RGB", (64, 48), (20, 90, 20)).save(case.folder / "frames/new.png")
        shutil.copy(case.picture(2), case.folder / "frames/copy.png")
        exam = case.records[EXAM]
        exam["image"] += ["frames/new.png", "frames/copy.png", exam["image"][0]]
        exam["conversations"][0]["value"] = "<image>\n" * len(exam["image"]) + "请描述。"
        case.save()
        assert cache.main(["build", *flags(case, folder)]) == 0
        assert encoded == [2]
        after = records(folder)
        assert len(after) == PICTURES + 2 and all(torch.equal(after[name], before[name]) for name in before)

    def test_two_names_of_one_content_are_computed_once(self, case: Case, folder: Path, encoded: list[int]) -> None:
        shutil.copy(case.picture(1), case.picture(2))
        assert cache.main(["build", *flags(case, folder)]) == 0
        assert sum(encoded) == len(FeatureCache(folder)) == PICTURES - 1

    def test_question_files_are_read_too(self, case: Case, folder: Path, encoded: list[int]) -> None:
        questions = case.folder / "questions.jsonl"
        rows = [{"question_id": 1, "text": "?", "image": case.records[EXAM]["image"]}, {"question_id": 2, "text": "?"}]
        questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert cache.main(["build", *flags(case, folder, data_path=questions)]) == 0
        assert encoded == [4]
        more = [*flags(case, folder, data_path=questions), "--data_path", str(case.flags["data_path"])]
        assert cache.main(["build", *more]) == 0
        assert sum(encoded) == PICTURES

    def test_bad_samples_are_counted_and_left_out(
        self, case: Case, folder: Path, encoded: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        """As `--on_bad_sample skip` leaves them out of training."""
        del case.records[EXAM]["conversations"]
        case.save()
        with caplog.at_level(logging.WARNING):
            assert cache.main(["build", *flags(case, folder)]) == 0
        assert sum(encoded) == PICTURES - 4 and "1 bad samples are left out; training lists them" in caplog.text

    def test_an_undecodable_picture_is_listed_and_the_others_are_kept(
        self, case: Case, folder: Path, encoded: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        case.picture(0).write_bytes(case.picture(0).read_bytes()[:200])
        case.picture(1).unlink()
        with caplog.at_level(logging.WARNING):
            assert cache.main(["build", *flags(case, folder)]) == 1
        assert sum(encoded) == len(FeatureCache(folder)) == PICTURES - 2
        told = caplog.records[-1].getMessage().splitlines()
        assert told[0].startswith("2 pictures could not be decoded and have no features; all others have. Export")
        assert told[1:] == [
            f"{case.records[EXAM]['image'][0]}: cannot be decoded (OSError)",
            f"{case.records[EXAM]['image'][1]}: No such file or directory",
        ]

    def test_it_says_beforehand_how_much_it_will_write(
        self, case: Case, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """16 tokens of 32 and 64 channels in float16: 3,072 bytes; int8: half of that and 4 bytes a token and kind."""
        with caplog.at_level(logging.INFO):
            cache.main(["build", *flags(case, folder, dtype="float16")])
            cache.main(["build", *flags(case, folder.with_name("int8"), dtype="int8")])
        assert "18 pictures, 0 in the cache already; 3.1 KB a frame, about 0.00 GB to write" in caplog.text
        assert "18 pictures, 0 in the cache already; 1.7 KB a frame" in caplog.text
        assert FeatureCache(folder).record_size * 2 == 3072
        assert FeatureCache(folder.with_name("int8")).record_size == 1536 + 4 * 2 * 16

    def test_a_picture_that_changes_while_it_is_read_has_no_stale_features(
        self, case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its key is of the content that was decoded."""
        cache.main(["build", *flags(case, folder)])
        old, content, decode = (
            key(case, case.records[EXAM]["image"][1]),
            case.picture().read_bytes(),
            cache.open_picture,
        )
        want = records(folder)[old]

        def change_before(file: Any) -> Any:
            if case.picture().read_bytes() == content and (not hasattr(file, "read") or file.getvalue() == content):
                Image.new("RGB", (64, 48), (90, 20, 20)).save(case.picture())
            return decode(file)

        monkeypatch.setattr(cache, "open_picture", change_before)
        shutil.rmtree(folder)
        cache.main(["build", *flags(case, folder, workers=1)])
        assert case.picture().read_bytes() != content
        torch.testing.assert_close(records(folder)[old], want, rtol=1e-5, atol=1e-5)


class TestRefused:
    """Before anything is written."""

    @pytest.fixture
    def refused(self, case: Case, folder: Path) -> Callable[..., str]:
        cache.main(["build", *flags(case, folder)])
        before = contents(folder)

        def start(**changes: Any) -> str:
            with pytest.raises(ValueError) as error:
                cache.main(["build", *flags(case, folder, **changes)])
            assert contents(folder) == before
            return str(error.value)

        return start

    def test_other_weights(self, case: Case, refused: Callable[..., str], tmp_path: Path) -> None:
        sam = shutil.copytree(case.flags["sam_tower"], tmp_path / "sam")
        content = bytearray((sam / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (sam / "model.safetensors").write_bytes(content)
        told = refused(sam_tower=sam)
        assert "holds other features (sam weights: " in told and "Give another folder, or the same flags." in told

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"sam_image_size": 192}, "sam image_size: 128 in the cache, 192 now"),
            ({"sam_token_merge": "pool"}, "sam sam_token_merge: unshuffle in the cache, pool now"),
            ({"mm_vision_select_layer": -1}, "clip clip_select_layer: -2 in the cache, -1 now"),
            ({"dtype": "int8"}, "stored float32, computed in float32; now int8, float32"),
            ({"compute_dtype": "bfloat16"}, "stored float32, computed in float32; now float32, bfloat16"),
            ({"encoder_batch_size": 0}, "--encoder_batch_size 0: must be 1 or more"),
            ({"vision_tower": "openai/clip"}, "--vision_tower openai/clip: is no tower of ours"),
            ({"data_path": "nowhere.json"}, "--data_path nowhere.json: cannot be read"),
        ],
    )
    def test_other_settings(self, refused: Callable[..., str], changes: dict[str, Any], named: str) -> None:
        assert named in refused(**changes)

    def test_no_room(self, case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = type(shutil.disk_usage("/"))(total=10**9, used=0, free=100_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(ValueError, match=r"about 0.00 GB are needed, 0.00 GB are free. Give a folder on a larger"):
            cache.main(["build", *flags(case, folder)])
        assert list(folder.iterdir()) == []
        assert cache.main(["build", *flags(case, folder, dtype="int8")]) == 0  # 18 times 1.7 KB

    def test_features_that_the_dtype_cannot_hold(
        self, case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And the folder may be used for another one at once: nothing is in it."""
        encode = FusedVisionTower.__call__
        monkeypatch.setattr(
            FusedVisionTower, "__call__", lambda tower, pixels: {k: v * 1e6 for k, v in encode(tower, pixels).items()}
        )
        with pytest.raises(ValueError, match=r"which float16 cannot hold\. Use --dtype bfloat16 or float32"):
            cache.main(["build", *flags(case, folder, dtype="float16")])
        assert cache.main(["build", *flags(case, folder, dtype="bfloat16")]) == 0


class TestFullDisk:
    def test_it_ends_cleanly_and_goes_on_when_there_is_room(
        self,
        case: Case,
        small_disk: Callable[[int], Path],
        encoded: list[int],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        disk = small_disk(72)  # of 18 records of 6 KB
        usage = type(shutil.disk_usage("/"))(total=10**9, used=0, free=10**9)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)  # what is free when it starts, others take
        monkeypatch.setattr(cache, "ShardWriter", lambda folder: ShardWriter(folder, shard_bytes=1))
        folder = disk / "features"
        assert cli.main(["cache", "build", *flags(case, folder, encoder_batch_size=2)]) == 1
        told = capsys.readouterr().err
        assert "a shard could not be written (" in told and "No space left on device" in told
        assert "Make room, then run the same command again: shards that are there are kept." in told
        kept = contents(folder)
        assert 2 <= len(kept) < 9 and all(name.endswith((".safetensors", ".json")) for name in kept)
        there = len(FeatureCache(folder))
        assert there == 2 * (len(kept) - 1)
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        encoded.clear()
        assert cli.main(["cache", "build", *flags(case, folder)]) == 0
        assert sum(encoded) == PICTURES - there
        assert {name: content for name, content in contents(folder).items() if name in kept} == kept


class TestStopped:
    """From outside, in the middle of a build."""

    def start(self, case: Case, folder: Path, seconds: float = 0.1, **ranks: str) -> Any:
        """A process of its own, forked: what this one has imported need not be imported again."""
        argv = ["build", *flags(case, folder, encoder_batch_size=1, workers=1)]
        log = folder.with_suffix(f".{ranks.get('RANK', '0')}.log")

        def build() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
            os.environ.update(ranks)
            os.dup2(os.open(folder.with_suffix(".stderr"), os.O_WRONLY | os.O_CREAT), 2)
            sys.stderr = os.fdopen(2, "w")
            raise SystemExit(counted_build.run(log, seconds, argv))

        process = multiprocessing.get_context("fork").Process(target=build)
        process.start()
        return process

    def encoded(self, folder: Path) -> list[str]:
        """Keys, as often as they were encoded, over all processes."""
        return [key for log in folder.parent.glob("features.*.log") for key in log.read_text().split()]

    def wait_for(self, folder: Path, shards: int, processes: list[Any]) -> None:
        deadline = time.monotonic() + 120
        while len(list(folder.glob(SHARDS))) < shards:
            assert time.monotonic() < deadline and all(process.is_alive() for process in processes)
            time.sleep(0.01)

    def test_ctrl_c_keeps_what_is_there(self, case: Case, folder: Path) -> None:
        process = self.start(case, folder)
        self.wait_for(folder, 3, [process])
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == 130
        assert (
            folder.with_suffix(".stderr")
            .read_text()
            .endswith(
                "llava-ultra cache: interrupted; features so far are kept, the same command goes on from there.\n"
            )
        )
        kept, before = set(FeatureCache(folder)._place), self.encoded(folder)
        assert 3 <= len(kept) < PICTURES and kept == set(before), "nothing that was encoded is lost"
        assert cache.main(["build", *flags(case, folder)]) == 0
        assert cache.main(["verify", *data(case, folder)]) == 0

    def test_kill_9_of_two_processes(self, case: Case, folder: Path) -> None:
        ranks = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
        processes = [self.start(case, folder, **rank) for rank in ranks]
        self.wait_for(folder, 5, processes)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
        kept, before = set(FeatureCache(folder)._place), self.encoded(folder)
        assert 5 <= len(kept) < PICTURES
        assert len(before) == len(set(before)) and len(set(before) - kept) <= 2 * 2  # one full shard, one batch
        lone = folder / "features-killed.partial"
        lone.write_bytes(b"half a shard")

        again = [self.start(case, folder, 0.0, **rank) for rank in ranks]
        for process in again:
            process.join(120)
            assert process.exitcode == 0
        after = self.encoded(folder)
        twice = {key for key in after if after.count(key) > 1}
        assert twice <= set(before) - kept, "only what was in flight is computed twice"
        assert len(set(after)) == len(FeatureCache(folder)) == PICTURES
        assert cache.main(["verify", *data(case, folder)]) == 0
        cache.main(["prune", *data(case, folder)])
        assert not lone.exists() and len(FeatureCache(folder)) == PICTURES

    def test_under_torchrun_a_bad_picture_of_one_rank_does_not_stop_the_other(self, case: Case, folder: Path) -> None:
        """The launcher ends every process when one ends with an error, so they end together."""
        first = sorted(name for record in case.records for name in _names(record))[0]  # rank 0's, its only fault
        for name in sorted(name for record in case.records for name in _names(record))[2::2]:
            (case.folder / name).unlink()  # rank 0 is done at once
        (case.folder / first).write_bytes(b"no picture")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
        command += [counted_build.__file__, str(folder.with_suffix(".0.log")), "0.5", "build"]
        command += flags(case, folder, encoder_batch_size=1)
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 1, done.stderr
        assert f"{first}: cannot be decoded (UnidentifiedImageError)" in done.stderr
        assert len(FeatureCache(folder)) == PICTURES // 2
        assert done.stderr.count("18 pictures, 0 in the cache already") == 1


def _names(record: dict[str, Any]) -> list[str]:
    given = record.get("image", [])
    return [given] if isinstance(given, str) else given


class TestCare:
    @pytest.fixture
    def built(self, case: Case, folder: Path) -> Path:
        """A cache of four shards of four pictures and one of two."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache, "ShardWriter", lambda path: ShardWriter(path, shard_bytes=1))
            cache.main(["build", *flags(case, folder)])
        assert len(list(folder.glob(SHARDS))) == 5
        return folder

    def test_info_says_what_is_there(self, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["cache", "info", "--feature_cache", str(built)]) == 0
        size = sum(path.stat().st_size for path in built.glob(SHARDS))
        header = CacheHeader.read(built)
        lines = capsys.readouterr().out.splitlines()
        assert lines == [
            f"{built}: 18 frames, {size / 1e9:.3f} GB in 5 shards",
            f"stored float32, computed in float32, {size / 18e3:.1f} KB a frame",
            f"clip: 16 x 32, weights {header.encoders['clip']['weights'][:16]}, 32 px",
            f"sam: 16 x 64, weights {header.encoders['sam']['weights'][:16]}, 128 px",
        ]
        assert 6.1 < size / 18e3 < 7  # 1,536 float32 and the shards' heads
        first = sorted(built.glob(SHARDS))[0]
        shutil.copy(first, built / "features-twice.safetensors")
        (built / "features-cut.safetensors").write_bytes(first.read_bytes()[:1000])
        cli.main(["cache", "info", "--feature_cache", str(built)])
        lines = capsys.readouterr().out.splitlines()
        doubled = len(FeatureCache(built)) - 18 + _count(first)
        assert lines[-1] == f"{doubled} doubled records, 1 damaged, foreign or unfinished files: prune"
        assert "18 frames" in lines[0]

    def test_info_and_verify_of_what_is_no_cache(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for action in ("info", "verify"):
            assert cli.main(["cache", action, "--feature_cache", str(tmp_path / "nowhere")]) == 1
            assert "is no feature cache (no readable cache.json)" in capsys.readouterr().err

    def test_verify_passes_what_is_whole(self, case: Case, built: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            assert cache.main(["verify", "--feature_cache", str(built)]) == 0
            assert cache.main(["verify", *data(case, built)]) == 0
        assert caplog.text.count("18 records of 18 frames in 5 shards are whole") == 2

    @pytest.mark.parametrize("dtype", ["float32", "int8"])
    def test_verify_finds_one_wrong_bit(
        self, case: Case, folder: Path, dtype: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache.main(["build", *flags(case, folder, dtype=dtype)])
        (shard,) = folder.glob(SHARDS)
        content = bytearray(shard.read_bytes())
        content[-5000] ^= 1
        shard.write_bytes(content)
        with caplog.at_level(logging.INFO):
            assert cache.main(["verify", "--feature_cache", str(folder)]) == 1
        assert "17 records of 17 frames in 1 shards are whole" in caplog.text
        assert "1 records are damaged: `llava-ultra cache prune`, then `cache build` mends it" in caplog.text

    def test_verify_finds_a_cut_off_shard_and_a_changed_picture_and_they_are_mended(
        self, case: Case, built: Path, encoded: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        want = records(built)
        cut = max(built.glob(SHARDS), key=_count)
        cut.write_bytes(cut.read_bytes()[:-1])
        assert cache.main(["verify", "--feature_cache", str(built)]) == 1
        assert "1 shards are damaged or foreign" in caplog.text
        caplog.clear()
        assert cache.main(["verify", *data(case, built)]) == 1
        assert "4 pictures are missing: `llava-ultra cache build` with the flags of the first time" in caplog.text
        assert cache.main(["build", *flags(case, built)]) == 0
        assert encoded == [4]
        cache.main(["prune", *data(case, built)])
        assert not cut.exists() and cache.main(["verify", *data(case, built)]) == 0
        mended = records(built)
        assert set(mended) == set(want)
        for name, wanted in want.items():
            torch.testing.assert_close(mended[name], wanted, rtol=1e-5, atol=1e-5)
        Image.new("RGB", (64, 48)).save(case.picture())
        caplog.clear()
        assert cache.main(["verify", *data(case, built)]) == 1
        assert "1 pictures are missing" in caplog.text and "damaged" not in caplog.text

    def test_prune_keeps_what_is_wanted_bit_for_bit_and_drops_the_rest(
        self, case: Case, built: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        want = records(built)
        gone = [key(case, name) for name in case.records[EXAM]["image"]]
        case.records.pop(EXAM)
        case.save()
        first, second = sorted(built.glob(SHARDS), key=_count)[-2:]
        shutil.copy(first, built / "features-twice.safetensors")
        content = bytearray(second.read_bytes())
        content[-1] ^= 1  # a bit of the last record
        second.write_bytes(content)
        (built / "features-cut.safetensors").write_bytes(first.read_bytes()[:1000])
        (built / "features-killed.partial").write_bytes(b"half")
        (built / "notes.txt").write_text("mine")
        wrong = {name for name in want if not torch.equal(records(built)[name], want[name])}
        assert len(wrong) == 1
        good = [shard for shard in shards(built, CacheHeader.read(built)) if not {*gone, *wrong} & set(shard.keys)]
        untouched = {shard.path: shard.path.stat().st_mtime_ns for shard in good}
        with caplog.at_level(logging.INFO):
            assert cache.main(["prune", *data(case, built)]) == 0
        kept = records(built)
        assert set(kept) == set(want) - set(gone) - wrong
        assert all(torch.equal(kept[name], want[name]) for name in kept)
        assert sum(map(_count, built.glob(SHARDS))) == len(kept), "no record is there twice"
        assert cache.main(["verify", "--feature_cache", str(built)]) == 0
        assert sorted(path.name for path in built.iterdir() if not path.match(SHARDS)) == [HEADER, "notes.txt"]
        whole = [path for path in untouched if path.exists()]
        assert whole and all(path.stat().st_mtime_ns == untouched[path] for path in whole)
        assert f"{len(kept)} of 22 records kept, 2 files removed that were not whole" in caplog.text

    def test_prune_with_a_wrong_image_folder_removes_nothing(self, case: Case, built: Path, tmp_path: Path) -> None:
        before = contents(built)
        with pytest.raises(ValueError, match=r"18 of 18 pictures of --data_path cannot be read.*Check --image_folder"):
            cache.main(["prune", *data(case, built)[:-1], str(tmp_path)])
        case.picture().unlink()
        with pytest.raises(ValueError, match=r"1 of 18 pictures of --data_path cannot be read.*Nothing was removed"):
            cache.main(["prune", *data(case, built)])
        assert contents(built) == before

    def test_prune_wants_to_know_what_to_keep(self, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cache.main(["prune", "--feature_cache", str(built)])
        assert "--data_path" in capsys.readouterr().err


def _count(path: Path) -> int:
    with safe_open(str(path), framework="pt") as shard:
        return len(shard.keys())


def test_no_more_pictures_wait_than_a_few_batches() -> None:
    """So memory does not grow with the number of pictures: whatever is slow, decoding waits for it."""
    started: list[str] = []

    def look(name: str) -> cache.Picture:
        started.append(name)
        return cache.Picture(name)

    names = [str(number) for number in range(100)]
    with ThreadPoolExecutor(4) as pool:
        for place, picture in enumerate(cache._look_ahead(pool, look, names, ahead=8)):
            time.sleep(0.001)
            assert picture.name == names[place] and len(started) <= place + 1 + 8
    assert sorted(started, key=int) == names


def test_every_worker_process_has_its_own_share(
    case: Case, folder: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        assert cache.main(["build", *flags(case, folder)]) == 0
        assert sum(encoded) == 6 * (rank + 1)
    assert len(FeatureCache(folder)) == PICTURES
    assert os.environ["WORLD_SIZE"] == "3"
