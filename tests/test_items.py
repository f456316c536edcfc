"""The table of a corpus's items: order, types, hash, damage, changes."""

import math
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec.corpus import item_batches
from speechbrain_focalcodec.corpus.content_hash import ContentHash
from speechbrain_focalcodec.corpus.items import (
    ItemTable,
    describe_changes,
    shard_size,
    write_items,
)
from speechbrain_focalcodec.corpus.layout import COLUMNS
from speechbrain_focalcodec.corpus.sources import Item, Source, open_source
from speechbrain_focalcodec.corpus.sources.item import problem_of
from speechbrain_focalcodec.errors import DataError


class Given(Source):
    kind = "given"

    def __init__(self, items, base="/data"):
        super().__init__("given.txt", base)
        self.items = items

    def scan(self):
        yield from enumerate(self.items, 1)


def named(*ids, **values):
    return [Item(name, f"/data/{name}.wav", **values) for name in ids]


def rows_of(table):
    return [
        row
        for i in range(table.num_shards)
        for row in table.shard(i).to_pylist()
    ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "items.parquet"


def test_items_are_sorted_in_shards(path):
    items = [
        Item("b", "/data/x/b.wav", "anna", "hello", 0.5, 1.5),
        Item("c", "/elsewhere/c.wav", text=""),
        Item("a", "/data/a.wav"),
    ]
    table = write_items(Given(items), path, 2)
    assert (table.num_items, table.num_shards) == (3, 2)
    assert table.items_per_shard == 2
    empty = {"speaker": None, "text": None, "start": None, "stop": None}
    assert table.shard(0).to_pylist() == [
        {"id": "a", "path": "a.wav"} | empty,
        {
            "id": "b",
            "path": "x/b.wav",
            "speaker": "anna",
            "text": "hello",
            "start": 0.5,
            "stop": 1.5,
        },
    ]
    assert table.shard(1)["path"].to_pylist() == ["/elsewhere/c.wav"]
    assert str(table.open_path("x/b.wav")) == "/data/x/b.wav"
    assert str(table.open_path("/elsewhere/c.wav")) == "/elsewhere/c.wav"
    assert table.kind == "given"
    assert pq.ParquetFile(path).num_row_groups == 2
    with pytest.raises(IndexError, match="0 to 1, not 2"):
        table.shard(2)


def test_the_table_can_be_sent_to_a_worker(path):
    table = write_items(Given(named("a", "b")), path)
    sent = pickle.loads(pickle.dumps(table))
    assert rows_of(sent) == rows_of(table)


@pytest.mark.parametrize(
    "num_items, size",
    [(1, 8), (320, 20), (2000, 64), (2**14 + 1, 65), (10**8, 8192)],
)
def test_shard_size(num_items, size):
    assert shard_size(num_items) == size


def test_items_per_shard_is_checked(path):
    with pytest.raises(ValueError, match="items_per_shard .* not 0"):
        write_items(Given(named("a")), path, 0)


extra_values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
)
ids = st.text(min_size=1, max_size=8).filter(
    lambda text: not problem_of(Item(text, "/a.wav"))
)


@settings(max_examples=50)
@given(
    st.dictionaries(
        ids,
        st.dictionaries(st.sampled_from("xyz"), extra_values, max_size=3),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 5),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_written_items_are_read_back(
    tmp_path_factory, extras, per_shard, batch, random
):
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    items = [
        Item(name, f"/data/{number}.wav", extra=extra)
        for number, (name, extra) in enumerate(extras.items())
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_batches, "ROWS", batch)
        table = write_items(Given(items), path, per_shard)
    rows = rows_of(table)
    assert [row["id"] for row in rows] == sorted(extras)
    for row in rows:
        assert row["path"] == f"{list(extras).index(row['id'])}.wav"
        for name in "xyz":
            value = extras[row["id"]].get(name)
            kind = None
            if name in table.extra_schema.names:
                kind = table.extra_schema.field(name).type
            assert _same(row.get(name), value, kind)
    digest = table.digest
    random.shuffle(items)
    # Neither the order nor the shards nor the batches matter.
    assert write_items(Given(items), path).digest == digest


def _same(read, value, kind):
    if value is None:
        return read is None
    if kind == pa.string() and not isinstance(value, str):
        value = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, float) and math.isnan(value):
        return math.isnan(read)
    return read == value


@pytest.mark.parametrize(
    "values, kind",
    [
        ([1, None, 2], pa.int64()),
        ([1, 2**60], pa.int64()),
        ([1, 0.5], pa.float64()),
        ([2**60, 0.5], pa.string()),  # would be rounded
        ([1, 2**64], pa.string()),
        ([True, False, None], pa.bool_()),
        ([True, 1], pa.string()),
        (["1", 1], pa.string()),
        ([None], pa.string()),
    ],
)
def test_types_of_extra_columns(path, values, kind):
    items = [
        Item(str(i), "/data/a.wav", extra={"x": value})
        for i, value in enumerate(values)
    ]
    table = write_items(Given(items), path)
    assert table.extra_schema == pa.schema([("x", kind)])
    assert table.shard(0)["x"].null_count == values.count(None)


def test_names_of_extra_columns_do_not_collide(path):
    names = [*COLUMNS.names, "start", "Text", "manifest_text", "", "Age", "age"]
    extra = {name: f"<{name}>" for name in names}
    table = write_items(Given(named("a", extra=extra)), path)
    found = table.extra_schema.names
    assert {"manifest_tokens", "manifest_start", "manifest_text"} <= set(found)
    everything = [*COLUMNS.names, "start", "stop", *found]
    assert len({name.casefold() for name in everything}) == len(everything)
    row = table.shard(0).to_pylist()[0]
    assert [row[name] for name in found] == list(extra.values())
    assert row["text"] is None


def test_bytes_and_digest_are_the_same_in_any_order(tmp_path):
    one = write_items(Given(named("a", "b", "c")), tmp_path / "1")
    two = write_items(Given(named("c", "a", "b")), tmp_path / "2")
    assert one.path.read_bytes() == two.path.read_bytes()


def test_the_digest_is_of_the_content(tmp_path):
    def digest(items, base="/data"):
        return write_items(Given(items, base), tmp_path / "items").digest

    item = Item("a", "/data/a.wav", "anna", "hi", 0.5, 1.5, {"x": 1})
    first = digest([item])
    # Other versions of pyarrow must find the same: it decides whether a run
    # may go on.
    assert first == (
        "2d29d5a155b5836094875fd288d8f6d2852e47e4b12af60daa411e894e209431"
    )
    others = [
        item._replace(**change)
        for change in (
            {"id": "b"},
            {"path": "/data/b.wav"},
            {"speaker": None},
            {"speaker": ""},
            {"text": "hi "},
            {"start": None},
            {"stop": 1.25},
            {"extra": {}},
            {"extra": {"x": 2}},
            {"extra": {"x": "1"}},
            {"extra": {"y": 1}},
        )
    ]
    found = {digest([other]) for other in others}
    assert len(found | {first}) == len(others) + 1
    # The base may move.
    assert digest([item._replace(path="/mnt/a.wav")], "/mnt") == first


def test_text_cannot_move_from_row_to_row():
    def digest(*texts):
        table = pa.table({"a": pa.array(texts, pa.string())})
        content = ContentHash(table.schema)
        content.update(table)
        return content.hexdigest()

    found = {digest(*t) for t in [("ab", "c"), ("a", "bc"), ("abc", None)]}
    assert len(found | {digest("abc", "")}) == 4


@pytest.mark.parametrize("per_shard", [1, 2, 10])
def test_repeated_ids_are_named(path, per_shard):
    items = named("a", "b", "c") + [Item("b", "/other/b.flac")]
    with pytest.raises(DataError) as caught:
        write_items(Given(items), path, per_shard)
    for part in ("given.txt", "'b'", "b.wav", "/other/b.flac", "TAB"):
        assert part in str(caught.value)
    assert not path.exists()
    assert not list(path.parent.iterdir())


def test_errors_of_the_source_leave_nothing(path):
    with pytest.raises(DataError, match="given.txt: has no items"):
        write_items(Given([]), path)
    with pytest.raises(DataError, match="given.txt, line 2: the id is empty"):
        write_items(Given(named("a", "")), path)
    assert not list(path.parent.iterdir())


def test_missing_and_foreign_files(path):
    with pytest.raises(DataError, match="no such file"):
        ItemTable(path)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(DataError, match="damaged.*remove it"):
        ItemTable(path)


def test_damage_is_noticed(tmp_path, path):
    good = write_items(Given(named("a", "b", text="hello"), "/data"), path, 1)
    want = rows_of(good), good.digest, good.base
    content = path.read_bytes()
    damaged = tmp_path / "damaged.parquet"
    refused = 0
    for position in range(0, len(content), 5):
        changed = bytearray(content)
        changed[position] ^= 0xFF
        for bad in (changed, content[:position]):
            damaged.write_bytes(bad)
            try:
                table = ItemTable(damaged)
                found = rows_of(table), table.digest, table.base
                assert found == want  # some bytes mean nothing
            except DataError as error:
                assert str(damaged) in str(error)
                refused += 1
    assert refused > len(content) // 5


def test_changes(tmp_path):
    def table(items):
        return write_items(
            Given(items), tmp_path / str(len(list(tmp_path.iterdir()))), 2
        )

    old = table(named("b", "c", "d", "e", extra={"x": math.nan}))
    assert describe_changes(old, old) == ""
    new = table(
        named("a", "c", "e", "f", extra={"x": math.nan}) + named("d", text="z")
    )
    assert describe_changes(old, new) == (
        "2 added, 1 removed, 1 changed; first: 'a' (added)"
    )
    assert describe_changes(new, old) == (
        "1 added, 2 removed, 1 changed; first: 'a' (removed)"
    )
    extra = table(named("b", "c", "d", "e", extra={"x": None}))
    plain = table(named("b", "c", "d", "e"))
    assert describe_changes(plain, extra).startswith("other columns")


def test_from_a_folder_to_a_table(tmp_path):
    corpus = tmp_path / "corpus"
    for name in ("b/2.wav", "a.flac", "b/1.ogg"):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).touch()
    table = write_items(open_source(corpus), tmp_path / "items.parquet")
    shard = table.shard(0)
    assert shard["id"].to_pylist() == ["a", "b/1", "b/2"]
    for name in shard["path"].to_pylist():
        assert table.open_path(name).is_file()
    assert not [n for n in tmp_path.iterdir() if n.name.startswith(".")]
