"""A target without its layers: the same parts, none of the weights between them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_target import FAMILIES
from transformers import AutoModelForCausalLM

from dflash.errors import UserError
from dflash.target import TargetModel


@pytest.fixture(scope="module", params=FAMILIES)
def family_folder(request, tiny_target, tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("family")
    AutoModelForCausalLM.from_config(FAMILIES[request.param]()).save_pretrained(folder)
    tiny_target.tokenizer.save_pretrained(folder)
    return str(folder)


def test_every_family_gives_the_same_parts_with_and_without_its_layers(family_folder):
    whole = TargetModel.load(family_folder, dtype="float32")
    parts = TargetModel.load(family_folder, dtype="float32", layers=False)
    assert sum(p.numel() for p in parts.model.parameters()) < 0.6 * sum(p.numel() for p in whole.model.parameters())
    ids = torch.arange(2, 20)[None]
    assert torch.equal(parts.embedding(ids), whole.embedding(ids)), "scaled embeddings included"
    assert torch.equal(parts.lm_head.weight, whole.lm_head.weight)
    assert torch.equal(parts.final_norm.weight, whole.final_norm.weight)
    for name in ("num_layers", "hidden_size", "vocab_size", "max_length", "eos_token_ids", "dtype", "device"):
        assert getattr(parts, name) == getattr(whole, name), name


def test_what_needs_the_layers_says_so_instead_of_computing_without_them(tiny_target_folder):
    parts = TargetModel.load(tiny_target_folder, dtype="float32", layers=False)
    ids = torch.arange(5)[None]
    for use in (lambda: parts.forward(ids), lambda: parts.features(ids, [1]), lambda: parts.layers[-1]):
        with pytest.raises(RuntimeError, match="without its layers"):
            use()


def test_a_family_that_cannot_be_loaded_in_parts_is_loaded_as_a_whole(tiny_target_folder, monkeypatch):
    load = AutoModelForCausalLM.from_pretrained

    def no_parts(source, config=None, **options):
        if config is not None:
            raise IndexError("layer_types[0]")
        return load(source, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", no_parts)
    target = TargetModel.load(tiny_target_folder, dtype="float32", layers=False)
    assert len(target.layers) == 6


def test_a_target_that_cannot_be_loaded_is_one_sentence_in_parts_too(tiny_target_folder, tmp_path):
    with pytest.raises(UserError, match="could not be loaded"):
        TargetModel.load("no/such-model", layers=False)
    with pytest.raises(UserError, match="no revision 'main'"):
        TargetModel.load(tiny_target_folder, revision="main")
    with pytest.raises(UserError, match="one revision only"):
        TargetModel.load("smollm2-135m", revision="main")


def test_two_threads_that_share_a_target_get_their_own_features(tiny_target):
    texts = [torch.randint(2, 250, (1, 60), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    layers = [[1, 4], [2]]
    expected = [tiny_target.features(ids, wanted) for ids, wanted in zip(texts, layers)]

    def work(which):
        return all(torch.equal(tiny_target.features(texts[which], layers[which]), expected[which]) for _ in range(30))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, range(2)))
