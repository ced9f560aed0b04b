"""The backbone's own files, where an import or export needs what the platform does not keep."""

from __future__ import annotations

from pathlib import Path

from smile.errors import FailedPrecondition
from smile.model.checkpoint import WEIGHTS_FILE
from smile.model.layout import POOLER_BIAS, POOLER_WEIGHT
from smile.model.port.files import TensorFile
from smile.model.port.places import POOLER, without_family
from smile.model.port.values import FloatArray, Target, malformed

MISSING = "BACKBONE_FILES_MISSING"


def required(folder: Path | None, backbone: str, why: str) -> Path:
    """The folder. Raises `FailedPrecondition` where nobody said where it is."""
    if folder is None:
        raise FailedPrecondition(
            f"{why}: say where the files of backbone '{backbone}' are (backbone_path)",
            reason=MISSING,
        )
    return folder


def pooler(target: Target) -> dict[str, FloatArray]:
    """The backbone's own pooler, frozen while an adapter was trained, by our names.

    Raises:
        FailedPrecondition: the files are not at hand.
        InvalidArgument: they hold no pooler, so none was frozen.
    """
    folder = required(
        target.folder,
        target.backbone,
        "this classifier reads the backbone's own pooler, which its folder does not hold",
    )
    file = TensorFile(folder / WEIGHTS_FILE)
    names = {without_family(name): name for name in file.shapes}
    wanted = {POOLER_WEIGHT: f"{POOLER}.weight", POOLER_BIAS: f"{POOLER}.bias"}
    if missing := sorted(set(wanted.values()) - names.keys()):
        raise malformed(
            f"{file.file} has no '{missing[0]}', and neither has the adapter: which pooler its "
            "classifier was trained on is lost"
        )
    return {ours: file.array(names[theirs]) for ours, theirs in wanted.items()}
