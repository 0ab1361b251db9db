"""A seeded synthetic data set: users whose tastes drift, and films with title, categories, period and creator.

A user's taste is a stable core plus a phase: some liked and disliked categories, a decade and a few creators. A
phase lasts some 25 to 60 behaviors; the next one keeps part of it, or returns to an earlier one. What is watched
leans towards the taste, and a rating is the affinity to the current taste plus noise, cut into 1 to 5.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from liber_feast.behavior import BEHAVIOR_ID, EVENT_TIME, ITEM, RATING, TIMESTAMP, USER, RatingScale, behavior_ids
from liber_feast.datasets.data_set import CATEGORIES, PERIOD, PROFILE, TITLE, ExpectedCounts, ParsedSource
from liber_feast.errors import DataSetError

NAME = "synthetic"
USER_COUNT, BEHAVIORS_PER_USER, ITEM_COUNT, CREATOR_COUNT = 300, 120, 1_200, 80
MOST_PER_USER, FEWEST_PER_USER = 600, 5
LAST_TIME = datetime(2024, 1, 1, tzinfo=UTC)
"""Every behavior is before it, whatever the clock says."""
SPAN_SECONDS = 730 * 86_400
RATING_SHARES = (0.07, 0.14, 0.23, 0.33, 0.23)
"""The shares of the ratings 1 to 5 over the whole set; 56 % are liked (above 3)."""
NOISE = 0.75
"""Standard deviation of what a rating owes to chance; the affinity's is about 1.3."""
LEAN = 0.8
"""How strongly what is watched leans towards the taste; 0 is by popularity alone."""
RETURN_CHANCE, DECADE_CHANCE = 0.3, 0.5
"""How often a phase returns to an earlier taste, and how often a drift keeps the decade."""
DECADES = tuple(f"{year}s" for year in range(1960, 2030, 10))
AGE_GROUPS = ("under 18", "18-24", "25-34", "35-44", "45-54", "55 or older")
GENDERS = ("female", "male")
NOUNS = {
    "Action": "Strike Convoy Blade Outpost Rampage Vanguard Showdown Bullet Warrior Pursuit",
    "Adventure": "Voyage Island Expedition Compass Treasure Summit Caravan Jungle Horizon Map",
    "Animation": "Puppet Lantern Kitten Toymaker Balloon Rabbit Firefly Acorn Penguin Kite",
    "Comedy": "Wedding Roommate Neighbor Mix-up Reunion Vacation Butler Prank Diner Landlord",
    "Crime": "Heist Alibi Detective Informant Racket Syndicate Verdict Getaway Forger Precinct",
    "Documentary": "Chronicle Archive Glacier Orchestra Factory River Kitchen Election Reef Railway",
    "Drama": "Inheritance Letter Orchard Promise Daughter Farewell Winter Confession Harvest Silence",
    "Fantasy": "Dragon Sorcerer Kingdom Amulet Prophecy Unicorn Crown Enchantress Riddle Throne",
    "Horror": "Cellar Haunting Scarecrow Ritual Asylum Whisper Curse Graveyard Mask Attic",
    "Romance": "Kiss Sweetheart Serenade Summer Balcony Dance Bouquet Honeymoon Valentine Waltz",
    "Sci-Fi": "Android Galaxy Colony Starship Paradox Satellite Clone Nebula Machine Signal",
    "Thriller": "Witness Hostage Conspiracy Stranger Deadline Cipher Traitor Obsession Trap Shadow",
}
GENRES = tuple(NOUNS)
_ADJECTIVES = (
    "Silent Golden Last Hidden Crimson Broken Distant Midnight Forgotten Burning Frozen Secret Endless Restless Lonely"
    " Savage Gentle Hollow Electric Paper Velvet Iron Borrowed Wandering Bitter Radiant Faithful Reckless Ancient"
    " Invisible Painted Stolen Northern Second Perfect Crooked Sleeping Lucky Quiet Final"
)
_FIRST_NAMES = "Ada Bruno Clara Dario Elena Felix Greta Hugo Ines Jonas"
_LAST_NAMES = "Adler Bianchi Castillo Dubois Eriksen Fontaine Hartman Ivanov"
ADJECTIVES, FIRST_NAMES, LAST_NAMES = _ADJECTIVES.split(), _FIRST_NAMES.split(), _LAST_NAMES.split()

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Films:
    """The items: I films, each with 1 to 3 of C categories, a decade and a creator."""

    membership: Floats
    """(I, C): 1 / number of categories of the film in each of its categories, else 0."""
    decade: Ints
    creator: Ints
    first_category: Ints
    quality: Floats
    popularity: Floats
    """(I,): unnormalized log weight of being watched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """The behaviors of all users, user by user in the order of time; `affinity` is the rating's noise-free part."""

    films: Films
    age: Ints
    gender: Ints
    user: Ints
    item: Ints
    time: Ints
    """Unix seconds, strictly increasing within a user."""
    affinity: Floats
    rating: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Taste:
    """A phase of a user: liked and disliked categories, one decade and some creators."""

    liked: Ints
    disliked: Ints
    decade: int
    creators: Ints


def read_synthetic(*, seed: int = 0, users: int | None = None, behaviors: int | None = None) -> ParsedSource:
    """Return exactly `behaviors` behaviors (120 a user by default) of `users` users (300); the same for a same seed.

    Raises:
        DataSetError: fewer behaviors than users, or more than 600 a user.
    """
    user_count = USER_COUNT if users is None else users
    behavior_count = user_count * BEHAVIORS_PER_USER if behaviors is None else behaviors
    if user_count < 1 or not user_count <= behavior_count <= user_count * MOST_PER_USER:
        raise DataSetError(
            f"synthetic data cannot have {behavior_count:,} behaviors of {user_count:,} users."
            f" Ask for at least one user and 1 to {MOST_PER_USER} behaviors a user."
        )
    world = simulate(seed=seed, user_count=user_count, behavior_count=behavior_count)
    user_ids = np.array([f"u{index + 1:04d}" for index in range(user_count)])
    item_ids = np.array([f"i{index + 1:04d}" for index in range(ITEM_COUNT)])
    columns = [
        pa.array(user_ids[world.user], pa.string()),
        pa.array(item_ids[world.item], pa.string()),
        pa.array(world.rating),
        pa.array(world.time * 1_000_000).cast(TIMESTAMP),
    ]
    columns.append(behavior_ids(columns[0], columns[1], columns[3]))
    rows = pa.table(columns, names=[USER, ITEM, RATING, EVENT_TIME, BEHAVIOR_ID])
    return ParsedSource(
        name=NAME,
        behaviors=rows.sort_by([(EVENT_TIME, "ascending"), (BEHAVIOR_ID, "ascending")]),
        items=_item_table(world.films, ids=item_ids.tolist()),
        users=_user_table(world, ids=user_ids.tolist()),
        scale=RatingScale(low=1.0, high=5.0),
        prompt="movielens",
        item_text="categories",
        files=dict.fromkeys(("behaviors", "items", "users"), NAME),
        expected=ExpectedCounts(behaviors=behavior_count, users=user_count, items=ITEM_COUNT),
    )


def simulate(*, seed: int, user_count: int, behavior_count: int) -> Simulation:
    """Let `user_count` users watch and rate `behavior_count` films in all; depends on the arguments alone."""
    rng = np.random.default_rng(seed)
    films = _make_films(rng)
    age = rng.choice(len(AGE_GROUPS), size=user_count, p=(0.06, 0.2, 0.3, 0.2, 0.14, 0.1))
    gender = rng.integers(len(GENDERS), size=user_count)
    counts = _share_out(behavior_count, weights=rng.lognormal(sigma=0.95, size=user_count))
    items, affinities, times = [], [], []
    for user, count in enumerate(counts.tolist()):
        item, affinity = _watch(rng, films, count=count, age=int(age[user]))
        items.append(item)
        affinities.append(affinity)
        times.append(_times(rng, count=count))
    affinity = np.concatenate(affinities)
    felt = affinity + rng.normal(scale=NOISE, size=behavior_count)
    cuts = np.quantile(felt, np.cumsum(RATING_SHARES)[:-1])
    return Simulation(
        films=films,
        age=age,
        gender=gender,
        user=np.repeat(np.arange(user_count), counts),
        item=np.concatenate(items),
        time=np.concatenate(times),
        affinity=affinity,
        rating=(1 + np.searchsorted(cuts, felt, side="right")).astype(np.float64),
    )


def _make_films(rng: np.random.Generator) -> Films:
    """Make films whose creators have two home categories and a home decade."""
    home = np.stack([rng.permutation(len(GENRES))[:2] for _ in range(CREATOR_COUNT)])
    home_decade = rng.integers(len(DECADES), size=CREATOR_COUNT)
    creator = rng.integers(CREATOR_COUNT, size=ITEM_COUNT)
    drift = rng.choice((-1, 0, 1), size=ITEM_COUNT, p=(0.2, 0.6, 0.2))
    first, membership = np.zeros(ITEM_COUNT, np.int64), np.zeros((ITEM_COUNT, len(GENRES)))
    sizes = rng.choice((1, 2, 3), size=ITEM_COUNT, p=(0.3, 0.5, 0.2))
    for film, size in enumerate(sizes.tolist()):
        others = rng.permutation(len(GENRES))
        ranked = np.concatenate([home[creator[film]][rng.permutation(2)], others])
        chosen = list(dict.fromkeys(ranked.tolist()))[:size]
        first[film] = chosen[0]
        membership[film, chosen] = 1.0 / size
    quality = rng.normal(size=ITEM_COUNT)
    return Films(
        membership=membership,
        decade=np.clip(home_decade[creator] + drift, 0, len(DECADES) - 1),
        creator=creator,
        first_category=first,
        quality=quality,
        popularity=rng.normal(size=ITEM_COUNT) + 0.4 * quality,
    )


def _share_out(total: int, *, weights: Floats) -> Ints:
    """Return whole numbers about proportional to `weights` that sum to `total`, none above `MOST_PER_USER`."""
    low = min(FEWEST_PER_USER, total // len(weights))
    ratio_low, ratio_high = 0.0, float(MOST_PER_USER / weights.min())
    for _ in range(60):
        ratio = (ratio_low + ratio_high) / 2
        shares = np.clip((weights * ratio).astype(np.int64), low, MOST_PER_USER)
        ratio_low, ratio_high = (ratio, ratio_high) if shares.sum() <= total else (ratio_low, ratio)
    counts: Ints = np.clip((weights * ratio_low).astype(np.int64), low, MOST_PER_USER)
    while (left := total - int(counts.sum())) > 0:
        counts[np.flatnonzero(counts < MOST_PER_USER)[:left]] += 1
    return counts


def _watch(rng: np.random.Generator, films: Films, *, count: int, age: int) -> tuple[Ints, Floats]:
    """Return the films one user watches in order, each once, and the user's affinity to each when watching it."""
    core = rng.normal(scale=0.5, size=len(GENRES))
    bias = rng.normal(scale=0.3)
    tastes = [_new_taste(rng, age=age)]
    unseen = np.ones(ITEM_COUNT, bool)
    items: list[Ints] = []
    affinities: list[Floats] = []
    left = count
    while left:
        length = min(left, int(rng.integers(25, 61)))
        taste = tastes[-1]
        affinity = _affinity(films, core=core, taste=taste) + bias
        drawn = films.popularity + LEAN * affinity + rng.gumbel(size=ITEM_COUNT)
        chosen = np.argsort(np.where(unseen, -drawn, np.inf), kind="stable")[:length]
        chosen = rng.permutation(chosen)
        unseen[chosen] = False
        items.append(chosen)
        affinities.append(affinity[chosen])
        returns = len(tastes) > 1 and rng.random() < RETURN_CHANCE
        tastes.append(tastes[rng.integers(len(tastes) - 1)] if returns else _drift(rng, taste, age=age))
        left -= length
    return np.concatenate(items), np.concatenate(affinities)


def _affinity(films: Films, *, core: Floats, taste: Taste) -> Floats:
    """Return the (I,) affinities of a taste to every film."""
    weights = core.copy()
    weights[taste.liked] += 2.0
    weights[taste.disliked] -= 2.0
    return np.asarray(
        films.membership @ weights
        + 0.8 * (films.decade == taste.decade)
        - 0.25 * np.abs(films.decade - taste.decade)
        + 1.2 * np.isin(films.creator, taste.creators)
        + 0.4 * films.quality
    )


def _new_taste(rng: np.random.Generator, *, age: int) -> Taste:
    """Draw a taste: three liked and three disliked categories, a decade (earlier for the older), four creators."""
    categories = rng.permutation(len(GENRES))
    return Taste(
        liked=categories[:3],
        disliked=categories[3:6],
        decade=int(np.clip(round(rng.normal(5.5 - 0.6 * age, 1.2)), 0, len(DECADES) - 1)),
        creators=rng.permutation(CREATOR_COUNT)[:4],
    )


def _drift(rng: np.random.Generator, taste: Taste, *, age: int) -> Taste:
    """Draw the next taste: it keeps one liked and one disliked category and half the creators of `taste`."""
    fresh = _new_taste(rng, age=age)
    kept, avoided = int(rng.choice(taste.liked)), int(rng.choice(taste.disliked))
    others = [c for c in np.concatenate([fresh.liked, fresh.disliked]).tolist() if c not in (kept, avoided)]
    return Taste(
        liked=np.array([kept, *others[:2]]),
        disliked=np.array([avoided, *others[2:4]]),
        decade=taste.decade if rng.random() < DECADE_CHANCE else fresh.decade,
        creators=np.concatenate([taste.creators[:2], fresh.creators[:2]]),
    )


def _times(rng: np.random.Generator, *, count: int) -> Ints:
    """Return the strictly increasing unix seconds of one user's behaviors: sessions of about five films."""
    begin = rng.uniform(0.0, 0.6)
    end = begin + (1.0 - begin) * rng.beta(4.0, 1.0)
    starts = np.sort(rng.uniform(begin, end, size=max(1, count // 5))) * SPAN_SECONDS
    seconds = rng.choice(starts, size=count) + rng.uniform(0, 4 * 3_600, size=count)
    steps = np.arange(count)
    apart: Ints = np.maximum.accumulate(np.sort(seconds).astype(np.int64) - steps) + steps
    late = max(0, int(apart[-1]) - (SPAN_SECONDS - 1))
    return apart - late + int(LAST_TIME.timestamp()) - SPAN_SECONDS


def _item_table(films: Films, *, ids: list[str]) -> pa.Table:
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    categories = [[GENRES[c] for c in np.flatnonzero(row)] for row in films.membership]
    columns: dict[str, Any] = {
        ITEM: pa.array(ids, pa.string()),
        TITLE: pa.array(_titles(films), pa.string()),
        CATEGORIES: pa.array(categories, pa.list_(pa.string())),
        PERIOD: pa.array([DECADES[decade] for decade in films.decade], pa.string()),
        "creator": pa.array([names[creator] for creator in films.creator], pa.string()),
    }
    return pa.table(columns)


def _titles(films: Films) -> list[str]:
    """Return a title for each film, no two alike: an adjective and a noun of its first category."""
    taken = dict.fromkeys(GENRES, 0)
    titles = []
    for category in films.first_category.tolist():
        genre = GENRES[category]
        nouns, index = NOUNS[genre].split(), taken[genre]
        taken[genre] += 1
        # 40 adjectives and 10 nouns: stepping both at once reaches each pair once in 400 steps.
        adjective = ADJECTIVES[(index + index // len(ADJECTIVES) + 7 * category) % len(ADJECTIVES)]
        title = f"The {adjective} {nouns[index % len(nouns)]}"
        part = index // (len(ADJECTIVES) * len(nouns))
        titles.append(f"{title} {part + 1}" if part else title)
    return titles


def _user_table(world: Simulation, *, ids: list[str]) -> pa.Table:
    ages = [AGE_GROUPS[age] for age in world.age]
    genders = [GENDERS[gender] for gender in world.gender]
    years = [age if age[0] == "u" or age.endswith("older") else f"{age} years old" for age in ages]
    return pa.table(
        {
            USER: pa.array(ids, pa.string()),
            PROFILE: pa.array([f"{age}, {gender}" for age, gender in zip(years, genders, strict=True)], pa.string()),
            "age_group": pa.array(ages, pa.string()),
            "gender": pa.array(genders, pa.string()),
        }
    )
