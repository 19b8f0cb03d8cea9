"""Saves: everything comes back, nothing is numbered again, and damage is found."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, load_from_disk

from st_hardneg.candidates import COLUMNS
from st_hardneg.config import MiningConfig
from st_hardneg.files import save as saves
from st_hardneg.files.save import read, save
from st_hardneg.files.schema import seal
from st_hardneg.files.tables import read_table, write_table
from st_hardneg.files.values import arrays_in
from tests.files.states import make_state, values_of


@pytest.fixture(scope="module")
def state():
    """A state with everything in it that a save can hold; no test changes it."""
    return make_state()


@pytest.fixture(scope="module")
def one_save(state, tmp_path_factory):
    """Where it was saved; no test changes that, either."""
    path = tmp_path_factory.mktemp("one") / "saved"
    save(str(path), state)
    return path


@pytest.fixture
def folder(one_save, tmp_path):
    """A copy of that save, for a test to change."""
    return shutil.copytree(one_save, tmp_path / "saved")


def json_of(folder) -> dict:
    return json.loads((folder / "st_hardneg.json").read_text(encoding="utf-8"))


def rewrite(folder, **changes) -> None:
    """Change keys of the JSON file; those that are ... are taken out."""
    content = {**json_of(folder), **changes}
    content = {name: value for name, value in content.items() if value is not ...}
    (folder / "st_hardneg.json").write_text(json.dumps(content), encoding="utf-8")


def sealed_again(folder) -> None:
    """Let files that were changed on purpose pass for those that were written."""
    rewrite(folder, files=seal(str(folder)))


@pytest.mark.parametrize("options", [{}, {"corpus": False}, {"mined": False}])
def test_everything_comes_back(tmp_path, options):
    """Rows, corpus, pairs, recipe, mining and the rows of the view; saved over an earlier save, and beside nothing."""
    state = make_state(**options)
    for _ in range(2):
        save(str(tmp_path / "saved"), state)
    found = read(str(tmp_path / "saved"))
    for name in ("rows", "corpus", "pairs"):
        arrays = dict(arrays_in(getattr(state, name), name))
        again = dict(arrays_in(getattr(found, name), name))
        assert arrays.keys() == again.keys() and all((arrays[key] == again[key]).all() for key in arrays)
        assert all(array.flags.writeable for array in again.values())
    plain = ("anchor_name", "positive_name", "negative_names", "label_name", "unused")
    assert all(getattr(found.rows, name) == getattr(state.rows, name) for name in plain)
    plain = ("num_given", "num_merged", "text_column", "id_column", "blocks")
    assert all(getattr(found.corpus, name) == getattr(state.corpus, name) for name in plain)
    everything = np.arange(len(state.corpus))
    assert found.corpus.texts.take(everything) == state.corpus.texts.take(everything)
    assert found.rows.dataset.to_dict() == state.rows.dataset.to_dict()
    assert found.pairs.query_texts() == state.pairs.query_texts()
    assert (found.config, found.needs, found.options) == (state.config, state.needs, state.options)
    assert found.num_minings == state.num_minings
    if state.mining is None:
        assert found.mining is None and found.live_rows is None
    else:
        assert values_of(found.mining) == values_of(state.mining)
        assert found.live_rows.tolist() == state.live_rows.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_the_wrapped_dataset_keeps_its_features_and_its_info(tmp_path):
    """License, citation and types of columns are in the save."""
    state = make_state()
    dataset = state.rows.dataset
    dataset.info.license, dataset.info.citation = "cc-by-4.0", "@misc{pairs}"
    save(str(tmp_path / "saved"), state)
    found = read(str(tmp_path / "saved")).rows.dataset
    assert (found.info.license, found.info.citation) == ("cc-by-4.0", "@misc{pairs}")
    assert found.features == dataset.features


def test_no_text_is_numbered_again(folder, monkeypatch):
    """Reading takes no digest of any text."""
    from st_hardneg.corpus import enumeration, identity, pairs

    def refuse(*_):
        raise AssertionError("a text was numbered")

    for module in (enumeration, pairs):
        for name in ("text_digests", "identity_keys"):
            monkeypatch.setattr(module, name, refuse)
    for module, name in ((identity, "text_digest"), (identity, "same_text_key")):
        monkeypatch.setattr(module, name, refuse)
    read(str(folder))


def test_rows_that_are_shuffled_and_texts_of_other_types(tmp_path):
    """A dataset with row numbers of its own, and a corpus of another text type, shuffled."""
    from st_hardneg.corpus.numbering import number_texts
    from st_hardneg.corpus.pairs import pair_up
    from st_hardneg.corpus.rows import read_rows

    dataset = Dataset.from_dict({"anchor": list("abcd"), "positive": list("efgh")}).shuffle(seed=1)
    table = pa.table({"text": pa.array(["x", "y", "z"], pa.large_string())})
    corpus = Dataset(table).shuffle(seed=2)
    rows = read_rows(dataset, None, None, use_given=False)
    numbered = number_texts(rows.positives, corpus)
    state = saves.SavedState(rows, numbered.corpus, pair_up(rows.anchors, numbered), MiningConfig())
    save(str(tmp_path / "saved"), state)
    found = read(str(tmp_path / "saved"))
    assert found.rows.dataset["anchor"][:] == dataset["anchor"][:]
    everything = np.arange(len(numbered.corpus))
    assert found.corpus.texts.take(everything) == numbered.corpus.texts.take(everything)


def test_rows_that_are_labelled_wrong_are_kept(tmp_path):
    """What a label says is no right answer is in the save, too."""
    from st_hardneg.corpus.numbering import Additions, number_texts
    from st_hardneg.corpus.pairs import pair_up
    from st_hardneg.corpus.rows import read_rows

    dataset = Dataset.from_dict({"anchor": list("aabb"), "positive": list("efgh"), "label": [1, 0, 1, 0]})
    rows = read_rows(dataset, None, None, use_given=True)
    given = rows.given_negatives()
    numbered = number_texts(rows.positives, additions=Additions(given=[texts for _, texts in given]))
    pairs = pair_up(rows.anchors, numbered, given_anchors=[anchors for anchors, _ in given])
    save(str(tmp_path / "saved"), saves.SavedState(rows, numbered.corpus, pairs, MiningConfig()))
    found = read(str(tmp_path / "saved"))
    assert found.rows.wrong.to_dict() == rows.wrong.to_dict() and str(found.rows) == str(rows)
    assert found.pairs.given_ids.tolist() == pairs.given_ids.tolist() != []


# --- files outlive versions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", sorted(set(saves.KEYS) - {"format", "config", "numbering"}))
def test_a_key_that_is_missing_takes_its_default(folder, key):
    """An earlier version did not write it."""
    rewrite(folder, **{key: ...})
    read(str(folder))


@pytest.mark.parametrize("name", list(MiningConfig().to_dict()))
def test_a_field_of_the_recipe_that_is_missing_takes_its_default(folder, state, name):
    """Unless something else in the save depends on it."""
    config = json_of(folder)["config"]
    del config[name]
    rewrite(folder, config=config)
    if name == "num_negatives":
        with pytest.raises(ValueError, match="does not hold lists of 3 values"):
            read(str(folder))
    else:
        assert getattr(read(str(folder)).config, name) == getattr(MiningConfig(num_negatives=2), name)


@pytest.mark.parametrize("name", ["churn", "scores", "notes"])
def test_a_figure_of_the_report_that_is_missing_takes_its_default(folder, name):
    """And the others are there."""
    report = json_of(folder)["report"]
    del report[name]
    rewrite(folder, report=report)
    assert read(str(folder)).mining.report.num_rows == 5


def test_what_a_later_version_has_written_is_named(folder, caplog):
    """Keys, fields and columns that are not known; figures of the report are even kept."""
    content = json_of(folder)
    content["config"]["moon_phase"] = "full"
    content["report"]["phases"] = 4
    content["numbering"]["corpus"]["languages"] = ["no"]
    table = read_table(str(folder), "negatives")
    write_table(str(folder), "negatives", table.append_column("tides", pa.array([1] * table.num_rows)))
    rewrite(folder, **{**content, "stars": 1, "files": {}})
    found = read(str(folder))
    for name in ("'stars'", "'config.moon_phase'", "'tides'", "'corpus.languages'"):
        assert f"holds [{name}], which this version of st_hardneg does not know" in caplog.text
    assert found.mining.report.further == {"phases": 4}
    assert found.mining.report.to_dict()["phases"] == 4


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in ("ids", "similarities")])
def test_a_column_that_is_missing_holds_what_stands_for_nothing(folder, state, name):
    """A save of a version that did not have it yet."""
    table = read_table(str(folder), "negatives")
    # A column in which nothing stands is not written.
    values = getattr(state.mining.negatives, name).flatten().tolist()
    is_empty = {repr(value) for value in values} == {repr(COLUMNS[name].missing)}
    assert (name in table.column_names) == (not is_empty)
    write_table(str(folder), "negatives", table if is_empty else table.drop_columns([name]))
    sealed_again(folder)
    column = getattr(read(str(folder)).mining.negatives, name)
    assert repr(column.tolist()) == repr(torch.full_like(column, COLUMNS[name].missing).tolist())
    assert column.dtype == COLUMNS[name].dtype


def test_a_name_that_is_no_text_is_damage(folder):
    """Names are read only where they differ, and what cannot be read is said to be damage."""
    table = read_table(str(folder), "negatives")
    place, names = table.column_names.index("sources"), table.column("sources").combine_chunks()
    offsets = np.arange(len(names.flatten()) + 1, dtype=np.int32)
    wrong = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(b"\xff" * len(offsets)))
    lists = pa.LargeListArray.from_arrays(names.offsets, wrong)
    write_table(str(folder), "negatives", table.set_column(place, "sources", lists))
    sealed_again(folder)
    with pytest.raises(ValueError, match="got a damaged one: a name cannot be read"):
        read(str(folder))


def test_a_later_form_is_refused(folder):
    """What cannot be read says with what it can."""
    rewrite(folder, format=2)
    with pytest.raises(ValueError, match=r"Expected a save of format 1 in .*, got 2. Read it with the version"):
        read(str(folder))


# --- damage -----------------------------------------------------------------------------------------------------------


def put(folder, table: str, name: str, values, **options) -> None:
    """Put other values into a column, and let the file pass for the one that was written."""
    found = read_table(str(folder), table)
    place = found.column_names.index(name)
    kind = options.get("type", found.schema.field(place).type)
    write_table(str(folder), table, found.set_column(place, name, pa.array(values, kind)))
    sealed_again(folder)


BROKEN = [
    ("negatives", "ids", lambda rows: [[10_000, 1]] * len(rows), "'ids' holds numbers outside of the corpus"),
    ("negatives", "ids", lambda rows: [[-2, 1]] * len(rows), "'ids' holds numbers outside of the corpus"),
    ("negatives", "ids", lambda rows: [[1]] * len(rows), "'ids' does not hold lists of 2 values"),
    ("negatives", "ids", lambda rows: [None, *rows[1:]], "'ids' does not hold lists of 2 values"),
    ("negatives", "ids", lambda rows: [[None, 1], *rows[1:]], "'ids' holds rows without a value"),
    ("negatives", "ids", lambda rows: [[1, 1, 1], [1], *rows[2:]], "'ids' does not hold lists of 2 values"),
    ("negatives", "similarities", lambda rows: [[float("nan"), 0]] * len(rows), "holds values that are not numbers"),
    ("negatives", "topics", lambda rows: [9] * len(rows), "'topics' holds numbers out of range"),
    ("negatives", "topics", lambda rows: [-1] * len(rows), "'topics' holds numbers out of range"),
    ("rows", "positive_similarities", lambda rows: [float("nan")] * len(rows), "holds values that are not numbers"),
    ("rows", "is_live", lambda rows: [None, *rows[1:]], "'is_live' holds rows without a value"),
    ("rows", "is_live", lambda rows: [True] * len(rows), "a row of the live view has an empty slot"),
]


@pytest.mark.parametrize(("table", "name", "change", "said"), BROKEN)
def test_numbers_that_cannot_be_are_found(folder, table, name, change, said):
    """Even where a stranger has made the files look whole."""
    put(folder, table, name, change(read_table(str(folder), table).column(name).to_pylist()))
    with pytest.raises(ValueError, match=f"got a damaged one: .*{said}"):
        read(str(folder))


@pytest.mark.parametrize("known", ["a positive", "the anchor"])
def test_a_negative_that_is_right_is_found(folder, state, known):
    """A known positive of its query, or the query itself."""
    right = int(state.pairs.positives_of(3)[0]) if known == "a positive" else int(state.corpus.anchor_ids[3])
    ids = state.mining.negatives.ids.tolist()
    ids[3][0] = right
    put(folder, "negatives", "ids", ids)
    with pytest.raises(ValueError, match="a negative is a known positive of its anchor, or the anchor itself"):
        read(str(folder))


@pytest.mark.parametrize("table", ["negatives", "rows", "numbering"])
def test_columns_of_other_types_and_other_numbers_of_rows_are_found(folder, table):
    """Text for numbers, one row less, or no column at all: called damaged, column by column."""
    whole = read_table(str(folder), table)
    for name in whole.column_names:
        is_names = name in ("sources", "origins")
        changed = whole.set_column(
            whole.column_names.index(name), name, pa.array([1.5 if is_names else "x"] * whole.num_rows)
        )
        write_table(str(folder), table, changed)
        sealed_again(folder)
        with pytest.raises(ValueError, match="got a damaged one"):
            read(str(folder))
    for changed in (whole.slice(1), whole.select([])):
        write_table(str(folder), table, changed)
        sealed_again(folder)
        with pytest.raises(ValueError, match="got a damaged one"):
            read(str(folder))


def numbering_of(folder) -> dict[str, list]:
    table = read_table(str(folder), "numbering")
    return {name: table.column(name)[0].as_py() for name in table.column_names}


def test_every_array_of_a_numbering_is_checked(folder):
    """Numbers that are too high or too low, and one less than there should be: each array, by itself."""
    whole = numbering_of(folder)
    anything_goes = {"corpus.draw_keys", "pairs.draw_keys", "pairs.known.query_clusters", "pairs.known.keys"}
    free_length = {"corpus.searched", "corpus.anchor_ids", "corpus.metadata_rows", "pairs.known.keys"}
    free_length |= {"pairs.own_positives.keys"} | {name for name in whole if name.startswith("corpus.parts.")}
    for name, numbers in whole.items():
        changes = [] if name in anything_goes else [[-5, *numbers[1:]], [*numbers[:-1], 10**12]]
        if name in ("rows.weights", "pairs.own_positives.keys", "pairs.known.text_clusters"):
            changes = changes[:1]
        changes += [] if name in free_length else [numbers[:-1]]
        for changed in changes:
            table = pa.table({key: pa.array([changed if key == name else whole[key]]) for key in whole})
            table = table.cast(pa.schema([(key, pa.large_list(pa.int64())) for key in whole]))
            write_table(str(folder), "numbering", table)
            sealed_again(folder)
            with pytest.raises(ValueError, match="got a damaged one"):
                read(str(folder))


def test_every_array_has_its_limits(state):
    """Whoever adds an array to rows, corpus or pairs says how long it is and what it counts."""
    from st_hardneg.files.limits import limit_of

    for name in ("rows", "corpus", "pairs"):
        for key, _ in arrays_in(getattr(state, name), name):
            assert limit_of(key) is not None, f"{key} is not in st_hardneg/files/limits.py"


def test_the_plain_part_of_a_numbering_is_checked(folder):
    """Another kind of value, a part that is missing, an array that is not there."""
    plain = json_of(folder)["numbering"]

    def changed(part: str, name: str, value) -> dict:
        inner = {**plain[part], name: value}
        return {**plain, part: {key: one for key, one in inner.items() if one is not ...}}

    wrong = [
        {},
        {**plain, "pairs": None},
        changed("corpus", "identities", ...),
        changed("corpus", "identities", {"array": "corpus.nothing"}),
        changed("corpus", "identities", [1, 2]),
        changed("corpus", "num_given", 2),
        changed("corpus", "num_given", "6"),
        changed("corpus", "text_column", "year"),
        changed("corpus", "blocks", [{"name": "corpus", "start": 0}]),
        changed("corpus", "blocks", [{"name": "corpus", "start": 0, "stop": 3}]),
        changed("corpus", "blocks", {}),
        changed("corpus", "parts", []),
        changed("rows", "anchor_name", "negative"),
        changed("rows", "anchor_name", ["anchor"]),
        changed("rows", "weights", None),
    ]
    for numbering in wrong:
        rewrite(folder, numbering=numbering)
        with pytest.raises(ValueError, match="got a damaged one"):
            read(str(folder))


@pytest.mark.parametrize("part", ["pairs", "corpus", "added"])
def test_other_texts_in_the_place_of_those_that_were_saved(folder, part, tmp_path):
    """Texts that are longer, shuffled, or one less: the numbers would be those of others."""
    texts = load_from_disk(str(folder / part))
    name = "positive" if part == "pairs" else "text"
    for changed in (
        texts.map(lambda row: {name: row[name] + "!"}),
        texts.select(range(len(texts) - 1, -1, -1)),
        texts.select(range(len(texts) - 1)),
        texts.rename_column(name, "other"),
        texts.remove_columns(name).add_column(name, [None] * len(texts)),
    ):
        changed.save_to_disk(str(tmp_path / "new"))
        for seal_it in (False, True):
            shutil.copytree(folder, tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy" / part)
            shutil.copytree(tmp_path / "new", tmp_path / "copy" / part)
            if seal_it:
                sealed_again(tmp_path / "copy")
            with pytest.raises(ValueError, match="got a damaged one"):
                read(str(tmp_path / "copy"))
            shutil.rmtree(tmp_path / "copy")
        shutil.rmtree(tmp_path / "new")


@pytest.mark.parametrize("part", ["pairs", "corpus", "added", "negatives.arrow", "rows.arrow", "numbering.arrow"])
@pytest.mark.parametrize("how", ["lost", "cut", "flipped"])
def test_files_that_are_lost_or_cut(folder, part, how):
    """Each is named or called damaged; a flipped byte is found in numbers, and texts are left to the file system."""
    if how == "lost":
        os.rename(folder / part, folder / "elsewhere")
    else:
        (path,) = (folder / part).glob("*.arrow") if (folder / part).is_dir() else [folder / part]
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        if how == "flipped" and (folder / part).is_dir():
            return
        path.write_bytes(bytes(content if how == "flipped" else content[: len(content) // 2]))
    for seal_it in (False, True) if how != "flipped" else (False,):
        if seal_it:
            sealed_again(folder)
        with pytest.raises(ValueError, match="got a damaged one"):
            read(str(folder))


def test_files_that_datasets_puts_beside_are_no_damage(folder):
    """`map` on what was loaded leaves its cache in the folder of the dataset."""
    (folder / "pairs" / "cache-0123456789.arrow").write_bytes(b"x")
    read(str(folder))


def test_offsets_that_point_outside_of_the_texts_are_found(folder):
    """A file that makes Arrow read what is not its own is not followed."""
    (path,) = (folder / "added").glob("*.arrow")
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    text = table.column("text").chunk(0)
    width = np.int64 if pa.types.is_large_string(text.type) else np.int32
    offsets = np.frombuffer(text.buffers()[1], dtype=width)[: len(text) + 1]
    raw = path.read_bytes()
    place = raw.index(offsets.tobytes())
    broken = offsets.copy()
    broken[len(text) // 2] = 10**6
    path.write_bytes(raw[:place] + broken.tobytes() + raw[place + len(broken.tobytes()) :])
    with pytest.raises(ValueError, match="got a damaged one: the column 'text' of 'added'"):
        read(str(folder))


# --- files of strangers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["../negatives.arrow", "/etc/passwd", "../../other/data.arrow", 7])
def test_a_save_that_names_files_outside_is_refused(folder, named):
    """Its rows are not read."""
    path = folder / "pairs" / "state.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["_data_files"][0]["filename"] = named
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="names a file outside of its folder"):
        read(str(folder))


def test_a_link_to_a_file_outside_is_refused(folder, tmp_path):
    """Neither are they read through a link."""
    (path,) = (folder / "pairs").glob("*.arrow")
    os.rename(path, tmp_path / "elsewhere.arrow")
    os.symlink(tmp_path / "elsewhere.arrow", path)
    with pytest.raises(ValueError, match="names a file outside of its folder"):
        read(str(folder))


def test_a_pattern_that_may_take_for_ever_is_not_run(folder, state):
    """It is named, with the way to allow it; one's own recipe is taken as it is."""
    rewrite(folder, config=json_of(folder)["config"] | {"exclude_pattern": "^(a+)+$"})
    with pytest.raises(
        ValueError, match=r"has `exclude_pattern='\^\(a\+\)\+\$'`, which may take for ever on some texts"
    ):
        read(str(folder))
    own = MiningConfig(num_negatives=2, exclude_pattern="^(a+)+$", relative_margin=0.1)
    assert read(str(folder), config=own).config == own
    with pytest.raises(ValueError, match=r"Expected a `config` with `num_negatives=2`, as .* was saved with, got 3"):
        read(str(folder), config=MiningConfig())
    with pytest.raises(ValueError, match="Expected a `config` with `identity='normalized'`"):
        read(str(folder), config=replace(own, identity="exact"))


# --- sources by name --------------------------------------------------------------------------------------------------


def test_sources_are_written_by_name(folder, state):
    """A reader that counts other sources, in another order, reads the same names."""
    table = read_table(str(folder), "negatives")
    assert table.column("sources").to_pylist()[:2] == [["web", "dense"], ["web", None]]
    assert table.column("origins").to_pylist()[:2] == [["mined", "mined"], ["mined", None]]
    for names in ([], ["lexical", "dense"], ["anchors", "given", "web"]):
        rewrite(folder, source_names=names)
        found = read(str(folder)).mining
        assert found.source_names[: len(names)] == tuple(names)
        sources = [[found.source_names[one] if one >= 0 else None for one in row] for row in found.negatives.sources]
        assert sources == table.column("sources").to_pylist()


def test_an_origin_that_is_not_known_counts_as_a_last_resort(folder, caplog):
    """What a later version filled in its own way is not trusted: losses mask it."""
    from st_hardneg.candidates import LAST_RESORT, ORIGINS

    origins = read_table(str(folder), "negatives").column("origins").to_pylist()
    put(folder, "negatives", "origins", [["elastic", None], *origins[1:]])
    found = read(str(folder)).mining
    assert found.negatives.origins[0].tolist() == [LAST_RESORT, 0] and len(ORIGINS) == 6
    assert "filled as ['elastic']" in caplog.text


def test_too_many_names_are_damage(folder, state):
    """Sources are counted in one byte."""
    table = read_table(str(folder), "negatives")
    names = [[f"s{2 * row}", f"s{2 * row + 1}"] for row in range(table.num_rows)]
    put(folder, "negatives", "sources", names)
    rewrite(folder, source_names=[f"n{number}" for number in range(125)])
    with pytest.raises(ValueError, match="there are 133 different names"):
        read(str(folder))


# --- what is refused before anything is written -----------------------------------------------------------------------


def test_other_content_is_not_overwritten(state, tmp_path):
    """A folder with something else in it, and a file."""
    (tmp_path / "precious.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(FileExistsError, match="a folder with other content"):
        save(str(tmp_path), state)
    with pytest.raises(FileExistsError, match="to be a folder, got a file"):
        save(str(tmp_path / "precious.txt"), state)
    with pytest.raises(FileNotFoundError, match=r"written by `HardNegativeDataset.save_to_disk`"):
        read(str(tmp_path))
    assert (tmp_path / "precious.txt").read_text(encoding="utf-8") == "keep"


def test_tensors_are_tensors_of_their_own(folder):
    """What was read can be written to, and does not hang on the file."""
    found = read(str(folder))
    shutil.rmtree(folder)
    found.mining.negatives.ids[:] = 0
    assert torch.equal(found.mining.negatives.ids, torch.zeros(4, 2, dtype=torch.int64))
