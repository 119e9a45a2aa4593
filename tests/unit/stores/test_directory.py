from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.stores.contract import PNG, StoreContract, fresh_key
from zimage_stream.errors import StoreError, StoreMisconfiguredError, StoreRejectedError
from zimage_stream.stores import Put, StoredObject
from zimage_stream.stores.directory import DirectoryStore

# Forks a writer that dies at its n-th change of the file system, for every n until one survives.
CRASHING_WRITERS = """
import os, sys
import os
from pathlib import Path
from zimage_stream.stores.directory import DirectoryStore

CHANGES = {"os.link", "os.rename", "os.remove", "os.mkdir", "open"}
base = Path(sys.argv[1])
step = 0
while True:
    step += 1
    root = base / str(step)
    root.mkdir()
    if (child := os.fork()) == 0:
        left = step
        def end_at(event, arguments):
            global left
            if event in CHANGES and str(arguments[0]).startswith(str(root)):
                left -= 1
                if left == 0:
                    os._exit(9)
        sys.addaudithook(end_at)
        DirectoryStore(root).put("tenant/a.png", b"first", "image/png", {"by": "first"})
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        break
    assert code == 9, code
print(step)
"""

# Runs in a file system of 1 MiB, and then in the same one mounted read-only.
FULL_DISK = """
import os, subprocess, sys
import os
from pathlib import Path
from zimage_stream.errors import StoreMisconfiguredError
from zimage_stream.stores.directory import DirectoryStore

def refusal(size):
    try:
        store.put(f"tenant/{size}.png", bytes(size), "image/png", {})
    except StoreMisconfiguredError as error:
        return str(error)

root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "store", root], check=True)
store = DirectoryStore(root)
store.check()
assert "the disk is full" in refusal(2 << 20)
assert not list((root / ".incoming").iterdir())
assert store.put("tenant/small.png", b"small", "image/png", {}).created
subprocess.run(["mount", "-o", "remount,ro", root], check=True)
assert "read-only" in refusal(1)
assert store.get("tenant/small.png") == b"small"
try:
    store.check()
except StoreMisconfiguredError:
    sys.exit(0)
sys.exit("a read-only folder passed the check")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    store = DirectoryStore(root)
    store.create()
    return store


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestContract(StoreContract):
    @pytest.fixture
    def store(self, store: DirectoryStore) -> DirectoryStore:
        return store


class TestFiles:
    def test_an_object_is_a_plain_file_under_its_key(self, store: DirectoryStore, root: Path) -> None:
        store.put("tenant/图.png", b"data", PNG, {})
        assert (root / "tenant" / "图.png").read_bytes() == b"data"
        assert store.uri("tenant/图.png") == (root / "tenant" / "图.png").as_uri()
        assert store.bucket == ""

    def test_writes_and_probes_leave_nothing_else_behind(self, store: DirectoryStore, root: Path) -> None:
        for data in (b"first", b"second", b"third"):
            store.put("tenant/a.png", data, PNG, {})
        store.probe()
        store.check()
        assert files(root) == [".metadata/tenant/.a.png.json", "tenant/a.png"]

    def test_metadata_is_kept_in_a_json_file(self, store: DirectoryStore, root: Path) -> None:
        store.put("tenant/a.png", b"data", PNG, {"sha256": "ab"})
        note = json.loads((root / ".metadata" / "tenant" / ".a.png.json").read_text())
        assert note == {"content_type": PNG, "metadata": {"sha256": "ab"}}

    def test_a_copy_of_the_folder_works_as_a_store(
        self, store: DirectoryStore, root: Path, tmp_path: Path
    ) -> None:
        original = store.put("tenant/a.png", b"data", PNG, {"sha256": "ab"})
        copy = DirectoryStore(shutil.copytree(root, tmp_path / "copy"))
        assert copy.stat("tenant/a.png") == original.object
        assert copy.put("tenant/a.png", b"other", PNG, {}) == Put(original.object, created=False)

    def test_a_removed_object_can_be_written_again(self, store: DirectoryStore, root: Path) -> None:
        store.put("tenant/a.png", b"old", PNG, {"by": "first"})
        (root / "tenant" / "a.png").unlink()
        assert store.stat("tenant/a.png") is None
        assert store.put("tenant/a.png", b"new", PNG, {"by": "second"}).created
        assert store.stat("tenant/a.png") == StoredObject("tenant/a.png", 3, PNG, {"by": "second"})

    def test_a_foreign_file_is_not_overwritten(self, store: DirectoryStore, root: Path) -> None:
        (root / "tenant").mkdir()
        (root / "tenant" / "a.png").write_bytes(b"theirs")
        put = store.put("tenant/a.png", b"ours", PNG, {"by": "us"})
        assert not put.created
        assert put.object.metadata == {}
        assert store.get("tenant/a.png") == b"theirs"

    @pytest.mark.parametrize("key", ["tenant/a.png/below.png", "tenant/a.png/far/below.png", "tenant"])
    def test_an_object_cannot_be_a_folder(self, store: DirectoryStore, key: str) -> None:
        store.put("tenant/a.png", b"data", PNG, {})
        with pytest.raises(StoreRejectedError, match="refused"):
            store.put(key, b"data", PNG, {})
        assert store.get("tenant/a.png") == b"data"

    def test_metadata_files_and_folders_with_similar_names_do_not_collide(
        self, store: DirectoryStore
    ) -> None:
        for key in ("a", "a.json/b", "a.pending/b", "b.json", "b"):
            assert store.put(key, key.encode(), PNG, {"key": key}).created
        for key in ("a", "a.json/b", "a.pending/b", "b.json", "b"):
            found = store.stat(key)
            assert found is not None
            assert found.metadata == {"key": key}

    def test_a_name_too_long_for_the_file_system_rejects_the_object(self, store: DirectoryStore) -> None:
        with pytest.raises(StoreRejectedError, match="too long"):
            store.put("tenant/" + "a" * 300, b"data", PNG, {})

    @pytest.mark.parametrize("inside", ["tenant", "tenant/a.png"])
    def test_a_link_does_not_lead_outside_the_folder(
        self, store: DirectoryStore, root: Path, tmp_path: Path, inside: str
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "a.png").write_bytes(b"secret")
        link = root / inside
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(outside if inside == "tenant" else outside / "a.png")
        for ask in (store.get, store.stat, lambda key: store.put(key, b"data", PNG, {})):
            with pytest.raises(StoreRejectedError, match="out of the store"):
                ask("tenant/a.png")
        assert (outside / "a.png").read_bytes() == b"secret"

    def test_the_folder_itself_may_be_reached_by_a_link(self, store: DirectoryStore, root: Path) -> None:
        link = root.with_name("link")
        link.symlink_to(root)
        DirectoryStore(link).put("tenant/a.png", b"data", PNG, {})
        assert store.get("tenant/a.png") == b"data"


class TestProblems:
    @pytest.mark.parametrize("in_the_way", [False, True])
    def test_a_missing_folder_needs_an_operator(self, root: Path, in_the_way: bool) -> None:
        if in_the_way:
            root.write_bytes(b"a file")
        store, key = DirectoryStore(root), fresh_key()
        for ask in (
            store.check,
            store.probe,
            lambda: store.put(key, b"data", PNG, {}),
            lambda: store.stat(key),
            lambda: store.get(key),
        ):
            with pytest.raises(StoreMisconfiguredError, match="store's folder"):
                ask()
        assert files(root.parent) == (["store"] if in_the_way else [])

    def test_a_folder_that_cannot_be_created_needs_an_operator(self, root: Path) -> None:
        root.write_bytes(b"a file")
        with pytest.raises(StoreError, match="store's folder"):
            DirectoryStore(root / "below").create()

    def test_a_full_or_read_only_disk_needs_an_operator(self, root: Path) -> None:
        own_mounts = ["unshare", "--user", "--map-root-user", "--mount"]
        if shutil.which("unshare") is None or subprocess.run([*own_mounts, "true"], check=False).returncode:
            pytest.skip("needs user namespaces")
        root.mkdir()
        subprocess.run([*own_mounts, sys.executable, "-c", FULL_DISK, str(root)], check=True)

    def test_a_writer_that_dies_leaves_a_working_store(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", CRASHING_WRITERS, str(tmp_path)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        steps = int(done.stdout)
        first = StoredObject("tenant/a.png", 5, PNG, {"by": "first"})
        survived = []
        for step in range(1, steps + 1):
            store = DirectoryStore(tmp_path / str(step))
            found = store.stat("tenant/a.png")
            assert found in (None, first)
            survived.append(found is not None)
            put = store.put("tenant/a.png", b"other", "image/webp", {"by": "second"})
            assert put.created == (found is None)
            assert store.stat("tenant/a.png") == put.object
            assert store.get("tenant/a.png") == (b"first" if found else b"other")
        # Writers died at every stage: before their object was visible, and after.
        assert survived == sorted(survived)
        assert survived.count(False) > 5
        assert survived.count(True) > 2


def test_leftovers_of_killed_writers_are_removed_at_the_next_start(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.check()
    old, young = (tmp_path / ".incoming" / name for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.check()
    assert [path.exists() for path in (old, young)] == [False, True]
