"""Small tokenizers of the three kinds in use, trained on the spot."""

import random

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "The cat sat on the mat, and the dog barked at the cat; then the sun went down over 12 hills.",
    "שלום עולם، مرحبا بالعالم — naïve café 😀👩‍👩‍👧 über straße",
    "A man walks home. Rain falls on the roof\n\nand nobody  sings in the dark, dark night of 1999.",
] * 4


def byte_level() -> PreTrainedTokenizerFast:
    """Like GPT-2: bytes, a space belongs to the word after it, nothing is put around a text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", bos_token="<|end|>")


def word_piece() -> PreTrainedTokenizerFast:
    """Like BERT: [CLS] and [SEP] around a text, unknown words, spaces dropped; cuts at eight tokens and pads by itself."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    inner.train_from_iterator(TEXT, trainer)
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    inner.enable_truncation(8)
    inner.enable_padding(length=8)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=8,
    )


def metaspace() -> PreTrainedTokenizerFast:
    """Like Llama 2: a beginning-of-sequence token, and a space put before every text."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
    )
    words = [word for line in TEXT for word in line.split()]
    inner.train_from_iterator(words, trainer)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


WORDS = """
    the cat sat on a mat and dog barked at sun over hills rain falls roof nobody sings dark night man walks home
"""


def toy_text(number: int, words: int = 40) -> str:
    """A text of so many words, the same for the same number."""
    return " ".join(random.Random(number).choices(WORDS.split(), k=words))
