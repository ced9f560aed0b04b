"""`smile backbones | create | list | show | delete`; the last four also under `smile vplms`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from smile.cli.command import Session, command
from smile.cli.labels import labels_of
from smile.cli.output import facts, pointed, short, size, table, when, write_json
from smile.client.options import DeriveOptions, VplmOptions
from smile.client.pets import BitFit, DiffPruning, Houlsby, LoRA, MaskBert, NoPet, Pfeiffer
from smile.codec.modules import ADAPTER_RANK_DEFAULT, DENSITIES_DEFAULT, LORA_RANK_DEFAULT
from smile.errors import InvalidSpec
from smile.model.specs import RANKED, SPARSE, DType, PetKind, PetSpec, Pooling, Task
from smile.resources import Exactness, Vplm


@dataclass(frozen=True, slots=True)
class PetOptions:
    """The PET module."""

    pet: Annotated[PetKind, typer.Option(help="Method.")] = PetKind.PFEIFFER
    rank: Annotated[
        int | None,
        typer.Option(
            help=f"Bottleneck width or rank. Default: {ADAPTER_RANK_DEFAULT}, LoRA "
            f"{LORA_RANK_DEFAULT}."
        ),
    ] = None
    alpha: Annotated[
        float | None, typer.Option(help="LoRA's scale is alpha / rank. Default: twice the rank.")
    ] = None
    targets: Annotated[
        str | None, typer.Option(help="LoRA's projections, by comma. Default: query,value.")
    ] = None
    density: Annotated[
        float | None,
        typer.Option(
            help="Share of the weights that diff-pruning updates (default: "
            f"{DENSITIES_DEFAULT[PetKind.DIFF_PRUNING]}) or mask-bert may mask (default: "
            f"{DENSITIES_DEFAULT[PetKind.MASK_BERT]}), at most 0.05."
        ),
    ] = None
    first_layer: Annotated[
        int | None, typer.Option(help="Lowest layer with the module. Default: the upper half.")
    ] = None


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """The head."""

    task: Annotated[
        Task | None, typer.Option(help="Default: by label if there are labels, else embedding.")
    ] = None
    labels: Annotated[str | None, typer.Option(help="Labels in class order, by comma.")] = None
    labels_from: Annotated[
        Path | None, typer.Option(help="Take the labels from this dataset file.")
    ] = None
    label_column: Annotated[str, typer.Option(help="Column for --labels-from.")] = "label"
    pooling: Annotated[Pooling, typer.Option(help="Token states to a text's.")] = Pooling.MEAN


@dataclass(frozen=True, slots=True)
class VplmTexts:
    """What else is said about a new vPLM."""

    display_name: Annotated[str, typer.Option(help="Text for people.")] = ""
    precision: Annotated[DType, typer.Option(help="Stored precision.")] = DType.FLOAT16
    seed: Annotated[int, typer.Option(help="Of the initial weights.")] = 0
    domain: Annotated[
        str, typer.Option(help="Whose rows serve materialised answers. Default: general.")
    ] = ""
    materialized: Annotated[
        bool, typer.Option(help="Look up its lower layers where nobody asks otherwise.")
    ] = False
    validate_only: Annotated[bool, typer.Option(help="Check, create nothing.")] = False

    @property
    def exactness(self) -> Exactness:
        return Exactness.MATERIALIZED if self.materialized else Exactness.EXACT


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("create")(command(create))
    app.command("list")(command(list_))
    app.command("show")(command(show))
    app.command("delete")(command(delete))


def backbones(session: Session) -> None:
    """List the backbones a vPLM can be built on."""
    found = session.client.backbones()
    if session.json:
        return write_json({"backbones": found})
    rows = [
        [
            short(b.name), b.family, str(b.shape.layers), str(b.shape.hidden),
            str(b.shape.tokens_max), f"{b.shape.parameters:,}", size(b.shape.bytes), b.digest[:12],
        ]
        for b in found
    ]  # fmt: skip
    columns = ["backbone", "family", "layers>", "width>", "tokens>", "parameters>", "size>"]
    session.out.print(table([*columns, "digest"], rows))


def create(
    session: Session,
    vplm: Annotated[str, typer.Argument(help="Id of the new vPLM.")],
    pet: PetOptions,
    head: HeadOptions,
    texts: VplmTexts,
    backbone: Annotated[str | None, typer.Option(help="Backbone to build on.")] = None,
    from_adapter: Annotated[
        str | None,
        typer.Option(
            help="Begin as this public adapter: with its backbone and module, and its head unless "
            "there are labels."
        ),
    ] = None,
    from_vplm: Annotated[
        str | None,
        typer.Option(
            help="Begin as this vPLM of yours serves now, or as a version of one by its full name: "
            "with its backbone and module, and its head unless there are labels."
        ),
    ] = None,
) -> None:
    """Create a vPLM: backbone, PET module and head. It answers at once and learns by training."""
    if from_adapter is not None or from_vplm is not None:
        if backbone is not None or pet != PetOptions() or texts.precision is not DType.FLOAT16:
            raise typer.BadParameter(
                "what is there has its own backbone, PET module and precision: leave out those "
                "options"
            )
        if from_adapter is not None and from_vplm is not None:
            raise typer.BadParameter("give --from-adapter or --from-vplm, not both")
        made = _derived(session, vplm, (from_adapter or "", from_vplm or ""), head, texts)
    elif backbone is None:
        raise typer.BadParameter("give --backbone, --from-adapter or --from-vplm")
    else:
        made = _created(session, vplm, backbone, pet, (head, texts))
    if session.json:
        return write_json(made)
    session.note(f"{'checked' if texts.validate_only else 'created'} {made.name}")
    session.out.print(facts(_facts(made)))


def _derived(
    session: Session, vplm: str, source: tuple[str, str], head: HeadOptions, texts: VplmTexts
) -> Vplm:
    """Of a public adapter or of a vPLM, whichever `source` names."""
    adapter, base = source
    options = DeriveOptions(
        base=base,
        display_name=texts.display_name,
        seed=texts.seed,
        domain=texts.domain,
        exactness=texts.exactness,
        validate_only=texts.validate_only,
    )
    if head.task is not None:
        options["task"] = head.task
    if head.pooling is not Pooling.MEAN:
        options["pooling"] = head.pooling
    return session.client.derive_vplm(vplm, adapter, labels=_labels(head), **options)


def _created(
    session: Session,
    vplm: str,
    backbone: str,
    pet: PetOptions,
    rest: tuple[HeadOptions, VplmTexts],
) -> Vplm:
    head, texts = rest
    options = VplmOptions(
        pooling=head.pooling,
        precision=texts.precision,
        display_name=texts.display_name,
        seed=texts.seed,
        domain=texts.domain,
        exactness=texts.exactness,
        validate_only=texts.validate_only,
    )
    if head.task is not None:
        options["task"] = head.task
    return session.client.create_vplm(
        vplm, backbone=backbone, pet=pet_spec(pet), labels=_labels(head), **options
    )


def list_(
    session: Session,
    deleted: Annotated[bool, typer.Option(help="Only those that can be had back.")] = False,
) -> None:
    """List your vPLMs, or those that were deleted and can be had back."""
    every = session.client.vplms(show_deleted=deleted)
    found = [one for one in every if not deleted or one.delete_time is not None]
    if session.json:
        return write_json({"vplms": found})
    rows = [
        [
            short(v.name), v.spec.backbone, pet_text(v.spec.pet), str(v.spec.head.task),
            str(len(v.spec.head.labels) or ""), str(v.latest_version),
            pointed(v, "serving"), when(v.update_time),
            *([when(v.delete_time), when(v.purge_time), v.uid] if deleted else []),
        ]
        for v in found
    ]  # fmt: skip
    columns = ["vplm", "backbone", "pet", "task", "labels>", "versions>", "serving>", "changed"]
    session.out.print(table([*columns, *(["deleted", "until", "uid"] if deleted else [])], rows))


def update(
    session: Session,
    vplm: Annotated[str, typer.Argument(help="Id of the vPLM.")],
    display_name: Annotated[str | None, typer.Option(help="Text for people.")] = None,
    materialized: Annotated[
        bool | None,
        typer.Option("--materialized/--exact", help="How it answers where nobody asks otherwise."),
    ] = None,
) -> None:
    """Change what a vPLM says of itself."""
    if display_name is None and materialized is None:
        raise typer.BadParameter("give --display-name, --materialized or --exact")
    exactness = None
    if materialized is not None:
        exactness = Exactness.MATERIALIZED if materialized else Exactness.EXACT
    changed = session.client.update_vplm(vplm, display_name=display_name, exactness=exactness)
    if session.json:
        return write_json(changed)
    session.out.print(facts(_facts(changed)))


def show(session: Session, vplm: Annotated[str, typer.Argument(help="Id of the vPLM.")]) -> None:
    """Show one vPLM."""
    found = session.client.vplm(vplm)
    if session.json:
        return write_json(found)
    session.out.print(facts(_facts(found)))


def delete(
    session: Session,
    vplm: Annotated[str, typer.Argument(help="Id of the vPLM.")],
    for_good: Annotated[
        bool, typer.Option(help="Without a way back, and all that was deleted under this name.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a vPLM with all its versions. `smile vplms undelete` has it back, for some days."""
    if not yes and not session.json:
        how = " for good" if for_good else ""
        typer.confirm(f"Delete {vplm} with all its versions{how}?", abort=True, err=True)
    session.client.delete_vplm(vplm, for_good=for_good)
    if session.json:
        return write_json({"deleted": vplm})
    kept = f"; `smile vplms undelete {vplm}` has it back (`list --deleted` tells until when)"
    session.note(f"deleted {vplm}{' for good' if for_good else kept}")


def pet_spec(options: PetOptions) -> PetSpec:
    """The PET spec that the options describe. Raises `InvalidSpec` for options not of the kind."""
    _refuse_options_of_other_kinds(options)
    return _MAKERS[options.pet](options)


def _refuse_options_of_other_kinds(options: PetOptions) -> None:
    lora_only = options.alpha is not None or options.targets is not None
    if options.pet is not PetKind.LORA and lora_only:
        raise InvalidSpec(f"--alpha and --targets are for kind 'lora', got kind '{options.pet}'")
    if options.pet not in RANKED and options.rank is not None:
        raise InvalidSpec(f"kind '{options.pet}' has no rank, got {options.rank}")
    if options.pet not in SPARSE and options.density is not None:
        raise InvalidSpec(f"kind '{options.pet}' has no density, got {options.density}")


def _lora(options: PetOptions) -> PetSpec:
    rank = _rank(options, LORA_RANK_DEFAULT)
    targets = (options.targets or "query,value").split(",")
    return LoRA(rank, alpha=options.alpha, targets=targets, first_layer=options.first_layer)


def _rank(options: PetOptions, default: int = ADAPTER_RANK_DEFAULT) -> int:
    return default if options.rank is None else options.rank


def _density(options: PetOptions) -> float:
    return DENSITIES_DEFAULT[options.pet] if options.density is None else options.density


_MAKERS: Mapping[PetKind, Callable[[PetOptions], PetSpec]] = {
    PetKind.NONE: lambda _: NoPet(),
    PetKind.PFEIFFER: lambda o: Pfeiffer(_rank(o), first_layer=o.first_layer),
    PetKind.HOULSBY: lambda o: Houlsby(_rank(o), first_layer=o.first_layer),
    PetKind.LORA: _lora,
    PetKind.BITFIT: lambda o: BitFit(first_layer=o.first_layer),
    PetKind.DIFF_PRUNING: lambda o: DiffPruning(_density(o), first_layer=o.first_layer),
    PetKind.MASK_BERT: lambda o: MaskBert(_density(o), first_layer=o.first_layer),
}


def _labels(options: HeadOptions) -> list[str]:
    if options.labels is not None and options.labels_from is not None:
        raise typer.BadParameter("give --labels or --labels-from, not both")
    if options.labels_from is not None:
        task = options.task or Task.SEQUENCE_CLASSIFICATION
        return labels_of(options.labels_from, options.label_column, task)
    return [label.strip() for label in options.labels.split(",")] if options.labels else []


def pet_text(pet: PetSpec) -> str:
    """A PET spec in a few words: `lora r8 (query, value) from layer 3`."""
    words = [str(pet.kind)]
    if pet.rank:
        words.append(f"r{pet.rank}")
    if pet.density:
        words.append(f"{100 * pet.density:g} %")
    if pet.targets:
        words.append(f"({', '.join(pet.targets)})")
    if pet.first_layer is not None and pet.kind is not PetKind.NONE:
        words.append(f"from layer {pet.first_layer}")
    return " ".join(words)


def _facts(vplm: Vplm) -> list[tuple[str, str]]:
    head = vplm.spec.head
    aliases = "; ".join(f"{alias} → {pointed(vplm, alias)}" for alias in sorted(vplm.aliases))
    rows = [
        ("name", vplm.name),
        ("display name", vplm.display_name),
        ("backbone", f"{vplm.spec.backbone} ({vplm.spec.backbone_digest[:12]})"),
        ("pet", pet_text(vplm.spec.pet)),
        ("task", str(head.task)),
        ("labels", ", ".join(head.labels)),
        ("precision", str(vplm.spec.dtype)),
        ("domain", vplm.spec.domain),
        ("answered", str(vplm.exactness or Exactness.EXACT)),
        ("versions", str(vplm.latest_version)),
        ("aliases", aliases),
        ("tags", ", ".join(f"{key}={value}" for key, value in sorted(vplm.labels.items()))),
        ("created", when(vplm.create_time)),
        ("changed", when(vplm.update_time)),
    ]
    return [(name, value) for name, value in rows if value]
