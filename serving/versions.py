"""Whether a store fits a run: its features, the encoder of its vectors, and the weights that fused them."""

from collections.abc import Iterator

from liber_feast.artifact import Artifact
from liber_feast.behavior import ITEM, USER
from liber_feast.errors import ArtifactError
from liber_feast.evidence_rows import ITEM_VECTOR, MEMORY_COUNT, MEMORY_EVIDENCE, MEMORY_LIKE_RATE
from liber_feast.service_schema import first_difference, schema_hash
from serving.online import FUSED_VECTOR, FUSION_VERSION, FeatureReader

ENCODER_VERSION = "encoder_version"
BEHAVIOR_NAMES = ("item_ids", "ratings", "times", "behavior_count")
EVIDENCE_NAMES = (MEMORY_EVIDENCE, MEMORY_LIKE_RATE, MEMORY_COUNT)
MEMORY_VIEW, ITEM_TEXT_VIEW = "long_term_memory", "item_text"


def reads_interests(artifact: Artifact) -> bool:
    """Say whether a run reads fused vectors."""
    return artifact.spec.memory_width > 0


def reads_evidence(artifact: Artifact) -> bool:
    """Say whether a run reads the evidence of users' memories."""
    return artifact.spec.match is not None and artifact.spec.match.memory


def check_features(artifact: Artifact, *, features: FeatureReader) -> None:
    """Check that the store has every feature of the run, of the type it was trained on.

    Raises:
        ArtifactError: it has not; or the run reads what is no feature of a store.
    """
    if artifact.spec.memory_kind == "knowledge":
        raise ArtifactError(
            f"{artifact.name} reads the texts of KAR, which are no features of the store: such runs are there to"
            " be compared. Serve a run of other features."
        )
    absent = next(_absent(artifact, features=features), None)
    if absent is not None:
        raise ArtifactError(
            f"feature service {features.service!r} lacks the feature {absent!r}, on which"
            f" {artifact.name} was trained. Train it again, or define the feature again and run `feast apply`."
        )
    check_schema(artifact, features=features)


def check_schema(artifact: Artifact, *, features: FeatureReader) -> None:
    """Check that the feature service is the one the run was trained for, as the registry has it now.

    Features that came since do not matter: the run does not read them.

    Raises:
        ArtifactError: a feature is gone or of another type; the message says which.
    """
    trained = artifact.facts.service_schema
    if trained is None:
        return
    found = features.current_schema()
    changed = first_difference(trained, found=found)
    if changed is not None:
        raise ArtifactError(
            f"feature service {features.service!r} has the schema {schema_hash(found)}, {artifact.name} was trained on"
            f" {artifact.facts.service_schema_hash}: {changed}. Train it again, or define the feature as it was and run"
            " `feast apply`."
        )


def check_versions(artifact: Artifact, *, features: FeatureReader) -> None:
    """Check that what the store has published is of the run's versions, as far as some of its rows tell.

    Raises:
        ArtifactError: it is of others only; the message says which.
    """
    facts = artifact.facts
    if reads_interests(artifact):
        _check(
            features.published_versions(MEMORY_VIEW, ENCODER_VERSION),
            wanted=facts.encoder_version,
            problem=f"{artifact.name} was trained on partition vectors of the encoder",
            remedy="Train it again, or bring the encoder back with `liber encode`.",
        )
        _check(
            features.published_versions(FUSED_VECTOR, FUSION_VERSION),
            wanted=facts.fusion_version,
            problem=f"{artifact.name} needs fused vectors of",
            remedy="Run `liber fuse` with this run, or serve the run they belong to.",
        )
    if reads_evidence(artifact):
        _check(
            features.published_versions(ITEM_TEXT_VIEW, ENCODER_VERSION),
            wanted=facts.item_encoder_version,
            problem=f"{artifact.name} was trained on vectors of items of the encoder",
            remedy="Train it again, or bring the encoder back with `liber encode`.",
        )


def _check(published: frozenset[str], *, wanted: str | None, problem: str, remedy: str) -> None:
    if published and wanted not in published:
        raise ArtifactError(f"{problem} {wanted}, the store has those of {', '.join(sorted(published))}. {remedy}")


def _absent(artifact: Artifact, *, features: FeatureReader) -> Iterator[str]:
    spec = artifact.spec
    wanted = {*BEHAVIOR_NAMES, *(field.name for field in spec.user_fields)}
    wanted |= {"fused", FUSION_VERSION} if reads_interests(artifact) else set()
    wanted |= {*EVIDENCE_NAMES, ENCODER_VERSION} if reads_evidence(artifact) else set()
    of_items = {field.name for field in spec.item_fields}
    of_items |= set() if spec.match is None else {ITEM_VECTOR, ENCODER_VERSION}
    yield from sorted(wanted - features.user_features - {USER})
    yield from sorted(of_items - features.item_features - {ITEM})
