"""Text in any pieces is the same stream of ids: strings, ids, files, generators, byte and BPE tokenizers."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from continual.learners import cuts
from continual.tiny import tiny
from exact import same
from nestling.continual import text as texts
from nestling.continual.learner import Learner
from nestling.continual.level import Level
from nestling.continual.text import Encoder
from nestling.data.tokenizer import ByteTokenizer, train_bpe
from nestling.errors import InputError

TEXT = "def gülle(x):\r\n\treturn 'π ≈ 3.14' * x\n\n\n  # 🐦 a nestling\n" * 4 + "the last line 🐣 never ends"


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([TEXT * 3], 290)


@pytest.fixture(scope="module")
def hf(bpe, tmp_path_factory):
    """The same vocabulary as a tokenizer of transformers, with one token that begins and one that ends documents."""
    folder = tmp_path_factory.mktemp("hf")
    bpe.save(folder / "tokenizer.json")
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=bpe.decode([5]), eos_token="<|endoftext|>"
    )


@pytest.fixture(params=["bytes", "bpe", "hf"])
def tokenizer(request):
    return ByteTokenizer() if request.param == "bytes" else request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model():
    return tiny("transformer++", vocab_size=300, num_hidden_layers=1)


def learner(model, tokenizer):
    return Learner(model, tokenizer, [Level("slow", 32), Level("fast", 16)])


def test_strings_files_and_generators_in_any_pieces_are_one_text(tokenizer, model, tmp_path):
    whole = learner(model, tokenizer)
    whole.read(TEXT)
    assert whole.position > 64
    (tmp_path / "a").write_text(TEXT[:70], encoding="utf-8", newline="")
    (tmp_path / "b").write_text(TEXT[70:], encoding="utf-8", newline="")
    for pieces in (list(TEXT), cuts(TEXT, longest=60), [[TEXT[:5], [TEXT[5:9]], (c for c in TEXT[9:])]]):
        other = learner(model, tokenizer)
        for piece in pieces:
            other.read(piece)
        assert same(other.state(), whole.state())
    other = learner(model, tokenizer)
    other.read([tmp_path / "a", tmp_path / "b"])
    assert same(other.state(), whole.state())


def test_ids_are_read_as_they_are(model):
    ids = list(TEXT.encode())
    expected = learner(model, ByteTokenizer())
    expected.read(TEXT)
    for form in (ids, tuple(ids), torch.tensor(ids), np.array(ids, np.uint8), iter([ids[:40], np.array(ids[40:])])):
        other = learner(model, ByteTokenizer())
        other.read(form)
        assert same(other.state(), expected.state())


def test_what_waits_is_context_and_is_read_when_the_document_ends(tokenizer, model):
    one = learner(model, tokenizer)
    done = one.read(TEXT, end=True)
    fresh = Encoder(tokenizer, 300)
    ids = torch.cat([*fresh.pieces(TEXT), fresh.end(), torch.tensor([one.encoder.stop])])
    assert one.position + done.pending == len(ids)
    assert one.encoder.waiting == ""
    assert done.pending == len(one.pending)
    whole = learner(model, tokenizer)
    whole.read(TEXT)
    assert whole.encoder.decode(whole.waiting()).endswith("er ends")
    assert len(whole.waiting()) == len(ids) - 1 - whole.position


def test_tokens_bytes_and_bits_are_counted(tokenizer, model):
    one = learner(model, tokenizer)
    done = one.read(TEXT, end=True)
    assert done.tokens == one.position
    fresh = Encoder(tokenizer, 300)
    ids = torch.cat([*fresh.pieces(TEXT), fresh.end()])
    size = one.position if fresh.bytewise else len(fresh.decode(ids[: one.position]).encode())
    assert done.size == size, "characters that segments cut count once"
    assert done.bits_per_byte == pytest.approx(done.nats / np.log(2) / done.size)
    assert done.loss == done.nats / done.tokens
    plain = learner(model, tokenizer)
    done = plain.read("only ASCII\n" * 30)
    left = plain.encoder.decode(plain.pending)
    assert done.size == 330 - len(left)
    empty = one.read("")
    assert np.isnan([empty.loss, empty.bits_per_byte]).all()


def test_documents_begin_and_end_with_the_tokens_for_it(hf, model):
    encoder = Encoder(hf, 300)
    assert (encoder.start, encoder.stop) == (hf.bos_token_id, hf.eos_token_id)
    assert encoder.start != encoder.stop
    assert (Encoder(ByteTokenizer(), 256).start, Encoder(None, 256).stop) == (0, None)
    with pytest.raises(InputError, match=r"tokenizer marks documents by id \d+, but the model knows 0..1"):
        _ = Encoder(hf, 2).start


def test_a_line_beyond_the_longest_is_cut_at_the_same_places(monkeypatch, bpe):
    monkeypatch.setattr(texts, "LONGEST_LINE", 16)
    line = "".join(chr(97 + i % 23) for i in range(100))
    for length in (15, 16, 17, 31, 32, 33, 100):
        text = f"{line[:length]}\n{line}"
        expected = Encoder(bpe, 300)
        whole = torch.cat([*expected.pieces(text)])
        for pieces in (text, cuts(text, longest=40), [text[:length], text[length:]]):
            other = Encoder(bpe, 300)
            assert torch.equal(torch.cat([*other.pieces(list(pieces))]), whole)
            assert other.waiting == expected.waiting
            assert len(other.waiting) < 16
        assert expected.decode(torch.cat((whole, expected.end()))) == text


def test_half_a_character_and_bytes_that_are_no_text_are_read_as_replacements(bpe, tmp_path):
    for tokenizer in (ByteTokenizer(), bpe):
        assert len(Encoder(tokenizer, 300).encode("\ud83d")) > 0
    (tmp_path / "broken").write_bytes(b"ab\xff\xfec\n")
    [ids] = Encoder(ByteTokenizer(), 256).pieces(tmp_path / "broken")
    assert bytes(ids.tolist()).decode() == "ab��c\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.tensor([[1, 2]]), r"ids have the shape \(1, 2\)"),
        (torch.tensor([1, 300]), r"ids lie in 1..300, but the model knows 0..299"),
        ([-1], r"ids lie in -1..-1"),
        (torch.tensor([0.5]), r"ids are float32: give whole numbers"),
        (None, "text is a NoneType"),
        (["a", None], "text is a NoneType"),
        (b"abc", "text is bytes: decode them first"),
    ],
)
def test_what_is_no_text_is_refused_in_one_sentence(model, given, message):
    one = learner(model, ByteTokenizer())
    with pytest.raises(InputError, match=message) as error:
        one.read(given)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_and_text_without_a_tokenizer_are_refused(model, tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        learner(model, ByteTokenizer()).read(tmp_path / "none")
    with pytest.raises(InputError, match="no tokenizer"):
        learner(model, None).read("text\n")


def test_a_line_that_can_t_be_encoded_still_waits(model):
    class Wide(ByteTokenizer):
        fingerprint = "wide"

        def encode(self, text):
            return super().encode(text).astype(np.int64) + 299 * text.count("!")

    one = learner(model, Wide())
    one.read("ab")
    with pytest.raises(InputError, match="ids lie in"):
        one.read("c!\n")
    assert one.encoder.waiting == "ab"
