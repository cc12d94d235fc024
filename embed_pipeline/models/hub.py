"""Where a model's files are: in the package, a directory, or the Hugging Face hub's local cache.

No torch, no transformers, and huggingface_hub only for a name that is neither `demo` nor a
directory: this runs in every sync, also in one that embeds nothing.
"""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from embed_pipeline.errors import ModelError, ModelNotFound
from embed_pipeline.settings import DEMO_MODEL

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Everything that decides a vector, and nothing that could run code.
MODEL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)

_HUB_TIMEOUT_SECONDS = 5.0
_CONVERSION_BOT = "SFconvertbot"  # Hugging Face's own; opens pull requests that add safetensors


def is_service(model: str) -> bool:
    """Whether `model` is the address of a service that runs it."""
    return model.startswith(("http://", "https://"))


def model_directory(model: str) -> Path:
    """The directory with the files of `model`: `demo`, a directory, or a Hugging Face id.

    An id is looked up in the local hub cache and downloaded only if it is not there. Raises
    ModelNotFound when there is nothing under that name here and the hub does not answer, and
    ModelError when a directory or repository lacks a file, or has pickled weights only.
    """
    if model == DEMO_MODEL:
        return _checked(Path(__file__).parent / "demo" / "model")
    directory = Path(model).expanduser()
    if directory.is_dir():
        return _checked(directory)
    if directory.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelNotFound(
            f"EMBED_MODEL={model}: no such directory, nor a name of the form owner/name"
        )
    return cached(model) or _download(model)


def model_files(directory: Path) -> list[Path]:
    """The files of a model that decide its vectors, sorted by name."""
    return sorted(
        path
        for path in directory.iterdir()
        if any(fnmatch(path.name, pattern) for pattern in MODEL_FILES)
    )


def _checked(directory: Path) -> Path:
    missing = _missing(directory)
    if not missing:
        return directory
    if missing == ["model.safetensors"] and any(directory.glob("*.bin")):
        raise ModelError(
            f"{directory}: pickled weights (.bin) only, which can run code and are never loaded; "
            "convert them once with transformers' `AutoModel.from_pretrained(…).save_pretrained(…)`"
        )
    raise ModelError(f"{directory}: not a model directory, it lacks {', '.join(missing)}")


def _missing(directory: Path) -> list[str]:
    """What a model directory must have and this one has not."""
    names = {path.name for path in model_files(directory)} if directory.is_dir() else set()
    needed = [("config.json",), ("preprocessor_config.json", "processor_config.json")]
    needed.append(("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model"))
    if "model.safetensors" not in names:
        needed += [(shard,) for shard in _shards(directory)] or [("model.safetensors",)]
    return [choices[0] for choices in needed if names.isdisjoint(choices)]


def _shards(directory: Path) -> list[str]:
    try:
        index = json.loads((directory / "model.safetensors.index.json").read_bytes())
        return sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def cached(model: str) -> Path | None:
    """A whole snapshot of `model` in the hub's cache: the one that `main` names, or else any."""
    from huggingface_hub.constants import HF_HUB_CACHE  # 0.1 s

    folder = Path(HF_HUB_CACHE, f"models--{model.replace('/', '--')}")
    try:
        main = (folder / "refs" / "main").read_text()
    except OSError:
        main = ""
    snapshots = sorted(folder.glob("snapshots/*"), key=lambda path: (path.name != main, path.name))
    return next((snapshot for snapshot in snapshots if not _missing(snapshot)), None)


def _download(model: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download  # 0.1 s
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        revision = _revision_with_safetensors(HfApi(), model)
        path = snapshot_download(model, revision=revision, allow_patterns=list(MODEL_FILES))
    except OfflineModeIsEnabled as error:
        raise _not_found(model, "HF_HUB_OFFLINE is set") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise _not_found(model, f"the hub answered {status}") from error
    except ModelError:
        raise
    except Exception as error:  # the hub's HTTP library lets its own types through
        raise _not_found(model, f"the hub cannot be reached ({type(error).__name__})") from error
    return _checked(Path(path))


def _revision_with_safetensors(api: "HfApi", model: str) -> str:
    """Commit of `main`, or of the hub's own conversion where `main` has pickled weights only.

    openai/clip-vit-base-patch32 is such a repository. Answers or fails within the timeout: this
    first request is not retried.
    """
    info = api.model_info(model, timeout=_HUB_TIMEOUT_SECONDS)
    files = [file.rfilename for file in info.siblings or []]
    if any(fnmatch(name, "model*.safetensors*") for name in files):
        return str(info.sha)
    for request in api.get_repo_discussions(
        model, author=_CONVERSION_BOT, discussion_type="pull_request"
    ):
        if request.git_reference:
            return str(api.model_info(model, revision=request.git_reference).sha)
    raise ModelError(f"{model}: the repository has no safetensors weights; others are never loaded")


def _not_found(model: str, reason: str) -> ModelNotFound:
    return ModelNotFound(
        f"{model}: not whole in the local Hugging Face cache, and {reason}. Either set "
        "EMBED_MODEL=/path/to/its/directory; or fill a cache where there is a network (by this "
        f"same command, or `hf download {model}`), copy it here and name it with HF_HOME; or let "
        "this machine reach huggingface.co (HF_ENDPOINT names a mirror, HF_HUB_OFFLINE forbids it)"
    )
