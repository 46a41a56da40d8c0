"""What a list of sources names: files, directories, globs and brace lists, in a fixed order."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from shardstream.errors import OptionError, ShardstreamError, SourceError, StorageError
from shardstream.storage.inputs import FileInfo, expand, open_input, read_into, read_slice
from shardstream.storage.store import Store
from shardstream.storage.transport.backends.fsspec import Fsspec
from shardstream.storage.transport.backends.s3 import S3

TREE = ["b.txt", "a.txt", "sub/c.txt", "sub/.hidden", ".git/config", "Sub 2/ключ ✓.txt", ".dot.txt"]
SEEN = ["Sub 2/ключ ✓.txt", "a.txt", "b.txt", "sub/c.txt"]


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a directory that holds TREE; each file's content is its own path."""
    url = str(tmp_path / "in put") if request.param == "local" else f"memory://{uuid.uuid4().hex}/in put"
    store = Store.open(url)
    for name in TREE:
        store.write(name, name.encode())
    return url


def below(root: str, found: list[FileInfo]) -> list[str]:
    return [info.url.removeprefix(root + "/") for info in found]


def test_a_directory_gives_every_file_below_it_but_hidden_ones(root):
    found = expand([root])
    assert sorted(below(root, found)) == SEEN
    for info in found:
        name = info.url.removeprefix(root + "/")
        with open_input(info.url) as file:
            assert file.read() == name.encode()
        assert (info.size, info.root) == (len(name.encode()), root)


def test_the_order_is_the_same_however_the_files_came_to_be_there(root):
    store = Store.open(root)
    first = expand([root])
    for name in reversed(TREE):
        store.delete(name)
    for name in reversed(TREE):
        store.write(name, name.encode())
    assert expand([root]) == first
    assert expand([root + "/"]) == first


def test_a_named_file_is_taken_even_if_it_is_hidden(root):
    for name in ("a.txt", ".dot.txt", "sub/.hidden"):
        assert expand([f"{root}/{name}"]) == [FileInfo(f"{root}/{name}", len(name), "")]


def test_globs(root):
    assert below(root, expand([f"{root}/*.txt"])) == ["a.txt", "b.txt"]
    assert below(root, expand([f"{root}/?.txt"])) == ["a.txt", "b.txt"]
    assert below(root, expand([f"{root}/[b-z].txt"])) == ["b.txt"]
    assert below(root, expand([f"{root}/*/c.txt"])) == ["sub/c.txt"]
    assert {info.root for info in expand([f"{root}/*.txt"])} == {root}


def test_a_glob_that_matches_nothing_is_named(root):
    with pytest.raises(SourceError, match=r"in put/\*\.csv: nothing there to read"):
        expand([f"{root}/*.csv"])


def test_the_order_of_the_arguments_is_kept(root):
    wanted = ["b.txt", "sub/c.txt", "a.txt", "b.txt"]
    assert below(root, expand([f"{root}/{name}" for name in wanted])) == wanted


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x{0..2}", ["x0", "x1", "x2"]),
        ("x{0..10}", [f"x{number}" for number in range(11)]),
        ("x{000..002}", ["x000", "x001", "x002"]),
        ("x{8..11}", ["x8", "x9", "x10", "x11"]),
        ("x{08..11}", ["x08", "x09", "x10", "x11"]),
        ("x{2..0}", ["x2", "x1", "x0"]),
        ("x{5..5}", ["x5"]),
        ("{b,a}{1..2}", ["b1", "b2", "a1", "a2"]),
        ("x{,y}z", ["xz", "xyz"]),
        ("{one}", ["{one}"]),
    ],
)
def test_braces(tmp_path, pattern, names):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert [os.path.basename(info.url) for info in expand([str(tmp_path / pattern)])] == names


def test_braces_within_braces_are_refused(tmp_path):
    for pattern in ("{c{1,2},d}", "{d,{1..2}}"):
        with pytest.raises(OptionError, match="braces within braces"):
            expand([str(tmp_path / pattern)])


def test_a_file_whose_name_is_a_pattern_can_be_named(tmp_path):
    for name in ("a{1,2}", "b[0]", "c*", "d?", "b0"):
        (tmp_path / name).write_bytes(b"x")
        assert [info.url for info in expand([str(tmp_path / name)])] == [str(tmp_path / name)]


@pytest.mark.parametrize("name", ["none.txt", "*.none", "a{1..2}.none", "emp{ty,ty}", "empty", "{3..1}"])
def test_nothing_found_is_an_error_that_names_it(root, name):
    Store.open(root).write("empty/.hidden", b"x")
    with pytest.raises((SourceError, StorageError)) as caught:
        expand([f"{root}/a.txt", f"{root}/{name}"])
    assert root in str(caught.value)


def test_no_source_at_all_is_an_error():
    with pytest.raises(SourceError, match="nothing there to read"):
        expand([])


def test_a_missing_member_of_a_huge_brace_list_is_found_at_once():
    with pytest.raises(SourceError, match="/nonexistent/0"):
        expand(["/nonexistent/{0..999999999999999}"])


def test_symlinks_to_files_are_followed_and_to_directories_only_if_named(tmp_path):
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in (tmp_path / "elsewhere" / "e", tmp_path / "tree" / "sub" / "s"):
        path.write_bytes(b"xyz")
    (tmp_path / "tree" / "file").symlink_to(tmp_path / "elsewhere" / "e")
    (tmp_path / "tree" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree" / "loop").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "broken").symlink_to(tmp_path / "gone")
    tree = str(tmp_path / "tree")
    with pytest.raises(SourceError, match="folder: a link to a directory is not followed"):
        expand([tree])
    unread: list[tuple[str, str]] = []
    found = expand([tree], unread=unread)
    assert below(tree, found) == ["file", "sub/s"]
    assert [info.size for info in found] == [3, 3]
    assert [os.path.relpath(where, tree) for where, _ in unread] == ["folder", "loop", "broken"]
    with pytest.raises(SourceError, match="broken: a broken link"):
        expand([f"{tree}/b*"])
    assert [info.url for info in expand([f"{tree}/folder"])] == [f"{tree}/folder/e"]
    with pytest.raises(SourceError):
        expand([f"{tree}/broken"])


def test_what_cannot_be_a_url_is_a_typed_error():
    for url in ("memory://[x", "memory://a[0-9]/b", "memory://℀/x"):
        with pytest.raises(ShardstreamError):
            expand([url])
        assert Store.open(url).list() == []


def test_a_slice_of_an_input_ends_where_the_input_ends(root):
    url = f"{root}/sub/c.txt"
    data = b"sub/c.txt"
    for start in range(len(data) + 2):
        for size in (0, 1, 4, len(data), 1 << 40):
            assert read_slice(url, start, size) == data[start : start + size]


def test_an_input_that_ends_early_is_an_error(root):
    buffer = memoryview(bytearray(10))
    with open_input(f"{root}/b.txt") as file, pytest.raises(StorageError, match="did it change"):
        read_into(file, buffer, "b.txt")
    with open_input(f"{root}/b.txt") as file:
        assert read_into(file, buffer[:5], "b.txt") == 5
    assert bytes(buffer[:5]) == b"b.txt"


def test_an_unreadable_input_is_a_storage_error(root):
    for attempt in (lambda url: open_input(url).close(), lambda url: read_slice(url, 0, 1)):
        for name in ("none.txt", "sub"):
            with pytest.raises(StorageError, match=name):
                attempt(f"{root}/{name}")


def test_a_bucket_is_listed_page_by_page(weed, monkeypatch):
    root = weed.bucket()
    store = Store.open(root, weed.options())
    names = [f"in/{folder}/{number:02d} é+.txt" for folder in ("a b", "c", "ü") for number in range(5)]
    for name in [*names, "in/.hidden", "inside"]:
        store.write(name, b"x" * len(name))
    whole = [*map(tuple, expand([f"{root}/in"], weed.options()))]
    pages: list[int] = []
    find = S3.find

    async def small(self: S3, path: str, after: str) -> Any:
        self.fs.req_kw = {"MaxKeys": 4}
        try:
            found = await find(self, path, after)
        finally:
            self.fs.req_kw = {}
        pages.append(len(found[0]))
        return found

    monkeypatch.setattr(S3, "find", small)
    assert [*map(tuple, expand([f"{root}/in"], weed.options()))] == whole
    assert pages == [4, 4, 4, 4]
    assert [url.removeprefix(f"{root}/") for url, _, _ in whole] == sorted(names)
    monkeypatch.setattr(S3, "find", Fsspec.find)  # as s3fs lists
    assert [*map(tuple, expand([f"{root}/in"], weed.options()))] == whole


def test_a_query_behind_a_key_is_named(weed):
    root = weed.bucket()
    store = Store.open(root, weed.options())
    store.write("in/a.txt", b"x")
    with pytest.raises(OptionError, match=r"/in/a.txt: nothing there to read. A URL of S3 has no query"):
        expand([f"{root}/in/a.txt?x=1"], weed.options())
    store.write("in/page?x=1", b"x")  # `?` stands for itself, too
    assert [info.size for info in expand([f"{root}/in/page?x=1"], weed.options())] == [1]


def test_a_listing_that_names_no_next_page_is_an_error(weed, monkeypatch):
    """And is not gone through for ever."""
    root = weed.bucket()
    Store.open(root, weed.options()).write("in/a.txt", b"x")
    find = S3.find
    asked: list[str] = []
    named: dict[str, str] = {}

    async def answered(self: S3, path: str, after: str) -> Any:
        await self.fs.set_session()
        client = await self.fs.get_s3(self.fs.split_path(path)[0])

        async def listed(**given: Any) -> dict[str, Any]:
            asked.append(given.get("ContinuationToken", ""))
            return {"Contents": [{"Key": "in/a.txt", "Size": 1}], "IsTruncated": True, **named}

        with monkeypatch.context() as patch:
            patch.setattr(client, "list_objects_v2", listed)
            return await find(self, path, after)

    monkeypatch.setattr(S3, "find", answered)
    for told, what, times in (
        ({"NextContinuationToken": "1"}, "the same place again", ["", "1"]),
        ({"NextContinuationToken": ""}, "no place", [""]),
        ({}, "no place", [""]),
    ):
        named, asked = told, []
        with pytest.raises(StorageError, match=f"listing goes on, and names {what}"):
            expand([f"{root}/in"], weed.options())
        assert asked == times
