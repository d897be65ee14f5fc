"""The folder of a feature cache: keys by content, whole shards or none, and whose features they are."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import shutil
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import clip_folder, sam_folder

from llava_ultra_ext.vision import encoders, feature_cache
from llava_ultra_ext.vision.encoders import build_clip, build_sam
from llava_ultra_ext.vision.feature_cache import (
    HEADER,
    SHARDS,
    CacheHeader,
    FeatureCache,
    ShardWriter,
    picture_key,
    shards,
)
from llava_ultra_ext.vision.feature_record import DTYPES
from llava_ultra_ext.vision.sources import weights_hash
from llava_ultra_ext.vision.tower import FusedVisionTower

ENCODERS = {"clip": {"weights": "a" * 64, "image_size": 32}, "sam": {"weights": "b" * 64, "image_size": 128}}
SHAPES = {"clip": (4, 2), "sam": (4, 3)}


def record(number: int) -> torch.Tensor:
    """(1, 20), of its own for each number."""
    return torch.arange(20.0).unsqueeze(0) + 100 * number


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty cache of float32."""
    made = tmp_path / "features"
    made.mkdir()
    (made / HEADER).write_text(CacheHeader(ENCODERS, SHAPES, "float32", "float32").as_json())
    return made


def write(folder: Path, *numbers: int) -> Path:
    """A shard with the records of some keys, "key0" and so on."""
    before = set(folder.glob(SHARDS))
    with ShardWriter(folder) as writer:
        for number in numbers:
            writer.add([f"key{number}"], record(number))
    (made,) = set(folder.glob(SHARDS)) - before
    return made


class TestKeys:
    def test_a_picture_is_its_content(self, tmp_path: Path) -> None:
        for name, content in (("a.png", b"one"), ("b.png", b"one"), ("c.png", b"two")):
            (tmp_path / name).write_bytes(content)
        first, twin, other = (picture_key(tmp_path / name) for name in ("a.png", "b.png", "c.png"))
        assert first == twin != other
        assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # sha256sum of "one"
        assert picture_key(b"one") == first

    def test_a_changed_picture_is_missing_and_a_renamed_one_is_not(self, folder: Path, tmp_path: Path) -> None:
        picture = tmp_path / "a.png"
        picture.write_bytes(b"one")
        with ShardWriter(folder) as writer:
            writer.add([picture_key(picture)], record(7))
        cache = FeatureCache(folder)
        assert picture_key(picture.rename(tmp_path / "b.png")) in cache
        picture.write_bytes(b"One")
        assert picture_key(picture) not in cache
        picture.write_bytes(b"one")
        assert torch.equal(cache.read([picture_key(picture)]), record(7))

    def test_a_picture_that_is_gone(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            picture_key(tmp_path / "nowhere.png")


class TestReading:
    def test_records_come_in_the_order_that_was_asked_for(self, folder: Path) -> None:
        write(folder, 0, 1, 2)
        write(folder, 3, 4)
        cache = FeatureCache(folder)
        assert len(cache) == 5 and "key3" in cache and "key5" not in cache
        assert cache.record_size == 20
        found = cache.read(["key4", "key0", "key2", "key0"])
        assert torch.equal(found, torch.cat([record(4), record(0), record(2), record(0)]))
        with pytest.raises(KeyError, match="key5"):
            cache.read(["key1", "key5"])

    @pytest.mark.parametrize("name", list(DTYPES))
    def test_every_dtype_comes_back_bit_for_bit(self, name: str, tmp_path: Path) -> None:
        (tmp_path / HEADER).write_text(CacheHeader(ENCODERS, SHAPES, name, "float32").as_json())
        records = torch.randint(-128, 128, (3, 80), dtype=torch.int8).view(DTYPES[name])
        with ShardWriter(tmp_path) as writer:
            writer.add(["a", "b", "c"], records)
        found = FeatureCache(tmp_path).read(["a", "b", "c"])
        assert found.dtype == DTYPES[name] and torch.equal(found.view(torch.int8), records.view(torch.int8))

    def test_what_was_read_can_be_written_to(self, folder: Path) -> None:
        """A record is a copy: a training that changes it in place does not change the next epoch's."""
        write(folder, 1)
        cache = FeatureCache(folder)
        cache.read(["key1"]).zero_()
        assert torch.equal(cache.read(["key1"]), record(1))

    def test_a_pickled_reader_reads(self, folder: Path) -> None:
        write(folder, 0, 1)
        cache = FeatureCache(folder)
        cache.read(["key0"])
        again = pickle.loads(pickle.dumps(cache))
        assert again.header == cache.header and torch.equal(again.read(["key1"]), record(1))

    def test_a_forked_loader_worker_reads_what_its_parent_reads(self, folder: Path) -> None:
        write(folder, 0, 1)
        cache = FeatureCache(folder)
        cache.read(["key0"])  # the parent's map is open when the child starts
        context = multiprocessing.get_context("fork")
        told: Queue[list[float]] = context.Queue()
        child = context.Process(target=lambda: told.put(cache.read(["key1"])[0].tolist()))
        child.start()
        assert told.get(timeout=60) == record(1)[0].tolist()
        child.join(timeout=60)
        assert child.exitcode == 0 and torch.equal(cache.read(["key1"]), record(1))

    def test_many_shards_do_not_keep_many_files_open(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(feature_cache, "_OPEN_SHARDS", 3)
        for number in range(8):
            write(folder, number)
        cache = FeatureCache(folder)
        for number in (0, 5, 7, 3, 1, 2, 6, 4, 0):
            assert torch.equal(cache.read([f"key{number}"]), record(number))
            assert len(cache._open) <= 3


class TestShards:
    def test_a_shard_is_written_when_it_is_full(self, folder: Path) -> None:
        with ShardWriter(folder, shard_bytes=160) as writer:  # two records of 20 float32
            for number in range(5):
                writer.add([f"key{number}"], record(number))
            writer.flush()
            assert sorted(len(shard.keys) for shard in shards(folder, CacheHeader.read(folder))) == [1, 2, 2]
        assert len(FeatureCache(folder)) == 5 and not list(folder.glob("*.partial"))

    def test_a_shard_is_written_when_it_is_old(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 1000.0
        monkeypatch.setattr(feature_cache.time, "monotonic", lambda: now)
        with ShardWriter(folder, seconds=60) as writer:
            for number, moment in enumerate((1000, 1059, 1060, 1070, 1121)):
                now = moment
                writer.add([f"key{number}"], record(number))
        found = sorted(sorted(shard.keys) for shard in shards(folder, CacheHeader.read(folder)))
        assert found == [["key0", "key1", "key2"], ["key3", "key4"]]

    def test_a_key_that_comes_twice_is_kept_once(self, folder: Path) -> None:
        with ShardWriter(folder) as writer:
            writer.add(["key1", "key1"], torch.cat([record(1), record(2)]))
        assert len(FeatureCache(folder)) == 1 and torch.equal(FeatureCache(folder).read(["key1"]), record(1))

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, ValueError])
    def test_whatever_ends_a_build_what_is_held_is_kept(self, folder: Path, error: type[BaseException]) -> None:
        with pytest.raises(error), ShardWriter(folder) as writer:
            writer.add(["key1"], record(1))
            raise error()
        assert torch.equal(FeatureCache(folder).read(["key1"]), record(1))

    def test_a_shard_that_cannot_be_written_is_said(self, folder: Path) -> None:
        told = (
            r"a shard could not be written \(.*\)\. Make room, then run the same command again: shards that are there"
        )
        with pytest.raises(OSError, match=told), ShardWriter(folder) as writer:
            shutil.rmtree(folder)  # as a disk that went away
            writer.add(["key2"], record(2))

    @pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.99, 0.9999])
    def test_a_shard_that_was_cut_off_counts_as_missing(
        self, folder: Path, part: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        write(folder, 0)
        cut = write(folder, *range(1, 40))
        content = cut.read_bytes()
        cut.write_bytes(content[: int(len(content) * part)])
        with caplog.at_level(logging.WARNING):
            cache = FeatureCache(folder)
        assert len(cache) == 1 and "key0" in cache and "key7" not in cache
        assert f"{cut} is damaged" in caplog.text and "`cache build` computes them again" in caplog.text

    def test_a_shard_with_something_else_in_it(self, folder: Path) -> None:
        (folder / "features-zero.safetensors").write_bytes(bytes(5000))
        (folder / "features-text.safetensors").write_text("no shard " * 100)
        write(folder, 3)
        assert len(FeatureCache(folder)) == 1

    def test_a_shard_of_another_cache_is_left_out(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Copied into the folder, or left there by a cache whose cache.json was removed."""
        write(folder, 0)
        other = tmp_path / "other"
        other.mkdir()
        header = CacheHeader({**ENCODERS, "sam": {"weights": "c" * 64}}, SHAPES, "float32", "float32")
        (other / HEADER).write_text(header.as_json())
        stranger = shutil.copy(write(other, 1), folder)
        with caplog.at_level(logging.WARNING):
            assert len(FeatureCache(folder)) == 1
        assert f"{stranger} belongs to another cache" in caplog.text

    def test_shards_of_the_first_version_are_read(self, folder: Path) -> None:
        """They had neither checksums nor the name of their cache."""
        save_file({"key9": record(9)[0]}, str(folder / "features-old.safetensors"))
        assert torch.equal(FeatureCache(folder).read(["key9"]), record(9))

    def test_a_shard_has_the_checksum_of_each_record(self, folder: Path) -> None:
        import binascii

        path = write(folder, 1, 2)
        (shard,) = shards(folder, CacheHeader.read(folder))
        assert shard.path == path and sorted(shard.keys) == ["key1", "key2"]
        assert shard.sums == {f"key{n}": binascii.crc32(record(n).numpy().tobytes()) for n in (1, 2)}
        with safe_open(str(path), framework="pt") as file:
            assert set(file.metadata()) == {"cache", "crc32"}


class TestHeader:
    def test_it_comes_back_from_its_file(self, folder: Path) -> None:
        header = CacheHeader.read(folder)
        assert header == CacheHeader(ENCODERS, SHAPES, "float32", "float32")
        assert header.difference(ENCODERS, SHAPES) == ""

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, r"is no feature cache \(no readable cache.json\). Build one: llava-ultra cache build"),
            ("{", "is no feature cache"),
            ("[1]", "is no feature cache"),
            ("{}", "is no feature cache"),
            ('{"format": "ultra_features/9"}', "is of format ultra_features/9, this version reads ultra_features/1"),
        ],
    )
    def test_what_is_no_cache_is_refused(self, folder: Path, content: str | None, message: str) -> None:
        (folder / HEADER).unlink() if content is None else (folder / HEADER).write_text(content)
        with pytest.raises(ValueError, match=message):
            FeatureCache(folder)

    def test_a_difference_is_named(self, folder: Path) -> None:
        header = CacheHeader.read(folder)
        changed = {**ENCODERS, "sam": {"weights": "c" * 64, "image_size": 192}}
        assert header.difference(changed, SHAPES) == (
            f"sam weights: {'b' * 16} in the cache, {'c' * 16} now; sam image_size: 128 in the cache, 192 now"
        )
        assert header.difference({"clip": ENCODERS["clip"]}, SHAPES) == "sam: not used now"
        assert header.difference({**ENCODERS, "dinov2": {}}, SHAPES) == "dinov2: not in the cache"
        turned = dict(reversed(SHAPES.items()))
        assert "features: {'clip': (4, 2), 'sam': (4, 3)} in the cache, {'sam'" in header.difference(ENCODERS, turned)
        with pytest.raises(ValueError, match=r"holds features of other encoders or settings \(sam: not used now\)"):
            FeatureCache(folder).check({"clip": ENCODERS["clip"]}, SHAPES)

    def test_the_fingerprint_is_of_everything_and_not_of_the_order_of_keys(self) -> None:
        header = CacheHeader(ENCODERS, SHAPES, "float32", "float32")
        turned = CacheHeader(json.loads(json.dumps(ENCODERS, sort_keys=True)), SHAPES, "float32", "float32")
        assert header.fingerprint == turned.fingerprint
        others = [
            CacheHeader({**ENCODERS, "sam": {}}, SHAPES, "float32", "float32"),
            CacheHeader(ENCODERS, dict(reversed(SHAPES.items())), "float32", "float32"),
            CacheHeader(ENCODERS, SHAPES, "int8", "float32"),
            CacheHeader(ENCODERS, SHAPES, "float32", "bfloat16"),
        ]
        assert len({header.fingerprint, *(other.fingerprint for other in others)}) == 5


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    return {"clip": clip_folder(root / "clip"), "sam": sam_folder(root / "sam", 128)}


class TestIdentity:
    """What a tower says of itself; no weights are loaded for it."""

    def difference(self, one: FusedVisionTower, other: FusedVisionTower) -> str:
        header = CacheHeader(one.identity(), one.feature_shapes, "float32", "float32")
        told = header.difference(other.identity(), other.feature_shapes)
        assert not one.is_loaded and not other.is_loaded
        assert bool(told) == bool(
            CacheHeader(other.identity(), other.feature_shapes, "float32", "float32").difference(
                one.identity(), one.feature_shapes
            )
        )
        return told

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"clip_select_layer": -1}, "clip clip_select_layer: -2 in the cache, -1 now"),
            ({"sam_image_size": 192}, "sam image_size: 128 in the cache, 192 now"),
            ({"sam_token_merge": "pool"}, "sam sam_token_merge: unshuffle in the cache, pool now"),
            ({"sam_select_feature": "last_hidden"}, "sam sam_select_feature: neck in the cache, last_hidden now"),
            ({"sam_trainable": "neck"}, "sam sam_trainable: none in the cache, neck now"),
        ],
    )
    def test_another_setting_is_another_cache(
        self, sources: dict[str, str], changed: dict[str, Any], named: str
    ) -> None:
        one = FusedVisionTower(sources, name="")
        assert named in self.difference(one, FusedVisionTower(sources, name="", **changed))

    def test_what_changes_no_feature_changes_no_cache(self, sources: dict[str, str], tmp_path: Path) -> None:
        """Another folder with the same files, the size of the folder said once more, another batch size."""
        copies = {kind: str(shutil.copytree(path, tmp_path / kind)) for kind, path in sources.items()}
        other = FusedVisionTower(copies, name="other", sam_image_size=128, encoder_batch_size=3)
        assert self.difference(FusedVisionTower(sources, name=""), other) == ""

    def test_changed_weights_are_other_encoders(self, sources: dict[str, str], tmp_path: Path) -> None:
        copy = shutil.copytree(sources["sam"], tmp_path / "sam")
        content = bytearray((copy / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (copy / "model.safetensors").write_bytes(content)
        told = self.difference(
            FusedVisionTower(sources, name=""), FusedVisionTower({**sources, "sam": str(copy)}, name="")
        )
        assert told.startswith("sam weights: ") and "clip" not in told

    def test_another_mean_is_another_cache(self, sources: dict[str, str], tmp_path: Path) -> None:
        copy = shutil.copytree(sources["clip"], tmp_path / "clip")
        config = json.loads((copy / "preprocessor_config.json").read_text())
        (copy / "preprocessor_config.json").write_text(json.dumps({**config, "image_mean": [0.5, 0.5, 0.5]}))
        told = self.difference(
            FusedVisionTower(sources, name=""), FusedVisionTower({**sources, "clip": str(copy)}, name="")
        )
        assert "clip mean: " in told and "sam padding: " in told, "SAM sees the padding in CLIP's mean colour"

    @pytest.mark.parametrize(
        ("builder", "kind", "changed"),
        [(build_clip, "clip", {"clip_select_layer": -1}), (build_sam, "sam", {"sam_select_feature": "last_hidden"})],
    )
    def test_options_count_for_kinds_that_were_registered_under_another_name(
        self,
        sources: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
        builder: Any,
        kind: str,
        changed: dict[str, Any],
    ) -> None:
        """biomedclip is one: it reads clip_select_layer."""
        monkeypatch.setitem(encoders.ENCODERS, "mine", builder)
        own = {"mine": sources[kind]}
        told = self.difference(FusedVisionTower(own, name=""), FusedVisionTower(own, name="", **changed))
        assert f"mine {next(iter(changed))}: " in told

    @pytest.mark.parametrize("options", [{}, {"sam_trainable": "neck"}, {"sam_select_feature": "last_hidden"}])
    def test_the_shapes_are_those_of_the_features(self, sources: dict[str, str], options: dict[str, Any]) -> None:
        tower = FusedVisionTower(sources, name="", **options)
        shapes = tower.feature_shapes
        assert not tower.is_loaded
        tower.load_model()
        features = tower(torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8))
        assert {kind: tuple(feature.shape[1:]) for kind, feature in features.items()} == shapes
        assert list(shapes) == list(features)
        tower.unload()
        assert not tower.is_loaded and not list(tower.parameters())

    def test_the_hash_is_over_every_weight_file(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ValueError, match=r"has no weights \(model.safetensors, "):
            weights_hash(str(tmp_path))
        index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        for number in (1, 2):
            (tmp_path / f"model-{number}.safetensors").write_bytes(b"x" * number)
        found = {weights_hash(str(tmp_path))}
        for name in ("model-2.safetensors", "model-1.safetensors", "config.json"):
            (tmp_path / name).write_bytes(b"changed")
            found.add(weights_hash(str(tmp_path)))
        assert len(found) == 4
        single = tmp_path / "sam.pth"
        single.write_bytes(b"one")
        assert weights_hash(str(single)) == picture_key(b"one")
