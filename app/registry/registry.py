"""Where models lie on disk: `<root>/<name>/<version>/{theta.safetensors,card.json}`."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from app.errors import ModelNotFound, RegistryError
from app.files import write_atomically
from app.learning.heads import Params, build_head
from app.learning.learner import Learner
from app.learning.networks import build_network
from app.learning.own_network import OwnNetwork, is_own
from app.learning.standardise import Standardise
from app.registry.card import NAME_PATTERN, Card, InputSpec

THETA = "theta.safetensors"
CARD = "card.json"
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


@dataclass(frozen=True)
class LoadedModel:
    """A model version in memory: θ and α, and the learner they belong to."""

    card: Card
    learner: Learner
    theta: Params
    alpha: Params

    def on(self, device: torch.device) -> "LoadedModel":
        """The same on a device, to answer there; the learner itself is moved."""
        self.learner.to_answer(device)
        moved = (
            {name: value.to(device) for name, value in tensors.items()}
            for tensors in (self.theta, self.alpha)
        )
        return LoadedModel(self.card, self.learner, *moved)


def build_learner(
    spec: InputSpec, network: Mapping[str, object], head: str, temperature: float = 1.0
) -> Learner:
    """The learner that a recipe or a card describes.

    Args:
        spec: what one input is.
        network: its `name` and arguments.
        head: the head's name.
        temperature: of the inner loss.

    Raises:
        ValueError: no such network or head, or arguments that it does not take; or a network of
            one's own that cannot be imported, meta-trained and served.
    """
    arguments: dict[str, Any] = {str(key): value for key, value in network.items()}
    standardise = (
        None
        if spec.mean is None or spec.scale is None
        else Standardise(spec.mean, spec.scale, len(spec.shape))
    )
    if is_own(arguments.get("name", "")):
        own = OwnNetwork(spec.shape, **arguments)
        return Learner(
            own.network,
            build_head(head),
            own.features,
            temperature,
            standardise=standardise,
            make=own.make,
        )
    body = build_network(spec.shape, **arguments)
    return Learner(body, build_head(head), body.features, temperature, standardise=standardise)


class Registry:
    """The models below one folder. What is on disk is what there is, at any time."""

    def __init__(self, root: Path):
        self.root = root

    def names(self) -> list[str]:
        """Names that have at least one version, sorted."""
        return [folder.name for folder in self._folders() if self.versions(folder.name)]

    def versions(self, name: str) -> list[int]:
        """Versions of a name, ascending; none where there is no such name or it is closed to us."""
        if not re.match(NAME_PATTERN, name):
            return []
        try:
            folders = (self.root / name).iterdir()
            numbers = [folder.name for folder in folders if _may_be_version(folder)]
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []
        return sorted(map(int, numbers))

    def holds(self, name: str, version: int) -> bool:
        """Whether a version is there, whole or broken, or may be but is closed to us."""
        return bool(re.match(NAME_PATTERN, name)) and _may_be_version(self.folder(name, version))

    def closed(self) -> list[Path]:
        """Folders of models that cannot be looked into, for want of permission."""
        mode = os.R_OK | os.X_OK
        found = self._folders()
        return [path for path in found if path.is_dir() and not os.access(path, mode)]

    def _folders(self) -> list[Path]:
        """Where models may lie, sorted by name."""
        if not self.root.is_dir():
            return []
        found = (path for path in self.root.iterdir() if re.match(NAME_PATTERN, path.name))
        return sorted(found)

    def latest(self, name: str) -> Card:
        """The card of a name's newest version.

        Raises:
            ModelNotFound: no such name.
            RegistryError: the card is broken.
        """
        versions = self.versions(name)
        if not versions:
            known = ", ".join(self.names()) or "none"
            raise ModelNotFound(f"There is no model {name!r}. Models here: {known}.")
        return self.card(name, versions[-1])

    def card(self, name: str, version: int) -> Card:
        """The card of one version.

        Raises:
            ModelNotFound: no such name or version.
            RegistryError: the card is broken.
        """
        missing = ModelNotFound(f"There is no version {version} of a model {name!r}.")
        if not re.match(NAME_PATTERN, name) or version < 1:
            raise missing
        path = self.folder(name, version) / CARD
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise missing
            card = Card.model_validate_json(path.read_bytes())
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise missing from None
            raise RegistryError(f"{path} cannot be read: {error}") from error
        except ValidationError as error:
            raise RegistryError(f"{path} is no valid card: {error}") from error
        if (card.name, card.version) != (name, version):
            raise RegistryError(f"{path} is the card of {card.name} {card.version}")
        return card

    def load(self, name: str, version: int) -> LoadedModel:
        """θ and α of one version, after checking the file's SHA-256 against the card.

        Raises:
            ModelNotFound: no such name or version.
            RegistryError: the file is missing or broken, or does not fit the card.
        """
        card = self.card(name, version)
        path = self.folder(name, version) / THETA
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RegistryError(f"{path} cannot be read: {error}") from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != card.theta_sha256:
            raise RegistryError(
                f"{path} has the SHA-256 {digest}, its card says {card.theta_sha256}: "
                "restore the file"
            )
        try:
            tensors = load(content)
            learner = build_learner(card.input, card.network, card.head, card.inner_temperature)
            learner.network.eval()
        except (SafetensorError, TypeError, ValueError) as error:
            raise RegistryError(f"{path} cannot be loaded: {error}") from error
        theta, alpha = _part(tensors, "theta."), _part(tensors, "alpha.")
        expected = {key: value.shape for key, value in learner.initial(0).items()}
        found = {key: value.shape for key, value in theta.items()}
        if found != expected or set(alpha) != set(card.alpha) or not set(alpha) <= set(theta):
            raise RegistryError(
                f"{path} does not hold the parameters of the card's network and head"
            )
        return LoadedModel(card, learner, theta, alpha)

    def save(self, card: Card, content: bytes) -> Path:
        """Writes a new version: θ first and the card last, for a version is there once its card is.

        Raises:
            RegistryError: the version exists already, or the folder cannot be written to.
        """
        folder = self.folder(card.name, card.version)
        if (folder / CARD).exists():
            raise RegistryError(f"{folder} exists already: raise `version` in the recipe")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / THETA, content)
            _write_card(folder, card)
        except OSError as error:
            raise RegistryError(f"{folder} cannot be written: {error}") from error
        return folder

    def rewrite(self, card: Card) -> Path:
        """Replaces the card of a version that is there, which must be of the same θ.

        Raises:
            ModelNotFound: it is not there.
            RegistryError: it is of another θ, or cannot be written.
        """
        folder = self.folder(card.name, card.version)
        if self.card(card.name, card.version).theta_sha256 != card.theta_sha256:
            raise RegistryError(f"{folder} holds another θ than the new card is of")
        try:
            _write_card(folder, card)
        except OSError as error:
            raise RegistryError(f"{folder} cannot be written: {error}") from error
        return folder

    def folder(self, name: str, version: int) -> Path:
        """Where a version lies."""
        return self.root / name / str(version)


def encode_theta(theta: Mapping[str, Tensor], alpha: Mapping[str, Tensor]) -> bytes:
    """θ and α as one safetensors file; the same tensors give the same bytes."""
    tensors = {f"theta.{name}": value for name, value in theta.items()}
    tensors |= {f"alpha.{name}": value for name, value in alpha.items()}
    return save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def _may_be_version(folder: Path) -> bool:
    """Whether a version lies there, or may lie there but cannot be looked at."""
    if not re.match(r"^[1-9]\d{0,8}$", folder.name):
        return False
    try:
        return (folder / CARD).is_file()
    except PermissionError:
        return True


def _write_card(folder: Path, card: Card) -> None:
    write_atomically(folder / CARD, (card.model_dump_json(indent=2) + "\n").encode())


def _part(tensors: Mapping[str, Tensor], prefix: str) -> Params:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
