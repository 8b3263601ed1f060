"""Toy models with random weights, a tokenizer trained on the spot, and toy texts: whole pipelines in seconds."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from microtome.model import Model, wrap

VOCABULARY = 200


def toy_texts(documents: int = 12, words: int = 60) -> list[str]:
    """Documents over a small vocabulary with some structure: each has a favourite word, and sentences end."""
    nouns = [
        "river",
        "stone",
        "garden",
        "letter",
        "engine",
        "winter",
        "market",
        "harbour",
        "teacher",
        "mirror",
        "bridge",
        "candle",
    ]
    verbs = ["holds", "finds", "leaves", "carries", "breaks", "keeps", "meets", "turns"]
    generator = torch.Generator().manual_seed(7)
    texts = []
    for document in range(documents):
        favourite = nouns[document % len(nouns)]
        sentences = []
        for _ in range(words // 6):
            verb = verbs[int(torch.randint(len(verbs), (1,), generator=generator))]
            noun = nouns[int(torch.randint(len(nouns), (1,), generator=generator))]
            sentences.append(f"The {favourite} {verb} the {noun}.")
        texts.append(" ".join(sentences))
    return texts


def _tokenizer(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY + 200, special_tokens=["<unk>", *special], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(toy_texts(), trainer)
    return tokenizer


def decoder_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without special tokens around a text."""
    return PreTrainedTokenizerFast(tokenizer_object=_tokenizer(["<end>"]), eos_token="<end>", unk_token="<unk>")


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """The same with [CLS] and [SEP] around each text, and a mask token."""
    tokenizer = _tokenizer(["[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    marks = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def llama(layers: int = 3) -> PreTrainedModel:
    """A gated decoder with grouped-query heads and rotary positions."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(decoder_tokenizer()),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def bert(layers: int = 2) -> PreTrainedModel:
    """A post-norm encoder with a masked-language-model head."""
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=len(encoder_tokenizer()),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return BertForMaskedLM(config).eval()


def toy_decoder() -> Model:
    """`llama` ready to be observed."""
    return wrap(llama(), decoder_tokenizer(), name="toy-llama")


def toy_encoder() -> Model:
    """`bert` ready to be observed."""
    return wrap(bert(), encoder_tokenizer(), name="toy-bert")


def save_checkpoint(folder: Path) -> Path:
    """`llama` and its tokenizer as a checkpoint folder."""
    llama().save_pretrained(folder)
    decoder_tokenizer().save_pretrained(folder)
    return folder
