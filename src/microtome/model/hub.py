"""Models by hub id: the files a checkpoint needs, from the Hugging Face hub or, offline, from its cache.

Only configuration, tokenizer and one format of weights are downloaded. What the files are belongs in `checkpoint`.
"""

from pathlib import Path
from typing import Final, Literal

from microtome.core import Refusal

__all__ = ["snapshot"]

_SMALL: Final = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_SAFETENSORS: Final = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_PICKLED: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


def snapshot(source: str, remote_code: Literal["refuse", "allow"]) -> Path:
    """The folder of a hub model, `owner/name` or `owner/name@revision`, downloaded as far as it is not in the hub's cache.

    Safetensors are preferred; `pytorch_model.bin` is taken where there are none. Code is downloaded only when allowed.

    Errors: `Refusal` where there is no such model, it is gated, or the hub cannot be reached and the cache does not have it.
    """
    small = (*_SMALL, "*.py") if remote_code == "allow" else _SMALL
    folder = _download(source, (*small, *_SAFETENSORS))
    if not any((folder / name).exists() for name in _SAFETENSORS[:2]):
        folder = _download(source, (*small, *_PICKLED))
    return folder


def _download(source: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download

    name, _, revision = source.partition("@")
    what = f"model {source}"
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
    except errors.HFValidationError as error:
        raise Refusal(
            what, why="it is neither a file here nor a hub id", instead="name a folder, a .gguf file or owner/name"
        ) from error
    except errors.GatedRepoError as error:
        raise Refusal(
            what,
            why="the hub gives it only to those who accepted its terms",
            instead="accept them on its page and run: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise Refusal(
            what, why=f"the model has no revision {revision}", instead="name a branch, tag or commit of it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise Refusal(
            what,
            why="there is no such folder here and no such public model on the hub",
            instead="check the name, or log in: hf auth login",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise Refusal(
            what,
            why="there is no such folder here, the hub cannot be reached, and its cache does not hold all of the model",
            instead="name a model folder or a .gguf file, or try again with the network",
        ) from error
    except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise Refusal(what, why=f"the hub answered: {str(error).partition(chr(10))[0]}", instead="try again later") from error
