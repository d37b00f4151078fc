"""Token pieces join up to the text, whatever the bytes are."""

import torch

from dflash.decoding.pieces import PieceDecoder, token_pieces


def test_pieces_join_up_to_the_text_across_multibyte_characters(tiny_target):
    text = "Grüße aus 北京 🙂 <b>bold</b> & more\n"
    ids = tiny_target.tokenizer(text, add_special_tokens=False).input_ids
    pieces = token_pieces(tiny_target.tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_special_tokens_are_shown(tiny_target):
    ids = tiny_target.tokenizer("<|im_start|>hi<|im_end|>", add_special_tokens=False).input_ids
    assert token_pieces(tiny_target.tokenizer, ids) == ["<|im_start|>", "h", "i", "<|im_end|>"]


def test_broken_bytes_do_not_hold_back_what_follows(tiny_target):
    tokenizer = tiny_target.tokenizer
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (200,), generator=generator).tolist()
    ids += tokenizer("the end", add_special_tokens=False).input_ids
    assert "".join(token_pieces(tokenizer, ids)).endswith("the end")


def test_a_fork_leaves_its_parent_alone(tiny_target):
    tokenizer = tiny_target.tokenizer
    first, second = tokenizer("ab", add_special_tokens=False).input_ids
    decoder = PieceDecoder(tokenizer)
    assert decoder.fork().push(first) == "a"
    assert decoder.push(second) == "b"
