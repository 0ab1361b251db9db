"""MovieLens 100K with the profiles that an LLM wrote of `u1.base`, judged on `u1.test`.

The profiles know of a user's newest ratings in `u1.base`, so no rating of `u1.base` can be judged by them, and none is
old enough to train on. `u1.test` can: its ratings are asked for after all of `u1.base`, at one time, when every profile
is there. So its users are split into folds: of each, `u1.base` and the test ratings of the other users train, those of
a tenth of these users say when to stop, and the fold's own are judged. Every rating of `u1.test` is judged once, by a
model that has seen none of its user's ratings in it.
"""

import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from liber_feast.behavior import EVENT_TIME, TIMESTAMP, USER
from liber_feast.datasets.profiles import CHUNK, MODEL, Profiled
from liber_feast.datasets.writer import write_data_set
from liber_feast.errors import ConfigError, DataSetError
from liber_feast.import_texts import import_texts
from liber_feast.quickstart import Steps, script_of
from training.data import Features, Samples, load_samples
from training.split import Split
from training.variant_repo import configure_copy

STOP_PARTS = 10
"""One user of so many that train says when to stop."""


def profiled_repo(template: Path, *, profiled: Profiled, folder: Path) -> None:
    """Make the feature repo `folder`, with the definitions of `template`, the ratings and the imported profiles.

    Raises:
        ConfigError: the template is no feature repo.
        DataSetError: the profiles do not fit the ratings.
        StepFailed: `feast apply` failed.
    """
    if not (template / "feature_store.yaml").is_file():
        raise ConfigError(f"{template} is no feature repo: it has no feature_store.yaml. Name one with --repo.")
    shutil.copytree(template, folder, ignore=shutil.ignore_patterns("data", "data-*", "__pycache__"))
    configure_copy(folder / "feature_store.yaml", size=CHUNK)
    write_data_set(profiled.data_set, folder)
    profiled.write_lines(folder / "data" / "profiles.jsonl")
    Steps().run("apply", [script_of("feast"), "apply"], cwd=folder, is_json=False)
    import_texts(folder, folder / "data" / "profiles.jsonl", model=MODEL, is_partial=False, say=lambda _line: None)


def judged_samples(repo: Path, *, profiled: Profiled, features: Features) -> Samples:
    """Return the ratings of `u1.base` as samples of their times, and those of `u1.test` as samples after all of them.

    Of `u1.test` only users with a profile are taken.

    Raises:
        LiberError: see `load_samples`.
    """
    time = judged_time(profiled)
    users = pa.array(sorted({str(line[USER]) for line in profiled.lines}), pa.string())
    test = profiled.test.filter(pc.is_in(profiled.test[USER], users))
    times = pa.array(np.full(len(test), time), pa.int64()).cast(TIMESTAMP)
    return load_samples(
        repo, features=features, more=test.set_column(test.column_names.index(EVENT_TIME), EVENT_TIME, times)
    )


def judged_time(profiled: Profiled) -> int:
    """Return when `u1.test` is judged: a second after the last rating of `u1.base`, microseconds since 1970 UTC."""
    last = pc.max(profiled.data_set.behaviors[EVENT_TIME].cast(TIMESTAMP).cast(pa.int64())).as_py()
    return int(last) + timedelta(seconds=1) // timedelta(microseconds=1)


def user_folds(samples: Samples, *, judged_at: int, folds: int, seed: int = 0) -> tuple[Split, ...]:
    """Return the folds of the samples that are judged, of which each is in the test part of one.

    Raises:
        ConfigError: fewer than two folds.
        DataSetError: too few users for the parts of a fold.
    """
    if folds < 2:  # noqa: PLR2004 (one fold has nobody to train on)
        raise ConfigError(f"{folds} folds: there must be 2 or more, each of other users.")
    judged = np.flatnonzero(samples.times == judged_at)
    known = np.flatnonzero(samples.times != judged_at)
    users = samples.table[USER].to_numpy(zero_copy_only=False).astype(str)[judged]
    names = np.random.default_rng(seed).permutation(np.unique(users))
    if len(names) < folds * STOP_PARTS:
        raise DataSetError(f"{len(names)} users have a profile and ratings to judge; {folds} folds need more of them.")
    parts = []
    for fold in range(folds):
        others = np.delete(names, np.arange(fold, len(names), folds))
        stop = _of(users, others[::STOP_PARTS])
        test = _of(users, names[fold::folds])
        parts.append(
            Split(train=np.concatenate([known, judged[~stop & ~test]]), validation=judged[stop], test=judged[test])
        )
    return tuple(parts)


def _of(users: npt.NDArray[np.str_], names: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    is_of: npt.NDArray[np.bool_] = np.isin(users, names)
    return is_of
