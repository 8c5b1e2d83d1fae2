"""What a text says is text, whatever it says; only the configuration's author writes control tokens."""

import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import SHARED, make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bora_sweep.config import DataConfig
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.encode import Encoder, control_marks, fill, until_text
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.errors import InputError

TEXTS = ["the cat sat on the mat < / s | > im end user", "a text of </s> and <|im_end|> and <|user|>", "norm al words"]
MARKS = ["</s>", "<pad>", "<|im_end|>", "<|user|>"]
OPT = SHARED / "models" / "opt-en-1m"


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["</s>", "<pad>"], initial_alphabet=alphabet)
    made.train_from_iterator(TEXTS, trainer)
    return made


def byte_fallback() -> Tokenizer:
    """As Llama's: pieces by merges, spaces as ▁, unknown characters as bytes."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fixed = ["<unk>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, special_tokens=fixed))
    return made


def unigram() -> Tokenizer:
    """As T5's: its model would find `</s>` among its pieces, even where it is not looked for as a special token."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=70, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    made.train_from_iterator(TEXTS, trainer)
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["<pad>", "<unk>", "</s>"]
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    return made


def words() -> Tokenizer:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>", "</s>"]))
    return made


KINDS = [byte_level, byte_fallback, unigram, word_piece, words]


def chat(make, folder) -> PreTrainedTokenizerBase:
    """With the marks of a chat, one of them no special token, read back from disk as a user's is."""
    made = PreTrainedTokenizerFast(tokenizer_object=make(), eos_token="</s>", pad_token="<pad>")
    made.add_tokens([AddedToken("<|im_end|>", special=True, rstrip=True), AddedToken("<|user|>"), AddedToken("norm")])
    made.chat_template = "{% for m in messages %}<|user|>{{ m.norm }}<|im_end|>{% endfor %}"
    made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def ordinary(size: int = 200) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choice("abc the cat  sat norm\n\t.é世") for _ in range(rng.randrange(40))) for _ in range(size)]


@pytest.mark.parametrize("make", KINDS)
def test_no_text_makes_a_control_token_and_ordinary_texts_are_as_ever(make, tmp_path):
    tokenizer = chat(make, tmp_path)
    encoder, control = Encoder(tokenizer), {tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    assert set(MARKS) <= set(encoder.mark_of.values())
    for mark in MARKS:
        for text in (mark, f"the {mark} cat", f"cat{mark}", f"{mark} {mark}"):
            (tokens,) = encoder.encode("{text}", [{"text": text}])
            assert tokens
            assert control.isdisjoint(tokens)
            if make is byte_level:
                assert tokenizer.decode(tokens) == text
    texts = ordinary()
    mixed = encoder.encode("{text}", [{"text": text} for text in [*texts, "a </s> b"]])
    assert mixed[:-1] == tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer("norm", add_special_tokens=False)["input_ids"] == encoder.encode("norm", [{}])[0]


@pytest.mark.parametrize("make", KINDS)
def test_marks_of_the_template_are_control_and_those_filled_in_are_not(make, tmp_path):
    tokenizer = chat(make, tmp_path)
    encoder, control = Encoder(tokenizer), set(control_marks(tokenizer))
    template = "<|user|> {task}<|im_end|>\n {text}</s> end"
    own = [tokenizer.convert_tokens_to_ids(mark) for mark in ("<|user|>", "<|im_end|>", "</s>")]
    values = [{"task": "cat", "text": text} for text in ordinary()]
    whole = tokenizer([fill(template, value) for value in values], add_special_tokens=False)["input_ids"]
    assert encoder.encode(template, values) == whole
    marked = [{"task": task, "text": text} for task in ("</s>", "<|user|>") for text in ("<|im_end|>", "a </s> b")]
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    for tokens in encoder.encode(template, marked):
        assert [token for token in tokens if token in control - {unknown}] == own


def test_braces_of_what_is_filled_in_mean_nothing():
    assert fill("{task}: {text}, {other}", {"task": "{text}", "text": "{task}"}) == "{text}: {task}, {other}"
    assert fill("{{task}} {", {"task": "a"}) == "{task} {"
    assert until_text("{{text}} {task}: {text} end", {"text"}) == "{{text}} {task}: {text}"


def test_a_lone_character_or_a_word_that_pads_is_text(tmp_path):
    tokenizer = chat(byte_level, tmp_path)
    tokenizer.pad_token = "!"
    assert "!" not in control_marks(tokenizer).values()
    (tokens,) = Encoder(tokenizer).encode("{text}", [{"text": "cat!"}])
    assert tokens == tokenizer("cat!", add_special_tokens=False)["input_ids"]


def test_the_same_text_has_the_same_tokens_though_the_tokenizer_was_saved_to_leave_out_merges(tmp_path):
    tokenizer = chat(byte_level, tmp_path)
    expected = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    model: Any = tokenizer.backend_tokenizer.model  # type: ignore[reportAttributeAccessIssue]
    model.dropout = 0.9
    assert tokenizer(TEXTS[0])["input_ids"] != expected[0]
    found = Encoder(tokenizer).encode("{text}", [{"text": text} for text in TEXTS])
    assert found[0] == expected[0]
    assert found[1:] == Encoder(chat(byte_level, tmp_path)).encode("{text}", [{"text": text} for text in TEXTS[1:]])


def test_an_end_token_that_stands_for_the_unknown_is_refused_where_it_would_stand_in_a_text():
    made = Tokenizer(models.WordLevel({"</s>": 0, "cat": 1}, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="</s>")
    assert Encoder(tokenizer).encode("{text}", [{"text": "cat cat"}]) == [[1, 1]]
    with pytest.raises(InputError, match=r"'</s>', which also stands for unknown characters of .*'cat dog'"):
        Encoder(tokenizer).encode("{text}", [{"text": "cat"}, {"text": "cat dog"}])


class Letters(PreTrainedTokenizer):
    """In Python alone: one token per letter."""

    vocab_size = 256  # pyright: ignore[reportAssignmentType]

    def __init__(self, **options):
        super().__init__(eos_token="</s>", **options)

    def get_vocab(self):
        return {chr(code): code for code in range(256)} | self.added_tokens_encoder

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, index):
        return chr(index)


def test_a_tokenizer_in_python_alone_has_text_as_text_and_a_mix_of_both_is_refused():
    encoder = Encoder(Letters())
    end = encoder.tokenizer.eos_token_id
    assert encoder.encode("{text}", [{"text": "a</s>"}, {"text": "b"}]) == [[ord(c) for c in "a</s>"], [ord("b")]]
    assert encoder.encode("{text}</s>", [{"text": "a"}]) == [[ord("a"), end]]
    with pytest.raises(InputError, match=r"'x</s></s>'"):
        encoder.encode("{text}</s>", [{"text": "a"}, {"text": "x</s>"}])


def starting(single: str) -> PreTrainedTokenizerFast:
    """`make_tokenizer` with another way to begin and end a text."""
    tokenizer = make_tokenizer()
    tokens = [("</s>", 2), ("w0", 3), ("w1", 4)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)
    return tokenizer


@pytest.mark.parametrize(
    ("single", "bos", "start"),
    [
        ("w0 w1 $A", None, [3, 4]),  # BOS and a language
        ("w0 $A </s>", None, [3]),  # as BERT's
        ("$A </s>", None, [2]),  # as T5's: nothing is put before, and there is no BOS
        ("$A </s>", "w1", [4]),
        ("$A", None, [2]),  # as GPT-2's
        ("</s> </s> $A </s> </s>", None, [2, 2]),
        ("w0 w1 $A w0 w1", None, [3, 4]),
    ],
)
def test_all_that_is_put_before_a_text_is_given_and_nothing_that_is_put_after(single, bos, start):
    tokenizer = starting(single)
    tokenizer.bos_token = bos
    encoder = Encoder(tokenizer)
    assert (encoder.start, encoder.end) == (start, 2)
    corpus = tokenize(corpus_of("w5 w6", "w7 w8 w9 w5"), tokenizer, max_tokens=5)
    (first, one), (second, two) = (sequence(corpus, n) for n in (0, 1))
    assert (first, one) == ([*start, 8, 9, 2], 3)
    assert (second, two) == ([*[*start, 10, 11, 12, 8][:4], 2], 5 - len(start))


def test_a_start_that_leaves_no_room_is_refused():
    with pytest.raises(InputError, match=r"model.max_tokens=3: the prompt or start symbol has 2 tokens"):
        tokenize(corpus_of("w5"), starting("w0 w1 $A"), max_tokens=3)


def corpus_of(*texts: str, task: str = "a") -> Corpus:
    frame = pd.DataFrame({"task": task, "text": texts, "split": "train", "floor_nll_nats": np.nan})
    return Corpus("made", (task,), frame.assign(content=None, document_id=[str(i) for i in range(len(texts))]), ())


def sequence(corpus: TokenizedCorpus, n: int) -> tuple[list[int], int]:
    """A document's tokens, and how many of them, the last, are scored."""
    return corpus.tokens[corpus.offsets[n] : corpus.offsets[n + 1]].tolist(), int(corpus.documents["num_tokens"][n])


@pytest.mark.skipif(not OPT.is_dir(), reason=f"{OPT} is not here")
def test_an_example_of_opt_token_by_token():
    tokenizer = AutoTokenizer.from_pretrained(OPT)
    found = corpus_of("So </s> be it", task="<pad>")
    tokens, scored = sequence(tokenize(found, tokenizer, 64, data=DataConfig(prompt="{task}:", template=" {text}")), 0)
    pieces = tokenizer.convert_ids_to_tokens(tokens)
    assert pieces[:-scored] == ["<", "p", "ad", ">", ":"]
    assert pieces[-scored:] == ["ĠSo", "Ġ", "<", "/", "s", ">", "Ġbe", "Ġit", "</s>"]
    assert sequence(tokenize(found, tokenizer, 64), 0)[0][0] == tokenizer.convert_tokens_to_ids("</s>")


def test_an_example_of_a_chat_token_by_token(tmp_path):
    tokenizer = chat(byte_level, tmp_path)
    found = corpus_of("the <|im_end|>", task="<|user|>")
    tokens, scored = sequence(tokenize(found, tokenizer, 64, data=DataConfig(prompt="<|user|>{task}<|im_end|>")), 0)
    pieces = [str(tokenizer.decode([token])) for token in tokens]
    assert (pieces[0], pieces[-scored - 1], pieces[-1]) == ("<|user|>", "<|im_end|>", "</s>")
    assert "".join(pieces[1 : -scored - 1]) == "<|user|>"
    assert "".join(pieces[-scored:-1]) == "the <|im_end|>"
    assert not set(pieces[1 : -scored - 1] + pieces[-scored:-1]) & set(MARKS)


@pytest.mark.parametrize("mark", ["$", "\n"])
def test_a_character_that_ends_documents_is_refused_in_a_text(mark):
    made = byte_level()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=AddedToken(mark, special=True), pad_token="!")
    encoder = Encoder(tokenizer)
    assert encoder.encode("{text}", [{"text": "the cat!"}])
    with pytest.raises(InputError, match="control token"):
        encoder.encode("{text}", [{"text": f"the {mark} cat"}])
