"""Feature sources: rows get every document's own features, from the target or from disk to the last bit."""

import pytest
import torch
from feature_runs import LAYER_IDS, conversations, rows_of, run_config

from dflash.data.rows import Row
from dflash.errors import UserError
from dflash.features.cache_folder import CacheFolder
from dflash.features.capture import capture
from dflash.features.in_process import InProcessFeatures, _groups
from dflash.features.micro_batch import MicroBatchPreparer
from dflash.features.prefetch import Prefetcher
from dflash.features.source import open_source, prefetch_depth
from dflash.target import TargetModel


@pytest.fixture(scope="module")
def items(tiny_target):
    return conversations(tiny_target.tokenizer)


@pytest.fixture
def cache(tiny_target, tiny_target_folder, items, tmp_path):
    """A folder with all conversations, in several shards."""
    config = run_config(tiny_target_folder)
    capture(config, tiny_target, LAYER_IDS, items, tmp_path / "cache", shard_bytes=60_000, progress=False)
    return tmp_path / "cache"


def cached_run(target_folder, cache, **sections):
    return run_config(target_folder, features={"source": "cache", "cache": str(cache)}, **sections)


@pytest.mark.parametrize("packing", [False, True])
def test_every_document_of_a_row_is_seen_on_its_own(tiny_target, items, packing):
    rows = rows_of(items, packing)
    features = InProcessFeatures(tiny_target, LAYER_IDS)(rows)
    assert features.shape == (len(rows), max(map(len, rows)), 3 * 32)
    for row, given in zip(rows, features, strict=True):
        for start, document in zip(row.starts, row.documents, strict=True):
            alone = tiny_target.features(torch.tensor([document]), LAYER_IDS)[0]
            assert torch.equal(given[start : start + len(document)], alone)
        assert not given[len(row) :].any(), "padding is zero"


def test_rows_are_padded_as_far_as_asked(tiny_target, items):
    row = rows_of(items)[0]
    features = InProcessFeatures(tiny_target, LAYER_IDS)([row], length=128)
    assert features.shape[1] == 128 and not features[0, len(row) :].any()


def test_layers_above_the_last_captured_one_are_not_computed(tiny_target, items):
    ran = []
    handles = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(tiny_target.layers)
    ]
    try:
        InProcessFeatures(tiny_target, [0, 2])(rows_of(items)[:1])
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1, 2]


def test_batched_documents_equal_single_ones_whatever_stands_beside_them(tiny_target, items, monkeypatch):
    # The grouping of a GPU, run on the CPU: right padding must not reach a document.
    monkeypatch.setattr(
        "dflash.features.in_process._groups", lambda lengths, budget, _: _groups(lengths, budget, torch.device("cuda"))
    )
    rows = rows_of(items)
    alone = [tiny_target.features(torch.tensor([row.input_ids]), LAYER_IDS)[0] for row in rows]
    for features, row, expected in zip(InProcessFeatures(tiny_target, LAYER_IDS)(rows), rows, alone, strict=True):
        torch.testing.assert_close(features[: len(row)], expected, atol=1e-5, rtol=1e-5)


def test_forwards_on_a_gpu_hold_neighbours_in_length_within_the_budget():
    groups = _groups([10, 100, 12, 90, 300], 200, torch.device("cuda"))
    assert groups == [[4], [1, 3], [2, 0]]
    assert _groups([10, 100], 200, torch.device("cpu")) == [[0], [1]]


def test_callers_autocast_changes_nothing(tiny_target, items):
    source, rows = InProcessFeatures(tiny_target, LAYER_IDS), rows_of(items)[:2]
    with torch.autocast("cpu", torch.bfloat16):
        inside = source(rows)
    assert torch.equal(inside, source(rows))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("packing", [False, True])
def test_the_cache_gives_the_same_features_to_the_last_bit(tiny_target_folder, items, tmp_path, dtype, packing):
    target = TargetModel.load(tiny_target_folder, dtype=dtype)
    config = cached_run(tiny_target_folder, tmp_path / "cache", target={"dtype": dtype})
    capture(config, target, LAYER_IDS, items, tmp_path / "cache", shard_bytes=40_000, progress=False)
    parts = TargetModel.load(tiny_target_folder, dtype=dtype, layers=False)
    rows = rows_of(items, packing)
    cached = open_source(config, parts, LAYER_IDS, rows)
    in_process = open_source(run_config(tiny_target_folder, target={"dtype": dtype}), target, LAYER_IDS)
    for first in range(0, len(rows), 2):
        micro_batch = rows[first : first + 2]
        features = cached(micro_batch)
        assert features.dtype == target.dtype
        assert torch.equal(features, in_process(micro_batch))
    cached.close()
    assert torch.equal(cached(rows), in_process(rows)), "a closed source opens its shards again"


def test_equal_conversations_are_stored_once_and_found_under_every_id(tiny_target, tiny_target_folder, items, tmp_path):
    twin = Row(("another id",), items[0].input_ids, items[0].loss_mask)
    config = cached_run(tiny_target_folder, tmp_path)
    report = capture(config, tiny_target, LAYER_IDS, [items[0], items[0]], tmp_path, progress=False)
    assert report.documents == 1
    assert len(open_source(config, tiny_target, LAYER_IDS, [twin])([twin])) == 1


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"target": {"dtype": "bfloat16"}}, "dtype float32, the run has bfloat16"),
        ({"data": {"max_length": 80}}, "max_length 96, the run has 80"),
    ],
)
def test_a_cache_of_other_settings_is_refused_in_one_sentence(tiny_target_folder, cache, items, sections, said):
    config = cached_run(tiny_target_folder, cache, **sections)
    target = TargetModel.load(tiny_target_folder, dtype=config.target.dtype, layers=False)
    with pytest.raises(UserError, match=rf"does not fit this run: .*{said}.*`dflash capture CONFIG --out") as caught:
        open_source(config, target, LAYER_IDS, rows_of(items))
    assert "\n" not in str(caught.value)


def test_a_cache_of_other_layers_is_refused(tiny_target, tiny_target_folder, cache):
    with pytest.raises(UserError, match=r"layer_ids \[1, 2, 4\], the run has \[1, 2, 3\]"):
        open_source(cached_run(tiny_target_folder, cache), tiny_target, [1, 2, 3])


def test_a_cache_of_another_target_template_or_tokenizer_is_refused(tiny_target_folder, cache, tmp_path):
    def changed(change):
        target = TargetModel.load(tiny_target_folder, dtype="float32")
        change(target)
        target.model.save_pretrained(tmp_path / "other")
        target.tokenizer.save_pretrained(tmp_path / "other")
        return TargetModel.load(str(tmp_path / "other"), dtype="float32", layers=False)

    def train_one_matrix(target):
        target.layers[3].mlp.up_proj.weight.add_(1e-3)

    def another_template(target):
        target.tokenizer.chat_template += "{# changed #}"

    def another_token(target):
        target.tokenizer.add_tokens(["<new>"])

    config = cached_run(str(tmp_path / "other"), cache)
    for change, said in (
        (train_one_matrix, "holds features of target .* the run's is"),
        (another_template, "another chat template"),
        (another_token, "another tokenizer"),
    ):
        target = changed(change)
        with pytest.raises(UserError, match=said):
            open_source(config, target, LAYER_IDS)


def test_the_same_target_under_another_path_is_recognised(tiny_target, tiny_target_folder, cache, items, tmp_path):
    tiny_target.model.save_pretrained(tmp_path / "copy")
    tiny_target.tokenizer.save_pretrained(tmp_path / "copy")
    copy = TargetModel.load(str(tmp_path / "copy"), dtype="float32", layers=False)
    rows = rows_of(items)
    assert len(open_source(cached_run(copy.name, cache), copy, LAYER_IDS, rows)(rows)) == len(rows)


def test_a_conversation_that_is_not_in_the_cache_is_named_at_opening_with_the_command(
    tiny_target, tiny_target_folder, cache, items
):
    longer = conversations(tiny_target.tokenizer, count=9)  # c6, cut before, is another text here
    with pytest.raises(UserError, match=rf"'c6' and 2 more of this run: `dflash capture CONFIG --out {cache}`"):
        open_source(cached_run(tiny_target_folder, cache), tiny_target, LAYER_IDS, rows_of(longer))
    source = open_source(cached_run(tiny_target_folder, cache), tiny_target, LAYER_IDS, rows_of(items))
    with pytest.raises(UserError, match="lacks conversation 'c6'"):
        source(rows_of(longer)[6:7])


def test_a_run_without_a_cache_folder_is_refused(tiny_target, tiny_target_folder, tmp_path):
    with pytest.raises(UserError, match="holds no feature cache.*dflash capture"):
        open_source(cached_run(tiny_target_folder, tmp_path), tiny_target, LAYER_IDS)


def flip_a_byte(shard):
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize("harm", [flip_a_byte, lambda s: s.write_bytes(s.read_bytes()[:-8]), lambda s: s.unlink()])
def test_a_damaged_shard_is_named_and_only_its_documents_are_captured_again(
    tiny_target, tiny_target_folder, cache, items, harm
):
    config, rows = cached_run(tiny_target_folder, cache), rows_of(items)
    before = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.safetensors")}
    assert len(before) > 2
    shard = CacheFolder(cache).shard(1)
    documents = sum(entry.shard == 1 for entry in CacheFolder(cache).entries().values())
    harm(shard)
    with pytest.raises(UserError, match=rf"{shard}.* delete it and run `dflash capture CONFIG --out {cache}`"):
        open_source(config, tiny_target, LAYER_IDS, rows)(rows)
    shard.unlink(missing_ok=True)
    report = capture(config, tiny_target, LAYER_IDS, items, cache, progress=False)
    assert (report.documents, report.resumed) == (documents, len(items) - documents)
    after = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.safetensors")}
    assert all(after[name] == time for name, time in before.items() if name != shard.name), "the others are untouched"
    expected = open_source(run_config(tiny_target_folder), tiny_target, LAYER_IDS)(rows)
    assert torch.equal(open_source(config, tiny_target, LAYER_IDS, rows)(rows), expected)


@pytest.mark.parametrize("file", ["cache.json", "shard-00001.json"])
def test_a_damaged_index_is_named(tiny_target, tiny_target_folder, cache, file):
    (cache / file).write_text('{"format": 1')
    with pytest.raises(UserError, match=f"{cache}.*{file}"):
        open_source(cached_run(tiny_target_folder, cache), tiny_target, LAYER_IDS)


@pytest.mark.parametrize("depth", [0, 2])
def test_micro_batches_hold_what_collate_and_the_source_give(tiny_target, items, depth):
    rows, source = rows_of(items), InProcessFeatures(tiny_target, LAYER_IDS)
    groups = [rows[:2], rows[2:4], rows[4:]]
    with Prefetcher(MicroBatchPreparer(source, "cpu", multiple=64), groups, depth) as micro_batches:
        for group, micro_batch in zip(groups, micro_batches, strict=True):
            micro_batch.wait()
            assert micro_batch.rows == tuple(group)
            assert micro_batch.batch.input_ids.shape[1] % 64 == 0
            assert micro_batch.features.shape[:2] == micro_batch.batch.input_ids.shape
            assert torch.equal(micro_batch.features[:, : max(map(len, group))], source(group))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_micro_batches_on_a_gpu_arrive_complete(tiny_target_folder, cache, items):
    target = TargetModel.load(tiny_target_folder, dtype="float32", device="cuda", layers=False)
    rows = rows_of(items)
    source = open_source(cached_run(tiny_target_folder, cache), target, LAYER_IDS, rows)
    groups = [rows[i : i + 2] for i in range(0, len(rows), 2)] * 10
    with Prefetcher(MicroBatchPreparer(source, "cuda"), groups, 2) as micro_batches:
        for group, micro_batch in zip(groups, micro_batches, strict=True):
            assert torch.equal(micro_batch.wait().features.cpu(), source(group))


def test_a_target_on_the_cpu_is_not_run_beside_the_draft_unless_asked(tiny_target_folder):
    assert prefetch_depth(run_config(tiny_target_folder).features, "cpu") == 0
    assert prefetch_depth(run_config(tiny_target_folder).features, "cuda:1") == 2
    assert prefetch_depth(cached_run(tiny_target_folder, "x").features, "cpu") == 2
    assert prefetch_depth(run_config(tiny_target_folder, features={"prefetch": 1}).features, "cpu") == 1
    assert prefetch_depth(cached_run(tiny_target_folder, "x").features.model_copy(update={"prefetch": 0}), "cuda") == 0
